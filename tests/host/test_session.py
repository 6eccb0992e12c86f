"""A session has all that lives as long as its view, and is built anew from each."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from p2pft_flower.host.agreement import NewView
from p2pft_flower.host.exchange import HostExchange
from p2pft_flower.host.session import Sessions
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import scheduled
from p2pft_flower.topology.views import View

from .hosts import ALONE, FOLDED, RING, tcp, train
from .quadratic import GRAPH, plans

THETA0 = np.zeros(300, np.float32)


def sessions(tmp_path, host, graph=RING, hosts=ALONE, phases=("theta", "tau"), always=False, **settings):
    plan = plans(graph, hosts, tcp() if settings.get("survive", True) else {}, tmp_path, **settings)[host]
    return Sessions(plan, THETA0, phases, "digest", always=always)


def new_view(number=3, missing=(2,), donor=None, joined=(), iteration=40):
    return NewView(number, View.without(RING, missing), iteration, missing, joined, {}, 0.0, donor)


def test_the_first_view_is_that_of_the_plan(tmp_path):
    session = sessions(tmp_path, 1, survive=True).first()
    assert (session.number, session.first, session.peers) == (0, 0, (0, 1, 2, 3))
    assert (session.leaving, session.entering) == ({(1, 2)}, {(0, 1)})
    assert session.receivers == {1: (2,)}
    assert (session.weights, session.donor, session.returned) == ({1: 1.0}, None, frozenset())
    assert session.inbox.terms.config.endswith(" model digest")


def test_of_a_new_view_everything_is_new_and_all_of_it_says_the_same_number(tmp_path):
    made = sessions(tmp_path, 1, survive=True)
    first, session = made.first(), made.of(new_view())
    assert (session.number, session.first, session.peers) == (3, 40, (0, 1, 3))
    assert session.inbox.terms == dataclasses.replace(first.inbox.terms, view=3)
    assert (session.leaving, session.entering) == ({(1, 3)}, {(0, 1)})
    assert set(session.inbox.edges) == {(0, 1)}
    assert session.places[1].row == View.without(RING, [2]).row(1)
    assert session.places[1].column == View.without(RING, [2]).column(1)
    assert session.all_have_theta == 43
    # Nobody has been given anything of it before: neither the mailbox nor what is in it is shared.
    assert first.number == 0
    assert session.inbox is not first.inbox
    with pytest.raises(dataclasses.FrozenInstanceError):
        session.number = 4


def test_of_a_view_whose_weights_change_the_places_are_those_of_its_codecs_step(tmp_path):
    graph = scheduled(RING, "lopsided-4,directed-ring-4")
    session = sessions(tmp_path, 1, graph, survive=True, codec="q3").of(
        new_view()._replace(view=View.without(graph, [2]))
    )
    view, step = View.without(graph, [2]), session.compression.step
    assert step < 1
    for k in (40, 41):
        place, turn = session.places[1].at(k), view.graph.turn(k, step)
        assert (place.tracker_weight, place.next_weight) == (turn.tracker_weights[1], turn.next_weights[1])
        assert place.tracker_weight != view.graph.turn(k).tracker_weights[1]
    # Three peers, each of which may hear of another one in every second iteration only.
    assert (session.period, session.all_have_theta) == (2, 40 + 3 * 2)


def test_the_losses_weights_have_mean_one_among_the_peers_of_the_view(tmp_path):
    plan = plans(RING, ALONE, tcp(), tmp_path, survive=True)[1]
    plan = dataclasses.replace(plan, loss_weights={0: 0.5, 1: 0.5, 2: 2.5, 3: 0.5})
    made = Sessions(plan, THETA0, ("theta", "tau"), "digest", always=False)
    assert (made.first().weights, made.of(new_view()).weights) == ({1: 0.5}, {1: 1.0})


def test_a_donor_is_asked_first_then_neighbours_then_all_others_of_the_view(tmp_path):
    made = sessions(tmp_path, 1, survive=True)
    assert made.of(new_view(missing=(), donor=3)).donors == (3, 0, 2)
    assert made.of(new_view(missing=(), donor=None)).donors == (0, 2, 3)
    assert made.of(new_view(missing=(), joined=(1, 2))).returned == {2}  # itself needs no new connection


def test_a_host_that_needs_no_other_takes_nothing_in(tmp_path):
    session = sessions(tmp_path, 0, GRAPH, [[0, 1, 2, 3]], survive=False).first()
    assert (session.leaving, session.entering, session.mailbox) == (set(), set(), None)
    with pytest.raises(RuntimeError, match="nothing comes from other hosts"):
        session.inbox  # noqa: B018


@pytest.mark.parametrize(("always", "phases", "leaving"), [(False, 2, 2), (True, 2, 4), (True, 0, 0)])
def test_only_edges_to_other_hosts_take_the_wire_unless_all_do(always, phases, leaving, tmp_path):
    ring = Graph.load("ring:4")
    session = sessions(tmp_path, 0, ring, FOLDED, ("theta", "tau")[:phases], always, survive=True).first()
    assert (len(session.leaving), len(session.entering)) == (leaving, leaving)


def test_an_offer_of_theta_is_taken_back_once_when_no_peer_of_the_view_can_lack_it(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(HostExchange, "withdraw", lambda exchange: sent.append(exchange.bytes_sent[0]))
    _, outcomes = train(tmp_path, [[0, 1, 2, 3]], {}, iterations=20)
    assert sent == [outcomes[0].bytes_sent * 4 // 20]  # four peers: after four iterations
