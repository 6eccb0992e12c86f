"""A host that asks to be let in learns that the run is over where nobody is left."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from p2pft_flower.host import lookout
from p2pft_flower.host.agreement import LostContactError
from p2pft_flower.host.lookout import Lookout
from p2pft_flower.transport import Loss

GONE = (Loss.CRASHED, "nothing listens at it any more (Connection refused)")
TAKES = (Loss.SILENT, "it takes connections, and says nothing")
AWAY = (Loss.CUT_OFF, "it cannot be reached (no route)")


@pytest.fixture
def watched(monkeypatch):
    """Return a lookout over members 0 and 1 whose tries end at once, and its clock."""

    def make(found, elsewhere=lambda _: False):
        def begin(address, attempt, no_tls):
            done = Future()
            done.set_result(found[address])
            return done

        monkeypatch.setattr(lookout, "begin_attempt", begin)
        now = [0.0]
        made = Lookout({0: "a:1", 1: "b:1"}, 120.0, elsewhere=elsewhere, clock=lambda: now[0])

        def wait(seconds, alone=60.0):
            for _ in range(seconds):
                now[0] += 1
                made.raise_if_over(alone)

        return wait

    return make


def test_where_nothing_listens_any_more_the_run_is_over_after_ten_seconds(watched):
    wait = watched({"a:1": GONE, "b:1": GONE})
    wait(10)
    with pytest.raises(
        LostContactError, match=r"the run is over.*peer 0: nothing listens.*; peer 1: nothing"
    ):
        wait(8)


@pytest.mark.parametrize("other", [TAKES, AWAY])
def test_one_peer_that_may_be_there_is_reason_to_ask_on_and_is_named_once(watched, other, caplog):
    watched({"a:1": GONE, "b:1": other})(100)
    (told,) = caplog.messages
    assert told.startswith("no peer of the run has answered yet: peer 0: nothing listens")
    assert other[1] in told


def test_a_peer_of_another_run_at_that_address_is_not_waited_for(watched):
    wait = watched({"a:1": GONE, "b:1": TAKES}, elsewhere=lambda member: member == 1)
    with pytest.raises(LostContactError, match=r"peer 1: b:1 is of another run by now"):
        wait(20)


def test_a_word_from_anybody_ends_the_search(watched):
    watched({"a:1": GONE, "b:1": GONE})(100, alone=0.5)
