"""Measure seconds and bytes to an accuracy over slow links: peers with each setting, and Flower's FedAvg.

Four sites train ViT-Tiny's last block on the CIFAR-10 subset (Table 1's classes, SGD 0.01 without momentum,
1,280 gradients each) over links of a rate and a delay; wan_runs.py says how time, bytes and accuracy are
taken. Printed is a table as Markdown, with the mean over the seeds, and their range in brackets.

    python -m benchmarks.wan --data DATA --seeds 3 --json FILE [--only LINK] [--setting NAME] [--figure PNG]

With ``--json`` each finished run is a line of FILE, and is not made again: the command may be interrupted and
given again, and several with other links, settings or seeds may share the file. Table and figure have all
runs in FILE of the links, settings and seeds that were asked for.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.wan_runs import Point, Took, run_fedavg, run_peers
from p2pft_flower.errors import P2PFTError
from p2pft_flower.topology import Graph

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
    "exact-diffusion, ring-4": {"algorithm": "exact-diffusion", "topology": "ring-4"},
    "FedAvg, 1 local epoch": {"algorithm": "fedavg", "local-epochs": 1},
    "FedAvg, 2 local epochs": {"algorithm": "fedavg", "local-epochs": 2},
    "FedAvg, 4 local epochs": {"algorithm": "fedavg", "local-epochs": 4},
}
GRADIENTS = 1280
"""Gradients that a site draws."""

ROUND = 128
"""Gradients of a round of FedAvg with four local epochs: a run has a multiple of them."""


Key = tuple[str, str, int, str, int]
"""Link, setting, seed, graph, gradients: what a run is asked for."""


@dataclass(frozen=True)
class Row:
    """A run, and what was asked for."""

    link: str
    setting: str
    seed: int
    graph: str
    gradients: int
    took: Took

    @property
    def key(self) -> Key:
        """All but the outcome."""
        return self.link, self.setting, self.seed, self.graph, self.gradients

    def to_json(self) -> str:
        """Return the row as a line of JSON, points of the curve as lists."""
        told = {**vars(self), **vars(self.took), "fields": Point._fields}
        del told["took"]
        return json.dumps(told)

    @classmethod
    def from_json(cls, line: str) -> Row:
        """Return the row that :meth:`to_json` wrote."""
        told = json.loads(line)
        took = Took(tuple(Point(*point) for point in told["curve"]), told["alone"], told["whole"])
        return cls(told["link"], told["setting"], told["seed"], told["graph"], told["gradients"], took)


def read(file: Path | None) -> list[Row]:
    """Return the rows of a file; none if there is no file yet."""
    if file is None or not file.is_file():
        return []
    return [Row.from_json(line) for line in file.read_text(encoding="utf-8").splitlines()]


def rows_of(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Return the rows by link and setting, in the order of :data:`LINKS` and :data:`SETTINGS`."""
    found: dict[str, dict[str, list[Row]]] = {}
    for link in LINKS:
        for setting in SETTINGS:
            some = sorted((r for r in rows if (r.link, r.setting) == (link, setting)), key=lambda r: r.seed)
            if some:
                found.setdefault(link, {})[setting] = some
    return found


def spread(values: Sequence[float], form: str = ",.1f") -> str:
    """Return the mean of the values, and their range in brackets if there are several."""
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"


def times(
    least: Sequence[Point | None], reached: Sequence[Point | None], of: Callable[[Point], float]
) -> str:
    """Return how many times less the mean of ``reached`` is than that of ``least``; a dash if one is not."""
    first, own = ([of(p) for p in points if p is not None] for points in (least, reached))
    if len(first) < len(least) or len(own) < len(reached) or not (first and own and statistics.mean(own)):
        return "–"
    return f"{statistics.mean(first) / statistics.mean(own):,.1f} ×"


def table(rows: Sequence[Row], goal: float) -> str:
    """Return the table as Markdown; *times less* and *fewer* are to the first setting of the link."""
    percent = f"{100 * goal:.1f} %"
    head = [
        *("link", "setting", "seeds", f"s to {percent}", "times less", f"MB to {percent}", "times fewer"),
        *(
            "s at the end",
            "MB at the end",
            "accuracy at the end",
            "best accuracy",
            "MB then",
            "s of bytes alone",
        ),
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for link, settings in rows_of(rows).items():
        least: list[Point | None] | None = None
        for setting, some in settings.items():
            took = [row.took for row in some]
            reached = [t.reached(goal) for t in took]
            there = [p for p in reached if p is not None]
            least = reached if least is None else least
            missed = f"{len(there)} of {len(took)} got there"
            every = len(there) == len(took)
            best, end = [t.best for t in took], [t.curve[-1] for t in took]
            cells = [
                link,
                setting,
                str(len(took)),
                spread([p.seconds for p in there]) if every else missed,
                times(least, reached, lambda p: p.seconds),
                spread([p.megabytes for p in there]) if every else missed,
                times(least, reached, lambda p: p.megabytes),
                spread([p.seconds for p in end]),
                spread([p.megabytes for p in end]),
                spread([100 * p.accuracy for p in end]),
                spread([100 * p.accuracy for p in best]),
                spread([p.megabytes for p in best]),
                spread([t.alone for t in took]),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], figure: Path) -> None:
    """Draw accuracy against bytes and seconds: a row for each link, a line for each setting and seed."""
    from matplotlib import pyplot

    found = rows_of(rows)
    panels, axes = pyplot.subplots(
        len(found), 2, figsize=(11, 4.2 * len(found)), squeeze=False, layout="constrained"
    )
    known = {setting: number for number, setting in enumerate(SETTINGS)}
    for (link, settings), (left, right) in zip(found.items(), axes, strict=True):
        for setting, some in settings.items():
            style = "dashed" if setting.startswith("FedAvg") else "solid"
            for row in (r for r in some if len(r.took.curve) > 1):
                # Before training nothing was sent.
                _, seconds, sent, _, accuracy = map(list, zip(*row.took.curve[1:], strict=True))
                percent = [100 * a for a in accuracy]
                look = {"color": f"C{known[setting] % 10}", "linestyle": style, "linewidth": 1.2}
                label = setting if row is some[0] else None
                left.plot(sent, percent, label=label, **look)
                right.plot(seconds, percent, **look)
        left.set_xlabel("MB that passed the links, both ways, a site")
        right.set_xlabel(f"seconds over {link}")
        for ax in (left, right):
            ax.set_xscale("log")
            ax.grid(alpha=0.25)
            ax.set_ylabel("mean accuracy of the sites, %")
        left.legend(fontsize=8)
    figure.parent.mkdir(parents=True, exist_ok=True)
    kind: dict[str, Any] = {"pil_kwargs": {"optimize": True}} if figure.suffix == ".png" else {}
    panels.savefig(figure, dpi=100, **kind)
    pyplot.close(panels)


