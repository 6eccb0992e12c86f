"""What a peer finds out about its links before a run, over real sockets."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport import BindError, ExchangeError, Prober, probe
from p2pft_flower.transport.trust.authority import create_authority, issue
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from tests.transport.wire import PATIENCE, no_threads_but


def free_addresses(n: int) -> list[str]:
    """Return loopback addresses on which nobody listens."""
    probers = [Prober("x", i, "127.0.0.1:0", {}) for i in range(n)]
    addresses = [p.address for p in probers]
    for p in probers:
        p.close()
    return addresses


def probe_all(addresses: dict[int, str], edges: list[tuple[int, int]], timeout: float = PATIENCE, run="r"):
    """Let every peer probe its neighbours in both directions of the edges; return the reports of each."""

    def one(peer: int):
        around = {j + i - peer for j, i in edges if peer in (j, i)}
        with Prober(run, peer, addresses[peer], {k: addresses[k] for k in around}) as prober:
            return prober.probe(timeout)

    with ThreadPoolExecutor(len(addresses)) as pool:
        return dict(zip(addresses, pool.map(one, addresses), strict=True))


def test_neighbours_find_round_trip_bandwidth_and_clock_of_each_other():
    before = threading.enumerate()
    addresses = dict(enumerate(free_addresses(3)))
    found = probe_all(addresses, [(0, 1), (1, 2), (2, 0)])
    for peer, reports in found.items():
        assert [r.neighbour for r in reports] == [k for k in range(3) if k != peer]
        for report in reports:
            assert report.error == ""
            assert report.round_trip > 0
            assert report.bandwidth > 0
            assert abs(report.skew) <= report.round_trip + 1.0  # one machine, one clock
    assert no_threads_but(before) == []


def test_a_neighbour_that_is_not_there_is_named_with_its_address():
    addresses = dict(enumerate(free_addresses(2)))
    with Prober("r", 0, addresses[0], {1: addresses[1]}) as prober:
        [report] = prober.probe(0.5)
    assert report.address == addresses[1]
    assert "UNAVAILABLE" in report.error or "DEADLINE" in report.error


def test_a_neighbour_that_cannot_reach_back_is_named():
    """Peer 1 was told a wrong address of peer 0: the link works in one direction only."""
    for deadline in (3.0, PATIENCE / 2):  # the second for a machine on which nothing answers within the first
        good, other, wrong = free_addresses(3)
        with (
            Prober("r", 0, good, {1: other}) as zero,
            Prober("r", 1, other, {0: wrong}) as one,
            ThreadPoolExecutor(1) as pool,
        ):
            theirs = pool.submit(one.probe, deadline)
            [report] = zero.probe(deadline)
            assert theirs.result()[0].error
        if "has not reached peer 0" in report.error:
            break
    assert "has not reached peer 0" in report.error


def test_probes_of_another_run_and_of_strangers_are_refused():
    with (
        Prober("r", 0, "127.0.0.1:0", {1: "127.0.0.1:1"}) as prober,
        grpc.insecure_channel(prober.address) as channel,
    ):
        call = channel.unary_unary("/p2pft.v1.Probe/Echo", None, None)

        def status(**fields):
            return pb.ProbeReply.FromString(call(pb.Probe(**fields).SerializeToString())).status

        assert status(run="other", sender=1, receiver=0) == pb.WRONG_RUN
        assert status(run="r", sender=2, receiver=0) == pb.NOT_NEIGHBOUR
        assert status(run="r", sender=1, receiver=3) == pb.NOT_NEIGHBOUR
        assert status(run="r", sender=1, receiver=0) == pb.ACCEPTED
        assert pb.ProbeReply.FromString(call(b"\xff\xff")).status == pb.BAD_HEADER


def test_another_run_on_the_neighbours_port_is_told_so():
    zero, one = free_addresses(2)
    with Prober("other", 1, one, {0: zero}), Prober("r", 0, zero, {1: one}) as prober:
        [report] = prober.probe(PATIENCE)
    assert "WRONG_RUN" in report.error


def test_a_peer_that_is_refused_stays_to_refuse_in_turn(monkeypatch):
    """Of two peers with different runs each is told the cause, whoever asks first."""
    monkeypatch.setattr(probe, "GRACE", PATIENCE)
    zero, one = free_addresses(2)
    with ThreadPoolExecutor(1) as pool, Prober("north", 1, one, {0: zero}) as first:

        def late():
            with Prober("south", 0, zero, {1: one}) as second:
                return second.probe(PATIENCE)

        theirs = pool.submit(late)
        [report] = first.probe(PATIENCE)
        assert "WRONG_RUN" in report.error
        assert "WRONG_RUN" in theirs.result()[0].error


def test_a_peer_whose_only_neighbour_refused_it_waits_for_that_neighbours_probe(monkeypatch):
    """The neighbour asks only once it has refused: without the wait it would find nobody."""
    monkeypatch.setattr(probe, "GRACE", PATIENCE)
    zero, one = free_addresses(2)
    with Prober("north", 1, one, {0: zero}) as neighbour, ThreadPoolExecutor(1) as pool:

        def refused():
            with Prober("south", 0, zero, {1: one}) as peer:
                return peer.probe(60.0)

        theirs = pool.submit(refused)
        with neighbour._changed:
            assert neighbour._changed.wait_for(lambda: 0 in neighbour._refused, PATIENCE)
        with pytest.raises(TimeoutError):
            theirs.result(0.5)  # it stays
        [report] = neighbour.probe(PATIENCE)
        assert "WRONG_RUN" in report.error
        assert "WRONG_RUN" in theirs.result()[0].error


def test_a_neighbour_that_is_refused_here_is_reported_with_the_reason_at_once():
    """Peer 1 takes in what peer 0 sends, and sends under another run's name itself."""
    zero, one = free_addresses(2)
    with (
        Prober("r", 1, one, {0: zero}),
        Prober("r", 0, zero, {1: one}) as prober,
        grpc.insecure_channel(zero) as channel,
    ):
        call = channel.unary_unary("/p2pft.v1.Probe/Echo", None, None)
        call(pb.Probe(run="old", sender=1, receiver=0).SerializeToString(), timeout=30.0)
        [report] = prober.probe(600.0)
    assert "its own probes are refused here: run 'old' is not this one" in report.error


