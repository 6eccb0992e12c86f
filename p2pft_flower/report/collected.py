"""Results from the peers' own files, without the coordinator, for ``p2pft collect``.

Each peer's journal begins with facts of the run that the coordinator sent, and with the peer's own row of the
graph's weights. Together the rows are the graph again, and its digest shows that none is another run's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pft_flower.errors import DataError, TopologyError
from p2pft_flower.keeping.journal import read_last_run
from p2pft_flower.keeping.progress import Progress, Report
from p2pft_flower.keeping.resuming import without_paths
from p2pft_flower.report.results import absent_at_start, lost_on_the_way, merged_views, run_results
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View

__all__ = ["PeerFiles", "collect_results", "find_peers", "peer_record", "run_record"]

_COMMON = ("n", "iterations", "evaluate_every", "config", "graph", "live", "partition", "versions", "pooled")
"""Keys that the ``run`` events of all peers of a run have in common."""


def run_record(
    graph: Graph,
    view: View,
    peers: Sequence[int],
    partition: str,
    versions: Mapping[str, str],
    *,
    pooled: bool,
    resumed_from: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the facts of the run, beyond those of the plan, that every peer's journal holds."""
    added = [list(edge) for edge in view.added_to(graph)]
    return {
        "graph": {"name": graph.name, "digest": graph.digest, "added_edges": added},
        "live": list(peers),
        "partition": partition,
        "versions": dict(versions),
        "pooled": pooled,
        "resumed_from": None if resumed_from is None else dict(resumed_from),
    }


def peer_record(graph: Graph, peers: Iterable[int]) -> dict[str, Any]:
    """Return ``peers``' own rows of the graph: name, address, and weights by sender."""
    return {
        "rows": [
            {
                "peer": i,
                "name": graph.peer_names[i],
                "address": graph.addresses[i],
                "weights": {str(j): float(w) for j, w in enumerate(graph.W[i]) if w},
            }
            for i in peers
        ]
    }


_VIEW = ("number", "iteration", "peers", "edges", "lost", "joined", "why", "seconds")
"""Keys of a journal's ``view`` event that results hold."""


@dataclass(frozen=True)
class PeerFiles:
    """One peer's journal, read.

    Attributes
    ----------
    peer : int
        The peer.
    log : Path
        The file.
    lines : list of dict
        Events of the last run in it, ``run`` first.
    """

    peer: int
    log: Path
    lines: list[dict[str, Any]]

    @property
    def tail(self) -> Path:
        """The peer's tail, beside its journal."""
        return self.log.with_suffix(".safetensors")

    @property
    def run(self) -> dict[str, Any]:
        """The ``run`` event."""
        return self.lines[0]

    @property
    def ended(self) -> bool:
        """Whether the peer trained to the end and wrote its tail."""
        return self.lines[-1]["event"] == "end" and self.tail.is_file()

    @property
    def state(self) -> str:
        """How far the peer came, in words."""
        last = self.lines[-1]
        if last["event"] == "failed":
            return f"it failed in iteration {last['iteration']}: {last['error']} ({self.log})"
        if last["event"] == "end":
            return f"its journal has an end, but {self.tail} is missing"
        done = max((e["iteration"] for e in self.lines if e["event"] == "evaluation"), default=None)
        where = "before the first evaluation" if done is None else f"after the evaluation of iteration {done}"
        return f"its journal breaks off {where}: it still trains, or was killed ({self.log})"


