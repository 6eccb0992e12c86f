"""Make the tables of docs/results.md: do all runs, and print the Markdown that is made of their results.

The runs are those of ``p2pft run`` with the same settings: the same ServerApp and ClientApps, driven by
Flower's simulation in small (tests/flower/engine.py) instead of by Ray, whose start would take longer than
most runs do. A run that is there already is kept. Usage, from the repository's root::

    python -m benchmarks.results run --data ../shared/data --out OUT [--only SECTION]
    python -m benchmarks.results show --out OUT
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Make the tables of docs/results.md.", no_args_is_help=True)

MODELS = {
    "ViT-Tiny": ("vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k_ft_in1k.fp16.safetensors"),
    "DeiT-Tiny": ("deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k.fp16.safetensors"),
}
DATASETS: dict[str, dict[str, Any]] = {
    "Pets-37": {"dataset": "oxford-iiit-pet", "data-dir": "pets37", "epochs": 60},
    "Flowers-17": {
        "dataset": "oxford-flowers102",
        "data-dir": "flowers17",
        "epochs": 60,
        "partition": "classes:0-2,3-6,7-12,13-16",  # 17/102 of Table 1's bounds, rounded
    },
    "CIFAR-10": {"dataset": "cifar10", "data-dir": "cifar10", "epochs": 10},
    "CIFAR-100": {"dataset": "cifar100", "data-dir": "cifar100", "epochs": 15},
}
METHODS = ("local", "p2pft", "dgd", "gt-dgd", "fedavg", "centralized")
SEEDS = (0, 1, 2)
NEVER = 1_000_000
"""Iterations between two evaluations, so many that the only evaluation after training is at the end."""
COMMON = {
    "learning-rate": 0.01,
    "momentum": 0.9,
    "batch-size": 32,
    "topology": "directed-ring-4",
    "verify": False,
}
TUNES = (
    "head",
    "last-block",
    "bias",
    "bias+norm",
    "lora:8",
    "adapter:16",
    "prompt:8",
    "prompt-deep:8",
    "full",
)
LAST = (
    "head",
    "last-block",
    *(f"{t}:last-block" for t in ("bias", "bias+norm", "lora:8", "lora-fa:8", "adapter:16")),
)
"""Ways of tuning behind a stored trunk, and their parent."""
ON_A_GRAPH = ("p2pft", "dgd", "gt-dgd")
"""Methods for which the graph matters."""
GRAPHS = ("directed-ring-4", "ring-4", "complete-4", "lopsided-4")
PLAIN = {"directed-ring-4": ("local", "p2pft", "centralized"), "lopsided-4": ("p2pft", "dgd")}
PLAIN_EPOCHS = (10, 40)
"""Runs without momentum: as long as the others, and four times as long."""
SHOTS = (1, 5, 10)
"""Training images of each class."""
FEW: dict[float, list[tuple[str, str]]] = {
    0.9: [
        ("directed-ring-4", "local"),
        ("directed-ring-4", "p2pft"),
        ("complete-4", "p2pft"),
        ("directed-ring-4", "fedavg"),
        ("directed-ring-4", "centralized"),
    ],
    0.0: [
        ("directed-ring-4", "p2pft"),
        ("complete-4", "p2pft"),
        ("directed-ring-4", "centralized"),
    ],
}
"""Graphs and methods of the runs with few images, by momentum; the graph matters to p2pft alone."""
LENGTHS: dict[str, dict[str, Any]] = {
    "15": {"epochs": 15},
    "30 cosine": {"epochs": 30, "schedule": "cosine"},
    "60": {"epochs": 60},
}
"""Epochs and step sizes of the runs that compare objectives; the first two go about as far."""

SETTINGS: dict[str, dict[str, Any]] = {
    "Algorithm 1": {},
    "4 local steps, q4": {"algorithm-options": "local-steps=4", "codec": "q4"},
    "8 local steps": {"algorithm-options": "local-steps=8"},
    "8 local steps, q4": {"algorithm-options": "local-steps=8", "codec": "q4"},
    "8 local steps, q3": {"algorithm-options": "local-steps=8", "codec": "q3"},
    "16 local steps, q4": {"algorithm-options": "local-steps=16", "codec": "q4"},
    "fedavg": {"algorithm": "fedavg"},
    "fedavg, 2 local epochs": {"algorithm": "fedavg", "local-epochs": 2},
    "fedavg, 4 local epochs": {"algorithm": "fedavg", "local-epochs": 4},
}
"""Settings with which peers send less, or less often, than with Algorithm 1."""
FEWER: dict[str, tuple[str, ...]] = {
    "CIFAR-10 directed-ring-4": (
        "Algorithm 1",
        "8 local steps",
        "8 local steps, q4",
        "8 local steps, q3",
        "16 local steps, q4",
        "fedavg",
        "fedavg, 2 local epochs",
        "fedavg, 4 local epochs",
    ),
    "CIFAR-10 lopsided-4": ("Algorithm 1", "8 local steps", "8 local steps, q4", "8 local steps, q3"),
    "CIFAR-100 directed-ring-4": ("Algorithm 1", "4 local steps, q4", "8 local steps, q4", "fedavg"),
}
"""The settings that run on each data set and graph; all with 40 epochs and without momentum."""


@dataclass(frozen=True)
class Job:
    """One run: the labels of its cell, and its settings."""

    section: str
    labels: tuple[str, ...]
    settings: dict[str, Any] = field(hash=False)

    @property
    def folder(self) -> str:
        """Path of the folder of its results, relative to OUT."""
        return "/".join(
            [self.section, "_".join(label.replace(":", "-").replace(" ", "-") for label in self.labels)]
        )


def _settings(data: Path, model: str, dataset: str, method: str, seed: int, **more: Any) -> dict[str, Any]:
    name, weights = MODELS[model]
    chosen = dict(DATASETS[dataset])
    chosen["data-dir"] = str(data / chosen["data-dir"])
    here = {"model": name, "weights": str(data / "weights" / weights), "algorithm": method, "seed": seed}
    return {**COMMON, **chosen, **here, **{k.replace("_", "-"): v for k, v in more.items()}}


def _of_a_seed(data: Path, seed: int) -> Iterator[tuple[str, tuple[object, ...], dict[str, Any]]]:
    """Yield section, labels and settings of the runs that every seed has."""

    def settings(model: str, dataset: str, method: str, **more: Any) -> dict[str, Any]:
        return _settings(data, model, dataset, method, seed, **more)

    for (name, length), objective, method in product(
        LENGTHS.items(), ("uniform", "examples"), ("p2pft", "centralized")
    ):
        plain = settings("ViT-Tiny", "CIFAR-100", method, objective=objective, momentum=0.0, **length)
        yield "objective", (name, objective, method, seed), plain
    for graph, method in product(GRAPHS[1:], ON_A_GRAPH):  # the first is that of the table of methods
        yield "graphs", (graph, method, seed), settings("ViT-Tiny", "CIFAR-10", method, topology=graph)
    for model, dataset, method in product(MODELS, DATASETS, METHODS):
        yield "methods", (model, dataset, method, seed), settings(model, dataset, method)
    for shots, (momentum, cells) in product(SHOTS, FEW.items()):
        for graph, method in cells:
            more = {"shots": shots, "epochs": 100, "momentum": momentum, "topology": graph}
            few = settings("ViT-Tiny", "CIFAR-10", method, **more)
            yield "shots", (shots, momentum, graph, method, seed), few
    for where, names in FEWER.items():
        dataset, graph = where.split()
        for name in names:
            more = {"topology": graph, "momentum": 0.0, "epochs": 40, **SETTINGS[name]}
            yield "bytes", (where, name, seed), settings("ViT-Tiny", dataset, "p2pft") | more
    for tune, method in product(LAST, ("p2pft", "centralized")):
        last = settings("ViT-Tiny", "CIFAR-10", method, tune=tune, epochs=20)
        yield "last", (tune, method, seed), last
    exact = settings("ViT-Tiny", "CIFAR-10", "p2pft", cache_dtype="float32")
    yield "precision", ("float32", seed), exact
    for epochs, (graph, methods) in product(PLAIN_EPOCHS, PLAIN.items()):
        for method in methods:
            plain = settings("ViT-Tiny", "CIFAR-10", method, topology=graph, momentum=0.0, epochs=epochs)
            yield "plain", (epochs, graph, method, seed), plain


def _of_one_seed(data: Path) -> Iterator[tuple[str, tuple[object, ...], dict[str, Any]]]:
    for dataset, method in product(("Pets-37", "Flowers-17"), ("local", "p2pft", "centralized")):
        yield "attention", (dataset, method), _settings(data, "ViT-Tiny", dataset, method, 0, momentum=0.0)
    for tune in TUNES:
        settings = _settings(data, "ViT-Tiny", "CIFAR-10", "p2pft", 0, tune=tune, shots=20)
        # Few peers, images and steps: most of these run the whole model, in evaluation too.
        settings |= {"epochs": 6, "topology": "directed-ring:2", "partition": "classes:0-4,5-9"}
        yield "tuning", (tune,), settings


def jobs(data: Path) -> list[Job]:
    """Return the jobs of all tables; ``data`` is the folder of images and weights."""
    described = [*(run for seed in SEEDS for run in _of_a_seed(data, seed)), *_of_one_seed(data)]
    return [Job(section, tuple(map(str, labels)), settings) for section, labels, settings in described]


def _done(folder: Path, settings: dict[str, Any] | None = None) -> bool:
    """Return whether ``folder`` holds a completed run; if ``settings`` are given, a run with these."""
    file = folder / "results.json"
    if not file.is_file():
        return False
    results = json.loads(file.read_text())
    asked = {} if settings is None else settings
    return results["status"] == "completed" and all(results["config"][k] == v for k, v in asked.items())


def execute(job: Job, out: Path) -> tuple[float, str]:
    """Run one job in this process; return its seconds, and its error's text, empty if it completed."""
    import torch

    from tests.flower.engine import run_app

    torch.set_num_threads(1)
    logging.getLogger("p2pft_flower").handlers = [logging.NullHandler()]
    folder = out / job.folder
    if folder.exists():
        shutil.rmtree(folder)
    begin = time.monotonic()
    settings = {"meet-timeout": 7200.0, "peer-timeout": 7200.0, "evaluate-every": NEVER, **job.settings}
    try:
        run_app(folder.absolute(), **settings)
    except Exception as error:
        return time.monotonic() - begin, f"{type(error).__name__}: {error}"
    return time.monotonic() - begin, ""


