"""Bulletins: what a process of a run knows of all its peers at the moment, in a file for ``p2pft status``.

Each host, and the coordinator, has a file in ``$P2PFT_HOME/running`` as long as its run lasts, and writes it
anew every second. A process that was killed leaves its file behind, which then says when it was last alive.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Annotated

import msgspec

from p2pft_flower.errors import DataError
from p2pft_flower.keeping.folders import read_private, replacing
from p2pft_flower.keeping.lines import Stall, ViewChange
from p2pft_flower.keeping.processes import is_alive
from p2pft_flower.resources import home
from p2pft_flower.typed import Count, PeerCount, PeerNumber, Positive, decoded, encoded

__all__ = [
    "Apart",
    "Bulletin",
    "EdgeNow",
    "PeerNow",
    "Point",
    "bulletin_path",
    "bulletins",
    "discard_old",
    "read_bulletin",
    "write_bulletin",
]

_LARGEST = 2**24
"""The most bytes of a file: 4,096 peers have some 1,500 each, with 16 points of their scores."""

_SUFFIX = ".bulletin"

_KEPT = 24 * 3600.0
"""Seconds for which the bulletin of a killed process stays."""

log = logging.getLogger(__name__)


class PeerNow(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one peer.

    Attributes
    ----------
    peer : int
        The peer.
    state : str
        ``preparing``, ``computing``, ``waiting``, ``evaluating``, ``changing`` (its view is to be followed by
        another one), ``finished``; empty: nothing was heard of it yet.
    view, iteration : int
        The view that the peer is in, and the number of iterations that it has completed.
    doing : str
        What a peer of this process that is ``preparing`` does, in words: ``reading data``, ``preparing data
        and model``, ``meeting the others``; empty: not known.
    busy : float
        Seconds that it had been in this state when it said so.
    awaited : int or None
        The peer whose payload it waits for.
    rate : float
        Iterations a second, of late; 0 before that is known.
    heard : float or None
        Seconds since its last standing came here; 0 of a peer of this process, None if none has come.
    spoken : float or None
        Seconds since the peer last spoke to this process itself; None if it is no neighbour.
    evaluated : int or None
        Number of iterations after which it was last evaluated; None before the first time.
    loss, accuracy, accuracy_unseen : float or None
        The scores of that evaluation.
    bytes_sent : int
        Payload bytes that the peer had sent by then.
    """

    peer: PeerNumber
    state: str = ""
    view: Count = 0
    iteration: Count = 0
    busy: float = 0.0
    awaited: PeerNumber | None = None
    rate: float = 0.0
    heard: float | None = None
    spoken: float | None = None
    evaluated: Count | None = None
    loss: float | None = None
    accuracy: float | None = None
    accuracy_unseen: float | None = None
    bytes_sent: Count = 0
    doing: str = ""


class Point(msgspec.Struct, frozen=True, array_like=True):
    """The scores of a peer after ``iteration`` iterations, and the time, Unix seconds, when they came."""

    iteration: Count
    time: float
    loss: float | None
    accuracy: float | None
    accuracy_unseen: float | None
    bytes_sent: Count


class Apart(msgspec.Struct, frozen=True, array_like=True):
    """The consensus error after ``iteration`` iterations, and the time, Unix seconds, when it was found."""

    iteration: Count
    time: float
    error: float | None


class EdgeNow(msgspec.Struct, frozen=True, array_like=True):
    """An edge of the present view, and what it has carried in its sender's present life.

    Attributes
    ----------
    sender, receiver : int
        Its ends.
    payloads, bytes : int
        Number of payloads that the receiver has taken in, and their bytes together; 0 of an edge within a
        process, which needs no transport.
    seconds : float
        Time from the start of sending until a payload was taken in, of late.
    """

    sender: PeerNumber
    receiver: PeerNumber
    payloads: Count = 0
    bytes: Count = 0
    seconds: float = 0.0


