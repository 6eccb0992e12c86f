"""Hosts that write checkpoints while they train, and hosts that go on from them."""

from __future__ import annotations

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.algorithms.registry import make_algorithm
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.host.agreement import NewView
from p2pft_flower.host.host import Host, PeerFailedError
from p2pft_flower.host.keeper import Keeper, Moment
from p2pft_flower.host.recorder import Recorder
from p2pft_flower.host.session import Sessions
from p2pft_flower.host.wires import Access
from p2pft_flower.keeping.checkpoints import (
    CheckpointError,
    checkpoint_files,
    checkpoint_folder,
    read_checkpoint,
)
from p2pft_flower.keeping.lines import written
from p2pft_flower.keeping.processes import start_mark
from p2pft_flower.keeping.resuming import Kept, KeptView, given_up, look_through, newest_common
from p2pft_flower.keeping.retention import files_kept, iterations_apart, spared_files
from p2pft_flower.plan import Neighbourhood, Plan, ResumePoint
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View
from p2pft_flower.transport import ExchangeStoppedError
from p2pft_flower.typed import converted, plain
from tests.journals import last_life, made_line

from .hosts import ALONE, FOLDED, run_together, tcp, unix
from .quadratic import GRAPH, Quadratics, plans, thetas

TOGETHER = [[0, 1, 2, 3]]


def keeping(folder, hosts=TOGETHER, addresses=(), every=4, files=50, graph=GRAPH, **settings):
    """Return one plan a host, with checkpoints."""
    made = plans(graph, hosts, dict(addresses), folder, **settings)
    return [replace(plan, checkpoint_every=every, checkpoint_files=files) for plan in made]


def point(folder, exchanges=True):
    """Return where a run of ``folder`` goes on from."""
    kept = [look_through(folder, p, "test") for p in range(4)]
    _, common = newest_common(kept, exchanges=exchanges)
    digests = {one.peer: one.digests[common[one.peer]] for one in kept}
    return ResumePoint("test", str(folder), common, digests)


def going_on(folder, source, exchanges=True, **how):
    return [replace(plan, resume=point(source, exchanges)) for plan in keeping(folder, **how)]


def run_all(all_plans, problems=None):
    problems = problems or [Quadratics() for _ in all_plans]
    for result in run_together(all_plans, problems):
        if isinstance(result, Exception):
            raise result
    return thetas(problems)


def iterations_of(folder, peer=0):
    return list(checkpoint_files(checkpoint_folder(folder, peer)))


def has(peer, views, live=(0, 1, 2)):
    """Return what a peer has kept: iterations by view; peer 2 is not in the odd ones."""
    return Kept(
        peer,
        "1",
        {v: KeptView(live[: 3 - v % 2], {}, {k: f"{v}:{k}" for k in ks}) for v, ks in views.items()},
    )


# --- which files there are ---


@pytest.mark.parametrize(
    ("asked", "evaluate_every", "apart"),
    [(0, 12, 60), (0, 50, 50), (0, 51, 51), (0, 900, 900), (0, 1, 50), (7, 12, 7), (-1, 12, -1)],
)
def test_left_open_checkpoints_follow_evaluations_that_are_50_iterations_apart(asked, evaluate_every, apart):
    assert iterations_apart(asked, evaluate_every) == apart


def test_a_run_writes_at_its_beginning_at_the_interval_and_at_its_end(tmp_path):
    run_all(keeping(tmp_path, iterations=10))
    for p in range(4):
        assert iterations_of(tmp_path, p) == [0, 4, 8, 10]


def test_a_run_without_checkpoints_writes_none(tmp_path):
    run_all(keeping(tmp_path, every=-1))
    assert not list(tmp_path.glob("peers/*.checkpoints"))


def test_the_newest_files_are_kept_and_that_of_the_end_costs_none(tmp_path):
    run_all(keeping(tmp_path, iterations=22, files=3))
    assert iterations_of(tmp_path) == [12, 16, 20, 22]


