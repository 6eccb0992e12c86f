"""Of all peers' long waits, those remain that say whom the run stood still for."""

from __future__ import annotations

import time

import pytest

from p2pft_flower.report.stand_stills import (
    StandStill,
    all_stood_still,
    longest,
    of_journals,
    others,
    sentence,
    stood_still,
)
from tests.journals import made_line

NAMES = {1: "east", 2: "south"}


def stall(peer, awaited, seconds, *, end=100.0, last=None, silent=False):
    fields = {"iteration": 40, "awaited": awaited, "last": awaited if last is None else last}
    return made_line("stall", peer=peer, time=end, silent=silent, seconds=seconds, **fields)


def test_of_waits_at_the_same_time_for_the_same_peer_the_longest_remains():
    waits = [stall(1, 2, 18.0, silent=True), stall(0, 1, 17.0, last=2), stall(3, 0, 16.0, end=101.0, last=2)]
    assert longest(waits) == longest(waits[::-1]) == waits[:1]


def test_a_peer_that_waited_itself_is_not_whom_the_run_stood_still_for():
    unknowing = stall(3, 0, 30.0)  # it had not heard that peer 0 waits for peer 1
    right = stall(0, 1, 25.0)
    assert longest([unknowing, right]) == [right]


def test_waits_one_after_another_are_two():
    waits = [stall(1, 2, 10.0, end=100.0), stall(1, 2, 10.0, end=111.0)]
    assert longest(waits) == waits


def test_peers_that_only_waited_for_each_other_are_told_all_the_same():
    waits = [stall(0, 1, 10.0), stall(1, 0, 12.0)]
    assert longest(waits) == waits


def test_a_wait_in_words_names_who_was_to_blame():
    after = "after 40 iterations"
    assert (
        sentence(stall(1, 2, 18.4, silent=True), NAMES)
        == f"peer 1 (east) waited 18 s for peer 2 (south), which was silent, {after}"
    )
    assert "peer 2 (south), which was slow, after" in sentence(stall(1, 2, 18.4), NAMES)
    assert "for peer 3, which waited itself, in the end for peer 2 (south)" in sentence(
        stall(1, 3, 8.0, last=2), NAMES
    )


RING = [(0,), (1,), (2,), (3,)]


def still(begin, end, awaited, *, silent=False, iteration=40):
    return StandStill(begin=begin, end=end, awaited=awaited, silent=silent, iteration=iteration)


def test_all_stood_still_from_when_the_last_began_to_wait_until_the_first_waited_no_more():
    waits = [
        stall(0, 1, 30.0, end=100.0, last=2),
        stall(1, 2, 32.0, end=101.0, silent=True),
        stall(3, 0, 25.0, end=99.0, last=2),
    ]
    for order in (waits, waits[::-1]):
        assert all_stood_still(order, RING, ()) == [still(74.0, 99.0, (2,), silent=True)]


def test_who_waited_itself_is_not_whom_all_stood_still_for():
    unknowing = stall(3, 0, 30.0)  # it had not heard that peer 0 waits for peer 1
    waits = [unknowing, stall(0, 1, 30.0), stall(2, 1, 30.0)]
    assert all_stood_still(waits, RING, ()) == [still(70.0, 100.0, (1,))]


def test_who_told_of_no_wait_did_not_stand_still_as_far_as_is_known():
    waits = [stall(0, 2, 30.0), stall(1, 2, 30.0)]
    assert all_stood_still(waits, RING, ()) == []
    assert others(waits, []) == waits
    assert all_stood_still(waits[:1], [(0,), (2,)], ()) == [still(70.0, 100.0, (2,))]


def test_a_lost_peer_need_not_wait_any_more_and_one_that_came_back_must():
    lost = made_line("view", number=1, time=80.0, peers=(0, 1, 2))
    back = made_line("view", number=2, time=95.0, peers=(0, 1, 2, 3))
    waits = [stall(0, 2, 30.0), stall(1, 2, 30.0)]
    assert all_stood_still(waits, RING, [back, lost]) == [still(80.0, 95.0, (2,))]


def test_a_host_with_several_peers_waits_as_one_and_is_waited_for_as_one():
    hosts = [(0, 1), (2, 3)]
    assert all_stood_still([stall(0, 3, 9.0)], hosts, ()) == [still(91.0, 100.0, (3,))]
    assert all_stood_still([stall(0, 3, 9.0), stall(2, 0, 9.0)], hosts, ()) == [], "for each other"


def test_stand_stills_one_after_another_for_two_peers_are_two():
    waits = [stall(p, 2, 10.0, end=100.0) for p in (0, 1, 3)] + [
        stall(p, 1, 20.0, end=130.0) for p in (0, 2, 3)
    ]
    assert all_stood_still(waits, RING, ()) == [still(90.0, 100.0, (2,)), still(110.0, 130.0, (1,))]


def test_of_the_waits_within_a_stand_still_none_is_told_besides():
    waits = [stall(p, 2, 10.0, end=100.0) for p in (0, 1, 3)]
    alone = stall(0, 3, 8.0, end=300.0)
    stills = all_stood_still([*waits, alone], RING, ())
    assert others([*waits, alone], stills) == [alone]


def test_journals_tell_who_could_have_waited_also_of_peers_whose_journal_is_not_there():
    def journal(peer, *lines):
        return [made_line("run", peer, n=3, host=(peer,)), *lines]

    both = [journal(0, stall(0, 2, 9.0)), journal(1, stall(1, 2, 7.0))]
    assert of_journals(both) == ([both[0][1]], [still(93.0, 100.0, (2,))])
    assert of_journals(both[:1]) == ([both[0][1]], []), "peer 1 may have waited or not"


@pytest.fixture
def berlin(monkeypatch):
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_stand_still_in_words_has_its_local_times(berlin):
    one = still(1_800_000_000.0, 1_800_000_035.0, (2,), iteration=512)
    told = "(35 s), waiting for peer 2 (south), which was slow, after 512 iterations"
    assert stood_still(one, NAMES) == f"all stood still from 09:00:00 to 09:00:35 {told}"
    dated = "from 2027-01-15 09:00:00 CET to 2027-01-15 09:00:35 CET"
    assert stood_still(one, NAMES, dated=True) == f"all stood still {dated} {told}"
    assert "for peer 1 (east) and peer 2 (south), which were silent" in stood_still(
        still(0.0, 9.0, (1, 2), silent=True), NAMES
    )
