"""A man in the middle on a host of its own: after so many bytes it flips a bit in each piece.

Usage: python -m tests.namespaces.relay LISTEN_HOST:PORT TARGET_HOST:PORT UNTOUCHED_BYTES
"""

from __future__ import annotations

import signal
import sys

from p2pft_flower.lab.relay import relayed


def main(listen: str, target: str, untouched: str) -> None:
    def alter(number: int, passed: int, data: bytes) -> bytes:
        if passed + len(data) <= float(untouched):
            return data
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]

    with relayed(target, listen=listen, alter=alter):
        print("listening", flush=True)
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
