"""The live page's content, from bulletins alone: edges, curves, events, and how old the news are."""

from __future__ import annotations

import msgspec
import pytest

from p2pft_flower.keeping.bulletins import Apart, EdgeNow, Point
from p2pft_flower.report.live_page import page_of, turns
from tests.report.test_status import NOW, bulletin, peer, view

RING = tuple(EdgeNow(p, (p + 1) % 4, 10 * p, 400 * p, 0.01 * p) for p in range(4))


def scores(n, iterations=(0, 10, 20), **fields):
    """Accuracies that rise, and differ by peer."""
    return {
        p: tuple(
            Point(
                k,
                NOW,
                fields.get("loss", 1.0),
                round(0.01 * k + 0.001 * p, 4),
                fields.get("unseen"),
                100 * k,
            )
            for k in iterations
        )
        for p in range(n)
    }


def test_each_edge_has_what_it_has_carried_and_an_edge_within_a_process_has_no_time():
    page = page_of([bulletin(edges=RING)], NOW)
    assert [(e.sender, e.receiver, e.payloads, e.bytes, e.seconds) for e in page.edges] == [
        (0, 1, 0, 0, None),
        (1, 2, 10, 400, 0.01),
        (2, 3, 20, 800, 0.02),
        (3, 0, 30, 1200, 0.03),
    ]


def test_an_edge_is_told_of_by_the_process_that_knows_most_and_only_in_the_newest_view():
    stale = bulletin(edges=(EdgeNow(0, 1, 5, 50, 0.5), EdgeNow(3, 0, 9, 90, 0.5)))
    new = bulletin(own=(1,), edges=(EdgeNow(0, 1, 7, 70, 0.2),))
    assert [(e.sender, e.payloads) for e in page_of([stale, new], NOW).edges] == [(0, 7), (3, 9)]
    new = bulletin(own=(1,), edges=(EdgeNow(0, 1, 4, 40, 0.2),), live=(0, 1, 2), views=(view(),))
    assert [(e.sender, e.payloads) for e in page_of([stale, new], NOW).edges] == [(0, 4)]


def test_of_few_peers_each_has_a_curve_and_scores_that_are_none_make_none():
    page = page_of([bulletin(history=scores(4), apart=(Apart(10, NOW, 0.5), Apart(20, NOW, 0.25)))], NOW)
    assert page.charts.keys() == {"accuracy", "loss", "consensus_error", "bytes_sent"}
    accuracy = page.charts["accuracy"]
    assert accuracy.iterations == (0, 10, 20)
    assert accuracy.lines["3"] == (0.003, 0.103, 0.203)
    assert page.charts["consensus_error"].lines == {"all": (0.5, 0.25)}
    assert page.charts["bytes_sent"].lines == {"all": (0, 4000, 8000)}


def test_of_more_than_eight_peers_there_are_the_least_the_mean_and_the_greatest():
    page = page_of([bulletin(*(peer(p) for p in range(4, 9)), n=9, history=scores(9))], NOW)
    lines = page.charts["accuracy"].lines
    assert lines["min"] == (0.0, 0.1, 0.2)
    assert lines["mean"] == pytest.approx((0.004, 0.104, 0.204))
    assert lines["max"] == (0.008, 0.108, 0.208)


def test_a_peer_is_on_its_curve_only_between_its_first_and_its_last_evaluation():
    told = scores(3) | {3: scores(4, (10,))[3]}
    line = page_of([bulletin(history=told)], NOW).charts["accuracy"].lines["3"]
    assert line == (None, 0.103, None)


def test_what_a_lost_peer_had_sent_stays_sent_and_bytes_are_known_as_far_as_of_all_others():
    told = scores(4) | {3: scores(4, (0, 10))[3]}
    page = page_of([bulletin(history=told, live=(0, 1, 2), views=(view(),))], NOW)
    assert page.charts["bytes_sent"].lines == {"all": (0, 4000, 7000)}
    page = page_of([bulletin(history=told)], NOW)
    assert page.charts["bytes_sent"].iterations == (0, 10)


def test_curves_come_from_a_peers_own_process_where_that_is_here():
    far = bulletin(own=(1,), history=scores(4, (0, 20)))
    own = bulletin(own=(0,), history=scores(4, (0, 10, 20)))
    assert page_of([far, own], NOW).charts["accuracy"].iterations == (0, 10, 20)


def test_changes_of_view_are_told_in_words_with_the_reason_the_latest_first():
    back = view(number=2, peers=(0, 1, 2, 3), lost=(), joined=(3,), why={}, iteration=390)
    page = page_of([bulletin(views=(view(), back))], NOW)
    assert [(e.kind, e.text) for e in page.events] == [
        ("good", "peer 3 (west) has come back after 390 iterations (view 2)"),
        ("bad", "peer 3 (west) was lost after 380 iterations (view 1): it crashed"),
    ]


def test_a_turn_for_the_worse_and_back_is_told_once_each():
    well = page_of([bulletin()], NOW)
    silent = page_of([bulletin(peer(1, spoken=12.0, heard=12.0))], NOW)
    states = {p.peer: p for p in well.peers}
    (event,) = turns(states, silent)
    assert event.kind == "bad"
    assert event.text.startswith("peer 1 (east) is silent: lost after 30 s")
    worse = {p.peer: p for p in silent.peers}
    assert turns(worse, silent) == []
    (event,) = turns(worse, well)
    assert (event.kind, event.text) == ("good", "peer 1 (east) is silent no more: it is computing")


def test_a_run_whose_processes_were_killed_or_write_nothing_is_quiet_and_the_page_says_why():
    assert page_of([bulletin()], NOW).phase == "training"
    killed = page_of([bulletin(alive=False)], NOW)
    assert killed.phase == "quiet"
    assert "were killed" in killed.told
    suspended = page_of([bulletin()], NOW + 60)
    assert suspended.phase == "quiet"
    assert "have written nothing since" in suspended.told


@pytest.mark.parametrize(
    ("owners", "source"),
    [
        ([(0,)], "peer 0 (north) on this machine, from gossip"),
        ([()], "the office, from the peers' reports"),
        ([(), (2,)], "peer 2 (south) on this machine and the office, from gossip"),
        ([(0, 1), (2, 3)], "all peers, which run on this machine"),
    ],
)
def test_the_page_says_whose_knowledge_it_is(owners, source):
    assert page_of([bulletin(own=own) for own in owners], NOW).source == source


def test_a_page_of_64_peers_stays_small():
    n = 64
    edges = tuple(EdgeNow(i, (i + 2**k) % n, 999, 10**9, 0.012345) for i in range(n) for k in range(6))
    told = bulletin(*(peer(p) for p in range(4, n)), n=n, edges=edges, names={}, history=scores(n, range(25)))
    page = page_of([told], NOW)
    assert len(page.peers) == n
    assert len(msgspec.json.encode(page)) < 80_000
    assert len(msgspec.json.encode(told)) < 150_000
