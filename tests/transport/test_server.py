"""What a server does with neighbours, strangers, garbage and addresses."""

from __future__ import annotations

import socket
import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.errors import Cause, ConfigError
from p2pft_flower.transport import (
    BindError,
    ExchangeError,
    ExchangeRefusedError,
    ExchangeStoppedError,
    ExchangeTimeoutError,
    Hello,
    Links,
    Mailbox,
    PeerServer,
    PeerUnreachableError,
    Reply,
    Status,
    Stop,
    Terms,
    meeting,
    unix_address,
)
from p2pft_flower.transport import server as server_module
from p2pft_flower.transport.wire.header import HEADER_KEY
from tests.transport.wire import PATIENCE, Host, message, no_threads_but, spawn

TERMS = Terms("run", 8, view=1, config="digest")


# The tests share a server, whose pool starts a thread when it likes: looked at once, after the last test.
@pytest.fixture(autouse=True, scope="module")
def _no_threads_left():
    before = threading.enumerate()
    yield
    assert no_threads_but(before) == []


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return unix_address("run", 1, tmp_path_factory.mktemp("s"))


@pytest.fixture(scope="module")
def stops():
    return []


@pytest.fixture(scope="module")
def server(address, stops, _no_threads_left):
    """Serves peer 1, which receives from 0 and sends to 2."""
    mailbox = Mailbox(TERMS, [(0, 1)])
    with PeerServer(mailbox, {1: address}, out_edges=[(1, 2)], on_stop=stops.append, timeout=1.0):
        yield mailbox


@pytest.fixture(scope="module")
def call(server, address):
    """Call a method with raw bytes, as anybody could, and return the answer."""
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:

        def unary(method, body, header=None):
            metadata = () if header is None else ((HEADER_KEY, header),)
            method = channel.unary_unary(f"/p2pft.v2.Exchange/{method}", None, None)
            return Reply.FromString(method(body, metadata=metadata, timeout=PATIENCE, wait_for_ready=True))

        yield unary


@settings(max_examples=60, deadline=None)
@given(
    header=st.none() | st.binary(max_size=60),
    body=st.binary(max_size=64) | st.binary(min_size=32, max_size=32),
    method=st.sampled_from(["Deliver", "Hello", "Stop"]),
)
def test_garbage_is_answered_and_gets_nowhere(server, stops, call, method, header, body):
    reply = call(method, body, header)
    assert reply.status not in (Status.ACCEPTED, Status.DUPLICATE, Status.STATUS_UNSPECIFIED)
    assert server.pending((0, 1)) == 0
    assert server.error is None
    assert stops == []


def test_what_is_larger_than_a_payload_is_refused_before_it_is_received(server, call):
    header, _ = message(TERMS, (0, 1), 0, 0)
    before = server.refused.copy()
    with pytest.raises(grpc.RpcError) as caught:
        call("Deliver", bytes(10_000_000), header)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.refused == before  # it never came as far as the mailbox


def test_after_all_that_a_good_payload_still_arrives(server, call):
    assert call("Deliver", *reversed(message(TERMS, (0, 1), 0, 0))).status == Status.ACCEPTED
    assert server.take(1, 0, 0, 0, PATIENCE).vector.tolist() == [0.0] * 8


HELLO = {
    "run": "run",
    "view": 1,
    "sender": 0,
    "receiver": 1,
    "config": "digest",
    "length": 8,
    "dtype": 1,
    "phases": 2,
}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "ACCEPTED"),
        ({"sender": 2}, "ACCEPTED"),
        ({"sender": 3}, "NOT_NEIGHBOUR"),
        ({"sender": 1, "receiver": 0}, "NOT_NEIGHBOUR"),
        ({"run": "other"}, "WRONG_RUN"),
        ({"view": 2}, "WRONG_VIEW"),
        ({"length": 9}, "WRONG_LENGTH"),
        ({"dtype": 2}, "WRONG_DTYPE"),
        ({"phases": 1}, "MISMATCH"),
        ({"config": "other digest"}, "MISMATCH"),
    ],
)
def test_a_hello_is_held_to_the_terms(call, change, status):
    reply = call("Hello", Hello(**(HELLO | change)).SerializeToString())
    assert Status.Name(reply.status) == status
    assert bool(reply.reason) == (status != "ACCEPTED")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "ACCEPTED"),
        ({"sender": 0}, "ACCEPTED"),
        ({"sender": 9}, "NOT_NEIGHBOUR"),
        ({"run": "x"}, "WRONG_RUN"),
        ({"cause": "CAUSE_UNSPECIFIED"}, "BAD_HEADER"),  # as of a version without causes
        ({"cause": 99}, "BAD_HEADER"),
    ],
)
def test_a_stop_is_heard_from_neighbours_of_the_run_only(call, stops, change, status):
    stops.clear()
    disk = {"run": "run", "sender": 2, "origin": 7, "iteration": 3, "reason": "disk full", "cause": "OWN"}
    stop = Stop(**(disk | change))
    assert Status.Name(call("Stop", stop.SerializeToString()).status) == status
    assert [s.reason for s in stops] == (["disk full"] if status == "ACCEPTED" else [])
    stops.clear()


