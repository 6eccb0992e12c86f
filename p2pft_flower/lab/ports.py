"""Addresses of this machine at which nothing listens yet."""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket

from p2pft_flower.errors import P2PFTError

__all__ = ["free_addresses", "free_ports"]

_PORTS = range(20_000, 32_000)
"""Below those that Linux (from 32768 on) and others (from 49152 on) give to outgoing connections, one
of which could take a port before it is listened on; above those of Ray's workers (10002 to 19999), among
which ``ray start`` refuses a port of its own."""

_TRIES = 1000
"""Ports that may be in use before the search is given up."""


def free_addresses(n: int) -> dict[int, str]:
    """Return ``host:port`` of loopback, by peer, for each of ``n`` peers; nobody listens there.

    If the machine has all of 127.0.0.0/8, as Linux has, the host is drawn at random from that network.

    Raises
    ------
    P2PFTError
        When there are not ``n`` free ports.
    """
    try:
        host = f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(256)}.1"
        ports = _ports(n, host)
    except OSError:
        host = "127.0.0.1"
        ports = free_ports(n, host)
    return {p: f"{host}:{port}" for p, port in enumerate(ports)}


def free_ports(n: int, *hosts: str) -> list[int]:
    """Return ``n`` different ports that are free at each of ``hosts`` (default 127.0.0.1).

    Raises
    ------
    P2PFTError
        When there are fewer than ``n``.
    """
    try:
        return _ports(n, *(hosts or ("127.0.0.1",)))
    except OSError as error:
        raise P2PFTError(f"no {n} ports from {_PORTS[0]} to {_PORTS[-1]} are free: {error}") from error


def _ports(n: int, *hosts: str) -> list[int]:
    found: dict[int, None] = {}
    tries = iter(range(_TRIES))
    with contextlib.ExitStack() as bound:  # all at once, so that they differ
        while len(found) < n:
            port = secrets.choice(_PORTS)
            try:
                for host in hosts:
                    bound.enter_context(socket.create_server((host, port)))
            except OSError as error:
                if error.errno != errno.EADDRINUSE or next(tries, None) is None:
                    raise
            else:
                found[port] = None
    return list(found)
