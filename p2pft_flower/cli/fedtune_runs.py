"""The runs of ``p2pft reproduce fedtune``: a file each, kept and resumed; learning rates are chosen first."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from p2pft_flower.cli.reproducing import duration
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.report.fedtune import CellRun, Rate, Source
from p2pft_flower.report.fedtune_design import METHODS, Cell, Design, shots_name
from p2pft_flower.report.results import write_json
from p2pft_flower.topology import Graph

if TYPE_CHECKING:
    from p2pft_flower.learning.workload import Workload

__all__ = ["DISJOINT", "TEXT", "Arm", "Study", "choose_rate", "ladder", "reads_texts"]

SCHEMA = "p2pft.fedtune-run/1"

MARK = "source.json"
"""Name of the file that is written into each source's folder of runs before the first run, and identifies the
source and its settings."""

MARK_SCHEMA = "p2pft.fedtune-source/1"

TEXT = "text"
"""The way of tuning a head that begins with texts; ``text+TUNE`` is another way with such a head."""

PROMPTS = ("text-prompt:", "text-prompt-class:")
"""Beginnings of the ways that learn vectors before the classes' names, through a text tower."""

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


def reads_texts(tune: str) -> bool:
    """Tell whether a way of tuning begins with the classes' texts."""
    return tune == TEXT or tune.startswith((f"{TEXT}+", *PROMPTS))


@dataclass(frozen=True)
class Arm:
    """A source, and the settings of its runs.

    Attributes
    ----------
    source : Source
        The source.
    settings : mapping
        Run-config keys and values of all its runs.
    text : mapping
        Run-config keys and values on texts, for ways with a head of texts; empty if there are none.
    """

    source: Source
    settings: Mapping[str, Any]
    text: Mapping[str, Any] = field(default_factory=dict)

    def values(self, cell: Cell, rate: float, seed: int, *, held_out: bool = False) -> dict[str, Any]:
        """Return the run-config of one run; ``held_out``: scored once, on held-out training images."""
        values = {
            **self.settings,
            "tune": cell.tune,
            "partition": "auto" if cell.split == DISJOINT else cell.split,
            "shots": cell.shots,
            "algorithm": cell.method,
            "learning-rate": rate,
            "seed": seed,
        }
        if reads_texts(cell.tune):
            tune = "head" if cell.tune == TEXT else cell.tune.removeprefix(f"{TEXT}+")
            values |= {"tune": tune, "head": "text", **self.text}
        if held_out:
            values |= {"validation": VALIDATION, "evaluate-every": self.settings["iterations"]}
        return values

    def first_step(self, tune: str) -> int:
        """Return the step of :func:`ladder` at which the choice of a rate begins."""
        if reads_texts(tune) and not tune.startswith(PROMPTS):
            return -7  # rows of length 1, logits of scale 100
        return 0 if str(self.settings.get("dataset", "")).startswith("features:") else -4


@dataclass(frozen=True)
class _Done:
    """The end of a run.

    Attributes
    ----------
    outcome : mapping or None
        Its outcome; None if it failed.
    error : str
        Why it failed; empty if it did not.
    diverged : bool
        Whether it failed because it diverged.
    kept : bool
        Whether an earlier command has done it.
    """

    outcome: Mapping[str, Any] | None = None
    error: str = ""
    diverged: bool = False
    kept: bool = False

    @property
    def accuracy(self) -> float | None:
        """The peers' mean accuracy, 0..1; None if the run failed."""
        return None if self.outcome is None else statistics.mean(self.outcome["accuracy"])


_Choice: TypeAlias = tuple[str, str, str, str]
"""Source, way of tuning, split and method: what has a learning rate of its own."""


def _choice(cell: Cell) -> _Choice:
    return cell.source, cell.tune, cell.split, cell.method


