"""Links that can be cut: TCP on loopback that is passed on, or held back as long as the link is cut."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import socket
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Self

from p2pft_flower.transport.wire.addresses import Address, parse_address

__all__ = ["Relays", "free_addresses"]

_PIECE = 2**16
_PORTS = range(15_000, 32_000)
"""Below those that Linux (from 32768 on) and others (from 49152 on) give to who asks for any."""

_TRIES = 1000
"""Ports that may be in use before none is looked for any more."""

_START = 10.0


def free_addresses(n: int) -> dict[int, str]:
    """Return ``host:port`` of loopback for ``n`` peers, where nobody listens.

    Of an address of their own where the machine has all of 127.0.0.0/8, as Linux has, and with ports that no
    operating system gives to who asks for any: until they listen, nobody else shall take one.
    """
    try:
        sockets = _bound(f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(256)}.1", n)
    except OSError:
        sockets = _bound("127.0.0.1", n)
    addresses = {p: "{}:{}".format(*s.getsockname()) for p, s in enumerate(sockets)}
    for s in sockets:
        s.close()
    return addresses


def _bound(host: str, n: int) -> list[socket.socket]:
    bound: list[socket.socket] = []
    try:
        tries = iter(range(_TRIES))
        while len(bound) < n:  # at once: all differ
            try:
                bound.append(socket.create_server((host, secrets.choice(_PORTS))))
            except OSError as error:
                if error.errno != errno.EADDRINUSE or next(tries, None) is None:
                    raise
    except OSError:
        for one in bound:
            one.close()
        raise
    return bound


class Relays:
    """Sits in the links between pairs of peers, in a thread of its own; a context manager.

    What is on its way when a link is cut is kept and comes after it was mended, as TCP does over a network
    that was down for a while.

    Parameters
    ----------
    addresses : mapping of int to str
        ``host:port`` where each peer listens.
    pairs : iterable of (int, int)
        The links.

    Attributes
    ----------
    routes : dict of (int, int) to str
        Where a peer is to look for another one, by (who connects, to whom).
    """

    def __init__(self, addresses: Mapping[int, str], pairs: Iterable[tuple[int, int]]) -> None:
        self._addresses = dict(addresses)
        self._pairs = [pair for a, b in sorted(set(pairs)) for pair in ((a, b), (b, a))]
        self.routes: dict[tuple[int, int], str] = {}
        self._loop = asyncio.new_event_loop()
        self._whole: dict[tuple[int, int], asyncio.Event] = {}
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="p2pft-relays", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_START)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(_START)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self, a: int, b: int) -> None:
        """Pass nothing on between ``a`` and ``b``, in either direction; connections stay."""
        for pair in ((a, b), (b, a)):
            self._loop.call_soon_threadsafe(self._whole[pair].clear)

    def mend(self, a: int, b: int) -> None:
        """Pass everything on again."""
        for pair in ((a, b), (b, a)):
            self._loop.call_soon_threadsafe(self._whole[pair].set)

    async def _listen(self) -> None:
        for pair in self._pairs:
            whole = self._whole[pair] = asyncio.Event()
            whole.set()
            serve = partial(_serve, parse_address(self._addresses[pair[1]]), whole)
            server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=_PIECE)
            self._servers.append(server)
            self.routes[pair] = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _serve(
    target: Address, whole: asyncio.Event, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter
) -> None:
    with contextlib.closing(near_out):
        await whole.wait()
        try:
            far_in, far_out = await asyncio.open_connection(target.host, target.port, limit=_PIECE)
        except OSError:  # nobody listens there: whoever connects sees the connection closed
            return
        with contextlib.closing(far_out):
            ways = {
                asyncio.create_task(_pump(near_in, far_out, whole)),
                asyncio.create_task(_pump(far_in, near_out, whole)),
            }
            try:  # where one way has ended there is nobody to answer the other
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, whole: asyncio.Event) -> None:
    with contextlib.suppress(OSError):  # one end was killed
        while data := await source.read(_PIECE):
            await whole.wait()
            sink.write(data)
            await sink.drain()
    await whole.wait()  # that a connection has ended is no news either while the link is cut
