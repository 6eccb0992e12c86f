"""The runs of ``p2pft reproduce fedtune``: a file each, kept and resumed; learning rates are chosen first."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pft_flower.cli.reproducing import duration
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.report.fedtune import CellRun, Rate, Source
from p2pft_flower.report.fedtune_design import METHODS, Cell, Design, shots_name
from p2pft_flower.report.results import write_json
from p2pft_flower.topology import Graph

if TYPE_CHECKING:
    from p2pft_flower.learning.workload import Workload

__all__ = ["DISJOINT", "TEXT", "Arm", "Study", "choose_rate", "ladder"]

SCHEMA = "p2pft.fedtune-run/1"

TEXT = "text"
"""The way of tuning a head that begins with text embeddings."""

DISJOINT = "disjoint"
"""The split in which each class belongs to one peer: ``partition = auto``."""

VALIDATION = 0.2
"""Share of the training images that is held out to choose learning rates."""

MOST_RATES = 9
"""The most learning rates that are tried for one choice."""

_GUESSED = 4
"""Rates that one choice is taken to need, for the estimate of the time left."""


def ladder(step: int) -> float:
    """Return a learning rate of the grid …, 0.01, 0.03, 0.1, 0.3, 1, …; step 0 is 1."""
    return float(f"{(1, 3)[step % 2]}e{step // 2}")


def step_of(rate: float) -> int:
    """Return the step of :func:`ladder` at ``rate``."""
    return round(2 * math.log10(rate))


def choose_rate(
    score: Callable[[float], float | None], start: int
) -> tuple[dict[float, float | None], float | None]:
    """Return the learning rates of the grid that were tried with their scores, and the best.

    Three neighbours are tried first, and further ones while the best is at an end, at most
    :data:`MOST_RATES`. Of rates that score the same, the nearest to ``start`` is taken.

    Parameters
    ----------
    score : callable
        Rate ↦ accuracy on held-out training images, 0..1; None: the run diverged.
    start : int
        The step of the middle rate, as of :func:`ladder`.
    """
    tried: dict[int, float | None] = {}
    steps = [start, start - 1, start + 1]
    while steps and len(tried) < MOST_RATES:
        tried |= {step: score(ladder(step)) for step in steps}
        scores = {step: value for step, value in tried.items() if value is not None}
        if not scores:
            steps = [min(tried) - 1]
            continue
        best = max(scores, key=lambda step: (scores[step], -abs(step - start)))
        steps = [end for end in (best - 1, best + 1) if best in (min(tried), max(tried)) and end not in tried]
    found = {ladder(step): value for step, value in tried.items()}
    return found, ladder(best) if scores else None


@dataclass(frozen=True)
class Arm:
    """A source, and the settings of its runs.

    Attributes
    ----------
    source : Source
        The source.
    settings : mapping
        Run-config keys and values of all its runs.
    text : str
        Path of the file of text embeddings; empty if there is none.
    """

    source: Source
    settings: Mapping[str, Any]
    text: str = ""

    def values(self, cell: Cell, rate: float, seed: int, *, validation: float = 0.0) -> dict[str, Any]:
        """Return the run-config of one run."""
        start = {"tune": cell.tune}
        if cell.tune == TEXT:
            start = {"tune": "head", "head": "text", "text-embeddings": self.text}
        return {
            **self.settings,
            **start,
            "partition": "auto" if cell.split == DISJOINT else cell.split,
            "shots": cell.shots,
            "algorithm": cell.method,
            "learning-rate": rate,
            "seed": seed,
            "validation": validation,
        } | ({"evaluate-every": self.settings["iterations"]} if validation else {})

    def first_step(self, tune: str) -> int:
        """Return the step of :func:`ladder` at which the choice of a rate begins."""
        if tune == TEXT:
            return -7  # rows of length 1, logits of scale 100
        return 0 if str(self.settings["dataset"]).startswith("features:") else -4


@dataclass
class Study:
    """All runs of a comparison, and what is known of them.

    Attributes
    ----------
    design : Design
        The factors.
    arms : dict of str to Arm
        The sources by name.
    folder : Path
        The folder of the comparison.
    tell : callable
        Called with a line after each run.
    rates : list of Rate
        The learning rates chosen so far.
    runs : dict of (Cell, int) to CellRun
        The runs of each cell and seed.
    """

    design: Design
    arms: Mapping[str, Arm]
    folder: Path
    tell: Callable[[str], None]
    rates: list[Rate] = field(default_factory=list)
    runs: dict[tuple[Cell, int], CellRun] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._workload: Workload | None = None
        self._seconds: dict[tuple[str, str], list[float]] = {}
        self._pending = [cell for name in self.arms for cell in self._choices(name)]
        # Seed after seed, so that a table that is not complete has something in each cell.
        for seed in self.design.seeds:
            for name in self.arms:
                for cell in self.design.cells(name):
                    self.runs[cell, seed] = CellRun(cell, seed)

    def _choices(self, name: str) -> list[Cell]:
        """Return the cells with which learning rates are chosen: all but those of fewer images."""
        return [c for c in self.design.cells(name) if c.shots == self.design.shots[0]]

    def go(self) -> Iterator[None]:
        """Do what is missing, and yield after each run.

        Raises
        ------
        ConfigError
            When a file of an earlier run has other settings.
        """
        for name in self.arms:
            for cell in self._choices(name):
                yield from self._choose(cell)
        chosen = {(rate.source, rate.tune, rate.split, rate.method): rate.chosen for rate in self.rates}
        for (cell, seed), run in self.runs.items():
            rate = chosen[cell.source, cell.tune, cell.split, cell.method]
            if rate is None:
                why = "every learning rate diverged on the held-out training images"
                self.runs[cell, seed] = CellRun(cell, seed, error=why)
            else:
                outcome, error, kept = self._run(cell, rate, seed)
                self.runs[cell, seed] = CellRun(cell, seed, outcome, error, kept)
                self._told(run.cell, f"seed {seed}", outcome, error, kept)
            yield

    def _choose(self, cell: Cell) -> Iterator[None]:
        """Choose the learning rate of a way, a method and a split, with all images."""
        seed, arm = self.design.seeds[0], self.arms[cell.source]
        alike = [
            r.chosen
            for r in self.rates
            if (r.source, r.tune, r.method) == (cell.source, cell.tune, cell.method)
        ]
        start = arm.first_step(cell.tune)
        if alike and alike[0] is not None:  # of another split: most often the same
            start = step_of(alike[0])

        def score(rate: float) -> float | None:
            outcome, error, kept = self._run(cell, rate, seed, validation=VALIDATION)
            self._told(cell, f"learning rate {rate:g} on held-out images", outcome, error, kept)
            return None if outcome is None else statistics.mean(outcome["accuracy"])

        tried, chosen = choose_rate(score, start)
        self.rates.append(Rate(cell.source, cell.tune, cell.split, cell.method, tried, chosen))
        self._pending.remove(cell)
        told = "none: every one diverged" if chosen is None else f"{chosen:g}"
        self.tell(
            f"learning rate of {cell.source}, {cell.tune}, {cell.split}, {METHODS[cell.method]}: {told}"
        )
        yield

    def _run(
        self, cell: Cell, rate: float, seed: int, *, validation: float = 0.0
    ) -> tuple[dict[str, Any] | None, str, bool]:
        """Return a run's outcome or the text of its failure, and whether an earlier command has done it."""
        arm = self.arms[cell.source]
        values = arm.values(cell, rate, seed, validation=validation)
        config = RunConfig.from_mapping(values)
        place = self.folder / "runs" / _place(cell, rate, seed, held_out=validation > 0)
        mark = {
            "settings": {k: v for k, v in config.to_mapping().items() if k != "output-dir"},
            "digests": dict(arm.source.digests),
            "images": [arm.source.train, arm.source.test],
        }
        before = _read(place, mark)
        if before is not None:
            return before.get("outcome"), str(before.get("diverged", "")), True
        from p2pft_flower.host.exchange import DivergedError
        from p2pft_flower.lab.trials import run_trial

        try:
            graph = Graph.load(config.runtime.topology)
            begin = time.monotonic()
            outcome = asdict(run_trial(config, graph, self._workload_of(config, graph.n)))
            self._seconds.setdefault((cell.source, cell.tune), []).append(time.monotonic() - begin)
        except DivergedError as error:  # the same run would diverge again
            write_json(place, {"schema": SCHEMA, "mark": mark, "diverged": str(error)})
            return None, str(error), False
        except P2PFTError as error:
            return None, str(error), False
        write_json(place, {"schema": SCHEMA, "mark": mark, "outcome": outcome})
        return outcome, "", False

    def _workload_of(self, config: RunConfig, n: int) -> Workload:
        """Return the learning problem of a run; that of the run before, if it is the same."""
        from p2pft_flower.learning.workload import Workload

        if self._workload is None or (self._workload.config, self._workload.n) != (config.learning, n):
            self._workload = Workload(config.learning, n)
        return self._workload

    def _told(self, cell: Cell, what: str, outcome: Mapping[str, Any] | None, error: str, kept: bool) -> None:
        where = f"{cell.source}, {cell.tune}, {cell.split}, {shots_name(cell.shots)} images a class"
        end = f"accuracy {100 * statistics.mean(outcome['accuracy']):.1f} %" if outcome else error
        left = "kept" if kept else f"about {duration(self._time_left())} left"
        self.tell(f"[{left}] {where}, {METHODS[cell.method]}, {what}: {end}")

    def _time_left(self) -> float:
        """Return the seconds that the missing runs will take, from those of the same way or source."""
        missing = [
            (cell.source, cell.tune) for (cell, _), run in self.runs.items() if run.status == "not run"
        ]
        missing += [(cell.source, cell.tune) for cell in self._pending for _ in range(_GUESSED)]
        every = [s for seconds in self._seconds.values() for s in seconds]
        if not every:
            return 0.0
        total = 0.0
        for source, tune in missing:
            own = self._seconds.get((source, tune))
            alike = [s for (other, _), seconds in self._seconds.items() if other == source for s in seconds]
            total += statistics.mean(own or alike or every)
        return total


