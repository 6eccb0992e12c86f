"""Pictures of runs, from the dictionaries that results.json holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["draw_comparison"]


def draw_comparison(runs: Sequence[dict[str, Any]], title: str, png: Path) -> None:
    """Draw accuracy over iterations: a line for the mean of the peers, a band from worst to best.

    Parameters
    ----------
    runs : sequence of dict
        Results of completed runs.
    title : str
        Above the picture.
    png : Path
        Where it goes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axis = figure.subplots()
    for number, results in enumerate(runs):
        rows = [h for h in results["history"] if None not in h["accuracy"]]
        iterations = [h["iteration"] for h in rows]
        accuracy = np.array([h["accuracy"] for h in rows])
        final = results["summary"]["accuracy"]
        label = f"{results['algorithm']}: {final['mean']:.3f}"
        if len(results["peers"]) > 1:
            label += f" ({final['min']:.3f} to {final['max']:.3f})"
        colour = f"C{number % 10}"
        axis.plot(iterations, accuracy.mean(axis=1), color=colour, lw=1.8, label=label)
        axis.fill_between(
            iterations, accuracy.min(axis=1), accuracy.max(axis=1), color=colour, alpha=0.18, lw=0
        )
    axis.set(xlabel="iteration", ylabel="accuracy on all classes", ylim=(0, 1), title=title)
    axis.grid(alpha=0.25)
    axis.legend(title="mean of the peers at the end (worst to best)", fontsize=9, loc="center right")
    figure.savefig(png, dpi=130)
