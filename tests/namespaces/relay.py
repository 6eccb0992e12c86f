"""A man in the middle: passes TCP on, and after so many bytes flips a bit in each piece.

Usage: python -m tests.namespaces.relay LISTEN_HOST:PORT TARGET_HOST:PORT UNTOUCHED_BYTES
"""

from __future__ import annotations

import socket
import sys
import threading


def pump(source: socket.socket, sink: socket.socket, untouched: float) -> None:
    passed = 0
    while piece := source.recv(65536):
        passed += len(piece)
        if passed > untouched:
            changed = bytearray(piece)
            changed[len(changed) // 2] ^= 1
            piece = bytes(changed)
        sink.sendall(piece)
    sink.shutdown(socket.SHUT_WR)


def guarded(source: socket.socket, sink: socket.socket, untouched: float) -> None:
    try:
        pump(source, sink, untouched)
    except OSError:  # one end has closed; so does the other
        source.close()
        sink.close()


def main(listen: str, target: str, untouched: str) -> None:
    host, port = listen.rsplit(":", 1)
    there, its_port = target.rsplit(":", 1)
    server = socket.create_server((host, int(port)))
    print("listening", flush=True)
    while True:
        near, _ = server.accept()
        try:
            far = socket.create_connection((there, int(its_port)), timeout=10)
        except OSError:  # the target is not there yet
            near.close()
            continue
        far.settimeout(None)
        threading.Thread(target=guarded, args=(near, far, float(untouched)), daemon=True).start()
        threading.Thread(target=guarded, args=(far, near, float("inf")), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
