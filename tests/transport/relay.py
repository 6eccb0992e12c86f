"""Someone in the middle: TCP relays that break, alter or wrap what passes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from tests.transport.wire import PATIENCE, spawn


class Relay:
    """Passes TCP connections on to ``port``.

    Parameters
    ----------
    port : int
        Where to, on this machine.
    alter : callable, optional
        (connection's number from 0, bytes passed before, data towards ``port``) ↦ what is passed on.
    wrap : callable, optional
        Makes another socket of the one towards ``port``, such as a TLS one.
    """

    def __init__(
        self,
        port: int,
        alter: Callable[[int, int, bytes], bytes] | None = None,
        wrap: Callable[[socket.socket], socket.socket] | None = None,
    ) -> None:
        self._port, self._alter, self._wrap = port, alter, wrap
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [spawn(self._accept)]

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:  # nobody there
                near.close()
                continue
            if self._wrap is not None:
                far = self._wrap(far)
            number = len(self.connections)
            self.connections.append((near, far))
            self._threads.append(spawn(lambda a=near, b=far, n=number: self._pump(a, b, n)))
            self._threads.append(spawn(lambda a=far, b=near: self._pump(a, b, None)))

    def _pump(self, source: socket.socket, sink: socket.socket, number: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._alter is not None and number is not None:
                    altered = self._alter(number, passed, data)
                    passed += len(data)
                    data = altered
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for pair in self.connections:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        for pair in self.connections:
            for end in pair:
                end.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
