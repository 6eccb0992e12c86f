"""One connection attempt to where a silent peer should listen; the system's answer says how it was lost."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from p2pft_flower.transport.wire.addresses import parse_address
from p2pft_flower.transport.wire.errors import Loss

__all__ = ["Attempt", "knock"]

_KNOCK = 2.0
"""Seconds that an address has to answer a connection attempt, its name's resolution included."""

_WHAT = {
    Loss.CRASHED: "nothing listens at {address} any more ({answer})",
    Loss.SILENT: "its process is stopped or hangs as a whole: {address} takes connections ({answer}), "
    "and says nothing",
    Loss.CUT_OFF: "{address} cannot be reached ({answer}): its machine or the way there is down",
}


def knock(address: str, timeout: float = _KNOCK) -> tuple[Loss, str]:
    """Try one connection to where a silent peer should listen, which hears no more than that.

    Parameters
    ----------
    address : str
        See `parse_address`.
    timeout : float
        Longest wait, in seconds, for all of it: the name service, and every address that the name has.

    Returns
    -------
    (Loss, str)
        How the peer was lost (CRASHED, SILENT or CUT_OFF), and what the operating system said.
    """
    place = parse_address(address)
    try:
        if place.path is None:
            _connect(place.host, place.port, timeout)
        else:
            with socket.socket(socket.AF_UNIX) as attempt:
                attempt.settimeout(timeout)
                attempt.connect(str(place.path))
    except (ConnectionRefusedError, FileNotFoundError) as error:
        return Loss.CRASHED, str(error.strerror)
    except (OSError, UnicodeError) as error:  # the latter for what is no host name
        told = getattr(error, "strerror", None) or str(error)
        # No link is cut within a machine: a Unix socket that takes no connection has a queue full of them.
        return Loss.CUT_OFF if place.path is None else Loss.SILENT, told
    return Loss.SILENT, "connected"


def _connect(host: str, port: int, timeout: float) -> None:
    """Connect to one of a name's addresses, within ``timeout``; raise what the last one failed with."""
    end = time.monotonic() + timeout
    failure: OSError | None = None
    for family, kind, protocol, _, place in _resolve(host, port, timeout):
        left = end - time.monotonic()
        if left <= 0:
            break
        try:
            with socket.socket(family, kind, protocol) as attempt:
                attempt.settimeout(left)
                attempt.connect(place)
                return
        except OSError as error:
            failure = error
    raise failure or TimeoutError(f"no answer within {timeout:g} s")


def _resolve(host: str, port: int, timeout: float) -> list[Any]:
    """Return what `socket.getaddrinfo` knows of a name; it has no deadline of its own."""
    answer: SimpleQueue[list[Any] | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answer.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            answer.put(error)

    # A thread that a name service keeps waiting ends when that gives up; nobody waits for it.
    threading.Thread(target=ask, name="p2pft-resolve", daemon=True).start()
    try:
        found = answer.get(timeout=timeout)
    except Empty:
        raise TimeoutError(f"its name could not be resolved within {timeout:g} s") from None
    if isinstance(found, Exception):
        raise found
    return found


class Attempt:
    """A connection attempt to a silent peer, in a thread of its own: a name service may keep it waiting."""

    def __init__(
        self,
        address: str,
        attempt: Callable[[str], tuple[Loss, str]],
        no_tls: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._address, self._attempt, self._no_tls = address, attempt, no_tls
        self._found: tuple[Loss, str] | None = None
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="p2pft-knock", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            how, told = self._attempt(self._address)
            what = _WHAT[how].format(address=self._address, answer=told)
            if how is Loss.SILENT and (cause := self._no_tls()) is not None:
                how, what = Loss.CUT_OFF, f"there is no TLS with it at {self._address}: {cause}"
            self._found = how, what
        except Exception as error:  # raised where it is asked for
            self._failure = error

    def join(self, timeout: float) -> None:
        """Wait for its end; of a name service's answer `knock` itself does not wait any longer than that."""
        self._thread.join(timeout)

    @property
    def found(self) -> tuple[Loss, str] | None:
        """How the peer was lost, and what was seen; None as long as that is not known.

        Raises
        ------
        Exception
            What the attempt raised.
        """
        if self._failure is not None:
            raise self._failure
        return self._found
