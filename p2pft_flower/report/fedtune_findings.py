"""FedTune's three findings, answered from the cells of a comparison by one rule for all.

Two cells are compared seed by seed. Their difference counts if it is larger than twice its standard error
over the seeds, and larger than the standard error of two accuracies on so many test images. A claim's answer
is

``yes``
    if every comparison counts for it,
``no``
    if none counts for it, and one against it,
``in this setting``
    if some count for it and others do not: the evidence says which,
``open``
    if nothing counts either way: there are too few seeds or test images, or no runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pft_flower.report.fedtune_design import ALONE, CLAIMS, METHODS, SOURCES, shots_name

__all__ = ["Comparison", "answer", "findings", "group_of"]

GROUPS = {
    "biases": ("bias", "bias+norm"),
    "input": ("prompt", "prompt-deep", "text-prompt", "text-prompt-class"),
    "modules": ("lora", "lora-fa", "adapter"),
    "whole blocks": ("last-block", "last-blocks", "full"),
}
"""Ways of tuning by what they change; the first three are FedTune's."""

LIGHT = ("biases", "input", "modules")
"""The groups that finding 1 compares: few numbers, and the backbone kept."""


def group_of(tune: str) -> str:
    """Return the key of :data:`GROUPS` of a way of tuning; ``head`` for a head alone."""
    kind = tune.removeprefix("text+").partition(":")[0]
    return next((group for group, kinds in GROUPS.items() if kind in kinds), "head")


@dataclass(frozen=True)
class Comparison:
    """The difference of two numbers that each seed has.

    Attributes
    ----------
    text : str
        What is compared, with both numbers.
    differences : tuple of float
        The first number minus the second, of each seed, as shares from 0 to 1.
    least : float
        Standard error of the difference from the number of test images.
    """

    text: str
    differences: tuple[float, ...]
    least: float

    @property
    def mean(self) -> float:
        """Mean difference."""
        return statistics.mean(self.differences)

    @property
    def error(self) -> float:
        """Standard error of the mean over the seeds; infinite with one seed."""
        if len(self.differences) < 2:
            return math.inf
        return statistics.stdev(self.differences) / math.sqrt(len(self.differences))

    @property
    def sign(self) -> int:
        """1 or −1 if the difference counts, else 0."""
        if abs(self.mean) <= max(2 * self.error, self.least):
            return 0
        return 1 if self.mean > 0 else -1

    def __str__(self) -> str:
        error = "" if math.isinf(self.error) else f" ± {100 * self.error:.1f}"
        close = "not decided by one seed" if math.isinf(self.error) else "too close to count"
        verdict = {1: "for it", -1: "against it", 0: close}[self.sign]
        return f"{self.text}: {100 * self.mean:+.1f}{error} points, {verdict}"


def answer(comparisons: Sequence[Comparison]) -> str:
    """Return the answer to a claim from its comparisons; see the module's docstring."""
    signs = [comparison.sign for comparison in comparisons]
    if 1 not in signs:
        return "no" if -1 in signs else "open"
    return "yes" if set(signs) == {1} else "in this setting"


class _Cells:
    """The completed cells of a comparison."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.body = body
        self._cells = {
            (c["source"], c["tune"], c["split"], c["shots"], c["method"]): c
            for c in body["cells"]
            if c["seeds"]
        }
        self._sources = {source["source"]: source for source in body["sources"]}
        self.together = body["methods"][0]
        """The method of learning together: the base method."""

    @property
    def sources(self) -> list[str]:
        return [*self._sources]

    def tunes(self, source: str) -> list[str]:
        return list(self._sources[source]["tunes"])

    def of(self, source: str, tune: str, split: str, shots: int, method: str) -> dict[str, Any] | None:
        return self._cells.get((source, tune, split, shots, method))

    def base(
        self, source: str, *, split: str | None = None, shots: int | None = None, method: str | None = None
    ) -> dict[str, Any] | None:
        """Return a cell with a source's base way of tuning."""
        body = self.body
        return self.of(
            source,
            self.tunes(source)[0],
            body["splits"][0] if split is None else split,
            body["shots"][0] if shots is None else shots,
            self.together if method is None else method,
        )

    def chosen(self, source: str, split: str, group: str) -> str | None:
        """Return the way of a group that did best on held-out training images; None if there is none."""
        scores = {
            rate["tune"]: max(
                (t["accuracy"] for t in rate["tried"] if t["accuracy"] is not None), default=-1.0
            )
            for rate in self.body["rates"]
            if (rate["source"], rate["split"], rate["method"]) == (source, split, self.together)
            and group_of(rate["tune"]) == group
        }
        return max(scores, key=lambda tune: scores[tune]) if scores else None

    def test_error(self, *cells: Mapping[str, Any]) -> float:
        """Return the standard error of a difference of the cells' accuracies, from their test images."""
        variance = 0.0
        for cell in cells:
            p = cell["accuracy"]["mean"]
            variance += p * (1 - p) / self._sources[cell["source"]]["images"]["test"]
        return math.sqrt(variance)


def _percent(cell: Mapping[str, Any], what: str = "accuracy") -> str:
    spread = f" ± {100 * cell[what]['std']:.1f}" if len(cell["seeds"]) > 1 else ""
    return f"{100 * cell[what]['mean']:.1f}{spread}"


def _gap(
    first: Mapping[str, Any], second: Mapping[str, Any], of: str = "accuracy", minus: str = "accuracy"
) -> dict[int, float]:
    """Return, for each seed that both cells have, the first's ``of`` minus the second's ``minus``."""
    one = dict(zip(first["seeds"], first["by_seed"][of], strict=True))
    two = dict(zip(second["seeds"], second["by_seed"][minus], strict=True))
    return {seed: one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())}


