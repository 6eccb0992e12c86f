"""The lines of a site's own log: scores, and whom the site waits for, by name and with the reason."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from p2pft_flower.host.long_waits import Awaited, LongWaits
from p2pft_flower.host.meeting import Meeting
from p2pft_flower.host.pauses import Pause, Pauses
from p2pft_flower.host.publisher import Publisher
from p2pft_flower.host.site_log import SiteLog
from p2pft_flower.host.waits_heard import chain_of
from p2pft_flower.transport import Pulse, Standing
from tests.journals import made_line

from .hosts import ALONE, RING
from .quadratic import plans


@pytest.fixture
def site(tmp_path):
    """The log of peer 0 ("north"), whose neighbour is peer 3 ("south"); a peer is lost after 20 s."""
    plan = plans(RING, ALONE, {}, tmp_path, **{"peer-timeout": 20.0})[0]
    lines: list[str] = []
    named = replace(plan, names={0: "north", 3: "south"})
    return _Site(named, lines.append), lines


class _Site(SiteLog):
    """A site's log, and what finds the waits that it tells of."""

    def __init__(self, plan, write):
        super().__init__(plan, lambda level, line: write(line))
        self._waits = LongWaits()

    def look(self, whom, now, rate):
        self.waits(self._waits.look(whom, now, rate))


def awaited(spoken=1.0, chain=()):
    return Awaited(3, 100.0, spoken, chain)


def test_an_evaluation_is_a_line_with_the_peer_by_name_and_the_time_left(site):
    log, lines = site
    line = made_line(
        "evaluation", iteration=10, loss=0.5, accuracy=0.75, accuracy_unseen=0.25, bytes_sent=2000
    )
    iterations = log._plan.iterations
    log.evaluated(line, rate=2.0)
    assert lines == [
        f"peer 0 (north): iteration 10/{iterations} | loss 0.500 | accuracy 0.750 | accuracy unseen 0.250 | "
        f"sent 2.0 kB | {(iterations - 10) / 2:.0f} s left"
    ]


def test_a_peer_without_test_images_has_a_line_without_scores(site):
    log, lines = site
    log.evaluated(made_line("evaluation", iteration=0, loss=None, accuracy=float("nan")), rate=0.0)
    assert "loss" not in lines[0]
    assert "accuracy" not in lines[0]
    assert "left" not in lines[0]


def test_waiting_is_told_once_it_takes_ten_times_the_usual_and_again_when_it_has_doubled(site):
    log, lines = site
    for now in range(101, 131):  # an iteration takes 1 s
        log.look(awaited(), now, rate=1.0)
    assert [line.split("; ")[0] for line in lines] == [
        "peer 0 (north): has waited 10 s for peer 3 (south)",
        "peer 0 (north): has waited 20 s for peer 3 (south)",
    ]
    assert lines[0].endswith("it last spoke 1 s ago: slow, not lost")


def test_short_waits_are_not_told_however_short_iterations_are(site):
    log, lines = site
    log.look(awaited(), 104.0, rate=1000.0)
    log.look(awaited(), 104.9, rate=1000.0)
    assert lines == []
    log.look(awaited(), 105.0, rate=1000.0)
    assert len(lines) == 1


def test_it_is_told_when_the_waiting_is_over(site):
    log, lines = site
    for now in (111.0, 112.0):
        log.look(awaited(), now, rate=1.0)
    log.look(None, 114.0, rate=1.0)
    log.look(None, 115.0, rate=1.0)
    assert lines[1:] == ["peer 0 (north): waits no longer for peer 3 (south), after 14 s"]


@pytest.mark.parametrize(
    ("spoken", "chain", "reason"),
    [
        (None, (), "it has not spoken yet"),
        (15.0, (), "silent for 15 s, and after 20 s it is lost (peer-timeout)"),
        (6.0, (0,), "silent for 6 s, and after 20 s it is lost (peer-timeout)"),
        (1.0, (0,), "it last spoke 1 s ago, and waits itself for peer 0 (north)"),
        (1.0, (2, 1, 0), "1 s ago, and waits itself for peer 2, and so in the end for peer 0 (north)"),
    ],
)
def test_the_reason_says_what_is_known_of_the_peer(site, spoken, chain, reason):
    log, lines = site
    for now in (149.0, 150.0):
        log.look(awaited(spoken, chain), now, rate=1.0)
    assert lines[0].endswith(reason)


def test_a_site_that_was_suspended_itself_does_not_blame_its_neighbour(site):
    log, lines = site
    log.look(awaited(), 101.0, rate=1.0)
    log.look(awaited(), 131.0, rate=1.0)  # its own process stood still
    log.look(None, 132.0, rate=1.0)
    assert lines == []


