"""Results from the peers' own files, without the coordinator, for ``p2pft collect``.

Each peer's journal begins with facts of the run that the coordinator sent, and with the peer's own row of the
graph's weights. All rows together are the graph again; its digest shows that no row is another run's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import Cause, DataError, TopologyError, said_by
from p2pft_flower.facts import PeerFacts, Row, RunFacts
from p2pft_flower.keeping.journal import Life, by_run, elapsed, read_journal
from p2pft_flower.keeping.lines import AnyLine, Evaluation, Failed, Outcome, Run, ViewChange
from p2pft_flower.keeping.progress import Progress
from p2pft_flower.keeping.resuming import without_paths
from p2pft_flower.report.outcomes import Reached, how_far, run_results
from p2pft_flower.report.results import absent_at_start, lost_on_the_way, merged_views
from p2pft_flower.topology import Graph

__all__ = ["PeerFiles", "collect_results", "find_peers", "rows_of"]


def rows_of(graph: Graph, peers: Iterable[int]) -> tuple[Row, ...]:
    """Return the rows of ``peers`` in the graph's weights, each with the peer's name and address."""
    return tuple(
        Row(
            i,
            graph.peer_names[i],
            graph.addresses[i],
            _without_zeros(graph.W[i]),
            tuple(_without_zeros(turn[i]) for turn in graph.turns),
        )
        for i in peers
    )


def _without_zeros(weights: npt.NDArray[np.float64]) -> dict[int, float]:
    return {int(j): float(weights[j]) for j in np.flatnonzero(weights)}


@dataclass(frozen=True)
class PeerFiles:
    """One peer's journal of one run, read.

    Attributes
    ----------
    peer : int
        The peer.
    log : Path
        The file.
    run : Run
        The line of event ``run`` with which the peer's last life in the run begins.
    facts : RunFacts
        The facts of the run in the line ``run``.
    about : PeerFacts
        The facts of the peer in the line ``run``.
    lines : list of line
        The lines that follow the line ``run``.
    earlier : list of line
        The lines of the peer's earlier lives in the run, which it may have been killed in.
    """

    peer: int
    log: Path
    run: Run
    facts: RunFacts
    about: PeerFacts
    lines: list[AnyLine]
    earlier: list[AnyLine] = field(default_factory=list)

    @property
    def tail(self) -> Path:
        """The peer's tail, beside its journal."""
        return self.log.with_suffix(".safetensors")

    @property
    def last(self) -> AnyLine:
        """The journal's last line."""
        return self.lines[-1] if self.lines else self.run

    @property
    def outcome(self) -> Outcome | None:
        """The peer's outcome; None if it has not trained to the end, or has left no tail."""
        return self.last if isinstance(self.last, Outcome) and self.tail.is_file() else None

    @property
    def failed(self) -> Failed | None:
        """The peer's last line if it has given up."""
        return self.last if isinstance(self.last, Failed) else None

    @property
    def known(self) -> list[AnyLine]:
        """The lines that count: those of the last life, which repeats the earlier ones if it was let in."""
        let_in = any(isinstance(line, Evaluation) for line in self.lines)
        return self.lines if let_in else [*self.earlier, *self.lines]

    @property
    def evaluations(self) -> list[Evaluation]:
        """The peer's evaluations."""
        return [line for line in self.known if isinstance(line, Evaluation)]

    @property
    def state(self) -> str:
        """The reason, in words, why the peer has no outcome: how far it came."""
        if isinstance(self.last, Failed):
            return f"it failed in iteration {self.last.iteration}: {self.last.error} ({self.log})"
        if isinstance(self.last, Outcome):
            return f"its journal has an end, but {self.tail} is missing"
        done = max((e.iteration for e in self.evaluations), default=None)
        where = "before the first evaluation" if done is None else f"after the evaluation of iteration {done}"
        return f"its journal breaks off {where}: it still trains, or was killed ({self.log})"


def find_peers(
    folders: Sequence[Path], run: str | None = None, tell: Callable[[str], None] = lambda _: None
) -> dict[int, PeerFiles]:
    """Return the files of every peer of one run whose journal is in ``folders``, by peer.

    Parameters
    ----------
    folders : sequence of Path
        Folders of runs (with ``peers/`` in them), ``peers`` folders, or folders that hold those of runs.
    run : str, optional
        The run's id; default: the run that began last.
    tell : callable
        Called with a note if the folders hold other runs, too; default: nobody is told.

    Raises
    ------
    DataError
        When a folder has no journal, no journal of the run can be used, two different journals are of the
        same peer, or the journals are of different runs.
    """
    every, odd = list[PeerFiles](), dict[Path, DataError]()
    for log in _journals(folders):
        try:
            every += _read(log)
        except DataError as error:  # of another run, perhaps
            odd[log] = error
    if not every:
        raise next(iter(odd.values()))
    began: dict[str, float] = {}
    for one in every:
        began[one.run.run] = max(one.run.time, began.get(one.run.run, one.run.time))
    chosen = max(began, key=lambda name: (began[name], name)) if run is None else run
    if chosen not in began:
        raise DataError(f"no journal there is of run {chosen}; they are of run {', '.join(sorted(began))}")
    peers: dict[int, PeerFiles] = {}
    for one in (one for one in every if one.run.run == chosen):
        other = peers.setdefault(one.peer, one)
        if other is not one:
            raise DataError(f"peer {one.peer} is there twice: {other.log} and {one.log}; give one of them")
    for log, problem in odd.items():
        if log.name not in {files.log.name for files in peers.values()}:
            raise problem  # it may be the one that is missing
        tell(f"left out: {problem}")
    if others := sorted(began.keys() - {chosen}):
        tell(f"run {chosen}, which began last; --run takes another one: {', '.join(others)}")
    _check_alike(list(peers.values()))
    return peers


