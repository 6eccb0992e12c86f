"""Attention maps over images as a figure, and the likeness of maps as tables."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from p2pft_flower.errors import printable
from p2pft_flower.report.tables import number, render

__all__ = ["Panel", "Row", "attention_markdown", "attention_table", "draw_attention", "method_name"]

NAMES = {"local": "Local-FT", "p2pft": "P2P-FT", "centralized": "centralised", "start": "before training"}
"""Names of methods in figures and tables; others go by their run-config value."""

ONE_FOR_ALL = ("centralized", "start")
"""Methods that give all peers one model: tables have no row for each peer."""

SHOWN_PEERS = 8
"""Tables have a row for each of up to this many peers."""

RIGHT, WRONG, UNKNOWN = "#0072b2", "#d55e00", "#555555"
"""Colours of predictions that are right, wrong, or not known to be either.

Almost everybody can distinguish blue and vermilion (Okabe and Ito); a tick and a cross say the same.
"""

COLOURS = "inferno"
"""Colours of the heat maps, whose brightness grows evenly, also for the colour-blind and in print."""

BRIGHTEST = 0.05
"""Share of a row's patches that get the brightest colour."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Panel:
    """One method's view of an image.

    Attributes
    ----------
    attention : (H, W) float32 array
        The attention map, a value for each of H × W patches.
    label : str
        Name of the predicted class.
    confidence : float
        Probability of the predicted class, 0..1.
    right : bool or None
        Whether the predicted class is the true one; None if the true one is not known.
    correlation : float or None
        Correlation of this map with the centralised one; None if there is no centralised map, or this is it.
    """

    attention: Array
    label: str
    confidence: float
    right: bool | None
    correlation: float | None


@dataclass(frozen=True)
class Row:
    """A row of the figure: an image, and a panel for each method.

    Attributes
    ----------
    image : (height, width, C) float32 array
        The image as the model sees it, 0..1; C is 1 or 3.
    label : str
        Name of the image's true class; of an image of the user's own, the file's name.
    group : str
        Name of the group of rows, written beside the group's middle.
    panels : sequence of Panel
        The panels, one for each method.
    """

    image: Array
    label: str
    group: str
    panels: Sequence[Panel]


def method_name(algorithm: str) -> str:
    """Return a method's name in figures and tables: ``P2P-FT`` for ``p2pft``."""
    return NAMES.get(algorithm, algorithm)


def draw_attention(
    rows: Sequence[Row], methods: Sequence[str], title: str, subtitle: str, file: Path
) -> None:
    """Draw a row for each image: the original, and for each method its heat map over the image.

    The maps of a row share one colour scale, from zero to the value that :data:`BRIGHTEST` of their patches
    exceed: a few patches without content often draw so much attention that all others would look alike.

    Parameters
    ----------
    rows : sequence of Row
        The figure's rows, at least one.
    methods : sequence of str
        Heads of the columns, in the order of each row's panels.
    title, subtitle : str
        The two texts above the figure.
    file : Path
        The file to write; its ending gives the format, ``.png`` or another one that matplotlib knows.
    """
    from matplotlib.figure import Figure

    words = [_below(panel) for row in rows for panel in row.panels] + [_wrapped(row.label) for row in rows]
    below = 0.16 + 0.13 * max(text.count("\n") + 1 for text in words)
    side, left, above = 1.75, 0.34, 0.86  # inches, as all lengths here
    width = left + (side + 0.1) * (len(methods) + 1) + 0.05
    height = above + (side + below) * len(rows)
    figure = Figure(figsize=(width, height))
    figure.text(left / width, 1 - 0.12 / height, title, fontsize=9, weight="bold", va="top", parse_math=False)
    figure.text(
        left / width,
        1 - 0.31 / height,
        textwrap.fill(subtitle, round((width - left - 1.9) * 18)),
        fontsize=7,
        va="top",
        color="#333333",
        parse_math=False,
    )
    scale = figure.add_axes(((width - 1.6) / width, 1 - 0.47 / height, 1.0 / width, 0.09 / height))
    scale.imshow(np.linspace(0, 1, 64)[None], cmap=COLOURS, aspect="auto")
    scale.set(xticks=[], yticks=[])
    begin = "attention: 0 " if _least(rows) == 0 else "cosine: least "
    scale.text(-2, 0, begin, fontsize=7, ha="right", va="center")
    scale.text(66, 0, f" top {BRIGHTEST:.0%}", fontsize=7, ha="left", va="center")
    previous = None
    for r, row in enumerate(rows):
        bottom = height - above - (side + below) * r - side
        top = float(np.quantile([panel.attention for panel in row.panels], 1 - BRIGHTEST))
        # Attention begins at 0, cosines may be below it.
        least = _least([row])
        top = max(top, least + float(np.finfo(np.float32).tiny))  # one patch may have all attention
        for c in range(len(methods) + 1):
            box = ((left + (side + 0.1) * c) / width, bottom / height, side / width, side / height)
            axis = figure.add_axes(box)
            axis.set(xticks=[], yticks=[])
            if r == 0:
                axis.set_title(["original", *methods][c], fontsize=9, pad=4)
            if c == 0:
                _original(axis, row)
            else:
                _panel(axis, row.image, row.panels[c - 1], least, top)
        if row.group != previous:
            same = sum(1 for other in rows if other.group == row.group)
            middle = bottom + side - ((side + below) * same - below) / 2
            figure.text(
                0.12 / width, middle / height, row.group, rotation=90, fontsize=8, ha="center", va="center"
            )
            previous = row.group
    figure.savefig(file, dpi=160)


