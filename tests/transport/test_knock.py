"""One attempt to connect to a silent peer: what the operating system answers is told apart."""

from __future__ import annotations

import socket
import threading

from p2pft_flower.transport import (
    Loss,
)
from p2pft_flower.transport.knock import knock
from tests.transport.wire import PATIENCE


def test_an_address_where_nothing_listens_any_more_is_a_crash(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert knock(address, PATIENCE) == (Loss.SILENT, "connected")
    assert knock(address, PATIENCE) == (Loss.CRASHED, "Connection refused")
    path = tmp_path / "0.sock"
    assert knock(f"unix:{path}") == (Loss.CRASHED, "No such file or directory")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        assert knock(f"unix:{path}") == (Loss.CRASHED, "Connection refused")
        listening.listen(0)
        assert knock(f"unix:{path}") == (Loss.SILENT, "connected")


def test_a_unix_socket_that_takes_no_more_connections_is_not_cut_off(tmp_path):
    path = str(tmp_path / "0.sock")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(path)
        listening.listen(0)
        first.connect(path)
        assert knock(f"unix:{path}", 0.05)[0] is Loss.SILENT


def test_an_address_that_does_not_answer_is_cut_off():
    # A queue of one connection that is full: the system drops what else would connect, as a cut link does.
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        for filling in (first, second):
            filling.setblocking(False)
            filling.connect_ex(("127.0.0.1", port))
        assert knock(f"127.0.0.1:{port}", 0.1)[0] is Loss.CUT_OFF


def test_a_name_that_nobody_knows_is_cut_off_and_says_why():
    how, told = knock("no-such-host.invalid:1")
    assert how is Loss.CUT_OFF
    assert told


def test_a_name_service_that_does_not_answer_keeps_nobody_waiting(monkeypatch):
    asked, answer = threading.Event(), threading.Event()

    def getaddrinfo(*_, **__):
        asked.set()
        assert answer.wait(PATIENCE)
        raise OSError("nobody waits for this any more")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        told = knock("hospital.example:9000", 0.05)
        assert asked.wait(PATIENCE)
        assert told == (Loss.CUT_OFF, "its name could not be resolved within 0.05 s")
    finally:
        answer.set()


def test_all_addresses_of_a_name_share_one_deadline(monkeypatch):
    given = []

    class Mute(socket.socket):
        def connect(self, place):
            given.append(self.gettimeout())
            raise TimeoutError("timed out")

    one = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 9000))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [one] * 3)
    monkeypatch.setattr(socket, "socket", Mute)
    assert knock("hospital.example:9000", 100.0) == (Loss.CUT_OFF, "timed out")
    assert len(given) == 3
    assert 100.0 > given[0] > given[1] > given[2]