@app.command()
def run(
    data: Annotated[
        Path, typer.Option(help="The folder with weights/, cifar10/, cifar100/, pets37/, flowers17/.")
    ],
    out: Annotated[Path, typer.Option(help="Where the runs' results go.")],
    only: Annotated[list[str] | None, typer.Option(help="A section; default all.")] = None,
    workers: Annotated[int, typer.Option(help="Runs at a time, each with one thread.", min=1)] = 2,
) -> None:
    """Run what is not there yet."""
    execute_all([j for j in jobs(data.absolute()) if not only or j.section in only], out, workers)


def execute_all(wanted: list[Job], out: Path, workers: int) -> None:
    """Run those of the jobs that are not there yet, and exit: with 1 if one failed."""
    left = [j for j in wanted if not _done(out / j.folder, j.settings)]
    typer.echo(f"{len(wanted)} runs, {len(wanted) - len(left)} there already")
    failed, begin = 0, time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(execute, job, out): job for job in left}
        for number, future in enumerate(as_completed(futures), start=1):
            seconds, error = future.result()
            refused = futures[future].settings["algorithm"] == "gt-dgd" and "doubly stochastic" in error
            failed += bool(error) and not refused
            passed = time.monotonic() - begin
            typer.echo(
                f"{number}/{len(left)} {futures[future].folder}: {error or 'done'} in {seconds:.0f} s, "
                f"{passed * (len(left) - number) / number / 60:.0f} min left"
            )
    raise typer.Exit(1 if failed else 0)