def find_peers(folders: Sequence[Path]) -> dict[int, PeerFiles]:
    """Read the journals in the peers' folders.

    Parameters
    ----------
    folders : sequence of Path
        Each the folder of a run (with ``peers/`` in it) or a ``peers`` folder.

    Returns
    -------
    dict of int to PeerFiles

    Raises
    ------
    DataError
        When a folder has no journal, a journal cannot be used, two are of the same peer, or of different
        runs.
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
    try:
        lines = read_last_run(log)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{log}: not a peer's journal ({type(error).__name__}: {error})") from error
    missing = [key for key in (*_COMMON, "host", "rows", "name") if not lines or key not in lines[0]]
    if missing:
        raise DataError(
            f"{log}: no line of event run with {', '.join(missing)}; only peers that train among themselves "
            "write it, not the clients of Flower's strategies, whose server has their results"
        )
    return PeerFiles(int(lines[0]["peer"]), log, lines)


def _check_alike(peers: Sequence[PeerFiles]) -> None:
    for other in peers[1:]:
        for key in ("run", *_COMMON):
            one, two = (
                without_paths(f.run[key]) if key == "config" else f.run[key] for f in (peers[0], other)
            )
            if one != two:
                raise DataError(
                    f"{peers[0].log} and {other.log} are not of the same run: {key} is {one!r} and {two!r}"
                )


def collect_results(peers: Mapping[int, PeerFiles], *, partial: bool = False) -> dict[str, Any]:
    """Return a run's results, as the coordinator would have written them, from its peers' files.

    ``seconds`` is the longest of the peers' own times, from their plan to their end. All else equals the
    coordinator's results, but ``history`` may have more evaluations than the coordinator received.

    Parameters
    ----------
    peers : mapping of int to PeerFiles
        From :func:`find_peers`.
    partial : bool
        Make results of the peers that ended if others are missing. Their status is
        ``completed-with-M-of-N``, ``error`` names the missing peers, and their rows of the graph are null
        unless their journals are there.

    Raises
    ------
    DataError
        When peers are missing and ``partial`` is not given, or none has ended; names them and how far they
        came. When the rows of weights are not those of the run's graph.
    """
    run = next(iter(peers.values())).run
    total = 1 if run["pooled"] else run["n"]
    ended = {p: files for p, files in sorted(peers.items()) if files.ended}
    absent = [p for p in range(total) if p not in run["live"]]  # from the start on
    changes = (line for files in peers.values() for line in files.lines if line["event"] == "view")
    views = merged_views(changes, run["live"])
    # The others have gone on without these, so their missing ends are no gap.
    lost = [p for p in run["live"] if views and p not in views[-1]["peers"] and p not in ended]
    missing = [p for p in run["live"] if p not in ended and p not in lost]
    states = [f"peer {p}: {peers[p].state if p in peers else 'no journal of it was given'}" for p in missing]
    if missing and not (partial and ended):
        remedy = "" if partial else "; give the missing peers' folders too, or --partial"
        raise DataError(f"run {run['run']} has no results of {len(missing)} of {total} peers: "
                        f"{'; '.join(states)}{remedy}")  # fmt: skip
    reasons = [absent_at_start(absent)] if absent else []
    if lost:
        reasons.append(lost_on_the_way(views, lost))
    if states:
        reasons.append(f"no results of {'; '.join(states)}")
    progress = Progress(total, run["iterations"], lambda _: None, absent)
    for files in peers.values():
        for line in files.lines:
            if line["event"] == "evaluation":
                progress.fill(Report.of(line))
    results = run_results(
        total=total,
        missing="; ".join(reasons) or None,
        run_id=run["run"],
        config=run["config"],
        iterations=run["iterations"],
        outcomes={p: files.lines[-1] for p, files in ended.items()},
        about={p: files.run for p, files in ended.items()},
        history=progress.history(),
        graph=_graph(run, peers.values()),
        partition=run["partition"],
        hosts=sorted({tuple(files.run["host"]) for files in peers.values()}),
        versions=run["versions"],
        resumed_from=run.get("resumed_from"),  # journals of earlier versions lack it
        views=[{key: view[key] for key in _VIEW} for view in views],
    )
    results["seconds"] = max(f.lines[-1]["time"] - f.run["time"] for f in ended.values())
    return results


def _graph(run: Mapping[str, Any], peers: Iterable[PeerFiles]) -> dict[str, Any]:
    n, graph_record = run["n"], run["graph"]
    rows = {row["peer"]: row for files in peers for row in files.run["rows"]}
    weights = [
        [float(rows[i]["weights"].get(str(j), 0.0)) for j in range(n)] if i in rows else None
        for i in range(n)
    ]
    graph = {
        "name": graph_record["name"],
        "weights": weights,
        "peer_names": [rows[i]["name"] if i in rows else None for i in range(n)],
        "addresses": [rows[i]["address"] if i in rows else None for i in range(n)],
    }
    if len(rows) == n:
        try:
            digest = Graph.from_dict(graph).digest
        except TopologyError as error:
            raise DataError(f"the peers' rows of weights make no graph: {error}") from error
        if digest != graph_record["digest"]:
            raise DataError(
                f"the peers' rows of weights are not those of the run's graph {graph_record['name']!r} "
                f"(digest {digest}, the run's is {graph_record['digest']}): a journal was changed"
            )
    return {**graph, "digest": graph_record["digest"], "added_edges": graph_record["added_edges"]}
