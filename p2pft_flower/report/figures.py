"""Pictures of runs, from the dictionaries that results.json holds, and of the peers' shares of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from p2pft_flower.report.tables import samples_word

__all__ = ["draw_comparison", "draw_shares"]

LEGEND = 20
"""The figure of shares has a legend for up to this many peers."""


def draw_comparison(runs: Sequence[dict[str, Any]], title: str, png: Path) -> None:
    """Draw accuracy over iterations: for each run, the peers' mean as a line, and worst to best as a band.

    Parameters
    ----------
    runs : sequence of dict
        Results of completed runs, each the content of results.json.
    title : str
        A line above the picture.
    png : Path
        The file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axis = figure.subplots()
    for number, results in enumerate(runs):
        final = results["summary"]["accuracy"]
        if final is None:  # no peer has a test image
            continue
        scored = [peer["peer"] for peer in results["peers"] if peer["accuracy"] is not None]
        history = [(h["iteration"], [h["accuracy"][i] for i in scored]) for h in results["history"]]
        rows = [(iteration, each) for iteration, each in history if None not in each]
        iterations = [iteration for iteration, _ in rows]
        accuracy = np.array([each for _, each in rows])
        label = f"{results['algorithm']}: {final['mean']:.3f}"
        if len(scored) > 1:
            label += f" ({final['min']:.3f} to {final['max']:.3f})"
        colour = f"C{number % 10}"
        axis.plot(iterations, accuracy.mean(axis=1), color=colour, lw=1.8, label=label)
        axis.fill_between(
            iterations, accuracy.min(axis=1), accuracy.max(axis=1), color=colour, alpha=0.18, lw=0
        )
    own = any(results["partition"] == "own" for results in runs)
    what = samples_word(runs[0]["config"])
    label = f"accuracy, each on its own test {what}" if own else "accuracy on all classes"
    axis.set(xlabel="iteration", ylabel=label, ylim=(0, 1), title=title)
    axis.grid(alpha=0.25)
    if axis.lines:
        axis.legend(title="mean of the peers at the end (worst to best)", fontsize=9, loc="center right")
    figure.savefig(png, dpi=130)


def draw_shares(
    counts: npt.NDArray[np.int64], peers: Sequence[str], title: str, png: Path, what: str = "images"
) -> None:
    """Draw the number of training images of each class as a bar, stacked by the peers that hold them.

    Parameters
    ----------
    counts : (n, C) int64 array
        Number of training images by peer and class.
    peers : sequence of str
        Names of the peers.
    title : str
        A line above the picture.
    png : Path
        The file to write.
    what : str
        What the samples are called: ``"images"`` or ``"samples"``.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    n, classes = counts.shape
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axis = figure.subplots()
    colours = colormaps["turbo"](np.linspace(0.05, 0.95, n))
    below = np.zeros(classes, dtype=np.int64)
    for peer, row in enumerate(counts):
        axis.bar(np.arange(classes), row, bottom=below, color=colours[peer], width=0.9, label=peers[peer])
        below += row
    axis.set(xlabel="class", ylabel=f"training {what}", title=title, xlim=(-0.6, classes - 0.4))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    if n <= LEGEND:
        figure.legend(title="peer", fontsize=9, loc="outside right upper")
    figure.savefig(png, dpi=130)
