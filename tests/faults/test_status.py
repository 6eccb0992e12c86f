"""What ``p2pft status`` says at one peer, from gossip alone, while another one is slow, silent, lost."""

from __future__ import annotations

import signal
import time

from p2pft_flower.keeping.bulletins import bulletins
from p2pft_flower.report.stand_stills import all_stood_still
from p2pft_flower.report.status import status_of
from tests.faults.federation import PATIENCE, Fault, Federation, injects
from tests.faults.peer import Orders
from tests.journals import made_line

HELD = Orders(hold=("gradient 20",))
LATER_HELD = Orders(hold=("gradient 60",))
RING = [(p,) for p in range(6)]
FAR = 0
"""A peer of the ring of six that is no neighbour of peer 3."""


def seen_from(peers, peer, wanted):
    """Look at the run as from the machine of one peer until ``wanted`` holds, and return that look."""
    end = time.monotonic() + PATIENCE
    while True:
        told = [b for b in bulletins() if b.folder == str(peers.folder) and b.own == (peer,)]
        status = status_of(told, time.time()) if told else None
        if status is not None and wanted(status):
            return status
        assert time.monotonic() < end, status
        time.sleep(0.2)  # the file is written each second


def state(status, peer):
    return status.peers[peer].state


def as_fields(line):
    return {key: value for key, value in line.items() if key != "event"}


@injects(Fault.PAUSE, Fault.STRAGGLER)
def test_a_peer_far_away_is_shown_as_slow_then_as_silent_then_as_well_again(tmp_path):
    orders = {3: HELD, FAR: LATER_HELD}
    with Federation(tmp_path, orders=orders, **{"peer-timeout": 60.0}) as peers:
        peers.hold(3, "gradient 20")
        slow = seen_from(peers, FAR, lambda s: state(s, 3) == "slow")
        assert [p.peer for p in slow.peers if p.state == "slow"] == [3]
        assert "s ago, so it is not lost yet" in slow.peers[3].why
        assert not slow.at_risk, slow.risk
        peers.signal(3, signal.SIGSTOP)
        near = seen_from(peers, 4, lambda s: state(s, 3) == "silent" and s.peers[3].since > 8)
        assert near.at_risk
        assert "lost after 60 s" in near.peers[3].why
        peers.signal(3, signal.SIGCONT)
        peers.release(3)
        peers.hold(FAR, "gradient 60")
        seen_from(peers, FAR, lambda s: state(s, 3) == "waiting" and state(s, FAR) == "slow")
        peers.release(FAR)
        ended = peers.ended()
        peers.check_same(ended)
    stalls = [line for p in range(6) for line in peers.journal(p) if line["event"] == "stall"]
    assert {s["peer"] for s in stalls if s["last"] == 3} == {0, 1, 2, 4, 5}, "who was waited for is kept"
    assert 3 not in {s["peer"] for s in stalls if s["last"] != FAR}, "it stood still itself"
    stills = all_stood_still([made_line("stall", **s) for s in map(as_fields, stalls)], RING, ())
    assert {s.awaited for s in stills} <= {(3,), (FAR,)}, "all others may have waited for that too shortly"
    assert max(s.end - s.begin for s in stills if s.awaited == (3,)) > 5
    assert "peer 3: this process did not run for " in peers.log(3), "it knows it itself, when it goes on"
    assert "did not run" not in peers.log(FAR)
    left = [b for b in bulletins() if b.folder == str(tmp_path)]
    assert not left, "who has ended leaves no bulletin"


@injects(Fault.KILL_ONE)
def test_a_killed_peer_is_lost_to_all_others_since_its_view_and_its_own_machine_says_it_has_ended(tmp_path):
    orders = {3: HELD, FAR: LATER_HELD}
    with Federation(tmp_path, orders=orders) as peers:
        peers.hold(3, "gradient 20")
        peers.kill(3)
        lost = seen_from(peers, FAR, lambda s: state(s, 3) == "lost")
        assert lost.at_risk
        assert lost.peers[3].since < PATIENCE
        assert "peer 3 is gone: 5 of 6 peers go on" in lost.risk
        own = seen_from(peers, 3, lambda s: state(s, 3) == "ended")
        assert "was killed" in own.peers[3].why
        peers.hold(FAR, "gradient 60")
        peers.release(FAR)
        peers.check_survivors([0, 1, 2, 4, 5], peers.ended())
