"""A hundred peers with one class each: how much of an IID split's accuracy is kept, by method.

Heads on the frozen features of 100 classes: ViT-Tiny's, of the subset of CIFAR-100 in ../shared/data, and
CLIP ViT-B/32's of Caltech, whose files ``python -m benchmarks.clip_features make`` writes. Each peer holds
the images of one class (``shards:1``), or an equal share of all (``iid``); *retention* is the first split's
accuracy divided by the second's. Learning rates are chosen for each method and split from a small grid, with
a tenth of the training images held out, never on test images, and printed. Runs that are there are kept::

    python -m benchmarks.clip_features make --data ../shared/data --out FILES
    python -m benchmarks.hundred_peers --data ../shared/data --files FILES --out OUT
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.clip_features import _execute

PEERS = 100
METHODS = ("p2pft", "dgd", "sgp", "fedavg")
SPLITS = {"iid": "iid", "one class a peer": "shards:1"}
SEEDS = (0, 1, 2)

COMMON = {
    "topology": f"exponential:{PEERS}",
    "tune": "head",
    "batch-size": 32,
    "iterations": 300,
    "evaluate-every": 300,
    "schedule": "cosine",
    "checkpoint-every": -1,
    "meet-timeout": 3600.0,
    "peer-timeout": 3600.0,
}
"""Settings of all runs; an iteration of FedAvg is a step at a client, and a round is an epoch of it."""


@dataclass(frozen=True)
class Features:
    """A set of features: its name, its settings, and the learning rates to choose from."""

    name: str
    settings: dict[str, Any]
    grid: tuple[float, ...]


def features(data: Path, files: Path) -> list[Features]:
    """Return the two sets of features."""
    vit = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    cifar = {
        "model": vit,
        "weights": str(data / "weights" / f"{vit}.fp16.safetensors"),
        "dataset": "cifar100",
        "data-dir": str(data / "cifar100"),
        "verify": False,
    }
    caltech = {"model": "none", "dataset": f"features:{files / 'caltech-100'}.safetensors"}
    return [
        Features("CIFAR-100, ViT-Tiny", cifar, (0.03, 0.1, 0.3)),
        Features("Caltech-100, CLIP ViT-B/32", caltech, (3.0, 10.0, 30.0)),
    ]


@dataclass(frozen=True)
class Study:
    """The runs of one method on one set of features with one split."""

    out: Path
    of: Features
    method: str
    split: str

    def _run(self, rate: float, seed: int, validation: float) -> dict[str, Any]:
        settings = {
            **COMMON,
            **self.of.settings,
            "algorithm": self.method,
            "partition": SPLITS[self.split],
            "learning-rate": rate,
            "seed": seed,
            "validation": validation,
        }
        words = (self.of.name, self.method, SPLITS[self.split], f"{rate:g}", str(seed), f"{validation:g}")
        return _execute(self.out / "_".join(words).replace(" ", "-").replace("/", "-"), settings)

    def rate(self) -> float:
        """Return the learning rate with the best mean accuracy on held-out training images; seed 0."""
        scores = {rate: _accuracy(self._run(rate, 0, 0.1)) for rate in self.of.grid}
        return max(self.of.grid, key=lambda rate: scores[rate])

    def runs(self) -> tuple[float, list[dict[str, Any]]]:
        """Return the chosen learning rate, and the results of all seeds on the test images."""
        rate = self.rate()
        return rate, [self._run(rate, seed, 0.0) for seed in SEEDS]


def _accuracy(run: dict[str, Any]) -> float:
    mean: float = run["summary"]["accuracy"]["mean"]
    return mean


def _megabytes(run: dict[str, Any]) -> float:
    """Return what a peer sends on the average, in MB; a client of FedAvg also receives the model."""
    sent = [int(peer["bytes_sent"]) for peer in run["peers"]]
    return statistics.mean(sent) / 1e6


def _lines(data: Path, files: Path, out: Path) -> Iterator[str]:
    yield "| features | method | iid | one class a peer | retention | learning rates | MB sent by a peer |"
    yield "|---|---|---|---|---|---|---|"
    for of, method in product(features(data, files), METHODS):
        found = {split: Study(out, of, method, split).runs() for split in SPLITS}
        (rate, iid), (other, apart) = found.values()
        kept = [_accuracy(b) / _accuracy(a) for a, b in zip(iid, apart, strict=True)]
        cells = [
            *(_percent([_accuracy(run) for run in runs]) for runs in (iid, apart)),
            f"{statistics.mean(kept):.3f} ({min(kept):.3f} to {max(kept):.3f})",
            f"{rate:g}, {other:g}",
            f"{_megabytes(apart[0]):.0f}",
        ]
        yield f"| {of.name} | `{method}` | {' | '.join(cells)} |"


def _percent(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.pstdev(values):.1f}"


def main(
    data: Annotated[Path, typer.Option(help="The folder with weights/ and cifar100/.")],
    files: Annotated[Path, typer.Option(help="The folder that clip_features make has written.")],
    out: Annotated[Path, typer.Option(help="Where the runs' results go.")],
) -> None:
    """Do the runs that are not there, and print the table."""
    import torch

    torch.set_num_threads(1)
    for line in _lines(data.absolute(), files.absolute(), out):
        typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