def test_checkpoints_do_not_change_the_run(tmp_path):
    with_them = run_all(keeping(tmp_path / "with", momentum=0.5))
    assert with_them.tobytes() == run_all(keeping(tmp_path / "without", every=-1, momentum=0.5)).tobytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_there_is_always_an_iteration_that_all_peers_have(data):
    """Peers that may be as far apart as a graph lets them, and writers that are as slow as they may be."""
    n, every = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 5))
    kept, end = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 30))
    graph = Graph.load(data.draw(st.sampled_from([f"directed-ring:{n}", f"ring:{n}", f"complete:{n}"])))
    files = files_kept(kept, every, graph.diameter)
    done, disk, writing = [0] * n, [[] for _ in range(n)], [0] * n
    for _ in range(data.draw(st.integers(0, 40 * n))):
        i = data.draw(st.integers(0, n - 1))
        if writing[i] is not None and data.draw(st.booleans()):  # the writer ends
            disk[i] = [*disk[i], writing[i]] if writing[i] == end else [*disk[i], writing[i]][-files:]
            writing[i] = None
        due = (done[i] + 1) % every == 0 or done[i] + 1 == end
        if (
            done[i] < end
            and all(done[j] >= done[i] for j in graph.in_neighbours(i))  # they have sent for this iteration
            and not (due and writing[i] is not None)  # one is written at a time
        ):
            done[i] += 1
            writing[i] = done[i] if due else writing[i]
        if all(disk):
            common = set.intersection(*map(set, disk))
            everybody = sum(k <= min(max(d) for d in disk) for k in {0, *range(0, end, every), end})
            assert len(common) >= min(kept, everybody), (disk, done)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_there_is_always_an_iteration_that_all_peers_have_of_one_view(data):
    """Also while peers are lost and come back: of all, always; of those left, once there are enough files."""
    n, every = data.draw(st.integers(3, 5)), data.draw(st.integers(1, 4))
    whole = tuple(range(n))
    live, view, views = whole, 0, {0: whole}
    graph = View.whole(Graph.load(f"directed-ring:{n}"))
    files = files_kept(data.draw(st.integers(1, 2)), every, n - 1)
    done, disk, writing = [0] * n, [{0: 0} for _ in whole], [None] * n

    def written(i):
        if writing[i] is not None:
            disk[i] |= [writing[i]]
            spared = spared_files(disk[i], {v for v, there in views.items() if there == whole}, files)
            disk[i] = {k: v for k, v in disk[i].items() if k in spared}
            writing[i] = None

    for _ in range(data.draw(st.integers(0, 30 * n))):
        what = data.draw(st.sampled_from(["iterate"] * 8 + ["write"] * 4 + ["change"]))
        i = data.draw(st.sampled_from(live))
        if what == "write":
            written(i)
        elif what == "change":
            live = tuple(sorted(data.draw(st.sets(st.sampled_from(whole), min_size=2))))
            view += 1
            graph = View.without(Graph.load(f"directed-ring:{n}"), set(whole) - set(live))
            was_in, views[view] = views[view - 1], live
            start = max(done[j] for j in was_in)
            for j in live:
                behind, done[j] = done[j] < start or j not in was_in, start
                if behind and start % every == 0:
                    written(j)
                    writing[j] = None if start in disk[j] else (start, view)
        elif all(done[j] >= done[i] for j in graph.row(i) if j != i):
            due = (done[i] + 1) % every == 0
            if not (due and writing[i] is not None):
                done[i] += 1
                writing[i] = (done[i], view) if due else writing[i]
        of_all = {v for v, there in views.items() if there == whole}
        assert set.intersection(*({(k, v) for k, v in kept.items() if v in of_all} for kept in disk))
        of_this = [{k for k, v in disk[j].items() if v == view} for j in live]
        if all(len(iterations) >= files for iterations in of_this):
            assert set.intersection(*of_this), (disk, views)


def test_files_of_an_earlier_view_stay_until_there_are_as_many_of_the_next():
    views = dict.fromkeys(range(10), 0) | {10: 1, 11: 1}
    assert spared_files(views, {0, 1}, 3) == {7, 8, 9, 10, 11}
    assert spared_files(views | {12: 1}, {0, 1}, 3) == {10, 11, 12}


