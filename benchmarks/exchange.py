"""Measure the cost of the exchange beside bare gRPC: the same bytes, the same run, two processes.

For Unix sockets and for TCP on loopback, a sending and a receiving process move vectors in two ways that
take turns, so that other programs on the machine slow both:

* ``bare``: one unary gRPC call with the vector's bytes and an empty answer; nothing is checked;
* ``p2pft``: ``Links`` to ``PeerServer`` and ``Mailbox``; header, checksum, finiteness and order are checked.

The time of one vector is from its handing over until the receiver has taken it in (in ``bare``: answered).

Over Unix sockets ``p2pft`` lays its payloads in memory that both processes share, and calls carry headers.

Then whole iterations on a directed ring over Unix sockets, a process a peer: two exchanges, each of which
sends a vector, takes one and mixes the two, as the package mixes. The ways take turns in blocks. Beside
``bare`` and ``p2pft`` there is ``bare aio``, bare gRPC by ``grpc.aio`` on one event loop in a thread of its
own, and ``p2pft, sent``: p2pft without shared memory. *Computed* are the seconds that all processes together
computed, the kernel's work for them included: other programs on the machine change these less than the
seconds that passed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from p2pft_flower.algorithms.seam import Rows, combine
from p2pft_flower.transport import Links, Mailbox, PeerServer, Terms

PATIENCE = 60.0
"""Seconds that a call, a start or a wait may take before it counts as failed."""

WARM_UP = 4
"""Exchanges of each kind that are not counted."""

EDGE = (0, 1)
PHASES = 2
METHOD = "/benchmark.Bare/Deliver"
UNLIMITED = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
)
WAYS = {"bare": "bare", "aio": "bare aio", "sent": "p2pft, sent", "p2pft": "p2pft"}
BLOCK = 5
"""Iterations that a way does in its turn."""

Vector = npt.NDArray[np.float32]
Seconds = tuple[float, float]
"""Seconds that passed, and seconds that were computed."""


def serve_bare(address: str, pipe: Connection) -> None:
    """Answer every call with nothing, until the pipe says stop.

    Parameters
    ----------
    address : str
        The address that the server listens on, as gRPC has it; port 0 takes a free one.
    pipe : Connection
        The pipe through which the real address is sent, and then the word to stop comes.
    """
    server = grpc.server(
        ThreadPoolExecutor(4), options=(("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0))
    )
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")
    service, name = METHOD.strip("/").split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    port = server.add_insecure_port(address)
    server.start()
    pipe.send(address if address.startswith("unix:") else f"127.0.0.1:{port}")
    pipe.recv()
    server.stop(None).wait()


def serve_p2pft(address: str, pipe: Connection, length: int, exchanges: int) -> None:
    """Take every payload out of the mailbox as it comes, until the pipe says stop.

    Parameters
    ----------
    address : str
        The address of the receiving peer; port 0 takes a free one.
    pipe : Connection
        As of :func:`serve_bare`.
    length : int
        The number of numbers in a payload (q).
    exchanges : int
        The number of payloads that will come.
    """
    mailbox = Mailbox(Terms("benchmark", length, phases=PHASES), [EDGE])
    with PeerServer(mailbox, {EDGE[1]: address}) as server:
        pipe.send(server.bound_addresses[EDGE[1]])
        for position in range(exchanges):
            mailbox.take(EDGE[1], EDGE[0], *divmod(position, PHASES), PATIENCE)
        pipe.recv()


@contextmanager
def process(serve: Callable[..., None], address: str, *arguments: Any) -> Iterator[str]:
    """Run ``serve`` in a process of its own during a ``with`` block; yield the address that it listens on.

    Raises
    ------
    TimeoutError
        When the process does not start within :data:`PATIENCE`.
    """
    context = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
    ours, theirs = context.Pipe()
    child = context.Process(target=serve, args=(address, theirs, *arguments), daemon=True)
    child.start()
    try:
        if not ours.poll(PATIENCE):
            raise TimeoutError(f"{serve.__name__} did not start within {PATIENCE:g} s")
        yield str(ours.recv())
        ours.send("stop")
        child.join(PATIENCE)
    finally:
        if child.is_alive():
            child.kill()
            child.join()


def measure(addresses: tuple[str, str], vector: Vector, exchanges: int) -> tuple[list[float], list[float]]:
    """Move ``vector`` in both ways, in turn, and return the times.

    Parameters
    ----------
    addresses : (str, str)
        The addresses of the bare and of the p2pft server.
    vector : (q,) float32 array
        The vector that is sent.
    exchanges : int
        The number of exchanges that count, of each way.

    Returns
    -------
    bare, p2pft : lists of float
        Seconds of each exchange that counts.
    """
    bare: list[float] = []
    p2pft: list[float] = []
    total = exchanges + WARM_UP
    with ExitStack() as stack:
        bare_at = stack.enter_context(process(serve_bare, addresses[0]))
        p2pft_at = stack.enter_context(process(serve_p2pft, addresses[1], vector.size, total))
        options = (("grpc.max_send_message_length", -1),)
        channel = stack.enter_context(grpc.insecure_channel(bare_at, options=options))
        call = channel.unary_unary(METHOD, None, None)
        terms = Terms("benchmark", vector.size, phases=PHASES)
        links = stack.enter_context(Links(terms, {EDGE[1]: p2pft_at}, [EDGE], timeout=PATIENCE))
        for position in range(total):
            begin = time.perf_counter()
            call(vector.tobytes(), timeout=PATIENCE, wait_for_ready=True)
            bare.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            links.send(EDGE[0], *divmod(position, PHASES), vector)
            links.flush(PATIENCE)
            p2pft.append(time.perf_counter() - begin)
    return bare[WARM_UP:], p2pft[WARM_UP:]


class BareRing:
    """One peer of a ring by bare gRPC: vectors that come go into a queue, and one call is made at a time."""

    def __init__(self, address: str, neighbour: str) -> None:
        self._came: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._sent: Future[bytes] | None = None
        self._open(address, neighbour)

    def _open(self, address: str, neighbour: str) -> None:
        self._server = grpc.server(ThreadPoolExecutor(4), options=UNLIMITED)
        self._server.add_generic_rpc_handlers(
            (bare_handler(grpc.unary_unary_rpc_method_handler(self._take)),)
        )
        self._server.add_insecure_port(address)
        self._server.start()
        self._call = grpc.insecure_channel(neighbour, UNLIMITED).unary_unary(METHOD, None, None)

    def _take(self, request: bytes, _context: Any) -> bytes:
        self._came.put(request)
        return b""

    def _start(self, body: bytes) -> Future[bytes]:
        started: Future[bytes] = self._call.future(body, timeout=PATIENCE, wait_for_ready=True)
        return started

    def exchange(self, vector: Vector) -> Vector:
        """Wait for the last call's answer, send a vector, and return the one that came, (q,) float32."""
        body = vector.tobytes()
        self.flush()
        self._sent = self._start(body)
        return np.frombuffer(self._came.get(timeout=PATIENCE), np.float32)

    def flush(self) -> None:
        """Wait for the last call's answer, if there was a call."""
        if self._sent is not None:
            self._sent.result(PATIENCE)


