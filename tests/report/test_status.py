"""``p2pft status`` says who is slow, who is lost, whether the result is at risk, and when it is done."""

from __future__ import annotations

import json
import os
import re
import time

import msgspec
import pytest

from p2pft_flower.cli import app
from p2pft_flower.keeping.bulletins import (
    Bulletin,
    PeerNow,
    bulletin_path,
    bulletins,
    discard_old,
    write_bulletin,
)
from p2pft_flower.keeping.processes import start_mark
from p2pft_flower.report.results import write_results
from p2pft_flower.report.status import status_of
from p2pft_flower.report.status_text import status_table
from tests.commands import CliRunner
from tests.journals import made_line
from tests.report.made_up import results

NOW = 1_800_000_000.0
NAMES = {0: "north", 1: "east", 2: "south", 3: "west"}


def peer(number, **fields):
    usual = {"state": "computing", "iteration": 400, "rate": 2.0, "heard": 1.0, "spoken": 0.5}
    return PeerNow(peer=number, **{**usual, **fields})


def bulletin(*peers, own=(0,), alive=True, **fields):
    """What peer 0 of four knows; others are well unless ``peers`` says otherwise."""
    told = {p.peer: p for p in [*(peer(p) for p in range(4)), *peers]}
    if 0 in own and 0 not in {p.peer for p in peers}:
        told[0] = peer(0, heard=0.0, spoken=None)
    usual = {
        "run": "7",
        "n": 4,
        "iterations": 1000,
        "names": NAMES,
        "live": (0, 1, 2, 3),
        "on_failure": "continue",
        "min_peers": 0,
        "silence": 30.0,
        "folder": "/runs/7",
        "pid": os.getpid(),
        "started": start_mark(os.getpid()) if alive else "another",
        "begun": NOW - 300,
        "written": NOW,
    }
    return Bulletin(own=own, peers=tuple(told[p] for p in sorted(told)), **{**usual, **fields})


def state_of(*bulletins, now=NOW):
    status = status_of(bulletins, now)
    return status, {p.peer: p for p in status.peers}


def test_of_a_run_in_good_order_nobody_is_slow_and_the_end_follows_from_the_slowest_rate():
    status, peers = state_of(bulletin(peer(2, rate=1.5)))
    assert {p.state for p in peers.values()} == {"computing"}
    assert status.left == 600 / 1.5
    assert not status.at_risk
    assert "the run would bear the loss of one peer" in status.risk


def test_the_slow_peer_is_the_one_for_which_all_others_wait_in_the_end():
    waits = [peer(0, state="waiting", awaited=3, busy=12.0, heard=0.0, spoken=None)]
    waits.append(peer(3, state="waiting", awaited=2, busy=11.0))
    status, peers = state_of(bulletin(*waits))
    assert [p for p in peers if peers[p].state == "slow"] == [2]
    assert "has waited 12 s for it" in peers[2].why
    assert peers[0].why == "for peer 3 (west)"
    assert status.left is None, "as long as all wait for one, no rate tells the end"


def test_what_a_silent_peer_said_last_blames_nobody_and_its_own_machine_says_that_it_stands_still():
    waits = peer(0, state="waiting", awaited=3, busy=12.0, heard=0.0, spoken=None)
    stands_still = bulletin(
        peer(3, state="waiting", awaited=2, busy=1.0, heard=0.0, spoken=None), own=(3,), written=NOW - 13
    )
    _, peers = state_of(bulletin(waits, peer(3, spoken=14.0, heard=14.0)), stands_still)
    assert (peers[3].state, peers[3].since) == ("silent", 14.0)
    assert "lives, but stands still; lost after 30 s" in peers[3].why
    assert [p for p in peers if peers[p].state == "slow"] == []


def test_a_new_process_of_a_peer_that_was_killed_does_not_stand_still_but_comes_back():
    gone = peer(3, heard=20.0, spoken=20.0)
    back = bulletin(gone, own=(3,), begun=NOW - 8)
    _, peers = state_of(bulletin(gone), back)
    assert peers[3].state == "silent"
    assert "it has been coming back for 8 s (p2pft rejoin, process" in peers[3].why
    assert "stands still" not in peers[3].why


