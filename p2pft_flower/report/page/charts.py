"""Charts as SVG that takes its colours from the page: light and dark, with a title and a description.

matplotlib draws them. Its colours are placeholders, which become CSS variables of the page
(:func:`_in_the_pages_colours`), and its ids get a prefix, so that many charts can stand in one page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from p2pft_flower.topology import Graph

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Axis",
    "Band",
    "Chart",
    "Lane",
    "bars",
    "curves",
    "graph_chart",
    "heat",
    "lanes",
]

INK, FAINT, PAPER = "#0a0c01", "#0a0c02", "#0a0c03"
"""Placeholders for the page's text, lines and ground."""

MOST_POINTS = 240
"""A curve has at most so many points; of more, evenly spaced ones are drawn, with the first and the last."""

MOST_EDGES = 500
"""A graph with more edges is shown as its matrix of weights."""

LEVEL = 24
"""A chart of at most so many bars has level ones, each with its name."""

NUMBERED = 12
"""A heat map of at most so many rows and columns has its numbers in the cells."""

DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (9, 3)),
    (0, (3, 1, 1, 1)),
)
"""Patterns of lines, which tell methods apart without colours."""

COLOURS = 8
"""Number of the page's colours for methods, ``--c0`` to ``--c7``."""

_DRAWN = {
    "#1f2933": "--ink",
    "#7b8794": "--faint",
    "#dbeafe": "--peer",
    "#2563eb": "--c0",
    "#ffffff": "--paper",
}
"""Colours of ``topology.draw``, and the page's in their place."""

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_PLACEHOLDER = re.compile(r"#0a0([bc])([0-9a-f]{2})", re.IGNORECASE)
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True)
class Chart:
    """A chart for the page.

    Attributes
    ----------
    key : str
        The chart's own name among all of the page; it begins all its ids.
    title : str
        Its heading.
    description : str
        The words for a reader who does not see it.
    svg : str
        The SVG element.
    wide : bool
        Whether it needs the whole width of the page.
    """

    key: str
    title: str
    description: str
    svg: str
    wide: bool = False


@dataclass(frozen=True)
class Band:
    """One curve of a chart: a line, and if there are ``low`` and ``high`` the band between them.

    ``colour`` counts the page's colours; curves with the same one are told apart by their dashes.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: int = 0
    dash: int = 0


@dataclass(frozen=True)
class Axis:
    """One panel of curves: labels of its axes, its curves, and the places of vertical marks.

    Points that are not above zero are left out of logarithmic axes.
    """

    x: str
    y: str
    bands: Sequence[Band]
    log: bool = False
    log_x: bool = False
    share: bool = False
    marks: Sequence[float] = field(default_factory=tuple)


@dataclass(frozen=True)
class Lane:
    """A peer's time in a run: stretches ``(begin, end)`` in which it took part, and why it was away."""

    label: str
    stretches: Sequence[tuple[float, float]]


def _colour(number: int) -> str:
    return f"#0a0b{number % COLOURS:02x}"


def _in_the_pages_colours(style: str) -> str:
    def variable(found: re.Match[str]) -> str:
        number = int(found[2], 16)
        name = f"--c{number}" if found[1].lower() == "b" else {1: "--ink", 2: "--faint", 3: "--paper"}[number]
        return f"var({name})"

    style = _PLACEHOLDER.sub(variable, style)
    for drawn, name in _DRAWN.items():
        style = style.replace(drawn, f"var({name})")
    return style


