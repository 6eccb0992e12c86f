"""Hosts that go on when one of them is lost: the same view everywhere, Σ τ = Σ g, the survivors' optimum."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from p2pft_flower.errors import TopologyError
from p2pft_flower.flower import host_process
from p2pft_flower.host.agreement import LostContactError
from p2pft_flower.host.host import DepartedError, Host, PeerFailedError
from p2pft_flower.host.meeting import Meeting
from p2pft_flower.keeping.checkpoints import checkpoint_files, checkpoint_folder
from p2pft_flower.keeping.running import running
from p2pft_flower.topology import Graph
from p2pft_flower.transport import ExchangeStoppedError, Reply, Status
from p2pft_flower.transport.heartbeats import Heartbeats
from tests.journals import lines_of

from .hosts import ALONE, RING, best, run_together, stopped_tail, tcp, unix, until
from .quadratic import Peer, Quadratics, plans


def views(folder, peer):
    return [e for e in lines_of(folder / "peers" / f"peer-{peer}.jsonl") if e["event"] == "view"]


def test_when_a_peers_own_code_fails_the_others_go_on_to_their_optimum(tmp_path):
    problems = [Quadratics(fail_at={2: 30}) for _ in range(4)]
    settings = {"iterations": 120, "survive": True, "peer-timeout": 16.0}
    results = run_together(plans(RING, [[0], [1], [2], [3]], tcp(), tmp_path, **settings), problems)
    assert isinstance(results[2], PeerFailedError)
    for p in (0, 1, 3):
        assert not isinstance(results[p], Exception), results[p]
        (view,) = views(tmp_path, p)
        assert view["peers"] == [0, 1, 3]
        assert [1, 3] in view["edges"]
        assert view["lost"] == [2]
        assert np.abs(problems[p].built[p].kept - best(0, 1, 3)).max() < 0.3


def test_a_host_that_still_meets_the_others_when_one_of_them_is_lost_goes_on_with_the_rest(
    tmp_path, monkeypatch
):
    """Peer 0 has no answer to its last hellos before peer 2, which has met all and begun, has failed."""
    settings = {"iterations": 120, "survive": True, "peer-timeout": 16.0}
    all_plans = plans(RING, ALONE, tcp(), tmp_path, **settings)
    answer, waits, last = Meeting.answer, itertools.count(), all_plans[0].greetings - 1

    def unanswered(own, hello):
        if (hello.sender, hello.stage) == (0, last):
            return Reply(status=Status.PREPARING, reason="held up", progress=next(waits))
        return answer(own, hello)

    monkeypatch.setattr(Meeting, "answer", unanswered)
    problems = [Quadratics(fail_at={2: 1}) for _ in ALONE]
    results = run_together(all_plans, problems)
    assert isinstance(results[2], PeerFailedError)
    assert next(waits)
    for p in (0, 1, 3):
        assert not isinstance(results[p], Exception), results[p]
        (view,) = views(tmp_path, p)
        assert (view["peers"], view["lost"]) == ([0, 1, 3], [2])
        assert np.abs(problems[p].built[p].kept - best(0, 1, 3)).max() < 0.3


def test_a_method_that_ends_at_a_wrong_point_on_the_graph_that_is_left_ends_the_run_by_name(tmp_path):
    problems = [Quadratics(fail_at={2: 30}) for _ in range(4)]
    settings = {"iterations": 120, "survive": True, "peer-timeout": 16.0, "algorithm": "gt-dgd"}
    ring = Graph.load("ring:4")
    results = run_together(plans(ring, [[0], [1], [2], [3]], tcp(), tmp_path, **settings), problems)
    assert isinstance(results[2], PeerFailedError)
    assert any(isinstance(results[p], TopologyError) for p in (0, 1, 3))
    for p in (0, 1, 3):
        assert isinstance(results[p], TopologyError | ExchangeStoppedError)
        assert "ring:4 without 2' is not doubly stochastic" in str(results[p])


def test_of_two_hosts_the_one_that_can_be_no_quorum_ends_as_soon_as_the_other_has_failed(tmp_path, short):
    problems = [Quadratics(fail_at={0: 30}) for _ in range(2)]
    settings = {"iterations": 120, "survive": True, "peer-timeout": 16.0, "rejoin-deadline": 10_000.0}
    ring = Graph.load("ring:4")
    results = run_together(plans(ring, [[0, 1], [2, 3]], unix(short), tmp_path, **settings), problems)
    assert isinstance(results[0], PeerFailedError)
    assert isinstance(results[1], LostContactError)
    why = str(results[1])
    assert "too many have gone for a quorum (0: " in why
    assert str(results[0]) in why
    for p in (2, 3):
        _, done = stopped_tail(tmp_path, p)
        assert done in (29, 30, 31)


# --- hosts that are told to leave ---

PATIENT = {"peer-timeout": 48.0, "hang-timeout": 60.0}
"""Nobody is given up for its silence while a test runs."""


def checkpoints(net, every=4):
    net.plans = [replace(plan, checkpoint_every=every, checkpoint_files=3) for plan in net.plans]


def last_lines(folder, peer):
    """Return the lines of a peer's log from the first that says it has failed on."""
    lines = lines_of(folder / "peers" / f"peer-{peer}.jsonl")
    return lines[next(i for i, e in enumerate(lines) if e["event"] == "failed") :]