def test_files_of_the_last_view_of_all_stay_while_somebody_is_missing():
    views = dict.fromkeys(range(10), 0) | dict.fromkeys(range(10, 20), 1)
    assert spared_files(views, {0}, 3) == {7, 8, 9, 17, 18, 19}
    assert spared_files(views | {20: 2}, {0, 2}, 3) == {7, 8, 9, 17, 18, 19, 20}
    assert spared_files(views | {20: 2, 21: 2, 22: 2}, {0, 2}, 3) == {20, 21, 22}


# --- going on ---


@pytest.mark.parametrize("before", [TOGETHER, FOLDED, ALONE], ids=["together", "folded", "alone"])
@pytest.mark.parametrize("after", [TOGETHER, FOLDED, ALONE], ids=["together", "folded", "alone"])
def test_hosts_may_be_others_and_theta_stays_bit_identical(before, after, tmp_path, short):
    how = {"momentum": 0.9, "schedule": "cosine", "weight-decay": 0.01}
    whole = run_all(keeping(tmp_path / "whole", every=-1, **how))
    first = keeping(tmp_path / "first", before, unix(short), **how)
    with pytest.raises((PeerFailedError, ExchangeStoppedError)):
        run_all(first, [Quadratics(fail_at={2: 12}) for _ in before])
    assert max(point(tmp_path / "first").iterations.values()) >= 8
    rest = run_all(going_on(tmp_path / "rest", tmp_path / "first", hosts=after, addresses=unix(short), **how))
    assert rest.tobytes() == whole.tobytes()


def test_a_resumed_run_can_be_resumed_from_its_first_moment_on(tmp_path):
    whole = run_all(keeping(tmp_path / "whole"))
    source = tmp_path / "whole"
    for p in range(4):
        for k in (16, 20):
            (checkpoint_folder(source, p) / f"iteration-{k}.safetensors").unlink()
    for name, fail in (("second", 14), ("third", 15)):
        with pytest.raises(PeerFailedError):
            run_all(going_on(tmp_path / name, source), [Quadratics(fail_at={1: fail})])
        source = tmp_path / name
    assert iterations_of(tmp_path / "third") == [
        13,
        14,
    ]  # where it was stopped, twice
    assert run_all(going_on(tmp_path / "rest", source)).tobytes() == whole.tobytes()
    evaluations = [
        e["iteration"]
        for e in last_life(tmp_path / "rest" / "peers" / "peer-3.jsonl")
        if e["event"] == "evaluation"
    ]
    assert evaluations == [0, 10, 20]


def test_a_host_whose_peer_fails_or_that_is_stopped_leaves_its_last_complete_iteration(tmp_path, short):
    with pytest.raises(PeerFailedError):
        run_all(keeping(tmp_path / "failed"), [Quadratics(fail_at={3: 7})])  # in iteration 6
    for p in range(4):
        assert iterations_of(tmp_path / "failed", p) == [0, 4, 6]
        last, _ = read_checkpoint(checkpoint_files(checkpoint_folder(tmp_path / "failed", p))[6])
        assert last.stopped
        assert last.position == {"drawn": 7}  # though peer 3 alone has not drawn an eighth

    reached = threading.Event()

    def hook(peer, drawn):
        if drawn == 9:
            reached.set()

    all_plans = keeping(tmp_path / "stopped", FOLDED, unix(short), iterations=10**6)
    hosts = [Host(plan, Quadratics(hook=hook)) for plan in all_plans]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(host.run) for host in hosts]
        assert reached.wait(30)
        hosts[0].stop("the operator said so")
        for future in futures:
            with pytest.raises(ExchangeStoppedError):
                future.result(30)
    for p in range(4):
        assert iterations_of(tmp_path / "stopped", p)[-1] >= 7