def job(data: Path, setting: str, graph: str, seed: int) -> dict[str, Any]:
    """Return the run-config of a setting."""
    weights = data / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.fp16.safetensors"
    return {
        "model": "vit_tiny_patch16_224",
        "weights": str(weights.absolute()),
        "dataset": "cifar10",
        "data-dir": str((data / "cifar10").absolute()),
        "verify": False,
        "learning-rate": 0.01,
        "topology": graph,
        "checkpoint-every": -1,
        "meet-timeout": 1800.0,
        "seed": seed,
        **SETTINGS[setting],
    }


def named(key: Key) -> str:
    """Return link, setting and seed, for a line of the terminal."""
    return f"{key[0]} | {key[1]} | seed {key[2]}"


def measure(key: Key, data: Path, longest: float, goal: float | None) -> Row:
    """Do a run, up to ``goal`` if there is one, and return its row."""
    link, setting, seed, topology, gradients = key
    settings, graph = job(data, setting, topology, seed), Graph.load(topology)
    if settings.get("algorithm") == "fedavg":
        took = run_fedavg(graph.n, LINKS[link], settings, gradients, longest)
    else:
        took = run_peers(graph, LINKS[link], settings, gradients, longest, goal)
    return Row(*key, took)


def refuse_unknown(kind: str, given: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Return the names given, in the order of ``known``, by default all of these.

    Raises
    ------
    typer.BadParameter
        When a name is unknown.
    """
    if unknown := set(given or ()) - set(known):
        raise typer.BadParameter(f"no {kind} is called {min(unknown)!r}; there are {'; '.join(known)}")
    return [name for name in known if not given or name in given]


def main(
    data: Annotated[Path, typer.Option(help="The folder with weights/ and cifar10/.")],
    graph: Annotated[str, typer.Option(help="A graph of four peers.")] = "directed-ring-4",
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, …", min=1)] = 1,
    seed: Annotated[list[int] | None, typer.Option(help="A seed, instead of --seeds.")] = None,
    goal: Annotated[float, typer.Option(help="Mean accuracy.")] = 0.9,
    gradients: Annotated[int, typer.Option(help="Gradients of a site, a multiple of 128.")] = GRADIENTS,
    longest: Annotated[float, typer.Option(help="Seconds after which a run is given up.")] = 7200.0,
    only: Annotated[list[str] | None, typer.Option(help="A link by name; default all.")] = None,
    setting: Annotated[list[str] | None, typer.Option(help="A setting by name; default all.")] = None,
    file: Annotated[Path | None, typer.Option("--json", help="A line for each finished run.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw all curves, as PNG or SVG.")] = None,
) -> None:
    """Measure each setting on each link; without --json and --figure, peers stop at the goal."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all processes are ended
    links, settings = refuse_unknown("link", only, [*LINKS]), refuse_unknown("setting", setting, [*SETTINGS])
    if gradients < ROUND or gradients % ROUND:
        raise typer.BadParameter(f"--gradients {gradients} is no multiple of {ROUND}")
    jobs = [
        (link, title, number, str(job(data, title, graph, number)["topology"]), gradients)
        for link in links
        for title in settings
        for number in seed or range(seeds)
    ]
    rows: dict[Key, Row] = {}
    failed = False
    for key in jobs:
        rows |= {row.key: row for row in read(file)}  # other commands may share the file
        if key in rows:
            continue
        begun, end = time.monotonic(), None if file is not None or figure is not None else goal
        try:
            rows[key] = measure(key, data, longest, end)
        except (P2PFTError, RuntimeError, AssertionError) as error:  # the latter from tests/flower
            failed = True
            typer.echo(f"{named(key)}: {error}")
            continue
        took = rows[key].took
        if file is not None and took.whole:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(rows[key].to_json() + "\n")
        last = f"{took.curve[-1].accuracy:.3f} at the end{'' if took.whole else ', given up'}"
        typer.echo(f"{named(key)}: {time.monotonic() - begun:.0f} s in all, {last}")
    found = [rows[key] for key in jobs if key in rows]
    typer.echo(table(found, goal))
    if figure is not None and found:
        draw(found, figure)
        typer.echo(f"drawn into {figure}")
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
