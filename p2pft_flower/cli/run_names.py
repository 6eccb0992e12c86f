"""Runs named on the command line: by folder, id or name."""

from __future__ import annotations

from pathlib import Path

import typer

from p2pft_flower.errors import ConfigError
from p2pft_flower.keeping.run_folders import find_run
from p2pft_flower.report.results import runs_folder

__all__ = ["folder_named"]


def folder_named(place: Path) -> Path:
    """Return ``place`` if it is there; else the folder of the run whose id or name it is.

    If several runs have the name, such as a run and the one that went on from it, the last one counts, and a
    note on standard error says so.

    Parameters
    ----------
    place : Path
        A path, or the id or name of a run in the default folder of runs.

    Raises
    ------
    ConfigError
        When there is neither.
    """
    if place.exists() or len(place.parts) != 1:
        return place
    found = find_run(runs_folder(), str(place))
    if found is None:
        raise ConfigError(
            f"{place}: no such file or folder, and no run in {runs_folder()} has this id or name; p2pft runs "
            "lists them"
        )
    if found.note:
        typer.echo(f"note: {found.note}", err=True)
    return found.folder