def test_peers_that_exchange_nothing_go_on_each_from_its_own_newest(tmp_path):
    how = {"algorithm": "local", "momentum": 0.5}
    whole = run_all(keeping(tmp_path / "whole", **how))
    source = tmp_path / "whole"
    for p, left in enumerate([[0, 4], [0, 4, 8], [0], [0, 4, 8, 12, 16, 20]]):
        for k, path in checkpoint_files(checkpoint_folder(source, p)).items():
            if k not in left:
                path.unlink()
    assert point(source, exchanges=False).iterations == {0: 4, 1: 8, 2: 0, 3: 20}
    rest = tmp_path / "rest"
    problem = Quadratics()
    assert run_all(going_on(rest, source, exchanges=False, **how), [problem]).tobytes() == whole.tobytes()
    for p in range(4):
        log = last_life(rest / "peers" / f"peer-{p}.jsonl")
        assert [e["iteration"] for e in log if e["event"] == "evaluation"] == [0, 10, 20]
        assert iterations_of(rest, p)[-1] == 20
    assert iterations_of(rest, 1) == [8, 12, 16, 20]


def test_gradients_that_were_drawn_in_vain_are_counted(tmp_path):
    """For private gradients, whose noise is drawn anew: two intervals at most, one iteration after a stop."""
    run_all(keeping(tmp_path / "whole", iterations=40))
    killed, problem = tmp_path / "killed", Quadratics()
    shutil.copytree(tmp_path / "whole", killed)
    for p in range(4):
        for k, path in checkpoint_files(checkpoint_folder(killed, p)).items():
            if k > 12 + 4 * (p == 1):  # peer 1 had one more
                path.unlink()
    run_all(going_on(tmp_path / "a", killed, iterations=40), [problem])
    assert [problem.built[p].lost for p in range(4)] == [8, 12, 8, 8]

    with pytest.raises(PeerFailedError):
        run_all(keeping(tmp_path / "stopped", iterations=40), [Quadratics(fail_at={3: 7})])
    problem = Quadratics()
    run_all(going_on(tmp_path / "b", tmp_path / "stopped", iterations=40), [problem])
    assert [problem.built[p].lost for p in range(4)] == [1, 1, 1, 1]


# --- files that are not what they were ---


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_named_and_the_one_before_is_used(damage, tmp_path, caplog, monkeypatch):
    whole = run_all(keeping(tmp_path / "whole"))
    path = checkpoint_folder(tmp_path / "whole", 2) / "iteration-20.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 64
    path.write_bytes({"cut": data[:-100], "flipped": data, "empty": b""}[damage])
    assert set(point(tmp_path / "whole").iterations.values()) == {16}
    assert str(path) in caplog.text
    assert run_all(going_on(tmp_path / "rest", tmp_path / "whole")).tobytes() == whole.tobytes()


def test_a_file_that_was_changed_after_it_was_chosen_is_refused(tmp_path):
    run_all(keeping(tmp_path / "whole"))
    (plan,) = going_on(tmp_path / "rest", tmp_path / "whole")
    changed = replace(plan, resume=replace(plan.resume, digests=plan.resume.digests | {1: "0" * 32}))
    with pytest.raises(DataError, match=r"peer-1.checkpoints.iteration-20.safetensors: it was changed"):
        run_all([changed])


def test_another_model_is_refused_by_its_digest(tmp_path):
    run_all(keeping(tmp_path / "whole"))
    problem = Quadratics()
    problem.model_digest = "another"
    with pytest.raises(DataError, match="model digest is quadratics in the checkpoint, another now"):
        run_all(going_on(tmp_path / "rest", tmp_path / "whole"), [problem])


def test_where_no_iteration_is_everybodys_each_ones_are_told():
    kept = [has(0, {0: [4, 8]}), has(1, {0: [12]}), has(2, {})]
    with pytest.raises(DataError, match=r"peer 0: 4, 8; peer 1: 12; peer 2: none"):
        newest_common(kept, exchanges=True)
    with pytest.raises(DataError, match=r"peer 2: none"):
        newest_common(kept, exchanges=False)
    assert newest_common(kept[:2], exchanges=False) == (0, {0: 8, 1: 12})


# --- runs that have lost a peer ---


