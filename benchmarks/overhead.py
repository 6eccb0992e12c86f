"""Measure what an iteration costs beside training: surviving failures while none happens, and being watched.

Two processes with two peers each train over a Unix socket, as the default job's simulation does. Runs take
turns: ``on``, with default settings (heartbeats, the agreement that looks after all neighbours, checkpoints),
and ``off``, without any of these. With ``--what watching`` both survive failures, and ``on`` also publishes
standings and bulletins, which a ``p2pft dashboard`` reads once a second in a process of its own. A sample is
the time of an iteration, as a mean from one checkpoint to the next, evaluations and one checkpoint included:
in seconds that pass, and in seconds that both processes together compute. The latter leave out any wait for a
disk, but other programs on the machine change them less.

A block is four short runs, off on on off, or on off off on in every second block: a machine that becomes
slower slows both kinds. A block's ratio is that of the sums of its samples. Printed is the geometric mean of
the ratios, with its 95 % confidence interval (Student's t); the first run of each kind does not count.

    python -m benchmarks.overhead [--minutes 8] [--what watching]
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from enum import Enum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy import stats

from p2pft_flower.config import RunConfig
from p2pft_flower.keeping.retention import iterations_apart
from p2pft_flower.plan import Neighbourhood, Plan, greetings, terms_digest
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View
from p2pft_flower.transport import unix_address

HOSTS = ((0, 1), (2, 3))


class What(Enum):
    """What is on in every second run, and off in the others."""

    SURVIVING = "surviving"
    WATCHING = "watching"


EVERY = 12
"""Iterations between two evaluations."""

SAMPLES = 2
"""Stretches of a run that count; one more before them does not, which ends with the first checkpoint."""

JOBS: dict[str, dict[str, Any]] = {
    "default job": {"evaluate-every": EVERY},
    "ViT-Tiny": {
        "model": "vit_tiny_patch16_224",
        "weights": "none",
        "shots": 40,
        "evaluate-every": EVERY,
    },
}
"""Settings that differ from the default job's."""


def host(pipe: Connection, settings: dict[str, Any]) -> None:
    """Run the plans that come through ``pipe``, one after the other, until None comes.

    In the end the shares of a core are sent that the thread of each run that publishes has taken.

    After each run, the times of the evaluations of the host's first peer are sent back: a list of (iterations
    done, clock, seconds computed by this process).
    """
    import torch

    from p2pft_flower.host.host import Host
    from p2pft_flower.host.publisher import Publisher
    from p2pft_flower.host.recorder import Recorder
    from p2pft_flower.host.wires import Wires
    from p2pft_flower.learning.workload import Workload

    torch.set_num_threads(1)
    workload = Workload(RunConfig.from_mapping(settings).learning, 4)
    watch, evaluate, publish, run = Wires.watch, Recorder.evaluate, Publisher.start, Publisher._run
    times: list[tuple[int, float, float]] = []
    shares: list[float] = []

    def counted(publisher: Publisher) -> None:
        passed, computed = time.perf_counter(), time.thread_time()
        run(publisher)
        shares.append((time.thread_time() - computed) / (time.perf_counter() - passed))

    Publisher._run = counted  # type: ignore[method-assign, assignment]

    def timed(recorder: Recorder, objectives: Any, thetas: Any, done: int, *others: Any) -> Any:
        times.append((done, time.perf_counter(), time.process_time()))
        return evaluate(recorder, objectives, thetas, done, *others)

    Recorder.evaluate = timed  # type: ignore[method-assign, assignment]
    while (order := pipe.recv()) is not None:
        text, survives, publishes = order
        times.clear()
        Wires.watch = watch if survives else lambda _: None  # type: ignore[method-assign, assignment]
        Publisher.start = publish if publishes else lambda _: None  # type: ignore[method-assign, assignment]
        Host(Plan.from_json(text), workload).run()
        pipe.send(list(times))
    pipe.send(shares)


def watch_runs(pipe: Connection) -> None:
    """Read this machine's bulletins once a second and make the page of each run, until something comes."""
    from p2pft_flower.cli.dashboard import NICE
    from p2pft_flower.cli.dashboard_server import INTERVAL, frames
    from p2pft_flower.cli.dashboard_watch import Watch

    os.nice(NICE)
    watch, looks, begin = Watch(), 0, (time.perf_counter(), time.process_time())
    while not pipe.poll(INTERVAL):
        pages = watch.look(time.time())
        looks += sum(page.phase == "training" and bool(frames(page, pages)) for page in pages.values())
    pipe.send((looks, (time.process_time() - begin[1]) / (time.perf_counter() - begin[0])))


def plans(run: str, folder: Path, iterations: int, settings: dict[str, Any], *, on: bool) -> list[Plan]:
    """Return a plan for each host; ``on`` is whether they survive failures."""
    config = RunConfig.from_mapping(settings)
    graph = Graph.load(config.runtime.topology)
    view = View.whole(graph)
    runtime = config.runtime
    every = iterations_apart(runtime.checkpoint_every, runtime.evaluate_every) if on else -1
    plan = Plan(
        run=run,
        config=config,
        n=graph.n,
        greetings=greetings(view, HOSTS),
        terms=terms_digest(config, view, iterations),
        peers=(),
        loss_weights=dict.fromkeys(range(graph.n), 1.0),
        iterations=iterations,
        evaluate_every=config.runtime.evaluate_every,
        output_dir=str(folder / run),
        addresses={p: unix_address(run, p, folder) for p in range(graph.n)},
        graph=graph.to_dict() if on else {},
        members={min(peers): peers for peers in HOSTS} if on else {},
        hosts={min(peers): peers for peers in HOSTS},
        checkpoint_every=every,
        checkpoint_files=2,
    )
    return [replace(plan, peers=tuple(Neighbourhood.of(view, p) for p in peers)) for peers in HOSTS]


