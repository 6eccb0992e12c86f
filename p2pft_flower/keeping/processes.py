"""Recognises processes: a system may give the number of one that has ended to another."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

__all__ = ["is_alive", "start_mark"]

_PROC = Path("/proc")

_TOLERANCE = 1.0
"""Seconds by which the start of a process may seem to move if only the wall clock shows it."""


def start_mark(pid: int) -> str:
    """Return a text that distinguishes the process ``pid`` from any other that had or will have this number.

    On Linux the text has the machine's boot and the kernel's ticks from there to the start of the process:
    neither changes when the clock is set. Elsewhere it has the time of start, in seconds since 1970.

    Raises
    ------
    psutil.NoSuchProcess
        If there is no such process.
    """
    boot = _PROC / "sys/kernel/random/boot_id"
    if not boot.is_file():
        return f"time:{psutil.Process(pid).create_time()!r}"
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    # Field 22; the second is the program's name in brackets, which may hold blanks and brackets itself.
    ticks = stat.rpartition(")")[2].split()[19]
    return f"boot:{boot.read_text(encoding='utf-8').strip()}:{ticks}"


def is_alive(pid: int, mark: str) -> bool:
    """Tell whether the process with ``mark``, from :func:`start_mark`, has not ended.

    A process whose end its parent has not noted yet (a zombie) has ended.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        return _same(start_mark(pid), mark) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _same(now: str, then: str) -> bool:
    if now.startswith("time:") and then.startswith("time:"):
        return abs(float(now.removeprefix("time:")) - float(then.removeprefix("time:"))) < _TOLERANCE
    return now == then
