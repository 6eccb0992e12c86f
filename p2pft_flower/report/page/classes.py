"""The section on single classes: who names them right, and what they are taken for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from p2pft_flower.report.grids import Grid
from p2pft_flower.report.page.charts import Chart, heat
from p2pft_flower.report.page.document import Section
from p2pft_flower.report.page.material import Material
from p2pft_flower.report.page.runs import Run, samples_of
from p2pft_flower.report.page.verdicts import Answers
from p2pft_flower.report.tables import number
from p2pft_flower.scores import confusion as counted

__all__ = ["by_class", "confusion", "single_classes"]

MISTAKES = 8
"""A run's table of mistakes has so many rows."""

Array = npt.NDArray[np.float64]


def confusion(answers: Sequence[Answers]) -> npt.NDArray[np.int64]:
    """Return how often images of each class (rows) got each answer (columns), all tails together."""
    size = len(answers[0].classes)
    return sum((counted(a.labels, a.predicted, size) for a in answers), np.zeros((size, size), np.int64))


def by_class(one: Answers) -> Array:
    """Return the share of right answers by class, (C,); NaN of a class without a test image.

    Of several labels: the share of the images with the label of which the answer has it.
    """
    if one.several_labels:
        right, there = (one.labels * one.predicted).sum(axis=0), one.labels.sum(axis=0)
        return np.where(there > 0, right / np.maximum(there, 1), np.nan)
    counts = counted(one.labels, one.predicted, len(one.classes))
    right, there = np.diag(counts), counts.sum(axis=1)
    return np.where(there > 0, right / np.maximum(there, 1), np.nan)


def single_classes(material: Material) -> Section:
    """Return the section on classes; runs whose tails were not scored are named with the reason."""
    runs = [run for run in material.scored if material.of(run)]
    notes = [
        f"{run.label} is left out here: {why}."
        for run in material.runs
        if (why := material.unscored.get(run.label))
    ]
    heading = "Which classes, and what are they taken for?"
    if not runs:
        why = notes[0] if notes else "No run has tails."
        return Section("classes", heading, [f"Not known: {why}"], notes=notes[1:])
    charts, tables = list[Chart](), list[Grid]()
    for run in runs:
        charts += _charts(material, run)
    said = [_hardest(run, material.of(run)) for run in runs]
    tables.append(_class_table(material, runs))
    single = [run for run in runs if not material.of(run)[0].several_labels]
    tables += [grid for run in single if (grid := _mistakes(run, material.of(run))).rows]
    what = samples_of(runs)
    notes.append(
        f"The tails were scored on the test {what} of their run, as p2pft evaluate scores them. A dot marks "
        f"a class of which the peer holds {what}."
    )
    if single:
        notes[-1] += (
            f" Confusion: the share of a true class's {what} that got each answer, all peers of a run "
            "together."
        )
    if len(single) < len(runs):
        notes.append(
            f"Where {what} may have several labels, a class is a label, and its accuracy the share of its "
            f"{what} that are given it (recall, at a probability of 0.5). No label is taken for another, so "
            "there is no confusion matrix; p2pft evaluate shows AUROC and more of each label."
        )
    return Section("classes", heading, said, charts, (), tables, notes)


def _held(run: Run, answers: Sequence[Answers]) -> npt.NDArray[np.bool_]:
    """Return which tail's peer holds images of which class, (tails, C)."""
    own = {p.peer: set(p.classes) for p in run.results.peers}
    return np.array([[name in own.get(a.peer, ()) for name in a.classes] for a in answers], dtype=bool)