def _journals(folders: Sequence[Path]) -> list[Path]:
    """Return all journals in the folders, each once."""
    logs: list[Path] = []
    for folder in folders:
        found = sorted({*folder.glob("peer-*.jsonl"), *folder.glob("peers/peer-*.jsonl")})
        found = found or sorted(folder.glob("*/peers/peer-*.jsonl"))
        if not found:
            raise DataError(f"{folder}: no peers/peer-<i>.jsonl there; give a run's folder of a peer")
        logs += found
    return list(dict.fromkeys(log.resolve() for log in logs))


def _read(log: Path) -> list[PeerFiles]:
    """Return what a journal has of each run, with the peer's last life in it."""
    lives: dict[str, list[Life]] = {}
    for life in by_run(read_journal(log)):
        lives.setdefault(life.run.run, []).append(life)
    found = []
    for *before, last in lives.values():
        run = last.run
        if run.facts is not None and run.about is not None:
            earlier = [line for life in before for line in life.lines]
            found.append(PeerFiles(run.peer, log, run, run.facts, run.about, last.lines, earlier))
    if not found:
        raise DataError(
            f"{log}: no line of event run that tells of the run and of the peer; only peers that train among "
            "themselves write it, not the clients of Flower's strategies, whose server has their results"
        )
    return found


def _check_alike(peers: Sequence[PeerFiles]) -> None:
    for other in peers[1:]:
        for (key, one), (_, two) in zip(_common(peers[0]), _common(other), strict=True):
            if one != two:
                raise DataError(
                    f"{peers[0].log} and {other.log} are not of the same run: {key} is {one!r} and {two!r}"
                )


def _common(peer: PeerFiles) -> list[tuple[str, Any]]:
    """Return the parts of a journal's ``run`` line that are the same for all peers of a run."""
    run, facts = peer.run, peer.facts
    named = [(key, getattr(run, key)) for key in ("run", "n", "iterations", "evaluate_every")]
    keys = ("graph", "live", "partition", "versions", "pooled")
    return [*named, ("config", without_paths(run.config)), *((key, getattr(facts, key)) for key in keys)]


