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
        Where it is; made if need be.
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
    """Make the folder, write a file to it, remove the file, and see what is free."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".p2pft-") as file:
            file.write(b"p2pft")
            file.flush()
        return FolderReport(purpose, str(path), shutil.disk_usage(path).free, "")
    except OSError as error:
        return FolderReport(purpose, str(path), None, error.strerror or str(error))