def assert_gone(folder, peer, reason):
    """It has left one last line, a checkpoint and θ, after the same iteration."""
    (last,) = last_lines(folder, peer)
    assert (last["kind"], last["error"]) == ("DepartedError", f"peers [{peer}] leave the run: {reason}")
    _, done = stopped_tail(folder, peer)
    assert max(checkpoint_files(checkpoint_folder(folder, peer))) == done > 0


def assert_the_others_went_on(net, runs, why):
    for p in (0, 1, 3):
        (outcome,) = runs[p].result(100)
        assert outcome.iterations == net.plans[p].iterations
        (view,) = views(net.folder, p)
        assert (view["peers"], view["lost"]) == ([0, 1, 3], [2])
        assert np.abs(net.kept(p) - best(0, 1, 3)).max() < 0.3
    told = {view["why"]["2"] for p in (0, 1, 3) for view in views(net.folder, p) if "2" in view["why"]}
    assert told == {f"it has left: {why}"}


def test_a_host_that_is_told_to_leave_goes_and_the_others_go_on_to_their_optimum(federation, tmp_path):
    net = federation(tcp(), **PATIENT)
    checkpoints(net)
    reached = threading.Event()
    runs = [net.start(p, hook=lambda p, drawn: drawn > 10 and p == 2 and reached.set()) for p in range(4)]
    assert reached.wait(60)
    net.hosts[2].leave("the ward closes")
    net.all_there.set()
    with pytest.raises(DepartedError, match="the ward closes"):
        runs[2].result(60)
    assert_the_others_went_on(net, runs, "peers [2] leave the run: the ward closes")
    assert_gone(tmp_path, 2, "the ward closes")


def test_a_host_leaves_though_it_is_busy_and_leaving_twice_is_once(federation, tmp_path):
    net = federation(tcp(), **PATIENT)
    checkpoints(net)
    reached, release = threading.Event(), threading.Event()

    def busy(peer, drawn):
        if drawn == 30:
            reached.set()
            assert release.wait(120)

    runs = [net.start(p, hook=busy if p == 2 else None) for p in range(4)]
    try:
        assert reached.wait(60)
        net.all_there.set()
        net.hosts[2].leave("the ward closes")
        net.hosts[2].leave("and again")
        assert_the_others_went_on(net, runs, "peers [2] leave the run: the ward closes")
        assert not runs[2].done()
        with pytest.raises(DepartedError):
            net.hosts[2].raise_if_stopped()
        net.hosts[2].save_stopped()
        assert_gone(tmp_path, 2, "the ward closes")
    finally:
        release.set()
    with pytest.raises(DepartedError, match="the ward closes"):
        runs[2].result(60)
    assert_gone(tmp_path, 2, "the ward closes")


def test_who_leaves_before_the_training_has_begun_stops_all(federation):
    net = federation(tcp(), **PATIENT)
    preparing, release = threading.Event(), threading.Event()

    def prepare(peer, progress):
        preparing.set()
        assert release.wait(60)

    runs = [net.start(p, **({"prepare": prepare} if p == 2 else {})) for p in range(4)]
    assert preparing.wait(60)
    net.hosts[2].leave("the ward closes")
    release.set()
    for run in runs:
        with pytest.raises(ExchangeStoppedError, match=r"peer 2 stopped in iteration 0: the ward closes"):
            run.result(60)


def test_where_peers_do_not_go_on_without_one_another_who_leaves_stops_all(federation, tmp_path):
    net = federation(tcp(), survive=False, **PATIENT)
    reached = threading.Event()
    runs = [net.start(p, hook=lambda p, drawn: drawn > 10 and reached.set()) for p in range(4)]
    assert reached.wait(60)
    net.hosts[2].leave("the ward closes")
    net.all_there.set()
    for p, run in enumerate(runs):
        with pytest.raises(ExchangeStoppedError, match=r"peer 2 stopped in iteration \d+: the ward closes"):
            run.result(60)
        (last,) = last_lines(tmp_path, p)
        assert last["kind"] == "ExchangeStoppedError"


