"""Measure the gain of keeping the trunk's output: images a second of one peer's training, way by way.

* ``naive``: the whole model runs forward in every step, as if nothing were frozen;
* ``tokens``: the last block runs on the tokens before it, which are kept;
* ``query``: the last block runs for the class token alone, with keys and values of all tokens;
* ``class-token``: as ``query``, but keys and values are not formed either.

All of them train the last block, the final norm and the head on mini-batches in random order; the kept tokens
are float16 numbers in the memory-mapped store, and the next batch is fetched ahead. The ways take turns, so
that other programs on the machine slow all of them. The images are noise: speed does not depend on them.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import timm
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from p2pft_flower.learning.data.batches import Batches
from p2pft_flower.learning.data.splits import Split
from p2pft_flower.learning.minibatches import MiniBatches
from p2pft_flower.learning.model.models import preprocessing
from p2pft_flower.learning.model.split import Parts, split_model
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.store.features import Features, StoredFeatures, TrunkStore
from p2pft_flower.learning.theta import tail_vector

CLASSES = 10
PATHS = ("class-token", "query", "tokens")
WARM_UP = 3
"""Gradients of each way that are not counted."""


def build(name: str) -> torch.nn.Module:
    """Return timm's model ``name``, frozen, with random weights."""
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=CLASSES).eval().requires_grad_(False)  # type: ignore[no-any-return]


def noise(number: int) -> Split:
    """Return ``number`` images of noise, 32 × 32 pixels in colour."""
    pixels = np.random.default_rng(0).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    return Split(np.arange(number) % CLASSES, lambda i: Image.fromarray(pixels[i]))


class Pixels:
    """Prepared images in memory, for the naive way: reading and resizing them is not counted against it."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def read(self, positions: Any, draw: int | None = None) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:  # noqa: ARG002
        """Return the images at ``positions``, and their labels."""
        return (self.images[positions],), self.labels[positions]

    def ahead(self, following: Any) -> None:
        """Do nothing: all images are in memory."""


def kept(name: str, parts: Parts, transform: Any, split: Split) -> StoredFeatures:
    """Return the trunk's outputs of all images; the trunk runs for images that the store lacks."""
    normed = parts.path == "class-token"
    identity = {"model": name, "tokens": "normalised" if normed else "as they are"}
    store = TrunkStore(parts.trunk, transform, identity, exact=(1,) if normed else ())
    return store.features(split, np.arange(len(split)), "noise")


def objective(tail: torch.nn.Module, features: Features, batch: int) -> PeerObjective:
    """Return one peer's objective, with mini-batches of ``batch`` images."""
    images = MiniBatches(features, Batches(len(features), batch, seed=0, peer=0))
    return PeerObjective(tail, images, features, seed=0, peer=0)


def rate(peer: PeerObjective, theta: Any, batch: int, seconds: float) -> float:
    """Return images a second of the peer's gradients, over ``seconds`` and one gradient at least."""
    begin, steps = time.perf_counter(), 0
    while steps == 0 or time.perf_counter() - begin < seconds:
        peer.gradient(theta)
        steps += 1
    return batch * steps / (time.perf_counter() - begin)


