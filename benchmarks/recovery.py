"""Measure the survivors' standstill when a peer is killed: from SIGKILL to the next view's first iteration.

Peers on a directed ring train quadratics over TCP on loopback, as sites do, but for the model: the time is
that in which a loss is noticed and agreed on. The victim is a process of its own; the others share the
processes that the table names, each with several hosts in threads, one peer to a host. Killed is the last
peer, which proposes no view. An iteration that a survivor had completed and does again counts as lost.

    python -m benchmarks.recovery [--timeout 4] [--runs 3]
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from p2pft_flower.config import RunConfig
from p2pft_flower.host import training
from p2pft_flower.host.host import Host
from p2pft_flower.keeping.journal import read_journal
from p2pft_flower.lab.ports import free_addresses
from p2pft_flower.plan import Neighbourhood, Plan, greetings, terms_digest
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View
from p2pft_flower.transport import ExchangeStoppedError
from p2pft_flower.typed import plain

Q = 1000
PROCESSES = {4: 3, 16: 4, 64: 8}
"""Number of processes that the survivors share, by number of peers."""

PAUSE = 0.2
"""Seconds of a gradient, so that 64 peers on a few cores have time for heartbeats and gossip."""

BEFORE, AFTER = 5, 3
"""Iterations that all peers complete before the kill, and that all survivors complete in the next view."""


@dataclass(frozen=True)
class Score:
    """The scores of an evaluation that nobody reads."""

    loss: float = 0.0
    accuracy: float = 0.0
    accuracy_unseen: float | None = None
    accuracy_seen: float | None = None


class Quadratic:
    """One peer's objective: ∇L_i(θ) = θ − c_i, after a pause."""

    def __init__(self, peer: int) -> None:
        self._minimiser = np.random.default_rng(peer).normal(size=Q).astype(np.float32)

    def gradient(self, theta: Any) -> Any:
        """Return θ − c_i, (1000,) float32, after :data:`PAUSE` seconds."""
        time.sleep(PAUSE)  # not to synchronise: this is the work
        return theta - self._minimiser

    def evaluate(self, theta: Any) -> Score:  # noqa: ARG002 - a protocol's
        """Return scores of zero."""
        return Score()

    def privacy_spent(self) -> None:
        """Return None, since nothing is private."""
        return

    def position(self) -> Any:
        """Return a function that returns an empty position, since there is no data order."""
        return dict

    def go_to(self, position: Any, lost: int) -> None:
        """Do nothing, since there is no data order."""


class Quadratics:
    """The problem of all peers."""

    theta0 = np.zeros(Q, dtype=np.float32)
    model_digest = "quadratics"
    model_parameters = Q

    def objectives(self, peers: Any, progress: Any) -> dict[int, Quadratic]:  # noqa: ARG002
        """Return the objectives of ``peers``."""
        return {p: Quadratic(p) for p in peers}

    def named_tail(self, theta: Any) -> dict[str, Any]:
        """Return θ as a tensor, by name."""
        import torch

        return {"theta": torch.from_numpy(theta.copy())}

    def metadata(self) -> dict[str, str]:
        """Return no metadata."""
        return {}


def hosts(texts: list[str], pipe: Connection) -> None:
    """Run a host for each plan in ``texts``, each in a thread, until a word comes through ``pipe``."""
    os.environ[training.TRACE] = "1"
    logging.getLogger("p2pft_flower").setLevel(logging.ERROR)  # each survivor tells of the view
    running = [Host(Plan.from_json(text), Quadratics()) for text in texts]

    def run(host: Host) -> None:
        try:
            host.run()
        except ExchangeStoppedError:
            return

    threads = [threading.Thread(target=run, args=(host,)) for host in running]
    for thread in threads:
        thread.start()
    pipe.recv()
    running[0].stop("measured")
    for thread in threads:
        thread.join()


def plans(n: int, folder: Path, timeout: float) -> list[Plan]:
    """Return a plan for each of ``n`` peers; ``timeout`` is their ``peer-timeout``."""
    config = RunConfig.from_mapping(
        {"iterations": 10**6, "peer-timeout": timeout, "meet-timeout": 300.0, "rejoin-deadline": 120.0}
    )
    graph = Graph.load(f"directed-ring:{n}")
    view, addresses = View.whole(graph), free_addresses(n)
    return [
        Plan(
            run=f"recovery-{n}",
            config=config,
            n=n,
            greetings=greetings(view, [[q] for q in range(n)]),
            terms=terms_digest(config, view, 10**6),
            peers=(Neighbourhood.of(view, p),),
            loss_weights=dict.fromkeys(range(n), 1.0),
            iterations=10**6,
            evaluate_every=10**6,
            output_dir=str(folder),
            addresses=addresses,
            graph=graph.to_dict(),
            members={q: (q,) for q in range(n)},
        )
        for p in range(n)
    ]


