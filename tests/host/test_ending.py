"""How hosts end: one table of what follows from what, and one rule on whom it hurts."""

from __future__ import annotations

import itertools
import threading

import pytest

from p2pft_flower.errors import Cause, ConfigError, cause_of
from p2pft_flower.host.agreement import LostContactError
from p2pft_flower.host.ending import (
    TABLE,
    Act,
    DepartedError,
    End,
    Ending,
    Event,
    News,
    State,
    TooFewPeersError,
    others_go_on,
)
from p2pft_flower.host.exchange import DivergedError
from p2pft_flower.host.peer_errors import PeerFailedError
from p2pft_flower.keeping.checkpoints import CheckpointError
from p2pft_flower.keeping.journal import JournalError
from p2pft_flower.transport import (
    EdgeBrokenError,
    ExchangeRefusedError,
    ExchangeStoppedError,
    ExchangeTimeoutError,
    Loss,
    PeerLostError,
    PeerUnreachableError,
)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (PeerFailedError(2, 5, "its gradient failed", ValueError("no more images")), Cause.OWN),
        (CheckpointError(2, "no space is left"), Cause.OWN),
        (JournalError(2, "peer-2.jsonl", OSError("no space is left")), Cause.OWN),
        (DepartedError("peers [2] leave the run"), Cause.OWN),
        (DivergedError.not_finite(2, "iteration 5", "gradient"), Cause.RUN),
        (TooFewPeersError("only two are left"), Cause.RUN),
        (ConfigError("learning-rate = 0"), Cause.RUN),
        (ExchangeRefusedError("another digest"), Cause.RUN),
        (ValueError("nobody has foreseen it"), Cause.RUN),
        (KeyboardInterrupt(), Cause.RUN),
        (LostContactError("nobody has let it in"), Cause.LOST),
        (ExchangeTimeoutError("nothing came"), Cause.LOST),
        (PeerUnreachableError("no connection"), Cause.LOST),
        (PeerLostError("silent", lost=3, how=Loss.SILENT), Cause.LOST),
        (EdgeBrokenError("nothing gets through"), Cause.LOST),
        (ExchangeStoppedError("the operator said so"), Cause.STOPPED),
        (News(2, 5, "no more images", Cause.OWN).error, Cause.HEARSAY),
        (News(2, 5, "diverged", Cause.RUN).error, Cause.HEARSAY),
        (News(2, 5, "peer 3 is lost", Cause.LOST).error, Cause.HEARSAY),
        (News(2, 5, "peer 3 stopped", Cause.HEARSAY).error, Cause.HEARSAY),
        (News(2, 5, "p2pft stop", Cause.STOPPED).error, Cause.STOPPED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.name,
)
def test_each_error_says_whose_affair_it_is(error, cause):
    assert cause_of(error) is cause


# views change, training has begun, joins: the causes for which the others go on
HURT = {
    (False, False, False): set(),
    (False, True, False): set(),
    (True, False, False): set(),  # nobody has trained yet: all are needed
    (True, False, True): set(Cause),  # nobody counts on it yet
    (True, True, False): {Cause.OWN, Cause.LOST},
    (True, True, True): {Cause.OWN, Cause.LOST},
}


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("case", HURT)
def test_one_rule_says_who_is_hurt_by_what(case, cause):
    views_change, begun, joining = case
    goes_on = others_go_on(cause, views_change=views_change, begun=begun, joining=joining)
    assert goes_on is (cause in HURT[case])


# state, event: the state that follows, and what is done, "|" before what a thread of its own does
STORY = """
    running stop   stopped wake | note pass_on
    running leave  leaving depart wake note |
    running lose   leaving depart wake note save |
    running fail   leaving depart note save |
    running ruin   stopped wake note save | pass_on
    stopped stop   stopped |
    stopped leave  stopped |
    stopped lose   stopped |
    stopped fail   stopped note save |
    stopped ruin   stopped note save |
    leaving stop   stopped wake | pass_on
    leaving leave  leaving |
    leaving lose   leaving |
    leaving fail   leaving note save |
    leaving ruin   leaving note save |
"""
CASES = [line.split() for line in STORY.strip().splitlines()]


