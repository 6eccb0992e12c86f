"""A picture of a graph, as PNG: directed arrows, peer names, weights. Needs no display.

An arrow j → i has the label ``w_ij`` if there are at most 24 edges and the weights differ. An undirected
graph of at most 128 peers is laid out by distances unless all peers have the same degree; all other graphs
are laid out on a circle, clockwise from the top.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import shortest_path

from p2pft_flower.topology.graph import Graph

if TYPE_CHECKING:  # matplotlib takes a second to import, and only drawing needs it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "figure_of"]

Points = npt.NDArray[np.float64]

_INK, _EDGE, _PEER = "#1f2933", "#7b8794", "#dbeafe"
_RIM = "#2563eb"
_MARGIN = 0.32
_WIDE = 2.0 + 2 * _MARGIN
"""Width of the axes in units of the layout, whose points lie within -1 and 1."""
_BEND = 0.16
"""Bend of an arrow, as a share of its length: separates j → i from i → j."""


def draw(graph: Graph, path: str | Path) -> None:
    """Draw ``graph`` into the PNG file ``path``.

    Parameters
    ----------
    graph : Graph
        The graph.
    path : str or Path
        The file to write or overwrite; PNG, whatever its suffix.

    Raises
    ------
    OSError
        When the file cannot be written.
    """
    figure_of(graph).savefig(path, format="png")


def figure_of(graph: Graph) -> Figure:
    """Return ``graph`` as matplotlib's figure."""
    from matplotlib.figure import Figure

    points = _layout(graph)
    tall = max(1.0, float(np.ptp(points[:, 1])) + 2 * _MARGIN)
    # Inches: room grows with the number of peers, so that names stay readable; a line needs no square.
    side = 5.0 + 0.16 * min(60, max(0, graph.n - 6))
    header = 0.7
    height = side * tall / _WIDE + header
    figure = Figure(figsize=(side, height), dpi=160, facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0 - header / height))
    axes.set_axis_off()
    axes.set_xlim(-_WIDE / 2, _WIDE / 2)
    middle = float(points[:, 1].max() + points[:, 1].min()) / 2
    axes.set_ylim(middle - tall / 2, middle + tall / 2)
    kind = "undirected" if graph.undirected else "directed"
    balance = "doubly stochastic" if graph.doubly_stochastic else "not doubly stochastic"
    weights = graph.W[graph.W > 0]
    same = f", every weight {weights[0]:g}" if np.all(weights == weights[0]) else ""
    facts = f"{kind}, {balance}, spectral gap {graph.spectral_gap:.3f}{same}"
    for inches, text, size, color in ((0.18, graph.name, 13, _INK), (0.5, facts, 8.5, _EDGE)):
        figure.text(
            0.5,
            1.0 - inches / height,
            text,
            fontsize=size,
            color=color,
            ha="center",
            va="top",
            parse_math=False,
        )
    radius = _peer_radius(points)
    _draw_edges(axes, graph, points, radius)
    _draw_peers(axes, graph, points, radius)
    return figure


def _layout(graph: Graph) -> Points:
    """Return the peers' positions, (n, 2), each coordinate within -1 and 1."""
    n = graph.n
    angle = np.pi / 2 - 2 * np.pi * np.arange(n) / n
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) if n > 1 else np.zeros((1, 2))
    degrees = {len(graph.out_neighbours(i)) for i in range(n)}
    # If all degrees agree (rings, complete), a circle shows it; a star, line or grid shows its own shape.
    if not graph.undirected or len(degrees) == 1 or n > 128:
        return circle
    edges = nx.Graph(graph.edges)
    steps = np.array(shortest_path(nx.to_numpy_array(edges, nodelist=range(n)), unweighted=True))
    # Classical scaling of the distances unfolds a grid; a small share of the circle separates coinciding
    # points (a star's rays); Kamada and Kawai then even out the lengths.
    centre = np.eye(n) - 1.0 / n
    values, vectors = np.linalg.eigh(-0.5 * centre @ steps**2 @ centre)
    start = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0.0)) + 0.2 * circle
    placed = nx.kamada_kawai_layout(edges, pos=dict(enumerate(start)))
    points: Points = np.array([placed[i] for i in range(n)], dtype=np.float64)
    points -= points.mean(axis=0)
    # Turn the widest direction level and put peer 0 to the upper left, as people read.
    points = points @ np.linalg.svd(points, full_matrices=False)[2].T
    points *= np.where(points[0] * np.array([-1.0, 1.0]) < 0, -1.0, 1.0)
    points -= (points.max(axis=0) + points.min(axis=0)) / 2
    points /= max(float(np.abs(points).max()), 1e-9)
    return points