def _chart(
    key: str, title: str, description: str, size: tuple[float, float], draw: Callable[[Figure], None]
) -> Chart:
    """Return what ``draw`` draws into an empty figure of ``size`` inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": key,
            "font.size": 10,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": FAINT,
            "axes.facecolor": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "xtick.color": FAINT,
            "ytick.color": FAINT,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "grid.color": FAINT,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "text.parse_math": False,
            "axes.unicode_minus": True,
        }
    ):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        draw(figure)
        svg = _svg(figure, key, title, description)
    return Chart(key, title, description, svg, wide=size[0] > 8)


def _svg(figure: Figure, key: str, title: str, description: str) -> str:
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314 - matplotlib has just written it
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.removeprefix(_SVG) == "metadata":
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        attributes = dict(element.attrib)
        element.attrib.clear()
        for name, value in attributes.items():
            kept = _REFERENCE.sub(rf"url(#{key}-\1)", _in_the_pages_colours(value))
            plain = name.removeprefix(_LINK)
            if plain == "id":
                kept = f"{key}-{value}"
            elif plain == "href" and value.startswith("#"):
                kept = f"#{key}-{value[1:]}"
            element.set(plain, kept)
        if element.text:
            element.text = _in_the_pages_colours(element.text) if element.tag == "style" else element.text
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title {key}-words")
    root.set("class", "chart")
    root.set("style", f"max-width: {96 * figure.get_figwidth():.0f}px")
    for place, (tag, words) in enumerate((("title", title), ("desc", description))):
        told = ElementTree.Element(tag, {"id": f"{key}-{'title' if tag == 'title' else 'words'}"})
        told.text = words
        root.insert(place, told)
    return ElementTree.tostring(root, encoding="unicode")


def _thinned(band: Band) -> Band:
    count = len(band.x)
    if count <= MOST_POINTS:
        return band
    kept = np.unique(np.linspace(0, count - 1, MOST_POINTS).round().astype(int)).tolist()

    def some(values: Sequence[float]) -> list[float]:
        return [values[k] for k in kept] if values else []

    return Band(
        band.label, some(band.x), some(band.y), some(band.low), some(band.high), band.colour, band.dash
    )


def curves(key: str, title: str, description: str, axes: Sequence[Axis]) -> Chart:
    """Draw panels of curves side by side, with one legend for all."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(axes), squeeze=False)[0]
        for panel, axis in zip(panels, axes, strict=True):
            _draw_curves(panel, axis)
        handles, labels = dict[str, Any](), list[str]()
        for panel in panels:
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        labels = list(handles)
        if len(labels) > 1 or labels:
            figure.legend(handles.values(), labels, loc="outside lower center", ncols=min(6, len(labels)))

    wide = {1: 7.2, 2: 9.0}.get(len(axes), 11.0)
    return _chart(key, title, description, (wide, 3.7), draw)


def _draw_curves(panel: Axes, axis: Axis) -> None:
    for band in map(_thinned, axis.bands):
        y = [value if value > 0 or not axis.log else float("nan") for value in band.y]
        colour = _colour(band.colour)
        marker = "o" if len(band.x) == 1 else None
        x = [value if value > 0 or not axis.log_x else float("nan") for value in band.x]
        panel.plot(
            x, y, color=colour, lw=1.7, ls=DASHES[band.dash % len(DASHES)], label=band.label,
            marker=marker, markersize=4,
        )  # fmt: skip
        if band.low:
            panel.fill_between(x, band.low, band.high, color=colour, alpha=0.16, lw=0)
    for mark in axis.marks:
        panel.axvline(mark, color=FAINT, lw=1, ls=(0, (3, 3)))
    panel.set_xlabel(axis.x)
    panel.set_title(axis.y, loc="left")
    for wanted, side in ((axis.log, "y"), (axis.log_x, "x")):
        if wanted and any(value > 0 for band in axis.bands for value in getattr(band, side)):
            _logarithmic(panel, side)
    if axis.share:
        panel.set_ylim(-0.02, 1.02)
    panel.grid(visible=True)


