"""TCP that passes through this process: cut, mended, slowed, altered or broken on its way."""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from p2pft_flower.transport.wire.addresses import parse_address

__all__ = ["Alter", "Link", "Relay", "Relays", "relayed"]

Alter = Callable[[int, int, bytes], bytes]
"""(connection's number from 0, bytes passed before, data towards the target) ↦ the data passed on."""

T = TypeVar("T")

_PIECE = 2**16
_ON_THE_WAY = 2**8
"""Pieces of one way that may be under way: 16 MiB."""

_START = 60.0
"""Seconds that the relays' thread has for one task."""


class Relay:
    """An address that passes connections on to a target; made by :meth:`Relays.open`.

    A relay that is cut keeps the bytes that come, and passes them on when it is mended, as TCP does over a
    network that was down for a while. While it is cut, it does not pass on the end of a connection either.

    Attributes
    ----------
    address : str
        The ``host:port`` at which the relay listens.
    connections : int
        Number of connections that were opened through the relay.
    passed : dict of str to int
        Bytes that have come in so far, of all connections, ``"there"``, towards the target, and ``"back"``.
    """

    def __init__(
        self,
        relays: Relays,
        target: str,
        *,
        delay: float = 0.0,
        rate: float = math.inf,
        alter: Alter | None = None,
        tls: tuple[ssl.SSLContext, str] | None = None,
    ) -> None:
        self._relays, self._target = relays, parse_address(target)
        self._delay, self._rate, self._alter, self._tls = delay, rate, alter, tls
        self._free = dict.fromkeys(("there", "back"), 0.0)
        """The time, on the loop's clock, at which each way has passed on all that came before."""
        self._whole = {"there": asyncio.Event(), "back": asyncio.Event()}
        for way in self._whole.values():
            way.set()
        self._server: asyncio.Server | None = None
        self._open: dict[int, list[asyncio.StreamWriter]] = {}
        """The ends of each connection that was not severed."""
        self._serving: set[asyncio.Future[None]] = set()
        self.address = ""
        self.connections = 0
        self.passed = dict.fromkeys(self._whole, 0)

    def cut(self, *ways: str) -> None:
        """Pass nothing on in ``ways``: ``"there"``, towards the target, or ``"back"``; no argument: both."""
        self._relays.do(self._set(ways, whole=False))

    def mend(self, *ways: str) -> None:
        """Undo :meth:`cut` for these ways (no argument: both); bytes that were held back go first."""
        self._relays.do(self._set(ways, whole=True))

    def sever(self, *connections: int) -> None:
        """Break the ``connections`` with these numbers; no argument: break all, and take no new ones."""
        self._relays.do(self._break(connections))

    async def listen(self, at: str) -> None:
        """Take connections at ``host:port``; called in the relays' thread."""
        host, port = at.rsplit(":", 1)
        self._server = await asyncio.start_server(self._accept, host, int(port), limit=_PIECE)
        self.address = f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def _set(self, ways: tuple[str, ...], *, whole: bool) -> None:
        for way in ways or self._whole:
            (self._whole[way].set if whole else self._whole[way].clear)()

    async def _break(self, connections: tuple[int, ...]) -> None:
        if not connections and self._server is not None:
            self._server.close()
        for number in connections or list(self._open):
            for end in self._open.pop(number, ()):
                end.transport.abort()

    def _accept(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(near_in, near_out))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        # Also where the task is cancelled before it has begun.
        task.add_done_callback(lambda _: near_out.close())

    async def _serve(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        ends = self._open[number] = [near_out]
        try:
            for way in self._whole.values():
                await way.wait()
            await self._pass_on(number, near_in, near_out)
        finally:
            await self._close(ends)
            self._open.pop(number, None)

    @staticmethod
    async def _close(ends: Iterable[asyncio.StreamWriter]) -> None:
        """Close the ends; over TLS one is open until the other side has said good-bye, or it is severed."""
        for end in ends:
            end.close()
        try:
            await asyncio.gather(*(end.wait_closed() for end in ends), return_exceptions=True)
        finally:
            for end in ends:
                end.transport.abort()

    async def _pass_on(
        self, number: int, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter
    ) -> None:
        context, name = self._tls or (None, None)
        try:
            far_in, far_out = await asyncio.open_connection(
                self._target.host, self._target.port, limit=_PIECE, ssl=context, server_hostname=name
            )
        except OSError:  # nobody listens at the target: the near end sees its connection closed
            return
        if number not in self._open:  # severed meanwhile
            far_out.transport.abort()
            return
        self._open[number].append(far_out)
        ways = {
            asyncio.create_task(self._pump(near_in, far_out, "there", number)),
            asyncio.create_task(self._pump(far_in, near_out, "back", None)),
        }
        try:  # if one way has ended, nothing is left to answer the other
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: str, number: int | None
    ) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_ON_THE_WAY)
        reading = asyncio.create_task(self._read(source, pieces, way, number))
        try:  # where nothing can be written any more, nothing is read
            await self._write(pieces, sink, self._whole[way])
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(
        self,
        source: asyncio.StreamReader,
        pieces: asyncio.Queue[tuple[float, bytes]],
        way: str,
        number: int | None,
    ) -> None:
        passed = 0
        with contextlib.suppress(OSError):  # one end was killed
            while data := await source.read(_PIECE):
                if self._alter is not None and number is not None:
                    # It may take its time.
                    altered = await asyncio.to_thread(self._alter, number, passed, data)
                    passed += len(data)
                    data = altered
                self.passed[way] += len(data)
                await pieces.put((self._arrival(way, len(data)), data))
        await pieces.put((0.0, b""))

    def _arrival(self, way: str, size: int) -> float:
        """Return the time, on the loop's clock, at which ``size`` bytes arrive, after all earlier ones."""
        begin = max(asyncio.get_running_loop().time(), self._free[way])
        self._free[way] = begin + size / self._rate
        return self._free[way] + self._delay

    @staticmethod
    async def _write(
        pieces: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter, whole: asyncio.Event
    ) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # one end was killed
            while (piece := await pieces.get())[0]:
                arrival, data = piece
                if (left := arrival - loop.time()) > 0:
                    await asyncio.sleep(left)
                await whole.wait()
                sink.write(data)
                await sink.drain()
        await whole.wait()


