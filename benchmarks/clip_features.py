"""P2P-FT on real CLIP features: random against text start, few shots, and the other methods.

``make`` writes files of features and of text embeddings (docs/features.md) from ../shared/data/clip_b32, and
of the 500 images of CIFAR-10 a folder of the images, too, for ``p2pft reproduce fedtune``;
``run`` trains on them and prints Markdown. Learning rates are chosen for each data set, head and method from
a small grid on validation features, never on test features, and printed. The runs are those of ``p2pft run``,
driven as in benchmarks/results.py; a run that is there already is kept. From the repository's root::

    python -m benchmarks.clip_features make --data ../shared/data --out FILES
    python -m benchmarks.clip_features run --files FILES --out OUT
"""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from safetensors.numpy import load_file, save_file

app = typer.Typer(help="P2P-FT on real CLIP features.", no_args_is_help=True)

PETS = {
    "american_pit_bull_terrier": "American pit bull terrier",
    "basset_hound": "basset",
    "beagle": "beagle",
    "boxer": "boxer",
    "chihuahua": "Chihuahua",
    "english_cocker_spaniel": "English cocker spaniel",
    "english_setter": "English setter",
    "german_shorthaired": "German short-haired pointer",
    "great_pyrenees": "Great Pyrenees",
    "keeshond": "keeshond",
    "miniature_pinscher": "miniature pinscher",
    "newfoundland": "Newfoundland",
    "persian": "Persian cat",
    "pomeranian": "Pomeranian",
    "pug": "pug",
    "saint_bernard": "Saint Bernard",
    "samoyed": "Samoyed",
    "scottish_terrier": "Scottish terrier",
    "siamese": "Siamese cat",
    "staffordshire_bull_terrier": "Staffordshire bull terrier",
    "wheaten_terrier": "soft-coated wheaten terrier",
    "yorkshire_terrier": "Yorkshire terrier",
    "japanese_chin": "Japanese spaniel",
    "leonberger": "Leonberg",
}
"""The breeds of Pets that ImageNet names, too, with a name of ImageNet's: their text embeddings are there."""

CIFAR10 = {
    "airplane": "airplane",
    "automobile": "car_(automobile)",
    "bird": "bird",
    "cat": "cat",
    "deer": "deer",
    "dog": "dog",
    "frog": "frog",
    "horse": "horse",
    "ship": "cargo_ship",
    "truck": "truck",
}
"""CIFAR-10's classes, with names of LVIS's: their text embeddings are there."""

CIFAR10_TRAIN = 20
"""Images a class, of the 500 of which there are features, that are training images; the others are tested."""

METHODS = ("p2pft", "fedavg", "local", "centralized")
SHOTS = (1, 4, 16)
SEEDS = (0, 1, 2)
GRID = {"random": (1.0, 3.0, 10.0, 30.0), "text": (0.00003, 0.0001, 0.0003, 0.001, 0.003)}
"""Learning rates to choose from. Rows of a text head have length 1 and logits a scale of 100; features have
length 1, so a random head needs large weights."""

COMMON = {
    "model": "none",
    "tune": "head",
    "topology": "directed-ring-4",
    "batch-size": 32,
    "iterations": 1200,
    "evaluate-every": 1200,
    "schedule": "cosine",
}


def _imagenet(names: list[str]) -> dict[str, int]:
    """Return the position of each of ImageNet's names, synonyms apart; of a name of two classes the first."""
    found: dict[str, int] = {}
    for position, synonyms in enumerate(names):
        for name in synonyms.split(","):
            found.setdefault(name.strip(), position)
    return found


