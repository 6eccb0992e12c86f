"""Processes started, harmed and ended together: programs with all that they start, and functions.

A program, and each process that it starts, is recognised by a mark in its environment, in any session: Ray
and Flower put processes into sessions of their own, and some of these processes outlive their parents.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import psutil

__all__ = ["MARK", "Functions", "Programs", "marked", "marks", "undisturbed"]

MARK = "P2PFT_MARK"
"""Environment variable with the marks, separated by blanks: a child of a marked process may get one more."""

PATIENCE = 20.0
"""Seconds that processes have to end before they are killed."""


def marks(environment: Mapping[str, str]) -> list[str]:
    """Return the marks in an environment, the outermost first."""
    return environment.get(MARK, "").split()


def marked(mark: str) -> list[psutil.Process]:
    """Return the living processes that carry ``mark``."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # the process is gone meanwhile, or another user's
            if mark in marks(process.environ()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore SIGINT, SIGTERM and SIGHUP in the block, in which processes are ended: none may cut it short."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Programs:
    """Programs that carry one mark; a context manager that ends them and all that they have started.

    Parameters
    ----------
    environment : mapping of str to str
        The programs' environment, without the mark.
    mark : str, optional
        The mark of programs that another process has started; default: a new one.

    Attributes
    ----------
    mark : str
        The mark that all programs carry.
    environment : dict of str to str
        The programs' environment, with the mark.
    logs : dict of str to Path
        The file of each program's output, by the program's name.
    """

    def __init__(self, environment: Mapping[str, str], mark: str | None = None) -> None:
        self.mark = mark or uuid.uuid4().hex
        self.environment = {**environment, MARK: " ".join([*marks(environment), self.mark])}
        self.logs: dict[str, Path] = {}
        self._started: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with undisturbed():
            self.end()

    def start(
        self, name: str, command: Sequence[str], log: Path, cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own, with an empty standard input.

        Parameters
        ----------
        name : str
            The program's name in :attr:`logs`.
        command : sequence of str
            The program's path and its arguments.
        log : Path
            The file for its output; begun anew.
        cwd : Path, optional
            The program's working directory; default: this process's.
        """
        self.logs[name] = log
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - what the caller names
                command,
                env=self.environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def converse(self, command: Sequence[str], cwd: Path | None = None) -> subprocess.Popen[str]:
        """Start a program, in this session, whose standard streams are pipes of text to this process."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(  # noqa: S603 - what the caller names
            command, env=self.environment, cwd=cwd, text=True, stdin=pipe, stdout=pipe, stderr=pipe
        )
        self._started.append(process)
        return process

    def running(self) -> list[psutil.Process]:
        """Return the living processes that carry the mark."""
        return marked(self.mark)

    def said(self, name: str, size: int = 4000) -> str:
        """Return the last ``size`` bytes of a program's output, as text."""
        return self.logs[name].read_bytes()[-size:].decode(errors="replace")

    def end(self, patience: float = PATIENCE) -> None:
        """End all processes with the mark (SIGTERM); kill those that are left after ``patience`` seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number, patience)

    def kill(self, patience: float = PATIENCE) -> None:
        """Kill all processes with the mark at once, as a power cut would, and those that they start."""
        while self._signal(signal.SIGKILL, patience):
            pass

    def _signal(self, number: signal.Signals, patience: float) -> list[psutil.Process]:
        left = self.running()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        deadline = time.monotonic() + patience
        for own in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                own.wait(max(0.0, deadline - time.monotonic()))  # reaped, so that others see that it is gone
        psutil.wait_procs(left, timeout=max(0.0, deadline - time.monotonic()))
        return left


@dataclass
class _Child:
    process: Any  # its class depends on the start method, and has no public name
    pipe: Connection


class Functions:
    """Numbered processes, each of which runs one Python function; a context manager that leaves none behind.

    Parameters
    ----------
    preload : sequence of str
        Modules that are imported once, by the process that is forked for each function, so that functions
        start quickly. Python has one such process: the first :class:`Functions` decides its modules.

    Raises
    ------
    ValueError
        When that process has other modules: each function would import its own, which takes seconds.
    """

    _preload: ClassVar[Sequence[str] | None] = None

    def __init__(self, preload: Sequence[str]) -> None:
        if Functions._preload not in (None, list(preload)):
            raise ValueError(
                f"functions are started from a process with the modules {Functions._preload}, not {preload}"
            )
        Functions._preload = list(preload)
        self._server = multiprocessing.get_context("forkserver")
        self._server.set_forkserver_preload(list(preload))
        self._children: dict[int, _Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children.values():
            child.process.kill()  # works also if it is stopped
        for child in self._children.values():
            child.process.join(PATIENCE)
            child.pipe.close()

    def start(self, number: int, function: Callable[..., None], *arguments: object) -> None:
        """Call ``function(pipe, *arguments)`` in a new process ``number``; an earlier one must have ended.

        The operating system closes the other end of the pipe if this process dies.
        """
        if (former := self._children.get(number)) is not None:
            former.pipe.close()
        ours, theirs = self._server.Pipe()
        process = self._server.Process(
            target=function, args=(theirs, *arguments), name=f"peer {number}", daemon=True
        )
        process.start()
        theirs.close()
        self._children[number] = _Child(process, ours)

    def pipe(self, number: int) -> Connection:
        """Return this end of a process's pipe."""
        return self._children[number].pipe

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal to the process ``number``."""
        os.kill(self._children[number].process.pid, what)

    def kill(self, *numbers: int) -> None:
        """Kill the processes of these numbers, and return when they are gone."""
        for number in numbers:
            self._children[number].process.kill()
        self.join(numbers, PATIENCE)

    def join(self, numbers: Iterable[int], timeout: float) -> None:
        """Wait until the processes of these numbers have ended, for at most ``timeout`` seconds each."""
        for number in numbers:
            self._children[number].process.join(timeout)

    def exit_code(self, number: int) -> int | None:
        """Return the exit code of a process; None while it runs."""
        code: int | None = self._children[number].process.exitcode
        return code

    @property
    def started(self) -> list[int]:
        """The numbers of all processes that were started."""
        return list(self._children)

    @property
    def alive(self) -> list[int]:
        """The numbers of the processes that have not ended."""
        return [number for number, child in self._children.items() if child.process.is_alive()]