def collect_results(
    peers: Mapping[int, PeerFiles], *, partial: bool = False, given_up: str = ""
) -> dict[str, Any]:
    """Return a run's results, as the coordinator would have written them, from its peers' files.

    ``begun`` and ``ended`` are the first and the last time in the peers' journals, and ``seconds`` is the
    longest time of one of them. All else equals the coordinator's results, but ``history`` may have more
    evaluations than the coordinator received. Of a run that was stopped or failed, these are the scores of
    each peer's last evaluation.

    Parameters
    ----------
    peers : mapping of int to PeerFiles
        The peers' journals, from :func:`find_peers`.
    partial : bool
        Whether results are made of what there is if other peers are missing. Their status is
        ``completed-with-M-of-N``, ``error`` names the missing peers, and the graph has null for the row of a
        peer without a journal.
    given_up : str
        The reason why the whole run was stopped, if that is known and its journals need not say it.

    Raises
    ------
    DataError
        When peers are missing, the run has not ended by what the others' journals say, and ``partial`` is
        false; the message names the missing peers, and how far each came. When the rows of weights are not
        those of the run's graph.
    """
    run, facts = (first := next(iter(peers.values()))).run, first.facts
    total = 1 if facts.pooled else run.n
    ended = {p: files.outcome for p, files in sorted(peers.items()) if files.outcome is not None}
    absent = [p for p in range(total) if p not in facts.live]  # from the start on
    lines = [line for files in peers.values() for line in files.known]
    views = merged_views((line for line in lines if isinstance(line, ViewChange)), facts.live)
    # The others have gone on without these: that they have not ended is no gap.
    lost = [p for p in facts.live if views and p not in views[-1]["peers"] and p not in ended]
    missing = [p for p in facts.live if p not in ended and p not in lost]
    states = [f"peer {p}: {peers[p].state if p in peers else 'no journal of it was given'}" for p in missing]
    given = {p: files.failed for p, files in sorted(peers.items()) if files.failed is not None}
    status, why = _ending({p: line for p, line in given.items() if p in missing}, given)
    if given_up:
        status, why = "stopped", given_up
    elif missing and not partial and (status is None or any(p not in peers for p in missing)):
        raise DataError(
            f"run {run.run} has no results of {len(missing)} of {total} peers: {'; '.join(states)}; give the "
            "missing peers' folders too, or --partial"
        )
    reasons = [absent_at_start(absent)] if absent else []
    if lost:
        reasons.append(lost_on_the_way(views, lost))
    if states:
        reasons.append(f"no results of {'; '.join(states)}")
    progress = Progress(total, run.iterations, lambda _: None, absent)
    for files in peers.values():
        for line in files.evaluations:
            progress.fill(line.report)
    if views:
        progress.go_on_with(views[-1]["peers"])  # these alone are in its last evaluations
    reached = {
        p: Reached(
            how_far(p, views, files.failed) if p in lost or files.failed is not None else files.state,
            progress.last(p),
            files.failed,
            p in lost,
        )
        for p, files in sorted(peers.items())
        if p not in ended
    }
    results = run_results(
        total=total,
        missing=(why if status is not None else "; ".join(reasons)) or None,
        run_id=run.run,
        config=run.config,
        iterations=run.iterations,
        outcomes=ended,
        about={p: files.about for p, files in peers.items()},
        history=progress.history(),
        graph=_graph(run.n, facts, peers.values()),
        partition=facts.partition,
        hosts=sorted({files.run.host for files in peers.values()}),
        versions=facts.versions,
        resumed_from=facts.resumed_from,
        views=views,
        reached=reached,
        status=status,
    )
    counted = [peers[p] for p in ended] if status is None and ended else list(peers.values())
    results["seconds"] = max(elapsed([files.run, *files.lines])[-1] for files in counted)
    results["begun"] = min(files.run.time for files in counted)
    results["ended"] = max(line.time for files in counted for line in (files.run, files.last))
    return results


_SAYS_MOST = [cause.name for cause in (Cause.OWN, Cause.RUN, Cause.LOST, Cause.HEARSAY, Cause.STOPPED)]


def _ending(there: Mapping[int, Failed], given_up: Mapping[int, Failed]) -> tuple[str | None, str]:
    """Return status and reason of a run, as the coordinator would choose them; None if no line says it.

    Parameters
    ----------
    there : mapping of int to Failed
        The last lines of peers that were there to the end and have no outcome, ascending by peer.
    given_up : mapping of int to Failed
        The last lines of all peers that have given up, those lost before among them.
    """
    if not there:
        return None, ""
    peer = _says_most(there)
    if there[peer].cause == Cause.STOPPED.name:
        return "stopped", said_by(f"peer {peer}", there[peer].error)
    peer = _says_most(given_up)
    return "failed", said_by(f"peer {peer}", given_up[peer].error)


def _says_most(lines: Mapping[int, Failed]) -> int:
    rank = {name: k for k, name in enumerate(_SAYS_MOST)}
    return min(lines, key=lambda peer: rank.get(lines[peer].cause, len(rank)))


def _graph(n: int, facts: RunFacts, peers: Iterable[PeerFiles]) -> dict[str, Any]:
    rows = {row.peer: row for files in peers for row in files.about.rows}

    def matrix(own: Mapping[int, Mapping[int, float]]) -> list[list[float] | None]:
        return [[own[i].get(j, 0.0) for j in range(n)] if i in own else None for i in range(n)]

    periods = {len(row.turns) for row in rows.values()}
    if len(periods) > 1:
        raise DataError(f"the peers' rows of weights have {sorted(periods)} turns: a journal was changed")
    graph: dict[str, Any] = {
        "name": facts.graph.name,
        "weights": matrix({i: row.weights for i, row in rows.items()}),
        "peer_names": [rows[i].name if i in rows else None for i in range(n)],
        "addresses": [rows[i].address if i in rows else None for i in range(n)],
    }
    if period := max(periods, default=0):
        each = [{i: row.turns[t] for i, row in rows.items()} for t in range(period)]
        graph["turns"] = [matrix(own) for own in each]
    if len(rows) == n:
        try:
            digest = Graph.from_dict(graph).digest
        except TopologyError as error:
            raise DataError(f"the peers' rows of weights make no graph: {error}") from error
        if digest != facts.graph.digest:
            raise DataError(
                f"the peers' rows of weights are not those of the run's graph {facts.graph.name!r} (digest "
                f"{digest}, the run's is {facts.graph.digest}): a journal was changed"
            )
    added = [list(edge) for edge in facts.graph.added_edges]
    return {**graph, "digest": facts.graph.digest, "added_edges": added}
