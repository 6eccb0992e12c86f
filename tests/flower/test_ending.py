"""What results.json says of a run that did not complete: stopped or failed, why, and its changes of view."""

from __future__ import annotations

import errno
import re
import signal
from pathlib import Path

import pytest

from p2pft_flower.flower import client
from p2pft_flower.flower.ending import ResultsOnce
from p2pft_flower.flower.logs import status_in
from p2pft_flower.flower.nodes import RunFailedError
from p2pft_flower.flower.signals import before_obeying
from p2pft_flower.host.host import Host
from p2pft_flower.keeping.bulletins import bulletins
from p2pft_flower.keeping.checkpoints import CheckpointError
from p2pft_flower.keeping.journal import JournalError
from p2pft_flower.report.results import read_results
from p2pft_flower.transport import ExchangeStoppedError

from ..host.hosts import until
from ..journals import made_line
from .engine import run_app

VIEW = {
    "number": 1,
    "iteration": 3,
    "peers": [0, 1, 2],
    "edges": [[0, 1], [1, 2], [2, 0]],
    "lost": [3],
    "joined": [],
    "why": {"3": "the disk was full"},
    "seconds": 0.5,
    "missed": {},
    "time": 1.8e9,
}


def hosts(monkeypatch, run_host, views=()):
    """Have ClientApps run their hosts by ``run_host``, which is given the real one, and tell ``views``."""
    real = client.run_host
    monkeypatch.setattr(client, "run_host", lambda host, *, deployed: run_host(host, deployed, real))
    views = [made_line("view", **{**view, "why": {3: view["why"]["3"]}}) for view in views]
    if views:
        monkeypatch.setattr(Host, "views", property(lambda self: list(views)))


def test_a_run_that_was_stopped_at_a_site_says_so_in_results_and_log_with_its_views(
    tmp_path, monkeypatch, capsys
):
    def stopped(host, deployed, real):
        raise ExchangeStoppedError("peer 0 stopped in iteration 4: p2pft stop")

    hosts(monkeypatch, stopped, [VIEW])
    with pytest.raises(RunFailedError, match="p2pft stop"):
        run_app(tmp_path, nodes=4, slots=4, iterations=6)
    results = read_results(tmp_path)
    assert results["status"] == "stopped"
    assert "peer 0 stopped in iteration 4: p2pft stop" in results["error"]
    assert results["views"] == [VIEW]
    said = capsys.readouterr().out
    (run,) = re.findall(r"run (\d+) ended", said)
    assert status_in(said, run) == ("stopped", results["error"])
    assert "view 1 after iteration 3: peer 3 lost (the disk was full); 0.5 s until they agreed" in said


def test_a_failed_run_says_its_cause_and_not_that_the_others_were_stopped_by_it(
    tmp_path, monkeypatch, capsys
):
    def failing(host, deployed, real):
        if 2 in [p.peer for p in host.plan.peers]:
            raise CheckpointError(2, "no space is left")
        raise ExchangeStoppedError("peer 2 stopped in iteration 4: no space is left")

    hosts(monkeypatch, failing, [VIEW])
    with pytest.raises(RunFailedError, match="no space is left"):
        run_app(tmp_path, nodes=4, slots=4, iterations=6)
    results = read_results(tmp_path)
    assert (results["status"], results["views"]) == ("failed", [VIEW])
    assert results["error"] == "peer 2: no space is left"
    assert "view 1 after iteration 3" in capsys.readouterr().out


def full_disk(peer, error=None):
    def run_host(host, deployed, real):
        outcomes = real(host, deployed=deployed)
        if peer in [p.peer for p in host.plan.peers]:
            raise error or CheckpointError(peer, "no space is left for its last checkpoint")
        return outcomes

    return run_host


NO_LOG = JournalError(2, Path("peer-2.jsonl"), OSError(errno.ENOSPC, "no space is left"))


