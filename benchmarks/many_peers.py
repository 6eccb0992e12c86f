"""Measure an iteration with many peers on one machine: this build, and an earlier one, side by side.

The embedded default (`glyph_vit_8`, its last block: 50,762 numbers) on IID shares of `digits`. The hosts are
processes; they take turns with those of the earlier build, whose checkout `--earlier` names. Times are those
between two draws of each host's first peer, without the iterations that warm up. θ of all peers after the
last iteration is compared: on one host and on several to the last bit, and with the first way's.

*Computed* are the seconds that all hosts together computed. If the machine is busy, compare these.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
CHILD = Path(__file__).with_name("many_peers_host.py")

WARM_UP = 2
"""Iterations that are not counted."""

PATIENCE = 3600.0
"""Seconds that a run may take before it counts as failed."""


@dataclass(frozen=True)
class Way:
    """A way to run the peers: the build's folder, the number of hosts, settings, and where vectors are.

    ``vectors`` is ``""`` (as the product has them), ``"memory"`` or ``"cpu"`` (accelerator.py).
    """

    name: str
    build: Path
    hosts: int
    settings: dict[str, Any]
    vectors: str = ""


@dataclass(frozen=True)
class Run:
    """What one run took: medians over its iterations, the memory of all hosts, and θ, (n, q)."""

    passed: float
    computed: float
    prepared: float
    memory: float
    theta: np.ndarray


def run(way: Way, graph: str, n: int, iterations: int) -> Run:
    """Train ``n`` peers in the given way."""
    parts = [list(map(int, part)) for part in np.array_split(np.arange(n), way.hosts)]
    with tempfile.TemporaryDirectory(prefix="p") as name, ThreadPoolExecutor(len(parts)) as pool:
        common = {
            "graph": graph,
            "n": n,
            "hosts": parts,
            "iterations": iterations,
            "folder": name,
            "settings": way.settings,
            "vectors": way.vectors,
        }
        children = [_start(way.build, common | {"peers": peers}) for peers in parts]
        try:
            lines = list(pool.map(lambda child: child.stdout.readline(), children, timeout=PATIENCE))
        finally:
            for child in children:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if not all(lines):
            raise SystemExit(f"{way.name}, {n} peers: a host has failed; P2PFT_BENCH_LOG=1 shows why")
        told = [json.loads(line) for line in lines]
        theta: dict[int, np.ndarray] = {}
        for part in parts:
            with np.load(Path(name) / f"theta-{part[0]}.npz") as file:
                theta |= {int(p): file[p] for p in file.files}
    return Run(
        passed=max(statistics.median(one["passed"][WARM_UP:]) for one in told),
        computed=sum(statistics.median(one["computed"][WARM_UP:]) for one in told),
        prepared=max(one["prepared"] for one in told),
        memory=sum(one["memory"] for one in told),
        theta=np.stack([theta[p] for p in range(n)]),
    )


def _start(build: Path, task: dict[str, Any]) -> Any:
    environment = {**os.environ, "PYTHONPATH": str(build), "P2PFT_HOME": str(_HOME.name)}
    child = subprocess.Popen(
        [sys.executable, str(CHILD)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if not os.environ.get("P2PFT_BENCH_LOG") else None,
        text=True,
        start_new_session=True,
    )
    child.stdin.write(json.dumps(task))  # type: ignore[union-attr]
    child.stdin.close()  # type: ignore[union-attr]
    return child


_HOME = tempfile.TemporaryDirectory(prefix="p2pft-home")


def ways(earlier: Path | None, cores: int) -> list[Way]:
    """Return the ways that are compared, the one to which others are compared first."""
    new = [
        Way("one host, one by one", ROOT, 1, {"batched": "false"}),
        Way("one host", ROOT, 1, {"batched": "true"}),
        Way(f"{cores} hosts", ROOT, cores, {"batched": "true"}),
    ]
    return new if earlier is None else [Way(f"earlier, {cores} hosts", earlier, cores, {}), *new]


def main(
    peers: Annotated[list[int] | None, typer.Option(help="Numbers of peers.")] = None,
    topology: Annotated[
        str, typer.Option(help="The graph, with {n} for the number of peers.")
    ] = "exponential:{n}",
    iterations: Annotated[int, typer.Option(min=WARM_UP + 1, help="Iterations of a run.")] = 7,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each way.")] = 1,
    cores: Annotated[int, typer.Option(min=2, help="The machine's cores: so many hosts.")] = 2,
    earlier: Annotated[Path | None, typer.Option(help="The checkout of an earlier build.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Print what an iteration with many peers takes, way by way."""
    found: dict[str, Any] = {}
    for n in peers or [64, 256]:
        graph = topology.format(n=n)
        runs: dict[str, list[Run]] = {}
        for _ in range(rounds):
            for way in ways(earlier and earlier.resolve(), cores):
                runs.setdefault(way.name, []).append(run(way, graph, n, iterations))
        found[graph] = _compared(runs, ("one host", f"{cores} hosts"))
        if not as_json:
            _print(graph, found[graph])
    if as_json:
        print(json.dumps(found, indent=2))


def _compared(runs: dict[str, list[Run]], alike: tuple[str, str]) -> dict[str, dict[str, float]]:
    """Return the figures of each way; distances of θ are relative to the first way's.

    Raises
    ------
    SystemExit
        When θ of the two ways ``alike``, which differ in the number of hosts alone, is not the same.
    """
    first = next(iter(runs.values()))
    reference = first[0].theta.astype(np.float64)
    told = {}
    for name, made in runs.items():
        apart = made[0].theta - reference
        told[name] = {
            "passed": statistics.median(one.passed for one in made),
            "computed": statistics.median(one.computed for one in made),
            "times faster": statistics.median(
                one.passed / other.passed for one, other in zip(first, made, strict=True)
            ),
            "prepared": statistics.median(one.prepared for one in made),
            "memory": max(one.memory for one in made),
            "theta apart": float((np.linalg.norm(apart, axis=1) / np.linalg.norm(reference, axis=1)).max()),
        }
    one, several = (runs[name][0].theta for name in alike)
    if not np.array_equal(one, several):
        raise SystemExit(f"{alike[0]} and {alike[1]} come to different θ")
    return told


def _print(graph: str, told: dict[str, dict[str, float]]) -> None:
    table = Table(
        "way", "an iteration, s", "times faster", "computed, s", "memory", "prepared, s", "θ apart",
        title=f"{graph}, the embedded default",
    )  # fmt: skip
    for name, one in told.items():
        table.add_row(
            name,
            f"{one['passed']:.3f}",
            f"{one['times faster']:.1f}",
            f"{one['computed']:.3f}",
            decimal(int(one["memory"])),
            f"{one['prepared']:.1f}",
            f"{one['theta apart']:.1e}",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