def test_a_short_wait_makes_nobody_slow():
    _, peers = state_of(bulletin(peer(0, state="waiting", awaited=3, busy=4.0, heard=0.0, spoken=None)))
    assert peers[3].state == "computing"
    _, peers = state_of(
        bulletin(peer(0, state="waiting", awaited=3, busy=40.0, rate=0.2, heard=0.0, spoken=None))
    )
    assert peers[3].state == "computing"  # 40 s are eight iterations


def test_peers_that_wait_for_each_other_do_not_hang_the_question():
    a = peer(1, state="waiting", awaited=2, busy=50.0)
    b = peer(2, state="waiting", awaited=1, busy=50.0)
    status, _ = state_of(bulletin(a, b))
    assert status.run == "7"


def test_a_silent_neighbour_is_silent_before_it_is_lost_and_that_is_a_risk():
    status, peers = state_of(bulletin(peer(1, spoken=12.0, heard=12.0)))
    assert (peers[1].state, peers[1].since) == ("silent", 12.0)
    assert "lost after 30 s" in peers[1].why
    assert status.at_risk
    assert "peer 1 (east) is silent" in status.risk


def test_where_all_seem_to_wait_for_each_other_nobody_is_called_slow_least_of_all_by_itself():
    ring = {0: 3, 3: 2, 2: 1, 1: 0}  # words of different ages, as after a suspended peer has woken
    waits = [peer(p, state="waiting", awaited=q, busy=18.0) for p, q in ring.items()]
    status, peers = state_of(bulletin(*waits))
    assert {p.state for p in peers.values()} == {"waiting"}
    assert "has waited" not in status_table(status, NOW)


def test_a_peer_that_has_finished_and_gone_is_not_called_silent():
    done = peer(1, state="finished", iteration=1000, spoken=40.0, heard=40.0)
    status, peers = state_of(bulletin(done))
    assert peers[1].state == "finished"
    assert not status.at_risk, status.risk


def test_old_news_of_a_peer_that_is_no_neighbour_are_no_silence():
    _, peers = state_of(bulletin(peer(2, spoken=None, heard=6.0)))
    assert peers[2].state == "computing"
    _, peers = state_of(bulletin(peer(2, spoken=None, heard=20.0)))
    assert peers[2].state == "silent"


def view(**fields):
    usual = {"number": 1, "iteration": 380, "peers": (0, 1, 2), "lost": (3,), "why": {3: "it crashed"}}
    return made_line("view", time=NOW - 60, **{**usual, **fields})


def test_a_lost_peer_is_lost_since_its_view_and_the_result_lacks_its_images():
    status, peers = state_of(bulletin(live=(0, 1, 2), views=(view(),)))
    assert (peers[3].state, peers[3].since, peers[3].why) == ("lost", 60.0, "it crashed")
    assert status.at_risk
    assert "peer 3 (west) is gone: 3 of 4 peers go on" in status.risk
    text = status_table(status, NOW)
    assert "peer 3 (west) has been lost for 60 s: it crashed" in text
    assert "view 1 after 380 iterations: peer 3 (west) was lost" in text


def test_who_has_not_spoken_for_some_seconds_is_called_slow_no_more():
    waits = peer(1, state="waiting", awaited=2, busy=12.0)
    _, peers = state_of(bulletin(waits, peer(2, heard=2.0, spoken=2.0)))
    assert peers[2].state == "slow"
    _, peers = state_of(bulletin(waits, peer(2, heard=4.0, spoken=4.0)))
    assert peers[2].state == "computing", "it may be gone, which is not known yet"


def test_a_peer_that_comes_back_does_not_set_the_run_back_to_its_beginning():
    back = peer(3, state="changing", iteration=0)
    status, _ = state_of(bulletin(back))
    assert status.iteration == 400


def test_who_was_waited_for_and_is_no_more_stands_among_what_happened():
    waited = made_line("stall", 1, time=NOW - 90, iteration=300, awaited=2, last=3, seconds=18.0)
    status, _ = state_of(bulletin(live=(0, 1, 2), views=(view(),), stalls=(waited,)))
    assert status.stalls == (waited,)
    told = status_table(status, NOW).splitlines()
    (at,) = [k for k, line in enumerate(told) if "peer 1 (east) waited 18 s for peer 2 (south)" in line]
    assert "in the end for peer 3 (west), after 300 iterations" in told[at]
    assert "view 1 after 380 iterations" in told[at + 1], "in the order in which it happened"


