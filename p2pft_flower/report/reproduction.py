"""The paper's tables beside ours: our measurements in the paper's form, and how their settings differ.

:func:`reproduction` makes one dictionary of a table's runs (schema ``p2pft.reproduction/1``,
docs/results-schema.md); Markdown and the terminal's text are made of that dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pft_flower.keeping.progress import human_bytes
from p2pft_flower.report.grids import Grid, as_markdown, as_text
from p2pft_flower.report.paper import DATASETS, NODES, STATED, TABLES, PaperTable
from p2pft_flower.report.results import summary
from p2pft_flower.report.tables import number, titled

__all__ = [
    "SCHEMA",
    "Row",
    "RowRun",
    "differences",
    "reproduction",
    "reproduction_markdown",
    "reproduction_table",
]

SCHEMA = "p2pft.reproduction/1"

METHODS = {"local": "Local-FT", "p2pft": "P2P-FT"}
"""The names that the paper's tables give to their methods, by the run-config's name."""

SHOWN_DIGEST = 12
"""Hexadecimal digits of a digest that notes show."""


@dataclass(frozen=True)
class Row:
    """One row of a table: a dataset, and the facts that its runs share.

    Attributes
    ----------
    dataset : str
        A key of :data:`~p2pft_flower.report.paper.DATASETS`.
    settings : mapping
        Every run-config key but ``algorithm``, ``seed`` and ``output-dir``.
    classes : int
        Number of classes of the data that is there.
    train : int
        Number of training images that the peers hold together.
    available : int
        Number of training images in the data.
    test : int
        Number of test images.
    partition : str
        The run-config's ``partition``, with ``auto`` resolved.
    weights : str
        The weights' name for people: timm's, or the file's.
    sha256 : str or None
        Digest of the weights' file, hexadecimal; None if there is no file.
    """

    dataset: str
    settings: Mapping[str, Any]
    classes: int
    train: int
    available: int
    test: int
    partition: str
    weights: str
    sha256: str | None = None

    @property
    def full(self) -> bool:
        """Whether the peers train and are scored on as many images as the official set has."""
        paper = DATASETS[self.dataset]
        return (self.train, self.available, self.test) == (paper.train, paper.train, paper.test)


@dataclass(frozen=True)
class RowRun:
    """One run of a row.

    Attributes
    ----------
    dataset, method : str
        The row's dataset, and the run-config's ``algorithm``.
    seed : int
        The run-config's ``seed``.
    folder : str
        The folder of the run's results, relative to the table's folder.
    results : mapping or None
        The content of results.json; None if the run has not been done yet.
    kept : bool
        Whether an earlier command has completed the run, so that it is not done again.
    """

    dataset: str
    method: str
    seed: int
    folder: str
    results: Mapping[str, Any] | None = None
    kept: bool = False

    @property
    def status(self) -> str:
        """The results' status, such as ``completed``, ``failed`` or ``stopped``; else ``not run``."""
        return "not run" if self.results is None else str(self.results["status"])


def differences(table: PaperTable, row: Row, *, quick: bool = False) -> list[str]:
    """Return the differences of ``row`` from the paper's experiment, one text for each.

    Parameters
    ----------
    table : PaperTable
        The paper's table.
    row : Row
        Our row.
    quick : bool
        Whether the row is a first look only (``--quick``).
    """
    paper, settings = DATASETS[row.dataset], row.settings
    found = ["--quick: a first look, not a reproduction"] if quick else []
    if settings["weights"] == "none":
        found.append("weights: RANDOM, no pre-training; the paper: pre-trained")
    if settings["model"] != table.model:
        found.append(f"model {settings['model']}; the paper: {table.model}")
    elif settings["weights"] not in ("pretrained", "none"):
        found.append(f"weights from the file {row.weights}; the paper: those of timm's {table.model}")
    if settings["iterations"]:
        found.append(f"{settings['iterations']} iterations; the paper: {STATED['epochs']} epochs")
    covered = {"weights", "shots", "iterations", *(["epochs"] if settings["iterations"] else [])}
    for key, stated in STATED.items():
        if settings[key] != stated and key not in covered:
            found.append(f"{key} = {_value(settings[key])}; the paper: {_value(stated)}")
    if settings["dataset"] != paper.dataset:
        found.append(f"dataset {settings['dataset']}; the paper: {paper.name}")
    if row.classes != paper.classes:
        found.append(f"{row.classes} classes; the paper: {paper.classes}")
    if not row.full:
        shots = f", {settings['shots']} of a class" if settings["shots"] else ""
        found.append(
            f"{row.train:,} training images{shots}, and {row.test:,} to test; "
            f"the full {paper.name}: {paper.train:,} and {paper.test:,}"
        )
    if not settings["verify"]:
        found.append("verify = false: the images need not be the official files")
    if row.partition != paper.partition:
        found.append(f"partition {row.partition}; the paper's Table 1: {paper.partition}")
    elif paper.note:
        found.append(paper.note)
    return found


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def reproduction(
    name: str,
    rows: Sequence[Row],
    runs: Sequence[RowRun],
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    quick: bool = False,
) -> dict[str, Any]:
    """Return the paper's accuracies and ours in one dictionary.

    Parameters
    ----------
    name : str
        A key of :data:`~p2pft_flower.report.paper.TABLES`.
    rows : sequence of Row
        The rows, in the order of the table.
    runs : sequence of RowRun
        A run for each row, method and seed; also those that failed or are still to come.
    methods : sequence of str
        The methods, in the order of the table of all methods.
    seeds : sequence of int
        Seeds of each row and method.
    quick : bool
        Whether the table is a first look only (``--quick``).

    Returns
    -------
    dict
        Schema ``p2pft.reproduction/1``; all accuracies, also the paper's, are shares from 0 to 1.
    """
    table = TABLES[name]
    return {
        "schema": SCHEMA,
        "table": name,
        "title": f"The paper's Table {table.number} ({table.architecture}) beside ours",
        "methods": list(methods),
        "seeds": list(seeds),
        "quick": quick,
        "rows": [_row(table, row, runs, methods, seeds, quick) for row in rows],
        "runs": [
            {
                "dataset": run.dataset,
                "method": run.method,
                "seed": run.seed,
                "status": run.status,
                "error": run.results and run.results.get("error"),
                "kept": run.kept,
                "folder": run.folder,
            }
            for run in runs
        ],
    }


