"""``p2pft compare``: several methods on the same peers, one table."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pft_flower.algorithms import ALGORITHMS
from p2pft_flower.cli.completion import complete_connections, complete_settings
from p2pft_flower.cli.connections import check_connection
from p2pft_flower.cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from p2pft_flower.cli.flwr_run import local_superlink
from p2pft_flower.cli.kept_runs import Kept, begin, look_for_kept
from p2pft_flower.cli.places import require_places
from p2pft_flower.cli.rehearsal import check_rehearsed
from p2pft_flower.cli.reproducing import alone_in
from p2pft_flower.cli.run import execute_or_record
from p2pft_flower.cli.settings import check, method_settings, parse_settings
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.flower.strategies import strategy_names
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.report.figures import draw_comparison
from p2pft_flower.report.over_seeds import SeedRun, merged, method_numbers, seeds_markdown, seeds_table
from p2pft_flower.report.results import holds_a_run, write_json
from p2pft_flower.report.tables import comparison_markdown, comparison_table, titled
from p2pft_flower.topology import Graph

__all__ = ["compare"]

SCHEMA = "p2pft.comparison/1"
JSON, MARKDOWN, PICTURE = "comparison.json", "comparison.md", "comparison.png"

MARK = "compare.json"
"""Name of the file that is written into each run's folder before the run, with --seeds, and identifies it."""

OURS = ("output-dir", "name", "tensorboard", "predictions", "callbacks")
"""Run-config keys that may differ if a run is kept: its numbers do not depend on them."""

MARK_SCHEMA = "p2pft.comparison-run/1"

MOST_SEEDS = 1000
"""More seeds than any table has: a larger number is rather a seed."""


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"{text!r}: give different methods, as p2pft,dgd,local,fedavg,centralized")
    return names


def _complete_names(incomplete: str) -> list[str]:
    *first, last = incomplete.split(",")
    every = [n for n in [*ALGORITHMS, *strategy_names()] if n not in first and n.startswith(last)]
    return [",".join([*first, name]) for name in every]