def test_what_a_peer_does_before_it_trains_is_told_where_it_is_known():
    meets = peer(0, state="preparing", doing="meeting the others", heard=0.0, spoken=None, iteration=0)
    status, peers = state_of(bulletin(meets, peer(1, state="preparing", iteration=0)))
    assert (peers[0].state, peers[0].why, peers[1].why) == ("preparing", "meeting the others", "")
    rows = {row.split("│")[1].strip(): row for row in status_table(status, NOW).splitlines() if "│" in row}
    assert "meeting the others" in rows["0"]
    assert "preparing" in rows["1"]


def test_a_time_in_which_all_stood_still_is_one_line_for_all_waits():
    fields = {"awaited": 3, "last": 3, "iteration": 300}
    waits = [made_line("stall", p, time=NOW - 90 + p, seconds=20.0 + p, **fields) for p in range(3)]
    one_host_each = [bulletin(own=(p,), stalls=(waits[p],)) for p in range(3)]
    status, _ = state_of(*one_host_each)
    text = status_table(status, NOW)
    assert text.count("all stood still from ") == 1
    assert "(20 s), waiting for peer 3 (west), which was slow, after 300 iterations" in text
    assert " waited " not in text
    office, _ = state_of(bulletin(own=(), stalls=tuple(waits)), one_host_each[0])
    assert status_table(office, NOW).count("all stood still from ") == 1, "as the coordinator has heard it"
    assert len(office.stand_stills) == 1
    alone, _ = state_of(one_host_each[0])
    assert "peer 0 (north) waited 20 s for peer 3 (west)" in status_table(alone, NOW)


def test_a_wait_that_two_processes_here_have_heard_of_is_told_once_and_a_hosts_own_word_counts():
    fields = {"awaited": 3, "last": 3, "iteration": 300}
    own, heard = (made_line("stall", 0, time=NOW - 90 + k, seconds=20.0 + k, **fields) for k in range(2))
    far = made_line("stall", 1, time=NOW - 30, seconds=9.0, **fields)
    office = bulletin(own=(), stalls=(heard, far))
    status, _ = state_of(bulletin(stalls=(own, far)), office)
    assert status.stalls == (own, far)


def test_a_peer_is_gone_since_its_last_word_not_since_the_others_agreed_that_it_is_lost():
    last = peer(3, heard=75.0, spoken=72.0)
    _, peers = state_of(bulletin(last, live=(0, 1, 2), views=(view(),)))
    assert peers[3].since == 72.0
    asks = peer(3, heard=1.0, spoken=1.0)  # it wants to come back
    _, peers = state_of(bulletin(asks, live=(0, 1, 2), views=(view(),)))
    assert peers[3].since == 60.0


def test_a_peer_that_asks_to_come_back_stays_lost_since_its_last_word_before():
    asks, lost = peer(3, heard=1.0, spoken=1.0), {"live": (0, 1, 2), "gone": {3: NOW - 90}}
    _, peers = state_of(bulletin(asks, views=(view(),), **lost))
    assert (peers[3].state, peers[3].since, peers[3].contact) == ("lost", 90.0, 1.0)
    coming = bulletin(peer(3, heard=0.0, spoken=None, state="preparing"), own=(3,), begun=NOW - 12, **lost)
    status, peers = state_of(coming)  # its own site, where nobody has told of the views yet
    assert (peers[3].state, peers[3].since) == ("lost", 90.0)
    assert "has been coming back for 12 s" in peers[3].why
    assert "peer 3 (west) is gone" in status.risk


def test_a_peer_that_came_back_is_told_with_how_far_behind_it_was():
    back = view(number=2, iteration=500, peers=(0, 1, 2, 3), lost=(), joined=(3,), why={}, missed={3: 120})
    status, _ = state_of(bulletin(views=(view(), back)))
    told = (
        "view 2 after 500 iterations: peer 3 (west) has come back, 120 iterations behind (it was lost after"
    )
    assert f"{told} 380)" in status_table(status, NOW)


