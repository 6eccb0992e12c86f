"""The numbers of a report as two tidy tables in CSV: one row an evaluation of a peer, or an outcome."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from p2pft_flower.report.page.runs import Run

__all__ = ["EVALUATIONS", "OUTCOMES", "evaluations_csv", "outcomes_csv"]

EVALUATIONS, OUTCOMES = "evaluations.csv", "outcomes.csv"

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A text that begins with one of these is a formula to a spreadsheet; it gets an apostrophe before it."""


def evaluations_csv(runs: Sequence[Run]) -> str:
    """Return a row for each evaluation of each peer, over all runs; what is not known is empty."""
    header = [
        "run",
        "algorithm",
        "seed",
        "iteration",
        "peer",
        "name",
        "seconds",
        "accuracy",
        "accuracy_unseen",
    ]
    header += ["loss", "bytes_sent", "bytes_sent_by_all", "consensus_error"]
    rows: list[list[Any]] = []
    for run in runs:
        for moment in run.results.history:
            for peer, accuracy in enumerate(moment.accuracy):
                others = (moment.accuracy_unseen, moment.loss)
                unseen, loss = (scores[peer] if scores else None for scores in others)
                rows.append(
                    [
                        *(run.label, run.algorithm, run.results.seed, moment.iteration),
                        *(peer, run.names.get(peer, str(peer))),
                        run.times.get(peer, {}).get(moment.iteration),
                        *(accuracy, unseen, loss),
                        run.sent.get(peer, {}).get(moment.iteration),
                        *(moment.bytes_sent, moment.consensus_error),
                    ]
                )
    return _csv(header, rows)


def outcomes_csv(runs: Sequence[Run]) -> str:
    """Return a row for each peer of each run, with its last scores; a run without numbers has one row."""
    header = [
        "run",
        "algorithm",
        "seed",
        "status",
        "peer",
        "name",
        "images",
        "classes",
        "iterations",
        "accuracy",
    ]
    header += ["accuracy_unseen", "loss", "bytes_sent", "seconds_gradient", "seconds_exchange"]
    header += ["seconds_evaluation", "epsilon", "delta", "run_seconds", "consensus_error"]
    rows: list[list[Any]] = []
    for run in runs:
        results = run.results
        about = [run.label, run.algorithm, results.seed, results.status]
        if not results.peers:
            rows.append([*about, *[None] * (len(header) - len(about))])
        rows += [
            [
                *about,
                *(p.peer, p.name, p.images, len(p.classes)),
                results.iterations if p.iterations is None else p.iterations,
                *(p.accuracy, p.accuracy_unseen, p.loss, p.bytes_sent),
                *(p.seconds.get(part) for part in ("gradient", "exchange", "evaluation")),
                *(p.epsilon, p.delta, results.seconds, results.consensus_error),
            ]
            for p in results.peers
        ]
    return _csv(header, rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[_plain(value) for value in row] for row in rows])
    return file.getvalue()


def _plain(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
