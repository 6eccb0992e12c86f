"""How a coordinator that no peer reports to hears of a run all the same: it looks at any one peer."""

from __future__ import annotations

import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest

from p2pft_flower.flower import hearing
from p2pft_flower.flower.hearing import Looking
from p2pft_flower.flower.office import Office
from p2pft_flower.host.host import Host
from p2pft_flower.keeping.bulletins import bulletins
from p2pft_flower.keeping.progress import Progress
from p2pft_flower.report.status import status_of
from p2pft_flower.transport import Gossip, Looker, PeerScores, digest_of, looking, new_key
from p2pft_flower.typed import encoded
from tests.host.hosts import ALONE, RING, tcp, until
from tests.host.quadratic import Quadratics, plans, with_settings
from tests.journals import made_line

ITERATIONS = 40
KEY = new_key()


class Training:
    """Four hosts in threads, which stop in the middle until they are let go on."""

    def __init__(self, folder, **settings):
        self.addresses, self.goes_on = tcp(), threading.Event()
        settings = {"iterations": ITERATIONS, "survive": True} | settings
        made = plans(RING, ALONE, self.addresses, folder, **settings)
        self.plans = [replace(plan, look_digest=digest_of(KEY), evaluate_every=10) for plan in made]
        self.pool = ThreadPoolExecutor(4)
        self.hosts = [Host(plan, Quadratics(hook=self._hook)) for plan in self.plans]
        self.runs = [self.pool.submit(host.run) for host in self.hosts]

    def _hook(self, peer, drawn):
        if drawn == 25:
            assert self.goes_on.wait(60)

    def end(self):
        self.goes_on.set()
        for run in self.runs:
            run.result(60)
        self.pool.shutdown()


@pytest.fixture
def training(tmp_path):
    made = Training(tmp_path)
    yield made
    made.end()


def run_of(training, **others):
    """What the looking coordinator asks of its run."""
    plan = training.plans[0]
    fields = {
        "id": plan.run,
        "addresses": training.addresses,
        "exchanges": True,
        "config": plan.config,
        "names": plan.names,
        **others,
    }
    return SimpleNamespace(**fields)


def office(training, folder):
    plan = training.plans[0]
    return Office(plan.run, plan.config, 4, ITERATIONS, plan.hosts, {}, str(folder))


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(hearing, "_INTERVAL", 0.1)
    monkeypatch.setattr(hearing, "_LATER", 0.1)


def test_a_run_whose_peers_still_start_is_looked_at_again_in_silence(training, tmp_path, fast, caplog):
    later = dict.fromkeys(range(4), "127.0.0.1:1")
    run, lines = run_of(training, addresses=later), list[str]()
    with (
        office(training, tmp_path) as there,
        Looking(run, KEY, None, Progress(4, ITERATIONS, lines.append), there) as looking,
    ):
        until(lambda: looking._patient_until < float("inf"))
        looking._looker._channels.addresses.update(training.addresses)  # now they listen
        until(lambda: lines)
    assert "cannot be seen from here" not in caplog.text


def test_one_peer_that_answers_is_enough_for_lines_and_status_of_all(training, tmp_path, fast):
    lines: list[str] = []
    progress = Progress(4, ITERATIONS, lines.append)
    only_one = {**dict.fromkeys(range(4), "127.0.0.1:1"), 2: training.addresses[2]}
    with (
        office(training, tmp_path) as there,
        Looking(run_of(training, addresses=only_one), KEY, None, progress, there),
    ):
        until(lambda: any("iteration 20/40" in line for line in lines))
        assert not any("consensus error" in line for line in lines), (
            "only peer 2 tells the coordinator its sketch"
        )

        def known():
            told = [b for b in bulletins() if not b.own and b.folder == str(tmp_path)]
            return status_of(told, time.time()) if told else None

        until(lambda: (s := known()) is not None and all(p.evaluated == 20 for p in s.peers))
        assert not known().from_gossip
        training.goes_on.set()
        until(lambda: (s := known()) is not None and min(p.iteration for p in s.peers) > 20)
    assert not [b for b in bulletins() if not b.own and b.folder == str(tmp_path)]


def test_who_does_not_show_the_key_sees_nothing(training):
    until(lambda: training.hosts[1]._wires is not None)
    for key in (new_key(), b""):
        with Looker("test", key, training.addresses, timeout=60.0) as looker:
            answer = looker.look([1], Gossip())[1]
            assert "NOT_AUTHENTIC" in str(answer), answer
            assert training.plans[0].stop_digest == ""


