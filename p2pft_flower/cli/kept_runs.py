"""Runs of a table of many runs: those that an earlier command completed are kept, the others begin anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from p2pft_flower.errors import ConfigError
from p2pft_flower.keeping.run_folders import at_rest
from p2pft_flower.report.results import FILE, holds_a_run, read_results

__all__ = ["Kept", "begin", "look_for_kept"]


@dataclass(frozen=True)
class Kept:
    """What an earlier command has left of a run.

    Attributes
    ----------
    results : dict or None
        The content of results.json if the run was completed.
    leftover : bool
        Whether the run was begun and not completed.
    """

    results: dict[str, Any] | None = None
    leftover: bool = False


def look_for_kept(folder: Path, file: str, mark: Mapping[str, Any]) -> Kept:
    """Return what an earlier command has left in a run's folder.

    Parameters
    ----------
    folder : Path
        The run's folder.
    file : str
        Name of the file that :func:`begin` writes into it.
    mark : mapping
        The content of that file for the run as it would be now: ``schema``, ``settings`` (run-config), and
        whatever else must be the same.

    Raises
    ------
    ConfigError, DataError
        When the folder holds another run, a completed run with another mark, or results that cannot be read.
    """
    if not holds_a_run(folder):
        return Kept()
    before = _mark(folder / file, mark["schema"])
    if before is None:
        raise ConfigError(f"{folder} holds a run that is none of this command's; choose another --out")
    if (folder / FILE).exists():  # otherwise it was interrupted
        results = read_results(folder)
        if results["status"] == "completed":
            if before != mark:
                raise ConfigError(
                    f"{folder} holds a completed run with other settings "
                    f"({_first_difference(before, mark)}); "
                    "choose another --out, or remove that folder"
                )
            return Kept(results)
    return Kept(leftover=True)


def _mark(path: Path, schema: str) -> dict[str, Any] | None:
    """Return the content of a mark; None if it is missing, unreadable or of another schema."""
    try:
        mark = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and mark.get("schema") == schema else None


def _first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = (
        {**mark.get("settings", {}), **{k: v for k, v in mark.items() if k not in ("schema", "settings")}}
        for mark in (before, now)
    )
    key = next(k for k in [*new, *old] if old.get(k) != new.get(k))
    return f"{key}: {old.get(key)} there, {new.get(key)} now"


def begin(folder: Path, file: str, mark: Mapping[str, Any], kept: Kept) -> None:
    """Make a run's folder ready: remove what an earlier attempt has left, and write the mark.

    Parameters
    ----------
    folder, file, mark
        As of :func:`look_for_kept`.
    kept : Kept
        What it returned, without results.

    Raises
    ------
    ConfigError
        When the earlier attempt is still at work.
    """
    if kept.leftover:
        with at_rest(folder) as free:
            if not free:
                raise ConfigError(
                    f"{folder}: a process is still at work on this run; end it first: p2pft stop"
                )
            typer.echo(f"{folder} did not complete: it is removed and run again", err=True)
            shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(mark, indent=2) + "\n", encoding="utf-8")
