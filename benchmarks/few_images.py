"""Compare P2P-FT with centralised training on few training images, by the distance of the peers' θ.

ViT-Tiny on CIFAR-10 with 1, 5 and 10 images a class, four peers, 100 iterations, three seeds, with and
without momentum, over graphs that mix well and badly. Beside them stands centralised training with other step
sizes, and four times as long: it shows whether a graph helps to generalise, or is merely further on.

The runs are those of ``p2pft run`` with the same settings, made by ``simulate`` on the same gradients, which
gives the consensus error after every iteration. Each run has a file; a run whose file is there is not done
again. Usage, from the repository's root::

    python -m benchmarks.few_images run --data ../shared/data --out OUT
    python -m benchmarks.few_images show --out OUT [--figure PNG]
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from benchmarks.results import DATASETS, MODELS, SEEDS
from p2pft_flower.topology import Graph

app = typer.Typer(help="Few images: graphs, consensus error and accuracy.", no_args_is_help=True)

SHOTS = (1, 5, 10)
MOMENTA = (0.0, 0.9)
ALPHA, ITERATIONS, BATCH = 0.01, 100, 32
OWN_WEIGHT = "with own weight"
"""Text between a graph's name and the weight W_ii of its peers; the larger W_ii, the slower a graph mixes."""

GRAPHS = (
    "complete-4",
    "ring-4",
    f"ring-4 {OWN_WEIGHT} 4",
    f"ring-4 {OWN_WEIGHT} 14",
    "star:4",
    "star:4:metropolis",
    "line:4",
    "line:4:metropolis",
    "paper-4",
    "lopsided-4",
    "directed-ring-4",
    f"directed-ring-4 {OWN_WEIGHT} 3",
    f"directed-ring-4 {OWN_WEIGHT} 7",
    f"directed-ring-4 {OWN_WEIGHT} 15",
)
CENTRALISED = "centralized"
CONTROLS: dict[str, tuple[float, int]] = {
    "step × 0.5": (0.5, 1),
    "step × 2": (2.0, 1),
    "step × 3": (3.0, 1),
    "iterations × 4": (1.0, 4),
}
"""Centralised training that goes less far or further: factors of step size and iterations."""
NAMES = (CENTRALISED, *CONTROLS, *GRAPHS)


def graph_of(name: str) -> Graph:
    """Return the graph that a name in `GRAPHS` stands for."""
    base, _, own = name.partition(f" {OWN_WEIGHT} ")
    graph = Graph.load(base)
    if not own:
        return graph
    W = graph.W.copy()
    np.fill_diagonal(W, float(own))
    return Graph.from_weights(W, name=name)


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes
    ----------
    name : str
        A name in `GRAPHS` or `CONTROLS`, or `CENTRALISED`.
    shots, seed : int
        Training images of each class; the seed of images and head.
    momentum : float
        The momentum β.
    """

    name: str
    shots: int
    seed: int
    momentum: float

    def file(self, out: Path) -> Path:
        """Return the path of the file of the run's outcome."""
        name = self.name.replace(" ", "-").replace(":", "-").replace("×", "x")
        return (
            out / f"shots-{self.shots}" / f"seed-{self.seed}" / f"momentum-{self.momentum}" / f"{name}.json"
        )

    def factors(self) -> tuple[float, int]:
        """Return the factors of step size and of iterations."""
        return CONTROLS.get(self.name, (1.0, 1))

    def settings(self) -> dict[str, Any]:
        """Return the settings on which the outcome depends."""
        step, length = self.factors()
        more = {"alpha": ALPHA * step, "iterations": ITERATIONS * length, "batch_size": BATCH}
        return {**asdict(self), **more}


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run.

    Attributes
    ----------
    settings : dict
        The run's settings, from :meth:`Case.settings`.
    accuracy : list of float
        Each peer's accuracy, 0..1, on all test images; a single one for centralised training.
    test_loss, train_loss : float
        Cross-entropy on the test images, and (1/n) Σ_j L_j on all training images; mean over the peers' θ_i.
    apart : float
        Root mean square of the consensus error over all iterations.
    apart_at_the_end : float
        Consensus error after the last iteration.
    own_gap : float
        (1/n) Σ_i [L_i(θ_i) − L_i(θ̄)], mean over all iterations: above zero if peers take their gradients at
        points that are worse for their own losses than the mean is.
    """

    settings: dict[str, Any]
    accuracy: list[float]
    test_loss: float
    train_loss: float
    apart: float
    apart_at_the_end: float
    own_gap: float


def cases() -> list[Case]:
    """Return the cases of all runs."""
    return [Case(*c) for c in product(NAMES, SHOTS, SEEDS, MOMENTA)]


def read(case: Case, out: Path) -> Outcome | None:
    """Return a run's outcome; None if the run was not done, or with other settings."""
    file = case.file(out)
    if not file.is_file():
        return None
    outcome = Outcome(**json.loads(file.read_text()))
    return outcome if outcome.settings == case.settings() else None


