"""The peers that train on this machine now, by their processes, for ``p2pft stop``.

Each process has a file in ``$P2PFT_HOME/running`` as long as its peers train. A process that was killed
leaves its file behind; this file is ignored, since no process of that number and start is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import psutil

from p2pft_flower.errors import DataError
from p2pft_flower.keeping.folders import make_private, read_private, replacing
from p2pft_flower.keeping.processes import is_alive, start_mark
from p2pft_flower.resources import home
from p2pft_flower.typed import PeerNumber, decoded, encoded

__all__ = ["Entry", "Running", "registered", "running"]

_LARGEST = 2**20
"""The most bytes of a file."""

log = logging.getLogger(__name__)


class Running(msgspec.Struct, frozen=True):
    """A process in which peers of a run train, as its file describes it.

    Attributes
    ----------
    run : str
        The run's identifier.
    peers : tuple of int
        The peers.
    neighbours : tuple of int
        The peers to which the process passes a stop on; empty if it exchanges nothing with others.
    pid : int
        The process's number.
    started : str
        The process's :func:`~p2pft_flower.keeping.processes.start_mark`.
    name : str
        The run's name; empty if it has none.
    """

    run: str
    peers: Annotated[tuple[PeerNumber, ...], msgspec.Meta(min_length=1)]
    neighbours: tuple[PeerNumber, ...]
    pid: Annotated[int, msgspec.Meta(gt=0, lt=2**31)]
    started: str
    name: str = ""

    @property
    def alive(self) -> bool:
        """Whether the process has not ended; a zombie, whose end its parent has not noted yet, has."""
        return is_alive(self.pid, self.started)

    def stop_run(self) -> None:
        """Ask the process to end and to stop all peers of its run; SIGTERM alone would end its peers only.

        Raises
        ------
        OSError
            If the file that asks for the stop cannot be written.
        psutil.AccessDenied
            If the process is another user's.
        """
        _stop_mark(self.pid, self.peers[0]).touch(mode=0o600)
        with contextlib.suppress(psutil.NoSuchProcess):  # the process has just ended by itself
            psutil.Process(self.pid).terminate()


class Entry:
    """The entry of a process among those that :func:`running` finds.

    Parameters
    ----------
    pid : int
        The process's number.
    peer : int
        The first of its peers.
    """

    def __init__(self, pid: int, peer: int) -> None:
        self._mark = _stop_mark(pid, peer)

    def stops_run(self) -> bool:
        """Tell whether the process was asked to stop its whole run."""
        return self._mark.exists()


def _stop_mark(pid: int, peer: int) -> Path:
    return _folder() / f"{pid}-{peer}.stop"


def _folder() -> Path:
    return home() / "running"


@contextlib.contextmanager
def registered(run: str, peers: Sequence[int], neighbours: Sequence[int], name: str = "") -> Iterator[Entry]:
    """Let :func:`running` find this process during a ``with`` block; if that fails, log a warning."""
    pid = os.getpid()
    path, mark = _folder() / f"{pid}-{peers[0]}.json", _stop_mark(pid, peers[0])
    there = Entry(pid, peers[0])
    record = Running(run, tuple(peers), tuple(neighbours), pid, start_mark(pid), name)
    try:
        make_private(path.parent)
        mark.unlink(missing_ok=True)  # a killed process of the same number may have left it
        with replacing(path, on_disk=False) as partial:
            partial.write_bytes(encoded(record))
    except OSError as error:
        log.warning("p2pft stop will not find these peers: %s cannot be written (%s)", path, error.strerror)
        yield there
        return
    try:
        yield there
    finally:
        path.unlink(missing_ok=True)
        mark.unlink(missing_ok=True)


def running(run: str | None = None) -> list[Running]:
    """Return the processes in which peers train on this machine; if ``run`` is given, peers of this run.

    ``run`` is an id, or a name that several runs may have.
    """
    found = []
    for path in sorted(_folder().glob("*.json")):
        try:
            there = decoded(read_private(path, _LARGEST), Running, "its record")
        except FileNotFoundError:
            continue
        except (OSError, DataError) as error:
            log.warning("%s is left out: it cannot be read (%s); remove it", path, error)
            continue
        if there.alive and (run is None or run in {there.run, there.name or there.run}):
            found.append(there)
    return found
