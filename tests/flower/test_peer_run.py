"""What the coordinator makes of how the hosts ended."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from msgspec import structs

from p2pft_flower.errors import Cause
from p2pft_flower.flower import messages, nodes, peer_run
from p2pft_flower.flower.cluster import Register
from p2pft_flower.flower.ending import ResultsOnce
from p2pft_flower.flower.nodes import RunFailedError
from p2pft_flower.host.hearsay import HeardOf
from p2pft_flower.keeping.lines import Report
from p2pft_flower.typed import plain
from tests.journals import made_line

from .test_signals import deployment

OUTCOME = made_line("end")
CERTIFICATES = SimpleNamespace(checked_signatures=lambda: "signatures")


def view(number, peers, **why):
    told = {"number": number, "iteration": 1, "peers": peers, "edges": [], "why": why, "seconds": 0.1}
    return {**told, "lost": [int(p) for p in why], "joined": []}


def results(tmp_path, monkeypatch, ended, views):
    """Return the results of three peers, of which ``ended`` have an outcome."""
    told = peer_run._Told(
        outcomes=dict.fromkeys(ended, OUTCOME),
        evaluations=[],
        views=views,
        last_lines={},
        seconds=1.0,
        failure=None,
        failures=[],
        elsewhere=[],
        heard={},
        at_the_end=[],
    )
    monkeypatch.setattr(peer_run, "_train", lambda *arguments, **more: told)
    return peer_run.run_peers(None, deployment(tmp_path), ResultsOnce("7", {}))


@pytest.mark.parametrize(
    ("certified", "own", "looks"), [(False, None, True), (True, CERTIFICATES, True), (True, None, False)]
)
def test_a_coordinator_without_the_certificate_that_peers_ask_for_does_not_knock(
    certified, own, looks, tmp_path, monkeypatch
):
    looked, checked = [], []

    class Looks(contextlib.nullcontext):
        def __init__(self, run, key, own, progress, office):
            super().__init__()
            looked.append(own)

    told = peer_run._Told(dict.fromkeys(range(3), OUTCOME), [], [], {}, 1.0, None, [], [], {}, [])
    monkeypatch.setattr(peer_run, "Looking", Looks)
    monkeypatch.setattr(peer_run.Office, "check_with", lambda self, made: checked.append(made))
    monkeypatch.setattr(peer_run, "_train", lambda *arguments, **more: told)
    run = replace(deployment(tmp_path), certified=certified)
    peer_run.run_peers(None, run, ResultsOnce("7", {}), own)
    assert looked == ([own] if looks else [])
    assert checked == (["signatures"] if own else []), "where peers sign, nobody speaks for another"


def test_who_had_finished_and_gone_before_the_last_view_counts_and_was_not_lost(tmp_path, monkeypatch):
    # Peer 1 has its results and has gone; then peer 2 crashes, and view 1 is without both.
    views = [view(1, [0], **{"1": "took no part", "2": "crashed"})]
    made = results(tmp_path, monkeypatch, (0, 1), views)
    assert made["status"] == "completed-with-2-of-3"
    assert made["error"] == "peer 2 was lost after 1 iterations: crashed"


def test_a_run_whose_peers_all_have_results_misses_nobody(tmp_path, monkeypatch):
    made = results(tmp_path, monkeypatch, (0, 1, 2), [view(1, [0, 2], **{"1": "took no part"})])
    assert (made["status"], made["error"]) == ("completed", None)


def failing(tmp_path, monkeypatch, *causes):
    """Return how the run fails whose three hosts end for these causes; None: its host never replies."""
    body = {"error": "it has ended", "report": plain(messages.HostReport())}
    replies = {
        100 + p: SimpleNamespace(
            has_error=lambda: False, content=messages.pack({**body, "cause": cause.name})
        )
        for p, cause in enumerate(causes)
        if cause is not None
    }
    monkeypatch.setattr(peer_run, "Message", lambda *arguments, **more: None)  # Flower's wants a task
    monkeypatch.setattr(peer_run.nodes, "collect", lambda *arguments, **more: replies)
    return peer_run._train(None, deployment(tmp_path), Register("1", (), tmp_path), "", "", "").failure


@pytest.mark.parametrize(
    ("cause", "hearsay"),
    [(Cause.OWN, h) for h in (Cause.LOST, Cause.HEARSAY, Cause.STOPPED, None)]
    + [(Cause.RUN, h) for h in (Cause.LOST, Cause.HEARSAY, Cause.STOPPED, None)]
    + [(Cause.LOST, h) for h in (Cause.HEARSAY, Cause.STOPPED, None)]
    + [(Cause.HEARSAY, h) for h in (Cause.STOPPED, None)]
    + [(Cause.STOPPED, None)],
)
@pytest.mark.parametrize("cause_at", [0, 1, 2])
def test_of_hosts_that_all_failed_the_run_names_the_one_that_knows_most_of_why(
    cause_at, cause, hearsay, tmp_path, monkeypatch
):
    causes = [cause if p == cause_at else hearsay for p in range(3)]
    failure = failing(tmp_path, monkeypatch, *causes)
    assert str(failure).startswith(f"peer {cause_at}: it has ended")
    assert failure.stopped is (cause is Cause.STOPPED)


@pytest.mark.parametrize("cause", Cause)
def test_the_coordinator_waits_on_where_the_others_go_on_without_a_host(cause):
    reply = SimpleNamespace(
        has_error=lambda: False, content=messages.pack({"error": "", "cause": cause.name})
    )
    assert peer_run._ends_all(reply) is (cause not in (Cause.OWN, Cause.LOST))
    ended = SimpleNamespace(has_error=lambda: False, content=messages.pack({"ok": {}}))
    assert peer_run._ends_all(ended)


def test_a_stop_is_told_as_one_also_after_a_site_had_left_by_itself(tmp_path, monkeypatch):
    gone = made_line("view", peers=(0, 1), lost=(2,))
    stop, own = (
        reply(p, views, error=why, cause=cause.name)
        for p, views, why, cause in (
            (0, [gone], "p2pft stop", Cause.STOPPED),
            (2, [], "its disk is full", Cause.OWN),
        )
    )
    monkeypatch.setattr(peer_run, "Message", lambda *arguments, **more: None)
    monkeypatch.setattr(peer_run.nodes, "collect", lambda *_, **__: {100: stop, 101: stop, 102: own})
    failure = peer_run._train(None, deployment(tmp_path), Register("1", (), tmp_path), "", "", "").failure
    assert (failure.stopped, str(failure)) == (True, "peer 0: p2pft stop")


def test_a_stop_names_the_peer_that_was_stopped_once(tmp_path, monkeypatch):
    stops = {
        100 + p: reply(p, error=f"peer {origin} stopped in iteration 7: p2pft stop", cause=Cause.STOPPED.name)
        for p, origin in ((0, 0), (1, 0), (2, 0))
    }
    monkeypatch.setattr(peer_run, "Message", lambda *arguments, **more: None)
    monkeypatch.setattr(peer_run.nodes, "collect", lambda *_, **__: stops)
    failure = peer_run._train(None, deployment(tmp_path), Register("1", (), tmp_path), "", "", "").failure
    assert str(failure) == "peer 0 stopped in iteration 7: p2pft stop"


def came_back(monkeypatch, tmp_path, *heard):
    """Return the results of a run that was stopped after peer 2 had come back in a process of its own."""
    there = [made_line("view", peers=(0, 1), lost=(2,), iteration=3)]
    there.append(made_line("view", number=2, peers=(0, 1, 2), joined=(2,), iteration=5))
    first_life = made_line("failed", 2, iteration=3, error="shut down", seconds={"gradient": 9.0})
    replies = {
        100 + p: reply(p, there, error="p2pft stop", cause=Cause.STOPPED.name, heard=heard) for p in (0, 1)
    }
    replies[102] = reply(2, error="told to end", cause=Cause.OWN.name, failures=[first_life])
    monkeypatch.setattr(peer_run, "Message", lambda *arguments, **more: None)
    monkeypatch.setattr(peer_run.nodes, "collect", lambda *_, **__: replies)
    with pytest.raises(RunFailedError) as caught:
        peer_run.run_peers(None, deployment(tmp_path), ResultsOnce("7", {}))
    assert caught.value.results["status"] == "stopped"
    return caught.value.results


def test_of_a_peer_that_came_back_and_was_stopped_results_have_what_the_others_heard(tmp_path, monkeypatch):
    report = Report(
        peer=2, iteration=20, loss=0.5, accuracy=0.75, accuracy_unseen=None, sketch=None, bytes_sent=400
    )
    older = HeardOf(peer=2, iteration=10, stopped=True, report=structs.replace(report, iteration=10))
    made = came_back(monkeypatch, tmp_path, older, HeardOf(peer=2, iteration=25, report=report))
    (row,) = (row for row in made["peers"] if row["peer"] == 2)
    assert (row["accuracy"], row["iterations"], row["bytes_sent"]) == (0.75, 20, 400)
    told = "came back and was stopped with the others, last heard of after iteration 25"
    assert row["state"] == told
    assert made["unfinished"] == []
    assert row["seconds"] == {}, "those of its first life are not those of its end"


def test_without_a_word_that_it_was_stopped_its_end_stands_in_its_own_files(tmp_path, monkeypatch):
    report = Report(
        peer=2, iteration=20, loss=0.5, accuracy=0.75, accuracy_unseen=None, sketch=None, bytes_sent=400
    )
    made = came_back(monkeypatch, tmp_path, HeardOf(peer=2, iteration=25, report=report))
    (row,) = (row for row in made["peers"] if row["peer"] == 2)
    assert row["state"].endswith("last heard of after iteration 25: its own files have its end")


SENT = [SimpleNamespace(metadata=SimpleNamespace(dst_node_id=100 + p)) for p in range(3)]


def reply(peer, views=(), heard=(), failures=(), **body):
    """Return the reply of a peer's host, which tells ``views``, what it has heard, and its own failures."""
    report = messages.HostReport(views=list(views), heard=list(heard), failures=list(failures))
    told = {**body, "report": plain(report)}
    metadata = SimpleNamespace(reply_to_message_id=str(peer))
    return SimpleNamespace(has_error=lambda: False, content=messages.pack(told), metadata=metadata)