def execute(data: Path, out: Path, shots: int, seed: int, wanted: Sequence[Case]) -> list[tuple[Case, float]]:
    """Do the runs ``wanted``, all on the same images, in this process; return each with its seconds."""
    import torch

    from p2pft_flower import simulate
    from p2pft_flower.config import LearningConfig
    from p2pft_flower.learning.scoring import evaluate
    from p2pft_flower.learning.workload import Workload

    torch.set_num_threads(1)
    model, weights = MODELS["ViT-Tiny"]
    config = LearningConfig(
        model=model,
        weights=str(data / "weights" / weights),
        dataset=DATASETS["CIFAR-10"]["dataset"],
        data_dir=str(data / DATASETS["CIFAR-10"]["data-dir"]),
        verify=False,
        shots=shots,
        batch_size=BATCH,
        seed=seed,
    )
    problem = Workload(config, n=4)
    peers = range(problem.n)
    held = [problem.features(p) for p in peers]
    none = [torch.zeros(len(features), dtype=torch.bool) for features in held]

    def loss(peer: int, theta: npt.NDArray[np.float32]) -> float:
        return evaluate(problem.tail, np.ascontiguousarray(theta), held[peer], none[peer]).loss

    done = []
    for case in wanted:
        begin = time.monotonic()
        settings = case.settings()
        gaps: list[float] = []

        def watch(_: int, states: Sequence[Any], gaps: list[float] = gaps) -> None:
            if len(states) > 1:
                mean = np.mean([s.theta for s in states], axis=0)
                own = zip(peers, states, strict=True)
                gaps.append(float(np.mean([loss(p, s.theta) - loss(p, mean) for p, s in own])))

        on_a_graph = case.name in GRAPHS
        objectives = problem.objectives(peers)
        run = simulate(
            "p2pft" if on_a_graph else CENTRALISED,
            graph_of(case.name if on_a_graph else GRAPHS[0]),
            [objectives[p].gradient for p in peers],
            problem.theta0,
            alpha=settings["alpha"],
            iterations=settings["iterations"],
            momentum=case.momentum,
            callback=watch,
        )
        thetas = run.theta if on_a_graph else run.theta[:1]
        scores = [problem.score(theta) for theta in thetas]
        apart = run.history["consensus_error"]
        outcome = Outcome(
            settings,
            accuracy=[s.accuracy for s in scores],
            test_loss=statistics.mean(s.loss for s in scores),
            train_loss=statistics.mean(loss(p, theta) for p in peers for theta in thetas),
            apart=float(np.sqrt(np.mean(apart**2))),
            apart_at_the_end=float(apart[-1]),
            own_gap=statistics.mean(gaps) if gaps else 0.0,
        )
        file = case.file(out)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(outcome)))
        partial.replace(file)
        done.append((case, time.monotonic() - begin))
    return done


@app.command()
def run(
    data: Annotated[Path, typer.Option(help="The folder with weights/ and cifar10/.")],
    out: Annotated[Path, typer.Option(help="Where the runs' outcomes go.")],
    workers: Annotated[int, typer.Option(help="Processes, each with one thread.", min=1)] = 2,
) -> None:
    """Run what is not there yet."""
    every = cases()
    left = [case for case in every if read(case, out) is None]
    typer.echo(f"{len(every)} runs, {len(every) - len(left)} there already")
    made, begin = 0, time.monotonic()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = []
        for shots, seed in product(SHOTS, SEEDS):
            wanted = [case for case in left if (case.shots, case.seed) == (shots, seed)]
            # A few at a time, so that there is a line now and then.
            for first in range(0, len(wanted), 6):
                some = wanted[first : first + 6]
                futures.append(pool.submit(execute, data.absolute(), out, shots, seed, some))
        for future in as_completed(futures):
            for case, seconds in future.result():
                made += 1
                minutes = (time.monotonic() - begin) * (len(left) - made) / made / 60
                typer.echo(
                    f"{made}/{len(left)} {case.name}, {case.shots} shots, seed {case.seed}, momentum "
                    f"{case.momentum}: {seconds:.0f} s, {minutes:.0f} min left"
                )


@dataclass(frozen=True)
class Row:
    """The numbers of one case over all seeds.

    Attributes
    ----------
    name : str
        The case's name.
    momentum : float
        The momentum β.
    accuracy : float
        Mean accuracy over peers and seeds, 0..1.
    gain : list of float
        For each seed, the mean accuracy of the peers, minus that of centralised training with this seed.
    train_loss, apart, own_gap : float
        Means over the seeds.
    """

    name: str
    momentum: float
    accuracy: float
    gain: list[float]
    train_loss: float
    apart: float
    own_gap: float

    @property
    def points(self) -> tuple[float, float]:
        """The mean gain over the seeds, in points, and its standard error."""
        points = [100 * gain for gain in self.gain]
        return statistics.mean(points), statistics.stdev(points) / len(points) ** 0.5


