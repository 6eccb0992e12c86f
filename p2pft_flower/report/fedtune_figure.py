"""The picture of FedTune's comparison: accuracy over the number of training images a class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from p2pft_flower.report.fedtune_design import ALONE, METHODS, shots_name

__all__ = ["draw_few_images"]


def draw_few_images(body: Mapping[str, Any], png: Path) -> bool:
    """Draw accuracy over images a class, mean as a line and ± one standard deviation as a band.

    Each source has its base way of tuning with the base method and alone, and a head from a random start.

    Parameters
    ----------
    body : mapping
        A comparison, from :func:`~p2pft_flower.report.fedtune.fedtune`.
    png : Path
        The file to write.

    Returns
    -------
    bool
        Whether there was something to draw: a line of two numbers of images or more.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axis = figure.subplots()
    numbers = sorted(body["shots"], key=lambda shots: (shots == 0, shots))
    together = body["methods"][0]
    for colour, source in enumerate(body["sources"]):
        base, *others = source["tunes"]
        lines = [(base, together, "-"), (base, ALONE, ":")]
        lines += [(tune, together, "--") for tune in others if tune == "head"]
        for tune, method, style in lines:
            cells = {
                c["shots"]: c["accuracy"]
                for c in body["cells"]
                if (c["source"], c["tune"], c["split"], c["method"])
                == (source["source"], tune, body["splits"][0], method)
                and c["accuracy"] is not None
            }
            at = [i for i, shots in enumerate(numbers) if shots in cells]
            if len(at) < 2:
                continue
            mean = np.array([100 * cells[numbers[i]]["mean"] for i in at])
            spread = np.array([100 * cells[numbers[i]]["std"] for i in at])
            label = f"{source['source']}, {tune}, {METHODS[method]}"
            axis.plot(at, mean, style, color=f"C{colour}", marker="o", ms=3.5, lw=1.6, label=label)
            axis.fill_between(at, mean - spread, mean + spread, color=f"C{colour}", alpha=0.15, lw=0)
    if not axis.lines:
        return False
    axis.set_xticks(range(len(numbers)), [shots_name(shots) for shots in numbers])
    axis.set(
        xlabel="training images a class",
        ylabel="accuracy, percent",
        ylim=(0, 100),
        title=f"Few images, split {body['splits'][0]}, {len(body['seeds'])} seeds",
    )
    axis.grid(alpha=0.25)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    figure.savefig(png, dpi=90, pil_kwargs={"optimize": True})
    return True
