"""What commands that make many runs share: a folder of their own, seeds, durations, warnings."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

import typer

from p2pft_flower.errors import ConfigError

__all__ = ["SEEDS", "alone_in", "duration", "seeds_of", "warnings_once"]

SEEDS = "0,1,2"


def seeds_of(text: str) -> list[int]:
    """Return the seeds in the value of ``--seeds``.

    Raises
    ------
    ConfigError
        When a seed is no whole number, or is given twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        raise ConfigError(f"--seeds {text!r}: give different whole numbers >= 0, as {SEEDS}")
    return [int(word) for word in words]


@contextlib.contextmanager
def alone_in(folder: Path, command: str = "p2pft reproduce") -> Iterator[None]:
    """Lock ``folder`` for a ``with`` block: a second command would treat a run under way as a leftover.

    Parameters
    ----------
    folder : Path
        The folder, made if need be.
    command : str
        What locks such folders, for the error; default ``p2pft reproduce``.

    Raises
    ------
    ConfigError
        When the folder cannot be written to, or another command has locked it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"--out {folder}: another {command} is at work there") from None
        yield


def duration(seconds: float) -> str:
    """Return a duration for people, such as ``2 h 5 min``."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


class _Once(logging.Handler):
    """Prints each message to standard error the first time that it comes."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._told:
            self._told.add(text)
            typer.echo(f"{record.levelname.lower()}: {text}", err=True)


@contextlib.contextmanager
def warnings_once() -> Iterator[None]:
    """Print each of this package's warnings once within a ``with`` block: hundreds of runs repeat them."""
    log, handler = logging.getLogger("p2pft_flower"), _Once()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