def test_no_neighbour_forges_lines_of_the_log(call, stops):
    stops.clear()
    reason = "done\n05:00:00 run 7 completed\x1b[2K\r"
    call("Stop", Stop(run="run", sender=2, origin=7, reason=reason, cause="OWN").SerializeToString())
    assert [s.reason for s in stops] == ["done\\n05:00:00 run 7 completed\\x1b[2K\\r"]
    stops.clear()


def test_a_hellos_digest_is_not_echoed_whole(call):
    reply = call("Hello", Hello(**(HELLO | {"config": "x" * 10_000})).SerializeToString())
    assert Status.Name(reply.status) == "MISMATCH"
    assert len(reply.reason) < 500


def two_hosts(tmp_path, terms=TERMS, other=TERMS, timeout=PATIENCE, **more):
    edges = [(0, 1), (1, 0)]
    addresses = {i: unix_address("two", i, tmp_path) for i in range(2)}
    hosts = [Host.open(t, [i], edges, addresses, **more) for i, t in enumerate((terms, other))]
    for host in hosts:
        host.connect(addresses, timeout=timeout)
    return hosts


def test_neighbours_meet_whichever_starts_first(tmp_path):
    addresses = {i: unix_address("run", i, tmp_path) for i in range(2)}
    first = Host.open(TERMS, [0], [(0, 1)], addresses)
    met = threading.Event()
    links = first.connect(addresses)
    thread = spawn(lambda: (links.meet(PATIENCE), met.set()))
    second = Host.open(TERMS, [1], [(0, 1)], addresses)
    second.connect(addresses).meet(PATIENCE)
    assert met.wait(PATIENCE)
    thread.join(PATIENCE)
    first.close()
    second.close()


def test_neighbours_with_other_terms_do_not_meet(tmp_path):
    hosts = two_hosts(tmp_path, other=Terms("run", 9, view=1, config="digest"))
    with pytest.raises(
        ExchangeRefusedError, match=r"edge 1 -> 0.*number of trainable parameters 8, peer 1 has 9"
    ):
        hosts[0].links.meet(PATIENCE)
    for host in hosts:
        host.close()


def test_a_host_of_another_version_of_the_protocol_is_named_at_once(tmp_path, monkeypatch):
    addresses = {p: unix_address("run", p, tmp_path) for p in (0, 1)}
    with monkeypatch.context() as older:
        older.setattr(server_module, "EXCHANGE", "p2pft.v1.Exchange")
        server = PeerServer(Mailbox(TERMS, [(0, 1)]), {1: addresses[1]})
    named = "its host speaks another version of the peers' protocol"
    with server, Links(TERMS, addresses, [(0, 1)]) as links, pytest.raises(ExchangeError, match=named):
        links.meet(PATIENCE)


def test_the_runtime_may_turn_a_hello_down(tmp_path):
    def on_hello(hello):
        return Reply(status=Status.MISMATCH, reason=f"not you, {hello.sender}")

    hosts = two_hosts(tmp_path, on_hello=on_hello)
    with pytest.raises(ExchangeRefusedError, match="not you, 0"):
        hosts[0].links.meet(PATIENCE)
    for host in hosts:
        host.close()


def test_a_neighbour_that_is_still_preparing_is_asked_again_until_it_agrees(tmp_path):
    asked = []

    def on_hello(hello):
        asked.append((hello.sender, hello.receiver, hello.stage))
        return Reply(status=Status.PREPARING, progress=len(asked)) if len(asked) < 4 else None

    hosts = two_hosts(tmp_path, on_hello=on_hello)
    hosts[0].links.meet(PATIENCE, stage=2)
    assert asked == [(0, 1, 2)] * 4
    assert not hosts[1].mailbox.refused
    for host in hosts:
        host.close()


