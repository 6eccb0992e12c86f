"""What is wrong in the peers' logs is found; each test makes up what must never be there."""

from __future__ import annotations

import numpy as np
import pytest

from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.lines import written
from p2pft_flower.lab.schedule import Event, Kind
from p2pft_flower.lab.watch import Check, Fault, Watch
from p2pft_flower.topology import Graph
from tests.journals import made_line

RING = Graph.load("directed-ring:3")
CLOCK = 1_000_000.0


class Logs:
    """Lines as three peers write them, of a run in which peer 2 is killed and comes back."""

    def __init__(self, folder):
        self.watch, self.folder = Watch(RING, folder), folder
        (folder / "peers").mkdir()
        self.now = CLOCK

    def write(self, peer, event, **fields):
        self.now += 0.01
        with (self.folder / "peers" / f"peer-{peer}.jsonl").open("ab") as file:
            file.write(written(made_line(event, peer, time=self.now, **fields)))

    def iterate(self, view, peers, *iterations, excess=0.0):
        """Let ``peers`` complete iterations, with trackers that sum up to ``excess``."""
        for k in iterations:
            terms = {p: np.zeros(sketch.SIZE) for p in peers}
            terms[peers[0]][0], terms[peers[-1]][0] = 1.0, -1.0 + excess
            for p in peers:
                self.write(p, "trace", view=view, iteration=k, surplus=sketch.encode(terms[p]))

    def score(self, peers, iteration, *thetas):
        for p, theta in zip(peers, thetas or [1.0] * len(peers), strict=True):
            told = sketch.encode(np.full(sketch.SIZE, theta))
            self.write(p, "evaluation", iteration=iteration, accuracy=0.9, loss=0.1, sketch=told)

    def view(self, number, peers, iteration, *, lost=(), joined=(), why=None, told_by=None, edges=None):
        for p in peers if told_by is None else told_by:
            fields = {"peers": tuple(peers), "edges": edges or (), "iteration": iteration, "seconds": 0.1}
            fields |= {"lost": lost, "joined": joined, "why": why or {}, "presumed": {}}
            self.write(p, "view", number=number, **fields)

    def sound(self):
        """A run in which all is as it should be."""
        for p in range(3):
            self.write(p, "run", run="r")
        self.iterate(0, [0, 1, 2], 1, 2, 3)
        self.view(1, [0, 1], 3, lost=[2], why={2: "crashed"})
        self.iterate(1, [0, 1], 4, 5)
        self.write(2, "run", run="r")
        self.view(2, [0, 1, 2], 5, joined=[2])
        self.iterate(2, [0, 1, 2], *range(6, 16))
        self.score([0, 1, 2], 12)

    def broken(self):
        """Return the checks that do not hold."""
        self.watch.poll()
        self.watch.check_kills([(2, 0)])
        self.watch.check_losses()
        self.watch.check_agreement()
        return {v.check for v in self.watch.violations}


@pytest.fixture
def logs(tmp_path):
    return Logs(tmp_path)


def test_in_logs_of_a_sound_run_nothing_is_found(logs):
    logs.sound()
    assert logs.broken() == set()
    assert (logs.watch.newest, logs.watch.iteration, logs.watch.sums) == (2, 15, 15)
    assert logs.watch.settled
    assert logs.watch.worst < 1e-6
    killed = Fault(Event(0.0, Kind.KILL, (2,), 1.0), CLOCK + 0.125, 0)
    assert 0.0 < logs.watch.seconds_to_next(killed) < 0.2
    assert logs.watch.unprovoked([killed], slack=1.0) == []
    assert [loss.peer for loss in logs.watch.unprovoked([], slack=1.0)] == [2]


def test_a_view_goes_on_with_its_first_iteration_not_with_the_trace_of_its_beginning(logs):
    logs.iterate(0, [0, 1, 2], 1, 2, 3)
    logs.iterate(0, [0], 4)
    killed = Fault(Event(0.0, Kind.KILL, (2,), 1.0), logs.now, 0)
    logs.view(1, [0, 1], 4, lost=[2], why={2: "crashed"})
    logs.iterate(1, [1], 4)  # which was behind
    logs.now += 7.0
    logs.iterate(1, [0, 1], 5)
    logs.watch.poll()
    assert logs.watch.seconds_to_next(killed) > 7.0


