"""Hosts that keep their best θ: all the same iteration, on every way, resumed, and through other views."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open

from p2pft_flower.errors import ConfigError
from p2pft_flower.host.best import COLUMNS, BestTheta, TableError, merged
from p2pft_flower.host.host import Host, PeerFailedError
from p2pft_flower.host.training import Training
from p2pft_flower.keeping.kept import Best
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import scheduled

from .hosts import ALONE, FOLDED, RING, run_together, tcp, unix, until
from .quadratic import GRAPH, Peer, Quadratics, plans
from .test_keeper import going_on, keeping

BY_LOSS = {"keep": "best:loss", "validation": 0.1, "learning-rate": 0.03, "iterations": 60}
EXPONENTIAL = scheduled(Graph.load("directed-ring-4"), "one-peer-exponential")


class Course(Peer):
    """A peer that keeps its θ of every evaluation, so that a test can score all of them again."""

    def __init__(self, *args):
        super().__init__(*args)
        self.course = []

    def evaluate(self, theta):
        self.course.append(theta.copy())
        return super().evaluate(theta)


class Courses(Quadratics):
    peer = Course


def kept_by(outcomes):
    assert all(o.kept.own for o in outcomes)
    ((by, iteration, score),) = {(o.kept.by, o.kept.iteration, o.kept.score) for o in outcomes}
    return by, iteration, score


def tail(folder, peer):
    with safe_open(folder / "peers" / f"peer-{peer}.safetensors", "np") as file:
        return file.get_tensor("theta"), file.metadata()["iterations"]


def run_kept(all_plans, **faults):
    outcomes = run_together(all_plans, [Quadratics(**faults) for _ in all_plans])
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [o for outcome in outcomes for o in outcome]


def run_graph(graph, folder, hosts, addresses, problem=Quadratics, **settings):
    problems = [problem() for _ in hosts]
    results = run_together(plans(graph, hosts, addresses, folder, **{**BY_LOSS, **settings}), problems)
    for result in results:
        if isinstance(result, Exception):
            raise result
    built = {p: one for problem in problems for p, one in problem.built.items()}
    return [built[p] for p in sorted(built)], [outcome for result in results for outcome in result]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"keep": "best:balanced-accuracy"},
        {"algorithm": "dgd"},
        {"algorithm": "sgp", "codec": "none"},
        {"algorithm": "gt-dgd"},
        {"algorithm": "momentum-tracking"},
        {"codec": "int8"},
        {"algorithm-options": "local-steps=2"},
        {"pipelined": True},
    ],
    ids=str,
)
def test_all_peers_end_with_the_theta_whose_mean_score_is_best(settings, tmp_path):
    graph = GRAPH if settings.get("algorithm") != "gt-dgd" else Graph.load("ring:4")
    peers, outcomes = run_graph(graph, tmp_path, [[0, 1, 2, 3]], {}, Courses, **settings)
    by, iteration, score = kept_by(outcomes)
    scores = [[peer.validate(theta) for theta in peer.course[:7]] for peer in peers]
    means = np.mean([[getattr(s, by.replace("-", "_")) for s in of_peer] for of_peer in scores], axis=0)
    best = means.argmin() if by == "loss" else means.argmax()
    assert 0 < best < 6  # neither the beginning nor the end: something was chosen
    assert (iteration, score) == (10 * best, pytest.approx(means[best]))
    for p, (peer, outcome) in enumerate(zip(peers, outcomes, strict=True)):
        theta, of = tail(tmp_path, p)
        assert theta.tobytes() == peer.course[best].tobytes()
        assert of == str(iteration)
        assert outcome.loss == Peer(p).evaluate(theta).loss
        assert outcome.iterations == 60


@pytest.mark.parametrize("graph", [RING, GRAPH, EXPONENTIAL], ids=["directed ring", "lopsided", "one peer"])
def test_wherever_the_peers_live_they_keep_the_same_bits_and_send_the_same(graph, tmp_path, short):
    (_, outcomes), told = run_graph(graph, tmp_path / "m", [[0, 1, 2, 3]], {}), []
    for name, hosts, addresses, more in (
        ("unix", FOLDED, unix(short), {}),
        ("grpc", [[0, 1, 2, 3]], unix(short), {"transport": "grpc"}),
        ("tcp", ALONE, tcp(), {}),
    ):
        _, others = run_graph(graph, tmp_path / name, hosts, addresses, **more)
        told.append([(o.kept, o.bytes_sent, o.loss) for o in others])
        for p in range(4):
            assert tail(tmp_path / name, p)[0].tobytes() == tail(tmp_path / "m", p)[0].tobytes()
    assert told == [[(o.kept, o.bytes_sent, o.loss) for o in outcomes]] * 3


def test_theta_over_the_iterations_is_the_same_with_and_without_a_choice(tmp_path, short):
    without, _ = run_graph(GRAPH, tmp_path / "a", FOLDED, unix(short), Courses, keep="last")
    with_it, _ = run_graph(GRAPH, tmp_path / "b", FOLDED, unix(short), Courses)
    for peer, other in zip(without, with_it, strict=True):
        assert [x.tobytes() for x in other.course[:7]] == [x.tobytes() for x in peer.course]


def journalled(folder, peer):
    """The validation scores in a peer's journal, by iteration."""
    rows = [json.loads(line) for line in (folder / "peers" / f"peer-{peer}.jsonl").read_text().splitlines()]
    return {row["iteration"]: row["validation"] for row in rows if row["event"] == "evaluation"}


