"""The folders of runs: how they are called, which one is meant, and whether a process works in one."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from p2pft_flower.errors import DataError
from p2pft_flower.keeping.journal import read_journal
from p2pft_flower.keeping.running import running

__all__ = ["Found", "at_rest", "begun_by_journal", "find_run", "folder_name", "in_use", "split_name"]

_NAMED = re.compile(r"(?:(?P<name>[A-Za-z][\w-]*)-)?(?P<run>\d+)", re.ASCII)
"""A run's folder: its id, after its name if it has one. Flower's ids have digits only."""

_WANTED = re.compile(r"[\w-]{1,129}", re.ASCII)
"""An id or a name, or both as a folder is called: nothing that leads out of the folder of the runs."""

_PATIENCE = 5.0
"""Seconds for which a run waits until a command has looked at its folder."""

log = logging.getLogger("p2pft_flower")


class Found(NamedTuple):
    """A run's folder.

    Attributes
    ----------
    run : str
        The run's id.
    folder : Path
        The run's folder.
    note : str
        If the run was found by its name: the sentence that says which one it is; else empty.
    """

    run: str
    folder: Path
    note: str = ""


def folder_name(run: str, name: str) -> str:
    """Return what the folder of ``run`` is called: its id, after its name if it has one.

    Parameters
    ----------
    run : str
        The run's id.
    name : str
        The run-config's ``name``; empty: none.
    """
    return f"{name}-{run}" if name else run


def split_name(folder: str) -> tuple[str, str]:
    """Return the name (empty if there is none) and the id in what a run's folder is called."""
    match = _NAMED.fullmatch(folder)
    return (match["name"] or "", match["run"]) if match else ("", folder)


def find_run(above: Path, wanted: str) -> Found | None:
    """Return the run below ``above`` that has the id or the name ``wanted``; None if there is none.

    An id counts first. If several runs have the name, it is the one that began last.

    Parameters
    ----------
    above : Path
        The folder that holds the runs' folders.
    wanted : str
        A run's id, its name, or its folder's name: letters, digits, - and _ alone.
    """
    if not _WANTED.fullmatch(wanted):
        return None
    if (above / wanted).is_dir():
        return Found(split_name(wanted)[1], above / wanted)
    try:
        there = [(*split_name(path.name), path) for path in sorted(above.iterdir()) if path.is_dir()]
    except OSError:
        return None
    if by_id := [path for _, run, path in there if run == wanted]:
        return Found(wanted, by_id[-1])
    named = [(_begun(path), run, path) for name, run, path in there if name == wanted]
    if not named:
        return None
    _, run, path = max(named)
    others = f", the newest of {len(named)} of this name" if len(named) > 1 else ""
    return Found(run, path, f"{wanted} is run {run}{others} ({path})")


def begun_by_journal(folder: Path) -> float | None:
    """Return the time at which the run in ``folder`` began, in Unix seconds; None without a readable journal.

    It is that of the first line of the first journal, by name, that can be read.
    """
    for path in sorted((folder / "peers").glob("peer-*.jsonl")):
        with contextlib.suppress(DataError, StopIteration):
            return next(read_journal(path)).time
    return None


def _begun(folder: Path) -> float:
    told = begun_by_journal(folder)
    try:
        return folder.stat().st_mtime if told is None else told
    except OSError:  # it has just been removed
        return 0.0


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Mark a run's folder as in use during a ``with`` block, so that :func:`at_rest` tells of it.

    The mark is a lock that the system frees when the process ends in any way. Where the file system has no
    locks, there is none, which is logged.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:  # whatever is written there next fails by name
        log.warning("%s cannot be marked as in use (%s)", folder, error.strerror)
        yield
        return
    try:
        _lock(number, folder)
        yield
    finally:
        os.close(number)


def _lock(number: int, folder: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                log.warning("%s cannot be marked as in use: is it being removed?", folder)
                return
            time.sleep(0.05)  # flock has no deadline of its own
        except OSError as error:
            log.warning("%s cannot be marked as in use (%s)", folder, error.strerror)
            return
        else:
            return


@contextlib.contextmanager
def at_rest(folder: Path, run: str = "") -> Iterator[bool]:
    """Tell whether no process of this machine works on a run, and let none begin during a ``with`` block.

    Parameters
    ----------
    folder : Path
        The run's folder.
    run : str
        The run's id, by which peers that train are found if the folder's file system has no locks; default
        empty: not known.
    """
    if run and running(run):
        yield False
        return
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # nobody can work there
        yield True
        return
    try:
        free = True
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError as error:
            log.debug("%s has no locks (%s)", folder, error)
        yield free
    finally:
        os.close(number)
