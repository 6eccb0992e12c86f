"""The section on whether the peers agree: equal answers, consensus error, tracker error."""

from __future__ import annotations

from p2pft_flower.report.grids import Grid
from p2pft_flower.report.page import verdicts
from p2pft_flower.report.page.charts import Axis, Band, Chart, curves
from p2pft_flower.report.page.document import Section
from p2pft_flower.report.page.material import Material
from p2pft_flower.report.page.runs import POOLED, Run, samples_of
from p2pft_flower.report.tables import number

__all__ = ["agreement"]


def agreement(material: Material) -> Section:
    """Return the section on whether the peers agree: consensus error, tracker error, equal answers."""
    runs = [run for run in material.scored if run.kind != POOLED]
    found = [(run, material.agreed(run)) for run in runs]
    said = [one.sentence for _, one in found] or ["No run has several peers."]
    bands, apart = [], []
    for run in runs:
        place = material.colour(run)
        steps = [(m.iteration, error) for m in run.results.history if (error := run.error_at(m)) is not None]
        if steps:
            bands.append(
                Band(
                    run.label,
                    [k for k, _ in steps],
                    [float(v or 0) for _, v in steps],
                    colour=place,
                    dash=place,
                )
            )
        if run.apart:
            apart.append(
                Band(
                    run.label, [k for k, _ in run.apart], [v for _, v in run.apart], colour=place, dash=place
                )
            )
    axes = [Axis("iteration", "consensus error", bands, log=True)] if bands else []
    if apart:
        axes.append(Axis("iteration", "distance as a share of the way come", apart, log=True))
    charts = []
    if axes:
        ends = "; ".join(f"{run.label} {number(run.results.consensus_error, '.2g')}" for run in runs)
        charts.append(
            curves("consensus", "How far the peers' models are from each other", f"At the end: {ends}.", axes)
        )
    charts += [_tracker(material, run) for run in runs if run.surplus]
    words = {"yes": "yes", "no": "no", "one model": "one model", "not known": "not known"}
    rows = [
        [
            run.label,
            words[one.verdict],
            "–" if one.same is None else f"{one.same:.1%}",
            "–" if one.spread is None else f"{100 * one.spread:.2f}",
            number(one.apart, ".2g"),
            number(run.results.consensus_error, ".2g"),
            number(max((s.relative for s in run.surplus), default=None), ".1e"),
        ]
        for run, one in found
    ]
    header = ["run", "agree", "answers as most", "accuracies differ by (points)", "distance / way come"]
    header += ["consensus error", "tracker error"]
    notes = [
        f"Peers agree if each gives the answer that most give to at least {verdicts.SAME_ANSWERS:.0%} of the "
        f"test {samples_of(runs)} and their accuracies differ by {100 * verdicts.SPREAD:.0f} points at most; "
        "if their answers are not known, if their accuracies do and their models are no further from each "
        f"other than {verdicts.APART} of the way that they have come. Consensus error: "
        "sqrt((1/n) Σ ‖θ_i − θ̄‖²), estimated from sketches.",
        "Tracker error: the largest ‖Σ τ − Σ g‖ of an iteration, relative to the largest ‖τ_i − g_i‖; "
        "rounding alone is below 1e-5."
        + (
            ""
            if any(run.surplus for run in runs)
            else " It is not known here: set P2PFT_TRACE_TRACKER=1 for a run."
        ),
    ]
    tables = [Grid("Agreement at the end", header, rows)] if rows else []
    return Section("agreement", "Do the peers agree?", said, charts, (), tables, notes)


def _tracker(material: Material, run: Run) -> Chart:
    place = material.colour(run)
    worst = max(s.relative for s in run.surplus)
    line = Band(
        run.label, [s.iteration for s in run.surplus], [s.relative for s in run.surplus], colour=place
    )
    return curves(
        f"tracker-{place}",
        f"{run.label}: tracker error",
        f"The trackers add up to the gradients: the largest relative surplus is {worst:.1e}.",
        [Axis("iteration", "‖Σ τ − Σ g‖, relative", [line], log=True)],
    )
