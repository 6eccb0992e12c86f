"""Peers that are killed, stopped or slow: the others agree on who goes on, and find their own optimum."""

from __future__ import annotations

import signal
import threading
import time
from itertools import pairwise

import pytest

from tests.faults.federation import DEADLINE, PATIENT, Fault, Federation, injects
from tests.faults.peer import Orders

HELD = Orders(hold=("gradient 20",))
SLOW = Orders(slow_from=20)
SURVIVORS = [0, 1, 2, 4, 5]


FEWER_BYTES = {"codec": "q4", "algorithm-options": "local-steps=2"}
IN_TURN = FEWER_BYTES | {"schedule-graph": "base:1", "pipelined": True}


@pytest.mark.parametrize("exchange", [{}, FEWER_BYTES, IN_TURN], ids=["plain", "codec", "pipelined in turn"])
@injects(Fault.KILL_ONE)
def test_when_a_peer_is_killed_the_others_go_on_to_their_own_optimum(exchange, tmp_path):
    with Federation(tmp_path, orders={3: HELD}, **exchange) as peers:
        peers.hold(3, "gradient 20")
        peers.kill(3)
        ended = peers.ended()
        survivors = [0, 1, 2, 4, 5]
        assert ended[3].exitcode == -signal.SIGKILL
        peers.check_survivors(survivors, ended)
        peers.check_told(survivors, {3: "crashed"})


@injects(Fault.KILL_ONE)
def test_when_a_peer_is_killed_the_others_keep_the_theta_of_the_same_iteration(tmp_path):
    keep = {"keep": "best:loss", "validation": 0.1, "iterations": 60}
    with Federation(tmp_path, orders={3: HELD}, **keep) as peers:
        peers.hold(3, "gradient 20")
        peers.kill(3)
        ended = peers.ended()
        assert [p for p in peers.peers if ended[p].exitcode == 0] == SURVIVORS, peers.logs()
        kept = [peers.journal(p)[-1]["kept"] for p in SURVIVORS]
        assert kept == [{**kept[0], "by": "loss", "own": True}] * 5
        assert 0 < kept[0]["iteration"] < 60


@injects(Fault.KILL_ONE)
def test_when_fewer_than_min_peers_are_left_they_stop_with_models_and_checkpoints(tmp_path):
    with Federation(tmp_path, orders={3: HELD}, checkpoint_every=10, **{"min-peers": 6}) as peers:
        peers.hold(3, "gradient 20")
        peers.kill(3)
        ended = peers.ended()
        for p in SURVIVORS:
            assert "min-peers is 6" in ended[p].error
            peers.check_kept(p)


@injects(Fault.KILL_ONE)
def test_under_stop_all_stop_when_a_peer_is_killed_and_say_which_edge_is_lost(tmp_path):
    with Federation(tmp_path, orders={3: HELD}, checkpoint_every=10, **{"on-failure": "stop"}) as peers:
        peers.hold(3, "gradient 20")
        peers.kill(3)
        ended = peers.ended()
        for p in SURVIVORS:
            assert "peer 3 is lost (crashed)" in ended[p].error
            assert any(f"edge {edge}" in ended[p].error for edge in ("2 -> 3", "3 -> 4"))
            peers.check_kept(p)


@injects(Fault.KILL_ONE)
def test_under_wait_the_others_go_on_without_who_does_not_come_back_in_time(tmp_path):
    waiting = {"on-failure": "wait", "rejoin-deadline": 5.0}
    with Federation(tmp_path, orders={3: HELD}, **waiting) as peers:
        peers.hold(3, "gradient 20")
        peers.kill(3)
        peers.check_survivors(SURVIVORS, peers.ended())
        peers.check_told(SURVIVORS, {3: "crashed"})
        assert all(peers.views(p)[0]["seconds"] > 4.0 for p in SURVIVORS)  # for as long as all were paused


@injects(Fault.KILL_TWO)
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


@injects(Fault.KILL_CUT_VERTEX)
def test_when_the_hub_of_a_star_is_killed_its_leaves_are_joined_and_go_on(tmp_path):
    with Federation(tmp_path, "star:6", orders={0: HELD}) as peers:
        peers.hold(0, "gradient 20")
        peers.kill(0)
        ended = peers.ended()
        survivors = [1, 2, 3, 4, 5]
        peers.check_survivors(survivors, ended)
        peers.check_told(survivors, {0: "crashed"})


@injects(Fault.KILL_BALLOT)
def test_when_who_has_opened_a_ballot_is_killed_another_one_opens_the_next(tmp_path):
    with Federation(tmp_path, orders={0: Orders(hold=("ballot",)), 3: HELD}) as peers:
        peers.hold(3, "gradient 20")
        peers.kill(3)
        peers.hold(0, "ballot")
        peers.kill(0)
        ended = peers.ended()
        peers.check_survivors([1, 2, 4, 5], ended)
        assert {p for view in peers.views(1) for p in view["lost"]} == {0, 3}


@injects(Fault.KILL_PROPOSER)
def test_when_the_proposer_is_killed_as_its_view_is_accepted_the_others_still_agree(tmp_path):
    with Federation(tmp_path, orders={0: Orders(hold=("proposal",)), 3: HELD}) as peers:
        peers.hold(3, "gradient 20")
        peers.kill(3)
        peers.hold(0, "proposal")
        peers.kill(0)
        ended = peers.ended()
        peers.check_survivors([1, 2, 4, 5], ended)
        assert {p for view in peers.views(1) for p in view["lost"]} == {0, 3}


