"""FedTune's comparison: the runs of all cells and seeds in one dictionary, schema ``p2pft.fedtune/1``.

docs/results-schema.md describes it; Markdown, the terminal's text and the figure are made of it
(:mod:`~p2pft_flower.report.fedtune_text`, :mod:`~p2pft_flower.report.fedtune_figure`).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pft_flower.report.fedtune_design import Cell, Design
from p2pft_flower.report.fedtune_findings import findings
from p2pft_flower.report.results import summary

__all__ = ["SCHEMA", "CellRun", "Rate", "Source", "fedtune", "iterations_to"]

SCHEMA = "p2pft.fedtune/1"

SHARE = 0.95
"""Share of its final accuracy up to which a run's iterations are counted."""


@dataclass(frozen=True)
class Source:
    """A pre-trained model and its images.

    Attributes
    ----------
    name : str
        One of :data:`~p2pft_flower.report.fedtune_design.SOURCES`.
    settings : mapping
        Every run-config key that the command does not set for each run.
    weights : str
        The weights for people.
    digests : mapping of str to str
        SHA-256, hexadecimal, of each file that the settings name, by key.
    classes, train, test : int
        Number of classes, training images and test images.
    disjoint : str
        The partition that the split ``disjoint`` means here.
    """

    name: str
    settings: Mapping[str, Any]
    weights: str
    digests: Mapping[str, str]
    classes: int
    train: int
    test: int
    disjoint: str


@dataclass(frozen=True)
class Rate:
    """The choice of a learning rate, for one source, way of tuning, split and method.

    Attributes
    ----------
    source, tune, split, method : str
        As of a :class:`~p2pft_flower.report.fedtune_design.Cell`.
    tried : mapping of float to (float or None)
        Mean accuracy on the held-out training images, 0..1, of each rate; None if the run diverged.
    chosen : float or None
        The rate; None if every run diverged, or one failed.
    error : str
        Why no rate was chosen; empty if one was.
    """

    source: str
    tune: str
    split: str
    method: str
    tried: Mapping[float, float | None]
    chosen: float | None
    error: str = ""


@dataclass(frozen=True)
class CellRun:
    """One run of a cell.

    Attributes
    ----------
    cell : Cell
        The cell.
    seed : int
        The seed.
    outcome : mapping or None
        The fields of :class:`~p2pft_flower.lab.trials.TrialOutcome`; None if there is none.
    error : str
        Why the run failed; empty if it did not, or has not been done.
    kept : bool
        Whether an earlier command has done the run.
    """

    cell: Cell
    seed: int
    outcome: Mapping[str, Any] | None = None
    error: str = ""
    kept: bool = False

    @property
    def status(self) -> str:
        """``completed``, ``failed`` or ``not run``."""
        if self.outcome is not None:
            return "completed"
        return "failed" if self.error else "not run"


def iterations_to(share: float, curve: Sequence[Sequence[float]]) -> int:
    """Return the first evaluated iteration with at least ``share`` of the last accuracy of a ``curve``."""
    wanted = share * curve[-1][1]
    return int(next(k for k, accuracy in curve if accuracy >= wanted))


def fedtune(
    design: Design,
    sources: Sequence[Source],
    rates: Sequence[Rate],
    runs: Sequence[CellRun],
    *,
    validation: float,
    quick: bool,
) -> dict[str, Any]:
    """Return the comparison in one dictionary; accuracies are shares from 0 to 1.

    Parameters
    ----------
    design : Design
        The factors.
    sources : sequence of Source
        The models and images, in the design's order.
    rates : sequence of Rate
        The learning rates chosen so far.
    runs : sequence of CellRun
        A run for each cell and seed; also those that failed or are still to come.
    validation : float
        Share of the training images on which rates were chosen.
    quick : bool
        Whether it is a first look only (``--quick``).
    """
    chosen = {(rate.source, rate.tune, rate.split, rate.method): rate for rate in rates}
    by_cell: dict[Cell, list[CellRun]] = {}
    for run in runs:
        by_cell.setdefault(run.cell, []).append(run)
    cells = [
        _cell(cell, some, chosen.get((cell.source, cell.tune, cell.split, cell.method)))
        for cell, some in by_cell.items()
    ]
    body = {
        "schema": SCHEMA,
        "quick": quick,
        "seeds": list(design.seeds),
        "splits": list(design.splits),
        "shots": list(design.shots),
        "methods": list(design.methods),
        "validation": validation,
        "sources": [_source(source, design) for source in sources],
        "rates": [_rate(rate) for rate in rates],
        "cells": cells,
    }
    return {**body, "findings": findings(body)}


def _source(source: Source, design: Design) -> dict[str, Any]:
    return {
        "source": source.name,
        "tunes": list(design.tunes[source.name]),
        "settings": dict(source.settings),
        "weights": source.weights,
        "digests": dict(source.digests),
        "classes": source.classes,
        "images": {"train": source.train, "test": source.test},
        "disjoint": source.disjoint,
    }


def _rate(rate: Rate) -> dict[str, Any]:
    return {
        "source": rate.source,
        "tune": rate.tune,
        "split": rate.split,
        "method": rate.method,
        "chosen": rate.chosen,
        "error": rate.error,
        "tried": [{"rate": alpha, "accuracy": score} for alpha, score in sorted(rate.tried.items())],
    }


def _cell(cell: Cell, runs: Sequence[CellRun], rate: Rate | None) -> dict[str, Any]:
    """Return the numbers of a cell over its seeds; numbers are None if no seed completed."""
    done = [(run.seed, run.outcome) for run in runs if run.outcome is not None]
    accuracy = {seed: statistics.mean(outcome["accuracy"]) for seed, outcome in done}
    own = {seed: statistics.mean(outcome["own_accuracy"]) for seed, outcome in done}
    first = done[0][1] if done else None
    return {
        **cell._asdict(),
        "rate": rate and rate.chosen,
        "seeds": sorted(accuracy),
        "failed": {str(run.seed): run.error for run in runs if run.status == "failed"},
        "not_run": [run.seed for run in runs if run.status == "not run"],
        "by_seed": {
            "accuracy": [accuracy[seed] for seed in sorted(accuracy)],
            "own_accuracy": [own[seed] for seed in sorted(own)],
        },
        "accuracy": summary([*accuracy.values()]),
        "own_accuracy": summary([*own.values()]),
        "before": summary([outcome["curve"][0][1] for _, outcome in done]),
        "iterations_to_share": summary([iterations_to(SHARE, outcome["curve"]) for _, outcome in done]),
        "bytes_sent": summary([outcome["bytes_sent"] for _, outcome in done]),
        "seconds": summary([outcome["seconds"] for _, outcome in done]),
        "parameters": first and first["parameters"],
        "model_parameters": first and first["model_parameters"],
        "images": first and first["images"],
    }