def test_a_neighbour_whose_preparing_makes_no_progress_is_given_up(tmp_path, monkeypatch):
    asked = []
    # Each answer takes 25 s by the clock of who greets, however long it takes.
    monkeypatch.setattr(meeting, "time", SimpleNamespace(monotonic=lambda: 25.0 * len(asked)))

    def on_hello(hello):
        asked.append(hello.sender)
        return Reply(status=Status.PREPARING, reason="the trunk is slow", progress=7)

    hosts = two_hosts(tmp_path, on_hello=on_hello)
    says = r"deadline 60 s: could not meet: peer 1 .* PREPARING: the trunk is slow; wait"
    with pytest.raises(PeerUnreachableError, match=says):
        hosts[0].links.meet(60.0, "wait")
    assert len(asked) == 4, "60 s after the first answer"
    for host in hosts:
        host.close()


def test_a_missing_neighbour_is_named_with_edge_address_deadline_and_remedy(tmp_path):
    missing = unix_address("run", 5, tmp_path)
    with (
        Links(TERMS, {5: missing}, [(0, 5)]) as links,
        pytest.raises(PeerUnreachableError) as caught,
    ):
        links.meet(0.3, remedy="start host 5")
    assert (caught.value.peer, caught.value.edge, caught.value.deadline) == (0, (0, 5), 0.3)
    for part in ("peer 0", "edge 0 -> 5", missing, "0.3 s", "start host 5"):
        assert part in str(caught.value)


def test_a_refused_payload_raises_at_once_and_at_the_next_send(tmp_path):
    hosts = two_hosts(tmp_path)
    known = threading.Event()
    failures = []
    with Links(
        TERMS,
        {1: unix_address("two", 1, tmp_path)},
        [(0, 1)],
        timeout=PATIENCE,
        on_failure=lambda error: (failures.append(error), known.set()),
    ) as links:
        links.send(0, 0, 0, np.full(8, np.nan, np.float32))
        assert known.wait(PATIENCE)
        says = r"peer 0, edge 0 -> 1, iteration 0, phase 0.*NOT_FINITE"
        with pytest.raises(ExchangeRefusedError, match=says):
            links.send(0, 0, 1, np.zeros(8, np.float32))
        with pytest.raises(ExchangeRefusedError, match=says):
            raise failures[0]
    for host in hosts:
        host.close()


def test_a_stop_wakes_the_neighbours_takers_at_once(tmp_path):
    edges = [(0, 1), (1, 0)]
    addresses = {i: unix_address("run", i, tmp_path) for i in range(2)}
    mailbox = Mailbox(TERMS, [(0, 1)])

    def on_stop(stop):
        mailbox.fail(ExchangeStoppedError(f"peer {stop.origin} gave up: {stop.reason}"))

    woken = []

    def take():
        try:
            mailbox.take(1, 0, 0, 0, PATIENCE)
        except ExchangeStoppedError as error:
            woken.append(str(error))

    with (
        PeerServer(mailbox, {1: addresses[1]}, out_edges=[(1, 0)], on_stop=on_stop),
        Links(TERMS, addresses, edges[:1], edges[1:]) as links,
    ):
        thread = spawn(take)
        assert links.stop(3, 17, "out of memory", Cause.OWN, timeout=PATIENCE) == [1]
        thread.join(PATIENCE / 2)
        assert woken == ["peer 3 gave up: out of memory"]
        # What is sent after that is turned down with the reason.
        links.send(0, 0, 0, np.zeros(8, np.float32))
        with pytest.raises(ExchangeStoppedError, match="out of memory"):
            links.flush(PATIENCE)


@pytest.mark.parametrize(("cause", "told"), [(Cause.OWN, Cause.HEARSAY), (Cause.STOPPED, Cause.STOPPED)])
def test_a_sender_is_told_whether_its_receiver_was_stopped_or_failed(tmp_path, cause, told):
    hosts = two_hosts(tmp_path)
    hosts[1].mailbox.fail(ExchangeStoppedError.by(cause, "it ends"))
    hosts[0].links.send(0, 0, 0, np.zeros(8, np.float32))
    with pytest.raises(ExchangeStoppedError, match="it ends") as caught:
        hosts[0].links.flush(PATIENCE)
    assert caught.value.cause is told
    for host in hosts:
        host.close()


