"""Find out whether the SuperNode of this ClientApp is still there, if the parent process does not show it.

With ``--isolation process`` the ClientApp's parent is a SuperExec, which outlives the SuperNode. Flower gives
the ClientApp the address of its SuperNode's Runtime API on the command line; nobody listens there once the
SuperNode is dead.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport import parse_address

__all__ = ["answers", "runtime_address", "watched"]

log = logging.getLogger("p2pft_flower")

EVERY = 5.0
"""Seconds between two looks."""

MISSES = 4
"""Looks in a row without a listener after which the SuperNode counts as dead: 15 s from first to last."""


def runtime_address(arguments: Sequence[str]) -> str | None:
    """Return the value of ``--runtime-api-address`` in a ClientApp's arguments; None if they have none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--runtime-api-address")
    try:
        known, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:
        return None
    address: str | None = known.runtime_api_address
    return address


@contextlib.contextmanager
def watched(on_death: Callable[[], None]) -> Iterator[None]:
    """Watch the SuperNode during a ``with`` block; if it dies, ``on_death`` is called once, in a thread.

    Without an address of the SuperNode on the command line, nothing is watched.
    """
    listener = _listener()
    if listener is None:
        yield
        return
    (host, port), over = listener, threading.Event()

    def watch() -> None:
        missed = 0
        while missed < MISSES:
            if over.wait(EVERY):
                return
            missed = 0 if _listens(host, port) else missed + 1
        on_death()

    thread = threading.Thread(target=watch, name="p2pft-supernode", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def answers() -> bool:
    """Return whether the SuperNode that started this ClientApp's task still listens for its reply.

    False outside ``flwr-clientapp`` too, where no SuperNode waits.
    """
    listener = _listener()
    return listener is not None and _listens(*listener)


def _listener() -> tuple[str, int] | None:
    """Return host and port of the SuperNode's Runtime API; None if Flower named none."""
    address = runtime_address(sys.argv[1:])
    try:
        parsed = None if address is None else parse_address(address)
    except ConfigError as error:
        log.warning("the death of the SuperNode would not be noticed: %s", error)
        return None
    if parsed is None or parsed.host is None or parsed.port is None:
        return None
    return parsed.host, parsed.port


def _listens(host: str, port: int) -> bool:
    """Return whether a process takes connections there; True if no answer comes, not even a refusal."""
    try:
        socket.create_connection((host, port), timeout=2.0).close()
    except TimeoutError:
        return True
    except OSError:
        return False
    return True
