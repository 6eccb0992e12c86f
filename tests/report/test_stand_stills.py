"""Of all peers' long waits, those remain that say whom the run stood still for."""

from __future__ import annotations

from p2pft_flower.report.stand_stills import longest, sentence
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
