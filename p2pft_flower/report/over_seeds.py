"""Several methods over several seeds: one dictionary of the runs' numbers, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pft_flower.errors import printable
from p2pft_flower.keeping.progress import human_bytes
from p2pft_flower.report.grids import Grid, as_markdown, as_text
from p2pft_flower.report.results import summary

__all__ = ["SeedRun", "merged", "method_numbers", "seeds_markdown", "seeds_table"]

HEADER = ["method", "seeds", "accuracy", "seen", "unseen", "loss", "consensus error", "sent", "seconds"]

SCORES = ("accuracy", "accuracy_seen", "accuracy_unseen", "loss")


@dataclass(frozen=True)
class SeedRun:
    """A run of one method with one seed.

    Attributes
    ----------
    method : str
        The run-config's ``algorithm``.
    seed : int
        The run-config's ``seed``.
    results : mapping or None
        The content of results.json; None if the run has not been done yet.
    """

    method: str
    seed: int
    results: Mapping[str, Any] | None = None

    @property
    def completed(self) -> bool:
        """Whether all its peers have trained to the end."""
        return self.results is not None and self.results["status"] == "completed"


def method_numbers(runs: Sequence[SeedRun]) -> list[dict[str, Any]]:
    """Return the numbers of each method over its seeds, in the order in which the methods first come.

    Parameters
    ----------
    runs : sequence of SeedRun
        A run for each method and seed, also those that failed or are still to come.

    Returns
    -------
    list of dict
        An entry of comparison.json's ``methods`` for each method. ``mean``, ``std`` (population), ``min`` and
        ``max`` are over the seeds; the scores of one seed are the means over its peers.
    """
    return [
        _numbers(method, [run for run in runs if run.method == method])
        for method in dict.fromkeys(run.method for run in runs)
    ]


def _numbers(method: str, runs: Sequence[SeedRun]) -> dict[str, Any]:
    done = [run.results for run in runs if run.results is not None and run.completed]
    scores = {
        key: summary([(results["summary"].get(key) or {}).get("mean") for results in done]) for key in SCORES
    }
    return {
        "algorithm": method,
        "completed": [run.seed for run in runs if run.completed],
        "failed": {
            str(run.seed): f"{run.results['status']}: {run.results['error']}"
            for run in runs
            if run.results is not None and not run.completed
        },
        "not_run": [run.seed for run in runs if run.results is None],
        **scores,
        "consensus_error": summary([results["consensus_error"] for results in done]),
        "bytes_sent": summary([sum(peer["bytes_sent"] for peer in results["peers"]) for results in done]),
        "seconds": summary([results["seconds"] for results in done]),
    }


def merged(runs: Sequence[SeedRun]) -> dict[str, Any] | None:
    """Return completed runs of one method as if the peers of all seeds were those of one run, for a figure.

    None if no run has completed. Only iterations that all seeds have evaluated are in the history.
    """
    done = [run.results for run in runs if run.results is not None and run.completed]
    if not done:
        return None
    peers = [peer for results in done for peer in results["peers"]]
    rows = [{entry["iteration"]: entry["accuracy"] for entry in results["history"]} for results in done]
    common = sorted(set.intersection(*(set(row) for row in rows)))
    return {
        **done[0],
        "peers": [{**peer, "peer": number} for number, peer in enumerate(peers)],
        "summary": {"accuracy": summary([peer["accuracy"] for peer in peers])},
        "history": [
            {"iteration": k, "accuracy": [value for row in rows for value in row[k]]} for k in common
        ],
    }


def _spread(value: Mapping[str, float] | None, form: str, seeds: int) -> str:
    """Return mean ± standard deviation; one seed has no deviation."""
    if value is None:
        return "–"
    text = f"{value['mean']:{form}}"
    return f"{text} ± {value['std']:{form}}" if seeds > 1 else text


def _sent(value: Mapping[str, float] | None, seeds: int) -> str:
    if value is None:
        return "–"
    text = human_bytes(round(value["mean"]))
    return f"{text} ± {human_bytes(round(value['std']))}" if seeds > 1 else text


def _grid(body: Mapping[str, Any]) -> Grid:
    rows = []
    for one in body["methods"]:
        seeds = len(one["completed"])
        wanted = seeds + len(one["failed"]) + len(one["not_run"])
        rows.append(
            [
                one["algorithm"],
                str(seeds) if seeds == wanted else f"{seeds} of {wanted}",
                *(_spread(one[key], ".3f", seeds) for key in SCORES),
                _spread(one["consensus_error"], ".1e", seeds),
                _sent(one["bytes_sent"], seeds),
                _spread(one["seconds"], ".1f", seeds),
            ]
        )
    return Grid(body["title"], HEADER, rows)


def _notes(body: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    seeds = ", ".join(map(str, body["seeds"]))
    over = (
        f"mean ± standard deviation (population) over the seeds {seeds}; a seed's scores are its peers' means"
    )
    failed = [
        f"{one['algorithm']}, seed {seed}: {printable(' '.join(why.split()))}"
        for one in body["methods"]
        for seed, why in one["failed"].items()
    ]
    missing = [f"{one['algorithm']}, seed {seed}" for one in body["methods"] for seed in one["not_run"]]
    notes = [("Numbers", [over]), ("Did not complete", failed), ("Not run yet", missing)]
    return [(heading, lines) for heading, lines in notes if lines]


def seeds_table(body: Mapping[str, Any]) -> str:
    """Return the table and notes of a comparison over seeds as text for a terminal.

    ``body`` is the content of comparison.json, with ``title``, ``seeds`` and ``methods``.
    """
    return as_text([_grid(body)], _notes(body))


def seeds_markdown(body: Mapping[str, Any]) -> str:
    """Return the table and notes of :func:`seeds_table` as Markdown."""
    return as_markdown([_grid(body)], _notes(body))
