"""Make the tables on clinical questions of docs/results.md: scores by class, and six centres of unequal size.

The centres have the proportions of Fed-ISIC2019's training images (9,930 to 351), with images of CIFAR-10
whose classes are of unequal size, too. Runs and tables are made as in :mod:`benchmarks.results`::

    python -m benchmarks.clinical run --data ../shared/data --out OUT
    python -m benchmarks.clinical show --out OUT
"""

from __future__ import annotations

import csv
import os
import pickle
import statistics
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks import results
from benchmarks.results import SEEDS, Job, Results

app = typer.Typer(help=__doc__.split("\n")[0], no_args_is_help=True)

CENTRES = (9930, 3163, 2691, 1807, 655, 351)
"""Fed-ISIC2019's images of each centre, as FLamby counts them."""
RAREST = 10
"""Images of the most frequent class for one of the rarest; the classes between are spaced by one factor."""
BY_CLASS = ("Pets-37", "Flowers-17")
METHODS = ("local", "p2pft", "fedavg", "centralized")
EPOCHS = 40


def centres_table(data: Path, folder: Path, seed: int = 0) -> Path:
    """Write the centres' images and table, unless they are there, and return the table's path.

    Of each class of CIFAR-10's subset the first images are taken, 400 of class 0 and a tenth of that of
    class 9 for training, a quarter as many for testing. Each centre has a share of each class by Dirichlet's
    distribution with α = 0.5, as far as images are left, and its number of images.
    """
    table = folder / "labels.csv"
    if table.exists():
        return table
    rng = np.random.default_rng(seed)
    names = pickle.loads((data / "cifar10/cifar-10-batches-py/batches.meta").read_bytes())["label_names"]
    rows = []
    for split, files in (("train", [f"data_batch_{k}" for k in range(1, 6)]), ("test", ["test_batch"])):
        pixels, labels = _read(data, files)
        keep = [
            np.flatnonzero(labels == c)[: round(np.sum(labels == c) * RAREST ** (-c / (len(names) - 1)))]
            for c in range(len(names))
        ]
        centre = _dealt([len(k) for k in keep], rng) if split == "train" else None
        place = 0
        for c, positions in enumerate(keep):
            for position in positions:
                path = folder / split / f"{split}-{position:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[position].reshape(3, 32, 32).transpose(1, 2, 0)).save(path)
                at = 0 if centre is None else centre[place]  # a test image is everybody's
                rows.append((f"{split}/{path.name}", names[c], split, at))
                place += 1
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "target", "fold", "center"), *rows])
    return table


def _read(data: Path, files: list[str]) -> tuple[Any, Any]:
    folder = data / "cifar10/cifar-10-batches-py"
    batches = [pickle.loads((folder / name).read_bytes()) for name in files]
    pixels = np.concatenate([np.asarray(b["data"]) for b in batches])
    return pixels, np.concatenate([np.asarray(b["labels"]) for b in batches])


def _dealt(counts: list[int], rng: np.random.Generator) -> list[int]:
    """Return the centre of each image; the images of one class after another."""
    sizes = np.round(np.array(CENTRES) / sum(CENTRES) * sum(counts)).astype(int)
    sizes[0] += sum(counts) - sizes.sum()
    left = np.array(counts)
    taken = np.zeros((len(sizes), len(counts)), int)
    for centre in np.argsort(sizes):  # the small ones first: the largest takes what is left
        shares = rng.dirichlet(np.full(len(counts), 0.5))
        for _ in range(sizes[centre]):
            open_classes = np.where(left > 0, shares + 1e-9, 0.0)
            c = rng.choice(len(counts), p=open_classes / open_classes.sum())
            taken[centre, c] += 1
            left[c] -= 1
    dealt = [np.repeat(np.arange(len(sizes)), taken[:, c]) for c in range(len(counts))]
    return [int(centre) for of_class in dealt for centre in of_class]


def jobs(data: Path, out: Path) -> Iterator[Job]:
    """Yield all runs; ``data`` is the folder of images and weights."""
    table = centres_table(data, out.absolute() / "centres-images")
    for dataset, method, seed in product(BY_CLASS, METHODS, SEEDS):
        settings = results._settings(data, "ViT-Tiny", dataset, method, seed)
        yield Job("by-class", (dataset, method, str(seed)), settings)
    here = results._settings(data, "ViT-Tiny", "CIFAR-10", "p2pft", 0)
    here |= {"dataset": f"table:{table}", "partition": "by:center", "topology": "directed-ring:6"}
    here |= {"epochs": EPOCHS, "data-dir": ""}
    for objective, method, seed in product(("uniform", "examples"), METHODS, SEEDS):
        if method == "local" and objective == "examples":
            continue  # a peer that is alone has one objective
        settings = {**here, "algorithm": method, "seed": seed, "objective": objective}
        yield Job("centres", (objective, method, str(seed)), settings)


