"""Measure the seconds to an accuracy over slow links: four peers in processes, links of a rate and a delay.

Peers train ViT-Tiny's last block on the CIFAR-10 subset (Table 1's classes, SGD 0.01 without momentum). All
bytes between two peers pass a relay, which has the link's rate, and delays each byte. The clock begins with
the evaluation before training, when all features are there, and stops with the first evaluation at which the
peers' mean accuracy reaches the goal; the time of evaluations is within it. Printed is the time of each
setting, and how many times less it is than that of the first. With ``--figure`` the runs go on to their end,
and their accuracy is drawn against bytes and against seconds.

    python -m benchmarks.wan --data DATA [--graph lopsided-4] [--seeds 3] [--setting q4 …] [--figure FILE]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from p2pft_flower.keeping.journal import read_journal
from p2pft_flower.keeping.lines import Evaluation
from p2pft_flower.lab.federation import Federation, plan_peers
from p2pft_flower.lab.ports import free_addresses
from p2pft_flower.lab.relay import Relays
from p2pft_flower.report.results import read_results
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import scheduled

LINKS = {
    "1 Gbit/s, 1 ms": (1e9 / 8, 0.001),
    "100 Mbit/s, 50 ms": (1e8 / 8, 0.050),
    "10 Mbit/s, 100 ms": (1e7 / 8, 0.100),
}
"""Rate of each link and direction in bytes a second, and delay in seconds."""

SETTINGS: dict[str, dict[str, Any]] = {
    "Algorithm 1": {},
    "q4": {"codec": "q4"},
    "8 local steps": {"algorithm-options": "local-steps=8"},
    "8 local steps, q4": {"algorithm-options": "local-steps=8", "codec": "q4"},
    "8 local steps, q3": {"algorithm-options": "local-steps=8", "codec": "q3"},
    "8 local steps, q4, pipelined": {
        "algorithm-options": "local-steps=8",
        "codec": "q4",
        "pipelined": True,
    },
    "one-peer-exponential": {"schedule-graph": "one-peer-exponential"},
    "sgp": {"algorithm": "sgp"},
    "dgd": {"algorithm": "dgd"},
}
GRADIENTS = 1280
"""Gradients that a peer draws at most."""

EVALUATED = 64
"""Gradients that a peer draws between two evaluations."""


@dataclass(frozen=True)
class Took:
    """The cost of one run until the goal, or until its end if it did not reach the goal."""

    seconds: float | None
    """Seconds until the goal; None if it was not reached."""
    megabytes: float
    """Megabytes that a peer sent, mean over the peers."""
    accuracy: float
    """Mean accuracy of the peers, 0..1."""
    iteration: float
    """Mean seconds of one iteration, evaluations included."""
    curve: list[tuple[float, float, float]]
    """(seconds, megabytes that a peer has sent, mean accuracy) at each evaluation."""


def evaluations(folder: Path, peer: int) -> list[Evaluation]:
    """Return the evaluations in a peer's journal so far."""
    log = folder / "peers" / f"peer-{peer}.jsonl"
    return [line for line in read_journal(log) if isinstance(line, Evaluation)] if log.is_file() else []


def common(folder: Path, peers: range) -> list[tuple[int, float, float, float]]:
    """Return (iteration, time, mean accuracy, mean bytes) of the evaluations that all peers have."""
    by = [{e.iteration: e for e in evaluations(folder, p)} for p in peers]
    return [
        (
            k,
            max(each[k].time for each in by),
            statistics.mean(each[k].accuracy or 0.0 for each in by),
            statistics.mean(each[k].bytes_sent for each in by),
        )
        for k in sorted(set.intersection(*(set(each) for each in by)))
    ]


