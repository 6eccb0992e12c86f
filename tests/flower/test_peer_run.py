"""What the coordinator makes of how the hosts ended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from p2pft_flower.flower import messages, peer_run
from p2pft_flower.flower.ending import Ending
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
    return peer_run.run_peers(None, deployment(tmp_path), Ending("7", {}))


def test_who_had_finished_and_gone_before_the_last_view_counts_and_was_not_lost(tmp_path, monkeypatch):
    # Peer 1 has its results and has gone; then peer 2 crashes, and view 1 is without both.
    views = [view(1, [0], **{"1": "took no part", "2": "crashed"})]
    made = results(tmp_path, monkeypatch, (0, 1), views)
    assert made["status"] == "completed-with-2-of-3"
    assert made["error"] == "peer 2 was lost after 1 iterations: crashed"


def test_a_run_whose_peers_all_have_results_misses_nobody(tmp_path, monkeypatch):
    made = results(tmp_path, monkeypatch, (0, 1, 2), [view(1, [0, 2], **{"1": "took no part"})])
    assert (made["status"], made["error"]) == ("completed", None)


@pytest.mark.parametrize("hearsay", ["LostContactError", "ExchangeTimeoutError", "ExchangeStoppedError"])
@pytest.mark.parametrize("cause_at", [0, 1, 2])
def test_of_hosts_that_all_failed_the_run_names_the_one_that_did_so_by_itself(
    cause_at, hearsay, tmp_path, monkeypatch
):
    errors = [{"error": "too many have gone", "kind": hearsay, "views": []} for _ in range(3)]
    errors[cause_at] |= {"error": "the GPU of this site is full", "kind": "PeerFailedError"}
    replies = {
        100 + p: SimpleNamespace(has_error=lambda: False, content=messages.pack(error))
        for p, error in enumerate(errors)
    }
    monkeypatch.setattr(peer_run, "Message", lambda *arguments, **more: None)  # Flower's wants a task
    monkeypatch.setattr(peer_run.nodes, "collect", lambda *arguments, **more: replies)
    with pytest.raises(RunFailedError, match=f"peer {cause_at}: the GPU of this site is full"):
        peer_run._train(None, deployment(tmp_path), "", "")
