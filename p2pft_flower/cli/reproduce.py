"""``p2pft reproduce``: the paper's tables, run again and printed beside its own figures."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import tomllib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pft_flower.cli.completion import complete_settings
from p2pft_flower.cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from p2pft_flower.cli.fedtune import reproduce_fedtune
from p2pft_flower.cli.flwr_run import local_superlink
from p2pft_flower.cli.kept_runs import Kept, begin, look_for_kept
from p2pft_flower.cli.places import require_places
from p2pft_flower.cli.reproducing import SEEDS, alone_in, duration, seeds_of
from p2pft_flower.cli.run import execute_or_record
from p2pft_flower.cli.settings import check, method_settings, parse_settings
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.report.paper import DATASETS, NODES, TABLES
from p2pft_flower.report.reproduction import (
    Row,
    RowRun,
    reproduction,
    reproduction_markdown,
    reproduction_table,
)
from p2pft_flower.resources import resource_dir
from p2pft_flower.topology import Graph

__all__ = ["app", "preset", "reproduce"]

app = typer.Typer(
    help="Run a paper's experiments again, and print them beside its own figures.", no_args_is_help=True
)

PAPERS_METHODS = ("local", "p2pft")
ALL_METHODS = (*PAPERS_METHODS, "dgd", "gt-dgd", "fedavg", "centralized")

QUICK: Mapping[str, Any] = {
    "epochs": 20,
    "shots": 20,
    "learning-rate": 0.01,
    "evaluate-every": 1_000_000_000,  # at the beginning and at the end
}
"""The settings of ``--quick``."""

OURS = ("algorithm", "seed", "output-dir")
"""Run-config keys that this command sets for each run."""

MARK = "reproduce.json"
"""Name of the file that is written into each run's folder before the run, and identifies the run."""

MARK_SCHEMA = "p2pft.reproduction-run/1"


@dataclass(frozen=True)
class Job:
    """One run that the table needs.

    Attributes
    ----------
    run : RowRun
        The run, with its results if an earlier command completed it.
    values : dict
        Run-config keys and values.
    mark : dict
        Content of the file :data:`MARK`.
    work : float
        Number of training images that the run draws, for the estimate of the time left.
    kept : Kept
        What an earlier attempt at this very table has left of the run.
    """

    run: RowRun
    values: dict[str, Any]
    mark: dict[str, Any]
    work: float
    kept: Kept


def preset(architecture: str, dataset: str) -> dict[str, Any]:
    """Return the run-config of one row of the paper's tables, from a file in ``apps/p2pft/conf``.

    Parameters
    ----------
    architecture : str
        ``"vit"``, ``"deit"`` or ``"swin"``.
    dataset : str
        A key of :data:`~p2pft_flower.report.paper.DATASETS`.
    """
    file = resource_dir("apps") / "p2pft" / "conf" / f"{architecture}-{dataset}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def _complete_words(incomplete: str) -> list[str]:
    dataset, dot, rest = incomplete.partition(".")
    if dot and dataset in DATASETS:
        return [f"{dataset}.{word}" for word in complete_settings(rest)]
    return [*complete_settings(incomplete), *(f"{d}." for d in DATASETS if d.startswith(incomplete))]


