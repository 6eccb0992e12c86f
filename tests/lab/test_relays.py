"""Links that are cut carry nothing, and all of it once they are mended."""

from __future__ import annotations

import socket

import pytest

from p2pft_flower.lab.relays import Relays


def test_what_is_sent_over_a_link_that_is_cut_comes_when_it_is_mended():
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
        with Relays({0: there, 1: there}, [(0, 1)]) as relays:
            host, port = relays.routes[0, 1].split(":")
            with socket.create_connection((host, int(port))) as near, server.accept()[0] as far:
                near.sendall(b"before")
                assert far.recv(64) == b"before"
                relays.cut(0, 1)
                near.sendall(b"after")
                far.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    far.recv(64)
                far.settimeout(30.0)
                relays.mend(0, 1)
                assert far.recv(64) == b"after"
                near.close()
                assert far.recv(64) == b""