class Study:
    """All runs of a comparison, with the results that are there so far.

    Parameters
    ----------
    design : Design
        The factors.
    arms : mapping of str to Arm
        The sources by name.
    folder : Path
        The folder of the comparison.
    tell : callable
        Called with a line after each run.

    Attributes
    ----------
    rates : dict
        The learning rates chosen so far, by source, way of tuning, split and method.
    runs : dict of (Cell, int) to CellRun
        The runs of each cell and seed.

    Raises
    ------
    ConfigError
        When the folder holds runs with other settings, or other files.
    """

    def __init__(
        self, design: Design, arms: Mapping[str, Arm], folder: Path, tell: Callable[[str], None]
    ) -> None:
        self.design, self.arms, self.folder = design, arms, folder
        self.rates: dict[_Choice, Rate] = {}
        self._tell = tell
        self._workload: Workload | None = None
        self._seconds: dict[tuple[str, str], list[float]] = {}
        # Seed after seed, so that a table that is not complete has something in each cell.
        cells = [cell for name in arms for cell in design.cells(name)]
        self.runs = {(cell, seed): CellRun(cell, seed) for seed in design.seeds for cell in cells}
        self._choices = [cell for cell in cells if cell.shots == design.shots[0]]
        for name, arm in arms.items():
            _claim(folder / "runs" / name, arm)

    def go(self) -> Iterator[None]:
        """Do the runs that are missing, and yield after each of them.

        Raises
        ------
        ConfigError
            When a run's file cannot be read.
        """
        for cell in self._choices:
            self.rates[_choice(cell)] = self._choose(cell)
            yield
        for cell, seed in self.runs:
            rate = self.rates[_choice(cell)]
            if rate.chosen is None:
                done = _Done(error=rate.error)
            else:
                done = self._run(cell, rate.chosen, seed)
                self._told(cell, f"seed {seed}", done)
            self.runs[cell, seed] = CellRun(cell, seed, done.outcome, done.error, done.kept)
            yield

    def _choose(self, cell: Cell) -> Rate:
        """Choose the learning rate of a way, a split and a method, with all images and the first seed."""
        start = self.arms[cell.source].first_step(cell.tune)
        # That of another split is most often the best here, too.
        alike = self.rates.get(_choice(cell._replace(split=self.design.splits[0])))
        if alike is not None and alike.chosen is not None:
            start = step_of(alike.chosen)

        def score(rate: float) -> float | None:
            done = self._run(cell, rate, self.design.seeds[0], held_out=True)
            self._told(cell, f"learning rate {rate:g} on held-out images", done)
            if done.error and not done.diverged:
                raise P2PFTError(done.error)
            return done.accuracy

        tried: dict[float, float | None] = {}
        chosen, error = None, ""
        try:
            tried, chosen = choose_rate(score, start)
        except P2PFTError as failure:
            error = f"no learning rate could be chosen: {failure}"
        else:
            if chosen is None:
                error = "every learning rate diverged on the held-out training images"
        told = error or f"{chosen:g}"
        self._tell(
            f"learning rate of {cell.source}, {cell.tune}, {cell.split}, {METHODS[cell.method]}: {told}"
        )
        return Rate(*_choice(cell), tried, chosen, error)

    def _run(self, cell: Cell, rate: float, seed: int, *, held_out: bool = False) -> _Done:
        """Do a run, unless an earlier command has done it, and return its end."""
        arm = self.arms[cell.source]
        values = arm.values(cell, rate, seed, held_out=held_out)
        file = self.folder / "runs" / _place(cell, rate, seed, held_out=held_out)
        if (before := _read(file, SCHEMA)) is not None:
            diverged = str(before.get("diverged", ""))
            return _Done(before.get("outcome"), diverged, bool(diverged), kept=True)
        from p2pft_flower.host.exchange import DivergedError
        from p2pft_flower.lab.trials import run_trial

        content: dict[str, Any] = {"schema": SCHEMA, "settings": values}
        config = RunConfig.from_mapping(values)
        begin = time.monotonic()
        try:
            graph = Graph.load(config.runtime.topology)
            outcome = asdict(run_trial(config, graph, self._workload_of(config, graph.n)))
        except DivergedError as error:  # the same run would diverge again
            write_json(file, {**content, "diverged": str(error)})
            return _Done(error=str(error), diverged=True)
        except P2PFTError as error:
            return _Done(error=str(error))
        self._seconds.setdefault((cell.source, cell.tune), []).append(time.monotonic() - begin)
        write_json(file, {**content, "outcome": outcome})
        return _Done(outcome)

    def _workload_of(self, config: RunConfig, n: int) -> Workload:
        """Return the learning problem of a run; that of the run before, if it is the same."""
        from p2pft_flower.learning.workload import Workload

        if self._workload is None or (self._workload.config, self._workload.n) != (config.learning, n):
            self._workload = Workload(config.learning, n)
        return self._workload

    def _told(self, cell: Cell, what: str, done: _Done) -> None:
        where = f"{cell.source}, {cell.tune}, {cell.split}, {shots_name(cell.shots)} images a class"
        end = done.error if done.accuracy is None else f"accuracy {100 * done.accuracy:.1f} %"
        left = "kept" if done.kept else f"about {duration(self._time_left())} left"
        chosen, made = len(self.rates), sum(run.status != "not run" for run in self.runs.values())
        place = f"rates {chosen}/{len(self._choices)}, runs {made}/{len(self.runs)}"
        self._tell(f"[{place}, {left}] {where}, {METHODS[cell.method]}, {what}: {end}")

    def _time_left(self) -> float:
        """Return the seconds that the missing runs will take, from those of the same way or source."""
        missing = [cell for (cell, _), run in self.runs.items() if run.status == "not run"]
        missing += [c for c in self._choices if _choice(c) not in self.rates for _ in range(_GUESSED)]
        every = [s for seconds in self._seconds.values() for s in seconds]
        if not every:
            return 0.0
        total = 0.0
        for cell in missing:
            own = self._seconds.get((cell.source, cell.tune))
            alike = [s for (other, _), some in self._seconds.items() if other == cell.source for s in some]
            total += statistics.mean(own or alike or every)
        return total