def test_a_peer_that_is_suspended_does_not_make_a_look_late(training, monkeypatch):
    """Its machine takes the connection, and nobody answers."""
    until(lambda: all(host._wires is not None for host in training.hosts))
    monkeypatch.setattr(looking, "_OTHERS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        addresses = training.addresses | {2: f"127.0.0.1:{mute.getsockname()[1]}"}
        with Looker("test", KEY, addresses, timeout=60.0) as looker:
            looker.look([0], Gossip())  # the channel is open
            begin = time.monotonic()
            answers = looker.look(addresses, Gossip())
            assert time.monotonic() - begin < 30
    assert any(isinstance(answers[p], Gossip) for p in (0, 1, 3)), "on a slow machine some are late, too"
    assert "no answer within 0.3 s after another peer had answered" in str(answers[2])


def test_of_several_answers_to_a_look_each_peers_own_word_counts_whoever_answers_first(
    training, tmp_path, monkeypatch
):
    monkeypatch.setattr(looking, "_OTHERS", 60.0)
    until(lambda: all(len(host._standings.heard()) == 4 for host in training.hosts))
    until(lambda: all(_evaluated(host) == {20} for host in training.hosts))
    with Looker("test", KEY, training.addresses, timeout=60.0) as looker, office(training, tmp_path) as there:
        answers = looker.look(range(4), Gossip())
        reports, _ = there.hear(answers[p] for p in (3, 1, 0, 2))
    assert [(r.peer, r.iteration) for r in reports] == [(p, 20) for p in range(4)]
    assert all(r.sketch is not None for r in reports)


def test_the_office_takes_a_hosts_word_on_its_own_peers_and_views_of_the_runs_peers_only(
    training, tmp_path, caplog
):
    own = [PeerScores(peer=p, iteration=10, loss=1.0, accuracy=0.5, sketch=[0.0] * 128) for p in (2, 3)]
    there = office(training, tmp_path)
    views = [encoded(made_line("view", peers=peers, why={})) for peers in ((0, 1, 2, 9), (0, 1, 2))]
    reports, changes = there.hear([Gossip(sender=2, own_scores=own, view_changes=views)])
    assert [r.peer for r in reports] == [2]
    assert [c.peers for c in changes] == [(0, 1, 2)]
    assert "names peers of no run" in caplog.text
    odd = PeerScores(peer=2, iteration=ITERATIONS + 1, loss=1.0, accuracy=0.5)
    assert there.hear([Gossip(sender=2, own_scores=[odd])]) == ([], [])


def _evaluated(host):
    """The iterations of the scores that a host knows; all peers wait in the iteration after the last one."""
    heard = host._standings.heard().values()
    return {s.iteration for h in heard if h.scores is not None for s in h.scores.peers}


def test_a_look_that_names_members_of_no_run_is_refused_and_ends_nothing(training):
    until(lambda: training.hosts[1]._wires is not None)
    odd = Gossip()
    odd.known_scores.members.append(77)
    odd.known_scores.incarnations.append(0)
    odd.known_scores.versions.append(1)
    with Looker("test", KEY, training.addresses, timeout=60.0) as looker:
        assert "BAD_HEADER" in str(looker.look([1], odd)[1])
        assert isinstance(looker.look([1], Gossip())[1], Gossip)


def test_a_run_that_cannot_be_seen_from_here_says_so_once_and_goes_on(training, tmp_path, fast, caplog):
    progress = Progress(4, ITERATIONS, lambda line: None)
    config = with_settings(training.plans[0], **{"meet-timeout": 1.0}).config
    nowhere = run_of(training, addresses=dict.fromkeys(range(4), "127.0.0.1:1"), config=config)
    with caplog.at_level(logging.INFO), office(training, tmp_path) as there:
        with Looking(nowhere, KEY, None, progress, there):
            until(lambda: "cannot be seen from here" in caplog.text, 120.0)
        training.end()
    assert caplog.text.count("cannot be seen from here") == 1
    assert "observer-address lets them report" in caplog.text


def test_peers_that_answered_and_have_ended_are_no_fault_of_the_offices_view(training, tmp_path, caplog):
    there = office(training, tmp_path)
    looking = Looking(run_of(training), KEY, None, Progress(4, ITERATIONS, lambda line: None), there)
    looking._looker._timeout = 60.0
    try:
        until(looking._look)
        looking._patient_until = 0.0  # meet-timeout is long over
        assert looking._look()
        training.end()
        assert not looking._look()
        assert "cannot be seen from here" not in caplog.text
    finally:
        looking._looker.close()


def test_who_is_reached_tells_the_coordinator_its_own_sketch_and_nobody_elses(training, tmp_path, fast):
    lines: list[str] = []
    progress = Progress(4, ITERATIONS, lines.append)
    with office(training, tmp_path) as there, Looking(run_of(training), KEY, None, progress, there):
        until(lambda: any("iteration 20/40" in line and "consensus error" in line for line in lines))
    until(lambda: training.hosts[0]._standings.heard().keys() == {0, 1, 2, 3})
    heard = training.hosts[0]._standings.heard()
    until(lambda: all(h.scores is not None for h in training.hosts[0]._standings.heard().values()))
    heard = training.hosts[0]._standings.heard()
    assert [m for m in heard if any(s.sketch for s in heard[m].scores.peers)] == [0], "gossip has no sketches"
