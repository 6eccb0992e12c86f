"""What the exchange costs beside bare gRPC: the same bytes, the same run, two processes.

For Unix sockets and for TCP on loopback, a sending and a receiving process move vectors in two ways that
take turns, so that whatever else the machine does falls on both:

* ``bare``: one unary gRPC call with the vector's bytes and an empty answer; nothing is checked;
* ``p2pft``: ``Links`` to ``PeerServer`` and ``Mailbox``; header, checksum, finiteness and order are checked.

The time of one vector is from handing it over until the receiver has taken it in (in ``bare``: answered).
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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

from p2pft_flower.transport import Links, Mailbox, PeerServer, Terms

PATIENCE = 60.0
"""Seconds that anything here may take before it counts as failed."""

WARM_UP = 4
"""Exchanges of each kind that are not counted."""

EDGE = (0, 1)
PHASES = 2
METHOD = "/benchmark.Bare/Deliver"

Vector = npt.NDArray[np.float32]


def serve_bare(address: str, pipe: Connection) -> None:
    """Answer every call with nothing, until the pipe says stop.

    Parameters
    ----------
    address : str
        gRPC address; port 0 takes a free one.
    pipe : Connection
        Is sent the real address, then receives one word.
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
        Address of the receiving peer; port 0 takes a free one.
    pipe : Connection
        As for :func:`serve_bare`.
    length : int
        q.
    exchanges : int
        Payloads that will come.
    """
    mailbox = Mailbox(Terms("benchmark", length, phases=PHASES), [EDGE])
    with PeerServer(mailbox, {EDGE[1]: address}) as server:
        pipe.send(server.bound_addresses[EDGE[1]])
        for position in range(exchanges):
            mailbox.take(EDGE[1], EDGE[0], *divmod(position, PHASES), PATIENCE)
        pipe.recv()


@contextmanager
def process(serve: Callable[..., None], address: str, *arguments: Any) -> Iterator[str]:
    """Run ``serve`` in a process of its own, yield its real address, and end it.

    Raises
    ------
    TimeoutError
        When it does not start.
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
    """Move ``vector`` both ways in turn.

    Parameters
    ----------
    addresses : (str, str)
        Where the bare and the p2pft server shall listen.
    vector : (q,) float32 array
        What is sent.
    exchanges : int
        How often, each way.

    Returns
    -------
    bare, p2pft : lists of float
        Seconds of each exchange, warm-up left out.
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


def main(
    length: Annotated[int, typer.Option(min=1, help="Numbers in a vector (q), float32.")] = 1_800_000,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations, of two exchanges each.")] = 100,
) -> None:
    """Print what one vector along one edge costs, bare and through p2pft, over Unix sockets and over TCP."""
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


if __name__ == "__main__":
    typer.run(main)