def _peer_radius(points: Points) -> float:
    if len(points) == 1:
        return 0.3
    distance = np.linalg.norm(points[:, None] - points[None, :], axis=2)
    np.fill_diagonal(distance, np.inf)
    return float(min(0.2, 0.3 * distance.min()))


def _draw_edges(axes: Axes, graph: Graph, points: Points, radius: float) -> None:
    from matplotlib.patches import FancyArrowPatch

    weights = graph.W[graph.W > 0]
    # Labels only if they are legible and say more than "all are 1".
    labels = len(graph.edges) <= 24 and not np.all(weights == weights[0])
    head, width, opacity = (15, 1.4, 1.0) if len(graph.edges) <= 64 else (8, 0.6, 0.8)
    if len(graph.edges) > 500:
        head, width, opacity = 4, 0.3, 0.4
    for j, i in graph.edges:
        start, end = points[j], points[i]
        bend = _BEND if graph.W[j, i] > 0 or not _clear(points, j, i, radius) else 0.0
        shift = _outline(start, end, bend, radius)
        axes.add_patch(
            FancyArrowPatch(
                tuple(shift[0]), tuple(shift[1]), connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>",
                mutation_scale=head, linewidth=width, alpha=opacity, color=_EDGE,
                shrinkA=0, shrinkB=0, zorder=1,
            )
        )  # fmt: skip
        if labels:
            # 0.4 of the way: on crossing edges of equal length the labels do not meet in the middle
            x, y = _along(shift[0], shift[1], bend, 0.4)
            axes.text(
                x, y, f"{graph.W[i, j]:.3g}", fontsize=10, color=_INK, ha="center", va="center", zorder=2,
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"},
            )  # fmt: skip


def _clear(points: Points, j: int, i: int, radius: float) -> bool:
    """Return whether the straight line j - i keeps clear of all other peers' discs."""
    a, b = points[j], points[i]
    t = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    away = np.linalg.norm(points - (a + t[:, None] * (b - a)), axis=1)
    away[[i, j]] = np.inf
    return bool(away.min() > 1.2 * radius)


def _control(start: Points, end: Points, bend: float) -> Points:
    d = end - start
    return (start + end) / 2 + bend * np.array([d[1], -d[0]])  # arc3 of matplotlib


def _along(start: Points, end: Points, bend: float, t: float) -> tuple[float, float]:
    p = (1 - t) ** 2 * start + 2 * t * (1 - t) * _control(start, end, bend) + t**2 * end
    return float(p[0]), float(p[1])


def _outline(start: Points, end: Points, bend: float, radius: float) -> tuple[Points, Points]:
    """Return the points at which the arrow leaves one peer's disc and meets the other's."""
    control = _control(start, end, bend)
    out, back = control - start, control - end
    gap = radius * 1.06
    return start + gap * out / math.hypot(*out), end + gap * back / math.hypot(*back)


def _draw_peers(axes: Axes, graph: Graph, points: Points, radius: float) -> None:
    from matplotlib.patches import Circle

    own = graph.W.diagonal()
    show_own = graph.n <= 12 and not np.all(own == own[0])
    unit = axes.bbox.width / axes.figure.dpi * 72 / _WIDE  # points of type in one unit of the layout
    for i, name in enumerate(graph.peer_names):
        x, y = float(points[i, 0]), float(points[i, 1])
        axes.add_patch(Circle((x, y), radius, facecolor=_PEER, edgecolor=_RIM, linewidth=1.4, zorder=3))
        fits = len(name) <= 9
        shown = name if fits else str(i)
        size = min(13.0, 1.7 * radius * unit / (0.62 * max(len(shown), 2)))
        note = f"\nself {own[i]:.3g}" if show_own else ""
        axes.text(
            x, y, shown + note, fontsize=size * (0.8 if note else 1.0), color=_INK, ha="center", va="center",
            zorder=4, parse_math=False,
        )  # fmt: skip
        if not fits and graph.n <= 32:  # a long name stands beside its peer's number, outside
            beside = name if len(name) <= 24 else name[:23] + "…"
            side = 1.0 if y > 0.3 else -1.0
            axes.text(
                x, y + side * 1.15 * radius, beside, fontsize=9, color=_INK, zorder=4, parse_math=False,
                ha="center", va="bottom" if side > 0 else "top",
                bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            )  # fmt: skip
