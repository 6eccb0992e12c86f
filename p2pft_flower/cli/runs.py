"""``p2pft runs``: list the runs of a folder, and remove some."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.filesize import decimal

from p2pft_flower.cli.exit_codes import EXIT_FAILED, EXIT_USAGE
from p2pft_flower.errors import ConfigError, P2PFTError, printable
from p2pft_flower.report.results import runs_folder
from p2pft_flower.report.run_list import RunRecord, is_run, named_runs, record_of, remove_run, runs_in
from p2pft_flower.report.tables import number

__all__ = ["app"]

SCHEMA = "p2pft.runs/1"

app = typer.Typer()

Folder = Annotated[
    Path | None,
    typer.Option(
        help="The folder that holds the runs' folders: a site's output-dir, or what p2pft compare wrote; "
        "default $P2PFT_HOME/runs (~/.p2pft/runs).",
    ),
]


def _fail(message: object) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(EXIT_USAGE)


def _place(folder: Path | None) -> Path:
    """Return the folder that holds the runs.

    Raises
    ------
    ConfigError
        When ``folder`` was given and is none.
    """
    if folder is None:
        return runs_folder().absolute()
    chosen = folder.expanduser().absolute()
    if not chosen.is_dir():
        raise ConfigError(f"--folder {folder}: there is no such folder")
    return chosen


@app.callback(invoke_without_command=True)
def list_runs(
    context: typer.Context,
    folder: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """List the runs of a folder, the newest first, and remove some.

    The list has each run's id, name, size and times; method, graph, peers, model and accuracy; and how it
    ended. A run is known by its results, or, at a site and while it trains, by its peers' journals.

    A run gets its name by name=pets-lora. p2pft run --resume and p2pft rejoin take a name in place of an id,
    and mean the newest run that has it; p2pft stop and p2pft runs remove refuse a name that several have.

    Exit codes: 0 the runs were listed; 2 the folder cannot be read.
    """
    if context.invoked_subcommand is not None:
        context.obj = folder
        return
    try:
        place = _place(folder)
        records = runs_in(place)
    except P2PFTError as error:
        _fail(error)
    if as_json:
        typer.echo(json.dumps(_as_dict(place, records), indent=2))
        return
    for line in _lines(records):
        typer.echo(line)
    total = decimal(sum(record.bytes for record in records))
    typer.echo(f"{len(records)} run{'' if len(records) == 1 else 's'}, {total} in {place}")


def _as_dict(place: Path, records: Sequence[RunRecord]) -> dict[str, Any]:
    return {"schema": SCHEMA, "folder": str(place), "runs": [dataclasses.asdict(one) for one in records]}


def _lines(records: Sequence[RunRecord]) -> list[str]:
    """Return three lines a run: which one it is and when it was, what it was, how it ended."""
    cells = [
        (printable(one.run), printable(one.name) or "–", decimal(one.bytes), _times(one)) for one in records
    ]
    widths = [max((len(row[i]) for row in cells), default=0) for i in range(3)]
    lines = []
    for one, (run, name, size, times) in zip(records, cells, strict=True):
        lines.append(f"{run:<{widths[0]}}  {name:<{widths[1]}}  {size:>{widths[2]}}  {times}")
        facts = [
            f"{one.method} on {one.graph}" if one.method and one.graph else one.method or one.graph,
            f"{one.peers} peers" if one.peers is not None else "",
            one.model,
            f"accuracy {number(one.accuracy)}" if one.accuracy is not None else "",
            "" if Path(one.folder).name.endswith(one.run) else f"in {Path(one.folder).name}",
        ]
        lines.append(f"  {', '.join(printable(fact) for fact in facts if fact) or '–'}")
        lines.append(f"  {printable(' '.join(one.told.split()))}")
    return lines


def _times(record: RunRecord) -> str:
    """Return when a run began and ended, in this machine's time."""
    if record.begun is None:
        return "" if record.ended is None else f"until {_clock(record.ended)}"
    if record.ended is None:
        return f"{_clock(record.begun)} until now"
    begun, ended = _clock(record.begun), _clock(record.ended)
    return f"{begun} to {ended.partition(' ')[2] if begun[:10] == ended[:10] else ended}"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


@app.command()
def remove(
    context: typer.Context,
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Ids, names that one run alone has, or folders.")
    ],
    folder: Folder = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove runs for good: results, journals, models and checkpoints of the peers on this machine.

    Asks first; where no terminal is, it needs --yes. Other files in a run's folder are left, and links are
    not followed. Nothing is removed if one of the runs cannot be: it is none, several have its name, or it is
    at work on this machine. p2pft runs remove 13246128602208677506 pets-lora removes two.

    Exit codes: 0 they are gone; 1 the answer was no; 2 one cannot be removed.
    """
    try:
        place = _place(folder if folder is not None else context.obj)
        chosen = list(dict.fromkeys(_one(place, run) for run in runs))
        records = [record_of(path) for path in chosen]
        for record in records:
            if record.status == "training":
                raise ConfigError(
                    f"run {record.run} is at work on this machine ({record.folder}): end it first with "
                    f"p2pft stop {record.run}, or wait for its end"
                )
    except P2PFTError as error:
        _fail(error)
    if not yes:
        if not sys.stdin.isatty():
            _fail("there is no terminal to ask on: give --yes to remove them")
        for line in _lines(records):
            typer.echo(line)
        many = f"{len(records)} runs" if len(records) > 1 else f"run {printable(records[0].run)}"
        if not typer.confirm(f"Remove {many} ({decimal(sum(one.bytes for one in records))}) for good?"):
            raise typer.Exit(EXIT_FAILED)
    freed = 0
    for record in records:
        try:
            size, left = remove_run(Path(record.folder))
        except P2PFTError as error:
            _fail(error)
        freed += size
        typer.echo(f"removed run {printable(record.run)} ({decimal(size)})")
        if left:
            typer.echo(f"left in {record.folder}, none of the run's: {', '.join(map(printable, left))}")
    typer.echo(f"freed {decimal(freed)}")


def _one(place: Path, wanted: str) -> Path:
    """Return the folder of the one run that ``wanted`` names.

    Raises
    ------
    ConfigError
        When there is none, or several have the name; lists their ids.
    """
    found = named_runs(place, wanted)
    if not found:
        raise ConfigError(f"{wanted}: no run in {place} has this id or name; p2pft runs lists them")
    if len(found) > 1:
        ids = ", ".join(record_of(path).run for path in found)
        raise ConfigError(f"{wanted}: {len(found)} runs have this name; give the id of each: {ids}")
    if found[0].is_symlink():
        raise ConfigError(f"{found[0]} is a link, which is not followed: give the run's own folder")
    if not is_run(found[0]):
        raise ConfigError(
            f"{found[0]} is no run's folder: it holds no results, journals or checkpoints of ours"
        )
    return found[0]