@app.command()
def run(
    data: Annotated[Path, typer.Option(help="The folder with weights/, cifar10/, pets37/, flowers17/.")],
    out: Annotated[Path, typer.Option(help="Where the runs' results go.")],
    workers: Annotated[int, typer.Option(help="Runs at a time, each with one thread.", min=1)] = 2,
) -> None:
    """Run what is not there yet."""
    results.execute_all(list(jobs(data.absolute(), out)), out, workers)


def _mean(runs: list[dict[str, Any]], key: str) -> str:
    return results._percent([r["summary"][key]["mean"] for r in runs])


def _lowest(runs: list[dict[str, Any]]) -> str:
    """Return the lowest recall of a class, mean over peers and seeds, with the class and its support."""
    recall, support, names = _by_class(runs, "recall")
    lowest = int(np.argmin(recall))
    return f"{100 * recall[lowest]:.1f} ({names[lowest]}, {support[lowest]})"


def _by_class(runs: list[dict[str, Any]], key: str) -> tuple[Any, list[int], list[str]]:
    """Return a figure of each class, mean over peers and seeds; the supports; the classes' names."""
    scores = [peer["class_scores"]["classes"] for r in runs for peer in r["peers"]]
    return np.mean([s[key] for s in scores], axis=0), scores[0]["support"], scores[0]["names"]


def _summary(found: Results, section: str, rows: Sequence[tuple[str, ...]], head: list[str]) -> str:
    told = []
    for labels in rows:
        runs = found.seeds(section, *labels)
        if not runs:
            continue
        keys = ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error")
        told.append([*labels, *(_mean(runs, key) for key in keys), _lowest(runs), results._seeds(runs)])
    more = ["accuracy", "balanced accuracy", "macro F1", "calibration error", "lowest recall", "seeds"]
    return results._table([*head, *more], told)


def _classes(found: Results, dataset: str) -> str:
    by = {method: found.seeds("by-class", dataset, method) for method in METHODS}
    _, support, names = _by_class(by["p2pft"], "recall")
    recalls = {method: _by_class(runs, "recall")[0] for method, runs in by.items()}
    auroc = _by_class(by["p2pft"], "auroc")[0]
    rows = [
        [
            name,
            str(support[c]),
            *(f"{100 * recalls[m][c]:.0f}" for m in METHODS),
            f"{100 * auroc[c]:.1f}",
        ]
        for c, name in enumerate(names)
    ]
    head = ["class", "test images", *(f"recall, {m}" for m in METHODS), "AUROC, p2pft"]
    return results._table(head, rows)


def _by_peer(runs: list[dict[str, Any]]) -> list[str]:
    """Return each peer's balanced accuracy in percent, mean over the seeds; empty without runs."""
    scores = [[peer["class_scores"]["balanced_accuracy"] for peer in r["peers"]] for r in runs]
    return [f"{100 * statistics.mean(of_peer):.1f}" for of_peer in zip(*scores, strict=True)]


@app.command()
def show(out: Annotated[Path, typer.Option(help="Where the runs' results are.")]) -> None:
    """Print the tables as Markdown."""
    found = Results(out)
    rows = [tuple(map(str, cell)) for cell in product(BY_CLASS, METHODS)]
    typer.echo(f"### by class\n\n{_summary(found, 'by-class', rows, ['data', 'method'])}\n")
    for dataset in BY_CLASS:
        typer.echo(f"### {dataset}\n\n{_classes(found, dataset)}\n")
    cells = [(o, m) for o, m in product(("uniform", "examples"), METHODS)]
    typer.echo(f"### centres\n\n{_summary(found, 'centres', cells, ['objective', 'method'])}\n")
    one = found.seeds("centres", "uniform", "p2pft")
    if one:
        images = ", ".join(str(p["images"]) for p in one[0]["peers"])
        cells = [(o, m) for o, m in cells if m != "centralized"]
        told = [[f"{o}, {m}", *_by_peer(found.seeds("centres", o, m))] for o, m in cells]
        typer.echo(f"images of the centres: {images}\n")
        head = ["balanced accuracy of", *map(str, range(len(CENTRES)))]
        typer.echo(results._table(head, [row for row in told if row[1:]]))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    app()