def started_with_a_clientapp(net, tmp_path, monkeypatch, at_30):
    """Start three hosts in threads, and the fourth as a ClientApp does, which calls ``at_30`` when it trains.

    Returns what the three come to, and what the fourth raises.
    """
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path))
    checkpoints(net)
    runs = {p: net.start(p) for p in (0, 1, 3)}

    def hook(peer, drawn):
        net.all_there.wait(0.05)
        if drawn == 30:
            at_30()

    with pytest.raises(Exception) as caught:  # noqa: PT011 - the tests look at it
        host_process.run_host(Host(net.plans[2], Quadratics(hook=hook)), deployed=True)
    net.all_there.set()
    return runs, caught.value


def test_a_clientapp_that_is_told_to_end_leaves_alone(federation, tmp_path, monkeypatch):
    net = federation(tcp(), **PATIENT)
    runs, error = started_with_a_clientapp(
        net, tmp_path, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert type(error) is DepartedError
    why = "its ClientApp was told to end (SIGTERM); the site stopped it, or its SuperNode is gone"
    assert_the_others_went_on(net, runs, f"peers [2] leave the run: {why}")
    assert_gone(tmp_path, 2, why)


def test_a_clientapp_that_p2pft_stop_ends_stops_all(federation, tmp_path, monkeypatch):
    net = federation(tcp(), **PATIENT)

    def stop():
        (there,) = running("test")
        assert there.peers == (2,)
        there.stop_run()

    runs, error = started_with_a_clientapp(net, tmp_path, monkeypatch, stop)
    told = r"peer 2 stopped in iteration \d+: the run was stopped at a site of it \(p2pft stop, SIGTERM\)"
    assert type(error) is ExchangeStoppedError
    for run in runs.values():
        with pytest.raises(ExchangeStoppedError, match=told):
            run.result(60)
    assert not list((tmp_path / "running").iterdir())


def test_a_host_whose_gradient_never_ends_is_given_up_when_it_can_come_back_no_more(
    federation,
    tmp_path,
    monkeypatch,
):
    net = federation(tcp(), **{"peer-timeout": 2.0, "hang-timeout": 2.0, "rejoin-deadline": 2.0})
    release = threading.Event()
    try:
        runs, error = started_with_a_clientapp(net, tmp_path, monkeypatch, lambda: release.wait(120))
        assert isinstance(error, LostContactError)
        assert "peers [2], busy in iteration 29: the others have gone on without it" in str(error)
        assert "too busy to ask to be let in again for 2 s; what they compute does not end" in str(error)
        (last,) = last_lines(tmp_path, 2)
        assert (last["kind"], last["error"]) == ("LostContactError", str(error))
        assert stopped_tail(tmp_path, 2)[1] == max(checkpoint_files(checkpoint_folder(tmp_path, 2))) == 29
        for p in (0, 1, 3):
            assert runs[p].result(100)[0].iterations == 120
            assert views(tmp_path, p)[-1]["peers"] == [0, 1, 3]
    finally:
        release.set()
    until(lambda: not any(t.name == "p2pft-host" for t in threading.enumerate()))  # nor does it come back
    assert len(last_lines(tmp_path, 2)) == 1


def test_who_finishes_last_tells_the_others_before_it_goes_however_busy_its_heartbeats_are(
    tmp_path, monkeypatch
):
    """Else these would wait for it for peer-timeout."""
    monkeypatch.setattr(Heartbeats, "nudge", lambda self: None)  # its gossip never gets out in time
    problems, evaluate = [Quadratics() for _ in range(4)], Peer.evaluate

    def slowly(self, theta):
        if self.peer == 3 and self.drawn > 1:
            threading.Event().wait(2.5)  # the others have finished meanwhile, and said so with a beat
        return evaluate(self, theta)

    monkeypatch.setattr(Peer, "evaluate", slowly)
    settings = {"iterations": 20, "evaluate-every": 20, "survive": True, "peer-timeout": 120.0}
    begin = time.monotonic()
    results = run_together(plans(RING, [[0], [1], [2], [3]], tcp(), tmp_path, **settings), problems)
    assert not any(isinstance(result, Exception) for result in results), results
    assert time.monotonic() - begin < 60.0
