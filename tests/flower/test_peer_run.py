"""What the coordinator makes of how the hosts ended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from p2pft_flower.errors import Cause
from p2pft_flower.flower import messages, peer_run
from p2pft_flower.flower.ending import ResultsOnce
from p2pft_flower.flower.nodes import RunFailedError
from tests.journals import made_line

from .test_signals import deployment

OUTCOME = made_line("end")


def view(number, peers, **why):
    told = {"number": number, "iteration": 1, "peers": peers, "edges": [], "why": why, "seconds": 0.1}
    return {**told, "lost": [int(p) for p in why], "joined": []}


def results(tmp_path, monkeypatch, ended, views):
    """Return the results of three peers, of which ``ended`` have an outcome."""
    told = peer_run._Told(dict.fromkeys(ended, OUTCOME), [], views, [], [], [])
    monkeypatch.setattr(peer_run, "_train", lambda *arguments, **more: told)
    return peer_run.run_peers(None, deployment(tmp_path), ResultsOnce("7", {}))


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
    body = {"error": "it has ended", "views": []}
    replies = {
        100 + p: SimpleNamespace(
            has_error=lambda: False, content=messages.pack({**body, "cause": cause.name})
        )
        for p, cause in enumerate(causes)
        if cause is not None
    }
    monkeypatch.setattr(peer_run, "Message", lambda *arguments, **more: None)  # Flower's wants a task
    monkeypatch.setattr(peer_run.nodes, "collect", lambda *arguments, **more: replies)
    with pytest.raises(RunFailedError) as caught:
        peer_run._train(None, deployment(tmp_path), "", "")
    return caught.value


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