@pytest.mark.parametrize("keep", ["best:loss", "best:balanced-accuracy", "last"])
def test_each_journal_has_the_peers_validation_scores_over_the_iterations(keep, tmp_path):
    peers, _ = run_graph(GRAPH, tmp_path, [[0, 1, 2, 3]], {}, Courses, keep=keep)
    for p, peer in enumerate(peers):
        scores = [peer.validate(theta) for theta in peer.course[:7]]
        expected = [s.loss if keep == "best:loss" else s.balanced_accuracy for s in scores]
        if keep == "last":
            expected = [None] * 7
        assert journalled(tmp_path, p) == dict(zip(range(0, 70, 10), expected, strict=True))


def test_a_resumed_runs_journal_has_the_validation_scores_of_before(tmp_path):
    how = {**BY_LOSS, "every": 10}
    run_kept(keeping(tmp_path / "whole", **how))
    with pytest.raises(PeerFailedError):
        run_kept(keeping(tmp_path / "first", **how), fail_at={1: 45})
    run_kept(going_on(tmp_path / "rest", tmp_path / "first", **how))
    for p in range(4):
        found = journalled(tmp_path / "rest", p)
        assert found == journalled(tmp_path / "whole", p)
        assert len(found) == 7


def test_peers_that_exchange_nothing_choose_each_for_itself(tmp_path):
    peers, outcomes = run_graph(RING, tmp_path, [[0, 1, 2, 3]], {}, Courses, algorithm="local")
    for peer, outcome in zip(peers, outcomes, strict=True):
        losses = [peer.validate(theta).loss for theta in peer.course[:7]]
        assert (outcome.kept.iteration, outcome.kept.score) == (10 * np.argmin(losses), min(losses))


@pytest.mark.parametrize("failed_at", [14, 21, 45], ids=["before the best", "while it is chosen", "after it"])
def test_a_resumed_run_keeps_what_the_uninterrupted_one_keeps_bit_for_bit(failed_at, tmp_path):
    how = {**BY_LOSS, "codec": "q4", "every": 10}
    whole = run_kept(keeping(tmp_path / "whole", **how))
    assert kept_by(whole)[1] == 20
    with pytest.raises(PeerFailedError):
        run_kept(keeping(tmp_path / "first", **how), fail_at={1: failed_at})
    rest = going_on(tmp_path / "rest", tmp_path / "first", **how)
    assert set(rest[0].begins.values()) == {failed_at - 1}
    assert [o.kept for o in run_kept(rest)] == [o.kept for o in whole]
    for p in range(4):
        assert tail(tmp_path / "rest", p)[0].tobytes() == tail(tmp_path / "whole", p)[0].tobytes()


def test_a_peer_that_dies_in_the_last_evaluation_takes_no_part_and_all_others_decide_it_alike(
    federation, monkeypatch
):
    """All others have sent their scores, and wait for those of peer 2 along the ring, as it fails."""
    net = federation(tcp(), **{**BY_LOSS, "iterations": 20, "peer-timeout": 8.0})
    net.all_there.set()
    scored = Peer.validate

    def validate(self, theta):
        if self.peer == 2 and self.drawn > 20:
            raise ValueError("no more images")
        self.scored = [*getattr(self, "scored", []), scored(self, theta).loss]
        return scored(self, theta)

    monkeypatch.setattr(Peer, "validate", validate)
    runs = [net.start(p) for p in range(4)]
    with pytest.raises(PeerFailedError, match="its scores on validation images failed"):
        runs[2].result(60)
    outcomes = [runs[p].result(60)[0] for p in (0, 1, 3)]
    _, iteration, score = kept_by(outcomes)
    assert iteration == 20  # the evaluation that was being decided on
    peers = {p: one for problem in net.problems.values() for p, one in problem.built.items()}
    assert score == pytest.approx(np.mean([peers[p].scored[2] for p in (0, 1, 3)]))