class Silent:
    """A Grid on which the last of three hosts never replies."""

    def __init__(self, replies):
        self.replies = replies

    def push_messages(self, messages):
        return [str(p) for p in range(len(messages))]

    def pull_messages(self, ids):
        come, self.replies = self.replies, []
        return come


STOPPED = {"error": "stopped", "cause": Cause.STOPPED.name}
GONE = [made_line("view", peers=(0, 1), lost=(2,))]
BACK = [*GONE, made_line("view", number=2, peers=(0, 1, 2), joined=(2,))]


@pytest.mark.parametrize(
    ("body", "views", "heard", "waits"),
    [
        (STOPPED, GONE, (), False),
        ({"ok": {"outcomes": []}}, GONE, (), False),
        (STOPPED, [], (), True),
        ({"error": "full", "cause": Cause.OWN.name}, GONE, (), True),
        (STOPPED, BACK, (HeardOf(peer=2, iteration=9),), True),
        (STOPPED, BACK, (HeardOf(peer=2, iteration=9, stopped=True),), False),
        ({"ok": {"outcomes": []}}, BACK, (HeardOf(peer=2, iteration=9),), True),
    ],
    ids=[
        "stopped", "completed", "nobody lost", "two left by themselves", "it is back", "back and stopped",
        "back and completed",
    ],
)  # fmt: skip
def test_a_host_that_is_lost_or_came_back_is_not_waited_for_when_the_run_has_ended_for_the_others(
    body, views, heard, waits, tmp_path, monkeypatch
):
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    monkeypatch.setattr(nodes, "time", clock)
    run = deployment(tmp_path)
    replies = [reply(p, views, heard, **body) for p in (0, 1)]
    nodes.collect(
        Silent(replies),
        SENT,
        timeout=1000.0,
        grace=180.0,
        ends=peer_run._ends_all,
        needless=partial(peer_run._lost_hosts, run),
    )
    assert (now[0] > 100) is waits
    assert waits or now[0] < 5