@dataclass(frozen=True)
class Sample:
    """Means of one iteration in a stretch: seconds that passed, and seconds that the processes computed."""

    passed: float
    computed: float


def samples(hosts: list[list[tuple[int, float, float]]], every: int) -> list[Sample]:
    """Return a sample for each stretch of ``every`` iterations but the first.

    ``hosts`` has what each process sent of a run.
    """
    ends = [{done: (passed, computed) for done, passed, computed in times} for times in hosts]
    return [
        Sample(
            (ends[0][begin + every][0] - ends[0][begin][0]) / every,
            sum(end[begin + every][1] - end[begin][1] for end in ends) / every,
        )
        for begin in range(every, every * (SAMPLES + 1), every)
    ]


@dataclass(frozen=True)
class Block:
    """All samples of four runs, two of each kind."""

    off: list[Sample]
    on: list[Sample]

    def ratio(self, what: str) -> float:
        """Return the ratio of ``on`` to ``off``, of the seconds ``what``: ``"passed"`` or ``"computed"``."""
        on, off = (sum(float(getattr(s, what)) for s in samples) for samples in (self.on, self.off))
        return on / off


def measure(name: str, minutes: float, what: What) -> list[Block]:
    """Return the blocks of a job of :data:`JOBS` that begin within ``minutes``, two at least."""
    settings = JOBS[name]
    runtime = RunConfig.from_mapping(settings).runtime
    every = iterations_apart(runtime.checkpoint_every, runtime.evaluate_every)
    iterations = (SAMPLES + 1) * every
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in HOSTS:
        ours, theirs = context.Pipe()
        process = context.Process(target=host, args=(theirs, settings))
        process.start()
        pipes.append(ours)
        processes.append(process)

    ours, theirs = context.Pipe()
    watcher = context.Process(target=watch_runs, args=(theirs,))
    if what is What.WATCHING:
        watcher.start()

    def run(kind: str) -> list[Sample]:
        on = kind == "on"
        survives, publishes = (on, True) if what is What.SURVIVING else (True, on)
        with tempfile.TemporaryDirectory(prefix="t") as folder:
            made = plans("r", Path(folder), iterations, settings, on=survives)
            for pipe, plan in zip(pipes, made, strict=True):
                pipe.send((plan.to_json(), survives, publishes))
            return samples([pipe.recv() for pipe in pipes], every)

    for kind in ("off", "on"):
        run(kind)
    measured: list[Block] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task, begin = progress.add_task(name, total=60 * minutes), time.monotonic()
        while (passed := time.monotonic() - begin) < 60 * minutes or len(measured) < 2:
            progress.update(task, completed=passed)
            taken: dict[str, list[Sample]] = {"off": [], "on": []}
            for kind in ("on", "off", "off", "on") if len(measured) % 2 else ("off", "on", "on", "off"):
                taken[kind] += run(kind)
            measured.append(Block(**taken))
    shares: list[float] = []
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        shares += pipe.recv()
        process.join()
    if what is What.WATCHING:
        ours.send(None)
        looks, share = ours.recv()
        watcher.join()
        typer.echo(
            f"{name}: publishing takes {np.mean(shares):.2%} of a core of each host; a dashboard, which made "
            f"{looks} pages while it trained, {share:.2%} of a core",
            err=True,
        )
    return measured


def mean(ratios: list[float]) -> str:
    """Return, as a text, the geometric mean of some ratios and its 95 % confidence interval."""
    logs = np.log(ratios)
    low, high = stats.t.interval(0.95, len(logs) - 1, logs.mean(), stats.sem(logs))
    return f"{np.exp(logs.mean()):.3f} ({np.exp(low):.3f} to {np.exp(high):.3f})"


def main(
    minutes: Annotated[float, typer.Option(min=0, help="How long to measure each job.")] = 8.0,
    what: Annotated[What, typer.Option(help="What is on, and off.")] = What.SURVIVING,
    as_json: Annotated[bool, typer.Option("--json", help="Print every sample instead.")] = False,
) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="t") as home:
        os.environ["P2PFT_HOME"] = home  # of the bulletins
        measured = {name: measure(name, minutes, what) for name in JOBS}
    if as_json:
        typer.echo(json.dumps({name: [asdict(block) for block in of] for name, of in measured.items()}))
        return
    table = Table(title=f"an iteration with {what.value}, and without; 95 % intervals")
    for column in ("job", "blocks", "without, ms", "with, ms", "time that passes", "time computed"):
        table.add_column(column)
    for name, of in measured.items():
        without, with_it = [s for b in of for s in b.off], [s for b in of for s in b.on]
        table.add_row(
            name,
            str(len(of)),
            *(f"{1e3 * np.median([s.passed for s in kind]):.2f}" for kind in (without, with_it)),
            mean([block.ratio("passed") for block in of]),
            mean([block.ratio("computed") for block in of]),
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
