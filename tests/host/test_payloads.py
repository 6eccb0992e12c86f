"""Hosts whose payloads take long or do not come through, though heartbeats do; and hosts that end."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from p2pft_flower.host.host import DepartedError, PeerFailedError
from p2pft_flower.host.recorder import Recorder
from p2pft_flower.host.session import Sessions
from p2pft_flower.host.standings import Standings
from p2pft_flower.host.wires import Access, Wires
from p2pft_flower.lab.relay import Relays
from p2pft_flower.transport import (
    EdgeBrokenError,
    ExchangeStoppedError,
    Links,
    OwnPulse,
)
from p2pft_flower.transport.payloads import Carrier

from .hosts import RING, best, events, tcp, until
from .quadratic import plans

SHORT = {"peer-timeout": 2.0, "hang-timeout": 3.0}


class Harm:
    """What a relay does to the connections that carry payloads, once the test says so.

    Peers open connections in any order, and some are refused: those that carry payloads are known by the name
    of the method that is called over them, which gRPC writes out once a connection.
    """

    CALLED = b"/p2pft.v2.Exchange/Deliver"

    def __init__(self, delay=None):
        self.begun, self.done, self.over = threading.Event(), threading.Event(), threading.Event()
        self._delay = delay
        self._carry, self._ends = set(), {}

    def __call__(self, number, passed, data):
        seen = self._ends.get(number, b"") + data
        self._ends[number] = seen[-len(self.CALLED) :]
        if self.CALLED in seen:
            self._carry.add(number)
        if number not in self._carry or not self.begun.is_set():
            return data
        self.done.set()
        if self._delay is None:
            return b""
        self.over.wait(self._delay)
        return data


@pytest.fixture
def relayed(federation):
    """Make four hosts on a ring; what peer 1 sends to peer 2 passes a relay that does ``harm`` to it."""
    harms = []

    def make(harm, **settings):
        net = federation(tcp(), **{**SHORT, **settings})
        net.relay = relays.open(net.plans[1].addresses[2], alter=harm)
        harms.append(harm)
        own = net.plans[1]
        net.plans[1] = replace(own, addresses={**own.addresses, 2: net.relay.address})
        return net

    with Relays() as relays:
        yield make
        for harm in harms:
            harm.over.set()


def start_all(net, harm, at=10):
    """Start the hosts, peer 2's once peer 1 has looked for it: so the first connections are refused."""

    def hook(peer, drawn):
        if peer == 1 and drawn == at:
            harm.begun.set()

    runs = {p: net.start(p, hook=hook) for p in (0, 1, 3)}
    until(lambda: net.relay.connections)
    runs[2] = net.start(2, hook=hook)
    return [runs[p] for p in range(4)]


def test_a_link_on_which_a_payload_takes_longer_than_the_peer_timeout_is_waited_for(
    relayed, tmp_path, caplog
):
    harm = Harm(delay=2.5)
    net = relayed(harm, iterations=12, **{"hang-timeout": 60.0})
    outcomes = [run.result(100) for run in start_all(net, harm, at=12)]
    assert [o.iterations for (o,) in outcomes] == [12] * 4
    assert harm.done.is_set()
    assert [events(tmp_path, p, "view") for p in range(4)] == [[]] * 4
    told = [r.getMessage() for r in caplog.records if "edge 1 -> 2 is slow" in r.getMessage()]
    assert len(told) == 1


@pytest.mark.parametrize("on_failure", ["continue", "wait"])
def test_the_graph_does_without_an_edge_that_swallows_payloads_and_nobody_is_lost(
    relayed, tmp_path, caplog, on_failure
):
    harm = Harm()
    net = relayed(harm, **{"on-failure": on_failure})
    runs = start_all(net, harm)
    assert harm.begun.wait(60)
    net.all_there.set()
    outcomes = [run.result(100) for run in runs]
    assert [o.iterations for (o,) in outcomes] == [120] * 4
    assert harm.done.is_set()
    for p in range(4):
        (view,) = events(tmp_path, p, "view")
        assert (view["peers"], view["lost"]) == ([0, 1, 2, 3], [])
        assert [1, 2] not in view["edges"]
        assert np.abs(net.kept(p) - best(0, 1, 2, 3)).max() < 0.3
    assert "the graph is to do without an edge: peer 1, edge 1 -> 2, iteration" in caplog.text