class Acts:
    """Notes what is done, and in which thread."""

    def __init__(self, way=True):
        self.done, self.way = [], way
        self.hold = {}

    def ending(self):
        return Ending({act: self.note(act) for act in Act})

    def note(self, act):
        def do(end):
            if act in self.hold:
                assert self.hold[act].wait(60)
            self.done.append((act.name.lower(), threading.current_thread().name, end))
            return self.way if act is Act.PASS_ON else None

        return do

    def names(self, apart):
        return [name for name, thread, _ in self.done if (thread == "p2pft-stop") is apart]


def end(text="no more images", cause=Cause.OWN):
    return End.by(News(2, 5, text, cause))


REACHED = {State.RUNNING: None, State.STOPPED: Event.STOP, State.LEAVING: Event.LEAVE}


def test_the_table_has_each_case():
    assert set(TABLE) == set(itertools.product(State, Event))
    assert [(c[0], c[1]) for c in CASES] == [(s.value, e.value) for s, e in itertools.product(State, Event)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_what_follows_from_each_event_in_each_state(case):
    state, event, after, *doing = case
    acts = Acts()
    ending = acts.ending()
    first, second = end("the first"), end("the second")
    if (before := REACHED[State(state)]) is not None:
        assert ending.take(before, first)
        ending.wait()
    acts.done.clear()
    assert ending.take(Event(event), second) is (before is None)
    ending.wait()
    bar = doing.index("|")
    assert acts.names(apart=False) == doing[:bar]
    assert acts.names(apart=True) == doing[bar + 1 :]
    assert all(given is second for _, _, given in acts.done)
    assert ending._state is State(after)
    with pytest.raises(ExchangeStoppedError, match="the second" if before is None else "the first"):
        ending.raise_if_ending()


def test_nothing_is_raised_before_something_ends_the_host_nor_sooner_than_asked_for():
    ending = Acts().ending()
    ending.raise_if_ending()
    ending.take(Event.STOP, end())
    ending.raise_if_ending(longer_than=3600.0)
    ending.wait()


def test_what_had_no_way_to_the_neighbours_is_passed_on_when_there_is_one():
    acts = Acts(way=False)
    ending = acts.ending()
    ending.take(Event.STOP, end())
    ending.wait()  # there is none yet
    acts.way = True
    acts.done.clear()
    ending.wait()
    ending.wait()  # and then no more
    assert [name for name, *_ in acts.done] == ["pass_on"]


@pytest.mark.parametrize(("event", "act"), [(Event.STOP, Act.PASS_ON), (Event.LEAVE, Act.DEPART)])
def test_who_waits_for_the_end_waits_for_what_other_threads_do_about_it(event, act):
    acts = Acts()
    release = acts.hold[act] = threading.Event()
    ending = acts.ending()
    other = threading.Thread(target=ending.take, args=(event, end()))
    other.start()
    waited = threading.Thread(target=ending.wait)
    while ending._state is State.RUNNING:
        threading.Event().wait(0.001)
    waited.start()
    waited.join(0.2)
    assert waited.is_alive()
    release.set()
    waited.join(60)
    other.join(60)
    assert not waited.is_alive()
    assert act.name.lower() in [name for name, *_ in acts.done]
    assert "p2pft-stop" not in [t.name for t in threading.enumerate()]


def test_of_two_that_end_a_host_at_once_exactly_one_comes_first():
    for _ in range(50):
        ending, first, go = Acts().ending(), [], threading.Barrier(2)

        def take(event, ending=ending, first=first, go=go):
            go.wait(60)
            if ending.take(event, end(event.value)):
                first.append(event)

        threads = [threading.Thread(target=take, args=(e,)) for e in (Event.LEAVE, Event.STOP)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        ending.wait()
        (event,) = first
        with pytest.raises(ExchangeStoppedError, match=event.value):
            ending.raise_if_ending()
        assert ending._state is State.STOPPED  # whoever came first: the news is passed on


def test_what_fails_while_a_host_ends_keeps_nothing_else_from_being_done():
    done = []

    def depart(end):
        raise OSError("no way")

    acts = {
        Act.DEPART: depart,
        Act.WAKE: lambda end: done.append("woken"),
        Act.NOTE: lambda end: done.append("noted"),
    }
    departed = DepartedError("peers [2] leave the run")
    ending = Ending(acts)
    with pytest.raises(OSError, match="no way"):
        ending.take(Event.LEAVE, End(departed, departed))
    assert done == ["woken", "noted"]
    ending.wait()  # nothing is under way any more