def _original(axis: Any, row: Row) -> None:
    axis.imshow(row.image.squeeze(), cmap="gray", vmin=0, vmax=1)
    axis.set_xlabel(_wrapped(row.label), fontsize=7, labelpad=3, parse_math=False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _least(rows: Sequence[Row]) -> float:
    """Return where the colours begin: 0, or the least cosine."""
    return min(0.0, *(float(panel.attention.min()) for row in rows for panel in row.panels))


def _panel(axis: Any, image: Array, panel: Panel, least: float, top: float) -> None:
    grey = image.mean(axis=2)
    height, width = grey.shape
    axis.imshow(grey, cmap="gray", vmin=-0.15, vmax=1.15)
    # An image of H × W patches, stretched over the image; matplotlib interpolates between the patches.
    attention = np.minimum(panel.attention, top)
    axis.imshow(
        attention,
        cmap=COLOURS,
        vmin=least,
        vmax=top,
        alpha=0.3 + 0.4 * (attention - least) / (top - least),
        interpolation="bilinear",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )
    colour, line = {True: (RIGHT, "-"), False: (WRONG, (0, (3, 2))), None: (UNKNOWN, "-")}[panel.right]
    axis.set_xlabel(_below(panel), fontsize=7, color=colour, labelpad=3, parse_math=False)
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=1.6, linestyle=line)


def _below(panel: Panel) -> str:
    mark = {True: "✓ ", False: "✗ ", None: ""}[panel.right]
    text = _wrapped(f"{mark}{panel.label} ({panel.confidence:.2f})")
    return text if panel.correlation is None else f"{text}\nr = {panel.correlation:.2f}"


def _wrapped(text: str) -> str:
    return textwrap.fill(printable(text), 35)


_COLUMNS = (
    "method",
    "peer",
    "correlation, seen",
    "correlation, unseen",
    "top 20 %, seen",
    "top 20 %, unseen",
    "accuracy, seen",
    "accuracy, unseen",
)


def _rows(numbers: dict[str, Any]) -> list[list[str]]:
    rows = []
    for method in numbers["methods"]:
        few = len(method["peers"]) <= SHOWN_PEERS and method["algorithm"] not in ONE_FOR_ALL
        peers = method["peers"] if few else []
        for entry in [*peers, {"name": "all", **method["all"]}]:
            groups = [entry["seen"], entry["unseen"]]
            cells = [_spread(group and group[key]) for key in ("correlation", "overlap") for group in groups]
            accuracies = [number(group and group["accuracy"]) for group in groups]
            rows.append([method_name(method["algorithm"]), entry["name"], *cells, *accuracies])
    return rows


def _spread(value: dict[str, float] | None) -> str:
    return "–" if value is None else f"{value['mean']:.3f} ± {value['std']:.3f}"


def _note(numbers: dict[str, Any]) -> str:
    return (
        f"Likeness to the centralised run's maps, mean ± standard deviation over {numbers['test_images']} "
        f"test images, of classes that the peer holds (seen) and of others (unseen): Pearson's correlation "
        f"over {numbers['patches'][0]} × {numbers['patches'][1]} patches, and the share of the "
        f"{numbers['top_patches']} strongest patches both have in common (by chance "
        f"{numbers['top_patches'] / (numbers['patches'][0] * numbers['patches'][1]):.2f})."
    )


def attention_table(numbers: dict[str, Any]) -> str:
    """Return the numbers as a table for the terminal, or the reason why there are none.

    ``numbers`` is the content of the JSON file of ``p2pft attention``.
    """
    if numbers["reason"]:
        return f"no numbers: {numbers['reason']}"
    table = Table(title=numbers["title"], caption=_note(numbers), caption_justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in _rows(numbers):
        table.add_row(*row)
    return render(table)


def attention_markdown(numbers: dict[str, Any], figure: str) -> str:
    """Return a figure with its title and numbers as Markdown; ``figure`` is the name of the figure's file."""
    lines = [
        f"# {numbers['title']}",
        "",
        f"![{numbers['subtitle']}]({figure})",
        "",
        f"*{numbers['subtitle']}*",
    ]
    if numbers["reason"]:
        return "\n".join([*lines, "", f"No numbers: {numbers['reason']}."]) + "\n"
    lines += ["", _note(numbers), "", "| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in _rows(numbers))]) + "\n"
