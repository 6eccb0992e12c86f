"""Measure p2pft with the peers of a host in one (m, q) array, beside a vector each.

Both ways run the same method's step on the same graph in memory, with gradients that cost next to nothing,
and mix by the same sums in the same order, so their bits are the same. They take turns; printed is the median
time of an iteration, the smaller of two rounds. From the repository's root::

    python -m benchmarks.one_array
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from p2pft_flower.algorithms.p2pft import P2PFT
from p2pft_flower.algorithms.seam import Mix, Vector, combine, lockstep
from p2pft_flower.algorithms.simulation import mix_in_memory
from p2pft_flower.topology import Graph

CASES = (
    ("directed-ring:256", 10_000),
    ("directed-ring:64", 50_762),
    ("directed-ring:16", 447_178),
    ("directed-ring:4", 1_800_000),
)
"""Graph and numbers of a vector: small models on many peers to ViT-Base's last block on four."""

METHOD = P2PFT(alpha=lambda _: 0.01)

Round = Callable[[Graph, npt.NDArray[np.float32], int], tuple[float, npt.NDArray[np.float32]]]


def gradient(theta: Vector) -> Vector:
    """Return the gradient of ‖θ‖² / 4."""
    return theta * np.float32(0.5)


def vectors(
    graph: Graph, theta: npt.NDArray[np.float32], number: int
) -> tuple[float, npt.NDArray[np.float32]]:
    """Return the median seconds of an iteration with a vector a peer, and the peers' last θ, (n, q)."""
    turn, outbox, seconds = graph.turn(0), {}, []
    states: dict[int, Any] = {i: METHOD.start(row.copy(), gradient) for i, row in enumerate(theta)}

    def send(_: int, asked: Mapping[int, Mix]) -> None:
        outbox["asked"] = asked

    for k in range(number):
        begin = time.perf_counter()
        steps = {i: METHOD.step(k, state, gradient) for i, state in states.items()}
        states = lockstep(steps, send, lambda _: mix_in_memory(turn, outbox["asked"]), len(METHOD.phases))
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), np.stack([states[i].theta for i in range(graph.n)])


def one_array(
    graph: Graph, theta: npt.NDArray[np.float32], number: int
) -> tuple[float, npt.NDArray[np.float32]]:
    """Return the same of one array for all peers, mixed row by row."""
    turn, seconds = graph.turn(0), []
    state: Any = METHOD.start(theta.copy(), gradient)

    def mixed(asked: Any) -> Vector:
        rows = asked.vector
        result: Vector = np.empty_like(rows)
        for i in range(graph.n):
            terms = ((turn.A[i, j], turn.B[i, j], rows[j]) for j in turn.senders(i))
            result[i] = combine(type(asked), terms)
        return result

    for k in range(number):
        begin = time.perf_counter()
        step, answer = METHOD.step(k, state, gradient), None
        try:
            while True:
                answer = mixed(step.send(answer))
        except StopIteration as stop:
            state = stop.value
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), state.theta


def main(
    iterations: Annotated[int, typer.Option(help="Iterations of each round.", min=1)] = 10,
) -> None:
    """Measure each case."""
    table = Table("graph", "q", "a vector a peer, ms", "one array, ms", "ratio")
    for name, q in CASES:
        graph = Graph.load(name)
        theta = np.random.default_rng(0).normal(size=(graph.n, q)).astype(np.float32)
        found: dict[Round, list[float]] = {vectors: [], one_array: []}
        for _ in range(2):
            ends = []
            for way, times in found.items():
                seconds, end = way(graph, theta, iterations)
                times.append(seconds)
                ends.append(end)
            if not np.array_equal(ends[0], ends[1]):
                raise RuntimeError(f"{name}: the two ways differ")
        apart, together = (1e3 * min(times) for times in found.values())
        table.add_row(name, f"{q:,}", f"{apart:.1f}", f"{together:.1f}", f"{together / apart:.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
