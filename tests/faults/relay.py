"""A link that someone sits in: TCP that is passed on late, or from some moment on not at all."""

from __future__ import annotations

import contextlib
import socket
import threading

from tests.transport.wire import PATIENCE, spawn


class Link:
    """Passes TCP connections on to ``target`` until it is cut.

    Parameters
    ----------
    target : str
        ``host:port``.
    delay : float
        Seconds that each piece of up to 64 KiB is held back.
    """

    def __init__(self, target: str, delay: float = 0.0) -> None:
        self._target = target.rpartition(":")
        self._delay = delay
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        self._cut = {way: threading.Event() for way in ("there", "back")}
        self._closed = threading.Event()
        self._threads = [spawn(self._accept)]

    def cut(self, *ways: str) -> None:
        """Pass nothing on any more, ``"there"`` or ``"back"``: no data, nor that a connection has ended."""
        for way in ways:
            self._cut[way].set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._ends.append(near)
            try:
                far = socket.create_connection((self._target[0], int(self._target[2])), timeout=PATIENCE)
                far.settimeout(None)
            except OSError:  # nobody there
                near.close()
                continue
            self._ends.append(far)
            self._threads += [
                spawn(lambda a=near, b=far: self._pump(a, b, self._cut["there"])),
                spawn(lambda a=far, b=near: self._pump(a, b, self._cut["back"])),
            ]

    def _pump(self, source: socket.socket, sink: socket.socket, cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._closed.wait(self._delay)
                if cut.is_set():
                    return
                sink.sendall(data)
        if not cut.is_set():
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        for end in self._ends:
            end.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def between(addresses, a, b, stack, delay=0.0):
    """Return routes of the peers ``a`` and ``b`` to each other, and the links that they lead over."""
    there = stack.enter_context(Link(addresses[b], delay))
    back = stack.enter_context(Link(addresses[a], delay))
    return {(a, b): there.address, (b, a): back.address}, (there, back)