def test_the_chain_of_those_who_wait_ends_with_who_waits_for_nobody_or_for_one_of_them():
    def chain(first, waits, usual=()):
        heard = {p: SimpleNamespace(standing=Standing(awaited=q, busy=9.0)) for p, q in waits.items()}
        heard |= {p: SimpleNamespace(standing=Standing(awaited=1, busy=0.1)) for p in usual}
        heard[9] = SimpleNamespace(standing=Standing())
        return chain_of(first, heard, {p: p for p in range(10)}, {0})

    assert chain(3, {3: 2, 2: 9}) == (2, 9)
    assert chain(9, {}) == ()
    assert chain(3, {3: 2, 2: 1}) == (2, 1)  # nothing was heard of peer 1
    assert chain(3, {3: 2, 2: 1, 1: 3}) == (2, 1)
    assert chain(3, {3: 2, 2: 0}) == (2,)  # that is who asks
    assert chain(3, {3: 2}, usual=[2]) == (2,)  # it waited a moment when it spoke last, and may be gone


def test_a_wait_that_is_over_is_kept_with_whom_it_was_for_and_whether_that_one_spoke(tmp_path):
    """In the journal of the host's first peer, and in the bulletin."""
    written, kept, told = [], [], SimpleNamespace(activity=Pulse.WAITING, view=0, iteration=7, busy=0.0)
    plan = plans(RING, ALONE, {}, tmp_path)[0]
    now = SimpleNamespace(awaited=(3, 0.0), spoken=1.0)
    heartbeats = SimpleNamespace(spoken=lambda peer: now.spoken)
    wires = SimpleNamespace(heartbeats=heartbeats, links=SimpleNamespace(carried=dict), agreement=None)
    site = Publisher(
        plan,
        SimpleNamespace(read=lambda: told),
        SimpleNamespace(heard=lambda: {3: SimpleNamespace(standing=Standing(awaited=2, busy=9.0))}, stand=id),
        wires=lambda: SimpleNamespace(**vars(wires), awaited=now.awaited),
        views=list,
        report=id,
        stalled=written.append,
        tells=False,
        meeting=Meeting(1.0),
    )
    rates = []
    site._report = lambda standing: rates.append(standing.rate)
    site._bulletin = SimpleNamespace(write=lambda *about: kept.append(tuple(about[3])))
    clock = pytest.MonkeyPatch()
    with clock.context() as patch:
        for moment, now.awaited in [
            (1.0, (3, 0.0)),
            (4.0, (3, 0.0)),
            (8.0, (3, 0.0)),
            (9.0, (2, 8.5)),
            (9.5, None),
        ]:
            patch.setattr("p2pft_flower.host.publisher.time.monotonic", lambda m=moment: m)
            told.iteration = 7 if moment < 9 else 9
            site._stand()
    (stall,) = written
    assert (stall.peer, stall.awaited, stall.last, stall.silent) == (0, 3, 2, False)
    assert (stall.iteration, stall.seconds) == (7, 9.0)
    assert rates[2] == 0.0, "while all stand still nothing is done"
    assert rates[4] == 0.0, "and that time is no part of the rate afterwards"
    assert list(site._stalls) == [stall]


@pytest.mark.parametrize(
    ("passed", "in_all", "pause"),
    [
        (1.0, 1.0, None),
        (5.9, 5.9, None),
        (21.0, 21.0, (20.0, 0.0)),  # SIGSTOP: the clock goes on
        (1.0, 3601.0, (3600.0, 3600.0)),  # the machine slept: its monotonic clock stood still
    ],
)
def test_a_sleep_of_a_second_that_took_long_is_a_pause_of_this_process(passed, in_all, pause):
    clock, always = iter([100.0, 100.0 + passed]), iter([500.0, 500.0 + in_all])
    pauses = Pauses(lambda: next(clock), lambda: next(always))
    pauses.begin()
    assert pauses.end(1.0) == pause


def test_a_site_that_was_suspended_says_so_in_its_own_log(site):
    log, lines = site
    clock = [time.strftime("%H:%M:%S", time.localtime(t)) for t in (1e9 - 20, 1e9)]
    log.paused(Pause(20.0, 0.0), 1e9)
    log.paused(Pause(20.0, 19.0), 1e9)
    begins = f"peer 0 (north): this process did not run for 20 s, from {clock[0]} to {clock[1]}: "
    assert [line.removeprefix(begins)[:22] for line in lines] == [
        "it was suspended, or h",
        "its machine was suspen",
    ]


def test_a_publisher_that_wakes_late_tells_its_site_log(tmp_path):
    plan = plans(RING, ALONE, {}, tmp_path)[0]
    site = Publisher(
        plan,
        SimpleNamespace(),
        SimpleNamespace(heard=dict),
        wires=lambda: None,
        views=list,
        report=id,
        stalled=id,
        tells=True,
        meeting=Meeting(1.0),
    )
    site._stand = lambda: None
    told, clock, ends = [], iter([0.0, 1.0, 1.0, 22.0, 22.0]), iter([False, False, True])
    site._pauses = Pauses(lambda: next(clock), lambda: 0.0)
    site._log = SimpleNamespace(paused=lambda pause, now: told.append(pause.seconds))
    site._closed = SimpleNamespace(wait=lambda seconds: next(ends))
    site._rate.note(0.0, 0, 100)
    site._rate.note(2.0, 0, 120)
    assert site._rate.value == 10.0
    site._run()
    assert told == [20.0]
    assert site._rate.value == 0.0, "the time in which it did not run is no part of its rate"