# Longer than 70 lines, since its parameters are the options that typer reads.
def reproduce(
    context: typer.Context,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]... [DATASET.KEY=VALUE]...",
            help="Run-config keys in place of the presets', for all rows or (DATASET.KEY) for one.",
            autocompletion=_complete_words,
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A first look: one seed, " + ", ".join(f"{k}={v}" for k, v in list(QUICK.items())[:3]) + ".",
        ),
    ] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with torchvision's folders, as data-dir=…; default $P2PFT_HOME/data."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help=f"Seeds of each row and method; default {SEEDS}, with --quick 0.")
    ] = None,
    datasets: Annotated[str, typer.Option(help="Rows of the table.")] = ",".join(DATASETS),
    every: Annotated[
        bool, typer.Option("--all", help=f"Run {', '.join(ALL_METHODS[2:])} as well, in a second table.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the table and its runs; default reproduction/TABLE, or TABLE-quick."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON instead of text.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Flower's own log as well.")] = False,
) -> None:
    """Run one of the paper's tables: local fine-tuning and P2P-FT, node by node, beside the paper's figures.

    Settings come from the presets apps/p2pft/conf/*.toml. KEY=VALUE replaces one in all rows, and
    DATASET.KEY=VALUE, which has precedence, in one row: epochs=10 flowers.data-dir=/data/flowers17
    flowers.partition=classes:0-3,4-7,8-13,14-16. The output lists what differs from the paper.

    Completed runs are not repeated: the same command continues an interrupted table.

    Exit codes: 0 every run completed; 1 one did not, and its cell has the reason; 2 a setting is wrong and
    nothing was started; 130 it was interrupted.
    """
    table = str(context.info_name)
    folder = (out or Path("reproduction") / f"{table}{'-quick' if quick else ''}").expanduser().absolute()
    methods = ALL_METHODS if every else PAPERS_METHODS
    with contextlib.ExitStack() as stack:
        try:
            numbers = seeds_of(seeds or ("0" if quick else SEEDS))
            chosen = _settings(table, _rows(datasets), settings or [], quick, data_dir)
            require_writable(f"--out {folder}", folder, "choose another folder")
            for values in chosen.values():
                _check_row({**values, "seed": numbers[0], "output-dir": str(folder)}, methods)
            rows = [_row(dataset, values, numbers[0]) for dataset, values in chosen.items()]
            stack.enter_context(alone_in(folder))
            jobs = [
                _job(row, chosen[row.dataset], method, seed, folder)
                for row in rows
                for seed in numbers
                for method in methods
            ]
        except P2PFTError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_USAGE) from None

        def write(runs: Sequence[RowRun]) -> dict[str, Any]:
            body = reproduction(table, rows, runs, methods=methods, seeds=numbers, quick=quick)
            (folder / "reproduction.md").write_text(reproduction_markdown(body), encoding="utf-8")
            (folder / "reproduction.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
            return body

        runs = [job.run for job in jobs]
        try:
            with contextlib.closing(_run_all(jobs, folder, verbose)) as ended:
                for position, run in ended:
                    runs[position] = run
                    write(runs)
        except P2PFTError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_FAILED) from None
        except KeyboardInterrupt:
            typer.echo("stopped: the same command continues with the runs that are missing", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        body = write(runs)
    typer.echo(json.dumps(body, indent=2) if as_json else reproduction_table(body))
    typer.echo(f"table: {folder / 'reproduction.md'}", err=as_json)
    if any(run.status != "completed" for run in runs):
        raise typer.Exit(EXIT_FAILED)


for _name, _table in TABLES.items():
    app.command(_name, short_help=f"The paper's Table {_table.number} ({_table.architecture}).")(reproduce)


app.command("fedtune", short_help="FedTune's comparison of models and ways of tuning.")(reproduce_fedtune)


def _rows(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in DATASETS]
    if unknown or not names or len(set(names)) < len(names):
        raise ConfigError(f"--datasets {text!r}: give different ones of {', '.join(DATASETS)}")
    return [name for name in DATASETS if name in names]


def _settings(
    table: str, datasets: Sequence[str], words: Sequence[str], quick: bool, data_dir: Path | None
) -> dict[str, dict[str, Any]]:
    """Return the settings of each row, by dataset.

    In ascending order of precedence: the row's preset, ``--quick``, settings for all rows, settings for one.
    """
    general: list[str] = []
    special: dict[str, list[str]] = {dataset: [] for dataset in DATASETS}
    for word in words:
        key, equals, value = word.partition("=")
        dataset, dot, inner = key.partition(".")
        if not dot:
            general.append(word)
        elif dataset in special:
            special[dataset].append(f"{inner}{equals}{value}")
        else:
            raise ConfigError(f"{word!r}: there is no row {dataset!r}; the rows are {', '.join(DATASETS)}")
    common = parse_settings(general)
    if "dataset" in common:
        raise ConfigError(
            "dataset = is for one row only, as pets.dataset=folder:/pets; --datasets chooses rows"
        )
    if data_dir is not None:
        if "data-dir" in common:
            raise ConfigError("data-dir is given twice: --data-dir and data-dir=")
        common["data-dir"] = str(data_dir.expanduser().absolute())
    chosen = {}
    for dataset in datasets:
        own = parse_settings(special[dataset])
        for key in OURS:
            if key in common or key in own:
                raise ConfigError(
                    f"{key} is not for reproduce: it runs the table's methods (--all: more), --seeds has the "
                    "seeds, --out names the folder of the results"
                )
        base = preset(TABLES[table].architecture.lower(), dataset)
        chosen[dataset] = base | (dict(QUICK) if quick else {}) | common | own
    return chosen


def _check_row(values: Mapping[str, Any], methods: Sequence[str]) -> None:
    """Refuse a row's runs if a fault shows without a look at data and model.

    Raises
    ------
    P2PFTError
        When a setting or the graph cannot be used.
    """
    topology = RunConfig.from_mapping(values).runtime.topology
    if (peers := Graph.load(topology).n) != NODES:
        raise ConfigError(f"topology = {topology!r} has {peers} peers: the tables have {NODES} nodes")
    for method in methods:
        # A refusal of the graph by gt-dgd is a result.
        config, _ = check(method_settings(values, method), here=True, any_graph=True)
        require_places(config.learning)


def _row(dataset: str, values: Mapping[str, Any], seed: int) -> Row:
    """Return a row, after a check of all that its runs need: data, partition, model and weights.

    Raises
    ------
    P2PFTError
        When the data, the partition, the model or its weights cannot be used.
    """
    from p2pft_flower.learning.workload import Workload

    config, _ = check(method_settings({**values, "seed": seed}, "p2pft"), here=True)
    typer.echo(f"{DATASETS[dataset].name}: looking at the data, the model and its weights", err=True)
    workload = Workload(config.learning, NODES)
    holdings = workload.holdings
    train = sum(len(share) for share in holdings.partition)
    _ = workload.tail  # loads the model: its weights fit, and it can be cut
    learning = config.learning
    sha256 = None
    if learning.weights == "none":
        weights = "RANDOM"
    elif learning.weights == "pretrained":
        tag = (getattr(workload.model, "pretrained_cfg", None) or {}).get("tag")
        weights = f"pretrained ({tag})" if tag else "pretrained"
    else:
        weights = Path(learning.weights).name
        with Path(learning.weights).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Row(
        dataset=dataset,
        settings={k: v for k, v in config.to_mapping().items() if k not in OURS},
        classes=len(holdings.classes),
        train=train,
        available=len(holdings.dataset.train),
        test=len(holdings.test_positions),
        partition=holdings.partition_spec,
        weights=weights,
        sha256=sha256,
    )


def _job(row: Row, values: Mapping[str, Any], method: str, seed: int, folder: Path) -> Job:
    """Return the job of one run, with its results if an earlier command completed it.

    Raises
    ------
    ConfigError, DataError
        When the run's folder holds another run, or results that cannot be read.
    """
    place = Path(row.dataset) / f"{method}-seed-{seed}"
    here = folder / place
    own = {**method_settings({**values, "seed": seed}, method), "output-dir": str(here)}
    settings = {k: v for k, v in RunConfig.from_mapping(own).to_mapping().items() if k != "output-dir"}
    # Files behind the settings: another file at the same path makes another run.
    mark = {
        "schema": MARK_SCHEMA,
        "settings": settings,
        "weights-sha256": row.sha256,
        "images": [row.available, row.test],
    }
    iterations = settings["iterations"] * settings["batch-size"] * NODES
    kept = look_for_kept(here, MARK, mark)
    run = RowRun(row.dataset, method, seed, str(place), kept.results, kept=kept.results is not None)
    return Job(run, own, mark, float(iterations or row.train * settings["epochs"]), kept)


def _run_all(jobs: Sequence[Job], folder: Path, verbose: bool) -> Generator[tuple[int, RowRun], None, None]:
    """Do the missing runs one after the other; yield each one's position in ``jobs``, and its results."""
    left = [(position, job) for position, job in enumerate(jobs) if job.run.results is None]
    for job in jobs:
        if job.run.kept:
            typer.echo(f"kept: {job.run.folder}", err=True)
    if not left:
        return
    began, done, whole = time.monotonic(), 0.0, sum(job.work for _, job in left)
    with local_superlink() as environment:
        for number, (position, job) in enumerate(left, start=1):
            here = folder / job.run.folder
            passed = time.monotonic() - began
            time_left = f", about {duration(passed / done * (whole - done))} left" if done else ""
            typer.echo(
                f"--- run {number} of {len(left)}: {DATASETS[job.run.dataset].name}, {job.run.method}, "
                f"seed {job.run.seed}{time_left}",
                err=True,
            )
            begin(here, MARK, job.mark, job.kept)
            results = execute_or_record(job.values, connection=None, environment=environment, verbose=verbose)
            yield position, replace(job.run, results=results)
            done += job.work
