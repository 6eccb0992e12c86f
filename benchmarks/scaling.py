"""Measure what a peer costs on which graph as there are more of them, and what that comes to with a million.

- ``cost``: seconds of an iteration, a peer, on one host with one thread, for 16 to 1,024 peers of the
  embedded default, with a line fitted: a + b × (payloads of a peer and exchange);
- ``bytes``: the accuracy of 64 peers with one class each after as many payloads on each graph;
- ``paper``: time, memory, plan and records of 10^4 to 10^6 peers, from the fitted lines and from the sizes of
  messages as this build encodes them, after a check of the lines on more peers than they were fitted to.

One table a command; what ``cost`` measures goes into a file, which ``paper`` reads.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.filesize import decimal

from benchmarks.clip_features import _execute
from benchmarks.many_peers import ROOT, Way, run
from p2pft_flower.agreement.record import Ballot, Composition, Phase, Proposal, Record
from p2pft_flower.config import RunConfig
from p2pft_flower.host.records import encode
from p2pft_flower.plan import Neighbourhood, Plan, terms_digest
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import scheduled
from p2pft_flower.topology.views import View

app = typer.Typer(help="What a peer costs as there are more of them.", no_args_is_help=True)

Q = 50_762
"""Numbers of θ of the embedded default's last block."""

SIZES = (16, 64, 256, 1024)
PAYLOADS = 1200
"""Payloads that each peer of ``bytes`` sends."""


@dataclass(frozen=True)
class Kind:
    """A kind of graph: its name, its spec with {n}, and the ``schedule-graph`` on it."""

    name: str
    spec: str
    schedule: str = "static"

    def graph(self, n: int) -> Graph:
        """Return the graph of ``n`` peers, with its turns."""
        return scheduled(Graph.load(self.spec.format(n=n)), self.schedule)

    def payloads(self, n: int) -> float:
        """Return how many payloads a peer sends in one exchange, on the average over peers and turns."""
        graph = self.graph(n)
        turns = [graph.turn(k) for k in range(graph.period)]
        return statistics.mean((np.count_nonzero(turn.A) - n) / n for turn in turns)


KINDS = (
    Kind("ring", "ring:{n}"),
    Kind("one-peer exponential", "exponential:{n}", "one-peer-exponential"),
    Kind("base-2", "ring:{n}", "base:1"),
    Kind("random, 4 in and 4 out", "random-directed:{n}:4:1"),
    Kind("exponential", "exponential:{n}"),
)


@app.command()
def cost(
    out: Annotated[Path, typer.Option(help="The file for what was measured.")],
    peers: Annotated[list[int] | None, typer.Option(help="Numbers of peers.")] = None,
    iterations: Annotated[int, typer.Option(min=4, help="Iterations of a run.")] = 6,
) -> None:
    """Measure an iteration on each graph, and print milliseconds a peer."""
    sizes = tuple(peers or SIZES)
    found: list[dict[str, Any]] = []
    typer.echo(f"| graph | payloads a peer | {' | '.join(map(str, sizes))} |")
    typer.echo(f"|---|---|{'---|' * len(sizes)}")
    for kind in KINDS:
        for n in sizes:
            settings = {"batched": "true", "schedule-graph": kind.schedule}
            one = run(Way(kind.name, ROOT, 1, settings), kind.spec.format(n=n), n, iterations)
            told = {"n": n, "payloads": kind.payloads(n), "seconds": one.computed / n, "memory": one.memory}
            found.append({"kind": kind.name, **told})
        own = found[-len(sizes) :]
        payloads = ", ".join(f"{p:g}" for p in sorted({one["payloads"] for one in own}))
        cells = [kind.name, payloads, *(f"{one['seconds'] * 1e3:.2f}" for one in own)]
        typer.echo(f"| {' | '.join(cells)} |")
    out.write_text(json.dumps(found, indent=2) + "\n")
    line = fitted(found)
    typer.echo(
        f"\nfitted to 64 peers and more: {line.own * 1e3:.2f} ms + {line.payload * 1e3:.3f} ms a payload and "
        f"exchange; {line.memory / 1e6:.2f} MB a peer"
    )


@dataclass(frozen=True)
class Line:
    """Seconds of a peer's iteration without payloads, and of a payload in each exchange; memory, bytes."""

    own: float
    payload: float
    base: float
    memory: float


def fitted(found: list[dict[str, Any]]) -> Line:
    """Fit the lines by least squares to the runs of 64 peers and more."""
    many = [one for one in found if one["n"] >= 64]
    payloads = np.array([[1.0, one["payloads"]] for one in many])
    own, payload = np.linalg.lstsq(payloads, np.array([one["seconds"] for one in many]), rcond=None)[0]
    numbers = np.array([[1.0, one["n"]] for one in many])
    base, memory = np.linalg.lstsq(numbers, np.array([one["memory"] for one in many]), rcond=None)[0]
    return Line(float(own), float(payload), float(base), float(memory))