def rows(out: Path, shots: int) -> dict[tuple[float, str], Row]:
    """Return the rows of all cases that were run with every seed, by momentum and name."""
    made = {}
    for momentum, name in product(MOMENTA, NAMES):
        runs = [r for seed in SEEDS if (r := read(Case(name, shots, seed, momentum), out)) is not None]
        best = [r for seed in SEEDS if (r := read(Case(CENTRALISED, shots, seed, momentum), out)) is not None]
        if len(runs) < len(SEEDS) or len(best) < len(SEEDS):
            continue
        accuracy = [statistics.mean(r.accuracy) for r in runs]
        made[momentum, name] = Row(
            name,
            momentum,
            statistics.mean(accuracy),
            [a - statistics.mean(b.accuracy) for a, b in zip(accuracy, best, strict=True)],
            statistics.mean(r.train_loss for r in runs),
            statistics.mean(r.apart for r in runs),
            statistics.mean(r.own_gap for r in runs),
        )
    return made


def table(out: Path) -> str:
    """Return a Markdown table whose cells have a number for each number of images a class."""
    numbers = ", ".join(map(str, SHOTS))
    head = [
        "momentum",
        "graph",
        f"accuracy with {numbers} images a class",
        "above centralised",
        "consensus error",
        "own loss at θ_i − at θ̄",
        "training loss",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    by_shots = [rows(out, shots) for shots in SHOTS]
    for momentum, name in product(MOMENTA, NAMES):
        found = [r[momentum, name] for r in by_shots if (momentum, name) in r]
        if len(found) < len(SHOTS):
            continue
        cells = [
            " ".join(f"{100 * r.accuracy:.1f}" for r in found),
            ", ".join("{:+.1f} ± {:.1f}".format(*r.points) for r in found),
            " ".join(f"{r.apart:.3f}" for r in found),
            " ".join(f"{r.own_gap:+.2f}" for r in found),
            " ".join(f"{r.train_loss:.0e}" for r in found),
        ]
        control = name if name == CENTRALISED else f"{CENTRALISED}, {name}"
        told = name if name in GRAPHS else f"*{control}*"
        lines.append("| " + " | ".join([f"{momentum:g}", told, *cells]) + " |")
    return "\n".join(lines)


COLOURS = {0.0: "#1b6ca8", 0.9: "#d1495b"}
NAMED = {"directed-ring-4": "directed ring", "paper-4": "paper-4"}
"""Graphs whose names stand in the figure."""


def draw(out: Path, figure: Path) -> None:
    """Draw accuracy above centralised, against the consensus error and against the training loss."""
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    panels, axes = pyplot.subplots(2, len(SHOTS), figsize=(12, 7.6), sharey="col", layout="constrained")
    for column, shots in enumerate(SHOTS):
        found = rows(out, shots).values()
        upper, lower = axes[:, column]
        upper.set_title(f"{shots} image{'s' * (shots > 1)} a class")
        upper.set_xlabel("consensus error, root mean square over the run")
        lower.set_xlabel("training loss at the end")
        for ax in (upper, lower):
            ax.axhline(0, color="grey", linewidth=0.8)
            ax.set_xscale("log")
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.grid(alpha=0.25)
        for row in found:
            if row.name in GRAPHS and row.apart > 0:  # one that agrees at once is centralised training
                _mark(upper, row, row.apart)
                _mark(lower, row, row.train_loss)
        for momentum, colour in COLOURS.items():
            own = [r for r in found if r.name not in GRAPHS and r.momentum == momentum]
            own.sort(key=lambda row: row.train_loss)
            x, y = [row.train_loss for row in own], [row.points[0] for row in own]
            lower.plot(x, y, "s--", color=colour, markersize=4, linewidth=1, alpha=0.6)
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy above centralised, points")
    _legend(panels)
    figure.parent.mkdir(parents=True, exist_ok=True)
    panels.savefig(figure, dpi=100, pil_kwargs={"optimize": True})
    pyplot.close(panels)


def _mark(ax: Any, row: Row, x: float) -> None:
    points, error = row.points
    marker = "o" if graph_of(row.name).undirected else "^"
    look = {"color": COLOURS[row.momentum], "markersize": 6, "elinewidth": 0.8, "alpha": 0.85}
    ax.errorbar(x, points, error, fmt=marker, **look)
    if row.name in NAMED:
        ax.annotate(NAMED[row.name], (x, points), (6, 4), textcoords="offset points", fontsize=7)


def _legend(panels: Any) -> None:
    from matplotlib.lines import Line2D

    marks = []
    for momentum in MOMENTA:
        colour, beta = COLOURS[momentum], f"momentum {momentum:g}"
        for kind, marker in (("undirected graph", "o"), ("directed graph", "^")):
            marks.append(Line2D([], [], marker=marker, color=colour, linestyle="", label=f"{kind}, {beta}"))
        control = f"centralised, other step sizes and length, {beta}"
        marks.append(Line2D([], [], marker="s", linestyle="--", color=colour, markersize=4, label=control))
    panels.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=8, frameon=False)


@app.command()
def show(
    out: Annotated[Path, typer.Option(help="Where the runs' outcomes are.")],
    figure: Annotated[Path | None, typer.Option(help="Draw the figure, a PNG, too.")] = None,
) -> None:
    """Print the table as Markdown."""
    typer.echo(table(out))
    if figure is not None:
        draw(out, figure)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    app()