def test_the_reason_of_a_loss_is_the_same_in_every_look_whoever_wrote_last():
    seen = {0: {3: "its connection was refused"}, 1: {3: "its process is stopped: it crashed"}, 2: {}}
    for last in seen:
        looks = [
            bulletin(own=(p,), live=(0, 1, 2), views=(view(why=why),), written=NOW - (p != last))
            for p, why in seen.items()
        ]
        for order in (looks, looks[::-1]):
            _, peers = state_of(*order)
            assert peers[3].why == "its process is stopped: it crashed"
    presumed = bulletin(live=(0, 1, 2), views=(view(why={}, presumed={3: "silent"}),))
    assert state_of(presumed)[1][3].why == "silent"


def test_a_lost_peer_whose_process_here_asks_to_be_let_in_is_told_as_coming_back():
    there = bulletin(live=(0, 1, 2), views=(view(),))
    _, peers = state_of(there, bulletin(own=(3,), begun=NOW - 12))
    assert peers[3].state == "lost"
    assert (
        peers[3].why == f"it crashed; it has been coming back for 12 s (p2pft rejoin, process {os.getpid()})"
    )
    _, peers = state_of(there, bulletin(own=(3,), alive=False, begun=NOW - 300))  # the one that crashed
    assert peers[3].why == "it crashed"


def test_where_a_peer_comes_back_nothing_is_said_of_the_others_before_they_are_heard():
    others = [peer(p, state="", iteration=0, rate=0.0, heard=None, spoken=None) for p in (0, 1, 2)]
    comes = peer(3, state="preparing", iteration=380, heard=0.0, spoken=None)
    status, _ = state_of(bulletin(*others, comes, own=(3,), live=(0, 1, 2), gone={3: NOW - 90}))
    assert status.iteration == 380, "the run was as far when the peer was lost"
    assert (status.at_risk, status.risk) == (
        True,
        "The result is at risk: peer 3 (west) is gone, and nothing has been heard of the other peers yet.",
    )


def test_a_process_that_begins_anew_does_not_hide_the_last_scores_of_its_peer():
    before = peer(3, evaluated=350, accuracy=0.9, bytes_sent=1000)
    anew = peer(3, state="preparing", heard=0.0, evaluated=None)
    _, peers = state_of(bulletin(before, live=(0, 1, 2), views=(view(),)), bulletin(anew, own=(3,)))
    assert (peers[3].evaluated, peers[3].accuracy, peers[3].bytes_sent) == (350, 0.9, 1000)


def test_the_process_in_the_newest_view_knows_most_however_many_views_it_has_seen():
    left = bulletin(live=(0, 1, 2, 3), views=(view(), view(number=2)), written=NOW + 1)
    went_on = bulletin(own=(1,), live=(0, 1), views=(view(number=3, peers=(0, 1), lost=(2,)),))
    status, peers = state_of(left, went_on)
    assert (status.view, peers[2].state, peers[3].state) == (3, "lost", "lost")
    back = view(number=2, peers=(0, 1, 2, 3), lost=(), joined=(3,), why={})
    came_back = bulletin(own=(3,), views=(back,), written=NOW + 1)
    assert state_of(bulletin(views=(view(), back)), came_back)[0].views == (view(), back)


def test_a_clock_that_was_set_back_makes_no_time_negative():
    killed = bulletin(own=(0,), alive=False)
    for told in (killed, bulletin(live=(0, 1, 2), views=(view(),), gone={3: NOW - 70})):
        status, _ = state_of(told, now=NOW - 3600)
        assert min(p.since or 0.0 for p in status.peers) == 0.0
        assert not re.search(r"-\d", status_table(status, NOW - 3600))


def test_a_time_that_another_site_tells_and_no_calendar_has_breaks_nothing():
    status, _ = state_of(bulletin(live=(0, 1, 2), views=(msgspec.structs.replace(view(), time=1e300),)))
    assert "(no time of a calendar) view 1 after 380 iterations: peer 3 (west) was lost" in status_table(
        status, NOW
    )