def _row(
    table: PaperTable,
    row: Row,
    runs: Sequence[RowRun],
    methods: Sequence[str],
    seeds: Sequence[int],
    quick: bool,
) -> dict[str, Any]:
    paper = DATASETS[row.dataset]
    stated = {method: table.figures(method, row.dataset) for method in METHODS}
    return {
        "dataset": row.dataset,
        "name": paper.name,
        "settings": dict(row.settings),
        "weights": row.weights,
        "weights_sha256": row.sha256,
        "classes": row.classes,
        "images": {"train": row.train, "available": row.available, "test": row.test, "full": row.full},
        "partition": row.partition,
        # 13.8 / 100 is 0.13800000000000001.
        "paper": {m: [round(v / 100, 6) for v in values] for m, values in stated.items() if values},
        "ours": {
            method: _ours([r for r in runs if (r.dataset, r.method) == (row.dataset, method)])
            for method in methods
        },
        "differs": differences(table, row, quick=quick),
        "not_stated": [
            f"graph {row.settings['topology']}, batch size {row.settings['batch-size']}, "
            f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
            *(
                [f"the split: {row.available:,} images to train, {row.test:,} to test"]
                if row.dataset in ("pets", "flowers")
                else []
            ),
        ],
    }


def _ours(runs: Sequence[RowRun]) -> dict[str, Any]:
    """Return the numbers of one row and method over all seeds; numbers are None if no seed completed."""
    done = [run.results for run in runs if run.results is not None and run.status == "completed"]
    by_seed = [[peer["accuracy"] for peer in results["peers"]] for results in done]
    means = summary([results["summary"]["accuracy"]["mean"] for results in done])
    every = summary([value for values in by_seed for value in values])
    return {
        "completed": [run.seed for run in runs if run.status == "completed"],
        "failed": {
            str(run.seed): str(run.results.get("error"))
            for run in runs
            if run.results is not None and run.status != "completed"
        },
        "not_run": [run.seed for run in runs if run.results is None],
        "peers": [summary(values) for values in zip(*by_seed, strict=True)],
        "accuracy": means and every and {**means, "min": every["min"], "max": every["max"]},
        "consensus_error": _mean([results["consensus_error"] for results in done]),
        "bytes_sent": _mean([sum(peer["bytes_sent"] for peer in results["peers"]) for results in done]),
        "seconds": _mean([results["seconds"] for results in done]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = summary(values)
    return numbers["mean"] if numbers else None


def _spread(value: Mapping[str, float] | None, seeds: int) -> str:
    """Return mean ± standard deviation in percent; one seed has no deviation."""
    if value is None:
        return "–"
    text = f"{100 * value['mean']:.2f}"
    return f"{text} ± {100 * value['std']:.2f}" if seeds > 1 else text


def _nodes(ours: Mapping[str, Any], reasons: bool) -> list[str]:
    """Return the cells of one method's nodes; if seeds are missing, the first cell says so.

    ``reasons`` is whether that cell has the reason of a failure.
    """
    seeds = len(ours["completed"])
    cells = [_spread(peer, seeds) for peer in ours["peers"]] or ["–"] * NODES
    failed, wanted = ours["failed"], seeds + len(ours["failed"]) + len(ours["not_run"])
    if failed:
        why = f": {next(iter(failed.values()))}" if reasons else ""
        cells[0] = f"{cells[0]} ({seeds} of {wanted} seeds{why})" if seeds else f"failed{why}"
    elif ours["not_run"]:
        cells[0] = f"{cells[0]} ({seeds} of {wanted} seeds)" if seeds else "not run yet"
    return cells


def _accuracy_grid(body: Mapping[str, Any], reasons: bool) -> Grid:
    header = ["", *(f"{name}\nnode {node}" for name in METHODS.values() for node in range(1, NODES + 1))]
    rows = []
    for row in body["rows"]:
        paper = [f"{100 * value:.2f}" for method in METHODS for value in row["paper"][method]]
        ours = [text for method in METHODS for text in _nodes(row["ours"][method], reasons)]
        rows += [[f"{row['name']} paper", *paper], [f"{row['name']} ours", *ours]]
    title = f"{body['title']}: accuracy on the test images of all classes, percent"
    return Grid(titled(title, [{"config": row["settings"]} for row in body["rows"]]), header, rows, 2)


def _methods_grid(body: Mapping[str, Any], reasons: bool) -> Grid:
    header = ["", "method", "mean of the nodes", "min", "max", "consensus error", "sent", "seconds"]
    rows = []
    for row in body["rows"]:
        for method in body["methods"]:
            ours = row["ours"][method]
            accuracy, sent = ours["accuracy"], ours["bytes_sent"]
            ends = [f"{100 * accuracy[end]:.2f}" if accuracy else "–" for end in ("min", "max")]
            whole = {**ours, "peers": [accuracy] if accuracy else []}
            rows.append(
                [
                    row["name"],
                    method,
                    _nodes(whole, reasons)[0],
                    *ends,
                    number(ours["consensus_error"], ".1e"),
                    "–" if sent is None else human_bytes(sent),
                    number(ours["seconds"], ".1f"),
                ]
            )
    title = (
        "All methods: accuracy in percent; consensus error, bytes sent and seconds are means over the seeds"
    )
    return Grid(
        titled(title, [{"config": row["settings"]} for row in body["rows"]]),
        header,
        rows,
        len(body["methods"]),
    )


def _grids(body: Mapping[str, Any], *, reasons: bool) -> list[Grid]:
    grids = [_accuracy_grid(body, reasons)]
    if set(body["methods"]) - set(METHODS):
        grids.append(_methods_grid(body, reasons))
    return grids


def _shared(rows: Sequence[Mapping[str, Any]], lists: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of all rows: a line of every row once, any other with its row's name."""
    common = [line for line in lists[0] if all(line in lines for lines in lists)]
    every = "" if len(rows) == 1 else "every row: "
    return [f"{every}{line}" for line in common] + [
        f"{row['name']}: {line}"
        for row, lines in zip(rows, lists, strict=True)
        for line in lines
        if line not in common
    ]


def _made_with(row: Mapping[str, Any]) -> list[str]:
    settings, images = row["settings"], row["images"]
    sha256 = row["weights_sha256"]
    digest = f" (SHA-256 {sha256[:SHOWN_DIGEST]}…)" if sha256 else ""
    if settings["iterations"]:
        length = f"{settings['iterations']} iterations"
    else:
        length = f"{settings['epochs']} epoch{'s' if settings['epochs'] > 1 else ''}"
    some = f" of {images['available']:,}" if images["train"] < images["available"] else ""
    which = "the full set" if images["full"] else "not the full set"
    return [
        f"model {settings['model']}, weights {row['weights']}{digest}, tune {settings['tune']}",
        f"{images['train']:,}{some} training images and {images['test']:,} to test, {which}; "
        f"{row['classes']} classes, partition {row['partition']}",
        f"{length}, learning rate {settings['learning-rate']:g} ({settings['schedule']}), "
        f"batch size {settings['batch-size']}, momentum {settings['momentum']:g}, "
        f"weight decay {settings['weight-decay']:g}, objective {settings['objective']}, "
        f"graph {settings['topology']}",
    ]


def _notes(body: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    rows = body["rows"]
    seeds = ", ".join(map(str, body["seeds"]))
    over = (
        f"mean ± standard deviation (population) over seeds {seeds}"
        if len(body["seeds"]) > 1
        else f"seed {seeds}"
    )
    failed = [
        f"{DATASETS[run['dataset']].name}, {run['method']}, seed {run['seed']}: {run['error']}"
        for run in body["runs"]
        if run["status"] in ("failed", "stopped")
    ]
    notes = [
        ("Made with", [f"ours: {over}", *_shared(rows, [_made_with(row) for row in rows])]),
        (
            "Differs from the paper",
            _shared(rows, [row["differs"] for row in rows]) or ["nothing that it states"],
        ),
        ("Not stated by the paper, chosen here", _shared(rows, [row["not_stated"] for row in rows])),
        ("Failed", failed),
    ]
    return [(heading, lines) for heading, lines in notes if lines]


def reproduction_table(body: Mapping[str, Any]) -> str:
    """Return the tables and notes of :func:`reproduction` as text for a terminal."""
    return as_text(_grids(body, reasons=False), _notes(body))


def reproduction_markdown(body: Mapping[str, Any]) -> str:
    """Return the tables and notes of :func:`reproduction` as Markdown."""
    return as_markdown(_grids(body, reasons=True), _notes(body))
