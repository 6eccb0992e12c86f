"""Faults are drawn from a seed, and always leave a quorum alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.agreement.quorum import is_quorum
from p2pft_flower.lab.schedule import Kind, draw, leaves_quorum

TIMEOUT = 4.0


def ring(n):
    return [(p, p + 1) for p in range(n - 1)] + [(0, n - 1)]


def test_the_same_seed_draws_the_same_events_and_another_one_others():
    first, again, other = (draw(seed, 8, ring(8), 300.0, TIMEOUT) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(3, 12))
def test_at_any_time_there_is_a_quorum_to_which_nothing_is_done(seed, n):
    events = draw(seed, n, ring(n), 120.0, TIMEOUT)
    assert [e.at for e in events] == sorted(e.at for e in events)
    for now in (e.at for e in events):
        hurt = [p for e in events if e.at <= now <= e.at + e.lasts for p in e.peers]
        assert len(hurt) == len(set(hurt)), "two things are done to one peer at once"
        assert is_quorum(set(range(n)) - set(hurt), range(n))


def test_in_minutes_everything_is_done_that_can_be():
    events = draw(1, 8, ring(8), 300.0, TIMEOUT)
    assert {e.kind for e in events} == set(Kind)
    assert max(b.at - a.at for a, b in pairwise(events)) < 30.0
    for e in events:
        assert 0.0 < e.at < 300.0
        if e.kind is Kind.PAUSE:
            assert e.lasts < TIMEOUT / 2 + 0.01
        if e.kind in (Kind.LONG_PAUSE, Kind.CUT):
            assert e.lasts > TIMEOUT
        if e.kind is Kind.CUT:
            assert e.peers in ring(8)


@pytest.mark.parametrize(
    ("sure", "victims", "candidates", "left"),
    [
        ([0, 1, 2, 3], [3], range(4), True),
        ([0, 1, 2, 3], [2, 3], range(4), True),  # half, with the lowest
        ([0, 1, 2, 3], [0, 1], range(4), False),
        ([0, 1, 2], [0], range(4), False),  # peer 3 was paused: the next view may have it, or not
        ([0, 1, 2], [2], range(5), False),  # two may be let in at any moment
        ([0, 1, 2], [2], [0, 1, 2], True),
    ],
)
def test_what_may_be_done_leaves_a_quorum_of_any_view_that_may_follow(sure, victims, candidates, left):
    assert leaves_quorum(sure, victims, candidates) is left
