"""Peers that are killed and stopped: the others agree on who goes on, and find the survivors' optimum."""

from __future__ import annotations

import signal
import threading

from tests.faults.federation import DEADLINE, Federation
from tests.faults.peer import Orders

HELD = Orders(hold=("gradient 20",))


def test_when_a_peer_is_killed_the_others_go_on_to_their_own_optimum(tmp_path):
    with Federation(tmp_path, orders={3: HELD}) as peers:
        peers.hold(3, "gradient 20")
        peers.kill(3)
        ended = peers.ended()
        survivors = [0, 1, 2, 4, 5]
        assert ended[3].exitcode == -signal.SIGKILL
        peers.check_survivors(survivors, ended)
        peers.check_told(survivors, {3: "crashed"})


def test_when_two_peers_are_killed_at_once_the_others_go_on_without_both(tmp_path):
    with Federation(tmp_path, orders={2: HELD, 3: HELD}) as peers:
        for p in (2, 3):
            peers.hold(p, "gradient 20")
        peers.kill(2, 3)
        ended = peers.ended()
        survivors = [0, 1, 4, 5]
        peers.check_survivors(survivors, ended)
        last = max(view["number"] for view in peers.views(0))
        assert {p for view in peers.views(0) for p in view["lost"]} == {2, 3}
        assert all(peers.views(p)[-1]["number"] == last for p in survivors)


def test_a_peer_that_is_stopped_and_goes_on_within_the_deadline_changes_nothing(tmp_path):
    with Federation(tmp_path, orders={3: HELD}) as peers:
        peers.hold(3, "gradient 20")
        peers.signal(3, signal.SIGSTOP)
        peers.release(3)
        threading.Event().wait(DEADLINE / 2)  # this is the fault itself
        peers.signal(3, signal.SIGCONT)
        peers.check_same(peers.ended())


def test_a_gradient_that_takes_several_deadlines_is_waited_for(tmp_path):
    with Federation(tmp_path, orders={3: HELD}) as peers:
        peers.hold(3, "gradient 20")
        threading.Event().wait(3 * DEADLINE)  # this is the fault itself
        peers.release(3)
        peers.check_same(peers.ended())