class Bulletin(msgspec.Struct, frozen=True, kw_only=True):
    """What one process of a run knows.

    Attributes
    ----------
    run : str
        The run's identifier.
    n, iterations : int
        Number of peers of the graph, and of iterations.
    own : tuple of int
        The peers of this process; empty: the coordinator.
    names : dict of int to str
        The names of the peers that have one.
    live : tuple of int
        The peers of the present view, ascending.
    on_failure : str
        The run-config's ``on-failure``; empty if peers exchange nothing.
    min_peers : int
        The run-config's ``min-peers``.
    silence : float
        Seconds without a word after which a peer is lost (``peer-timeout``).
    folder : str
        The run's folder on this machine.
    pid : int
        The process's number.
    started : str
        The process's :func:`~p2pft_flower.keeping.processes.start_mark`.
    begun, written : float
        The times, Unix seconds, at which the process began with the run and wrote this bulletin.
    peers : tuple of PeerNow
        All peers of the run, ascending.
    views : tuple of ViewChange
        The changes of view so far, the latest 64 at most.
    stalls : tuple of Stall
        The unusually long waits that are over: of this process, the latest 64 at most, and of the others, the
        latest 64 at most that their standings have told of, to about a second.
    consensus_error : float or None
        An estimate of the peers' distance from their mean after the last iteration of which the sketches of
        all live peers are here; None before that.
    edges : tuple of EdgeNow
        The edges of the present view that have been heard of, ascending; empty if nothing is exchanged.
    history : dict of int to tuple of Point
        The scores of each peer so far, thinned.
    apart : tuple of Apart
        The consensus error so far, thinned.
    hosts : tuple of tuple of int
        The peers of each host of the run, ascending by the lowest.
    gone : dict of int to float
        The time, Unix seconds, of the last word of each peer that is in no view at the moment, from before it
        was lost; a peer is missing if this process has not heard it before.
    name : str
        The run's name; empty if it has none.
    """

    run: str
    n: PeerCount
    iterations: Positive
    own: tuple[PeerNumber, ...]
    names: dict[PeerNumber, str]
    live: tuple[PeerNumber, ...]
    on_failure: str
    min_peers: Count
    silence: float
    folder: str
    pid: Annotated[int, msgspec.Meta(gt=0, lt=2**31)]
    started: str
    begun: float
    written: float
    peers: tuple[PeerNow, ...]
    views: tuple[ViewChange, ...] = ()
    stalls: tuple[Stall, ...] = ()
    consensus_error: float | None = None
    edges: tuple[EdgeNow, ...] = ()
    history: dict[PeerNumber, tuple[Point, ...]] = {}
    apart: tuple[Apart, ...] = ()
    hosts: tuple[tuple[PeerNumber, ...], ...] = ()
    gone: dict[PeerNumber, float] = {}
    name: str = ""

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return is_alive(self.pid, self.started)


def _folder() -> Path:
    return home() / "running"


def bulletin_path(peer: int | None) -> Path:
    """Return the path of this process's bulletin; ``peer`` is its lowest peer, None of the coordinator."""
    return _folder() / f"{os.getpid()}-{'office' if peer is None else peer}{_SUFFIX}"


def write_bulletin(path: Path, bulletin: Bulletin) -> None:
    """Replace the file; a reader sees the old bulletin or the whole new one.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with replacing(path, on_disk=False) as partial:
        partial.write_bytes(encoded(bulletin))


def read_bulletin(path: Path) -> Bulletin:
    """Return the bulletin in a file.

    Raises
    ------
    OSError
        If the file cannot be read, or is no regular file.
    DataError
        If it holds no bulletin.
    """
    return decoded(read_private(path, _LARGEST), Bulletin, "a bulletin")


def bulletins(run: str | None = None) -> list[Bulletin]:
    """Return the bulletins on this machine, of ``run`` only if it is given, the latest written first.

    ``run`` is an id, or a name that several runs may have. Those of killed processes are among them. A file
    that cannot be read is left out, with a warning.
    """
    found = []
    for path in sorted(_folder().glob(f"*{_SUFFIX}")):
        try:
            bulletin = read_bulletin(path)
        except FileNotFoundError:
            continue
        except (OSError, DataError) as error:
            log.warning("%s is left out: it cannot be read (%s); remove it", path, error)
            continue
        if run is None or run in {bulletin.run, bulletin.name or bulletin.run}:
            found.append(bulletin)
    return sorted(found, key=lambda b: -b.written)


def discard_old(run: str, own: tuple[int, ...]) -> None:
    """Remove the bulletins of processes that were killed more than a day ago, or that this one replaces.

    Parameters
    ----------
    run : str
        The run of this process.
    own : tuple of int
        The peers of this process: an earlier one that trained them in this run is replaced.
    """
    for path in _folder().glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError, DataError):
            if time.time() - path.stat().st_mtime > _KEPT:
                path.unlink(missing_ok=True)
                continue
            bulletin = read_bulletin(path)
            if (bulletin.run, bulletin.own) == (run, own) and not bulletin.alive:
                path.unlink(missing_ok=True)
