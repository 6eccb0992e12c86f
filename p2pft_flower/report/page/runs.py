"""Runs as the report sees them: ``results.json`` and the peers' journals, read and checked at once.

:func:`find_runs` reads folders; everything else in this room is a function of the :class:`Run` objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from natsort import natsorted

from p2pft_flower.algorithms import ALGORITHMS
from p2pft_flower.errors import DataError, printable
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.invariants import Surplus, TrackerSums
from p2pft_flower.keeping.journal import read_whole_lines
from p2pft_flower.keeping.lines import AnyLine, Evaluation, Outcome, Round, Trace, ViewChange
from p2pft_flower.keeping.lines import Run as RunLine
from p2pft_flower.plugins import is_reference
from p2pft_flower.report.results import FILE, SCHEMA, log_name
from p2pft_flower.typed import Count, PeerNumber, Settings, converted, read_object

__all__ = ["ALONE", "PEERS", "POOLED", "SERVER", "Peer", "Results", "Run", "View", "find_runs", "mean"]

Kind = Literal["peers", "server", "pooled", "alone"]
PEERS: Kind = "peers"
"""Peers exchange with each other."""
SERVER: Kind = "server"
"""A strategy of Flower: a server averages the clients' models."""
POOLED: Kind = "pooled"
"""``centralized``: one peer holds the images of all."""
ALONE: Kind = "alone"
"""``local``: peers exchange nothing."""

Scores = tuple[float | None, ...]


class Peer(msgspec.Struct, frozen=True):
    """An entry ``peers[i]`` of results.json; see docs/results-schema.md."""

    peer: PeerNumber
    name: str
    classes: tuple[str, ...]
    images: Count
    accuracy: float | None
    accuracy_unseen: float | None
    loss: float | None
    bytes_sent: Count
    seconds: dict[str, float]
    epsilon: float | None = None
    delta: float | None = None
    tail: str = ""


class Moment(msgspec.Struct, frozen=True):
    """An entry ``history[k]`` of results.json."""

    iteration: Count
    accuracy: Scores
    loss: Scores = ()
    accuracy_unseen: Scores = ()
    bytes_sent: Count | None = None
    consensus_error: float | None = None


class View(msgspec.Struct, frozen=True):
    """An entry ``views[k]`` of results.json."""

    number: Count
    iteration: Count
    peers: tuple[PeerNumber, ...]
    edges: tuple[tuple[PeerNumber, PeerNumber], ...]
    lost: tuple[PeerNumber, ...]
    joined: tuple[PeerNumber, ...]
    why: dict[str, str]
    seconds: float


class GraphFacts(msgspec.Struct, frozen=True):
    """The entry ``graph`` of results.json; a row is None if its peer's journal was missing."""

    name: str
    weights: tuple[tuple[float, ...] | None, ...] = ()
    peer_names: tuple[str | None, ...] = ()
    turns: tuple[tuple[tuple[float, ...] | None, ...], ...] = ()
    added_edges: tuple[tuple[PeerNumber, PeerNumber], ...] = ()


class Results(msgspec.Struct, frozen=True):
    """The content of results.json; of a run without numbers the first fields alone."""

    schema: str
    status: str
    algorithm: str
    run: str = ""
    seed: int | None = None
    error: str | None = None
    config: Settings = {}
    iterations: Count = 0
    trainable_parameters: Count = 0
    model_parameters: Count = 0
    peers: tuple[Peer, ...] = ()
    consensus_error: float | None = None
    history: tuple[Moment, ...] = ()
    views: tuple[View, ...] | None = ()
    graph: GraphFacts | None = None
    partition: str = ""
    versions: dict[str, str] = {}
    seconds: float | None = None


