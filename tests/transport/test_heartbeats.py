"""Telling slow from dead: the rule with a clock that the test turns, and heartbeats over real sockets."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from concurrent.futures import Future

import pytest

from p2pft_flower.transport import (
    ExchangeTimeoutError,
    Gossip,
    Heartbeats,
    Links,
    Loss,
    Mailbox,
    OwnPulse,
    PeerLostError,
    Pulse,
    Terms,
    unix_address,
)
from p2pft_flower.transport.wire.p2pft_pb2 import Signed
from tests.transport.beating import Beating
from tests.transport.federation import Federation
from tests.transport.test_processes import process
from tests.transport.wire import PATIENCE

TERMS = Terms("run", 8)
SILENCE, HANG = 8.0, 100.0
COMPUTING, WAITING, EVALUATING = Pulse.COMPUTING, Pulse.WAITING, Pulse.EVALUATING


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def end_attempts():
    for thread in threading.enumerate():
        if thread.name == "p2pft-knock":
            thread.join(PATIENCE)


class Bench:
    """Heartbeats of peer 0, which sends to 1 and hears from 2, without a thread: the test turns the clock."""

    def __init__(self, hang: float = HANG, attempt=None, **more) -> None:
        self.clock, self.knocked, self.loss, self.heard = Clock(), [], Loss.CRASHED, []
        addresses = {i: f"127.0.0.1:{i}" for i in range(4)}
        self.links = Links(TERMS, addresses, [(0, 1)], [(2, 0)])
        self.beats = Heartbeats(
            self.links,
            SILENCE,
            hang,
            pulse=Pulse,
            tell=lambda _: Gossip(),
            hear=self.heard.append,
            clock=self.clock,
            attempt=attempt or self._attempt,
            **more,
        )
        for remote in (1, 2):  # known from now on
            assert self.beats.absence(remote) is None

    def absence(self, remote: int):
        """Ask whether a peer is lost, and once more when the connection attempt has had its answer."""
        self.beats.absence(remote)
        end_attempts()
        return self.beats.absence(remote)

    def _attempt(self, address):
        self.knocked.append(address)
        return self.loss, "the system's words"

    def wait(self, seconds: float) -> None:
        """Let time pass in which this host runs."""
        while seconds > 0:
            step = min(seconds, SILENCE / 4)
            self.clock.now += step
            seconds -= step
            self.beats.absence(1)

    def say(self, sender: int = 1, activity=WAITING, **pulse) -> None:
        self.beats.answer(Gossip(sender=sender, pulse=Pulse(activity=activity, **pulse)))

    def say_for(self, seconds: float, **pulse) -> None:
        """Have peer 1 send the same pulse every 2 s."""
        for _ in range(int(seconds // 2)):
            self.wait(2.0)
            self.say(**pulse)


@pytest.fixture
def bench():
    bench = Bench()
    with bench.links:
        yield bench


# Hosts of several peers


def test_what_is_heard_of_one_peer_of_a_host_is_heard_of_all_and_one_gossip_is_enough(monkeypatch):
    bench, told = Bench(host_of={1: 1, 2: 1}.get), []
    monkeypatch.setattr(bench.links, "start_gossip", lambda remote, *_: told.append(remote) or Future())
    with bench.links:
        bench.beats.beat()
        assert told == [1]
        bench.wait(SILENCE - 1)
        bench.say(sender=2, iteration=4)
        bench.wait(2)
        assert bench.absence(1) is None
        assert bench.absence(2) is None
        assert bench.beats.pulse_of(1).iteration == 4
        assert bench.beats.speaks(1)
        bench.wait(SILENCE)
        assert {bench.absence(remote).lost for remote in (1, 2)} == {1, 2}


# Silence


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (
            Loss.CRASHED,
            r"lost \(crashed\): nothing listens at 127\.0\.0\.1:1 any more \(the system's words\)",
        ),
        (Loss.SILENT, r"lost \(silent\): its process is stopped or hangs as a whole: 127\.0\.0\.1:1 takes"),
        (Loss.CUT_OFF, r"lost \(cut off\): 127\.0\.0\.1:1 cannot be reached"),
    ],
)
def test_a_peer_is_lost_after_a_silence_and_a_connection_attempt_says_how(bench, loss, says):
    bench.loss = loss
    bench.say(iteration=17)
    bench.wait(SILENCE - 0.1)
    assert bench.absence(1) is None
    assert bench.knocked == []
    bench.wait(0.2)
    lost = bench.absence(1)
    assert isinstance(lost, PeerLostError)
    assert (lost.lost, lost.how, lost.peer, lost.edge, lost.deadline) == (1, loss, 0, (0, 1), SILENCE)
    with pytest.raises(PeerLostError, match=says):
        raise lost
    assert lost.reason == str(lost).partition(" is lost (")[2].replace("): ", ": ", 1)
    assert lost.reason.endswith(f"; nothing was heard from it for {SILENCE:.0f} s"), "and no more"


def test_a_connection_is_tried_once_a_silence(bench):
    bench.wait(3 * SILENCE)
    assert [bench.absence(1).how for _ in range(3)] == [Loss.CRASHED] * 3
    assert bench.knocked == ["127.0.0.1:1"]
    bench.say()
    assert bench.absence(1) is None
    bench.loss = Loss.CUT_OFF
    bench.wait(SILENCE)
    assert bench.absence(1).how is Loss.CUT_OFF


def test_a_payload_counts_as_a_word(bench):
    bench.wait(SILENCE / 2)
    bench.beats.heard(1)
    bench.wait(SILENCE / 2)
    assert bench.absence(1) is None
    assert bench.absence(2).edge == (2, 0)


def test_a_peer_that_speaks_while_its_address_is_tried_is_not_lost():
    bench = Bench(attempt=lambda _: (bench.say(), (Loss.CRASHED, ""))[1])
    with bench.links:
        bench.wait(SILENCE - 1)
        bench.clock.now += 1
        assert bench.absence(1) is None


def test_silent_peers_are_tried_at_the_same_time_and_nobody_waits_for_the_answers():
    both, answer = threading.Barrier(3), threading.Event()

    def attempt(address):
        both.wait(PATIENCE)  # neither attempt ends before the other has begun
        assert answer.wait(PATIENCE)
        return Loss.CUT_OFF, f"no way to {address}"

    bench = Bench(attempt=attempt)
    with bench.links:
        bench.clock.now += SILENCE / 2
        assert bench.beats.absence(1) is None
        bench.clock.now += SILENCE / 2
        assert [bench.beats.absence(p) for p in (1, 2, 1, 2)] == [None] * 4
        both.wait(PATIENCE)
        assert bench.beats.absence(1) is None
        answer.set()
        assert [bench.absence(p).how for p in (1, 2)] == [Loss.CUT_OFF] * 2


def test_what_goes_wrong_in_a_connection_attempt_is_told_of_where_somebody_asks():
    bench = Bench(attempt=lambda address: 1 / 0)
    with bench.links:
        bench.clock.now += SILENCE / 2
        bench.beats.absence(1)
        bench.clock.now += SILENCE / 2
        with pytest.raises(ZeroDivisionError):
            bench.absence(1)


def test_a_host_that_was_suspended_itself_grants_everybody_a_fresh_silence(bench):
    bench.say()
    bench.clock.now += 100 * SILENCE  # nothing of this host ran meanwhile
    assert bench.absence(1) is None
    bench.wait(SILENCE - 0.1)
    assert bench.absence(1) is None
    bench.wait(0.2)
    assert bench.absence(1).how is Loss.CRASHED


def test_a_host_that_was_suspended_does_not_take_the_others_for_hanging(bench):
    bench.say(activity=COMPUTING, progress=1, slowest=0.1)
    bench.clock.now += 100 * SILENCE
    bench.say(activity=COMPUTING, progress=1, slowest=0.1)
    assert bench.absence(1) is None


def test_who_is_no_neighbour_is_not_judged(bench):
    bench.wait(2 * SILENCE)
    assert bench.absence(3) is None


def test_a_new_view_is_followed_and_its_new_neighbours_begin_with_a_fresh_silence(bench):
    bench.wait(2 * SILENCE)
    bench.links.install(Terms("run", 8, view=1), [(0, 3)], [(2, 0)])
    assert bench.absence(3) is None
    assert bench.absence(2).how is Loss.CRASHED
    assert bench.absence(1) is None  # no neighbour any more


# Hanging


@pytest.mark.parametrize("activity", [COMPUTING, EVALUATING])
def test_a_peer_that_gets_no_further_for_20_times_its_longest_stretch_hangs(bench, activity):
    bench.say(activity=activity, progress=5, slowest=2.0, iteration=17, busy=1.0)
    bench.say_for(40, activity=activity, progress=5, slowest=2.0, iteration=17, busy=41.0)
    assert bench.absence(1) is None
    bench.say_for(2, activity=activity, progress=5, slowest=2.0, iteration=17, busy=43.0)
    lost = bench.absence(1)
    assert (lost.lost, lost.how, lost.deadline) == (1, Loss.HANGING, 40.0)
    for part in ("hangs in its own computation", "since 43 s", "for 42 s", "2 s at most", "17 iterations"):
        assert part in str(lost)
    assert bench.knocked == []
    bench.say(activity=activity, progress=6, slowest=44.0, iteration=18)
    assert bench.absence(1) is None


@pytest.mark.parametrize(("slowest", "limit"), [(0.001, SILENCE), (0.0, HANG), (1.0, 20.0), (50.0, HANG)])
def test_the_limit_of_a_stretch_is_bounded_and_before_the_first_there_is_time(bench, slowest, limit):
    pulse = {"activity": COMPUTING, "progress": 1, "slowest": slowest}
    bench.say(**pulse)
    bench.say_for(limit, **pulse)
    assert bench.absence(1) is None
    bench.say_for(2, **pulse)
    assert bench.absence(1).deadline == limit


def test_a_hang_timeout_below_the_silence_counts_as_the_silence():
    bench = Bench(hang=1.0)
    with bench.links:
        bench.say(activity=COMPUTING)
        bench.say_for(SILENCE, activity=COMPUTING)
        assert bench.absence(1) is None
        bench.say_for(2, activity=COMPUTING)
        assert bench.absence(1).how is Loss.HANGING


@pytest.mark.parametrize("activity", [WAITING, Pulse.PAUSED, Pulse.FINISHED])
def test_a_peer_that_waits_does_not_hang(bench, activity):
    bench.say_for(5 * HANG, activity=activity, progress=1, slowest=0.1)
    assert bench.absence(1) is None


def test_a_peer_that_computes_for_long_and_gets_further_is_alive(bench):
    for progress in range(200):
        bench.say_for(4, activity=COMPUTING, progress=progress, slowest=0.1)
    assert bench.absence(1) is None


def test_what_a_peer_does_while_no_word_comes_through_is_not_held_against_it(bench):
    bench.say(activity=COMPUTING, progress=1, slowest=0.1)
    bench.say_for(6, activity=COMPUTING, progress=1, slowest=0.1)
    bench.wait(SILENCE - 1)  # the link is cut for a while: more than the limit since it was seen to move
    assert bench.absence(1) is None


def test_a_peer_that_was_suspended_in_its_computation_does_not_hang_when_it_wakes(bench):
    pulse = {"activity": COMPUTING, "progress": 1, "slowest": 0.1}
    bench.say(**pulse)
    bench.wait(SILENCE + 3)
    bench.say(**pulse)  # awake again, and no further yet
    assert bench.absence(1) is None
    bench.say_for(SILENCE - 2, **pulse)
    assert bench.absence(1) is None
    bench.say_for(2, **pulse)
    assert bench.absence(1).how is Loss.HANGING


def test_a_peer_that_hangs_is_found_out_however_seldom_its_pulses_come(bench):
    pulse = {"activity": COMPUTING, "progress": 1, "slowest": 0.1}
    bench.say(**pulse)
    beats = 0
    while bench.absence(1) is None and beats < 20:
        bench.wait(SILENCE - 1)  # seldom, but not silent
        bench.say(**pulse)
        beats += 1
    assert beats == SILENCE / bench.beats.interval + 1
    assert bench.absence(1).how is Loss.HANGING


def test_gossip_without_a_pulse_is_a_word_and_says_nothing_of_progress(bench):
    bench.say(activity=COMPUTING, progress=1, slowest=0.1, iteration=4)
    bench.wait(2.0)
    bench.beats.answer(Gossip(sender=1))
    assert bench.beats.pulse_of(1).iteration == 4
    assert bench.beats.pulse_of(2) is None


# This host's own pulse


def test_a_pulse_tells_the_longest_stretch_of_its_activity_and_any_progress():
    clock = Clock()
    own = OwnPulse(clock)
    seen = []

    def pulse():
        seen.append(own.read())
        return seen[-1]

    own.enter(EVALUATING)
    clock.now += 30.0
    assert (pulse().activity, pulse().busy, pulse().slowest) == (EVALUATING, 30.0, 0.0)
    own.enter(COMPUTING)
    clock.now += 2.0
    own.advance()
    clock.now += 3.0
    assert (pulse().slowest, pulse().busy) == (2.0, 5.0)
    own.complete(1, view=4)
    assert (pulse().slowest, pulse().iteration, pulse().view) == (3.0, 1, 4)
    own.enter(EVALUATING)
    assert pulse().slowest == 30.0
    assert [p.progress for p in seen] == sorted(p.progress for p in seen)
    assert len({p.progress for p in seen}) == 4  # to be asked twice is no progress


# Over sockets


@pytest.mark.parametrize("tls", [False, True], ids=["unix", "tls"])
def test_neighbours_hear_of_each_other_in_both_directions_of_one_edge(tmp_path, tls):
    if tls:
        federation = Federation(tmp_path)
        with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
            addresses = {i: f"127.0.0.1:{s.getsockname()[1]}" for i, s in enumerate((a, b))}
        own = [{"credentials": federation[i]} for i in range(2)]
    else:
        addresses = {i: unix_address("run", i, tmp_path) for i in range(2)}
        own = [{}, {}]
    with (
        Beating(0, [(0, 1)], addresses, **own[0]) as zero,
        Beating(1, [(0, 1)], addresses, **own[1]) as one,
    ):
        zero.own.complete(5, view=0)
        zero.beats.start()  # one of them is enough: answers are heard too
        for this, other in ((zero, 1), (one, 0)):
            this.wait_until(
                lambda g, other=other: g.sender == other and g.records[0].record == b"by %d" % other
            )
        assert one.beats.absence(0) is None
        assert zero.beats.absence(1) is None
        assert zero.beats.pulse_of(1).activity == Pulse.PAUSED


def test_news_goes_out_at_once_when_nudged(tmp_path):
    addresses = {i: unix_address("run", i, tmp_path) for i in range(2)}
    with Beating(0, [(0, 1)], addresses) as zero, Beating(1, [(0, 1)], addresses) as one:
        zero.beats.interval = 10 * PATIENCE  # no beat but the first
        zero.beats.start()
        one.wait_until(lambda g: g.sender == 0)
        for version in range(1, 4):
            zero.records = [Signed(record=b"version %d" % version)]
            zero.beats.nudge()
            one.wait_until(lambda g, v=version: g.records[0].record == b"version %d" % v)


def test_whoever_is_flooded_with_gossip_beats_on(tmp_path):
    addresses = {p: unix_address("run", p, tmp_path) for p in (0, 1)}
    with (
        Beating(0, [(0, 1)], addresses, silence=0.8) as flooded,
        Beating(1, [(0, 1)], addresses) as other,
    ):
        flooded.beats._hear = flooded.beats._inbox.put  # which so never empties
        flooded.beats._inbox.put(Gossip(sender=1))
        flooded.beats.start()
        with other.news:
            assert other.news.wait_for(lambda: len(other.heard) > 3, PATIENCE)


def test_a_nudge_says_nothing_to_whom_there_is_nothing_to_tell(tmp_path):
    addresses = {i: unix_address("run", i, tmp_path) for i in range(3)}
    edges = [(0, 1), (0, 2)]
    with (
        Beating(0, edges, addresses) as zero,
        Beating(1, edges, addresses) as one,
        Beating(2, edges, addresses) as two,
    ):
        zero.beats.interval = 10 * PATIENCE  # no beat but the first
        zero.beats.start()
        one.wait_until(lambda g: g.sender == 0)
        two.wait_until(lambda g: g.sender == 0)
        zero.beats._tell = lambda remote: Gossip(records=[Signed(record=b"version 7")] if remote == 2 else [])
        zero.beats.nudge()
        two.wait_until(lambda g: g.records and g.records[0].record == b"version 7")  # told after 1 would be
        assert len(one.heard) == 1
        zero.beats._tell = zero._tell
        zero.beats.nudge()
        one.wait_until(lambda g: g is one.heard[-1] and len(one.heard) == 2)  # and it can still be told


def test_a_neighbour_that_never_answers_does_not_keep_the_others_waiting(tmp_path):
    addresses = {i: unix_address("run", i, tmp_path) for i in range(2)}
    with socket.create_server(("127.0.0.1", 0)) as mute:
        addresses[2] = f"127.0.0.1:{mute.getsockname()[1]}"
        with Beating(0, [(0, 1), (0, 2)], addresses) as zero, Beating(1, [(0, 1)], addresses) as one:
            zero.beats.interval = 0.01
            zero.beats.start()
            with one.news:
                assert one.news.wait_for(lambda: len(one.heard) > 10, PATIENCE)


def test_heartbeats_that_fail_are_told_of_where_somebody_waits(tmp_path, caplog):
    addresses = {i: unix_address("run", i, tmp_path) for i in range(2)}
    with Beating(0, [(0, 1)], addresses) as zero:
        zero.records, failures = "no records", []
        zero.beats._on_failure = failures.append
        zero.beats.start()
        zero.beats._thread.join(PATIENCE)
        with pytest.raises(TypeError):
            zero.beats.absence(1)
    assert "the heartbeats failed: TypeError" in caplog.text
    assert [type(error) for error in failures] == [TypeError]  # which ends the run


@pytest.mark.parametrize(
    ("silence", "interval"), [(120.0, 1.0), (8.0, 1.0), (2.0, 0.25)], ids=["default", "8 s", "2 s"]
)
def test_a_beat_comes_each_second_or_eight_times_a_silence(silence, interval):
    with Links(TERMS, {1: "127.0.0.1:1"}, [(0, 1)]) as links:
        beats = Heartbeats(links, silence, HANG, pulse=Pulse, tell=lambda _: Gossip(), hear=print)
        assert beats.interval == interval


# Processes


def beat_until_told(addresses, pipe):
    with Beating(1, [(0, 1)], addresses) as one:
        one.beats.start()
        pipe.send("beats")
        pipe.recv()


def address_of(wire, tmp_path):
    if wire == "unix":
        return unix_address("run", 1, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("wire", ["unix", "tcp"])
@pytest.mark.parametrize(
    ("blow", "how"), [(signal.SIGKILL, Loss.CRASHED), (signal.SIGSTOP, Loss.SILENT)], ids=["kill", "stop"]
)
def test_a_peer_that_was_killed_and_one_that_was_stopped_are_told_apart(tmp_path, wire, blow, how):
    addresses = {0: unix_address("run", 0, tmp_path), 1: address_of(wire, tmp_path)}
    child, pipe = process(beat_until_told, addresses)
    mailbox = Mailbox(TERMS, [(1, 0)])
    try:
        with Beating(0, [(1, 0)], addresses, silence=1.0) as zero:
            assert pipe.poll(PATIENCE)
            zero.beats.start()
            zero.wait_until(lambda g: g.sender == 1)
            assert zero.beats.absence(1) is None
            os.kill(child.pid, blow)
            if blow == signal.SIGKILL:
                child.join(PATIENCE)  # only then does nothing listen there any more
            with pytest.raises(PeerLostError, match="peer 0, edge 1 -> 0, iteration 0, phase 0") as caught:
                mailbox.take(0, 1, 0, 0, PATIENCE, zero.beats.absence)
            assert (caught.value.lost, caught.value.how) == (1, how)
            if blow == signal.SIGSTOP:
                zero.heard.clear()
                os.kill(child.pid, signal.SIGCONT)
                zero.wait_until(lambda g: g.sender == 1)
                assert zero.beats.absence(1) is None
    finally:
        child.kill()
        child.join(PATIENCE)
        child.close()
        pipe.close()


def be_stopped_and_look(addresses, pipe):
    """Beat, be stopped from outside, and say how long after it was woken it takes peer 0 for lost."""
    with Beating(1, [(0, 1)], addresses, silence=1.0) as one:
        one.beats.start()
        one.wait_until(lambda g: g.sender == 0)
        pipe.send("beats")
        pipe.recv()
        woken = time.monotonic()
        with pytest.raises(PeerLostError):
            Mailbox(TERMS, [(0, 1)]).take(1, 0, 0, 0, PATIENCE, one.beats.absence)
        pipe.send(time.monotonic() - woken)


def test_a_process_that_is_woken_after_a_long_stop_grants_a_fresh_silence(tmp_path):
    addresses = {i: unix_address("run", i, tmp_path) for i in range(2)}
    child, pipe = process(be_stopped_and_look, addresses)
    try:
        with Beating(0, [(0, 1)], addresses):
            assert pipe.poll(PATIENCE)
            assert pipe.recv() == "beats"
            os.kill(child.pid, signal.SIGSTOP)
        # Peer 0 has gone: whoever counts the stop as a silence finds so at once.
        pipe.send("look")  # read as soon as it is woken
        # Time, not a state, is what this is about: longer than the stopped one's silence.
        with pytest.raises(ExchangeTimeoutError):
            Mailbox(TERMS, [(1, 0)]).take(0, 1, 0, 0, 1.5)
        os.kill(child.pid, signal.SIGCONT)
        assert pipe.poll(PATIENCE)
        assert pipe.recv() > 0.5
        child.join(PATIENCE)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join(PATIENCE)
        child.close()
        pipe.close()
    assert multiprocessing.active_children() == []