# Longer than 70 lines, since its parameters are the options that typer reads.
def compare(
    methods: Annotated[
        str,
        typer.Argument(
            help="Methods, as p2pft,dgd,gt-dgd,local,fedavg,centralized.", autocompletion=_complete_names
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Run-config keys for all of them.",
            autocompletion=complete_settings,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the table, a picture, and a folder for each method.")
    ] = Path("comparison"),
    connection: Annotated[
        str | None,
        typer.Option(help="A connection of Flower's config.toml.", autocompletion=complete_connections),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_SEEDS,
            help="Run each method with so many seeds (seed, seed + 1, …) for mean ± standard deviation.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the comparison as JSON instead of the table.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Flower's own log as well.")] = False,
) -> None:
    """Run several methods one after the other on the same peers, data, model and seed, and write one table.

    With --seeds N each method runs with N seeds, and the table has mean and standard deviation over them of
    accuracy (all, seen and unseen classes), bytes and seconds. Completed runs are not repeated: the same
    command continues an interrupted table, and with more seeds it makes a longer one.

    A method that does not admit the graph (gt-dgd, exact-diffusion) gets a row with the reason.
    Exit codes: 0 every method completed; 1 one did not; 2 a setting is wrong and nothing was started; 130 it
    was interrupted.
    """
    folder = out.expanduser().absolute()
    with contextlib.ExitStack() as stack:
        try:
            names = _names(methods)
            require_writable(f"--out {out}", folder, "choose another folder")
            common = parse_settings(settings or [])
            graph = _check(names, common, folder, connection)
            if seeds is None:
                places = [folder / _folder(name) for name in names]
                if earlier := next(filter(holds_a_run, places), None):
                    raise ConfigError(f"{earlier} holds an earlier run; choose another --out")
                jobs = [
                    Job(name, _values(common, name, place)) for name, place in zip(names, places, strict=True)
                ]
            else:
                stack.enter_context(alone_in(folder, "p2pft compare"))
                jobs = _seed_jobs(names, common, folder, connection, seeds)
        except P2PFTError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_USAGE) from None

        what = f"{', '.join(names)} on {graph.name}"
        table = Table(what, common, folder) if seeds is None else SeedTable(what, common, folder, jobs)
        try:
            for job in jobs:
                if job.kept.results is not None:
                    typer.echo(f"kept: {job.folder.name}", err=True)
            with contextlib.ExitStack() as alone:
                missing = any(job.kept.results is None for job in jobs)
                here = connection is None and missing
                environment = alone.enter_context(local_superlink()) if here else None
                for job in jobs:
                    table.add(job, job.kept.results or _one(job, connection, environment, verbose))
        except P2PFTError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_FAILED) from None
        except KeyboardInterrupt:
            again = (
                "the same command continues with the runs that are missing" if seeds else "no table is made"
            )
            typer.echo(f"stopped: {again}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        body, text = table.finish()
    typer.echo(json.dumps(body, indent=2) if as_json else text)
    typer.echo(f"table: {folder / 'comparison.md'}", err=as_json)
    if any(run["status"] != "completed" for run in body["runs"]):
        raise typer.Exit(EXIT_FAILED)


@dataclass(frozen=True)
class Job:
    """One run of a comparison.

    Attributes
    ----------
    method : str
        The run-config's ``algorithm``.
    values : dict
        Run-config keys and values.
    mark : dict or None
        With ``--seeds``: the content of the file :data:`MARK` in the run's folder; else None.
    kept : Kept
        With ``--seeds``: what an earlier command has left of the run.
    """

    method: str
    values: dict[str, Any]
    mark: dict[str, Any] | None = None
    kept: Kept = field(default_factory=Kept)

    @property
    def folder(self) -> Path:
        """The folder of the run's results."""
        return Path(self.values["output-dir"])


class Table:
    """The comparison of one run a method.

    Parameters
    ----------
    what : str
        The methods and the graph, in words.
    common : mapping
        The settings of all runs.
    folder : Path
        The folder for ``comparison.json``, ``comparison.md`` and ``comparison.png``.
    """

    def __init__(self, what: str, common: Mapping[str, Any], folder: Path) -> None:
        self._what, self._common, self._folder = what, common, folder
        self._runs: list[dict[str, Any]] = []

    def add(self, job: Job, results: dict[str, Any]) -> None:  # noqa: ARG002 - as of a table over seeds
        """Take a run's results in."""
        self._runs.append(results)

    def finish(self) -> tuple[dict[str, Any], str]:
        """Write the files, and return the content of ``comparison.json`` and the table for a terminal."""
        title = titled(self._what, self._runs)
        body = {"schema": SCHEMA, "title": title, "settings": self._common, "runs": self._runs}
        write_json(self._folder / JSON, body)
        (self._folder / MARKDOWN).write_text(comparison_markdown(self._runs, title), encoding="utf-8")
        if completed := [run for run in self._runs if run["status"] == "completed"]:
            draw_comparison(completed, title, self._folder / PICTURE)
        return body, comparison_table(self._runs, title)


class SeedTable:
    """The comparison of several runs a method; its files are written after each run.

    Parameters
    ----------
    what, common, folder
        As of :class:`Table`.
    jobs : sequence of Job
        All runs.
    """

    def __init__(self, what: str, common: Mapping[str, Any], folder: Path, jobs: Sequence[Job]) -> None:
        self._what, self._common, self._folder = what, common, folder
        self._runs = {job.folder: SeedRun(job.method, job.values["seed"]) for job in jobs}

    def add(self, job: Job, results: dict[str, Any]) -> None:
        """Take a run's results in, and write the files."""
        self._runs[job.folder] = replace(self._runs[job.folder], results=results)
        body = self._body()
        write_json(self._folder / JSON, body)
        (self._folder / MARKDOWN).write_text(seeds_markdown(body), encoding="utf-8")

    def finish(self) -> tuple[dict[str, Any], str]:
        """Draw the figure, and return the content of ``comparison.json`` and the table for a terminal."""
        body, every = self._body(), list(self._runs.values())
        methods = dict.fromkeys(run.method for run in every)
        drawn = [one for m in methods if (one := merged([run for run in every if run.method == m]))]
        if drawn:
            draw_comparison(drawn, body["title"], self._folder / PICTURE)
        return body, seeds_table(body)

    def _body(self) -> dict[str, Any]:
        every = list(self._runs.values())
        done = [dict(run.results) for run in every if run.results is not None]
        return {
            "schema": SCHEMA,
            "title": titled(self._what, done),
            "settings": self._common,
            "seeds": sorted({run.seed for run in every}),
            "methods": method_numbers(every),
            "runs": done,
        }


def _check(names: Sequence[str], common: Mapping[str, Any], folder: Path, connection: str | None) -> Graph:
    """Return the graph, after a look at all that can be refused before anything starts.

    Raises
    ------
    P2PFTError
        When a setting, the graph, the connection or a folder cannot be used.
    """
    for key in ("algorithm", "output-dir"):
        if key in common:
            raise ConfigError(
                f"{key} is not for compare: the methods come first, --out names the folder of the results"
            )
    if connection is not None:
        check_connection(connection)
    for name in names:
        # A method's refusal of the graph is a result.
        values = _values(common, name, folder / _folder(name))
        config, graph = check(values, here=connection is None, any_graph=True)
        if connection is None:
            require_places(config.learning)
        else:
            check_rehearsed(connection, graph, config.runtime.min_peers)
    return graph


def _values(common: Mapping[str, Any], name: str, place: Path) -> dict[str, Any]:
    return {**method_settings(common, name), "output-dir": str(place)}


def _seed_jobs(
    names: Sequence[str], common: Mapping[str, Any], folder: Path, connection: str | None, seeds: int
) -> list[Job]:
    """Return the runs of each seed and method, with what an earlier command has left of them.

    Raises
    ------
    ConfigError, DataError
        When a run's folder holds another run, or results that cannot be read; when a seed is too large.
    """
    first = RunConfig.from_mapping(common)
    weights = Path(first.learning.weights).expanduser()
    sha256 = None  # another file at the same path makes another run
    if connection is None and weights.is_file():
        with weights.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    jobs = []
    for seed in range(first.learning.seed, first.learning.seed + seeds):
        for name in names:
            place = folder / f"{_folder(name)}-seed-{seed}"
            values = _values({**common, "seed": seed}, name, place)
            settings = RunConfig.from_mapping(values).to_mapping()
            mark = {
                "schema": MARK_SCHEMA,
                "settings": {k: v for k, v in settings.items() if k not in OURS},
                "connection": connection,
                "weights-sha256": sha256,
            }
            jobs.append(Job(name, values, mark, look_for_kept(place, MARK, mark)))
    return jobs


def _folder(name: str) -> str:
    """Return the name of a method's folder below --out: the method's name, without the path of its file."""
    return name.rpartition("/")[2].replace(":", "-")


def _one(
    job: Job, connection: str | None, environment: Mapping[str, str] | None, verbose: bool
) -> dict[str, Any]:
    seed = "" if job.mark is None else f", seed {job.values['seed']}"
    typer.echo(f"--- {job.method}{seed}", err=True)
    if job.mark is not None:
        begin(job.folder, MARK, job.mark, job.kept)
    return execute_or_record(job.values, connection=connection, environment=environment, verbose=verbose)