def lose_and_let_in(net, lost, back):
    """Peer 2 fails in its gradient number ``lost`` and comes back as the others are at iteration ``back``."""
    net.all_there.set()
    let_in = threading.Event()

    def hook(peer, drawn):
        if peer == 2 and drawn == lost:
            raise ValueError("no more images")
        if peer != 2 and net.hosts[peer]._iteration == back:
            assert let_in.wait(60)

    runs = [net.start(p, hook=hook) for p in range(4)]
    with pytest.raises(PeerFailedError):
        runs[2].result(60)
    until(lambda: all(net.hosts[p]._iteration >= back - 4 for p in (0, 1, 3)))
    runs[2] = net.start(2, joining=True)
    until(lambda: all(net.view_of(p) == 2 for p in (0, 1, 3)))
    let_in.set()
    return [run.result(60)[0] for run in runs]


def test_who_was_away_keeps_the_others_iteration_and_says_that_it_has_no_theta_of_it(
    federation, tmp_path, monkeypatch
):
    """Even if it had decided on an evaluation that the others had not: these went on without it."""
    decided = Best(decided=44, iteration=10, score=0.0, theta=np.zeros(300, np.float32))
    monkeypatch.setattr(Training, "_restore_best", lambda self, peer, _: self._best.restore(peer, decided))
    net = federation(tcp(), **{**BY_LOSS, "peer-timeout": 8.0})
    net.plans = [replace(plan, checkpoint_every=5, checkpoint_files=20) for plan in net.plans]
    outcomes = lose_and_let_in(net, lost=15, back=45)
    assert [o.kept.own for o in outcomes] == [True, True, False, True]
    ((iteration, score),) = {(o.kept.iteration, o.kept.score) for o in outcomes}
    assert iteration == 20
    assert 0 < score < 1
    assert tail(tmp_path, 2)[1] == "60"  # its last θ
    assert {tail(tmp_path, p)[1] for p in (0, 1, 3)} == {"20"}


def test_who_was_away_has_its_theta_of_the_kept_iteration_from_its_checkpoint(federation, tmp_path):
    net = federation(tcp(), **{**BY_LOSS, "peer-timeout": 8.0})
    net.plans = [replace(plan, checkpoint_every=5, checkpoint_files=20) for plan in net.plans]
    outcomes = lose_and_let_in(net, lost=28, back=45)
    assert kept_by(outcomes)[1] == 20
    assert {tail(tmp_path, p)[1] for p in range(4)} == {"20"}


# --- the tables ---


def test_whenever_views_change_all_members_keep_the_same_iteration():
    """Peers of rings go through rounds each at its own pace; at any moment one is lost, or comes back."""
    for seed in range(300):
        kept, changes = Rounds(np.random.default_rng(seed)).run()
        assert len(kept) == 1, seed
    assert changes


class Rounds:
    """Peers on a directed ring, each with its own pace; what a table's round or an iteration needs, holds."""

    def __init__(self, rng, n=4, evaluations=6):
        self.rng, self.n, self.evaluations, self.changes = rng, n, evaluations, 0
        self.best = {p: BestTheta("loss", n) for p in range(n)}
        self.view, self.always = [], set(range(n))
        self.at = {}
        self.sent = {}
        self.enter(range(n), 0)

    def enter(self, peers, evaluation):
        """Begin a view: peers that have not been scored at the evaluation are scored now."""
        for p in peers:
            if p not in self.at or self.at[p][0] < evaluation:
                self.score(p, evaluation)
            if p not in self.view and self.changes:
                self.best[p].come_back()
        self.view, self.sent = sorted(peers), {}
        for p in peers:
            self.at[p] = (evaluation, 0)
            self.begin(p)

    def score(self, p, evaluation):
        score = None if p == 1 else self.rng.random()  # peer 1 has no validation image
        self.best[p].note(p, evaluation, score, np.array([p, evaluation]))

    def begin(self, p):
        self.sent[p, self.at[p]] = self.best[p].tables([p])[p]

    def step(self, p):
        """Take a peer a round, or an evaluation, further, if what it needs has come; tell whether it has."""
        evaluation, done = self.at[p]
        before = self.view[self.view.index(p) - 1]
        rounds = len(self.view) - 1
        if done < rounds:
            come = self.sent.get((before, (evaluation, done)))
            if come is None:
                return False
            table = merged(self.sent[p, self.at[p]], come.reshape(-1), (before, p), self.view, 99)
            self.at[p] = (evaluation, done + 1)
            self.sent[p, self.at[p]] = table
            if done + 1 == rounds:
                self.best[p].decide({p: table})
            return True
        if evaluation == self.evaluations or self.at[before] < (evaluation, rounds):
            return False
        self.at[p] = (evaluation + 1, 0)
        self.score(p, evaluation + 1)
        self.begin(p)
        return True

    def run(self):
        while sum(self.step(int(p)) for p in self.rng.permutation(self.view)):
            for _ in range(self.rng.integers(5)):
                self.step(int(self.rng.choice(self.view)))
            if self.rng.random() < 0.15:
                self.change()
        kept = {p: self.best[p].so_far[p] for p in self.view}
        for p, best in kept.items():
            assert best.decided == self.evaluations
            assert p not in self.always or best.theta is not None
            assert best.theta is None or best.theta.tolist() == [p, best.iteration]
        return {best[:3] for best in kept.values()}, self.changes

    def change(self):
        self.changes += 1
        away = [p for p in range(self.n) if p not in self.view]
        lost = None if away else int(self.rng.choice(self.view))
        self.always.discard(lost)
        stay = [p for p in self.view if p != lost]
        newest = max(self.at[p][0] for p in stay)
        self.enter([*stay, *away], newest)


