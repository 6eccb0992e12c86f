"""Folders that a run writes to: checks of them and of their free space, private files, whole files."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from p2pft_flower.errors import ConfigError

__all__ = [
    "FolderReport",
    "look_at",
    "make_private",
    "private",
    "read_private",
    "replacing",
    "require_regular",
    "require_writable",
    "sync",
]


@dataclass(frozen=True)
class FolderReport:
    """The result of looking at one folder.

    Attributes
    ----------
    purpose : str
        The use of the folder.
    path : str
        The folder's path; the folder may still have to be made.
    free : int or None
        Free space in bytes; None if there is an ``error``.
    error : str
        The reason why nothing can be written there; empty if something can be written.
    """

    purpose: str
    path: str
    free: int | None
    error: str


def look_at(purpose: str, path: Path) -> FolderReport:
    """Try a folder: write a file into it, remove the file, and measure the free space.

    A folder that is not there yet is not made: the nearest one above it is tried instead.
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
    """Tell whether the name is taken, even by a link that leads nowhere: no folder can be made there.

    Raises
    ------
    OSError
        If nothing can have this name, or if this cannot be known.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def require_writable(named: str, path: Path, remedy: str) -> None:
    """Raise an error if nothing can be written to a folder; nothing is left in the folder.

    Parameters
    ----------
    named : str
        The user's name for the folder: an option or key with its value, or a variable.
    path : Path
        The folder, which need not be there yet.
    remedy : str
        The remedy, in words.

    Raises
    ------
    ConfigError
        If nothing can be written; the text has the system's reason.
    """
    report = look_at(named, path.absolute())
    if report.error:
        raise ConfigError(f"{named}: nothing can be written to {path} ({report.error}); {remedy}")


def make_private(folder: Path) -> None:
    """Make a folder for its owner only (mode 0700), if it is not there; the folders above it as usual.

    A peer's states, journals and models, which lie in such folders, are as private as its images.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def private(path: str, flags: int) -> int:
    """Open a file for its owner only (mode 0600), and return its descriptor: an ``opener`` for :func:`open`.

    A link is not followed, and a pipe or device not waited for: neither belongs into a run's folder.

    Raises
    ------
    OSError
        If the file cannot be opened, or is no regular file.
    """
    try:
        number = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a link, which is not followed", path) from None
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "no regular file", path) from None
        raise
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "no regular file", path)
    return number


def read_private(path: Path, most: int) -> bytes:
    """Return a file's content; links, pipes and devices are refused.

    Parameters
    ----------
    path : Path
        The file.
    most : int
        The most bytes that the file may have.

    Raises
    ------
    OSError
        If the file cannot be read, is no regular file, or is larger.
    """
    with open(path, "rb", opener=private) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"larger than {most} bytes", str(path))
        return file.read(most)


@contextlib.contextmanager
def replacing(path: Path, *, on_disk: bool = True) -> Iterator[Path]:
    """Yield an empty file's path for a ``with`` block to write to; this file then replaces ``path``.

    The file is for its owner only (mode 0600); the folder is made if need be. A reader sees the old file or
    the whole new one, even if something fails.

    Parameters
    ----------
    path : Path
        The file to replace or to make.
    on_disk : bool
        Whether to wait until the file and its name are on disk; default True.

    Raises
    ------
    OSError
        If the file cannot be written. If the disk fails only when it should keep the file's name, the new
        file is there, whole.
    """
    partial = path.with_name(f"{path.name}.partial")
    make_private(path.parent)
    partial.unlink(missing_ok=True)  # remains of a killed process, even a link
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        yield partial
        if on_disk:
            sync(partial)
        os.replace(partial, path)  # noqa: PTH105 - tests stand in for this one
    except BaseException:
        with contextlib.suppress(OSError):  # the folder may be at fault
            partial.unlink(missing_ok=True)
        raise
    if on_disk:
        sync(path.parent)


def require_regular(path: Path) -> None:
    """Raise an error unless ``path`` is a regular file: call this before a library reads a run's file.

    Raises
    ------
    OSError
        If ``path`` is a link, pipe or device, cannot be opened, or does not exist.
    """
    os.close(private(str(path), os.O_RDONLY))


def sync(path: Path) -> None:
    """Bring a file's content, or the names in a folder, to disk, so that a crash of the machine keeps them.

    Raises
    ------
    OSError
        If ``path`` cannot be opened, or the disk fails.
    """
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
