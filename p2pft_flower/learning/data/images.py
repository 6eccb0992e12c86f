"""Finding image files in folders, and identifying images by their content."""

from __future__ import annotations

import os
import stat
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.decoding import REMEDY, formats
from p2pft_flower.learning.data.dicom_files import SUFFIXES as DICOM
from p2pft_flower.learning.data.dicom_files import begins_as_dicom, unnamed

__all__ = [
    "Listing",
    "array_content",
    "file_content",
    "find_images",
    "folders_in",
    "identity",
    "is_hidden",
    "looks_hidden",
    "picture_suffixes",
]

SPECIAL = "pipe, socket or device"
"""Words for the kinds of files whose reading blocks or never ends."""

_SYSTEM = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$extend",
        "$recycle.bin",
        "@__thumb",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@sharebin",
        "@tmp",
        "__macosx",
        "__pycache__",
        "_gsdata_",
        "desktop.ini",
        "dicomdir",
        "found.000",
        "lost+found",
        "network trash folder",
        "recycler",
        "system volume information",
        "temporary items",
        "thefindbycontentfolder",
        "thevolumesettingsfolder",
        "thumbs.db",
        "~snapshot",
    }
)
"""Names, in lower case, of files and folders that systems, archives and network storage create."""

_SYSTEMS_OWN = tuple("#$@_~")
"""Beginnings of names that systems often use."""


def is_hidden(name: str) -> bool:
    """Return whether a system or program, and not the user, makes files or folders of this name."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def looks_hidden(name: str) -> bool:
    """Return whether a name begins as systems' names often do; it may still be the user's."""
    return name.startswith(_SYSTEMS_OWN)


@dataclass
class Listing:
    """The files found in and below a folder.

    Attributes
    ----------
    files : list of Path
        The image files, sorted.
    hidden : Counter of str
        Names of hidden files and folders that were passed over.
    others : Counter of str
        Suffixes, in lower case, of files that are no pictures; :data:`SPECIAL` for files that are not
        regular, with any suffix.
    loops : list of Path
        Links that lead back to a folder above them; not followed.
    repeated : list of Path
        Links to folders that were listed already; not followed.
    """

    files: list[Path] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    loops: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)

    def add(self, other: Listing) -> None:
        """Add another listing to this listing."""
        self.files += other.files
        self.hidden += other.hidden
        self.others += other.others
        self.loops += other.loops
        self.repeated += other.repeated


def find_images(folder: Path) -> Listing:
    """List the image files in and below ``folder``; links to folders are followed, into each folder once.

    Raises
    ------
    DataError
        When a folder may not be read. A missing folder has no files.
    """
    found = Listing()
    walked: set[tuple[int, int]] = set()
    # Links come after real folders, so that images have their own paths.
    waiting = deque([(folder, frozenset(identity(parent) for parent in folder.absolute().parents))])
    while waiting:
        linked, above = waiting.popleft()
        waiting += _walk(linked, above, walked, found)
    found.files.sort()
    return found


def folders_in(folder: Path) -> tuple[list[str], Listing]:
    """Return the names of the folders in ``folder`` without hidden ones, and a listing of everything else.

    Raises
    ------
    DataError
        When the folder may not be read. A missing folder is empty.
    """
    names, beside = [], Listing()
    for entry in _entries(folder):
        if is_hidden(entry.name):
            beside.hidden[entry.name] += 1
        elif _is_folder(entry):
            names.append(entry.name)
        else:
            _add_file(entry, beside)
    return names, beside


def _walk(
    folder: Path, above: frozenset[tuple[int, int]], walked: set[tuple[int, int]], found: Listing
) -> Iterator[tuple[Path, frozenset[tuple[int, int]]]]:
    """Add a folder's files, also deeper ones, to ``found``; yield links to folders with the folders above."""
    here = identity(folder)
    if here in above or here in walked:
        (found.loops if here in above else found.repeated).append(folder)
        return
    walked.add(here)
    for entry in sorted(_entries(folder), key=lambda entry: entry.name):
        if is_hidden(entry.name):
            found.hidden[entry.name] += 1
        elif not _is_folder(entry):
            _add_file(entry, found)
        elif entry.is_symlink():
            yield Path(entry.path), above | {here}
        else:
            yield from _walk(Path(entry.path), above | {here}, walked, found)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:  # it may have been removed meanwhile
        return
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a dangling link is no folder; as a file it will be named
        return False


def identity(path: Path) -> tuple[int, int]:
    """Return device and inode of a file or folder, which are the same by every path and link.

    If the path cannot be accessed, return -1 and the hash of the path.
    """
    try:
        found = path.stat()
    except OSError:  # gone or not accessible: identified by its path
        return (-1, hash(path))
    return found.st_dev, found.st_ino


def _add_file(entry: os.DirEntry[str], found: Listing) -> None:
    file = Path(entry.path)
    suffix = file.suffix.lower()
    if _is_special(entry):
        found.others[SPECIAL] += 1
    elif suffix in picture_suffixes() or _is_dicom(file):
        found.files.append(file)
    else:
        found.others[suffix] += 1


def _is_special(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.is_file() and not stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # a dangling link is named as an image that cannot be read
        return False


def _is_dicom(file: Path) -> bool:
    """Return whether a file is one of DICOM by its preamble, if its name tells no format."""
    if not unnamed(file):
        return False
    try:
        with file.open("rb") as opened:
            return begins_as_dicom(opened)
    except OSError:
        return False


@cache
def picture_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of files that are pictures."""
    kinds = formats()  # fills the registry
    pictures = [suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds]
    return frozenset([*pictures, *DICOM])


def array_content(pixels: npt.NDArray[Any]) -> bytes:
    """Return bytes that identify an array of pixels."""
    return f"{pixels.dtype} {pixels.shape} ".encode() + np.ascontiguousarray(pixels).tobytes()


def file_content(file: Path) -> bytes:
    """Return the bytes of an image file.

    Raises
    ------
    DataError
        When the file cannot be read; the message names it.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: not a readable image ({error}){REMEDY}") from error