@pytest.mark.parametrize("error", [None, NO_LOG], ids=["checkpoint", "log"])
def test_a_host_that_fails_by_itself_when_all_have_trained_leaves_the_others_their_results(
    error, tmp_path, monkeypatch
):
    hosts(monkeypatch, full_disk(2, error))
    run_app(tmp_path, nodes=4, slots=4, iterations=6)
    results = read_results(tmp_path)
    assert results["status"] == "completed-with-3-of-4"
    assert [p["peer"] for p in results["peers"]] == [0, 1, 3]
    assert "peers [2] were lost at the end" in results["error"]
    assert "no space is left" in results["error"]


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"on_failure": "stop"}, None), ({}, ValueError("no space is left"))],
    ids=["nobody-goes-on-alone", "the-runs-own-affair"],
)
def test_where_nobody_goes_on_alone_or_what_failed_is_the_runs_own_affair_the_run_fails(
    settings, error, tmp_path, monkeypatch
):
    hosts(monkeypatch, full_disk(2, error))
    with pytest.raises(RunFailedError, match="no space is left"):
        run_app(tmp_path, nodes=4, slots=4, iterations=6, **settings)
    assert (read_results(tmp_path)["status"], read_results(tmp_path)["views"]) == ("failed", [])


@pytest.fixture
def _a_signal_is_obeyed():
    """Stand in for Flower's handler: a shell that runs the tests in the background has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def ending(tmp_path, caplog, monkeypatch):
    made = ResultsOnce("7", {"algorithm": "p2pft", "seed": 3})
    made.folder = tmp_path / "run"
    return made


@pytest.mark.usefixtures("_a_signal_is_obeyed")
def test_a_signal_that_ends_the_serverapp_leaves_results_that_say_stopped(ending):
    with pytest.raises(KeyboardInterrupt), before_obeying(ending.was_stopped):
        signal.raise_signal(signal.SIGINT)
    results = read_results(ending.folder)
    assert (results["status"], results["run"], results["algorithm"]) == ("stopped", "7", "p2pft")
    assert results["error"] == "the run was stopped: its ServerApp was told to end (SIGINT)"
    assert results["views"] is None  # nobody could be asked any more
    assert not ending.claim()


def test_a_signal_leaves_what_was_known_of_the_run_by_then(ending):
    ending.known = lambda: {"peers": [{"peer": 0, "accuracy": 0.5}], "status": "failed", "seconds": 2.0}
    assert ending.was_stopped(signal.SIGTERM)
    results = read_results(ending.folder)
    assert (results["status"], results["peers"]) == ("stopped", [{"peer": 0, "accuracy": 0.5}])
    assert results["seconds"] == 2.0


@pytest.mark.parametrize("why", ["it had ended", "its peers train on", "it had no folder yet"])
def test_a_signal_writes_no_results_where_there_is_nothing_to_say(why, ending):
    folder = ending.folder
    if why == "it had ended":
        assert ending.claim()
    elif why == "its peers train on":
        ending.reason = None
    else:
        ending.folder = None
    assert ending.was_stopped(signal.SIGTERM)
    assert not folder.exists()


def test_results_that_cannot_be_written_are_told_of(ending, caplog):
    ending.folder.write_text("a file where the folder should be")
    assert ending.was_stopped(signal.SIGTERM)  # and the signal is obeyed all the same
    assert "run 7: the run was stopped" in caplog.text
    assert "its results cannot be written" in caplog.text


def test_a_run_is_there_for_p2pft_status_while_its_peers_still_read_their_data(tmp_path, monkeypatch):
    real, seen = client._host, []

    def reads(plan, site, **more):
        until(lambda: any(plan.peers[0].peer in b.own for b in bulletins(plan.run)))
        seen.extend(p.doing for b in bulletins(plan.run) for p in b.peers if p.peer in b.own)
        return real(plan, site, **more)

    monkeypatch.setattr(client, "_host", reads)
    run_app(tmp_path, nodes=4, slots=4, iterations=2)
    assert len(seen) >= 4
    assert "reading data" in seen
    assert bulletins() == []
