"""The page of a run that has ended: from its results.json, or from the journals of the peers at a site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from p2pft_flower.errors import DataError, called
from p2pft_flower.keeping.journal import Life, by_run, read_journal
from p2pft_flower.keeping.lines import Failed, Outcome, Run, Stall, ViewChange
from p2pft_flower.keeping.progress import Progress
from p2pft_flower.report.charts import HistoryRow, charts_of_history
from p2pft_flower.report.collected import PeerFiles, find_peers
from p2pft_flower.report.live_page import Page, PageEdge, stall_events, view_events
from p2pft_flower.report.results import FILE, log_name, merged_views, read_results
from p2pft_flower.report.stand_stills import StandStill, of_journals
from p2pft_flower.report.status import PeerStatus
from p2pft_flower.typed import MAX_PEERS, Count, PeerNumber, converted

__all__ = ["Ending", "ending_of", "page_of_folder"]

_POOLED = "all"
"""The name of the one peer of a run that holds the data of all."""


class _PeerRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows of an entry of results.json's ``peers``."""

    peer: PeerNumber
    name: str = ""
    iterations: Count | None = None
    loss: float | None = None
    accuracy: float | None = None
    accuracy_unseen: float | None = None
    bytes_sent: Count = 0


class _View(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of results.json's ``views``."""

    number: Count
    iteration: Count
    edges: list[tuple[PeerNumber, PeerNumber]]
    lost: list[PeerNumber]
    joined: list[PeerNumber]
    why: dict[PeerNumber, str]
    missed: dict[PeerNumber, Count] = {}
    time: float | None = None


class _Graph(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows of results.json's ``graph``."""

    weights: Annotated[list[list[float] | None], msgspec.Meta(max_length=MAX_PEERS)] = []
    peer_names: Annotated[list[str | None], msgspec.Meta(max_length=MAX_PEERS)] = []


class _Results(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows of results.json; of a run that failed, most of it is missing."""

    status: str
    run: str = ""
    algorithm: str | None = None
    error: str | None = None
    iterations: Count = 0
    peers: list[_PeerRow] = []
    unfinished: list[_PeerRow] = []
    history: list[HistoryRow] = []
    views: list[_View] | None = None
    graph: _Graph = _Graph()
    consensus_error: float | None = None


class Ending(NamedTuple):
    """How a run ended: a status as in results.json, and a sentence."""

    outcome: str
    told: str


def ending_of(folder: Path, own: Sequence[int] = ()) -> Ending | None:
    """Return how the run in ``folder`` ended, as far as its files there say; None: they do not say it (yet).

    Parameters
    ----------
    folder : Path
        The run's folder on this machine.
    own : sequence of int
        The peers that trained on this machine, whose journals are asked if there is no results.json; empty:
        all whose journals are there.
    """
    try:
        return _ending_of_results(_read(folder))
    except DataError:
        pass
    paths = [folder / log_name(p) for p in own] or sorted(folder.glob("peers/peer-*.jsonl"))
    try:
        lives = [life for path in paths for life in by_run(read_journal(path))[-1:]]
    except DataError:
        return None
    return _ending_of_lives(lives)


def page_of_folder(folder: Path) -> Page:
    """Return the page of the run that ended in ``folder``.

    Raises
    ------
    DataError
        When there is neither results.json nor a journal that can be read; names the file.
    """
    try:
        results = _read(folder)
    except DataError as no_results:
        try:
            return _page_of_journals(folder, find_peers([folder]))
        except DataError as no_journals:
            raise DataError(f"{no_results}; and {no_journals}") from None
    if results.history:
        return _page_of_results(folder, results)
    outcome, told = _ending_of_results(results)
    try:
        page = _page_of_journals(folder, find_peers([folder]))
    except DataError:  # the peers trained elsewhere, or never began
        page = _page(folder, results.run, Ending(outcome, told), views=results.views or [])
    return msgspec.structs.replace(page, outcome=outcome, told=told)


def _read(folder: Path) -> _Results:
    return converted(read_results(folder), _Results, folder / FILE)


def _ending_of_results(results: _Results) -> Ending:
    words = {"completed": "The run is complete", "failed": "The run failed", "stopped": "The run was stopped"}
    said = words.get(results.status, f"The run has ended: {results.status}")
    return Ending(results.status, f"{said}: {results.error}" if results.error else f"{said}.")


def _ending_of_lives(lives: Sequence[Life]) -> Ending | None:
    """Return how the last lives of the peers here ended; None: one of them has not, or was killed."""
    for run, lines in lives:
        if lines and isinstance(last := lines[-1], Failed):
            stopped = last.cause == "STOPPED"
            said = f"{called(run.peer, _names(run))} {'was stopped' if stopped else 'failed'} in iteration"
            own = f"peer {run.peer} stopped in iteration {last.iteration}: "  # as it tells others
            text = f"{said} {last.iteration}: {last.error.removeprefix(own)}"
            return Ending("stopped" if stopped else "failed", text)
    if not lives or not all(lines and isinstance(lines[-1], Outcome) for _, lines in lives):
        return None
    first = lives[0].run
    one = called(first.peer, _names(first)).removeprefix("p")
    who = f"P{one} has" if len(lives) == 1 else f"The {len(lives)} peers on this machine have"
    return Ending("completed", f"{who} come to the end, after {first.iterations} iterations.")


def _names(run: Run) -> dict[int, str]:
    name = "" if run.about is None else run.about.name
    return {} if name in ("", str(run.peer)) else {run.peer: name}


def _page_of_results(folder: Path, results: _Results) -> Page:
    views, graph = results.views or [], results.graph
    files = _files_here(folder, results.run)
    lines = [line for f in files for line in f.lines]
    ended = {row.peer: row for row in results.peers}
    peers = [_of_row(row, results) for row in results.peers]
    pooled = [row.name for row in results.peers] == [_POOLED]
    scored = {row.peer: row for row in results.unfinished}
    for p, name in () if pooled else enumerate(graph.peer_names):
        if p in ended:
            continue
        gone = next((v for v in reversed(views) if p in v.lost), None)
        state, done, why = "unknown", 0, "the results do not have it"
        if gone is not None:
            state, done, why = "lost", gone.iteration, gone.why.get(p, "")
        row = scored.get(p)
        if gone is not None and any(p in v.joined for v in views if v.number > gone.number):
            state, done = "unknown", max(gone.iteration, (row and row.iterations) or 0)
            why = "it came back, and its end is not in the results"
        peers.append(_peer(p, state, "" if name in (None, str(p)) else name, done, row, why=why))
    edges = [(j, i) for i, row in enumerate(graph.weights) for j, w in enumerate(row or ()) if w and i != j]
    return _page(
        folder,
        results.run,
        _ending_of_results(results),
        iterations=results.iterations,
        peers=peers,
        edges=[] if pooled or results.algorithm == "local" else views[-1].edges if views else edges,
        views=views,
        times={
            **{line.number: line.time for line in lines if isinstance(line, ViewChange)},
            **{v.number: v.time for v in views if v.time is not None},
        },
        waits=_waits(files),
        history=results.history,
        error=results.consensus_error,
    )


def _files_here(folder: Path, run: str) -> list[PeerFiles]:
    """Return the journals of a run that lie in its folder; none if they lie elsewhere."""
    try:
        return list(find_peers([folder], run).values())
    except DataError:
        return []


def _waits(files: Iterable[PeerFiles]) -> tuple[list[Stall], list[StandStill]]:
    return of_journals([f.run, *f.earlier, *f.lines] for f in files)


def _page_of_journals(folder: Path, files: Mapping[int, PeerFiles]) -> Page:
    first = next(iter(files.values()))
    total = 1 if first.facts.pooled else first.run.n
    progress = Progress(total, first.run.iterations, lambda _: None)
    progress.go_on_with(files)
    for f in files.values():
        for line in f.evaluations:
            progress.fill(line.report)
    changes = [line for f in files.values() for line in f.lines if isinstance(line, ViewChange)]
    ending = _ending_of_lives([Life(f.run, f.lines) for f in files.values()])
    try:
        merged = merged_views(changes, first.facts.live)
    except DataError as error:  # what the peers tell of themselves is shown all the same
        merged, ending = [], Ending("failed", str(error))
    views = converted([*map(dict, merged)], list[_View], folder)
    rows = {row.peer: row.weights for f in files.values() for row in f.about.rows}
    edges = [(j, i) for i, row in sorted(rows.items()) for j in row if i != j]
    history = converted(progress.history(), list[HistoryRow], folder)
    return _page(
        folder,
        first.run.run,
        ending
        or Ending("", "The journals here break off: their peers were killed, or train at this moment."),
        iterations=first.run.iterations,
        peers=[
            _of_journal(files[p]) if p in files else _peer(p, "unknown", why="its journal is not here")
            for p in range(total)
        ],
        edges=views[-1].edges if views else edges,
        views=views,
        times={change.number: change.time for change in changes},
        waits=_waits(files.values()),
        history=history,
        error=history[-1].consensus_error if history and len(files) == total else None,
    )


def _of_row(row: _PeerRow, results: _Results) -> PeerStatus:
    name = "" if row.name == str(row.peer) else row.name
    done = results.iterations if row.iterations is None else row.iterations
    if results.status in ("stopped", "failed") and done < results.iterations:
        return _peer(row.peer, "stopped", name, done, row, why="the run ended before its last iteration")
    return _peer(row.peer, "finished", name, results.iterations, row)


def _of_journal(files: PeerFiles) -> PeerStatus:
    last, evaluated = files.last, files.evaluations[-1:]
    name = _names(files.run).get(files.peer, "")
    row = converted(msgspec.to_builtins(evaluated[0]), _PeerRow, files.log) if evaluated else None
    done = evaluated[0].iteration if evaluated else 0
    if isinstance(last, Outcome):
        return _peer(files.peer, "finished", name, last.iterations, row)
    if not isinstance(last, Failed):
        return _peer(files.peer, "ended", name, done, row, why="its journal breaks off")
    state = "stopped" if last.cause == "STOPPED" else "ended"
    return _peer(files.peer, state, name, done, row, why=last.error)


def _peer(
    peer: int, state: str, name: str = "", iteration: int = 0, row: _PeerRow | None = None, *, why: str = ""
) -> PeerStatus:
    return PeerStatus(
        peer=peer,
        name=name,
        state=state,
        since=None,
        why=why,
        iteration=iteration,
        rate=0.0,
        awaited=None,
        contact=None,
        evaluated=None if row is None else iteration if row.iterations is None else row.iterations,
        loss=None if row is None else row.loss,
        accuracy=None if row is None else row.accuracy,
        accuracy_unseen=None if row is None else row.accuracy_unseen,
        bytes_sent=0 if row is None else row.bytes_sent,
    )


def _page(
    folder: Path,
    run: str,
    ending: Ending,
    *,
    views: Sequence[_View],
    iterations: int = 0,
    peers: Sequence[PeerStatus] = (),
    edges: Sequence[tuple[int, int]] = (),
    times: Mapping[int, float] | None = None,
    waits: tuple[Sequence[Stall], Sequence[StandStill]] = ((), ()),
    history: Sequence[HistoryRow] = (),
    error: float | None = None,
) -> Page:
    names = {p.peer: p.name for p in peers if p.name}
    at = times or {}
    events = [event for v in views for event in view_events(at.get(v.number, 0.0), v, v.why, names)]
    if waits[0]:  # of journals, which have all times
        events = sorted([*events, *stall_events(*waits, names)], key=lambda event: event.time)
    done = max((p.iteration for p in peers if p.state != "lost"), default=0)
    return Page(
        run=run,
        phase="ended",
        told=ending.told,
        outcome=ending.outcome,
        source="the files of the run",
        at_risk=False,
        risk="",
        iteration=done,
        iterations=max(iterations, done),
        view=views[-1].number if views else 0,
        left=None,
        peers=tuple(sorted(peers, key=lambda p: p.peer)),
        edges=tuple(
            PageEdge(sender=s, receiver=r, payloads=0, bytes=0, seconds=None) for s, r in sorted(edges)
        ),
        events=tuple(reversed(events)),
        consensus_error=error,
        bytes_sent=max([sum(p.bytes_sent for p in peers), *(row.bytes_sent for row in history)]),
        time=0.0,
        news=0.0,
        folder=str(folder),
        charts=charts_of_history(history),
    )