@injects(Fault.PAUSE)
def test_a_peer_that_is_stopped_and_goes_on_within_the_deadline_changes_nothing(tmp_path):
    for deadline in (DEADLINE, 10 * DEADLINE):  # the second for a machine too slow to stop it for so short
        folder = tmp_path / f"{deadline:g}"
        folder.mkdir()
        with Federation(folder, orders={3: HELD}, **{"peer-timeout": deadline}) as peers:
            peers.hold(3, "gradient 20")
            begin = time.monotonic()
            peers.signal(3, signal.SIGSTOP)
            peers.release(3)
            threading.Event().wait(deadline / 2)  # this is the fault itself
            peers.signal(3, signal.SIGCONT)
            took = time.monotonic() - begin
            ended = peers.ended()
            if took < 0.8 * deadline:
                break
    assert took < 0.8 * deadline
    peers.check_same(ended)


@injects(Fault.LONG_PAUSE)
def test_a_peer_that_is_stopped_for_too_long_is_called_silent_and_comes_back_when_it_wakes(tmp_path):
    orders = dict.fromkeys(SURVIVORS, SLOW) | {3: Orders(hold=("gradient 20",), slow_from=20)}
    with Federation(tmp_path, orders=orders, iterations=240) as peers:
        peers.hold(3, "gradient 20")
        peers.signal(3, signal.SIGSTOP)
        peers.release(3)
        peers.await_view(SURVIVORS, SURVIVORS)
        peers.signal(3, signal.SIGCONT)
        peers.await_view(peers.peers, peers.peers)
        peers.hurry(*peers.peers)
        peers.check_survivors(peers.peers, peers.ended())
        peers.check_told(SURVIVORS, {3: "its process is stopped"})
        assert [view["joined"] for view in peers.views(0)] == [[], [3]]


@injects(Fault.KILL_AND_REJOIN)
def test_a_peer_that_is_killed_and_started_again_three_times_is_let_in_each_time(tmp_path):
    orders = dict.fromkeys(SURVIVORS, SLOW) | {3: Orders(hold=("gradient 20",))}
    with Federation(tmp_path, orders=orders, iterations=240, checkpoint_every=10) as peers:
        peers.hold(3, "gradient 20")
        for life in range(3):
            peers.kill(3)
            if life == 2:  # empty-handed: it has neither log nor checkpoint
                peers.forget(3)
            # It goes on from the data order of its last checkpoint, 10 or later, and is killed in a gradient.
            peers.start_again(3, Orders(slow_from=0, hold=() if life == 2 else ("gradient 30",)))
            if life < 2:
                peers.hold(3, "gradient 30")
        peers.await_view([3], peers.peers)
        peers.hurry(*peers.peers)
        peers.check_survivors(peers.peers, peers.ended())
        lives = [view for view in peers.views(0) if 3 in view["joined"]]
        assert len(lives) == 3
        assert {p for view in peers.views(0) for p in (*view["lost"], *view["joined"])} == {3}


@injects(Fault.ALL_KILLED_AND_RESUMED)
def test_when_all_are_killed_while_one_writes_a_checkpoint_they_resume_as_if_nothing_had_happened(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        folder.mkdir()
    orders = {3: Orders(hold=("checkpoint 50",))}
    with Federation(before, orders=orders, checkpoint_every=10, **PATIENT) as peers:
        peers.hold(3, "checkpoint 50")
        peers.kill(*peers.peers)
    with Federation(after, resumed=before, checkpoint_every=10, **PATIENT) as peers:
        peers.check_same(peers.ended())
        (begun,) = {peers.first_iteration(p) for p in peers.peers}
        assert begun in {30, 40}  # checkpoints are written beside training: the last one but one is there


@injects(Fault.STRAGGLER)
def test_who_is_slow_as_a_rule_is_waited_for_also_for_several_deadlines(tmp_path):
    with Federation(tmp_path, orders={3: Orders(hold=("gradient 5", "gradient 20"))}) as peers:
        for place, deadlines in (("gradient 5", 0.5), ("gradient 20", 4)):
            peers.hold(3, place)
            threading.Event().wait(deadlines * DEADLINE)  # this is the fault itself
            peers.release(3)
        peers.check_same(peers.ended())


@injects(Fault.HANG)
@pytest.mark.parametrize("hanging", [HELD, Orders(spin=True)], ids=["waits", "spins"])
def test_a_gradient_that_never_ends_is_told_from_a_slow_one_and_called_hanging(hanging, tmp_path):
    with Federation(tmp_path, orders={3: hanging}) as peers:
        peers.check_survivors(SURVIVORS, peers.ended(SURVIVORS))
        peers.check_told(SURVIVORS, {3: "hang"})
        peers.kill(3)  # it would hang for ever


@injects(Fault.CLOCK_JUMP)
def test_clocks_that_are_set_an_hour_on_or_back_change_nothing(tmp_path):
    orders = {1: Orders(clock_jump=3600.0), 4: Orders(clock_jump=-3600.0)}
    with Federation(tmp_path, orders=orders, **PATIENT) as peers:
        peers.check_same(peers.ended())
        times = [line["time"] for line in peers.journal(1)]
        assert max(b - a for a, b in pairwise(times)) > 3000  # it has jumped
