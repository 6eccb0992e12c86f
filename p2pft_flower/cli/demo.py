"""``p2pft demo``: small experiments that show a point of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from p2pft_flower.algorithms import simulate
from p2pft_flower.cli.completion import complete_graphs
from p2pft_flower.topology import Graph

__all__ = ["app", "regression_problem"]

app = typer.Typer(help="Small experiments that show a point of the paper.", no_args_is_help=True)

Array = npt.NDArray[np.float64]

METHODS = ("p2pft", "dgd", "local")


def regression_problem(n: int, seed: int) -> tuple[list[Array], list[Array]]:
    """Return each peer's features, (40, 2) float64, and targets, (40,) float64, of a regression.

    Features are x and 1. Every peer sees a narrow stretch of x, where noise and curvature make the peer's own
    best line differ from the line that fits all stretches (the paper's Figure 2).
    """
    rng = np.random.default_rng(seed)
    features, targets = [], []
    for i in range(n):
        x = rng.uniform(-1 + 2 * i / n, -1 + 2 * (i + 1) / n, size=40)
        y = 0.8 * x + 0.7 * np.sin(3.0 * x + 0.5) + 0.1 * rng.normal(size=x.size)
        features.append(np.stack([x, np.ones_like(x)], axis=1))
        targets.append(y)
    return features, targets


@app.command()
def regression(
    topology: Annotated[
        str, typer.Option(help="A graph; every peer holds a stretch of x.", autocompletion=complete_graphs)
    ] = "lopsided-4",
    iterations: Annotated[int, typer.Option(min=1)] = 4000,
    alpha: Annotated[float, typer.Option(help="Learning rate.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    png: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("regression.png"),
) -> None:
    """Fit a line to data whose local and global solutions differ (the paper's Figure 2), and draw it."""
    from p2pft_flower.errors import P2PFTError

    try:
        graph = Graph.load(topology)
        features, targets = regression_problem(graph.n, seed)
        gradients = [
            lambda theta, X=X, y=y: X.T @ (X @ theta - y) / len(y)
            for X, y in zip(features, targets, strict=True)
        ]
        runs = {
            name: simulate(name, graph, gradients, np.zeros(2), alpha=alpha, iterations=iterations)
            for name in METHODS
        }
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    hessian = np.sum([X.T @ X / len(X) for X in features], axis=0)
    best: Array = np.linalg.solve(
        hessian, np.sum([X.T @ y / len(y) for X, y in zip(features, targets, strict=True)], axis=0)
    ).astype(np.float64)

    table = Table(
        "method", *(f"peer {i}: slope, offset" for i in range(graph.n)), "largest distance to the optimum"
    )
    for name, run in runs.items():
        distance = np.abs(run.theta - best).max()
        table.add_row(name, *(f"{t[0]:+.4f}, {t[1]:+.4f}" for t in run.theta), f"{distance:.1e}")
    console = Console()
    console.print(table)
    console.print(f"global least-squares line: slope {best[0]:+.4f}, offset {best[1]:+.4f}")
    try:
        _draw(graph, features, targets, {name: run.theta for name, run in runs.items()}, best, png)
    except (OSError, ValueError) as error:  # ValueError: matplotlib cannot write such a file
        typer.echo(f"error: --png {png}: {error}", err=True)
        raise typer.Exit(2) from None
    console.print(f"picture: {png}")


def _draw(
    graph: Graph,
    features: list[Array],
    targets: list[Array],
    thetas: dict[str, Array],
    best: Array,
    png: Path,
) -> None:
    from matplotlib.figure import Figure

    titles = {
        "local": "Local: each peer its own line",
        "dgd": "DGD: agreed, but not on the global line",
        "p2pft": "P2P-FT: every peer on the global line",
    }
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots(1, len(thetas), sharey=True)
    line = np.array([-1.0, 1.0])
    colours = [f"C{i % 10}" for i in range(graph.n)]
    for axis, name in zip(axes, ("local", "dgd", "p2pft"), strict=True):
        for i, (X, y, theta) in enumerate(zip(features, targets, thetas[name], strict=True)):
            axis.scatter(X[:, 0], y, s=9, color=colours[i], alpha=0.6)
            axis.plot(line, theta[0] * line + theta[1], color=colours[i], lw=1.6, label=f"peer {i}")
        axis.plot(line, best[0] * line + best[1], "k--", lw=1.4, label="global least squares")
        axis.set(title=titles[name], xlabel="x", xlim=(-1.05, 1.05), ylim=(-2.2, 2.2))
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("y")
    axes[-1].legend(fontsize=8)
    figure.suptitle(f"A distributed regression over {graph.name}: local and global solutions differ")
    figure.savefig(png, dpi=130)
