"""Payloads between hosts of one machine: in shared memory, checked like all others, gone with them."""

from __future__ import annotations

import errno
import gc
import os
import signal
import stat
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from p2pft_flower.transport import (
    ExchangeRefusedError,
    Links,
    Mailbox,
    PeerServer,
    Status,
    Terms,
    ViewChangeError,
    unix_address,
)
from p2pft_flower.transport import segments as segments_module
from p2pft_flower.transport.calls import Channels
from p2pft_flower.transport.segments import Segment, Segments
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import Refused
from tests.transport.test_processes import ended, process
from tests.transport.wire import PATIENCE, Host, message, spawn

TERMS = Terms("run", 1000)
LARGE = Terms("run", 50_000)
"""Of 200 kB: copies of them are made in memory that was used before."""
EDGE = (0, 1)


def mapped():
    """Return how many segments this process has mapped, and how many open."""
    gc.collect()  # an error's traceback holds what was sent
    maps = Path("/proc/self/maps").read_text().count("/memfd:p2pft")
    opened = [os.path.realpath(descriptor) for descriptor in descriptors()]
    return maps, sum("/memfd:p2pft" in name for name in opened)


def descriptors():
    return list(Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    assert mapped() == (0, 0)


@pytest.fixture
def calls(monkeypatch):
    """Count calls by method."""
    made, ask = Counter(), Channels.ask

    async def counted(channels, method, *arguments, **more):
        made[method] += 1
        return await ask(channels, method, *arguments, **more)

    monkeypatch.setattr(Channels, "ask", counted)
    return made


@contextmanager
def pair(folder, terms=TERMS, **more):
    """Edge 0 -> 1 between two hosts over a Unix socket: (links of 0, mailbox of 1)."""
    mailbox = Mailbox(terms, [EDGE])
    with (
        PeerServer(mailbox, {1: unix_address("run", 1, folder)}) as server,
        Links(terms, server.bound_addresses, [EDGE], timeout=PATIENCE, **more) as links,
    ):
        yield links, mailbox


def numbers(terms, seed):
    return np.random.default_rng(seed).standard_normal(terms.length).astype(np.float32)


def exchange(links, mailbox, position, vector):
    links.send(0, *divmod(position, 2), vector)
    return mailbox.take(1, 0, *divmod(position, 2), PATIENCE).vector


def told_once(caplog, reason):
    (told,) = [r.getMessage() for r in caplog.records if "no memory is shared" in r.getMessage()]
    assert reason in told


# --- What is laid there arrives ---


@pytest.mark.parametrize("terms", [TERMS, LARGE], ids=["small", "large"])
def test_vectors_go_over_a_unix_socket_without_their_bytes(terms, tmp_path, calls):
    with pair(tmp_path, terms) as (links, mailbox):
        for position in range(6):
            vector = numbers(terms, position)
            assert exchange(links, mailbox, position, vector).tobytes() == vector.tobytes()
        links.flush(PATIENCE)
        assert links.bytes_sent == {0: 6 * terms.nbytes}
        assert mapped()[0] == 2  # at both ends
    assert calls == {"HandOver": 6}


def test_a_vector_that_somebody_still_has_is_not_overwritten_by_those_that_follow(tmp_path):
    with pair(tmp_path, LARGE) as (links, mailbox):
        kept = [exchange(links, mailbox, k, numbers(LARGE, k))[slice(k % 3, None)] for k in range(8)]
        for k, vector in enumerate(kept):
            assert vector.tobytes() == numbers(LARGE, k)[k % 3 :].tobytes()
            assert not vector.flags.writeable
        del vector, kept
        links.flush(PATIENCE)


MANY = [(j, i) for j in (0, 1, 2) for i in (3, 4, 5)]


@contextmanager
def two_hosts(folder):
    """Peers 0 to 2 on a host that sends to peers 3 to 5 on another: (links, mailbox)."""
    addresses = {i: unix_address("run", i, folder) for i in (3, 4, 5)}
    mailbox = Mailbox(TERMS, MANY)
    with PeerServer(mailbox, addresses), Links(TERMS, addresses, MANY, timeout=PATIENCE) as links:
        yield links, mailbox


def exchange_all(links, mailbox, position):
    with links.together():
        for j in (0, 1, 2):
            links.send(j, *divmod(position, 2), numbers(TERMS, j), {i: i / 10 for i in (3, 4, 5)})
    for j, i in MANY:
        received = mailbox.take(i, j, *divmod(position, 2), PATIENCE)
        assert received.vector.tobytes() == numbers(TERMS, j).tobytes()
        assert received.share == i / 10
    links.flush(PATIENCE)


def test_memory_of_copies_that_nobody_has_any_more_is_used_again_or_given_back():
    kept, size = Segments(1), LARGE.payload_bytes
    with Segment([EDGE], size) as segment:
        segment.lay(EDGE, numbers(LARGE, 0))
        memory = kept.open(segment.described, size)
        held = [kept.copy(memory, 0, size) for _ in range(3)]
        for _ in range(5):
            kept.copy(memory, 0, size)
        assert len(kept._buffers) == 4
        del held
        for shorter in range(1, 5):
            copy = kept.copy(memory, 0, size - shorter)
            assert bytes(copy.data) == numbers(LARGE, 0).tobytes()[:-shorter]
            del copy
        assert [buffer.size for buffer in kept._buffers] == [size - 4]
        del memory
    kept.clear()


def test_one_call_carries_all_that_a_host_sends_together_to_another(tmp_path, calls):
    with two_hosts(tmp_path) as (links, mailbox):
        exchange_all(links, mailbox, 0)
        assert calls == {"HandOver": 3}  # which peers have one host is not known yet
        calls.clear()
        for position in range(1, 4):
            exchange_all(links, mailbox, position)
        assert calls == {"HandOver": 3}


def test_more_headers_than_fit_into_a_call_go_in_several(tmp_path, calls, monkeypatch):
    monkeypatch.setattr("p2pft_flower.transport.handing._HEADERS", 400)
    with two_hosts(tmp_path) as (links, mailbox):
        exchange_all(links, mailbox, 0)
        calls.clear()
        exchange_all(links, mailbox, 1)
        assert calls["HandOver"] > 1


def test_a_payload_that_waits_for_room_holds_up_no_other_of_its_hand_over(tmp_path):
    with two_hosts(tmp_path) as (links, mailbox):
        exchange_all(links, mailbox, 0)
        with links.together():
            for j in (0, 1, 2):
                links.send(j, 0, 1, numbers(TERMS, j))
        for j, i in MANY[1:]:
            mailbox.take(i, j, 0, 1, PATIENCE)
        links.flush(PATIENCE)
        with links.together():
            for j in (0, 1, 2):
                links.send(j, 1, 0, numbers(TERMS, 7))
        for j, i in MANY[1:]:
            assert mailbox.take(i, j, 1, 0, PATIENCE).vector.tobytes() == numbers(TERMS, 7).tobytes()
        j, i = MANY[0]
        assert mailbox.take(i, j, 0, 1, PATIENCE).vector.tobytes() == numbers(TERMS, j).tobytes()
        assert mailbox.take(i, j, 1, 0, PATIENCE).vector.tobytes() == numbers(TERMS, 7).tobytes()
        links.flush(PATIENCE)


def test_payloads_of_one_sender_may_differ_by_receiver(tmp_path, calls):
    with two_hosts(tmp_path) as (links, mailbox):
        for position in range(3):
            with links.together():
                for j, i in MANY:
                    links.send(j, *divmod(position, 2), numbers(TERMS, 10 * j + i), {i: 1.0})
            for j, i in MANY:
                vector = mailbox.take(i, j, *divmod(position, 2), PATIENCE).vector
                assert vector.tobytes() == numbers(TERMS, 10 * j + i).tobytes()
        links.flush(PATIENCE)
        assert mailbox.refused == {}
    assert calls == {"HandOver": 3 + 2}


def test_before_a_place_is_written_again_all_edges_of_what_lies_there_are_waited_for(tmp_path):
    with two_hosts(tmp_path) as (links, mailbox):
        for phase in range(2):
            links.send(0, 0, phase, numbers(TERMS, phase), {3: 1.0, 4: 1.0})  # the second waits for room
        mailbox.take(3, 0, 0, 0, PATIENCE)
        mailbox.take(3, 0, 0, 1, PATIENCE)
        written = threading.Event()
        thread = spawn(lambda: (links.send(0, 1, 0, numbers(TERMS, 2), {3: 1.0}), written.set()))
        assert links._sending._hand_overs.in_place_of(0, [3]) == ((0, 3), (0, 4))
        mailbox.take(4, 0, 0, 0, PATIENCE)
        assert written.wait(PATIENCE)
        thread.join(PATIENCE)
        assert mailbox.take(4, 0, 0, 1, PATIENCE).vector.tobytes() == numbers(TERMS, 1).tobytes()
        assert mailbox.take(3, 0, 1, 0, PATIENCE).vector.tobytes() == numbers(TERMS, 2).tobytes()
        links.flush(PATIENCE)


def test_with_a_view_comes_another_segment_and_the_old_one_is_freed(tmp_path):
    with pair(tmp_path) as (links, mailbox):
        exchange(links, mailbox, 0, numbers(TERMS, 0))
        links.flush(PATIENCE)
        later = Terms("run", TERMS.length, view=1)
        links.fail(ViewChangeError("peer 9 is lost"))
        links.install(later, [EDGE], [])
        assert mapped() == (1, 1)  # at the receiver, whose mapping has a descriptor
    with PeerServer(new := Mailbox(later, [EDGE]), {1: unix_address("run", 1, tmp_path)}):
        assert new.pending(EDGE) == 0


# --- Nothing of it is trusted ---


def handed(address, segment, *payloads, run="run"):
    """Hand payloads over, as anybody of this user could: (header, offset, size) of each."""
    request = pb.HandOver(run=run, sender=0, segment=segment)
    for header, offset, size in payloads:
        request.payloads.add(header=header, offset=offset, size=size)
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/p2pft.v2.Exchange/HandOver", None, None)
        answer = call(request.SerializeToString(), timeout=PATIENCE, wait_for_ready=True)
    return pb.HandedOver.FromString(answer)


def names(answer):
    return [Status.Name(answer.status), *(Status.Name(reply.status) for reply in answer.replies)]


@pytest.fixture
def receiver(tmp_path):
    """Peer 1, which receives from 0: (its address, its mailbox)."""
    mailbox = Mailbox(TERMS, [EDGE])
    with PeerServer(mailbox, {1: unix_address("run", 1, tmp_path)}) as server:
        yield server.bound_addresses[1], mailbox


@pytest.fixture
def laid():
    """A segment with the first payload of the edge in it: (segment, header)."""
    with Segment([EDGE, (2, 1)], TERMS.payload_bytes) as segment:
        header, payload = message(TERMS, EDGE, 0, 0, numbers(TERMS, 0))
        segment.lay(EDGE, payload)
        yield segment, header


def test_a_payload_that_is_handed_over_again_is_used_once_and_one_along_no_edge_is_refused(receiver, laid):
    address, mailbox = receiver
    segment, header = laid
    size = TERMS.payload_bytes
    other, _ = message(TERMS, (7, 1), 0, 0, numbers(TERMS, 0))
    assert names(handed(address, segment.described, (header, 0, size))) == ["ACCEPTED"]
    assert names(handed(address, segment.described, (header, 0, size))) == ["ACCEPTED"]
    assert mailbox.duplicates == 1
    assert names(handed(address, segment.described, (other, 0, size))) == ["ACCEPTED", "NOT_NEIGHBOUR"]
    assert mailbox.take(1, 0, 0, 0, PATIENCE).vector.tobytes() == numbers(TERMS, 0).tobytes()


@pytest.mark.parametrize(
    ("cause", "offset", "size"),
    [
        (["ACCEPTED", "WRONG_LENGTH"], 0, TERMS.payload_bytes - 4),
        (["ACCEPTED", "WRONG_LENGTH"], 0, TERMS.payload_bytes + 4),
        (["ACCEPTED", "WRONG_LENGTH"], 0, 0),
        (["ACCEPTED", "CORRUPT"], 4, TERMS.payload_bytes),
        (["WRONG_LENGTH"], 2**40, TERMS.payload_bytes),
        (["WRONG_LENGTH"], 2**64 - 1, TERMS.payload_bytes),
        (["WRONG_LENGTH"], TERMS.payload_bytes + 128, TERMS.payload_bytes),
        (["ACCEPTED", "WRONG_LENGTH"], 0, 2**64 - 1),
    ],
    ids=["short", "long", "empty", "elsewhere", "beyond", "far beyond", "half beyond", "endless"],
)
def test_a_payload_that_does_not_lie_where_it_is_told_is_refused(receiver, laid, cause, offset, size):
    address, mailbox = receiver
    segment, header = laid
    assert names(handed(address, segment.described, (header, offset, size))) == cause
    assert mailbox.pending(EDGE) == 0


@pytest.mark.parametrize(
    ("cause", "change"),
    [
        ("NOT_FINITE", {"vector": np.full(TERMS.length, np.nan, np.float32)}),
        ("WRONG_VIEW", {"view": 2**32}),
        ("WRONG_DTYPE", {"codec": "q4"}),
        ("WRONG_DTYPE", {"dtype": 2}),
        ("BAD_SHARE", {"share": 2.0}),
        ("FAR_OFF", {"iteration": 1}),
        ("WRONG_RUN", {"run": "other"}),
    ],
)
def test_it_passes_every_check_of_a_payload_that_is_sent(tmp_path, cause, change):
    terms = Terms("run", TERMS.length, view=2**32 + 1)
    change = {"view": terms.view, **change}
    vector = change.pop("vector", numbers(TERMS, 0))
    header, payload = message(terms, EDGE, 0, 0, vector, **change)
    mailbox = Mailbox(terms, [EDGE])
    with (
        Segment([EDGE], terms.payload_bytes) as segment,
        PeerServer(mailbox, {1: unix_address("run", 1, tmp_path)}) as server,
    ):
        segment.lay(EDGE, payload)
        answer = handed(server.bound_addresses[1], segment.described, (header, 0, len(payload)))
    assert names(answer) == ["ACCEPTED", cause]
    assert mailbox.refused == {cause: 1}


@pytest.mark.parametrize("at", [0, 70_000, 149_999], ids=["first", "middle", "last"])
def test_a_long_payload_that_holds_an_infinity_is_refused(tmp_path, at):
    terms = Terms("run", 150_000)
    vector = numbers(terms, 0)
    vector[at] = np.inf
    with pair(tmp_path, terms) as (links, mailbox):
        links.send(0, 0, 0, vector)
        with pytest.raises(ExchangeRefusedError, match="NOT_FINITE"):
            links.flush(PATIENCE)
        assert mailbox.pending(EDGE) == 0


def test_numbers_that_its_owner_changes_after_they_were_checked_are_used_as_they_were_checked(receiver, laid):
    address, mailbox = receiver
    segment, header = laid
    handed(address, segment.described, (header, 0, TERMS.payload_bytes))
    segment.lay(EDGE, np.full(TERMS.length, np.nan, np.float32))
    assert mailbox.take(1, 0, 0, 0, PATIENCE).vector.tobytes() == numbers(TERMS, 0).tobytes()


def test_a_hand_over_that_names_more_payloads_than_there_are_edges_is_refused(receiver, laid):
    address, _ = receiver
    segment, header = laid
    answer = handed(address, segment.described, *[(header, 0, TERMS.payload_bytes)] * 2)
    assert names(answer) == ["WRONG_LENGTH"]


def test_a_hand_over_of_another_run_is_refused(receiver, laid):
    segment, header = laid
    answer = handed(receiver[0], segment.described, (header, 0, TERMS.payload_bytes), run="other")
    assert names(answer) == ["WRONG_RUN"]


def test_a_hand_over_that_comes_over_tcp_is_refused(laid):
    segment, header = laid
    with PeerServer(Mailbox(TERMS, [EDGE]), {1: "127.0.0.1:0"}) as server:
        answer = handed(server.bound_addresses[1], segment.described, (header, 0, TERMS.payload_bytes))
    assert names(answer) == ["UNSHARED"]


def no_segment(kind, folder):
    """Return a descriptor of something else, and what is wrong with it."""
    size = 2 * 4032
    if kind == "a file with a name":
        descriptor = os.open(folder / "file", os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, size)
    elif kind == "a pipe":
        descriptor, writing = os.pipe()
        os.close(writing)
    elif kind == "not sealed":
        descriptor = os.memfd_create("p2pft")
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, size)
    else:
        descriptor = os.memfd_create("p2pft", os.MFD_ALLOW_SEALING)
        os.fchmod(descriptor, 0o644 if kind == "open to others" else 0o600)
        os.ftruncate(descriptor, size // 2 if kind == "shorter than told" else size)
    described = pb.Segment(process=os.getpid(), descriptor=descriptor, size=size)
    described.inode = os.fstat(descriptor).st_ino + (kind == "another inode")
    return descriptor, described


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("a file with a name", "a file with a name"),
        ("a pipe", "no file"),
        ("not sealed", "not sealed"),
        ("open to others", "open to others"),
        ("shorter than told", "4032 bytes long, not 8064"),
        ("another inode", "another file than was told"),
    ],
)
def test_what_is_no_segment_of_a_host_is_not_mapped(kind, says, tmp_path):
    descriptor, described = no_segment(kind, tmp_path)
    before = len(descriptors())
    try:
        with pytest.raises(Refused, match=says) as refused:
            Segments(1).open(described, TERMS.payload_bytes)
        assert refused.value.status == pb.UNSHARED
        assert len(descriptors()) == before
    finally:
        os.close(descriptor)