def _compared(
    cells: _Cells, text: str, first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[Comparison]:
    """Yield the comparison of two cells' accuracies, if a seed has both."""
    if gap := _gap(first, second):
        told = f"{text} {_percent(first)} against {_percent(second)}"
        yield Comparison(told, tuple(gap.values()), cells.test_error(first, second))


def _biases(cells: _Cells) -> Iterator[Comparison]:
    every = cells.body["shots"][0]
    for source in cells.sources:
        for split in cells.body["splits"]:
            ways = {group: cells.chosen(source, split, group) for group in LIGHT}
            bias = ways.pop("biases")
            first = bias and cells.of(source, bias, split, every, cells.together)
            for way in ways.values():
                second = way and cells.of(source, way, split, every, cells.together)
                if first and second:
                    yield from _compared(cells, f"{source}, {split}: {bias} and {way}", first, second)


def _language(cells: _Cells) -> Iterator[Comparison]:
    vision, language = SOURCES
    if {vision, language} - {*cells.sources}:
        return
    for split in cells.body["splits"]:
        first, second = (cells.base(source, split=split) for source in (language, vision))
        if first and second:
            ways = f"{first['tune']} and {second['tune']}"
            where = f"{split}, {shots_name(cells.body['shots'][0])} images a class"
            yield from _compared(cells, f"{where}: {language} and {vision} ({ways})", first, second)


def _few(cells: _Cells) -> Iterator[Comparison]:
    """Yield, for each number of images, the vision model's loss minus the vision-language model's."""
    vision, language = SOURCES
    if {vision, language} - {*cells.sources}:
        return
    every, *fewer = cells.body["shots"]
    for shots in fewer:
        pairs = [
            (cells.base(source, shots=every), cells.base(source, shots=shots))
            for source in (vision, language)
        ]
        losses = [_gap(whole, few) for whole, few in pairs if whole and few]
        if len(losses) < 2 or not (seeds := sorted(losses[0].keys() & losses[1].keys())):
            continue
        lost = [100 * statistics.mean(loss[seed] for seed in seeds) for loss in losses]
        text = (
            f"{shots_name(shots)} instead of {shots_name(every)} images a class: {vision} loses "
            f"{lost[0]:.1f}, {language} {lost[1]:.1f}"
        )
        error = cells.test_error(*(cell for pair in pairs for cell in pair if cell))
        yield Comparison(text, tuple(losses[0][s] - losses[1][s] for s in seeds), error)


def _together(cells: _Cells) -> Iterator[Comparison]:
    base_split, every = cells.body["splits"][0], cells.body["shots"][0]
    places = [(split, every) for split in cells.body["splits"]]
    places += [(base_split, shots) for shots in cells.body["shots"][1:]]
    for source in cells.sources:
        for split, shots in places:
            first, second = (
                cells.base(source, split=split, shots=shots, method=m) for m in (cells.together, ALONE)
            )
            if first and second:
                where = f"{source}, {split}, {shots_name(shots)} images a class"
                names = f"{METHODS[cells.together]} and {METHODS[ALONE]}"
                yield from _compared(cells, f"{where}: {names}", first, second)


def _over_fits(cells: _Cells) -> Iterator[Comparison]:
    """Yield how much farther a peer alone is from its own images' accuracy on the test images.

    Where classes are dealt out, a peer alone also lacks classes, which is another thing than over-fitting; so
    this is compared where images are dealt out at random.
    """
    if "iid" not in cells.body["splits"]:
        return
    for source in cells.sources:
        both = [cells.base(source, split="iid", method=m) for m in (ALONE, cells.together)]
        if not all(both):
            continue
        alone, together = (cell for cell in both if cell)
        gaps = [_gap(cell, cell, of="own_accuracy") for cell in (alone, together)]
        if not (seeds := sorted(gaps[0].keys() & gaps[1].keys())):
            continue
        text = (
            f"{source}, iid: accuracy on own training images above that on test images, {METHODS[ALONE]} "
            f"{_percent(alone, 'own_accuracy')} above {_percent(alone)}, {METHODS[cells.together]} "
            f"{_percent(together, 'own_accuracy')} above {_percent(together)}"
        )
        differences = tuple(gaps[0][s] - gaps[1][s] for s in seeds)
        yield Comparison(text, differences, cells.test_error(alone, together))


def findings(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the three findings with an answer and its evidence.

    Parameters
    ----------
    body : mapping
        A comparison, from :func:`~p2pft_flower.report.fedtune.fedtune`, without its findings.
    """
    cells = _Cells(body)
    missing = " and ".join(sorted({*SOURCES} - {*cells.sources}))
    to_come = sum(len(cell.get("not_run", ())) for cell in body["cells"])
    compared = [
        ([*_biases(cells)], "no way of tuning the biases beside one of the input or of modules was run"),
        ([*_language(cells), *_few(cells)], "no runs of both models"),
        ([*_together(cells), *_over_fits(cells)], "no runs of learning together beside learning alone"),
    ]
    # What is not compared may be still to come; a source that was not given never comes.
    reasons = ["" if to_come else nothing for _, nothing in compared]
    reasons[1] = f"no {missing} model was given" if missing else reasons[1]
    return [
        {
            "finding": number,
            "claim": claim,
            "answer": answer(comparisons),
            "evidence": [
                *([f"runs still to come: {to_come}"] if to_come else []),
                *([str(one) for one in comparisons] or ([nothing] if nothing else [])),
            ],
        }
        for number, (claim, (comparisons, _), nothing) in enumerate(
            zip(CLAIMS, compared, reasons, strict=True), start=1
        )
    ]