def test_trackers_that_do_not_sum_up_to_the_gradients_are_found(logs):
    logs.sound()
    logs.iterate(2, [0, 1, 2], 16, excess=0.01)
    assert logs.broken() == {Check.INVARIANT}


def test_a_last_view_whose_trackers_nobody_could_add_up_is_found(logs):
    logs.sound()
    logs.view(3, [0, 1, 2], 15)
    logs.score([0, 1, 2], 24)
    assert logs.broken() == {Check.INVARIANT}


@pytest.mark.parametrize("other", [{"iteration": 14}, {"edges": ((0, 1),)}])
def test_views_of_one_number_that_differ_are_found(logs, other):
    logs.sound()
    logs.view(3, [0, 1, 2], 15, told_by=[0, 1])
    logs.view(3, [0, 1, 2], other.get("iteration", 15), told_by=[2], edges=other.get("edges"))
    logs.iterate(3, [0, 1, 2], 16)
    logs.score([0, 1, 2], 16)
    assert logs.broken() == {Check.VIEWS}


def test_two_parts_that_go_on_with_other_peers_under_one_number_are_found(logs):
    logs.sound()
    logs.view(3, [0, 1], 15, lost=[2], why={"2": "cut off"})
    logs.view(3, [2], 15, lost=[0, 1], why={"0": "cut off", "1": "cut off"})
    assert Check.VIEWS in logs.broken()


def test_a_view_that_goes_on_beside_a_later_one_is_found(logs):
    logs.sound()
    logs.view(3, [0, 1], 15, lost=[2], why={"2": "cut off"})
    logs.iterate(2, [2], 16, 17, 18)  # by the longest path it may be ahead
    logs.watch.poll()
    assert logs.watch.violations == []
    logs.iterate(2, [2], 19)
    assert Check.ONE_RUN in logs.broken()


def test_a_peer_that_iterates_in_a_view_without_it_is_found(logs):
    logs.sound()
    logs.view(3, [0, 1], 15, lost=[2], why={"2": "cut off"})
    logs.iterate(3, [2], 16)
    assert Check.ONE_RUN in logs.broken()


def test_a_peer_that_iterates_in_a_view_that_it_has_left_behind_is_found(logs):
    logs.sound()
    logs.view(3, [0, 1, 2], 15)
    logs.iterate(3, [0, 1, 2], 16)
    logs.score([0, 1, 2], 16)
    logs.watch.poll()
    assert logs.watch.violations == []
    logs.iterate(2, [1], 16)
    logs.iterate(3, [0, 1, 2], *range(17, 24))
    assert logs.broken() == {Check.ONE_RUN}


def test_a_peer_that_iterates_before_it_is_let_in_again_is_found(logs):
    logs.sound()
    logs.write(2, "run", run="r")  # a later life
    logs.iterate(2, [2], 16)
    assert logs.broken() == {Check.ONE_RUN}


def test_a_peer_that_is_left_out_without_a_word_is_found(logs):
    logs.sound()
    logs.view(3, [0, 1], 15, lost=[2])
    logs.view(4, [0, 1, 2], 15, joined=[2])
    logs.iterate(4, [0, 1, 2], 16)
    logs.score([0, 1, 2], 16)
    assert logs.broken() == {Check.LOSSES}


def test_a_kill_that_nobody_notices_is_found(logs):
    for p in range(3):
        logs.write(p, "run", run="r")
    logs.iterate(0, [0, 1, 2], *range(1, 16))
    logs.score([0, 1, 2], 12)
    assert logs.broken() == {Check.KILLS}


def test_peers_that_are_apart_or_missing_at_the_end_are_found(logs):
    logs.sound()
    logs.score([0, 1, 2], 15, 1.0, 1.0, 2.0)
    assert logs.broken() == {Check.AGREEMENT}


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(logs):
    logs.sound()
    path = logs.folder / "peers" / "peer-0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    logs.watch.poll()
    path.write_bytes(whole)
    assert logs.broken() == set()
