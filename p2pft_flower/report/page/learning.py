"""The section on whether every peer learned the classes it never saw, and all curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p2pft_flower.report.grids import Grid
from p2pft_flower.report.page import verdicts
from p2pft_flower.report.page.charts import Axis, Band, Chart, curves
from p2pft_flower.report.page.document import Section
from p2pft_flower.report.page.material import EACH_PEER, MOST_ROWS, Material, band_of, histories
from p2pft_flower.report.page.runs import POOLED, Run, mean, samples_of
from p2pft_flower.report.tables import number

__all__ = ["learning"]

_PANELS = (
    ("accuracy", "accuracy, all classes", True),
    ("accuracy_unseen", "accuracy, classes never seen", True),
    ("loss", "loss", False),
)


def learning(material: Material) -> Section:
    """Return the section on whether the peers learned the classes they never saw, with all curves."""
    found = {run.label: material.learned(run) for run in material.scored}
    said = [found[run.label].sentence for run in material.scored] or ["No run has numbers."]
    axes = []
    for key, label, share in _PANELS:
        bands = [band for run in material.scored if (band := band_of(run, key, material.colour(run)))]
        if bands:
            axes.append(Axis("iteration", label, bands, share=share))
    charts = []
    if axes:
        words = (
            "Lines are means over the peers, bands reach from the worst to the best peer. At the end: "
            + "; ".join(
                f"{run.label} {number(run.accuracy)}, on unseen classes {number(_unseen(run))}"
                for run in material.scored
            )
        )
        charts.append(curves("methods", "Accuracy and loss over the iterations, by run", words, axes))
    charts += [chart for run in material.scored if (chart := _curves_by_peer(material, run)) is not None]
    what = samples_of(material.runs)
    notes = [
        f"A peer counts as having learned its unseen classes if its accuracy on them is at least "
        f"{verdicts.LEARNED:.0%} of the accuracy of training with all {what} in one place; without such a "
        f"run, of the best mean accuracy on all classes here, or of {verdicts.HALF} if that is lower."
    ]
    if any(run.several_labels for run in material.scored):
        notes.append(
            f"Where {what} have several labels, balanced accuracy decides, on the labels of which a peer "
            f"holds no {what.removesuffix('s')}: the mean of recall and specificity, 0.5 by guessing. "
            "Accuracy is high there if labels are rare, whatever was learned."
        )
    if any(len(run.results.peers) > EACH_PEER for run in material.scored):
        notes.append(
            f"With more than {EACH_PEER} peers, charts have the mean and a band from the worst to the best."
        )
    return Section(
        "learning",
        "Did every peer learn the classes it never saw?",
        said,
        charts,
        (),
        _score_tables(material),
        notes,
    )


def _unseen(run: Run) -> float | None:
    return mean(run.finals("accuracy_unseen"))


def _curves_by_peer(material: Material, run: Run) -> Chart | None:
    count = len(run.results.peers)
    if not 1 < count <= EACH_PEER:
        return None
    axes = []
    marks = [float(view.iteration) for view in run.results.views or ()]
    for key, label, share in _PANELS:
        iterations, values = histories(run, key)
        if iterations:
            lines = [
                Band(run.name(p), iterations, values[:, p].tolist(), colour=p, dash=p)
                for p in range(values.shape[1])
                if not np.isnan(values[:, p]).all()
            ]
            axes.append(Axis("iteration", label, lines, share=share, marks=marks))
    if not axes:
        return None
    if run.validation:
        axes.append(_validation(run, marks))
    ends = "; ".join(f"{run.name(p.peer)} {number(p.accuracy)}" for p in run.results.peers)
    words = f"One line for each peer. Accuracy at the end: {ends}." + (
        " Dashed: a change of view." if marks else ""
    )
    return curves(f"peers-{material.colour(run)}", f"{run.label}: each peer over the iterations", words, axes)


def _validation(run: Run, marks: Sequence[float]) -> Axis:
    """Return the peers' scores on the images that they hold out to choose their best θ by."""
    by = str(run.results.config.get("keep", "")).partition(":")[2]
    lines = [
        Band(run.name(p), sorted(scores), [scores[k] for k in sorted(scores)], colour=p, dash=p)
        for p, scores in sorted(run.validation.items())
    ]
    label = f"{by.replace('-', ' ')}, validation {run.samples}"
    return Axis("iteration", label, lines, share=by != "loss", marks=marks)


def _score_tables(material: Material) -> list[Grid]:
    runs = [run for run in material.scored if run.kind != POOLED]
    if not runs:
        return []
    tables = []
    names = {p.peer: p.name for run in reversed(runs) for p in run.results.peers}
    for key, title in (
        ("accuracy_unseen", "Accuracy on the classes never seen"),
        ("accuracy", "Accuracy on all classes"),
    ):
        each = {run.label: {p.peer: getattr(p, key) for p in run.results.peers} for run in runs}
        if all(v is None for scores in each.values() for v in scores.values()):
            continue
        rows = [
            [names[p], *(number(each[run.label].get(p)) for run in runs)] for p in sorted(names)[:MOST_ROWS]
        ]
        for label, fold in (("least", min), ("mean", mean), ("largest", max)):
            there = [[v for v in each[run.label].values() if v is not None] for run in runs]
            rows.append([label, *(number(fold(v)) if v else "–" for v in there)])
        rest = f" (the first {MOST_ROWS} peers; --csv has all)" if len(names) > MOST_ROWS else ""
        tables.append(
            Grid(f"{title}, by peer, at the end{rest}", ["peer", *(run.label for run in runs)], rows)
        )
    return tables
