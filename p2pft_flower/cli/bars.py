"""Progress of a command, with the time left: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

__all__ = ["EVERY", "counted"]

EVERY = 3.0
"""Seconds between two lines; a command that ends sooner prints none."""


@contextlib.contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show on standard error how much of a task is done during a ``with`` block.

    Parameters
    ----------
    what : str
        The task, for people: ``"scoring tails"``.
    total : int
        Number of steps.

    Yields
    ------
    callable
        Called with the number of steps that have been done since the last call.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda steps: progress.advance(task, steps)
    else:
        yield _Lines(what, total)


class _Lines:
    """Prints a line at most every :data:`EVERY` seconds."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._begin = self._told = time.monotonic()

    def __call__(self, steps: int) -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._told < EVERY or self._done >= self._total:
            return
        self._told = now
        left = (now - self._begin) / self._done * (self._total - self._done)
        typer.echo(f"{self._what}: {self._done} of {self._total}, about {left:.0f} s left", err=True)