@dataclass(frozen=True)
class Run:
    """One run: its results, and what its journals add to them.

    Attributes
    ----------
    folder : Path
        The run's folder.
    results : Results
        The content of its results.json.
    label : str
        The run's name in the report, unlike that of every other run there.
    times : dict of int to dict
        By the peer's number and by iteration: seconds from the peer's first evaluation to this one.
    sent : dict of int to dict
        By the peer's number and by iteration: payload bytes that the peer had sent.
    apart : list of (int, float)
        Iterations, and the consensus error there as a share of the distance that the peers' mean has come
        since the first evaluation; both from sketches.
    surplus : list of Surplus
        The surplus Σ τ − Σ g, if the peers traced their trackers.
    view_times : dict of int to float
        By a view's number: seconds from the first evaluation of a peer to this change of view.
    notes : list of str
        The reasons why something of the run could not be read.
    """

    folder: Path
    results: Results
    label: str = ""
    times: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    sent: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    apart: Sequence[tuple[int, float]] = ()
    surplus: Sequence[Surplus] = ()
    view_times: Mapping[int, float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def algorithm(self) -> str:
        """The run-config's ``algorithm``."""
        return self.results.algorithm

    @property
    def kind(self) -> Kind:
        """Whether peers exchange, a server averages, the images are pooled, or each peer is alone."""
        if self.algorithm == "centralized":
            return POOLED
        if self.algorithm == "local":
            return ALONE
        return PEERS if self.algorithm in ALGORITHMS or is_reference(self.algorithm) else SERVER

    @property
    def scored(self) -> bool:
        """Whether the run has numbers: at least one peer came to its end."""
        return bool(self.results.peers)

    @property
    def private(self) -> bool:
        """Whether the gradients were differentially private."""
        return any(peer.delta is not None for peer in self.results.peers)

    def finals(self, key: str) -> list[float]:
        """Return the peers' final numbers ``key``, as ``"accuracy"``; peers without one are left out."""
        return [v for peer in self.results.peers if (v := getattr(peer, key)) is not None]

    @property
    def accuracy(self) -> float | None:
        """The mean of the peers' accuracies at the end; None if there is none."""
        return mean(self.finals("accuracy"))

    @property
    def bytes_sent(self) -> int:
        """Payload bytes that all peers have sent."""
        return sum(peer.bytes_sent for peer in self.results.peers)

    @cached_property
    def seconds_at(self) -> dict[int, float]:
        """Seconds from the first evaluation to that of each iteration; of the slowest peer, by iteration.

        An iteration counts if all peers that came to the run's end have its time.
        """
        ended = [self.times.get(peer.peer, {}) for peer in self.results.peers]
        if not ended or not all(ended):
            return {}
        shared = set.intersection(*(set(times) for times in ended))
        return {k: max(times[k] for times in ended) for k in sorted(shared)}

    @property
    def training_seconds(self) -> float | None:
        """Seconds from the first evaluation to the last one, evaluations included; None if not known."""
        return max(self.seconds_at.values(), default=None)

    @property
    def names(self) -> dict[int, str]:
        """The peers' names by their numbers, also of peers that did not come to the end."""
        graph = self.results.graph
        told = dict(enumerate(graph.peer_names)) if graph is not None and self.kind != POOLED else {}
        return {p: name for p, name in told.items() if name} | {p.peer: p.name for p in self.results.peers}

    def name(self, peer: int) -> str:
        """Return a peer's name: its number, with its name in the graph if that is another text."""
        name = self.names.get(peer, str(peer))
        return f"peer {peer}" if name == str(peer) else f"peer {peer} ({name})"

    @property
    def classes(self) -> list[str]:
        """All classes of which a peer holds images, the numbers in them in their order."""
        return list(natsorted({name for peer in self.results.peers for name in peer.classes}))


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the numbers among ``values``; None if there are none."""
    numbers = [v for v in values if v is not None]
    return float(np.mean(numbers)) if numbers else None


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Read the runs in some folders, each with its journals.

    Parameters
    ----------
    paths : sequence of Path
        Folders of runs, or folders that hold folders of runs, as ``p2pft compare`` makes.

    Returns
    -------
    list of Run
        The runs, those whose peers exchange with each other first, P2P-FT before the others, then those of
        servers, of pooled images, and of lone peers; each kind in the order of ``paths`` and names.

    Raises
    ------
    DataError
        When a folder holds no run, or a ``results.json`` cannot be read, is damaged, or is of another schema;
        names the file and the field.
    """
    folders: list[Path] = []
    for path in paths:
        below = [path] if (path / FILE).exists() else [f.parent for f in sorted(path.glob(f"*/{FILE}"))]
        if not below:
            raise DataError(_nothing_in(path))
        folders += [f for f in below if f.resolve() not in {other.resolve() for other in folders}]
    order = [PEERS, SERVER, POOLED, ALONE]
    runs = [_read(folder) for folder in folders]
    runs.sort(key=lambda run: (order.index(run.kind), run.algorithm != "p2pft"))
    return [replace(run, label=label) for run, label in zip(runs, _labels(runs), strict=True)]


def _nothing_in(path: Path) -> str:
    if not path.is_dir():
        return f"{path}: there is no such folder; give a run's folder, or one that p2pft compare wrote"
    if any(path.glob("peers/peer-*.jsonl")):
        return f"{path}: no {FILE} there, but journals of peers: p2pft collect makes results of them first"
    return f"{path}: no {FILE} there and in no folder in it; give a run's folder, or one of p2pft compare"


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: the method, and what else is needed to tell the runs apart."""
    labels = [run.algorithm.rpartition("/")[2] for run in runs]
    for what in range(3):
        often, more = Counter(labels), [_facts(run)[what] for run in runs]
        for label, times in often.items():
            same = [k for k, name in enumerate(labels) if name == label]
            if (
                times > 1 and len({more[k] for k in same}) > 1
            ):  # words that all of them get tell nothing apart
                for k in same:
                    labels[k] += more[k]
    often = Counter(labels)
    return [f"{x} ({run.folder})" if often[x] > 1 else x for x, run in zip(labels, runs, strict=True)]


def _facts(run: Run) -> tuple[str, str, str]:
    graph = run.results.graph
    return f", seed {run.results.seed}", f", {graph.name}" if graph else "", f" in {run.folder.name}"


def _read(folder: Path) -> Run:
    path = folder / FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    results = converted(_cleaned(read_object(data, path)), Results, path)
    if results.schema != SCHEMA:
        raise DataError(f"{path}: schema {results.schema!r}, this version reads {SCHEMA!r}")
    _require_whole(results, path)
    return with_journals(Run(folder, results))


def _cleaned(value: Any) -> Any:
    """Return JSON in which each text is of one printable line, and None for numbers that are not finite."""
    match value:
        case str():
            return printable(value)
        case float():
            return value if np.isfinite(value) else None
        case dict():
            return {printable(str(k)): _cleaned(v) for k, v in value.items()}
        case list():
            return [_cleaned(v) for v in value]
    return value


def _require_whole(results: Results, path: Path) -> None:
    """Refuse results whose parts do not fit each other: all of them are from one run.

    Raises
    ------
    DataError
        When they do not; names the file and the field.
    """
    if not results.peers:
        return
    graph = results.graph
    if graph is None:
        raise DataError(f"{path}: it has peers, but no graph")
    n = len(graph.weights)
    rows = [*graph.weights, *(row for turn in graph.turns for row in turn)]
    if any(row is not None and len(row) != n for row in rows) or len(graph.peer_names) not in (0, n):
        raise DataError(f"{path}: graph.weights and graph.peer_names are not of {n} peers all")
    total = max(n, 1) if results.algorithm != "centralized" else 1
    for moment in results.history:
        for key in ("accuracy", "loss", "accuracy_unseen"):
            if len(scores := getattr(moment, key)) not in (0, total):
                raise DataError(
                    f"{path}: history: iteration {moment.iteration} has {len(scores)} values of {key}, "
                    f"the run has {total} peers"
                )
    for peer in results.peers:
        if peer.peer >= total:
            raise DataError(f"{path}: peers: there is no peer {peer.peer} in a run of {total}")


def with_journals(run: Run) -> Run:
    """Return ``run`` with what the peers' journals in its folder add to its results."""
    lines, notes = dict[int, list[AnyLine]](), list[str]()
    missing = []
    for peer in sorted(run.names):
        path = run.folder / log_name(peer)
        if not path.exists():
            missing.append(peer)
            continue
        try:
            told, odd = read_whole_lines(path)
        except DataError as error:
            notes.append(str(error))
            continue
        if odd:
            notes.append(f"{path}: {odd} damaged lines were left out")
        lines[peer] = _of_this_run(told, run.results.run)
    if missing and run.scored:
        some = "no peer's journal lies" if not lines else f"the journals of peers {missing} do not lie"
        notes.append(f"{some} in {run.folder / 'peers'}: times are not known for them")
    try:
        surplus = _surplus(lines, run)
    except DataError as error:
        surplus = []
        notes.append(f"the trackers' sums are left out: {error}")
    return replace(run, notes=notes, surplus=surplus, **_from_journals(run, lines))


def _of_this_run(lines: Sequence[AnyLine], run: str) -> list[AnyLine]:
    """Return the lines from the first that belongs to ``run`` on; strategies write no line on the run."""
    starts = [k for k, line in enumerate(lines) if isinstance(line, RunLine)]
    mine = [k for k in starts if getattr(lines[k], "run", None) == run]
    if not starts:
        return list(lines)
    return list(lines[mine[0] :]) if mine else []


def _from_journals(run: Run, lines: Mapping[int, Sequence[AnyLine]]) -> dict[str, Any]:
    times, sent, view_times = dict[int, dict[int, float]](), dict[int, dict[int, int]](), dict[int, float]()
    sketches: dict[int, dict[int, Any]] = {}
    for peer, told in lines.items():
        begin = next((line.time for line in told if isinstance(line, (Evaluation, Round))), None)
        if begin is None:
            continue
        for line in told:
            if isinstance(line, (Evaluation, Round)):
                times.setdefault(peer, {}).setdefault(line.iteration, line.time - begin)
                sketches.setdefault(line.iteration, {}).setdefault(peer, sketch.decode(line.sketch))
            if isinstance(line, (Evaluation, Outcome)):
                at = line.iteration if isinstance(line, Evaluation) else line.iterations
                sent.setdefault(peer, {})[at] = line.bytes_sent
            if isinstance(line, ViewChange):
                view_times.setdefault(line.number, max(0.0, line.time - begin))
    return {
        "times": times,
        "sent": sent,
        "view_times": view_times,
        "apart": _apart(sketches, {peer.peer for peer in run.results.peers}),
    }


def _apart(sketches: Mapping[int, Mapping[int, Any]], ended: set[int]) -> list[tuple[int, float]]:
    """Return, by iteration, the consensus error relative to the distance come by the peers' mean."""
    whole = [k for k in sorted(sketches) if ended <= sketches[k].keys()]
    if not whole or len(ended) < 2:
        return []
    stacked = {k: np.stack([sketches[k][p] for p in sorted(ended)]).astype(np.float64) for k in whole}
    start = stacked[whole[0]].mean(axis=0)
    found = []
    for k in whole[1:]:
        come = float(np.linalg.norm(stacked[k].mean(axis=0) - start))
        error = sketch.consensus_error(list(stacked[k]))
        if come > 0 and np.isfinite([come, error]).all():
            found.append((k, error / come))
    return found


def _surplus(lines: Mapping[int, Sequence[AnyLine]], run: Run) -> list[Surplus]:
    """Return the surplus of each iteration of which all peers of the view left a trace."""
    if not any(isinstance(line, Trace) for told in lines.values() for line in told):
        return []
    views = run.results.views or ()
    # The first view has all peers but those that were missing at the start.
    gone = {p for view in views[:1] for p in view.lost}
    first = {p for view in views[:1] for p in view.peers} - {p for v in views[:1] for p in v.joined} | gone
    sums = TrackerSums(first or lines.keys())
    for peer, told in lines.items():
        for line in told:
            if isinstance(line, ViewChange):
                sums.note_view(line, run.folder / log_name(peer))
    traces = [line for told in lines.values() for line in told if isinstance(line, Trace)]
    found = [one for line in traces if (one := sums.note_trace(line)) is not None]
    return sorted(found, key=lambda one: (one.view, one.iteration))