def test_another_users_segment_is_not_mapped(laid, monkeypatch):
    monkeypatch.setattr("p2pft_flower.transport.segments.os.getuid", lambda: 12345678)
    with pytest.raises(Refused, match="another user's"):
        Segments(1).open(laid[0].described, TERMS.payload_bytes)


@pytest.mark.parametrize("size", [0, 2**63])
def test_a_segment_larger_than_any_of_the_run_is_not_even_looked_at(laid, size, monkeypatch):
    monkeypatch.setattr("p2pft_flower.transport.segments.os.open", None)
    described = pb.Segment(process=1, descriptor=2, inode=3, size=size)
    with pytest.raises(Refused, match=f"of {size} bytes"):
        Segments(1).open(described, TERMS.payload_bytes)


def test_a_link_in_place_of_a_descriptor_leads_nowhere(laid):
    gone = pb.Segment()
    gone.CopyFrom(laid[0].described)
    gone.descriptor = 2**30
    with pytest.raises(Refused, match="cannot be had here: No such file"):
        Segments(1).open(gone, TERMS.payload_bytes)


def test_the_size_of_a_segment_cannot_be_changed(laid):
    for size in (0, 2**20):
        with pytest.raises(OSError, match="Operation not permitted"):
            os.ftruncate(laid[0].described.descriptor, size)
    assert stat.S_IMODE(os.fstat(laid[0].described.descriptor).st_mode) == 0o600


