"""A host asks its problem to score all its peers at once, if the problem can; else it scores one by one."""

from __future__ import annotations

import pytest

from p2pft_flower.host.host import Host, PeerFailedError
from p2pft_flower.host.problem import evaluations

from .hosts import events
from .quadratic import GRAPH, Peer, Quadratics, plans

ALL = [[0, 1, 2, 3]]


class Together(Quadratics):
    """Quadratics that score their peers two at a time, and note what they were asked."""

    def __init__(self, **faults):
        super().__init__(**faults)
        self.asked = []

    def evaluate_together(self, objectives, thetas, *, full, progress):
        self.asked.append(([*thetas], full))
        one_by_one = evaluations(Quadratics(), objectives, thetas, full=full, progress=progress)
        for one in one_by_one:
            if 2 in one and self.faults.get("scores"):
                raise ValueError("no test image")
            yield {**one, **next(one_by_one)}


def test_all_peers_of_a_host_are_scored_together_and_have_the_lines_of_peers_scored_one_by_one(tmp_path):
    told = {}
    for name, problem in (("together", Together()), ("alone", Quadratics())):
        (plan,) = plans(GRAPH, ALL, {}, tmp_path / name, iterations=6)
        Host(plan, problem).run()
        told[name] = [
            [(e["iteration"], e["loss"], e["sketch"]) for e in events(tmp_path / name, p, "evaluation")]
            for p in range(4)
        ]
        if name == "together":
            assert problem.asked == [([0, 1, 2, 3], full) for full in (False, True)]
    assert told["together"] == told["alone"]
    assert [[at for at, *_ in lines] for lines in told["alone"]] == [[0, 6]] * 4


def test_peers_that_were_scored_together_have_the_same_seconds_of_evaluation(tmp_path):
    (plan,) = plans(GRAPH, ALL, {}, tmp_path, iterations=2)
    seconds = [outcome.seconds["evaluation"] for outcome in Host(plan, Together()).run()]
    assert seconds[0] == seconds[1] > 0
    assert seconds[2] == seconds[3] > 0


def test_a_failure_among_many_names_the_first_peer_without_scores_and_the_iteration(tmp_path):
    (plan,) = plans(GRAPH, ALL, {}, tmp_path, iterations=2)
    with pytest.raises(PeerFailedError, match=r"peer 2, iteration 0: its evaluation failed: .*no test image"):
        Host(plan, Together(scores=True)).run()
    assert [len(events(tmp_path, p, "evaluation")) for p in range(4)] == [1, 1, 0, 0]


def test_a_peer_by_itself_and_an_objective_that_scores_in_full_need_no_such_problem():
    class InFull(Peer):
        def evaluate_in_full(self, theta):
            return f"all of peer {self.peer}"

    problem, theta = Together(), Quadratics.theta0
    (one,) = evaluations(problem, {1: Peer(1)}, {1: theta}, full=False, progress=lambda: None)
    assert one[1].score == Peer(1).evaluate(theta)
    (full,) = evaluations(problem, {1: InFull(1)}, {1: theta}, full=True, progress=lambda: None)
    assert full == {1: "all of peer 1"}
    assert problem.asked == []
