"""Results from the peers' own files, without the coordinator, for ``p2pft collect``.

Each peer's journal begins with facts of the run that the coordinator sent, and with the peer's own row of the
graph's weights. All rows together are the graph again; its digest shows that no row is another run's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import DataError, TopologyError
from p2pft_flower.facts import PeerFacts, Row, RunFacts
from p2pft_flower.keeping.journal import by_run, read_journal
from p2pft_flower.keeping.lines import AnyLine, Evaluation, Failed, Outcome, Run, ViewChange
from p2pft_flower.keeping.progress import Progress
from p2pft_flower.keeping.resuming import without_paths
from p2pft_flower.report.results import absent_at_start, lost_on_the_way, merged_views, run_results
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
    """One peer's journal, read.

    Attributes
    ----------
    peer : int
        The peer.
    log : Path
        The file.
    run : Run
        The journal's last line of event ``run``, with which the peer's present life begins.
    facts : RunFacts
        The facts of the run in the line ``run``.
    about : PeerFacts
        The facts of the peer in the line ``run``.
    lines : list of line
        The lines that follow the line ``run``.
    """

    peer: int
    log: Path
    run: Run
    facts: RunFacts
    about: PeerFacts
    lines: list[AnyLine]

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
    def evaluations(self) -> list[Evaluation]:
        """The peer's evaluations."""
        return [line for line in self.lines if isinstance(line, Evaluation)]

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


def find_peers(folders: Sequence[Path]) -> dict[int, PeerFiles]:
    """Return the peers' journals in some folders, by peer.

    Parameters
    ----------
    folders : sequence of Path
        Folders of runs (with ``peers/`` in them), or ``peers`` folders.

    Raises
    ------
    DataError
        When a folder has no journal, a journal cannot be used, two journals are of the same peer, or journals
        are of different runs.
    """
    found: dict[int, PeerFiles] = {}
    for folder in folders:
        logs = sorted({*folder.glob("peer-*.jsonl"), *folder.glob("peers/peer-*.jsonl")})
        if not logs:
            below = sorted(p.parent.name for p in folder.glob("*/peers"))
            hint = f"; it holds the runs {', '.join(below)}: choose one" if below else ""
            raise DataError(f"{folder}: no peers/peer-<i>.jsonl there; give a run's folder of a peer{hint}")
        for log in logs:
            one = _read(log)
            other = found.setdefault(one.peer, one)
            if other.log.resolve() != log.resolve():
                raise DataError(f"peer {one.peer} is there twice: {other.log} and {log}; give one of them")
    _check_alike(list(found.values()))
    return found


def _read(log: Path) -> PeerFiles:
    lives = by_run(read_journal(log))
    run = lives[-1].run if lives else None
    if run is None or run.facts is None or run.about is None:
        raise DataError(
            f"{log}: no line of event run that tells of the run and of the peer; only peers that train among "
            "themselves write it, not the clients of Flower's strategies, whose server has their results"
        )
    return PeerFiles(run.peer, log, run, run.facts, run.about, lives[-1].lines)


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


def collect_results(peers: Mapping[int, PeerFiles], *, partial: bool = False) -> dict[str, Any]:
    """Return a run's results, as the coordinator would have written them, from its peers' files.

    ``seconds`` is the longest time of a peer from the line ``run`` of its journal to its end, ``begun`` and
    ``ended`` are the first of these lines' times and the last of these ends'. All else equals
    the coordinator's results, but ``history`` may have more evaluations than the coordinator received.

    Parameters
    ----------
    peers : mapping of int to PeerFiles
        The peers' journals, from :func:`find_peers`.
    partial : bool
        Whether results are made of the peers that ended if others are missing. Their status is
        ``completed-with-M-of-N``, ``error`` names the missing peers, and the graph has null for the row of a
        peer without a journal.

    Raises
    ------
    DataError
        When peers are missing and ``partial`` is false, or no peer has ended; names the missing peers, and
        how far each came. When the rows of weights are not those of the run's graph.
    """
    run, facts = (first := next(iter(peers.values()))).run, first.facts
    total = 1 if facts.pooled else run.n
    ended = {p: files for p, files in sorted(peers.items()) if files.outcome is not None}
    absent = [p for p in range(total) if p not in facts.live]  # from the start on
    changes = [line for files in peers.values() for line in files.lines if isinstance(line, ViewChange)]
    views = merged_views(changes, facts.live)
    # The others have gone on without these: that they have not ended is no gap.
    lost = [p for p in facts.live if views and p not in views[-1]["peers"] and p not in ended]
    missing = [p for p in facts.live if p not in ended and p not in lost]
    states = [f"peer {p}: {peers[p].state if p in peers else 'no journal of it was given'}" for p in missing]
    if not ended or (missing and not partial):
        remedy = "" if partial else "; give the missing peers' folders too, or --partial"
        raise DataError(f"run {run.run} has no results of {len(missing)} of {total} peers: "
                        f"{'; '.join(states)}{remedy}")  # fmt: skip
    reasons = [absent_at_start(absent)] if absent else []
    if lost:
        reasons.append(lost_on_the_way(views, lost))
    if states:
        reasons.append(f"no results of {'; '.join(states)}")
    progress = Progress(total, run.iterations, lambda _: None, absent)
    for files in peers.values():
        for line in files.evaluations:
            progress.fill(line.report)
    results = run_results(
        total=total,
        missing="; ".join(reasons) or None,
        run_id=run.run,
        config=run.config,
        iterations=run.iterations,
        outcomes={p: files.outcome for p, files in ended.items() if files.outcome is not None},
        about={p: files.about for p, files in ended.items()},
        history=progress.history(),
        graph=_graph(run.n, facts, peers.values()),
        partition=facts.partition,
        hosts=sorted({files.run.host for files in peers.values()}),
        versions=facts.versions,
        resumed_from=facts.resumed_from,
        views=views,
    )
    results["seconds"] = max(files.last.time - files.run.time for files in ended.values())
    results["begun"] = min(files.run.time for files in ended.values())
    results["ended"] = max(files.last.time for files in ended.values())
    return results


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
