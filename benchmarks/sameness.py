"""Check, on timm's real architectures, that the files of a run give the scores that the run reported.

For every model and way of tuning, three peers train for a few iterations; the run is also resumed from its
checkpoints, as if it had been killed, and its tails are scored by ``p2pft evaluate``. To the last bit, the
scores that ``evaluate`` prints must be the run's, and θ and scores of the resumed run must be those of the
uninterrupted one. Nothing is downloaded: weights are random, images are noise. Usage, from the repository's
root::

    python -m benchmarks.sameness [--model NAME]… [--tune TUNE]… [--workers N]
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

MODELS = (
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_r_s16_p8_224",
)
TUNES = (
    "last-block",
    "last-blocks:2",
    "head",
    "full",
    "bias",
    "bias+norm",
    "lora:4",
    "adapter:8",
    "prompt:4",
    "prompt-deep:4",
)
PEERS, KILLED_AFTER = 3, 2
SETTINGS: dict[str, Any] = {
    "weights": "none",
    "topology": f"directed-ring:{PEERS}",
    "batch-size": 2,
    "learning-rate": 0.01,
    "iterations": 4,
    "evaluate-every": 4,  # between the checkpoint and the next evaluation, a resumed run trains
    "checkpoint-every": 2,
    "checkpoints-kept": 9,
    "meet-timeout": 3600.0,
    "peer-timeout": 3600.0,
}


@dataclass(frozen=True)
class Found:
    """The findings on one model with one way of tuning.

    Attributes
    ----------
    accuracy : float
        Mean accuracy of the peers, 0..1, as the run reported it.
    scored : bool
        Whether ``p2pft evaluate`` gives every peer's accuracy and loss exactly.
    resumed : bool
        Whether the resumed run equals the uninterrupted one, bit for bit.
    seconds : float
        Seconds that all runs and scores took.
    """

    accuracy: float
    scored: bool
    resumed: bool
    seconds: float


def draw(folder: Path) -> None:
    """Write noise images of three classes below ``folder``: of each class 3 to train on, 8 to test."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 8)):
        for label in ("a", "b", "c"):
            (folder / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{i}.png")


def look(model: str, tune: str, images: Path) -> Found:
    """Run, resume and score one model with one way of tuning in this process; return the findings."""
    import torch
    from typer.testing import CliRunner

    from p2pft_flower.cli import app
    from p2pft_flower.flower import client
    from p2pft_flower.report.results import read_results
    from tests.flower.engine import run_app
    from tests.flower.sameness import same_run
    from tests.flower.test_resume import killed_after

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(out: Path, **more: Any) -> dict[str, Any]:
            client.workload.cache_clear()  # nothing of the model survives from one run to the next
            settings = SETTINGS | {"model": model, "tune": tune, "dataset": f"folder:{images}"}
            run_app(out, nodes=1, **settings, **more)
            return read_results(out)

        results = run(folder / "whole")
        killed = killed_after(KILLED_AFTER, folder / "whole", folder / "killed", n=PEERS)  # type: ignore[no-untyped-call]
        run(folder / "resumed", resume=str(killed))
        try:
            same_run(folder / "resumed", folder / "whole", n=PEERS)  # type: ignore[no-untyped-call]
            resumed = True
        except AssertionError:
            resumed = False
        told = CliRunner().invoke(app, ["evaluate", "--json", str(folder / "whole")])
        scores = [(s["accuracy"], s["loss"]) for s in json.loads(told.stdout)]
    reported = [(p["accuracy"], p["loss"]) for p in results["peers"]]
    accuracy = results["summary"]["accuracy"]["mean"]
    return Found(accuracy, scores == reported, resumed, time.monotonic() - begin)


def main(
    model: Annotated[list[str] | None, typer.Option(help="A model of timm's; default four.")] = None,
    tune: Annotated[list[str] | None, typer.Option(help="A way of tuning; default all ten.")] = None,
    workers: Annotated[int, typer.Option(help="Models at a time, each with one thread.", min=1)] = 2,
) -> None:
    """Print a table; the exit code is 1 when anything differs."""
    wanted = list(product(model or MODELS, tune or TUNES))
    found: dict[tuple[str, str], Found] = {}
    with tempfile.TemporaryDirectory() as root, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        images = Path(root) / "images"
        draw(images)
        futures = {pool.submit(look, *case, images): case for case in wanted}
        for number, future in enumerate(as_completed(futures), start=1):
            case = futures[future]
            found[case] = future.result()
            typer.echo(f"{number}/{len(wanted)} {' '.join(case)}: {found[case].seconds:.0f} s", err=True)
    table = Table("model", "tune", "accuracy", "evaluate: the same", "resumed: the same")
    for (name, way), one in sorted(found.items(), key=lambda item: wanted.index(item[0])):
        words = ("yes" if one.scored else "NO", "yes" if one.resumed else "NO")
        table.add_row(Text(name, overflow="fold"), way, f"{one.accuracy:.4f}", *words)
    Console().print(table)
    raise typer.Exit(0 if all(one.scored and one.resumed for one in found.values()) else 1)


if __name__ == "__main__":
    typer.run(main)