def test_no_more_segments_are_kept_mapped_than_there_can_be_hosts():
    kept = Segments(2)
    with Segment([EDGE], 64) as first, Segment([EDGE], 64) as second, Segment([EDGE], 64) as third:
        memory = [kept.open(s.described, 64) for s in (first, second, first, third)]
        assert memory[0] is memory[2]
        del memory
        assert mapped()[0] == 3 + 2
        assert len(kept._mapped) == 2
    kept.clear()
    del first, second, third


# --- Where there is no memory to share ---


@pytest.mark.parametrize(
    ("function", "number"),
    [("posix_fallocate", errno.ENOSPC), ("memfd_create", errno.EMFILE), ("memfd_create", errno.ENOSYS)],
)
def test_without_memory_to_share_payloads_are_sent_and_the_log_says_so_once(
    function, number, tmp_path, calls, caplog, monkeypatch
):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(segments_module.os, function, fail)
    with pair(tmp_path) as (links, mailbox):
        for position in range(4):
            vector = numbers(TERMS, position)
            assert exchange(links, mailbox, position, vector).tobytes() == vector.tobytes()
        links.flush(PATIENCE)
    assert calls == {"Deliver": 4}
    told_once(caplog, os.strerror(number))


def test_to_a_host_that_cannot_have_the_segment_payloads_are_sent_and_the_log_says_so_once(
    tmp_path, calls, caplog, monkeypatch
):
    monkeypatch.setattr(segments_module, "_SEALS", 2**6 - 1)  # as if it were none
    monkeypatch.setattr(segments_module.fcntl, "F_ADD_SEALS", segments_module.fcntl.F_GET_SEALS)
    with two_hosts(tmp_path) as (links, mailbox):
        for position in range(3):
            exchange_all(links, mailbox, position)
        assert mailbox.refused == {"UNSHARED": 3}
    assert calls == {"HandOver": 3, "Deliver": 3 * len(MANY)}
    told_once(caplog, "not sealed")