def _place(cell: Cell, rate: float, seed: int, *, held_out: bool) -> Path:
    """Return the path of a run's file, relative to the folder of all runs."""
    words = [cell.source, cell.tune, cell.method, cell.split, shots_name(cell.shots)]
    source, tune, method, split, shots = (word.replace(":", "-").replace("/", "-") for word in words)
    scored = "held-out-" if held_out else ""
    return Path(source, tune, method, f"{split}-{shots}-{scored}rate-{rate:g}-seed-{seed}.json")


def _read(file: Path, schema: str) -> dict[str, Any] | None:
    """Return the content of a file of an earlier command; None if there is none.

    Raises
    ------
    ConfigError
        When the file cannot be read, or is another one.
    """
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); remove it, or choose another --out") from error
    if not isinstance(content, dict) or content.get("schema") != schema:
        raise ConfigError(f"{file} is none of this command's files; choose another --out")
    return content


def _claim(folder: Path, arm: Arm) -> None:
    """Write the file :data:`MARK` of a source, or compare it with the one that is there.

    Raises
    ------
    ConfigError
        When the runs there have other settings; the message names the first difference.
    """
    source = arm.source
    settings = {**RunConfig.from_mapping(arm.settings).to_mapping(), "validation": VALIDATION}
    settings["images"] = [source.train, source.test]
    settings |= {f"SHA-256 of {key}": digest for key, digest in source.digests.items()}
    before = _read(folder / MARK, MARK_SCHEMA)
    if before is None:
        write_json(folder / MARK, {"schema": MARK_SCHEMA, "settings": settings})
        return
    there = before["settings"]
    different = [key for key in [*settings, *there] if settings.get(key) != there.get(key)]
    if different:
        key = different[0]
        raise ConfigError(
            f"{folder} holds runs with other settings ({key}: {there.get(key)} there, {settings.get(key)} "
            "now); choose another --out, or remove that folder"
        )