def _charts(material: Material, run: Run) -> list[Chart]:
    answers, place = material.of(run), material.colour(run)
    classes = answers[0].classes
    found = []
    if len(answers) > 1:
        values, held = np.stack([by_class(a) for a in answers]), _held(run, answers)
        names = [run.names.get(a.peer, str(a.peer)) for a in answers]
        title = f"{run.label}: accuracy of each peer on each class (•: it holds the class)"
        words = f"Rows are peers, columns classes; a dot: the peer holds the class. {_hardest(run, answers)}"
        found.append(
            heat(f"classes-{place}", title, words, values,
                 (names, classes), ("peer", "class"), marked=held)
        )  # fmt: skip
    if answers[0].several_labels:
        return found
    counts = confusion(answers).astype(np.float64)
    sums = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, sums, out=np.full_like(counts, np.nan), where=sums > 0)
    worst = _worst(counts, classes)
    words = "Rows are true classes, columns answers. " + (
        "; ".join(
            f"{true} is taken for {taken} in {share:.1%} of its {run.samples}"
            for true, taken, _, share in worst[:3]
        )
        or f"No {run.sample} was named wrong"
    )
    found.append(
        heat(f"confusion-{place}", f"{run.label}: confusion matrix", f"{words}.", shares, (classes, classes),
             ("true class", "answer"))
    )  # fmt: skip
    return found


def _worst(counts: Array, classes: Sequence[str]) -> list[tuple[str, str, int, float]]:
    """Return true class, answer, number and share of its images of the most frequent mistakes."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MISTAKES]
    sums = counts.sum(axis=1)
    places = [np.unravel_index(k, wrong.shape) for k in order]
    return [
        (classes[i], classes[j], int(wrong[i, j]), float(wrong[i, j] / sums[i]))
        for i, j in places
        if wrong[i, j] > 0
    ]


def _sides(run: Run, answers: Sequence[Answers]) -> tuple[Array, Array]:
    """Return the mean accuracy by class, (C,), of the peers that hold it and of those that never saw it."""
    values, held = np.stack([by_class(a) for a in answers]), _held(run, answers)

    def side(mask: npt.NDArray[np.bool_]) -> Array:
        mask = mask & ~np.isnan(values)
        count = mask.sum(axis=0)
        total = np.where(mask, values, 0.0).sum(axis=0)
        share: Array = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
        return share

    return side(held), side(~held)


def _hardest(run: Run, answers: Sequence[Answers]) -> str:
    holds, never = _sides(run, answers)
    classes = answers[0].classes
    known = np.concatenate([holds, never])
    if (known[~np.isnan(known)] == 1).all() and not np.isnan(known).all():
        return f"{run.label}: every peer names every {run.sample} of every class right."
    told = []
    for values, who in ((never, "peers that never saw it"), (holds, "peers that hold it")):
        if not np.isnan(values).all():
            k = int(np.nanargmin(values))
            right = f"{values[k]:.1%} of its {run.samples} right"
            told.append(f"{classes[k]} is hardest for {who}, who name {right}")
    worst = []
    if not answers[0].several_labels:
        worst = _worst(confusion(answers).astype(np.float64), classes)
    if worst:
        true, taken, _, share = worst[0]
        told.append(
            f"the most frequent mistake is {true} taken for {taken}, {share:.1%} of its {run.samples}"
        )
    if not told:
        return f"{run.label}: no test {run.sample}."
    return f"{run.label}: class {'; '.join(told)}."


def _class_table(material: Material, runs: Sequence[Run]) -> Grid:
    sides = {run.label: _sides(run, material.of(run)) for run in runs}
    header, columns = ["class"], list[Array]()
    classes = material.of(runs[0])[0].classes
    for run in runs:
        if tuple(material.of(run)[0].classes) != tuple(classes):
            continue
        for values, who in zip(sides[run.label], ("hold it", "never saw it"), strict=True):
            if not np.isnan(values).all():
                header.append(f"{run.label}: peers that {who}")
                columns.append(values)
    rows = [
        [name, *(number(None if np.isnan(values[k]) else float(values[k])) for values in columns)]
        for k, name in enumerate(classes)
    ]
    return Grid(
        f"Accuracy by class, mean over the peers that hold {samples_of(runs)} of it and over those that "
        "never saw it",
        header,
        rows,
    )


def _mistakes(run: Run, answers: Sequence[Answers]) -> Grid:
    counts = confusion(answers).astype(np.float64)
    rows = [
        [f"{true} taken for {taken}", str(times), f"{share:.1%}"]
        for true, taken, times, share in _worst(counts, answers[0].classes)
    ]
    return Grid(
        f"{run.label}: the most frequent mistakes", ["mistake", "answers", "share of the true class"], rows
    )