def test_files_of_one_iteration_but_of_two_views_do_not_belong_together():
    alone = has(2, {0: [4, 8, 12]})  # it had done 12 when the others went on from 8
    kept = [has(0, {0: [4, 8], 1: [12, 16]}), has(1, {0: [8], 1: [12, 16]}), alone]
    assert newest_common(kept, exchanges=True) == (0, dict.fromkeys(range(3), 8))
    assert given_up(kept, 0) == ["view 1 of the peers [0, 1], up to iteration 16"]
    assert newest_common(kept[:2], exchanges=True) == (1, {0: 16, 1: 16})
    back = [replace(one, views=one.views | has(one.peer, {2: [20]}).views) for one in kept]
    assert newest_common(back, exchanges=True) == (2, dict.fromkeys(range(3), 20))
    assert given_up(back, 2) == []
    with pytest.raises(DataError, match=r"peer 0: 12 \(view 1, peers \[0, 1\]\); peer 1: 8; peer 2: 12"):
        newest_common([has(0, {1: [12]}), has(1, {0: [8]}), has(2, {0: [12]})], exchanges=True)


@pytest.fixture
def lost(tmp_path):
    """The folder of a run of four, of which peer 2 fails in iteration 29 of 80, and the others' θ."""
    ring = Graph.load("directed-ring:4")
    made = plans(ring, ALONE, tcp(), tmp_path / "lost", iterations=80, survive=True, **LOSING)
    problems = [Quadratics(fail_at={2: 30}) for _ in made]
    made = [replace(plan, checkpoint_every=4, checkpoint_files=4) for plan in made]
    results = run_together(made, problems)
    assert [isinstance(r, Exception) for r in results] == [False, False, True, False]
    return tmp_path / "lost", [problems[p].built[p].kept for p in (0, 1, 3)]


LOSING = {"peer-timeout": 5.0, "momentum": 0.5, "on-failure": "continue"}


def resumed_among(peers, source, folder):
    """Return the θ of ``peers``, which go on by themselves from what they have kept in ``source``."""
    ring = Graph.load("directed-ring:4")
    view = View.without(ring, set(range(4)) - set(peers))
    kept = [look_through(source, p, "test") for p in peers]
    number, common = newest_common(kept, exchanges=True)
    digests = {one.peer: one.digests[common[one.peer]] for one in kept}
    (plan,) = plans(ring, TOGETHER, {}, folder, iterations=80, **LOSING)
    plan = replace(
        plan,
        peers=tuple(Neighbourhood.of(view, p) for p in peers),
        loss_weights=dict.fromkeys(peers, kept[0].views[number].about.loss_weight),
        resume=ResumePoint("test", str(source), common, digests),
    )
    problem = Quadratics()
    return common, run_all([plan], [problem])


def test_a_run_that_lost_a_peer_goes_on_with_all_from_before_the_loss(lost, tmp_path):
    folder, _ = lost
    common, rest = resumed_among(range(4), folder, tmp_path / "rest")
    assert common[0] >= 24  # the survivors, who are at 80, have kept what the lost peer has
    (plan,) = plans(Graph.load("directed-ring:4"), TOGETHER, {}, tmp_path / "x", iterations=80, **LOSING)
    assert rest.tobytes() == run_all([plan]).tobytes()


def test_those_who_went_on_without_a_peer_can_be_resumed_by_themselves(lost, tmp_path):
    folder, ended = lost
    for p in (0, 1, 3):
        for k, path in checkpoint_files(checkpoint_folder(folder, p)).items():
            if k > 72:  # as if all had been killed there
                path.unlink()
    common, rest = resumed_among((0, 1, 3), folder, tmp_path / "rest")
    assert common == dict.fromkeys((0, 1, 3), 72)
    assert rest.tobytes() == np.stack(ended).tobytes()
    read, _ = read_checkpoint(checkpoint_files(checkpoint_folder(folder, 3))[72])
    assert (read.view, read.live) == (1, (0, 1, 3))
    assert set(read.about.row) == {1, 3}  # 2 stood between them


def test_a_life_that_was_not_let_in_hides_nothing_of_the_lives_before(lost, tmp_path):
    """Evaluations, and the changes of view that cost private gradients: two each."""
    folder, _ = lost
    before = Quadratics()
    ring = Graph.load("directed-ring:4")
    (plan,) = plans(ring, TOGETHER, {}, tmp_path / "before", iterations=80, **LOSING)
    run_all([replace(plan, resume=point(folder))], [before])
    later = [made_line("run", run="test"), made_line("start"), made_line("run", run="another")]
    with (folder / "peers" / "peer-0.jsonl").open("ab") as log:
        log.writelines(map(written, later))
    problem = Quadratics()
    (plan,) = plans(ring, TOGETHER, {}, tmp_path / "after", iterations=80, **LOSING)
    run_all([replace(plan, resume=point(folder))], [problem])
    assert problem.built[0].lost == before.built[0].lost
    assert problem.built[0].lost > problem.built[2].lost  # which saw no other view
    for part in ("before", "after"):
        told = last_life(tmp_path / part / "peers" / "peer-0.jsonl")
        assert [e["iteration"] for e in told if e["event"] == "evaluation"] == [*range(0, 81, 10)]


