"""What passes a relay: nothing while it is cut, all of it once it is mended; late, altered, or no more."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from p2pft_flower.lab.relay import Relays, relayed
from p2pft_flower.transport.trust.certificates import target_name
from tests.transport.federation import Federation


@contextlib.contextmanager
def through(relay, server):
    """Yield both ends of a connection that passes ``relay``."""
    host, port = relay.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 30.0) as near, server.accept()[0] as far:
        far.settimeout(30.0)
        yield near, far


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(30.0)
        yield listening


@pytest.fixture
def target(server):
    return "{}:{}".format(*server.getsockname())


def says_nothing(end):
    end.settimeout(0.2)
    with pytest.raises(TimeoutError):
        end.recv(64)
    end.settimeout(30.0)


def test_what_is_sent_over_a_link_that_is_cut_comes_when_it_is_mended(server, target):
    with relayed(target) as relay, through(relay, server) as (near, far):
        near.sendall(b"before")
        assert far.recv(64) == b"before"
        relay.cut()
        near.sendall(b"after")
        says_nothing(far)
        relay.mend()
        assert far.recv(64) == b"after"
        near.close()
        assert far.recv(64) == b""


@pytest.mark.parametrize("opener", [0, 1])
def test_a_link_that_is_cut_one_way_carries_the_other_whichever_end_has_opened_the_connection(
    opener, server, target
):
    with Relays() as relays:
        link = relays.link({0: target, 1: target}, 0, 1)
        (relay,) = [r for pair, r in link._relays.items() if pair[0] == opener]
        assert link.routes[opener, 1 - opener] == relay.address
        with through(relay, server) as ends:
            of = {opener: ends[0], 1 - opener: ends[1]}
            link.cut(0)
            of[0].sendall(b"of 0")
            of[1].sendall(b"of 1")
            assert of[0].recv(64) == b"of 1"
            says_nothing(of[1])
            link.mend(0)
            assert of[1].recv(64) == b"of 0"


def test_a_connection_that_is_opened_over_a_cut_link_reaches_the_other_end_when_it_is_mended(server, target):
    with relayed(target) as relay:
        relay.cut()
        host, port = relay.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), 30.0) as near:
            near.sendall(b"hello")
            server.settimeout(0.2)
            with pytest.raises(TimeoutError):
                server.accept()
            server.settimeout(30.0)
            relay.mend()
            with server.accept()[0] as far:
                assert far.recv(64) == b"hello"


def test_what_passes_a_slow_relay_is_late(server, target):
    with relayed(target, delay=0.1) as relay, through(relay, server) as (near, far):
        begun = time.monotonic()
        near.sendall(b"there")
        far.sendall(far.recv(64))
        assert near.recv(64) == b"there"
        assert time.monotonic() - begun >= 0.2


def test_what_goes_towards_the_target_can_be_altered_and_what_comes_back_is_not(server, target):
    seen = []

    def alter(number, passed, data):
        seen.append((number, passed))
        return data.upper()

    with relayed(target, alter=alter) as relay:
        for number in range(2):
            with through(relay, server) as (near, far):
                for word in (b"one", b"two"):
                    near.sendall(word)
                    assert far.recv(64) == word.upper()
                far.sendall(b"back")
                assert near.recv(64) == b"back"
            assert seen[-2:] == [(number, 0), (number, 3)]
        assert relay.connections == 2


def test_a_severed_connection_ends_at_both_ends_and_another_does_not(server, target):
    with relayed(target) as relay, through(relay, server) as broken, through(relay, server) as (near, far):
        near.sendall(b"two are open")
        assert far.recv(64) == b"two are open"
        relay.sever(0)
        for end in broken:
            with contextlib.suppress(ConnectionResetError):
                assert end.recv(64) == b""
        near.sendall(b"still there")
        assert far.recv(64) == b"still there"


def test_a_relay_that_is_severed_as_a_whole_takes_no_new_connection(server, target):
    with relayed(target) as relay, through(relay, server) as (near, _):
        relay.sever()
        with contextlib.suppress(ConnectionResetError):
            assert near.recv(64) == b""
        host, port = relay.address.rsplit(":", 1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), 30.0)


def test_where_nobody_listens_a_connection_is_closed(server, target):
    server.close()
    with relayed(target) as relay:
        host, port = relay.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), 30.0) as near:
            assert near.recv(64) == b""


def test_a_slow_line_passes_so_many_bytes_a_second_each_way_and_each_of_them_late(server, target):
    with relayed(target, delay=0.2, rate=1e6) as relay, through(relay, server) as (near, far):
        begin = time.monotonic()
        near.sendall(b"x" * 500_000)
        first = far.recv(1)
        late, left = time.monotonic() - begin, 499_999
        while left:
            left -= len(far.recv(left))
        assert first == b"x"
        assert late >= 0.2
        assert time.monotonic() - begin >= 0.7
        begin = time.monotonic()
        far.sendall(b"y")
        assert near.recv(1) == b"y"
        assert time.monotonic() - begin >= 0.2
        assert relay.passed == {"there": 500_000, "back": 1}


def test_a_target_that_says_no_good_bye_over_tls_leaves_nothing_open(server, target, tmp_path):
    north = Federation(tmp_path)
    own, authority = north.issue(1), (north.authority / "ca.pem").read_text()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(own / "peer.pem", own / "peer.key")
    tls = ssl.create_default_context(cadata=authority), target_name("north", 1)
    with ThreadPoolExecutor(1) as pool, relayed(target, tls=tls) as relay:
        far = pool.submit(lambda: theirs.wrap_socket(server.accept()[0], server_side=True))
        host, port = relay.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), 30.0) as near:
            near.sendall(b"hello")
            assert far.result(30.0).recv(64) == b"hello"
        assert far.result().recv(64) == b""  # the relay has said its own
    gc.collect()  # what was left open warns, and a warning fails a test
    far.result().close()