def _some(
    vectors: npt.NDArray[Any], labels: npt.NDArray[Any], kept: list[int]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return the samples of the classes ``kept``, which are numbered anew."""
    new = {label: i for i, label in enumerate(kept)}
    mine = np.isin(labels, kept)
    return vectors[mine], np.array([new[label] for label in labels[mine].tolist()], dtype=np.int64)


@app.command()
def make(
    data: Annotated[Path, typer.Option(help="The folder with clip_b32/.")],
    out: Annotated[Path, typer.Option(help="Where the files go.")],
) -> None:
    """Write files of features; NAME-val.safetensors has the validation features as its test features."""
    out.mkdir(parents=True, exist_ok=True)
    told = json.loads((data / "clip_b32" / "clip_vitb32.json").read_text())
    images = load_file(data / "clip_b32" / "clip_vitb32_images.safetensors")
    texts = load_file(data / "clip_b32" / "clip_vitb32_text.safetensors")
    of = _imagenet(told["imagenet_names"])

    def part(name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        return images[f"{name}.features"], images[f"{name}.labels"]

    def write(
        name: str, classes: list[str], parts: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]
    ) -> None:
        for tested in parts.keys() - {"train"}:
            (x, y), (x_test, y_test) = parts["train"], parts[tested]
            ending = {"test": "", "val": "-val"}[tested]
            arrays = {"train.features": x, "train.labels": y, "test.features": x_test, "test.labels": y_test}
            save_file(
                {k: np.ascontiguousarray(v) for k, v in arrays.items()},
                out / f"{name}{ending}.safetensors",
                {"classes": json.dumps(classes)},
            )

    def write_text(name: str, classes: list[str], rows: npt.NDArray[Any]) -> None:
        save_file(
            {"embeddings": np.ascontiguousarray(rows)},
            out / f"{name}-text.safetensors",
            {"names": json.dumps(classes), "logit-scale": "100.0"},
        )

    breeds = told["oxford_pets_names"]
    kept = [breeds.index(name) for name in PETS]
    sets = {"train": "oxford_pets_train16", "val": "oxford_pets_val", "test": "oxford_pets_test"}
    write("pets-24", list(PETS), {k: _some(*part(name), kept) for k, name in sets.items()})
    rows = texts["imagenet_a_photo_of_a_name"][[of[name] for name in PETS.values()]]
    write_text("pets-24", list(PETS), rows)
    for name, stem, size in (("flowers-102", "oxford_flowers", 102), ("caltech-100", "caltech101", 100)):
        classes = [str(label) for label in range(size)]
        write(
            name,
            classes,
            {k: part(f"{stem}_{p}") for k, p in (("train", "train16"), ("val", "val"), ("test", "test"))},
        )
    # Two images a class to train on, another one to test; to choose a rate, one of the two is held out.
    x, y = part("imagenet_train2")
    order = np.argsort(y, kind="stable")
    x, y = x[order], y[order]
    names = [f"{i} {name}" for i, name in enumerate(told["imagenet_names"])]
    write("imagenet-1000", names, {"train": (x, y), "test": part("imagenet_train1")})
    write("imagenet-1000", names, {"train": (x[0::2], y[0::2]), "val": (x[1::2], y[1::2])})
    write_text("imagenet-1000", names, texts["imagenet_a_photo_of_a_name"])
    _make_cifar10(out, images, texts["lvis_a_name"], told["lvis_names"])
    typer.echo(f"{len(list(out.iterdir()))} files in {out}")


def _make_cifar10(
    out: Path, images: dict[str, npt.NDArray[Any]], texts: npt.NDArray[Any], names: list[str]
) -> None:
    """Write the 500 images of CIFAR-10 as features, and the same images as a folder with the same split."""
    from PIL import Image

    labels = images["cifar10_test500.labels"]
    first = [np.flatnonzero(labels == label)[:CIFAR10_TRAIN] for label in range(len(CIFAR10))]
    train = np.sort(np.concatenate(first))
    parts = {"train": train, "test": np.setdiff1d(np.arange(len(labels)), train)}
    arrays = {}
    for part, positions in parts.items():
        arrays[f"{part}.features"] = np.ascontiguousarray(images["cifar10_test500.features"][positions])
        arrays[f"{part}.labels"] = labels[positions]
        for position in positions.tolist():
            # Numbered, since a folder's classes are in the order of their names.
            file = out / "cifar10-500" / part / f"{labels[position]}" / f"{position:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images["cifar10_test500.images_uint8"][position]).save(file)
    save_file(arrays, out / "cifar10-500.safetensors", {"classes": json.dumps([*CIFAR10])})
    rows = np.ascontiguousarray(texts[[names.index(name) for name in CIFAR10.values()]])
    told = {"names": json.dumps([*CIFAR10]), "logit-scale": "100.0"}
    save_file({"embeddings": rows}, out / "cifar10-500-text.safetensors", told)


def _execute(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Do one run, unless it is there with these settings, and return its results."""
    from tests.flower.engine import run_app

    file = folder / "results.json"
    if file.is_file():
        results: dict[str, Any] = json.loads(file.read_text())
        same = all(results["config"][key] == value for key, value in settings.items())
        if same and results.get("status") == "completed":
            return results
    if folder.exists():
        shutil.rmtree(folder)
    logging.disable(logging.WARNING)
    run_app(folder.absolute(), nodes=1, **settings)
    results = json.loads(file.read_text())
    return results


class Study:
    """The runs on one file of features, with one head."""

    def __init__(self, files: Path, out: Path, name: str, head: str) -> None:
        self._files, self._out, self._name, self._head = files, out, name, head

    def _run(self, ending: str, method: str, rate: float, seed: int, shots: int) -> dict[str, Any]:
        text = self._files.absolute() / f"{self._name}-text.safetensors"
        settings = {
            **COMMON,
            "dataset": f"features:{self._files.absolute()}/{self._name}{ending}.safetensors",
            "head": self._head,
            "text-embeddings": str(text) if self._head == "text" else "",
            "algorithm": method,
            "learning-rate": rate,
            "seed": seed,
            "shots": shots,
        }
        folder = f"{self._name}{ending}_{self._head}_{method}_{rate:g}_{shots}_{seed}"
        return _execute(self._out / folder, settings)

    def rate(self, method: str, shots: int) -> float:
        """Return the learning rate with the best mean accuracy on the validation features; seed 0."""
        scores = {
            rate: self._run("-val", method, rate, 0, shots)["summary"]["accuracy"]["mean"]
            for rate in GRID[self._head]
        }
        return max(scores, key=lambda rate: scores[rate])

    def runs(self, method: str, shots: int = 0) -> tuple[float, list[dict[str, Any]]]:
        """Return the chosen learning rate, and the results of all seeds on the test features."""
        rate = self.rate(method, shots)
        return rate, [self._run("", method, rate, seed, shots) for seed in SEEDS]


def _percent(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.pstdev(values):.1f}"


def _means(runs: list[dict[str, Any]]) -> list[float]:
    return [run["summary"]["accuracy"]["mean"] for run in runs]


def _method_lines(files: Path, out: Path) -> Iterator[str]:
    yield "| features | head | method | accuracy | zero-shot | learning rate | payload |"
    yield "|---|---|---|---|---|---|---|"
    starts = [
        ("pets-24", "random"),
        ("pets-24", "text"),
        ("flowers-102", "random"),
        ("caltech-100", "random"),
    ]
    for (name, head), method in product([*starts, ("imagenet-1000", "text")], METHODS):
        rate, runs = Study(files, out, name, head).runs(method)
        first = runs[0]["history"][0]
        untrained = head == "text" and first["iteration"] == 0
        kilobytes = runs[0]["trainable_parameters"] * 4 / 1e3
        zero = f"{100 * statistics.mean(first['accuracy']):.1f}" if untrained else "–"
        cells = [name, head, method, _percent(_means(runs)), zero, f"{rate:g}", f"{kilobytes:.0f} kB"]
        yield f"| {' | '.join(cells)} |"


def _shot_lines(files: Path, out: Path) -> Iterator[str]:
    yield "| images a class | method | random | text |"
    yield "|---|---|---|---|"
    for shots, method in product(SHOTS, ("p2pft", "local", "centralized")):
        cells = [_percent(_means(Study(files, out, "pets-24", head).runs(method, shots)[1])) for head in GRID]
        yield f"| {shots} | {method} | {cells[0]} | {cells[1]} |"


@app.command()
def run(
    files: Annotated[Path, typer.Option(help="The folder that make has written.")],
    out: Annotated[Path, typer.Option(help="Where the runs' results go.")],
    only: Annotated[str | None, typer.Option(help="methods or shots; default both tables.")] = None,
) -> None:
    """Do the runs, and print two tables: methods, and few shots on the 24 breeds of Pets."""
    import torch

    torch.set_num_threads(1)
    begin = time.monotonic()
    for name, lines in {"methods": _method_lines, "shots": _shot_lines}.items():
        for line in lines(files, out) if only in (None, name) else ():
            typer.echo(line)
        typer.echo("")
    typer.echo(f"{time.monotonic() - begin:.0f} s", err=True)


if __name__ == "__main__":
    app()
