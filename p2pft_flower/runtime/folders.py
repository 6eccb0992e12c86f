"""Folders that a run writes to: whether they can be written to, what room they have, and what is on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from p2pft_flower.errors import ConfigError

__all__ = ["FolderReport", "look_at", "require_writable", "sync"]


@dataclass(frozen=True)
class FolderReport:
    """One folder.

    Attributes
    ----------
    purpose : str
        What goes there.
    path : str
        Where it is, or will be made.
    free : int or None
        Bytes free; None where it cannot be told.
    error : str
        Why nothing can be written there; empty where something can.
    """

    purpose: str
    path: str
    free: int | None
    error: str


def look_at(purpose: str, path: Path) -> FolderReport:
    """Write a file to the folder, remove the file, and see what is free.

    A folder that is not there yet is not made: the nearest one above it is looked at instead.
    """
    try:
        there = next(folder for folder in (path, *path.parents) if _is_there(folder))
        with tempfile.NamedTemporaryFile(dir=there, prefix=".p2pft-") as file:
            file.write(b"p2pft")
            file.flush()
        return FolderReport(purpose, str(path), shutil.disk_usage(there).free, "")
    except OSError as error:
        return FolderReport(purpose, str(path), None, error.strerror or str(error))


def _is_there(path: Path) -> bool:
    """Tell whether something of this name is there; a link that leads nowhere is, for no folder can be made.

    Raises
    ------
    OSError
        When there can be nothing of this name, or it cannot be known.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def require_writable(named: str, path: Path, remedy: str) -> None:
    """Refuse a folder to which nothing can be written; nothing is left in it.

    Parameters
    ----------
    named : str
        How the user knows it: an option or key with its value, or a variable.
    path : Path
        The folder, which need not be there yet.
    remedy : str
        What to do instead.

    Raises
    ------
    ConfigError
        With the system's reason.
    """
    report = look_at(named, path.absolute())
    if report.error:
        raise ConfigError(f"{named}: nothing can be written to {path} ({report.error}); {remedy}")


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on disk: then also a crash of the machine keeps them.

    Raises
    ------
    OSError
        When the disk fails.
    """
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