def test_refused_probes_are_logged_once_per_cause(caplog):
    with (
        caplog.at_level("WARNING", logger="p2pft_flower"),
        Prober("r", 0, "127.0.0.1:0", {1: "127.0.0.1:1"}) as prober,
        grpc.insecure_channel(prober.address) as channel,
    ):
        call = channel.unary_unary("/p2pft.v1.Probe/Echo", None, None)
        for sender in (1, 1, 7, 8, 9):
            call(pb.Probe(run="r", sender=sender, receiver=3).SerializeToString())
    assert len([r for r in caplog.records if "refused a probe" in r.getMessage()]) == 2


def test_a_neighbour_whose_clock_is_no_number_is_refused(monkeypatch):
    zero, one = free_addresses(2)
    with Prober("r", 1, one, {0: zero}), Prober("r", 0, zero, {1: one}) as prober:

        async def ask(*_, **__):
            return pb.ProbeReply(status=pb.ACCEPTED, time=float("nan")).SerializeToString()

        odd = SimpleNamespace(addresses={1: one}, ask=ask)
        with pytest.raises(ExchangeError, match="nan as the time of its clock"):
            asyncio.run(prober._probe(odd, 1, 1e18))


def test_a_taken_port_and_plain_text_beyond_this_machine_are_refused():
    with Prober("r", 0, "127.0.0.1:0", {}) as first, pytest.raises(BindError, match="cannot listen"):
        Prober("r", 1, first.address, {})
    with pytest.raises(ConfigError, match="not on this machine"):
        Prober("r", 0, "0.0.0.0:0", {})


def credentials(folder, federation: str, *peers: int) -> dict[int, Credentials]:
    create_authority(folder / federation, federation)
    for peer in peers:
        issue(folder / federation, folder / f"{federation}-{peer}", peer)
    return {p: Credentials.load(folder / f"{federation}-{p}", p) for p in peers}


def test_over_mutual_tls_neighbours_are_who_they_say(tmp_path):
    own = credentials(tmp_path, "clinics", 0, 1, 2)
    zero, one = free_addresses(2)
    with (
        Prober("r", 0, zero, {1: one}, credentials=own[0]) as first,
        Prober("r", 1, one, {0: zero}, credentials=own[1]) as second,
        ThreadPoolExecutor(1) as pool,
    ):
        theirs = pool.submit(second.probe, PATIENCE)
        assert [r.error for r in (*first.probe(PATIENCE), *theirs.result())] == ["", ""]


def test_the_coordinator_may_not_probe_in_a_peers_place(tmp_path):
    own = credentials(tmp_path, "clinics", 0)
    issue(tmp_path / "clinics", tmp_path / "coordinator", "coordinator")
    coordinator = Credentials.load(tmp_path / "coordinator", "coordinator")
    zero, one = free_addresses(2)
    with (
        Prober("r", 0, zero, {1: one}, credentials=own[0]),
        Prober("r", 1, one, {0: zero}, credentials=coordinator) as prober,
    ):
        [report] = prober.probe(PATIENCE)
    assert "NOT_AUTHENTIC: a probe from peer 1 by the coordinator" in report.error


@pytest.mark.parametrize(
    ("federation", "peer", "complaint"),
    [("clinics", 2, "not accepted here"), ("others", 1, "not accepted here")],
    ids=["another peer of the federation", "the same number in another federation"],
)
def test_who_answers_in_a_neighbours_place_is_found_out_at_once(tmp_path, federation, peer, complaint):
    own = credentials(tmp_path, "clinics", 0, 2)
    own |= {1: credentials(tmp_path, "others", 1)[1]} if federation == "others" else {}
    zero, one = free_addresses(2)
    with (
        Prober("r", 1, one, {0: zero}, credentials=own[peer]),
        Prober("r", 0, zero, {1: one}, credentials=own[0]) as prober,
    ):
        [report] = prober.probe(PATIENCE)
    assert complaint in report.error