class Link:
    """The two relays between two peers: each passes on the connections that one of the peers opens.

    Attributes
    ----------
    routes : dict of (int, int) to str
        By (p, q), the address at which peer p must look for peer q.
    """

    def __init__(self, there: Relay, back: Relay, a: int, b: int) -> None:
        self._relays = {(a, b): there, (b, a): back}
        self.routes = {pair: relay.address for pair, relay in self._relays.items()}

    def cut(self, sender: int | None = None) -> None:
        """Pass on nothing that ``sender`` sends, whichever peer opened the connection; None: both senders."""
        for relay, ways in self._ways(sender):
            relay.cut(*ways)

    def mend(self, sender: int | None = None) -> None:
        """Undo :meth:`cut` of ``sender``; None: of both."""
        for relay, ways in self._ways(sender):
            relay.mend(*ways)

    def _ways(self, sender: int | None) -> Iterator[tuple[Relay, tuple[str, ...]]]:
        for (opens, _), relay in self._relays.items():
            yield relay, () if sender is None else ("there",) if opens == sender else ("back",)


class Relays:
    """Relays of one thread; a context manager that closes them."""

    def __init__(self) -> None:
        self._servers: list[Relay] = []

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="p2pft-relays", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.do(self._close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def open(
        self,
        target: str,
        *,
        listen: str = "127.0.0.1:0",
        delay: float = 0.0,
        rate: float = math.inf,
        alter: Alter | None = None,
        tls: tuple[ssl.SSLContext, str] | None = None,
    ) -> Relay:
        """Open a relay that passes connections to ``listen`` on to ``target``.

        Parameters
        ----------
        target : str
            The target's ``host:port``.
        listen : str
            The relay's own ``host:port``; port 0: a free one.
        delay : float
            Seconds by which bytes are delayed, each way.
        rate : float
            Bytes a second that pass each way, all connections together.
        alter : callable, optional
            A function that changes each piece towards the target; may take its time.
        tls : (ssl.SSLContext, str), optional
            If given, the relay speaks TLS to the target, with this context and this name of the target;
            default: it passes all bytes on as they are.

        Raises
        ------
        OSError
            When nothing can listen at ``listen``.
        """
        relay = Relay(self, target, delay=delay, rate=rate, alter=alter, tls=tls)
        self.do(relay.listen(listen))
        self._servers.append(relay)
        return relay

    def link(self, addresses: Mapping[int, str], a: int, b: int, *, delay: float = 0.0) -> Link:
        """Open relays in the link between the peers ``a`` and ``b``.

        ``addresses`` has the address of each peer; ``delay``, in seconds, is that of :meth:`open`.
        """
        return Link(self.open(addresses[b], delay=delay), self.open(addresses[a], delay=delay), a, b)

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine ``what`` in the relays' thread, and return the result.

        Raises
        ------
        TimeoutError
            When there is no result within 60 seconds.
        Exception
            Any error of the coroutine.
        """
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(_START)

    async def _close(self) -> None:
        for relay in self._servers:
            await relay._break(())
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_default_executor()


@contextlib.contextmanager
def relayed(target: str, **how: Any) -> Iterator[Relay]:
    """Open one relay to ``target``, in a thread of its own; ``how`` are arguments of :meth:`Relays.open`."""
    with Relays() as relays:
        yield relays.open(target, **how)