def run(
    graph: Graph,
    link: tuple[float, float],
    settings: dict[str, Any],
    goal: float,
    longest: float,
    *,
    to_end: bool,
) -> Took:
    """Train until the mean accuracy reaches ``goal``, and return the cost.

    A run ends after ``longest`` seconds or when all gradients are drawn, unless it reaches the goal before;
    if ``to_end``, it goes on after the goal. ``link`` is an entry of :data:`LINKS`.

    Raises
    ------
    RuntimeError
        When the peers were not evaluated once within ``longest`` seconds.
    """
    graph = scheduled(graph, str(settings.get("schedule-graph", "static")))
    options = str(settings.get("algorithm-options", "local-steps=1"))
    steps = int(options.partition("=")[2])
    with tempfile.TemporaryDirectory() as name, Relays() as relays:
        folder = Path(name)
        addresses = free_addresses(graph.n)
        made = plan_peers("wan", graph, settings, addresses, folder)
        made = [
            replace(plan, iterations=GRADIENTS // steps, evaluate_every=EVALUATED // steps) for plan in made
        ]
        rate, delay = link
        routes = {
            pair: relays.open(addresses[pair[1]], rate=rate, delay=delay).address
            for edge in graph.edges
            for pair in (edge, edge[::-1])
        }
        with Federation(made, routes) as peers:
            for p in range(graph.n):
                peers.start(p)
            begun, seen = time.monotonic(), []
            while peers.alive and time.monotonic() - begun < longest:
                time.sleep(0.5)
                seen = common(folder, range(graph.n))
                if seen and (seen[-1][0] == made[0].iterations or (seen[-1][2] >= goal and not to_end)):
                    break
            peers.stop("measured")
        seen = common(folder, range(graph.n)) or seen
        if not seen:
            logs = "\n".join(file.read_text()[-1000:] for file in sorted(folder.glob("peer-*.log")))
            raise RuntimeError(
                f"the peers were not evaluated once within {longest:g} s; their logs end so:\n{logs}"
            )
    first, last = seen[0], next((s for s in seen if s[2] >= goal), seen[-1])
    passed = last[1] - first[1]
    curve = [(time - first[1], sent / 1e6, accuracy) for _, time, accuracy, sent in seen]
    return Took(
        passed if last[2] >= goal else None,
        last[3] / 1e6,
        last[2],
        passed / max(1, last[0] - first[0]),
        curve,
    )


def history(folder: Path) -> tuple[str, list[float], list[float]]:
    """Return a finished run's name, and of each evaluation the MB a peer has sent and the mean accuracy."""
    results = read_results(folder)
    config = results["config"]
    epochs = config["local-epochs"]
    name = f"{config['algorithm']}, {epochs} local epoch{'s' if epochs > 1 else ''}"
    rows = [row for row in results["history"] if row["bytes_sent"]]
    sent = [row["bytes_sent"] / len(results["peers"]) / 1e6 for row in rows]
    return name, sent, [100 * statistics.mean(row["accuracy"]) for row in rows]


def draw(found: dict[str, dict[str, list[Took]]], beside: Sequence[Path], figure: Path) -> None:
    """Draw accuracy against bytes and seconds: a row for each link, a line for each setting and seed.

    Runs in the folders ``beside`` have no time over these links: they are drawn against bytes, dashed.
    """
    from matplotlib import pyplot

    panels, axes = pyplot.subplots(
        len(found), 2, figsize=(11, 4.2 * len(found)), squeeze=False, layout="constrained"
    )
    for (link, settings), (left, right) in zip(found.items(), axes, strict=True):
        for number, (setting, runs) in enumerate(settings.items()):
            for seed, took in enumerate(runs):
                # Before training nothing was sent.
                seconds, sent, accuracy = map(list, zip(*took.curve[1:], strict=True))
                percent = [100 * a for a in accuracy]
                look = {"color": f"C{number}", "label": setting if seed == 0 else None, "linewidth": 1.2}
                left.plot(sent, percent, **look)
                right.plot(seconds, percent, **look)
        for number, folder in enumerate(beside):
            name, sent, percent = history(folder)
            color = str(0.6 * number / len(beside))
            left.plot(sent, percent, color=color, linewidth=1.2, linestyle="dashed", label=name)
        left.set_xlabel("MB that a peer has sent")
        right.set_xlabel(f"seconds over {link}")
        for ax in (left, right):
            ax.set_xscale("log")
            ax.grid(alpha=0.25)
            ax.set_ylabel("mean accuracy of the peers, %")
        left.legend(fontsize=8)
    figure.parent.mkdir(parents=True, exist_ok=True)
    panels.savefig(figure, dpi=100, pil_kwargs={"optimize": True})
    pyplot.close(panels)


def main(
    data: Annotated[Path, typer.Option(help="The folder with weights/ and cifar10/.")],
    graph: Annotated[str, typer.Option(help="A graph of four peers.")] = "directed-ring-4",
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, …", min=1)] = 1,
    goal: Annotated[float, typer.Option(help="Mean accuracy.")] = 0.9,
    longest: Annotated[float, typer.Option(help="Seconds after which a run is given up.")] = 600.0,
    only: Annotated[list[str] | None, typer.Option(help="A link by name; default all.")] = None,
    setting: Annotated[list[str] | None, typer.Option(help="A setting by name; default all.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw all curves, to the runs' end.")] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(help="A finished run's folder: its accuracy against bytes, too.")
    ] = None,
) -> None:
    """Measure each setting on each link."""
    weights = data / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.fp16.safetensors"
    job = {
        "model": "vit_tiny_patch16_224",
        "weights": str(weights.absolute()),
        "dataset": "cifar10",
        "data-dir": str((data / "cifar10").absolute()),
        "verify": False,
        "learning-rate": 0.01,
        "topology": graph,
        "checkpoint-every": -1,
        "meet-timeout": 1800.0,
    }
    if unknown := set(only or ()) - LINKS.keys():
        raise typer.BadParameter(f"no link is called {min(unknown)!r}; there are {', '.join(LINKS)}")
    if unknown := set(setting or ()) - SETTINGS.keys():
        raise typer.BadParameter(f"no setting is called {min(unknown)!r}; there are {', '.join(SETTINGS)}")
    chosen = {name: more for name, more in SETTINGS.items() if name in (setting or SETTINGS)}
    found: dict[str, dict[str, list[Took]]] = {}
    whole = Graph.load(graph)
    table = Table("link", "setting", "seconds", "times less", "MB a peer", "accuracy", "s an iteration")
    for name, link in LINKS.items():
        if only and name not in only:
            continue
        least: list[float | None] = []
        for title, more in chosen.items():
            took = [
                run(whole, link, {**job, **more, "seed": s}, goal, longest, to_end=figure is not None)
                for s in range(seeds)
            ]
            found.setdefault(name, {})[title] = took
            reached = [t.seconds for t in took if t.seconds is not None]
            seconds = statistics.mean(reached) if len(reached) == seeds else None
            least.append(seconds)
            row = [
                name,
                title,
                "not reached" if seconds is None else f"{seconds:.1f}",
                "–" if seconds is None or least[0] is None else f"{least[0] / seconds:.1f} ×",
                f"{statistics.mean(t.megabytes for t in took):,.1f}",
                f"{100 * statistics.mean(t.accuracy for t in took):.1f}",
                f"{statistics.mean(t.iteration for t in took):.3f}",
            ]
            table.add_row(*row)
            typer.echo(" | ".join(row))
    Console(width=120).print(table)
    if figure is not None:
        draw(found, beside or [], figure)
        typer.echo(f"drawn into {figure}")


if __name__ == "__main__":
    typer.run(main)