class BareAioRing(BareRing):
    """One peer of a ring by bare ``grpc.aio``, on one loop in a thread; headers are known before bodies."""

    def _open(self, address: str, neighbour: str) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._open_there(address, neighbour), self._loop).result(PATIENCE)

    async def _open_there(self, address: str, neighbour: str) -> None:
        async def take(_messages: Any, context: Any) -> bytes:
            return self._take(await context.read(), context)

        self._server = grpc.aio.server(options=UNLIMITED)
        self._server.add_generic_rpc_handlers((bare_handler(grpc.stream_unary_rpc_method_handler(take)),))
        self._server.add_insecure_port(address)
        await self._server.start()
        self._call = grpc.aio.insecure_channel(neighbour, UNLIMITED).unary_unary(METHOD, None, None)

    def _start(self, body: bytes) -> Future[bytes]:
        async def call() -> bytes:
            answer: bytes = await self._call(body, timeout=PATIENCE, wait_for_ready=True)
            return answer

        return asyncio.run_coroutine_threadsafe(call(), self._loop)


class OurRing:
    """One peer of a ring by `Links`, `PeerServer` and `Mailbox`; ``shared`` is whether memory is shared."""

    def __init__(self, peer: int, peers: int, addresses: list[str], length: int, *, shared: bool) -> None:
        before, after = (peer - 1) % peers, (peer + 1) % peers
        terms = Terms("benchmark", length, phases=PHASES)
        self._peer, self._before, self._position = peer, before, 0
        self._mailbox = Mailbox(terms, [(before, peer)])
        self._server = PeerServer(self._mailbox, {peer: addresses[peer]}, out_edges=[(peer, after)])
        others = {before: addresses[before], after: addresses[after]}
        self._links = Links(terms, others, [(peer, after)], [(before, peer)], timeout=PATIENCE)
        if not shared:
            self._links._sending._hand_overs._no_memory = True

    def exchange(self, vector: Vector) -> Vector:
        """Send a vector, and return the one that came, (q,) float32."""
        at = divmod(self._position, PHASES)
        self._position += 1
        self._links.send(self._peer, *at, vector)
        return self._mailbox.take(self._peer, self._before, *at, PATIENCE).vector

    def flush(self) -> None:
        """Wait for the last payload to be taken in."""
        self._links.flush(PATIENCE)