def _logarithmic(panel: Axes, side: str) -> None:
    """Make the axis ``"x"`` or ``"y"`` logarithmic, with plain numbers: matplotlib's own are mathematics."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis = panel.xaxis if side == "x" else panel.yaxis
    (panel.set_xscale if side == "x" else panel.set_yscale)("log")
    axis.set_major_locator(LogLocator(numticks=8))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def bars(
    key: str,
    title: str,
    description: str,
    names: Sequence[str],
    parts: Sequence[tuple[str, Sequence[float]]],
    label: str,
) -> Chart:
    """Draw one bar for each name, level if there are few; it is stacked of ``parts``, a label and numbers."""
    many = len(names) > LEVEL

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        places, before = np.arange(len(names)), np.zeros(len(names))
        for number, (part, values) in enumerate(parts):
            sizes, colour = np.asarray(values, dtype=np.float64), _colour(number)
            if many:
                axis.bar(places, sizes, bottom=before, color=colour, label=part, width=0.75)
            else:
                axis.barh(places, sizes, left=before, color=colour, label=part, height=0.75)
            before = before + sizes
        if many:
            shown = range(0, len(names), -(-len(names) // LEVEL))
            axis.set_xticks(list(shown), [_short(names[k], 10) for k in shown], rotation=90)
            axis.set_title(label, loc="left")
        else:
            axis.set_yticks(places, [_short(name) for name in names])
            axis.invert_yaxis()
            axis.set_xlabel(label)
        axis.grid(visible=True, axis="y" if many else "x")
        axis.set_axisbelow(True)
        if len(parts) > 1:
            figure.legend(loc="outside lower center", ncols=len(parts))

    size = (11.0, 3.2) if many else (7.2, 1.4 + 0.26 * max(3, len(names)))
    return _chart(key, title, description, size, draw)


def heat(
    key: str,
    title: str,
    description: str,
    values: npt.NDArray[np.float64],
    names: tuple[Sequence[str], Sequence[str]],
    labels: tuple[str, str],
    *,
    marked: npt.NDArray[np.bool_] | None = None,
    form: str = ".2f",
) -> Chart:
    """Draw a table of numbers from 0 to 1 as shades; NaN is empty.

    Parameters
    ----------
    key, title, description : str
        As in :class:`Chart`.
    values : (R, C) array
        The numbers.
    names : (sequence of str, sequence of str)
        Names of the rows and of the columns.
    labels : (str, str)
        Labels of the vertical and of the horizontal axis.
    marked : (R, C) bool array, optional
        Cells that get a dot.
    form : str
        Format of the numbers, which stand in the cells of a small table; empty: no numbers.
    """
    rows, columns = values.shape

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        shades = np.zeros((rows, columns, 4), dtype=np.uint8)
        shades[..., :3] = (52, 120, 200)  # seen on white and on black alike
        shades[..., 3] = np.nan_to_num(np.clip(values, 0, 1) * 190).astype(np.uint8)
        axis.imshow(shades, interpolation="none", aspect="auto")
        for number, (ticks, shown) in enumerate(((axis.set_yticks, names[0]), (axis.set_xticks, names[1]))):
            step = max(1, -(-len(shown) // (32 if number else 40)))
            places = range(0, len(shown), step)
            long = number and max(map(len, shown), default=0) > 3
            ticks(list(places), [_short(shown[k]) for k in places], rotation=90 if long else 0)
        axis.set(ylabel=labels[0], xlabel=labels[1])
        axis.tick_params(length=0)
        if max(rows, columns) <= NUMBERED:
            for r in range(rows):
                for c in range(columns):
                    if form and not np.isnan(values[r, c]):
                        dot = "•" if marked is not None and marked[r, c] else ""
                        shown = f"{values[r, c]:{form}}" if values[r, c] else "0"
                        axis.text(
                            c, r, f"{shown}{dot}", ha="center", va="center", fontsize=8, in_layout=False
                        )
        elif marked is not None:
            across, down = np.nonzero(marked)[::-1]
            axis.plot(
                across, down, ls="", marker=".", color=INK, markersize=3 if rows * columns < 2000 else 1.2
            )

    wide = 2.2 + min(6.5, max(2.6, 0.45 * columns))
    tall = 1.2 + min(6.0, max(1.2, (0.34 if rows <= NUMBERED else 0.16) * rows))
    return _chart(key, title, description, (wide, tall), draw)


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def graph_chart(key: str, title: str, description: str, graph: Graph) -> Chart:
    """Draw a graph with its weights; one with many edges as its matrix of weights."""
    if len(graph.edges) > MOST_EDGES:
        return heat(
            key, title, description, graph.W / graph.W.max(), (graph.peer_names, graph.peer_names),
            ("receiver", "sender"), form=".2g",
        )  # fmt: skip
    import matplotlib

    from p2pft_flower.topology.draw import figure_of

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "text.parse_math": False}):
        figure = figure_of(graph)
        figure.set_facecolor("none")
        wide = bool(figure.get_figwidth() > 7)
        return Chart(key, title, description, _svg(figure, key, title, description), wide)


def lanes(
    key: str, title: str, description: str, peers: Sequence[Lane], marks: Sequence[tuple[float, str]],
    label: str,
) -> Chart:  # fmt: skip
    """Draw each peer's time in a run as a bar, with gaps while it was away, and marks where views changed."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for place, lane in enumerate(peers):
            axis.broken_barh(
                [(begin, end - begin) for begin, end in lane.stretches],
                (place - 0.36, 0.72),
                color=_colour(0),
            )
        step = max(1, -(-len(peers) // 40))
        places = range(0, len(peers), step)
        axis.set_yticks(list(places), [_short(peers[k].label) for k in places])
        axis.invert_yaxis()
        top = -0.5 - 0.02 * len(peers)
        for at, words in marks:
            axis.axvline(at, color=_colour(1), lw=1.3, ls=(0, (4, 2)))
            axis.text(at, top, words, fontsize=8, ha="center", va="bottom")
        axis.set(xlabel=label, xlim=(0, None))
        axis.grid(visible=True, axis="x")

    tall = 0.28 if len(peers) <= 24 else 0.12
    return _chart(key, title, description, (9.0, 1.5 + tall * max(3, len(peers))), draw)