def _place(cell: Cell, rate: float, seed: int, *, held_out: bool) -> Path:
    """Return the path of a run's file, relative to the folder of all runs."""
    words = [cell.source, cell.tune, cell.method, cell.split, shots_name(cell.shots)]
    source, tune, method, split, shots = (word.replace(":", "-").replace("/", "-") for word in words)
    name = f"{split}-{shots}-" + (f"rate-{rate:g}-" if held_out else "") + f"seed-{seed}"
    return Path(source, tune, method, f"{name}.json")


def _read(file: Path, mark: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the content of a run's file; None if there is none.

    Raises
    ------
    ConfigError
        When the file is none of this command's, or of a run with other settings; names the first difference.
    """
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); remove it, or choose another --out") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ConfigError(f"{file}: not a run of this command's; choose another --out")
    before = _flat(content["mark"])
    now = _flat(json.loads(json.dumps(mark)))
    different = [key for key in [*now, *before] if now.get(key) != before.get(key)]
    if different:
        key = different[0]
        raise ConfigError(
            f"{file}: a run with other settings ({key}: {before.get(key)} there, {now.get(key)} now); choose "
            "another --out, or remove that file"
        )
    return content


def _flat(mark: Mapping[str, Any]) -> dict[str, Any]:
    return {**mark["settings"], **mark["digests"], "images": mark["images"]}
