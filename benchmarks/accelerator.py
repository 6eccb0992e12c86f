"""Measure an accelerator: iterations with vectors in the CPU's memory and on the device, and the trunk.

All peers are on one host, on `exponential:N`, and their gradients are drawn together on the device. They take
turns with their vectors in the CPU's memory, to which each gradient comes and from which each θ goes, and on
the device. The *bound* is the time that it takes to read and write each vector of an iteration once for each
time that Algorithm 1 names it, at the rate at which the device copies a large tensor.

    python -m benchmarks.accelerator --json FILE [--peers 4 --peers 64 --peers 1024] [--device cuda]

With ``--device cpu`` torch's CPU stands for the accelerator: that tries the ways, and measures nothing.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.many_peers import ROOT, WARM_UP, Run, Way, run
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.topology import Graph

MODELS = {"embedded default": {}, "ViT-S": {"model": "vit_small_patch16_224", "weights": "random"}}
"""Models by name, with their settings; the last block of each is trained, on IID shares of `digits`."""

BATCH = {"cuda": 64, "cpu": 2}
"""Images in one pass of the trunk, by device."""


def card(device: str) -> str:
    """Return the accelerator's name."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} ({device})"


def seconds(work: Callable[[], object], device: str, rounds: int = 10) -> float:
    """Return the median time of ``work`` on the device, after a first one that is not counted."""
    taken = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def copy_rate(device: str) -> float:
    """Return how many bytes a second the device reads and writes when it copies a large tensor."""
    numbers = torch.zeros(2**28 if device == "cuda" else 2**24, device=device)
    target = torch.empty_like(numbers)
    return 2 * numbers.nbytes / seconds(lambda: target.copy_(numbers), device)


def bytes_of_iteration(n: int, q: int) -> int:
    """Return the bytes of vectors that an iteration of Algorithm 1 reads and writes on `exponential:n`."""
    mixed = Graph.load(f"exponential:{n}").edges
    step, gradient, tracker = 3, 2, 4  # θ − α τ; θ ↦ g; τ + g⁺ − g
    return 4 * q * (n * (step + gradient + tracker) + 2 * (len(mixed) + n + n))


def compare(model: str, n: int, device: str, iterations: int, rate: float) -> dict[str, float]:
    """Return the seconds of an iteration in both ways, and the bound."""
    settings = {"device": device, "batched": "true", **MODELS[model]}
    places = {"memory": "memory", "device": "" if device == "cuda" else "cpu"}
    ways = {name: Way(name, ROOT, 1, settings, vectors) for name, vectors in places.items()}
    runs: dict[str, Run] = {name: run(way, f"exponential:{n}", n, iterations) for name, way in ways.items()}
    q = runs["device"].theta.shape[1]
    bound = bytes_of_iteration(n, q) / rate
    apart = float(abs(runs["device"].theta - runs["memory"].theta).max())
    taken = {name: one.passed for name, one in runs.items()}
    return {"numbers": q, **taken, "bound": bound, "theta apart": apart}


def trunk_rates(device: str) -> dict[str, float]:
    """Return the images a second of ViT-S: the whole model in float32, and its trunk in bfloat16."""
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", num_classes=10).eval().requires_grad_(False)
    trunk, model = split_model(model, "last-block").trunk.to(device), model.to(device)
    batch = BATCH[device]
    images = torch.randn(batch, 3, 224, 224, device=device)

    def reduced() -> object:
        with torch.autocast(device, torch.bfloat16):
            return trunk(images)

    rounds = 10 if device == "cuda" else 1
    with torch.no_grad():
        naive = seconds(lambda: model(images), device, rounds)
        return {
            "whole model, float32": batch / naive,
            "trunk, bfloat16": batch / seconds(reduced, device, rounds),
        }


def main(
    as_json: Annotated[Path | None, typer.Option("--json", help="A file for the figures.")] = None,
    peers: Annotated[
        list[int] | None, typer.Option(help="Numbers of peers; default 4, 64 and 1,024.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help=f"{' or '.join(MODELS)}; default both.")] = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the ways.")] = "cuda",
    iterations: Annotated[int, typer.Option(min=WARM_UP + 1, help="Iterations of a run.")] = 22,
) -> None:
    """Print what an iteration takes with vectors in the CPU's memory and on the device."""
    rate = copy_rate(device)
    found: dict[str, Any] = {"card": card(device), "torch": torch.__version__, "bytes a second": rate}
    table = Table(
        "model", "peers", "numbers", "in memory, s", "on the device, s", "times faster",
        "of the bound", "θ apart",
        title=f"{found['card']}, {rate / 1e9:.0f} GB/s",
    )  # fmt: skip
    for name in model or MODELS:
        for n in peers or (4, 64, 1024):
            one = found[f"{name}, {n} peers"] = compare(name, n, device, iterations, rate)
            faster, share = one["memory"] / one["device"], one["bound"] / one["device"]
            table.add_row(
                name,
                str(n),
                f"{one['numbers']:,}",
                f"{one['memory']:.4f}",
                f"{one['device']:.4f}",
                f"{faster:.1f}",
                f"{share:.2f}",
                f"{one['theta apart']:.1e}",
            )
            if as_json is not None:  # also if a later run takes too long
                as_json.write_text(json.dumps(found, indent=2) + "\n")
    Console().print(table)
    found["images a second"] = trunk_rates(device)
    for what, images in found["images a second"].items():
        print(f"{what}: {images:,.0f} images/s")
    if as_json is not None:
        as_json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
