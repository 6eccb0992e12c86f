"""Check that every exact method × codec × schedule of weights reaches the optimum, on random directed graphs.

The problems are quadratics with full gradients, whose optimum is known in closed form. A run is exact if at
the end no number of any peer is further than 1e-8 from the optimum, and Σ τ = Σ g within 1e-9 after every
iteration. The learning rate with which a run converges differs by method, graph and codec: the largest one of
a list that does is taken. A run that converges with none of the list, or is not exact, is named.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from p2pft_flower.algorithms import simulate
from p2pft_flower.errors import TopologyError
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import scheduled

NEAR, KEPT = 1e-8, 1e-9
"""The distance from the optimum, and the largest number in Σ τ − Σ g, below which a run is exact."""

Q = 5
"""Numbers in θ (q)."""

METHODS: dict[str, dict[str, Any]] = {
    "p2pft": {"algorithm": "p2pft"},
    "p2pft, 4 local steps": {"algorithm": "p2pft", "options": "local-steps=4"},
    "p2pft, 8 local steps": {"algorithm": "p2pft", "options": "local-steps=8"},
    "p2pft, pipelined": {"algorithm": "p2pft", "pipelined": True},
    "p2pft, pipelined, 4 local steps": {
        "algorithm": "p2pft",
        "options": "local-steps=4",
        "pipelined": True,
    },
    "push-diging": {"algorithm": "push-diging"},
    "momentum-tracking": {"algorithm": "momentum-tracking"},
    "gt-dgd": {"algorithm": "gt-dgd"},
    "exact-diffusion": {"algorithm": "exact-diffusion"},
}
CODECS = ("none", "float16", "bfloat16", "int8", "q4", "q3", "topk:0.4")
SCHEDULES = ("static", "in turn", "one-peer-exponential", "base:1")
ALPHAS = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005)
"""Learning rates, the largest first."""


class Case(NamedTuple):
    """One combination of method, codec and schedule of weights on the random graph of a seed."""

    method: str
    codec: str
    schedule: str
    seed: int


class Found(NamedTuple):
    """The outcome of a case.

    ``error`` is the largest distance of a peer's number from the optimum, ``gap`` the largest number in
    Σ τ − Σ g (0 for a method without trackers), ``alpha`` the learning rate (0 if the method refuses the
    graph).
    """

    case: Case
    error: float
    gap: float
    alpha: float


class ReachedError(Exception):
    """The run has reached the optimum, or diverged, and needs no further iteration."""


def graph_of(seed: int, schedule: str, *, symmetric: bool) -> Graph:
    """Return the graph of a case, whose random weights are unbalanced, or symmetric if a method needs it."""
    rng, n = np.random.default_rng(seed), 3 + seed % 5
    W = np.diag(rng.uniform(0.1, 2, n))
    for i in range(n):
        W[(i + 1) % n, i] = rng.uniform(0.1, 3)
    extra = (rng.random((n, n)) < 0.3) & (W == 0)
    W[extra] = rng.uniform(0.1, 3, extra.sum())
    if symmetric:  # I − L / (2 d): rows and columns sum to 1
        links = (W + W.T > 0) & ~np.eye(n, dtype=bool)
        L = np.diag(links.sum(axis=1)) - links.astype(float)
        W = np.eye(n) - L / (2 * links.sum(axis=1).max())
    graph = Graph.from_weights(W)
    if schedule != "in turn":
        return scheduled(graph, schedule)
    turns = [np.diag(np.diag(W)) for _ in range(3)]
    for j, i in graph.edges:
        turns[rng.integers(3)][i, j] = W[i, j]
    return graph.in_turn(turns, "edges in turn")


def run(case: Case, iterations: int) -> Found:
    """Run a case with one learning rate after the other until it reaches the optimum; return the outcome."""
    chosen = dict(METHODS[case.method])
    algorithm = chosen.pop("algorithm")
    graph = graph_of(case.seed, case.schedule, symmetric=algorithm in ("gt-dgd", "exact-diffusion"))
    rng = np.random.default_rng(case.seed)
    M = rng.normal(size=(graph.n, Q, Q)) / np.sqrt(Q)
    H, c = 0.5 * np.eye(Q) + M @ M.transpose(0, 2, 1), 3 * rng.normal(size=(graph.n, Q))
    best = np.linalg.solve(H.sum(axis=0), np.einsum("iab,ib->a", H, c))
    gradients = [lambda t, H=H_i, c=c_i: H @ (t - c) for H_i, c_i in zip(H, c, strict=True)]
    error = gap = np.inf
    for alpha in ALPHAS:
        error, gap = np.inf, 0.0

        def look(k: int, states: Sequence[Any]) -> None:
            nonlocal error, gap
            if hasattr(states[0], "tau"):
                lost = sum(s.tau - s.grad for s in states)
                gap = max(gap, float(np.abs(lost).max()))
            if k % 50 == 0:
                error = max(float(np.abs(s.theta - best).max()) for s in states)
                if not NEAR <= error < 1e6:  # there, or gone for good
                    raise ReachedError

        try:
            with np.errstate(all="ignore"):
                simulate(
                    algorithm,
                    graph,
                    gradients,
                    np.zeros(Q),
                    alpha=alpha,
                    iterations=iterations,
                    codec=case.codec,
                    callback=look,
                    **chosen,
                )
        except ReachedError:
            pass
        except TopologyError:
            return Found(case, 0.0, 0.0, 0.0)
        if error < NEAR:
            return Found(case, error, gap, alpha)
    return Found(case, error, gap, ALPHAS[-1])


def table_of(found: Sequence[Found]) -> Table:
    """Return the numbers of exact runs of each method and codec, and the smallest learning rate of these."""
    cells: dict[tuple[str, str], list[Found]] = defaultdict(list)
    for one in found:
        if one.alpha:
            cells[one.case.method, one.case.codec].append(one)
    table = Table("method", *CODECS, title="exact runs of all, and their smallest learning rate")
    for method in METHODS:
        row = []
        for codec in CODECS:
            ran = cells[method, codec]
            exact = [one for one in ran if one.error < NEAR and one.gap < KEPT]
            row.append(f"{len(exact)} of {len(ran)}, {min((one.alpha for one in exact), default=np.nan):g}")
        table.add_row(method, *row)
    return table


def main(
    graphs: Annotated[int, typer.Option(min=1, help="Random graphs of each combination.")] = 10,
    iterations: Annotated[int, typer.Option(min=50, help="Most iterations of a run.")] = 6000,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share the runs.")] = 2,
) -> None:
    """Print how many runs of each combination reached the optimum; exit with 1 if one did not."""
    console = Console()
    seeds = range(graphs)
    cases = [Case(*parts) for parts in itertools.product(METHODS, CODECS, SCHEDULES, seeds)]
    with ProcessPoolExecutor(processes) as pool:
        running = pool.map(run, cases, itertools.repeat(iterations), chunksize=4)
        found = list(track(running, "runs", len(cases), console=console))
    console.print(table_of(found))
    wrong = [one for one in found if one.alpha and not (one.error < NEAR and one.gap < KEPT)]
    for one in wrong:
        console.print(f"not exact: {one.case}: {one.error:.3g} off, Σ τ − Σ g up to {one.gap:.3g}")
    refused = sorted({(one.case.method, one.case.schedule) for one in found if not one.alpha})
    for method, schedule in refused:
        console.print(f"refused: {method} on weights {schedule}")
    if wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