def test_a_failure_wakes_a_waiting_sender_and_stop_still_goes_out(tmp_path):
    hosts = two_hosts(tmp_path)
    links = hosts[0].links
    vector = np.zeros(8, np.float32)
    links.send(0, 0, 0, vector)
    links.send(0, 0, 1, vector)
    woken = []

    def send():
        try:
            links.send(0, 1, 0, vector)
        except ExchangeStoppedError as error:
            woken.append(str(error))

    thread = spawn(send)
    links.fail(ExchangeStoppedError("the user stopped the run"))
    thread.join(PATIENCE)
    assert woken == ["the user stopped the run"]
    assert links.stop(0, 1, "x", Cause.RUN, timeout=PATIENCE) == [1]
    for host in hosts:
        host.close()
    assert links.stop(0, 1, "x", Cause.RUN) == []


def test_a_stop_to_nobody_returns_soon(tmp_path):
    with Links(TERMS, {1: unix_address("run", 1, tmp_path)}, [(0, 1)]) as links:
        assert links.stop(0, 0, "nobody is there", Cause.RUN, timeout=0.5) == []


def test_a_neighbour_that_went_away_is_named_when_the_deadline_passes(tmp_path):
    hosts = two_hosts(tmp_path, timeout=0.5)
    hosts[0].links.meet(PATIENCE)
    hosts[1].close()
    hosts[0].links.send(0, 6, 1, np.zeros(8, np.float32))
    with pytest.raises(
        (ExchangeTimeoutError, PeerUnreachableError), match="edge 0 -> 1, iteration 6, phase 1"
    ):
        hosts[0].links.flush(PATIENCE)
    hosts[0].close()


def test_sockets_are_private_and_gone_after_close(tmp_path):
    addresses = {i: unix_address("run", i, tmp_path) for i in range(3)}
    first = PeerServer(Mailbox(TERMS, []), {0: addresses[0], 1: addresses[1]})
    second = PeerServer(Mailbox(TERMS, []), {2: addresses[2]})
    sockets = [Path(address.removeprefix("unix:")) for address in addresses.values()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in sockets] == [0o600] * 3
    assert stat.S_IMODE(sockets[0].parent.stat().st_mode) == 0o700
    first.close()
    assert [path.exists() for path in sockets] == [False, False, True]
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_name_is_left_where_it_is(tmp_path):
    PeerServer(Mailbox(TERMS, []), {0: f"unix:{tmp_path}/0.sock"}).close()
    assert tmp_path.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_the_socket_of_a_dead_process_is_replaced_and_that_of_a_live_one_is_not(tmp_path):
    path = tmp_path / "0.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with (
        PeerServer(Mailbox(TERMS, []), {0: f"unix:{path}"}),
        pytest.raises(BindError, match=r"peer 0: cannot listen on unix:.*another process does"),
    ):
        PeerServer(Mailbox(TERMS, []), {0: f"unix:{path}"})


def test_an_open_folder_is_not_trusted(tmp_path):
    folder = tmp_path / "p2pft-run"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(BindError, match="open to others"):
        PeerServer(Mailbox(TERMS, []), {0: f"unix:{folder}/0.sock"})


@pytest.mark.parametrize("what", ["file", "no folder", "port"])
def test_an_address_that_cannot_be_had_is_named_with_the_remedy(tmp_path, what):
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        address, says = {
            "file": (f"unix:{tmp_path}/file", "a file has that name; remove it"),
            "no folder": (f"unix:{tmp_path}/none/0.sock", "no folder for it"),
            "port": (f"127.0.0.1:{port}", rf"127\.0\.0\.1:{port}: is the port taken"),
        }[what]
        with pytest.raises(BindError, match=rf"peer 4: cannot listen on .*{says}"):
            PeerServer(Mailbox(TERMS, []), {4: address})


def test_plain_text_leaves_the_machine_only_when_the_user_says_so():
    with pytest.raises(ConfigError, match="insecure = true"):
        PeerServer(Mailbox(TERMS, []), {0: "0.0.0.0:0"})
    PeerServer(Mailbox(TERMS, []), {0: "0.0.0.0:0"}, insecure=True).close()
    with (
        Links(TERMS, {1: "192.0.2.1:80"}, [(0, 1)]) as links,
        pytest.raises(ConfigError, match=r"192\.0\.2\.1:80"),
    ):
        links.meet(1.0)


def test_an_edge_without_an_address_is_refused_at_construction():
    with pytest.raises(ValueError, match=r"neighbours \[2\]"):
        Links(TERMS, {1: "127.0.0.1:1"}, [(0, 1)], [(2, 0)])
