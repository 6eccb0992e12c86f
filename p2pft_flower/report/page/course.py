"""The section on what happened on the way: views on the time axis, faults, ends."""

from __future__ import annotations

from collections.abc import Callable

from p2pft_flower.errors import printable
from p2pft_flower.report.grids import Grid
from p2pft_flower.report.page import happenings, verdicts
from p2pft_flower.report.page.charts import Chart, Lane, lanes
from p2pft_flower.report.page.document import Section
from p2pft_flower.report.page.material import Material
from p2pft_flower.report.page.runs import Run, View
from p2pft_flower.report.stand_stills import moment

__all__ = ["course"]


def course(material: Material) -> Section:
    """Return the section on what happened to each run."""
    said = [happenings.happened(run) for run in material.runs]
    charts = [chart for run in material.runs if run.results.views and (chart := _lanes(material, run))]
    rows = [
        [
            f"{run.label}, view {view.number}",
            str(view.iteration),
            f"{at:.1f} s" if (at := run.view_times.get(view.number)) is not None else "–",
            "–" if view.time is None else moment(view.time),
            verdicts.listed([run.name(p) for p in view.lost]) or "–",
            verdicts.listed([_joined(run, view, p) for p in view.joined]) or "–",
            "; ".join(f"{run.name(int(p))}: {printable(why)}" for p, why in view.why.items()) or "–",
            f"{view.seconds:.1f} s",
            str(len(view.peers)),
            str(len(view.edges)),
        ]
        for run in material.runs
        for view in run.results.views or ()
    ]
    header = [
        "view",
        "after iteration",
        "at",
        "local time",
        "lost",
        "came back",
        "why",
        "until they agreed",
        "peers",
        "edges",
    ]
    tables = [Grid("Changes of view", header, rows)] if rows else []
    notes = [event for run in material.runs for event in happenings.events(run)]
    return Section("course", "What happened on the way?", said, charts, (), tables, notes)


def _joined(run: Run, view: View, peer: int) -> str:
    missed = view.missed.get(str(peer))
    return run.name(peer) if missed is None else f"{run.name(peer)} ({missed} iterations behind)"


def _lanes(material: Material, run: Run) -> Chart | None:
    """Return the chart of each peer's time in a run whose views changed, or None."""
    views = run.results.views or ()
    timed = all(view.number in run.view_times for view in views)
    end = max((max(times.values()) for times in run.times.values() if times), default=0.0) if timed else None
    if end is None:
        end = float(max([run.results.iterations, *(m.iteration for m in run.results.history)]))
    at: Callable[[int], float] = (
        (lambda k: run.view_times[views[k].number]) if timed else (lambda k: float(views[k].iteration))
    )
    marks = [(at(k), f"view {view.number}") for k, view in enumerate(views)]
    end = max([end, *(place for place, _ in marks)])
    peers = sorted({p for view in views for p in (*view.peers, *view.lost)} | set(run.names))
    joined_first = {p for p in peers if _first_seen(run, p) == "joined"}
    shown = []
    for peer in peers:
        stretches, begin = list[tuple[float, float]](), None if peer in joined_first else 0.0
        for k, view in enumerate(views):
            if peer in view.lost and begin is not None:
                stretches.append((begin, at(k)))
                begin = None
            elif peer in view.peers and begin is None:
                begin = at(k)
        if begin is not None:
            stretches.append((begin, end))
        shown.append(Lane(run.name(peer), stretches))
    label = "seconds of training" if timed else "iteration"
    words = f"Bars are the {label} in which a peer took part; a gap is a time without it. " + " ".join(
        happenings.events(run)
    )
    return lanes(
        f"course-{material.colour(run)}", f"{run.label}: the peers' time", words, shown, marks, label
    )


def _first_seen(run: Run, peer: int) -> str:
    """Return whether a peer was first ``"lost"``, or ``"joined"``: then it was missing at the start."""
    for view in run.results.views or ():
        if peer in view.lost:
            return "lost"
        if peer in view.joined:
            return "joined"
    return ""
