"""Folders of runs, read and checked at once: ``results.json`` and the peers' journals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from p2pft_flower.errors import DataError, printable
from p2pft_flower.facts import PeerFacts
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.invariants import Surplus, TrackerSums
from p2pft_flower.keeping.journal import elapsed, read_whole_lines
from p2pft_flower.keeping.lines import AnyLine, Evaluation, Outcome, Round, Trace, ViewChange
from p2pft_flower.keeping.lines import Run as RunLine
from p2pft_flower.report.page.runs import ALONE, PEERS, POOLED, SERVER, Moment, Results, Run, Scores, View
from p2pft_flower.report.results import FILE, log_name, require_schema
from p2pft_flower.report.stand_stills import of_journals
from p2pft_flower.typed import converted, read_object

__all__ = ["find_runs"]


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
    require_schema(results.schema, path)
    _require_whole(results, path)
    return _with_journals(Run(folder, results))


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
    for peer in (*results.peers, *results.unfinished):
        if peer.peer >= total:
            raise DataError(f"{path}: peers: there is no peer {peer.peer} in a run of {total}")


def _with_journals(run: Run) -> Run:
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
    results = msgspec.structs.replace(
        run.results,
        history=_filled(run.results.history, lines),
        views=run.results.views and tuple(_timed(view, lines) for view in run.results.views),
    )
    run = replace(run, results=results, gone=_gone(run, lines))
    return replace(run, notes=notes, surplus=surplus, **_from_journals(run, lines))


def _timed(view: View, lines: Mapping[int, Sequence[AnyLine]]) -> View:
    """Return a change of view with its time, of an earlier version's results from the journals."""
    times = (
        line.time
        for told in lines.values()
        for line in told
        if isinstance(line, ViewChange) and line.number == view.number
    )
    return view if view.time is not None else msgspec.structs.replace(view, time=min(times, default=None))


def _gone(run: Run, lines: Mapping[int, Sequence[AnyLine]]) -> dict[int, PeerFacts]:
    """Return the facts of the peers that have a journal, but no result."""
    ended = {peer.peer for peer in run.results.peers}
    return {
        p: PeerFacts(printable(a.name), tuple(map(printable, a.classes)), a.known)
        for p, told in lines.items()
        if p not in ended
        for a in [next((line.about for line in told if isinstance(line, RunLine)), None)]
        if a is not None and run.scored
    }


def _filled(history: Sequence[Moment], lines: Mapping[int, Sequence[AnyLine]]) -> tuple[Moment, ...]:
    """Return the history with the scores of peers whose reports did not come through, from their journals."""
    told = {
        (p, line.iteration): line
        for p, of_peer in lines.items()
        for line in of_peer
        if isinstance(line, (Evaluation, Round))
    }

    def whole(moment: Moment, key: str) -> Scores:
        scores: Scores = getattr(moment, key)
        missing = [(p, moment.iteration) for p, score in enumerate(scores) if score is None]
        found = {place[0]: getattr(told[place], key) for place in missing if place in told}
        return tuple(found.get(p, score) for p, score in enumerate(scores))

    keys = ("accuracy", "loss", "accuracy_unseen")
    return tuple(
        msgspec.structs.replace(moment, **{key: whole(moment, key) for key in keys}) for moment in history
    )


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
    validation: dict[int, dict[int, float]] = {}
    for peer, told in lines.items():
        begin = next((k for k, line in enumerate(told) if isinstance(line, (Evaluation, Round))), None)
        if begin is None:
            continue
        passed = elapsed(told)
        for line, since in zip(told, (at - passed[begin] for at in passed), strict=True):
            if isinstance(line, (Evaluation, Round)):
                times.setdefault(peer, {}).setdefault(line.iteration, since)
                sketches.setdefault(line.iteration, {}).setdefault(peer, sketch.decode(line.sketch))
            if isinstance(line, Evaluation) and line.validation is not None:
                validation.setdefault(peer, {})[line.iteration] = line.validation
            if isinstance(line, (Evaluation, Outcome)):
                at = line.iteration if isinstance(line, Evaluation) else line.iterations
                sent.setdefault(peer, {})[at] = line.bytes_sent
            if isinstance(line, ViewChange):
                view_times.setdefault(line.number, max(0.0, since))
    stalls, stills = of_journals(lines.values())
    return {
        "times": times,
        "sent": sent,
        "view_times": view_times,
        "validation": validation,
        "stalls": stalls,
        "stand_stills": stills,
        **_distances(sketches, {peer.peer for peer in run.results.peers}),
    }


def _distances(sketches: Mapping[int, Mapping[int, Any]], ended: set[int]) -> dict[str, Any]:
    """Return ``errors`` and ``apart`` of :class:`Run`, for the peers that came to the end."""
    whole = [k for k in sorted(sketches) if ended <= sketches[k].keys()]
    errors, apart = dict[int, float](), list[tuple[int, float]]()
    if whole and len(ended) > 1:
        stacked = {k: np.stack([sketches[k][p] for p in sorted(ended)]).astype(np.float64) for k in whole}
        start = stacked[whole[0]].mean(axis=0)
        for k in whole:
            come = float(np.linalg.norm(stacked[k].mean(axis=0) - start))
            error = sketch.consensus_error(list(stacked[k]))
            if np.isfinite([come, error]).all():
                errors[k] = error
                apart += [(k, error / come)] if come > 0 and k != whole[0] else []
    return {"errors": errors, "apart": apart}


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
