"""Which peers train on this machine now, by their processes: what ``p2pft stop`` looks up.

Each process has a file in ``$P2PFT_HOME/running`` as long as its peers train. A process that was killed
leaves its file behind; it counts for nothing, since no process of that number and time of start is there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from p2pft_flower.resources import home

__all__ = ["Running", "registered", "running"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """A process in which peers of a run train.

    Attributes
    ----------
    run : str
        The run's identifier.
    peers : tuple of int
        The peers.
    process : psutil.Process
        The process.
    """

    run: str
    peers: tuple[int, ...]
    process: psutil.Process

    @property
    def alive(self) -> bool:
        """Whether it has not ended; what its parent has not taken note of yet (a zombie) has."""
        try:
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def _folder() -> Path:
    return home() / "running"


@contextlib.contextmanager
def registered(run: str, peers: Sequence[int]) -> Iterator[None]:
    """Have this process among those that :func:`running` finds, during a ``with`` block."""
    here = psutil.Process()
    path = _folder() / f"{here.pid}-{peers[0]}.json"
    entry = {"run": run, "peers": list(peers), "pid": here.pid, "started": here.create_time()}
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(entry), encoding="utf-8")
        os.replace(partial, path)  # noqa: PTH105 - a reader sees the whole file or none
    except OSError as error:
        log.warning("p2pft stop will not find these peers: %s cannot be written (%s)", path, error.strerror)
        yield
        return
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def running(run: str | None = None) -> list[Running]:
    """Return the processes of this machine in which peers train, of ``run`` alone where it is given."""
    found = []
    for path in sorted(_folder().glob("*.json")):
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            there = Running(entry["run"], tuple(entry["peers"]), psutil.Process(entry["pid"]))
            same = there.process.create_time() == entry["started"]
        except (FileNotFoundError, psutil.NoSuchProcess):
            continue
        if same and there.alive and run in (None, there.run):
            found.append(there)
    return found