def bare_handler(handler: grpc.RpcMethodHandler) -> grpc.GenericRpcHandler:
    service, name = METHOD.strip("/").split("/")
    return grpc.method_handlers_generic_handler(service, {name: handler})


def ring_peer(
    peer: int, peers: int, folder: str, length: int, blocks: int, turn: Any, pipe: Connection
) -> None:
    """Run one peer of the ring; send each block's mean times of an iteration, by way, through ``pipe``."""
    sockets = {way: [f"unix:{folder}/{way}{i}.sock" for i in range(peers)] for way in WAYS}
    after = (peer + 1) % peers
    ways: dict[str, BareRing | OurRing] = {
        "bare": BareRing(sockets["bare"][peer], sockets["bare"][after]),
        "aio": BareAioRing(sockets["aio"][peer], sockets["aio"][after]),
        "sent": OurRing(peer, peers, sockets["sent"], length, shared=False),
        "p2pft": OurRing(peer, peers, sockets["p2pft"], length, shared=True),
    }
    start = np.random.default_rng(peer).standard_normal(length, dtype=np.float32)
    times: dict[str, list[Seconds]] = {way: [] for way in ways}
    for block in range(blocks + 1):  # the first one warms up
        for name, way in ways.items():
            turn.wait(PATIENCE)
            vector, begin, computed = start.copy(), time.perf_counter(), time.process_time()
            for _ in range(BLOCK * PHASES):
                vector = combine(Rows, [(0.5, 1.0, vector), (0.5, 1.0, way.exchange(vector))])
            way.flush()
            if block:
                passed, computed = time.perf_counter() - begin, time.process_time() - computed
                times[name].append((passed / BLOCK, computed / BLOCK))
    turn.wait(PATIENCE)
    pipe.send(times)
    os._exit(0)  # bare servers and loops need no more than that


def measure_ring(peers: int, length: int, blocks: int) -> dict[str, Seconds]:
    """Return the medians of the seconds of a whole iteration on a ring, by way.

    The seconds computed are those of all peers together.
    """
    context = multiprocessing.get_context("spawn")
    turn, pipes = context.Barrier(peers), [context.Pipe() for _ in range(peers)]
    with tempfile.TemporaryDirectory(prefix="p2pft-") as folder:
        for i, (_, theirs) in enumerate(pipes):
            arguments = (i, peers, folder, length, blocks, turn, theirs)
            context.Process(target=ring_peer, args=arguments, daemon=True).start()
        found = [ours.recv() for ours, _ in pipes]
    return {
        way: (
            statistics.median(passed for one in found for passed, _ in one[way]),
            statistics.median(
                sum(computed for _, computed in block)
                for block in zip(*(one[way] for one in found), strict=True)
            ),
        )
        for way in WAYS
    }


def main(
    length: Annotated[int, typer.Option(min=1, help="Numbers in a vector (q), float32.")] = 1_800_000,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations, of two exchanges each.")] = 100,
    peers: Annotated[int, typer.Option(min=2, help="Peers of the ring.")] = 4,
) -> None:
    """Print what one vector along one edge costs, bare and through p2pft, and a whole iteration on a ring."""
    vector = np.random.default_rng(0).standard_normal(length, dtype=np.float32)
    exchanges = iterations * PHASES
    table = Table(
        "socket", "bare, median", "p90", "p2pft, median", "p90", "ratio of medians",
        title=f"one vector of {vector.nbytes / 1e6:g} MB along one edge, ms, {exchanges} exchanges each",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="p2pft-bench-") as folder:
        sockets = (f"unix:{Path(folder) / 'bare.sock'}", f"unix:{Path(folder) / 'p2pft.sock'}")
        for name, addresses in (("Unix", sockets), ("TCP", ("127.0.0.1:0", "127.0.0.1:0"))):
            ways = measure(addresses, vector, exchanges)
            middles = [statistics.median(way) for way in ways]
            cells = [
                f"{value * 1e3:.2f}"
                for way, middle in zip(ways, middles, strict=True)
                for value in (middle, np.percentile(way, 90))
            ]
            table.add_row(name, *cells, f"{middles[1] / middles[0]:.2f}")
    Console().print(table)
    ring = measure_ring(peers, length, max(1, iterations // BLOCK))
    table = Table(
        "way", "passed, median", "ratio to bare", "computed, median", "ratio to bare",
        title=f"whole iterations on a ring of {peers}, ms, Unix sockets",
    )  # fmt: skip
    for way, seconds in ring.items():
        ratios = [of_way / of_bare for of_way, of_bare in zip(seconds, ring["bare"], strict=True)]
        cells = [
            cell
            for s, ratio in zip(seconds, ratios, strict=True)
            for cell in (f"{s * 1e3:.2f}", f"{ratio:.2f}")
        ]
        table.add_row(WAYS[way], *cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
