"""What surviving failures costs while nothing fails: an iteration with and without it, in one run.

Two processes with two peers each train over a Unix socket, as the default job's simulation does. Runs take
turns: ``on``, with default settings (heartbeats, the agreement that looks after all neighbours, checkpoints),
and ``off``, without any of it. What is measured is a peer's time from its first iteration to its end,
evaluations included, by iteration; the first run of each kind is not counted.

    python -m benchmarks.overhead [--runs 7]
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from p2pft_flower.config import RunConfig
from p2pft_flower.runtime.journal import read_journal
from p2pft_flower.runtime.keeping import iterations_apart
from p2pft_flower.runtime.plan import Neighbourhood, Plan, terms_digest
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View
from p2pft_flower.transport import unix_address

HOSTS = ((0, 1), (2, 3))
JOBS: dict[str, tuple[int, dict[str, Any]]] = {
    "default job": (240, {"evaluate-every": 12}),
    "ViT-Tiny": (
        120,
        {"model": "vit_tiny_patch16_224", "weights": "none", "shots": 40, "evaluate-every": 12},
    ),
}
"""Iterations, and settings that differ from the default job's."""


def host(pipe: Connection, settings: dict[str, Any]) -> None:
    """Run the plans that come through ``pipe``, one after the other; None ends it."""
    import torch

    from p2pft_flower.learning.workload import Workload
    from p2pft_flower.runtime.host import Host
    from p2pft_flower.runtime.wires import Wires

    torch.set_num_threads(1)
    workload = Workload(RunConfig.from_mapping(settings).learning, 4)
    watch = Wires.watch
    while (order := pipe.recv()) is not None:
        text, on = order
        Wires.watch = watch if on else lambda _: None  # type: ignore[method-assign]
        Host(Plan.from_json(text), workload).run()
        pipe.send(None)


def plans(run: str, folder: Path, iterations: int, settings: dict[str, Any], *, on: bool) -> list[Plan]:
    """Return one plan a host."""
    config = RunConfig.from_mapping(settings)
    graph = Graph.load(config.runtime.topology)
    view = View.whole(graph)
    runtime = config.runtime
    every = iterations_apart(runtime.checkpoint_every, runtime.evaluate_every) if on else -1
    plan = Plan(
        run=run,
        config=config.to_mapping(),
        n=graph.n,
        hosts=len(HOSTS),
        terms=terms_digest(config, view, iterations),
        peers=(),
        loss_weights=dict.fromkeys(range(graph.n), 1.0),
        iterations=iterations,
        evaluate_every=config.runtime.evaluate_every,
        output_dir=str(folder / run),
        addresses={p: unix_address(run, p, folder) for p in range(graph.n)},
        graph=graph.to_dict() if on else {},
        members={min(peers): peers for peers in HOSTS} if on else {},
        checkpoint_every=every,
        checkpoint_files=2,
    )
    return [replace(plan, peers=tuple(Neighbourhood.of(view, p) for p in peers)) for peers in HOSTS]


def an_iteration(folder: Path, iterations: int) -> float:
    """Return the seconds of an iteration of peer 0, of its log."""
    lines = {line["event"]: line["time"] for line in read_journal(folder / "peers" / "peer-0.jsonl")}
    return float((lines["end"] - lines["start"]) / iterations)


def measure(name: str, runs: int) -> dict[str, list[float]]:
    """Return the seconds of an iteration, run by run, with and without."""
    iterations, settings = JOBS[name]
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in HOSTS:
        ours, theirs = context.Pipe()
        process = context.Process(target=host, args=(theirs, settings))
        process.start()
        pipes.append(ours)
        processes.append(process)
    seconds: dict[str, list[float]] = {"off": [], "on": []}
    with tempfile.TemporaryDirectory(prefix="t") as short:
        for turn in range(2 * (runs + 1)):
            on = turn % 4 in (1, 2)  # off on on off: a machine that slows down slows both
            folder = Path(short)
            for pipe, plan in zip(pipes, plans(f"r{turn}", folder, iterations, settings, on=on), strict=True):
                pipe.send((plan.to_json(), on))
            for pipe in pipes:
                pipe.recv()
            if turn > 1:
                seconds["on" if on else "off"].append(an_iteration(folder / f"r{turn}", iterations))
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return seconds


def main(
    runs: Annotated[int, typer.Option(help="Runs of each kind that count.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print every run's seconds instead.")] = False,
) -> None:
    """Print the table."""
    measured = {name: measure(name, runs) for name in JOBS}
    if as_json:
        typer.echo(json.dumps(measured))
        return
    table = Table(title=f"an iteration, ms, medians of {runs} runs each")
    for column in ("job", "without", "with", "median of ratios", "lowest to lowest"):
        table.add_column(column)
    for name, seconds in measured.items():
        without, with_it = (statistics.median(seconds[key]) for key in ("off", "on"))
        pairs = zip(seconds["on"], seconds["off"], strict=True)  # that ran one after the other
        ratio = statistics.median(on / off for on, off in pairs)
        lowest = min(seconds["on"]) / min(seconds["off"])
        table.add_row(name, f"{1e3 * without:.2f}", f"{1e3 * with_it:.2f}", f"{ratio:.3f}", f"{lowest:.3f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
