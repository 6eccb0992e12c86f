"""One connection attempt to a silent peer's address; the system's answer shows how the peer was lost."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeVar

from p2pft_flower.transport.wire.addresses import parse_address
from p2pft_flower.transport.wire.errors import Loss

__all__ = ["begin_attempt", "knock"]

T = TypeVar("T")

_KNOCK = 2.0
"""Seconds that an address has to answer a connection attempt, its name's resolution included."""

_WHAT = {
    Loss.CRASHED: "nothing listens at {address} any more ({answer})",
    Loss.SILENT: "its process is stopped or hangs as a whole: {address} takes connections ({answer}), "
    "and says nothing",
    Loss.CUT_OFF: "{address} cannot be reached ({answer}): its machine or the way there is down",
}


def knock(address: str, timeout: float = _KNOCK) -> tuple[Loss, str]:
    """Try one connection to a silent peer's address, and send nothing on it.

    Parameters
    ----------
    address : str
        The address, see `parse_address`.
    timeout : float
        Longest wait, in seconds, for the name service and every address of the name together.

    Returns
    -------
    (Loss, str)
        How the peer was lost (CRASHED, SILENT or CUT_OFF), and the operating system's answer.
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
    """Connect to one of a name's addresses, within ``timeout`` seconds; raise the error of the last try."""
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
    """Return the addresses of a name by `socket.getaddrinfo`, which has no deadline of its own."""
    answer = _aside("p2pft-resolve", partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM))
    if not wait({answer}, timeout).done:
        raise TimeoutError(f"its name could not be resolved within {timeout:g} s")
    return answer.result()


def _aside(name: str, work: Callable[[], T]) -> Future[T]:
    """Return the future result of ``work``, done in a thread of its own, since it may have to wait."""
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except Exception as error:  # raised by the future's result
            found.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return found


def begin_attempt(
    address: str, attempt: Callable[[str], tuple[Loss, str]], no_tls: Callable[[], str | None]
) -> Future[tuple[Loss, str]]:
    """Begin an ``attempt``, such as `knock`, at a silent peer's address, in a thread of its own.

    Returns
    -------
    Future of (Loss, str)
        How the peer was lost, and the observation in words. If the address takes connections, ``no_tls`` is
        called: if it returns a reason why there is no TLS, the peer is CUT_OFF.
    """

    def look() -> tuple[Loss, str]:
        how, told = attempt(address)
        if how is Loss.SILENT and (cause := no_tls()) is not None:
            return Loss.CUT_OFF, f"there is no TLS with it at {address}: {cause}"
        return how, _WHAT[how].format(address=address, answer=told)

    return _aside("p2pft-knock", look)
