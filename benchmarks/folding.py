"""Measure the cost of dealing the peers of one machine out to several hosts: an iteration on one and on more.

The hosts are processes, and reach each other over Unix sockets, as in a simulation. Peers train quadratics,
whose gradients cost next to nothing (`--gradient` lets each take longer), so that the time is that of the
exchange: on one host in memory, on several between processes. Runs take turns, and θ is compared bit for bit.

*Computed* are the seconds that all hosts together computed, the kernel's work for them included. If the
machine is busy, compare the seconds computed rather than the seconds that passed.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from p2pft_flower.algorithms.codecs import make_codec
from p2pft_flower.algorithms.compression import codec_step
from p2pft_flower.config import RunConfig
from p2pft_flower.host.host import Host
from p2pft_flower.plan import Neighbourhood, Plan, greetings, terms_digest
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View
from p2pft_flower.transport import unix_address

PATIENCE = 600.0
"""Seconds that a run may take before it counts as failed."""

WARM_UP = 5
"""Iterations that are not counted."""

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """The scores of a peer's evaluation, all zero: nothing is scored here."""

    loss: float = 0.0
    accuracy: float = 0.0
    accuracy_unseen: float | None = None
    accuracy_seen: float | None = None


class Peer:
    """One peer's objective, with ∇L_i(θ) = θ − c_i; ``seconds`` is the time that a gradient computes."""

    def __init__(self, peer: int, q: int, seconds: float) -> None:
        self.seconds = seconds
        self.minimiser = np.random.default_rng(peer).standard_normal(q, dtype=np.float32)
        self.drawn = 0
        self.marks: list[tuple[float, float]] = []
        """(clock, seconds computed by this process) at the beginning of each gradient."""
        self.last: Vector | None = None

    def gradient(self, theta: Vector) -> Vector:
        """Note the time, and return the gradient, (q,) float32."""
        self.marks.append((time.perf_counter(), time.process_time()))
        self.drawn += 1
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return theta - self.minimiser

    def evaluate(self, theta: Vector) -> Score:
        """Keep θ, and return scores of zero."""
        self.last = theta.copy()
        return Score()

    def privacy_spent(self) -> None:
        """Return None: gradients are exact."""

    def position(self) -> Any:
        """Return a function that returns the position: the number of gradients drawn."""
        return lambda drawn=self.drawn: {"drawn": drawn}

    def go_to(self, position: dict[str, int], lost: int) -> None:  # noqa: ARG002 - as the protocol has it
        """Go back to a position."""
        self.drawn = position["drawn"]


class Quadratics:
    """The peers' problem, as a host sees it (`p2pft_flower.host.problem`)."""

    model_digest = "quadratics"

    def __init__(self, q: int, seconds: float) -> None:
        self.seconds = seconds
        self.theta0 = np.zeros(q, np.float32)
        self.model_parameters = q
        self.built: dict[int, Peer] = {}

    def objectives(self, peers: Sequence[int], progress: Any) -> dict[int, Any]:  # noqa: ARG002
        """Return new objectives of ``peers``, and keep them."""
        new = {p: Peer(p, self.theta0.size, self.seconds) for p in peers}
        self.built |= new
        return new

    def named_tail(self, theta: Vector) -> dict[str, Vector]:
        """Return θ by name."""
        return {"theta": theta}

    def metadata(self) -> dict[str, str]:
        """Return the metadata of a tail's file."""
        return {"schema": "benchmark"}


def host(pipe: Connection, text: str, q: int, gradient: float) -> None:
    """Run one host, and send its first peer's marks and a digest of each peer's θ through ``pipe``."""
    problem = Quadratics(q, gradient)
    Host(Plan.from_json(text), problem).run()
    thetas = {p: peer.last for p, peer in problem.built.items()}
    digests = {p: hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest() for p, x in thetas.items()}
    pipe.send((problem.built[min(problem.built)].marks, digests))