def test_while_replies_are_missing_it_is_told_how_many_have_come_and_how_long_the_rest_have(monkeypatch):
    now, told = [0.0], []
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    monkeypatch.setattr(nodes, "time", clock)
    replies = [reply(p, ok={}) for p in (0, 1)]
    nodes.collect(Silent(replies), SENT, timeout=30.0, grace=5.0, tell=lambda *seen: told.append(seen))
    assert {count for count, _ in told} == {2}
    assert told[0][1] == 30.0
    assert told[-1][1] < 1.0


@pytest.mark.parametrize("cause", [None, Cause.STOPPED, Cause.LOST])
def test_hosts_that_have_gone_on_in_two_parts_are_no_run_and_what_they_say_of_themselves_is_kept(cause):
    parts = [made_line("view", p, number=1, peers=peers) for p, peers in ((0, (0, 1)), (2, (1, 2)))]
    before = None if cause is None else RunFailedError("peer 1: it was told", cause)
    changes, failure = peer_run._merged(parts, range(3), before)
    assert changes == []
    assert failure.ended_by is cause
    assert "peers 0 and 2 have gone on in different views 1" in str(failure)
    assert str(failure).startswith("peer 1: it was told; ") is (cause is not None)
    changes, failure = peer_run._merged(parts[:1], range(3), before)
    assert [c["number"] for c in changes] == [1]
    assert failure is before
    assert before is None or before.views == changes