def test_a_payload_that_is_refused_ends_its_edge_alone_and_by_name(tmp_path):
    with two_hosts(tmp_path) as (links, mailbox):
        with links.together():
            links.send(0, 0, 0, numbers(TERMS, 0))
            links.send(1, 4, 0, numbers(TERMS, 1))
            links.send(2, 0, 0, numbers(TERMS, 2))
        with pytest.raises(ExchangeRefusedError, match=r"edge 1 -> 3, iteration 4, phase 0.*FAR_OFF"):
            links.flush(PATIENCE)
        for j in (0, 2):
            assert mailbox.take(3, j, 0, 0, PATIENCE).vector.tobytes() == numbers(TERMS, j).tobytes()


# --- Afterwards nothing is left ---


def exchange_and_wait(own, other, addresses, pipe):
    """Run one of two hosts that exchange with each other, and wait when they have."""
    host = Host.open(TERMS, [own], [(0, 1), (1, 0)], addresses)
    links = host.connect(addresses, timeout=PATIENCE)
    for position in range(3):
        links.send(own, *divmod(position, 2), numbers(TERMS, own))
        host.mailbox.take(own, other, *divmod(position, 2), PATIENCE)
    links.flush(PATIENCE)
    pipe.send(mapped()[0])
    pipe.recv()
    host.close()