class Results:
    """The results of the runs below OUT, by section and labels."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def of(self, section: str, *labels: object) -> dict[str, Any] | None:
        """Return the content of a run's results.json; None if the run did not complete."""
        folder = self._out / Job(section, tuple(map(str, labels)), {}).folder
        return json.loads((folder / "results.json").read_text()) if _done(folder) else None

    def seeds(self, section: str, *labels: object) -> list[dict[str, Any]]:
        """Return the results of all seeds that completed."""
        return [r for r in (self.of(section, *labels, seed) for seed in SEEDS) if r is not None]


def _percent(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {100 * statistics.pstdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def _nodes(runs: list[dict[str, Any]]) -> str:
    """Return each peer's accuracy in percent, mean over the seeds."""
    if not runs:
        return "–"
    peers = range(len(runs[0]["peers"]))
    return " ".join(f"{100 * statistics.mean(r['peers'][i]['accuracy'] for r in runs):.1f}" for i in peers)


def _mean(runs: list[dict[str, Any]]) -> str:
    return _percent([r["summary"]["accuracy"]["mean"] for r in runs])


def _spread(runs: list[dict[str, Any]]) -> str:
    """Return the largest difference of two peers' accuracies in any seed, in points."""
    gaps = [r["summary"]["accuracy"]["max"] - r["summary"]["accuracy"]["min"] for r in runs]
    return f"{100 * max(gaps):.1f}" if gaps else "–"


def _below(runs: list[dict[str, Any]], centralised: list[dict[str, Any]]) -> str:
    """Return the most by which a worst peer is below centralised training of the same seed, in points."""
    best = {r["seed"]: r["peers"][0]["accuracy"] for r in centralised}
    gaps = [best[r["seed"]] - r["summary"]["accuracy"]["min"] for r in runs if r["seed"] in best]
    return f"{100 * max(gaps):.1f}" if gaps else "–"


def _gaps(runs: list[dict[str, Any]], centralised: list[dict[str, Any]]) -> list[float]:
    """Return, for each seed that both have, the peers' mean accuracy subtracted from the centralised one."""
    best = {r["seed"]: r["peers"][0]["accuracy"] for r in centralised}
    return [best[r["seed"]] - r["summary"]["accuracy"]["mean"] for r in runs if r["seed"] in best]


def _mean_below(runs: list[dict[str, Any]], centralised: list[dict[str, Any]]) -> str:
    """Return the mean of :func:`_gaps` in points; a dash if no seed has both."""
    gaps = _gaps(runs, centralised)
    return f"{100 * statistics.mean(gaps):.1f}" if gaps else "–"


def _seeds(*cells: list[dict[str, Any]]) -> str:
    """Return the smallest number of seeds that a cell has."""
    return str(min(map(len, cells), default=0))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _methods(results: Results) -> str:
    parts = []
    for model in MODELS:
        rows = []
        for dataset in DATASETS:
            by = {m: results.seeds("methods", model, dataset, m) for m in METHODS}
            told = [_below(by["p2pft"], by["centralized"]), _seeds(*by.values())]
            rows.append([dataset, *(_mean(by[m]) for m in METHODS), *told])
        head = [model, *METHODS, "worst peer of p2pft below centralized", "seeds"]
        nodes = [
            [d, *(_nodes(results.seeds("methods", model, d, m)) for m in ("local", "p2pft"))]
            for d in DATASETS
        ]
        parts += [_table(head, rows), _table([f"{model}, node by node", "Local-FT", "P2P-FT"], nodes)]
    return "\n\n".join(parts)


def _objective(results: Results) -> str:
    rows = []
    for length, objective in product(LENGTHS, ("uniform", "examples")):
        runs, best = (results.seeds("objective", length, objective, m) for m in ("p2pft", "centralized"))
        examples = results.seeds("objective", length, "examples", "centralized")
        told = [_mean_below(runs, examples), _below(runs, examples), _seeds(runs, best)]
        rows.append([length, objective, _mean(best), _mean(runs), _nodes(runs), *told])
    below = [f"{peers} below centralized of examples" for peers in ("mean peer", "worst peer")]
    return _table(["epochs", "objective", "centralized", "p2pft", "nodes", *below, "seeds"], rows)


def _graphs(results: Results) -> str:
    rows = []
    for graph in GRAPHS:
        reference = ("methods", "ViT-Tiny", "CIFAR-10")
        by = {m: results.seeds(*reference, m) for m in METHODS}
        if graph != GRAPHS[0]:
            by |= {m: results.seeds("graphs", graph, m) for m in ON_A_GRAPH}
        cells = [f"{_mean(by[m])} ({_spread(by[m])})" if by[m] else "refused" for m in METHODS]
        run = [by[m] for m in METHODS if by[m]]
        rows.append([graph, *cells, _below(by["p2pft"], by["centralized"]), _seeds(*run)])
    return _table(["graph", *METHODS, "worst peer of p2pft below centralized", "seeds"], rows)


def _plain(results: Results) -> str:
    rows = []
    for epochs, (graph, methods) in product(PLAIN_EPOCHS, PLAIN.items()):
        best = results.seeds("plain", epochs, "directed-ring-4", "centralized")
        for method in methods:
            runs = results.seeds("plain", epochs, graph, method)
            told = [_mean(runs), _nodes(runs), _spread(runs), _below(runs, best), _seeds(runs)]
            rows.append([str(epochs), graph, method, *told])
    head = [
        "epochs",
        "graph",
        "method",
        "mean",
        "nodes",
        "largest distance of two peers",
        "worst peer below centralized",
        "seeds",
    ]
    return _table(head, rows)


def _bytes(results: Results) -> str:
    rows = []
    for where, names in FEWER.items():
        first = results.seeds("bytes", where, names[0])
        for name in names:
            runs = results.seeds("bytes", where, name)
            if not runs or not first:
                continue
            sent = [statistics.mean(p["bytes_sent"] for p in r["peers"]) for r in runs]
            most = statistics.mean(statistics.mean(p["bytes_sent"] for p in r["peers"]) for r in first)
            gains = [
                100 * (r["summary"]["accuracy"]["mean"] - f["summary"]["accuracy"]["mean"])
                for r, f in zip(runs, first, strict=False)
            ]
            told = [f"{statistics.mean(sent) / 1e6:,.1f}", f"{most / statistics.mean(sent):.1f} ×"]
            rows.append(
                [
                    where,
                    name,
                    _mean(runs),
                    _nodes(runs),
                    f"{statistics.mean(gains):+.2f}",
                    *told,
                    _seeds(runs),
                ]
            )
    head = [
        "data and graph",
        "setting",
        "mean",
        "nodes",
        "above Algorithm 1",
        "MB a peer sent",
        "fewer",
        "seeds",
    ]
    return _table(head, rows)


def _attention(results: Results) -> str:
    rows = []
    for dataset in ("Pets-37", "Flowers-17"):
        runs = [(m, results.of("attention", dataset, m)) for m in ("local", "p2pft", "centralized")]
        rows += [[dataset, m, _nodes([r]), _mean([r])] for m, r in runs if r is not None]
    return _table(["data", "method", "nodes", "mean"], rows)


def _shots(results: Results) -> str:
    columns = ("local", "p2pft, directed ring", "p2pft, complete", "fedavg", "centralized")
    rows = []
    for momentum, shots in product(FEW, SHOTS):
        by = {cell: results.seeds("shots", shots, momentum, *cell) for cell in FEW[momentum]}
        runs = [by.get(cell, []) for cell in FEW[0.9]]
        ring, complete, centralised = (by[cell] for cell in FEW[0.0])
        gains = " ".join(f"{-100 * gap:+.1f}" for gap in _gaps(ring, centralised))
        farthest = max((abs(100 * gap) for gap in _gaps(complete, centralised)), default=float("nan"))
        told = [gains, f"{farthest:.1f}", _seeds(*by.values())]
        rows.append([f"{momentum:g}", str(shots), *map(_mean, runs), *told])
    told = ["directed ring above centralized, each seed", "complete and centralized apart at most", "seeds"]
    return _table(["momentum", "images a class", *columns, *told], rows)


def _precision(results: Results) -> str:
    return _table(
        ["tokens kept as", "p2pft", "each seed"],
        [
            [d, _mean(runs), " ".join(f"{100 * r['summary']['accuracy']['mean']:.2f}" for r in runs)]
            for d in ("float32", "float16")
            for where in [
                ("precision", d) if d == "float32" else ("methods", "ViT-Tiny", "CIFAR-10", "p2pft")
            ]
            for runs in [results.seeds(*where)]
        ],
    )


def _tuning(results: Results) -> str:
    rows = []
    for tune in TUNES:
        r = results.of("tuning", tune)
        if r is None:
            continue
        q, whole = r["trainable_parameters"], r["model_parameters"]
        gradient = statistics.mean(p["seconds"]["gradient"] for p in r["peers"])
        sent = sum(p["bytes_sent"] for p in r["peers"])
        rows.append(
            [
                tune,
                _percent([r["summary"]["accuracy"]["mean"]]),
                f"{q:,}",
                f"{100 * q / whole:.2f} %",
                f"{4 * q / 1e6:.2f} MB",
                f"{sent / 1e6:.0f} MB",
                f"{gradient:.1f} s",
            ]
        )
    return _table(
        ["tune", "accuracy", "q", "of the model", "a payload", "sent by all", "gradients, a peer"], rows
    )


def _last(results: Results) -> str:
    rows = []
    for tune in LAST:
        ours, best = (results.seeds("last", tune, method) for method in ("p2pft", "centralized"))
        if not ours:
            continue
        q = ours[0]["trainable_parameters"]
        gradient = statistics.mean(p["seconds"]["gradient"] for r in ours for p in r["peers"])
        sent = statistics.mean(p["bytes_sent"] for r in ours for p in r["peers"])
        row = [tune, _mean(ours), _mean(best), f"{q:,}", f"{4 * q / 1e6:.2f} MB", f"{sent / 1e6:,.0f} MB"]
        rows.append([*row, f"{gradient:.1f} s", _seeds(ours, best)])
    head = ["tune", "p2pft", "centralized", "q", "a vector", "sent, a peer", "gradients, a peer", "seeds"]
    return _table(head, rows)


SECTIONS: dict[str, Callable[[Results], str]] = {
    "methods": _methods,
    "objective": _objective,
    "graphs": _graphs,
    "plain": _plain,
    "bytes": _bytes,
    "shots": _shots,
    "attention": _attention,
    "precision": _precision,
    "tuning": _tuning,
    "last": _last,
}


@app.command()
def show(out: Annotated[Path, typer.Option(help="Where the runs' results are.")]) -> None:
    """Print the tables as Markdown."""
    for name, section in SECTIONS.items():
        typer.echo(f"### {name}\n\n{section(Results(out))}\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    app()