def plans(folder: Path, graph: Graph, hosts: list[list[int]], iterations: int, codec: str) -> list[Plan]:
    """Return a plan for each host; ``hosts`` has the peers of each."""
    settings = {"learning-rate": 0.1, "iterations": iterations, "codec": codec, "peer-timeout": 120.0}
    config = RunConfig.from_mapping(settings)
    view = View.whole(graph)
    return [
        Plan(
            run="folding",
            config=config,
            n=graph.n,
            greetings=greetings(view, hosts),
            terms=terms_digest(config, view, iterations),
            peers=tuple(Neighbourhood.of(view, p) for p in peers),
            loss_weights=dict.fromkeys(range(graph.n), 1.0),
            iterations=iterations,
            evaluate_every=iterations,
            output_dir=str(folder / "out"),
            addresses={p: unix_address("folding", p, folder) for p in range(graph.n)},
            graph=graph.to_dict(),
            members={min(peers): tuple(peers) for peers in hosts},
            codec_step=codec_step(make_codec(config.method.codec), config.method.codec_step, graph),
        )
        for peers in hosts
    ]


@dataclass(frozen=True)
class Run:
    """Mean times of an iteration of one run, and a digest of all peers' θ at the end.

    ``passed`` are the seconds that passed, ``computed`` those that all hosts together computed.
    """

    passed: float
    computed: float
    digest: str


def run(graph: Graph, hosts: int, q: int, iterations: int, codec: str, gradient: float) -> Run:
    """Train on ``hosts`` hosts, and return the times of an iteration; ``gradient`` is in seconds.

    Raises
    ------
    TimeoutError
        When a host does not end within :data:`PATIENCE`.
    """
    context = multiprocessing.get_context("spawn")
    stretches = [list(map(int, part)) for part in np.array_split(np.arange(graph.n), hosts)]
    with tempfile.TemporaryDirectory(prefix="p") as name:
        children, pipes = [], []
        for plan in plans(Path(name), graph, stretches, iterations, codec):
            ours, theirs = context.Pipe()
            child = context.Process(target=host, args=(theirs, plan.to_json(), q, gradient), daemon=True)
            child.start()
            children.append(child)
            pipes.append(ours)
        try:
            found = []
            for pipe in pipes:
                if not pipe.poll(PATIENCE):
                    raise TimeoutError(f"a host did not end within {PATIENCE:g} s")
                found.append(pipe.recv())
        finally:
            for child in children:
                child.join(PATIENCE if len(found) == hosts else 0)
                child.kill()
    counted = iterations - WARM_UP
    marks = [(one[-1], one[-1 - counted]) for one, _ in found]
    digests = {p: digest for _, one in found for p, digest in one.items()}
    return Run(
        max(end[0] - begin[0] for end, begin in marks) / counted,
        sum(end[1] - begin[1] for end, begin in marks) / counted,
        hashlib.sha256("".join(digests[p] for p in sorted(digests)).encode()).hexdigest(),
    )


def middle(made: list[Run]) -> tuple[float, float]:
    """Return the medians of the seconds that passed and of the seconds computed."""
    return statistics.median(one.passed for one in made), statistics.median(one.computed for one in made)


def main(
    topology: Annotated[str, typer.Option(help="The graph.")] = "exponential:256",
    hosts: Annotated[int, typer.Option(min=2, help="Hosts, beside a run on one.")] = 2,
    length: Annotated[int, typer.Option(min=1, help="Numbers in a vector (q), float32.")] = 10_000,
    iterations: Annotated[int, typer.Option(min=2 * WARM_UP, help="Iterations of a run.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 3,
    codec: Annotated[str, typer.Option(help="The codec.")] = "none",
    gradient: Annotated[float, typer.Option(min=0, help="Milliseconds that a gradient computes.")] = 0.0,
) -> None:
    """Print what an iteration takes on one host and on several."""
    graph = Graph.load(topology)
    runs: dict[int, list[Run]] = {1: [], hosts: []}
    for turn in range(rounds):
        for count in sorted(runs, reverse=bool(turn % 2)):
            runs[count].append(run(graph, count, length, iterations, codec, gradient / 1e3))
    if len({one.digest for made in runs.values() for one in made}) != 1:
        raise SystemExit("the runs came to different θ")
    table = Table(
        "hosts", "passed, median", "to one host's", "computed, median", "to one host's",
        title=f"an iteration on {topology}, ms; q {length}, codec {codec}, gradients of {gradient:g} ms",
    )  # fmt: skip
    single, *_ = middles = {count: middle(made) for count, made in runs.items()}
    for count, found in middles.items():
        pairs = zip(found, middles[single], strict=True)
        table.add_row(
            str(count), *(cell for s, one in pairs for cell in (f"{s * 1e3:.1f}", f"{s / one:.2f}"))
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