class KeptByHand:
    """Peer 2 of a ring, whose iterations and views a test goes through without training."""

    def __init__(self, folder):
        self.folder, self.ring, problem = folder, Graph.load("ring:4"), Quadratics()
        plan = plans(self.ring, ALONE, tcp(), folder, survive=True, iterations=100)[2]
        plan = replace(plan, checkpoint_every=1, checkpoint_files=4)
        self.recorder = Recorder(plan, problem, Access())
        self.keeper = Keeper(plan, problem.model_digest, self.recorder, gradients=1)
        self.sessions = Sessions(plan, problem.theta0, ("theta", "tau"), problem.model_digest, always=False)
        self.session = {0: self.sessions.first()}
        method = make_algorithm("p2pft", alpha=lambda k: 0.1, momentum=0.0)
        self.state = method.start(problem.theta0, np.zeros_like)

    def train(self, view, begin, end):
        """Complete the iterations ``begin`` up to ``end`` and return of which there are files."""
        for done in range(begin, end):
            position = {2: lambda at=done: {"drawn": at}}
            moment = Moment(done, {2: self.state}, position, {}, {2: 0}, 0.0, self.session[view])
            self.keeper.keep(moment, bool, 60.0)
        self.keeper.finish(bool, 60.0)
        return iterations_of(self.folder, 2)

    def enter(self, number, iteration, broken=()):
        view = View.without(self.ring, (), broken)
        self.session[number] = self.sessions.of(NewView(number, view, iteration, (), (), {}, 0.0))

    def views(self):
        """Return the view of each iteration's file."""
        files = checkpoint_files(checkpoint_folder(self.folder, 2))
        return {k: read_checkpoint(path)[0].view for k, path in files.items()}


@pytest.fixture
def by_hand(tmp_path):
    made = KeptByHand(tmp_path)
    yield made
    made.recorder.close()


def test_while_a_link_is_cut_the_files_of_the_last_view_that_had_all_links_stay(by_hand):
    """Also those of peer 2, which has not lost a link itself."""
    assert by_hand.train(0, 0, 10) == [6, 7, 8, 9]
    by_hand.enter(1, 9, [(0, 1), (1, 0)])
    by_hand.train(1, 9, 10)  # as who comes back to the iteration that it left at
    assert by_hand.views()[9] == 0
    in_the_cut_view = by_hand.train(1, 10, 30)
    assert in_the_cut_view[:4] == [6, 7, 8, 9]
    assert min(in_the_cut_view[4:]) > 20
    by_hand.enter(2, 29)
    assert min(by_hand.train(2, 30, 50)) > 40


def test_who_was_ahead_keeps_what_it_does_again_with_the_others_in_the_view_that_let_it_in(by_hand):
    by_hand.train(0, 0, 10)
    by_hand.enter(1, 7)  # the others had come to 7 when it was lost
    assert by_hand.train(1, 7, 10) == [6, 7, 8, 9]
    assert by_hand.views() == {6: 0, 7: 0, 8: 1, 9: 1}  # the others have that of 7 from view 0 as well


# --- what goes wrong while a run writes ---


@pytest.fixture
def torn(tmp_path, monkeypatch):
    """What was begun to be written of peer 2, and a function that has a process train that peer."""
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    path = checkpoint_folder(tmp_path, 2) / "iteration-7.safetensors.partial"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")

    def alive(pid):
        entry = {"run": "test", "peers": [2], "neighbours": [], "pid": pid, "started": start_mark(pid)}
        folder = tmp_path / "home" / "running"
        folder.mkdir(parents=True)
        (folder / f"{pid}-2.json").write_text(json.dumps(entry))

    return path, alive


