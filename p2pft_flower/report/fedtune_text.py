"""FedTune's comparison for people: the findings, the tables behind them, and how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2pft_flower.config import NO_MODEL
from p2pft_flower.keeping.progress import human_bytes
from p2pft_flower.report.fedtune_design import METHODS, shots_name
from p2pft_flower.report.grids import Grid, as_markdown, as_text
from p2pft_flower.report.tables import titled

__all__ = ["fedtune_markdown", "fedtune_table"]

SHOWN_DIGEST = 12
"""Hexadecimal digits of a digest that notes show."""

TO_SHARE = "iterations to 95 %"


def fedtune_table(body: Mapping[str, Any]) -> str:
    """Return a comparison, from :func:`~p2pft_flower.report.fedtune.fedtune`, as text for a terminal."""
    return as_text(_grids(body), [*_answers(body), *_notes(body)])


def fedtune_markdown(body: Mapping[str, Any]) -> str:
    """Return a comparison, from :func:`~p2pft_flower.report.fedtune.fedtune`, as Markdown."""
    quick = "; --quick: a first look" if body["quick"] else ""
    answers = as_markdown([], _answers(body))
    tables = as_markdown(_grids(body), _notes(body), first=2)
    return f"# FedTune's comparison without a server{quick}\n\n{answers}\n{tables}"


def _answers(body: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    return [
        (f"Finding {one['finding']}: {one['answer'].upper()}. {one['claim']}", list(one["evidence"]))
        for one in body["findings"]
    ]


def _percent(cell: Mapping[str, Any] | None, what: str = "accuracy") -> str:
    """Return mean ± standard deviation over the seeds in percent; missing seeds are said."""
    if cell is None:
        return "–"
    value, wanted = cell[what], len(cell["seeds"]) + len(cell["failed"]) + len(cell["not_run"])
    if value is None:
        return "failed" if cell["failed"] else "not run yet"
    text = f"{100 * value['mean']:.1f}"
    text = f"{text} ± {100 * value['std']:.1f}" if len(cell["seeds"]) > 1 else text
    return text if len(cell["seeds"]) == wanted else f"{text} ({len(cell['seeds'])} of {wanted} seeds)"


def _whole(cell: Mapping[str, Any] | None, what: str) -> str:
    return "–" if cell is None or cell[what] is None else f"{cell[what]['mean']:,.0f}"


def _sent(cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["bytes_sent"] is None:
        return "–"
    # Centralised training sends the images instead, once, and to one place.
    return "the images" if cell["method"] == "centralized" else human_bytes(round(cell["bytes_sent"]["mean"]))


def _rate(cell: Mapping[str, Any] | None) -> str:
    return "–" if cell is None or cell["rate"] is None else f"{cell['rate']:g}"


class _Of:
    """The cells of one source."""

    def __init__(self, body: Mapping[str, Any], source: Mapping[str, Any]) -> None:
        self.body, self.source = body, source
        self._cells = {
            (c["tune"], c["split"], c["shots"], c["method"]): c
            for c in body["cells"]
            if c["source"] == source["source"]
        }
        self.base = (source["tunes"][0], body["splits"][0], body["shots"][0], body["methods"][0])

    def __call__(
        self,
        tune: str | None = None,
        split: str | None = None,
        shots: int | None = None,
        method: str | None = None,
    ) -> Mapping[str, Any] | None:
        """Return a cell; what is not given is that of the base cell."""
        given = (tune, split, shots, method)
        return self._cells.get(
            tuple(b if g is None else g for g, b in zip(given, self.base, strict=True))  # type: ignore[arg-type]
        )

    def titled(self, title: str) -> str:
        return titled(f"{self.source['source']}: {title}", [{"config": self.source["settings"]}])


def _tunes(of: _Of) -> Grid:
    splits = of.body["splits"]
    header = ["way", "q", "of the model", "learning rate", "before", *splits, "sent by all", TO_SHARE]
    grid = Grid(
        of.titled(
            f"ways of tuning with {METHODS[of.base[3]]}, {shots_name(of.base[2])} images a class; accuracy "
            f"in percent, also before training; rate, bytes and iterations with {splits[0]}"
        ),
        header,
    )
    for tune in of.source["tunes"]:
        cell = of(tune)
        q, share = "–", "–"
        if cell is not None and cell["parameters"] is not None:
            q = f"{cell['parameters']:,}"
            if of.source["settings"]["model"] != NO_MODEL:  # of features, the head is all there is
                share = f"{100 * cell['parameters'] / cell['model_parameters']:.2f} %"
        accuracies = [_percent(of(tune, split)) for split in splits]
        told = [_percent(cell, "before"), *accuracies, _sent(cell), _whole(cell, "iterations_to_share")]
        grid.rows.append([tune, q, share, _rate(cell), *told])
    return grid


def _methods(of: _Of) -> Grid:
    splits = of.body["splits"]
    own = [f"{split}: own images" for split in splits]
    grid = Grid(
        of.titled(
            f"methods with tune = {of.base[0]}, {shots_name(of.base[2])} images a class; accuracy in percent "
            "on the test images, and on the peers' own training images; rate, bytes and iterations with "
            f"{splits[0]}"
        ),
        ["method", "learning rate", *splits, *own, "sent by all", TO_SHARE],
    )
    for method in of.body["methods"]:
        cell = of(method=method)
        accuracies = [_percent(of(split=split, method=method)) for split in splits]
        accuracies += [_percent(of(split=split, method=method), "own_accuracy") for split in splits]
        told = [_rate(cell), *accuracies, _sent(cell), _whole(cell, "iterations_to_share")]
        grid.rows.append([METHODS[method], *told])
    return grid


def _shots(of: _Of) -> Grid:
    shots = of.body["shots"]
    grid = Grid(
        of.titled(f"few images a class, {of.base[1]}; accuracy in percent"),
        ["way", "method", *map(shots_name, shots)],
    )
    for tune in of.source["tunes"]:
        for method in of.body["methods"] if tune == of.base[0] else of.body["methods"][:1]:
            cells = [_percent(of(tune, shots=number, method=method)) for number in shots]
            grid.rows.append([tune, METHODS[method], *cells])
    return grid


def _grids(body: Mapping[str, Any]) -> list[Grid]:
    grids = []
    for source in body["sources"]:
        of = _Of(body, source)
        grids.append(_tunes(of))
        if len(body["methods"]) > 1:
            grids.append(_methods(of))
        if len(body["shots"]) > 1:
            grids.append(_shots(of))
    return grids


def _made_with(source: Mapping[str, Any]) -> list[str]:
    settings, images, name = source["settings"], source["images"], source["source"]
    digests = "".join(
        f", {key} SHA-256 {digest[:SHOWN_DIGEST]}…" for key, digest in source["digests"].items()
    )
    return [
        f"{name}: model {settings['model']}, weights {source['weights']}, dataset "
        f"{settings['dataset']}{digests}; {images['train']:,} training and {images['test']:,} test images of "
        f"{source['classes']} classes; disjoint: {source['disjoint']}",
        f"{name}: {settings['iterations']} iterations of batches of {settings['batch-size']}, schedule "
        f"{settings['schedule']}, momentum {settings['momentum']:g}, weight decay "
        f"{settings['weight-decay']:g}, graph {settings['topology']}, objective uniform",
    ]


def _rates(body: Mapping[str, Any]) -> list[str]:
    lines = []
    for rate in body["rates"]:
        tried = ", ".join(
            f"{one['rate']:g} " + ("diverged" if one["accuracy"] is None else f"{100 * one['accuracy']:.1f}")
            for one in rate["tried"]
        )
        chosen = "none" if rate["chosen"] is None else f"{rate['chosen']:g}"
        where = f"{rate['source']}, {rate['tune']}, {rate['split']}, {METHODS[rate['method']]}"
        lines.append(f"{where}: {chosen} of {tried}")
    return lines


def _notes(body: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    seeds = body["seeds"]
    over = (
        f"mean ± standard deviation (population) over seeds {', '.join(map(str, seeds))}; ± in the evidence: "
        "standard error over the seeds"
        if len(seeds) > 1
        else f"seed {seeds[0]}; with one seed no difference counts"
    )
    made = [line for source in body["sources"] for line in _made_with(source)]
    if len({(s["classes"], *s["images"].values()) for s in body["sources"]}) > 1:
        made.append("the sources have different images, so finding 2 compares more than the models")
    if body["quick"]:
        over += "; --quick: a first look"
    failed = [
        f"{c['source']}, {c['tune']}, {c['split']}, {shots_name(c['shots'])} images a class, "
        f"{METHODS[c['method']]}, seed {seed}: {why}"
        for c in body["cells"]
        for seed, why in c["failed"].items()
    ]
    chosen = (
        f"Learning rates, chosen with seed {seeds[0]} on {100 * body['validation']:g} % of the training "
        "images, held out: accuracy there in percent"
    )
    notes = [("Made with", [over, *made]), (chosen, _rates(body)), ("Failed", failed)]
    return [(heading, lines) for heading, lines in notes if lines]