def test_no_text_of_another_process_reaches_the_terminal_with_its_control_characters():
    names = {0: "\x1b[2J", 3: "west\u202e"}
    told = bulletin(run="7\x1b[2J", names=names, live=(0, 1, 2), views=(view(why={3: "\x1b]0;x\a"}),))
    text = status_table(state_of(told)[0], NOW)
    assert all(c.isprintable() for c in text.replace("\n", ""))


def test_a_peer_that_came_back_is_no_risk_any_more():
    back = view(number=2, peers=(0, 1, 2, 3), lost=(), joined=(3,), why={})
    status, peers = state_of(bulletin(views=(view(), back)))
    assert peers[3].state == "computing"
    assert not status.at_risk
    assert "peer 3 (west) has come back" in status_table(status, NOW)


@pytest.mark.parametrize(
    ("fields", "risk"),
    [
        ({"on_failure": "stop"}, "the loss of any peer ends the run"),
        ({"min_peers": 4}, "one loss may end the run"),
        ({"live": (0, 1), "views": (view(peers=(0, 1), lost=(2, 3), why={}),)}, "2 of 4 peers go on"),
    ],
)
def test_it_is_a_risk_if_one_more_loss_ends_the_run(fields, risk):
    status, _ = state_of(bulletin(**fields))
    assert status.at_risk
    assert risk in status.risk


@pytest.mark.parametrize(
    ("hosts", "fields", "risk"),
    [
        ((), {}, "the run would bear the loss of one peer."),
        ([(0, 1), (2, 3)], {}, "one loss may end the run"),  # a half without the lowest is no quorum
        ([(0,), (1,), (2, 3)], {}, "the run would bear the loss of one host."),
        ([(0,), (1,), (2, 3)], {"min_peers": 3}, "one loss may end the run"),  # the host of two peers
        ([(0,), (1,), (2,), (3,)], {"min_peers": 3}, "the run would bear the loss of one peer."),
        ([(0, 1, 2, 3)], {"on_failure": ""}, "no peer waits for another"),
    ],
)
def test_the_risk_counts_the_members_that_vote_and_the_peers_that_are_left(hosts, fields, risk):
    status, _ = state_of(bulletin(hosts=tuple(hosts), **fields))
    assert risk in status.risk
    assert status.at_risk is ("may end" in risk)


def test_before_all_train_no_loss_is_borne_and_one_that_comes_back_later_changes_nothing_in_that():
    prepares = [peer(p, state="preparing", iteration=0) for p in range(4)]
    begins, _ = state_of(bulletin(*prepares, peer(3, state="", iteration=0, heard=None, spoken=None)))
    assert begins.risk == (
        "The result is not at risk: until all peers train, the loss of any one ends the run."
    )
    assert not begins.at_risk
    killed, _ = state_of(bulletin(*prepares), bulletin(*prepares, own=(1,), alive=False, written=NOW - 9))
    assert killed.at_risk
    assert "bear" not in killed.risk
    assert "would bear the loss of one peer" in state_of(bulletin(*prepares[:2]))[0].risk


def test_a_killed_peer_still_counts_in_its_view_until_the_others_agree_on_another_one():
    killed = bulletin(own=(1,), alive=False, written=NOW - 9)
    assert "one more loss may end the run" in state_of(killed, bulletin())[0].risk
    lost = bulletin(live=(0, 2, 3), views=(view(peers=(0, 2, 3), lost=(1,)),))
    assert "would bear the loss of one more peer" in state_of(lost)[0].risk


def test_a_killed_process_of_this_machine_has_ended_and_its_neighbours_know_the_rest():
    dead = bulletin(own=(1,), alive=False, written=NOW - 9)
    status, peers = state_of(dead, bulletin())
    assert (peers[1].state, peers[1].since) == ("ended", 9.0)
    assert "was killed" in peers[1].why
    assert peers[2].state == "computing"
    assert "peer 1 (east) was killed: the others wait, and know of it after 30 s" in status.risk
    assert "go on" not in status.risk
    assert status.left is None
    text = status_table(status, NOW)
    assert "peer 1 (east) has been killed for 9 s" in text
    assert "while the run stands still, when it is done is not known" in text