def test_a_host_that_is_killed_leaves_no_memory_behind(tmp_path):
    addresses = {i: unix_address("run", i, tmp_path) for i in (0, 1)}
    child, pipe = process(exchange_and_wait, 1, 0, addresses)
    host = Host.open(TERMS, [0], [(0, 1), (1, 0)], addresses)
    try:
        links = host.connect(addresses, timeout=PATIENCE)
        for position in range(3):
            links.send(0, *divmod(position, 2), numbers(TERMS, 0))
            vector = host.mailbox.take(0, 1, *divmod(position, 2), PATIENCE).vector
            assert vector.tobytes() == numbers(TERMS, 1).tobytes()
        links.flush(PATIENCE)
        assert pipe.poll(PATIENCE)
        assert pipe.recv() == 2
        os.kill(child.pid, signal.SIGKILL)
        assert ended(child) == [-signal.SIGKILL]
        assert mapped()[0] == 2  # its segment is there as long as this host has it mapped …
    finally:
        host.close()
        child.close()
        pipe.close()
    assert mapped() == (0, 0)  # … and the killed one's own, which had no name, with both


def test_two_hosts_that_are_killed_leave_no_memory_behind(tmp_path):
    addresses = {i: unix_address("run", i, tmp_path) for i in (0, 1)}
    children = [process(exchange_and_wait, own, 1 - own, addresses) for own in (0, 1)]
    for _, pipe in children:
        assert pipe.poll(PATIENCE)
        assert pipe.recv() == 2
    for child, pipe in children:
        os.kill(child.pid, signal.SIGKILL)
        assert ended(child) == [-signal.SIGKILL]
        child.close()
        pipe.close()
    left = [path for path in tmp_path.rglob("*") if not path.is_dir() and not path.is_socket()]
    assert left == []