def measure(name: str, images: int, batch: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Return one model's speeds: images a second of the trunk and of each way, and ratios to ``naive``."""
    model, split = build(name), noise(images)
    transform = preprocessing(model)
    whole = split_model(model, "last-block", path="full")
    pixels = torch.stack([transform(split.read(i)) for i in range(4 * batch)])
    peers = {
        "naive": objective(whole.tail, Pixels(pixels, torch.from_numpy(split.labels[: 4 * batch])), batch)
    }
    trunk_rate = 0.0
    for path in PATHS:
        parts = split_model(model, "last-block", path=path)
        begin = time.perf_counter()
        features = kept(name, parts, transform, split)
        if path != "tokens":  # whose rows are those of query
            trunk_rate = max(trunk_rate, images / (time.perf_counter() - begin))
        peers[path] = objective(parts.tail, features, batch)
    theta = tail_vector(whole.tail)
    for peer in peers.values():
        for _ in range(WARM_UP):
            peer.gradient(theta)
    rates: dict[str, list[float]] = {way: [] for way in peers}
    for _ in range(rounds):
        for way, peer in peers.items():
            rates[way].append(rate(peer, theta, batch, seconds))
    return {
        "model": name,
        "trunk": trunk_rate,
        "images_per_second": {way: statistics.median(r) for way, r in rates.items()},
        "times_naive": {
            way: statistics.median(a / b for a, b in zip(r, rates["naive"], strict=True))
            for way, r in rates.items()
        },
    }


def memory(name: str, images: int, batch: int) -> dict[str, float]:
    """Return what :func:`peer_memory` measures in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--peer-memory",
        name,
        "--images",
        str(images),
        "--batch",
        str(batch),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def peer_memory(name: str, images: int, batch: int) -> dict[str, float]:
    """Train one peer on the store, which is filled already; return sizes in bytes.

    ``resident`` is the most resident memory above that of a process that has loaded the libraries and the
    frozen model: rows of the store that were read, batches, activations, gradients, the tail's trained part,
    the vectors. ``share`` is the size of the peer's rows, ``vectors`` that of six vectors, and ``tail`` that
    of the tail.
    """
    model, split = build(name), noise(images)
    layer = torch.nn.Linear(8, 8)
    torch.autograd.grad(
        torch.nn.functional.cross_entropy(layer(torch.zeros(2, 8)), torch.zeros(2).long()), layer.weight
    )
    process = psutil.Process()
    before = process.memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    parts = split_model(model, "last-block")
    features = kept(name, parts, preprocessing(model), split)
    peer, theta = objective(parts.tail, features, batch), tail_vector(parts.tail)
    tracker = gradient = peer.gradient(theta)
    for _ in range(2 * images // batch):  # the vectors of Algorithm 1, without neighbours
        theta = theta - np.float32(1e-3) * tracker
        new = peer.gradient(theta)
        tracker, gradient = tracker + new - gradient, new
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]
    tail = sum(p.numel() * p.element_size() for p in parts.tail.parameters())
    return {
        "resident": peak - before,
        "share": features.rows.nbytes,
        "vectors": 6 * theta.nbytes,
        "tail": tail,
    }


def main(
    model: Annotated[list[str] | None, typer.Option(help="A ViT of timm with a class token.")] = None,
    images: Annotated[int, typer.Option(help="Images of the peer.", min=64)] = 1024,
    batch: Annotated[int, typer.Option(min=1)] = 32,
    threads: Annotated[int, typer.Option(help="Threads of torch.", min=1)] = 2,
    seconds: Annotated[float, typer.Option(help="Of each way, in each round.", min=0.1)] = 4.0,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
    peer_memory_of: Annotated[str, typer.Option("--peer-memory", hidden=True)] = "",
) -> None:
    """Print images a second of one peer's training by how the frozen part is treated, and its memory."""
    torch.set_num_threads(threads)
    if peer_memory_of:
        print(json.dumps(peer_memory(peer_memory_of, images, batch)))
        return
    results = []
    with tempfile.TemporaryDirectory() as home:
        os.environ["P2PFT_HOME"] = str(Path(home))
        for name in model or ["vit_tiny_patch16_224", "vit_small_patch16_224"]:
            measured = measure(name, images, batch, seconds, rounds)
            results.append(measured | memory(name, images, batch))
    if as_json:
        print(json.dumps(results, indent=2))
        return
    console = Console()
    ways = ("naive", *reversed(PATHS))
    speed = Table("model", *(f"{way}, images/s" for way in ways), "trunk, images/s")
    ratio = Table("model", *(f"{way} / naive" for way in ways))
    space = Table("model", "resident", "share of the store", "6 vectors", "tail", "resident / all three")
    for r in results:
        speed.add_row(r["model"], *(f"{r['images_per_second'][w]:.0f}" for w in ways), f"{r['trunk']:.0f}")
        ratio.add_row(r["model"], *(f"{r['times_naive'][w]:.1f}" for w in ways))
        sizes = [r[k] for k in ("resident", "share", "vectors", "tail")]
        mb = [f"{v / 1e6:.1f} MB" for v in sizes]
        space.add_row(r["model"], *mb, f"{sizes[0] / sum(sizes[1:]):.2f}")
    for table in (speed, ratio, space):
        console.print(table)
    console.print(f"batch {batch}, {images} images, {threads} threads, torch {torch.__version__}")


if __name__ == "__main__":
    typer.run(main)
