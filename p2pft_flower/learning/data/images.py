"""Images of arrays and files: found in folders, and told from each other by their content."""

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

__all__ = [
    "Listing",
    "array_content",
    "file_content",
    "find_images",
    "folders_in",
    "identity",
    "is_hidden",
    "looks_hidden",
]

SPECIAL = "pipe, socket or device"
"""What is called so waits or goes on without end when it is read as a file."""

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
"""Names, in lower case, of what systems, archives and network storage leave beside one's own."""

_SYSTEMS_OWN = tuple("#$@_~")
"""What systems like to begin names with."""


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder of this name is none of the user's: a system or program made it."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def looks_hidden(name: str) -> bool:
    """Tell whether a name begins as systems like to begin theirs; it may be the user's all the same."""
    return name.startswith(_SYSTEMS_OWN)


@dataclass
class Listing:
    """What was found in and below a folder.

    Attributes
    ----------
    files : list of Path
        The image files, sorted.
    hidden : Counter of str
        Names of hidden files and folders that were passed over.
    others : Counter of str
        Suffixes, in lower case, of files that are no pictures which can be opened here; empty: none.
        :data:`SPECIAL`, whatever their suffix, of what is no regular file.
    loops : list of Path
        Links that lead back to a folder above them; not followed.
    repeated : list of Path
        Links to folders that were looked into already; not followed.
    """

    files: list[Path] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    loops: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)

    def add(self, other: Listing) -> None:
        """Add what was found elsewhere."""
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
        When a folder may not be read. One that is not there has no files.
    """
    found = Listing()
    walked: set[tuple[int, int]] = set()
    # Links come after the folders that lie here, so that images are known by their own paths.
    waiting = deque([(folder, frozenset(identity(parent) for parent in folder.absolute().parents))])
    while waiting:
        linked, above = waiting.popleft()
        waiting += _walk(linked, above, walked, found)
    found.files.sort()
    return found


def folders_in(folder: Path) -> tuple[list[str], Listing]:
    """Return the names of the folders in ``folder``, hidden ones left out, and what else lies beside them.

    Raises
    ------
    DataError
        When the folder may not be read.
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
    """List what lies in and below a folder, and yield its links to folders with the folders above them."""
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
    except FileNotFoundError:  # as when it was removed while this looked
        return
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere is no folder; as a file it will be named
        return False


def identity(path: Path) -> tuple[int, int]:
    """Return by what a file or folder is known again, whatever path or link leads to it."""
    try:
        found = path.stat()
    except OSError:  # gone, or not to be looked at: nothing else leads to it
        return (-1, hash(path))
    return found.st_dev, found.st_ino


def _add_file(entry: os.DirEntry[str], found: Listing) -> None:
    file = Path(entry.path)
    suffix = file.suffix.lower()
    if _is_special(entry):
        found.others[SPECIAL] += 1
    elif suffix in _suffixes():
        found.files.append(file)
    else:
        found.others[suffix] += 1


def _is_special(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.is_file() and not stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # a link that leads nowhere is named as an image that cannot be read
        return False


@cache
def _suffixes() -> frozenset[str]:
    kinds = formats()  # fills the registry
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds)


def array_content(pixels: npt.NDArray[Any]) -> bytes:
    """Return the bytes that tell an array of pixels from every other."""
    return f"{pixels.dtype} {pixels.shape} ".encode() + np.ascontiguousarray(pixels).tobytes()


def file_content(file: Path) -> bytes:
    """Return the bytes of an image file.

    Raises
    ------
    DataError
        When it cannot be read, naming it.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: not a readable image ({error}){REMEDY}") from error