def test_where_peers_do_not_go_on_without_one_another_such_an_edge_ends_the_run_with_a_remedy(relayed):
    harm = Harm()
    net = relayed(harm, survive=False)
    runs = start_all(net, harm)
    assert harm.begun.wait(60)
    net.all_there.set()
    with pytest.raises(
        EdgeBrokenError, match=r"peer 1, edge 1 -> 2, iteration \d+, .*deadline 6 s.*raise hang-"
    ):
        runs[1].result(60)
    for p in (0, 2, 3):
        with pytest.raises(ExchangeStoppedError, match=r"peer 1 stopped in iteration .* edge 1 -> 2"):
            runs[p].result(60)


# Hosts that end


def test_a_host_whose_sender_hears_that_it_ends_before_it_hears_that_it_leaves_ends_alone(
    federation,
    tmp_path,
    monkeypatch,
):
    net = federation(tcp(), **{"peer-timeout": 48.0, "hang-timeout": 60.0})
    refused, look_at_link = threading.Event(), Carrier._look_at_link

    def note(carrier, payload, call, error, stuck):
        if isinstance(error, ExchangeStoppedError):
            refused.set()
        look_at_link(carrier, payload, call, error, stuck)

    def end(peer, drawn):
        if drawn == 10:  # its sender has at least one more payload for it
            net.hosts[2]._training.session.mailbox.fail(ExchangeStoppedError("peer 2 ends"))
            assert refused.wait(60)
            net.all_there.set()
            raise ValueError("no more images")

    monkeypatch.setattr(Carrier, "_look_at_link", note)
    runs = [net.start(p, hook=end if p == 2 else None) for p in range(4)]
    with pytest.raises(PeerFailedError):
        runs[2].result(60)
    for p in (0, 1, 3):
        assert runs[p].result(100)[0].iterations == 120
        (view,) = events(tmp_path, p, "view")
        assert (view["peers"], view["lost"]) == ([0, 1, 3], [2])


def test_a_host_that_leaves_closes_nothing_before_the_others_have_been_told(
    federation,
    tmp_path,
    monkeypatch,
):
    net = federation(tcp(), **{"peer-timeout": 48.0, "hang-timeout": 60.0})
    order, depart, close, failed = [], Wires.depart, Wires.close, Recorder.failed
    stopped, closed = threading.Event(), threading.Event()

    def late(wires, reason):
        assert stopped.wait(60)  # the training has noticed, before anybody was told
        closed.wait(1.0)  # the moment in which it would close, did it not wait
        depart(wires, reason)
        order.append("told")

    def note_failure(recorder, iteration, error, *more):
        failed(recorder, iteration, error, *more)
        if isinstance(error, DepartedError):
            stopped.set()

    monkeypatch.setattr(Recorder, "failed", note_failure)
    monkeypatch.setattr(Wires, "depart", late)

    def note_close(wires):
        order.append("closed")
        closed.set()
        close(wires)

    monkeypatch.setattr(Wires, "close", note_close)
    reached = threading.Event()
    runs = [net.start(p, hook=lambda p, drawn: drawn > 10 and p == 2 and reached.set()) for p in range(4)]
    assert reached.wait(60)
    net.hosts[2].leave("the ward closes")
    with pytest.raises(DepartedError):
        runs[2].result(60)
    assert order[:2] == ["told", "closed"]
    net.all_there.set()
    for p in (0, 1, 3):
        assert runs[p].result(100)[0].iterations == 120
        (view,) = events(tmp_path, p, "view")
        assert (view["peers"], view["lost"]) == ([0, 1, 3], [2])


def test_a_donor_that_ends_is_passed_over_and_the_next_one_is_asked(tmp_path):
    addresses = tcp()
    plan = plans(RING, [[0], [1], [2], [3]], addresses, tmp_path, survive=True)[0]
    asked = []

    class Donors(Links):
        def fetch(self, local, donor, check):
            asked.append(donor)
            if donor == 1:
                raise ExchangeStoppedError("peer 1 answered STOPPED: it ends")
            return np.ones(8, np.float32)

    session = Sessions(plan, np.zeros(8, np.float32), ("theta", "tau"), "digest", always=False).first()
    session = replace(session, donor=1)
    wires = Wires(
        plan,
        session,
        Access(),
        on_hello=lambda hello: None,
        on_stop=lambda stop: None,
        pulse=OwnPulse(),
        standings=Standings(plan.run, 0, plan.hosts, plan.iterations, None),
    )
    try:
        wires.links.__class__ = Donors
        assert wires.fetch(60.0, lambda: None)[0] == 1
        assert asked == [1, 3]
    finally:
        wires.close()