def lines(folder: Path, peer: int, event: str) -> list[dict[str, Any]]:
    """Return the lines of event ``event`` in a peer's journal; none if there is no journal yet."""
    path = folder / "peers" / f"peer-{peer}.jsonl"
    told = map(plain, read_journal(path)) if path.is_file() else ()
    return [line for line in told if line["event"] == event]


def wait_for(folder: Path, peers: range, view: int, iterations: int) -> None:
    """Return when all ``peers`` have completed ``iterations`` iterations in ``view``.

    Raises
    ------
    TimeoutError
        When they have not after 300 s.
    """
    end = time.monotonic() + 300.0
    for peer in peers:
        while sum(line["view"] == view for line in lines(folder, peer, "trace")) < iterations:
            if time.monotonic() > end:
                raise TimeoutError(f"peer {peer} does not complete {iterations} iterations in view {view}")
            time.sleep(0.2)


@dataclass(frozen=True)
class Recovery:
    """The cost of one kill.

    ``first`` and ``last`` are the seconds until the first and the last survivor's first iteration in the next
    view, ``lost`` is the number of iterations that survivors did again.
    """

    first: float
    last: float
    lost: int


def measure(n: int, timeout: float) -> Recovery:
    """Kill the last of ``n`` peers once, and return the cost."""
    context = multiprocessing.get_context("spawn")
    survivors, shares = range(n - 1), PROCESSES[n]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [plan.to_json() for plan in plans(n, folder, timeout)]
        groups = [*(texts[s : n - 1 : shares] for s in range(shares)), [texts[-1]]]
        pipes, processes = [], []
        for group in groups:
            ours, theirs = context.Pipe()
            process = context.Process(target=hosts, args=(group, theirs), daemon=True)
            process.start()
            pipes.append(ours)
            processes.append(process)
        wait_for(folder, range(n), 0, BEFORE)
        killed = time.time()
        os.kill(processes[-1].pid or 0, signal.SIGKILL)
        wait_for(folder, survivors, 1, AFTER)
        pipes[0].send(None)
        for pipe in pipes[1:-1]:
            pipe.send(None)
        for process in processes:
            process.join()
        firsts, lost = [], 0
        for peer in survivors:
            traces = lines(folder, peer, "trace")
            done = max(line["iteration"] for line in traces if line["view"] == 0)
            begin = lines(folder, peer, "view")[0]["iteration"]
            lost += max(0, done - begin)
            # A host that was behind also traces the beginning of the view.
            after = (t["time"] for t in traces if t["view"] == 1 and t["iteration"] > begin)
            firsts.append(next(after) - killed)
        return Recovery(min(firsts), max(firsts), lost)


def main(
    timeout: Annotated[float, typer.Option(help="peer-timeout, in seconds.")] = 4.0,
    runs: Annotated[int, typer.Option(min=1, help="Kills for each number of peers.")] = 3,
    peers: Annotated[list[int] | None, typer.Option(help="Only so many peers: 4, 16 or 64.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every kill's figures instead.")] = False,
) -> None:
    """Print the table."""
    measured = {n: [measure(n, timeout) for _ in range(runs)] for n in peers or PROCESSES}
    if as_json:
        typer.echo(json.dumps({n: [vars(r) for r in kills] for n, kills in measured.items()}))
        return
    table = Table(title=f"from SIGKILL to the next view's first iteration; peer-timeout {timeout:g} s")
    for column in (
        "peers",
        "survivors' processes",
        "median, s",
        "longest, s",
        "longest / timeout",
        "iterations lost",
    ):
        table.add_column(column)
    for n, kills in measured.items():
        longest = max(kill.last for kill in kills)
        table.add_row(
            str(n),
            str(PROCESSES[n]),
            f"{statistics.median(kill.last for kill in kills):.2f}",
            f"{longest:.2f}",
            f"{longest / timeout:.2f}",
            str(sum(kill.lost for kill in kills)),
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