def test_news_are_taken_from_where_they_are_newest_and_grow_old_with_the_file():
    old = bulletin(peer(2, iteration=390, heard=1.0, spoken=None), own=(1,), written=NOW - 4)
    new = bulletin(peer(2, iteration=400, heard=2.0, spoken=None))
    _, peers = state_of(old, new)
    assert (peers[2].iteration, peers[2].contact) == (400, 2.0)
    _, peers = state_of(old)
    assert peers[2].contact == 5.0


def test_the_consensus_error_is_the_coordinators_though_a_peer_of_this_machine_knows_the_rest():
    office = bulletin(own=(), consensus_error=0.25, written=NOW - 1)
    status, _ = state_of(bulletin(), office)
    assert (status.from_gossip, status.consensus_error) == (True, 0.25)
    assert state_of(bulletin())[0].consensus_error is None


def test_the_end_is_not_known_before_there_is_a_rate_and_is_there_when_all_is_done():
    status, _ = state_of(bulletin(*(peer(p, rate=0.0, spoken=None, heard=0.0) for p in range(4))))
    assert status.left is None
    assert "not known yet" in status_table(status, NOW)
    status, _ = state_of(bulletin(*(peer(p, iteration=1000, state="finished") for p in range(4))))
    assert "All iterations are done." in status_table(status, NOW)


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path))
    return tmp_path


def test_the_command_prints_each_run_of_this_machine(there):
    write_bulletin(bulletin_path(0), bulletin())
    write_bulletin(bulletin_path(1), bulletin(run="8", own=(1,)))
    done = CliRunner().invoke(app, ["status"])
    assert done.exit_code == 0, done.output
    for run in "78":
        assert re.search(rf"run {run} at \d\d:\d\d:\d\d: iteration 400 of 1000", done.stdout)
    done = CliRunner().invoke(app, ["status", "7", "--json"])
    (told,) = json.loads(done.stdout)
    assert (told["run"], told["iterations"], len(told["peers"])) == ("7", 1000, 4)
    assert told["peers"][2]["name"] == "south"


def test_without_a_run_the_command_says_where_it_looked_for_one(there):
    done = CliRunner().invoke(app, ["status", "9"])
    assert done.exit_code == 1
    assert "run 9 does not train here" in done.stderr
    assert "P2PFT_HOME" in done.stderr


def test_where_no_run_trains_any_more_the_last_one_is_named_with_what_has_come_of_it(there):
    for run, ended in ("7", 1.7e9), ("8", 1.7e9 + 900):
        told = {"run": run, "name": f"pets-{run}", "begun": ended - 600, "ended": ended}
        write_results(there / "runs" / f"pets-{run}-{run}", results() | told)
    done = CliRunner().invoke(app, ["status"])
    assert done.exit_code == 1
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1.7e9 + 900))
    assert (
        f"no run trains here; the last one: run pets-8 (8), {at}: completed; its files are in" in done.stderr
    )
    assert "it: run pets-7 (7)" in CliRunner().invoke(app, ["status", "7"]).stderr
    assert "is this the machine" in CliRunner().invoke(app, ["status", "9"]).stderr


def test_a_process_that_is_started_again_replaces_its_killed_predecessor(there):
    write_bulletin(there / "running" / "1-1.bulletin", bulletin(own=(1,), alive=False))
    write_bulletin(there / "running" / "2-2.bulletin", bulletin(own=(2,), alive=False))
    write_bulletin(bulletin_path(1), bulletin(own=(1,)))
    discard_old("7", (1,))
    assert sorted(b.own for b in bulletins("7")) == [(1,), (2,)]
    assert all(b.alive for b in bulletins("7") if b.own == (1,))
    discard_old("8", (2,))
    assert len(bulletins("7")) == 2, "another run's stays"


def test_a_damaged_bulletin_is_named_and_the_others_are_shown(there, caplog):
    write_bulletin(bulletin_path(0), bulletin())
    odd = there / "running" / "1-1.bulletin"
    odd.write_bytes(msgspec.json.encode({"run": "7"}))
    done = CliRunner().invoke(app, ["status"])
    assert done.exit_code == 0
    assert "run 7" in done.stdout
    assert str(odd) in caplog.text
