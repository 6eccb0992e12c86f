"""Whether a folder that a run will write to can be written to, and how much room it has."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FolderReport", "look_at"]


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
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        with tempfile.NamedTemporaryFile(dir=there, prefix=".p2pft-") as file:
            file.write(b"p2pft")
            file.flush()
        return FolderReport(purpose, str(path), shutil.disk_usage(there).free, "")
    except OSError as error:
        return FolderReport(purpose, str(path), None, error.strerror or str(error))