@pytest.mark.parametrize("pid", [None, os.getpid()], ids=["nobody", "this-process"])
def test_what_a_killed_process_had_begun_to_write_is_removed(pid, torn, request):
    path, alive = torn
    if pid is not None:
        alive(pid)
    request.getfixturevalue("by_hand")
    assert not path.exists()


def test_what_another_process_that_lives_has_begun_to_write_stays(torn, request):
    path, alive = torn
    alive(os.getppid())
    request.getfixturevalue("by_hand")
    assert path.exists()


def test_a_disk_that_fills_stops_the_run_with_a_clear_error_and_harms_no_good_file(tmp_path, monkeypatch):
    real = os.fsync

    def full(number):
        name = str(Path(f"/proc/self/fd/{number}").readlink())
        if "peer-2." in name and name.endswith(".partial") and len(iterations_of(tmp_path, 2)) == 3:
            raise OSError(28, "No space left on device")
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        CheckpointError, match=r"peer 2: the checkpoint of iteration 12 .*No space left on device"
    ):
        run_all(keeping(tmp_path, iterations=1000))
    monkeypatch.undo()
    kept = look_through(tmp_path, 2, "test")
    assert list(kept.digests) == [0, 4, 8]
    (last,) = [e for e in last_life(tmp_path / "peers" / "peer-0.jsonl") if e["event"] == "failed"]
    assert "No space left on device" in last["error"]


def test_a_folder_that_cannot_be_written_to_ends_the_run_at_its_first_checkpoint(tmp_path):
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "peer-1.checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match=r"peer 1: the checkpoint of iteration 0 cannot be written"):
        run_all(keeping(tmp_path, iterations=1000))


def test_a_disk_that_hangs_is_told_of_after_the_deadline(tmp_path, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: release.wait(60))
    try:
        with pytest.raises(CheckpointError, match=r"still being written after 0.5 s \(peer-timeout\)"):
            run_all(keeping(tmp_path, **{"peer-timeout": 0.5}))
    finally:
        release.set()


OWN = """
class Method:
    phases = ()

    def __init__(self, alpha, momentum):
        pass

    def start(self, theta, gradient):
        return State(theta, {"step": 0})

    def step(self, k, state, gradient):
        yield from ()
        return state

class State:
    def __init__(self, theta, notes):
        self.theta, self.notes = theta, notes
"""


def test_a_method_whose_state_cannot_be_kept_says_so_and_trains_without_checkpoints(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    method = {"algorithm": f"{tmp_path}/own.py:Method"}
    with pytest.raises(ConfigError, match=r"its state is a State, .*checkpoint-every = -1"):
        run_all(keeping(tmp_path / "a", **method))
    run_all(keeping(tmp_path / "b", every=-1, **method))


def test_a_plan_with_a_point_to_go_on_from_survives_the_message():
    (plan,) = keeping(Path("/nowhere"), files=7)
    done, digests = {0: 8, 1: 8, 2: 8, 3: 8}, {0: "a", 1: "b", 2: "c", 3: "d"}
    plan = replace(plan, resume=ResumePoint("12", "/runs/12", done, digests))
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.begins == done


def test_what_peers_tell_of_their_checkpoints_survives_the_message(tmp_path):
    run_all(keeping(tmp_path))
    kept = look_through(tmp_path, 1, "test")
    told = json.loads(json.dumps(plain(kept)))
    assert converted(told, Kept, "peer 1") == kept
    assert list(kept.digests) == [0, 4, 8, 12, 16, 20]
    assert kept.newest.about.row == keeping(tmp_path)[0].peers[1].row


def test_a_peer_does_not_come_back_to_a_run_with_another_model(by_hand):
    by_hand.train(0, 1, 3)
    by_hand.enter(1, 3)
    objective = Quadratics().objectives([2], lambda: None)[2]
    by_hand.keeper.restore_past(2, objective, by_hand.session[1])
    by_hand.keeper._model_digest = "another"
    with pytest.raises(DataError, match=r"peer 2 cannot come back to run test: its model digest is quadra"):
        by_hand.keeper.restore_past(2, objective, by_hand.session[1])