@app.command("bytes")
def same_bytes(out: Annotated[Path, typer.Option(help="Where the runs' results go.")]) -> None:
    """Train 64 peers with one class each until each has sent as many payloads, and print the accuracy."""
    n = 64
    typer.echo("| graph | payloads a peer and exchange | iterations | accuracy, mean | worst peer |")
    typer.echo("|---|---|---|---|---|")
    for kind in KINDS:
        payloads = kind.payloads(n)
        iterations = round(PAYLOADS / (2 * payloads))
        settings = {
            "topology": kind.spec.format(n=n),
            "schedule-graph": kind.schedule,
            "partition": "shards:1",
            "iterations": iterations,
            "evaluate-every": iterations,
            "schedule": "cosine",
            "checkpoint-every": -1,
        }
        results = _execute(out / kind.name.replace(" ", "-").replace(",", ""), settings)
        accuracy = results["summary"]["accuracy"]
        cells = [kind.name, f"{payloads:g}", str(iterations)]
        typer.echo(f"| {' | '.join(cells)} | {accuracy['mean']:.3f} | {accuracy['min']:.3f} |")


@app.command()
def paper(
    found: Annotated[Path, typer.Option(help="The file that cost has written.")],
    check: Annotated[int, typer.Option(help="Peers of a run that checks the lines; 0: none.")] = 2048,
) -> None:
    """Print what 10^4 to 10^6 peers cost."""
    line = fitted(json.loads(found.read_text()))
    kind = KINDS[1]
    if check:
        one = run(Way("check", ROOT, 1, {"batched": "true", "schedule-graph": kind.schedule}),
                  kind.spec.format(n=check), check, 4)  # fmt: skip
        seconds = check * (line.own + line.payload * kind.payloads(check))
        typer.echo(
            f"{check} peers, {kind.name}: by the lines {seconds:.2f} s and "
            f"{decimal(int(line.base + check * line.memory))}; measured {one.computed:.2f} s and "
            f"{decimal(int(one.memory))}\n"
        )
    typer.echo("| peers | an iteration, one core | memory | a host's plan | a record | in a change of view |")
    typer.echo("|---|---|---|---|---|---|")
    for n in (10**3, 10**4, 10**5, 10**6):
        seconds = n * (line.own + line.payload)
        running, changing = record_sizes(n)
        cells = [
            f"{n:,}",
            f"{seconds:.0f} s",
            decimal(int(line.base + n * line.memory)),
            decimal(int(plan_size(n))),
            decimal(running),
            decimal(changing),
        ]
        typer.echo(f"| {' | '.join(cells)} |")


def record_sizes(n: int) -> tuple[int, int]:
    """Return the bytes of a member's record while it trains, and while ``n`` members agree on a view."""
    common: dict[str, Any] = {
        "member": n - 1,
        "incarnation": 1,
        "version": 1000,
        "view": 0,
        "iteration": 10**5,
    }
    view = Composition(1, tuple(range(n)), (1,) * n, iteration=10**5)
    training = Record(phase=Phase.RUNNING, **common)
    ballot = Ballot(1, 0)
    changing = Record(phase=Phase.CHANGING, promised=ballot, accepted=Proposal(ballot, view), **common)
    return encode(training).ByteSize(), encode(changing).ByteSize()


def plan_size(n: int) -> float:
    """Return the bytes of the plan of a host with one peer of ``n``, whose view may change.

    It is linear in n; the line is laid through those of 256 and of 512 peers on a ring.
    """
    smaller, larger = (_plan(k) for k in (256, 512))
    each = (larger - smaller) / 256
    return smaller + each * (n - 256)


def _plan(n: int) -> int:
    graph = Graph.load(f"ring:{n}")
    view, config = View.whole(graph), RunConfig()
    plan = Plan(
        run="1234567890123456789",
        config=config,
        n=n,
        greetings=n // 2,
        terms=terms_digest(config, view, 1000),
        peers=(Neighbourhood.of(view, 0),),
        loss_weights=dict.fromkeys(range(n), 1.0),
        iterations=1000,
        evaluate_every=100,
        output_dir="/home/user/.p2pft/runs/1234567890123456789",
        addresses={p: f"site-{p:07}.example.org:9100" for p in range(n)},
        graph=graph.to_dict(),
        members={p: (p,) for p in range(n)},
        hosts={p: (p,) for p in range(n)},
    )
    return len(plan.to_json())


if __name__ == "__main__":
    app()
