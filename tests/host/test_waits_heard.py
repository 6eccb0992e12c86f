"""Each process learns of the others' long waits from their standings, the coordinator from these alone."""

from __future__ import annotations

import pytest

from p2pft_flower.host.standings import Heard
from p2pft_flower.host.waits_heard import WaitsHeard
from p2pft_flower.transport import Standing

HOSTS = {p: (p,) for p in range(4)}


def training(iteration=400):
    return Standing(state=Standing.COMPUTING, iteration=iteration, rate=2.0)


def waiting(awaited, busy, iteration=400, rate=2.0):
    return Standing(state=Standing.WAITING, iteration=iteration, rate=rate, awaited=awaited, busy=busy)


def told(waits):
    return [(s.peer, s.awaited, s.last, s.silent, s.iteration, round(s.seconds)) for s in waits.over]


class Look:
    """Looks once a second, at standings that are new each time if they came less than a second ago."""

    def __init__(self, own=()):
        self.waits, self.now = WaitsHeard(HOSTS, own), 1000.0

    def at(self, standings, since=0.5):
        ages = {m: since if not isinstance(since, dict) else since[m] for m in standings}
        for m, standing in standings.items():
            standing.version = int(self.now - ages[m])
        self.waits.look({m: Heard(s, None, ages[m]) for m, s in standings.items()}, self.now)
        self.now += 1.0


def test_a_wait_that_is_over_is_told_with_its_length_and_the_last_of_the_chain():
    look = Look()
    look.at({p: training() for p in range(4)})
    for second in range(1, 19):
        # Peer 0 waits for 3, 1 for 0, 2 for 1: news of different ages, so that beginnings seem to move.
        age = {0: 0.2, 1: 0.9 if second % 2 else 0.1, 2: 0.5, 3: 0.5}
        look.at({0: waiting(3, second), 1: waiting(0, second), 2: waiting(1, second), 3: training()}, age)
    assert told(look.waits) == [], "it lasts"
    look.at({p: training(401) for p in range(4)})
    assert [t[:5] for t in told(look.waits)] == [
        (0, 3, 3, False, 400),
        (1, 0, 3, False, 400),
        (2, 1, 3, False, 400),
    ]
    assert all(abs(t[5] - 19) <= 1 for t in told(look.waits))


def test_who_is_waited_for_and_says_nothing_meanwhile_was_silent():
    look = Look()
    look.at({0: training(), 3: training()})
    for second in range(1, 12):
        look.at({0: waiting(3, second), 3: training()}, {0: 0.5, 3: 0.5 + second})
    look.at({0: training(), 3: training()})
    assert [t[:4] for t in told(look.waits)] == [(0, 3, 3, True)]


@pytest.mark.parametrize(("seconds", "rate"), [(4, 2.0), (30, 0.25)], ids=["short", "usual"])
def test_a_wait_that_is_short_or_usual_is_not_told(seconds, rate):
    look = Look()
    look.at({0: training()})
    for second in range(1, seconds + 1):
        look.at({0: waiting(3, second, rate=rate)})
    look.at({0: training()})
    assert told(look.waits) == []


def test_one_wait_after_another_for_the_same_peer_is_two():
    look = Look()
    look.at({0: training()})
    for busy in (*range(1, 9), *range(1, 9)):
        look.at({0: waiting(3, busy)})
    look.at({0: training()})
    assert len(told(look.waits)) == 2
    assert all(8 <= t[5] <= 10 for t in told(look.waits))


def test_news_that_come_late_neither_divide_a_wait_nor_hide_who_was_silent():
    """The coordinator's looks take seconds while one of the peers that it looks at does not answer."""
    look = Look()
    look.at({0: training(), 1: training(), 3: training()})
    for busy, came in ((0.5, 0.5), (1.5, 0.5), (2.5, 3.5), (9.0, 0.5), (10.0, 0.5)):
        look.now += came
        wait = {0: waiting(1, busy), 1: waiting(3, busy), 3: training()}
        look.at(wait, {0: 0.2, 1: 0.4, 3: busy})
    look.at({0: training(), 1: training(), 3: training()})
    assert [t[:4] for t in told(look.waits)] == [(0, 1, 3, False), (1, 3, 3, True)]


def test_a_suspended_peer_that_wakes_has_not_waited_itself_and_the_others_waited_for_it_alone():
    look = Look()
    everybody = {0: training(), 1: training(), 2: training(), 3: training()}
    look.at(everybody)
    for second in range(1, 12):
        wait = {0: waiting(1, second), 1: waiting(2, second), 3: waiting(2, second), 2: waiting(1, 0.3)}
        look.at(wait, {0: 0.5, 1: 0.5, 3: 0.5, 2: 0.5 + second})
    for second in (12, 13):  # its clock went on
        wait = {0: waiting(1, second), 1: waiting(2, second), 3: waiting(2, second), 2: waiting(1, second)}
        look.at(wait)
    look.at({p: training(401) for p in range(4)})
    assert sorted(t[:4] for t in told(look.waits)) == [(0, 1, 2, False), (1, 2, 2, True), (3, 2, 2, True)]


def test_what_a_standing_says_holds_for_its_own_time_and_not_until_the_next_one_comes():
    look = Look()
    look.at({0: training()})
    look.at({0: waiting(3, 0.4)})
    for second in range(1, 7):
        look.at({0: waiting(3, 0.4)}, since=0.5 + second)
    look.at({0: training(401)})
    assert told(look.waits) == []


def test_of_a_peer_that_has_gone_while_it_waited_nothing_is_made_up():
    look = Look()
    look.at({0: training()})
    for second in range(1, 9):
        look.at({0: waiting(3, second)})
    for second in range(1, 40):
        look.at({0: waiting(3, 8)}, since=0.5 + second)
    look.at({0: training(410)})
    assert told(look.waits) == []


def test_a_process_does_not_tell_its_own_waits_twice():
    look = Look(own=(0,))
    look.at({0: training(), 1: training()})
    for second in range(1, 9):
        look.at({0: waiting(3, second), 1: waiting(3, second)})
    look.at({0: training(), 1: training()})
    assert [t[0] for t in told(look.waits)] == [1]