def test_a_score_that_is_no_better_changes_nothing():
    best = BestTheta("balanced-accuracy", 1)
    for iteration, score in ((0, 0.5), (10, 0.5), (20, 0.4), (30, None)):
        best.note(0, iteration, score, np.array([iteration]))
        best.decide(best.tables([0]))
    assert (best.kept(0).iteration, best.kept(0).score) == (0, 0.5)
    assert best.theta(0).tolist() == [0]
    best.note(0, 40, 0.6, np.array([40]))
    best.decide(best.tables([0]))
    assert best.so_far[0][:3] == (40, 40, 0.6)


ROW = [1.0, 10.0, 10.0, 0.5, 20.0, 0.4]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({0: 0.5}, "half told"),
        ({0: 0.0}, "half told"),
        ({2: 11.0}, "was not decided on"),
        ({1: 10.5}, "impossible counts"),
        ({4: 100.0}, "impossible counts"),
        ({4: -2.0}, "impossible counts"),
    ],
)
def test_a_table_that_no_peer_makes_is_refused_with_its_edge(row, problem):
    table = np.zeros((3, COLUMNS))
    wrong = table.copy()
    wrong[1] = [row.get(k, number) for k, number in enumerate(ROW)]
    with pytest.raises(
        TableError, match=rf"^peer 0: the table of scores .* from peer 1 .*{problem}.*keep = last"
    ):
        merged(table, wrong.reshape(-1), (1, 0), (0, 1), 60)


def test_rows_of_strangers_and_a_missing_own_row_are_refused():
    table = np.zeros((3, COLUMNS))
    table[2] = ROW
    with pytest.raises(TableError, match=r"rows of peers \[2\]"):
        merged(np.zeros((3, COLUMNS)), table.reshape(-1), (1, 0), (0, 1), 60)
    with pytest.raises(TableError, match="lacks the sender's own row"):
        merged(np.zeros((3, COLUMNS)), table.reshape(-1), (1, 0), (0, 1, 2), 60)


def test_nobody_changes_the_row_that_a_peer_has_of_itself():
    own, theirs = np.zeros((2, COLUMNS)), np.zeros((2, COLUMNS))
    own[0] = ROW
    theirs[:] = [1.0, 20.0, 20.0, 0.1, 30.0, 0.2]
    assert merged(own, theirs.reshape(-1), (1, 0), (0, 1), 60)[0].tolist() == ROW


def test_an_objective_without_validation_images_is_refused(tmp_path, monkeypatch):
    monkeypatch.delattr(Peer, "validate")
    (plan,) = plans(RING, [[0, 1, 2, 3]], {}, tmp_path, **BY_LOSS)
    with pytest.raises(ConfigError, match=r"keep = best:… needs an objective with validate"):
        Host(plan, Quadratics()).run()


def test_a_plan_with_too_few_rounds_ends_the_run_and_decides_nothing(tmp_path):
    (plan,) = plans(RING, [[0, 1, 2, 3]], {}, tmp_path, **BY_LOSS)
    with pytest.raises(RuntimeError, match="2 rounds do not bring the scores of all peers"):
        Host(replace(plan, rounds=2), Quadratics()).run()
