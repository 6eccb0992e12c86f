"""Hosts whose peers sum up the classes' images: alike wherever they live, resumed, and let in again."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from p2pft_flower.host.class_counts import CountsError, merged_counts
from p2pft_flower.host.host import Host, PeerFailedError
from p2pft_flower.topology import Graph

from .hosts import RING, run_together, tcp, unix, until
from .quadratic import Peer, Quadratics, plans, thetas
from .test_keeper import going_on, keeping

HELD = np.array([[5, 5, 0, 0], [7, 0, 7, 0], [2, 1, 0, 1], [30, 10, 20, 0]], np.float64)
"""Each peer's images, and those of each of three classes."""

BALANCED = {"class-weights": "balanced"}


class Weighed(Peer):
    """A peer whose gradients depend on the numbers that it was told."""

    def class_counts(self):
        return HELD[self.peer]

    def weigh(self, counts):
        self.counts = counts.copy()

    def batch_minimiser(self):
        return super().batch_minimiser() * np.float32(self.counts[1] / self.counts[0])


class Sites(Quadratics):
    classes = ("a", "b", "c")
    peer = Weighed


def run(all_plans, problems=None):
    problems = problems or [Sites() for _ in all_plans]
    for result in run_together(all_plans, problems):
        if isinstance(result, Exception):
            raise result
    return problems


def told(problems):
    peers = {p: one for problem in problems for p, one in problem.built.items()}
    return [peers[p].counts.tolist() for p in sorted(peers)]


@pytest.mark.parametrize("more", [{}, {"keep": "best:loss", "validation": 0.1}, {"codec": "int8"}], ids=str)
def test_all_peers_know_all_images_and_learn_the_same_bits_on_one_host_and_on_three(more, tmp_path, short):
    one = run(plans(RING, [[0, 1, 2, 3]], {}, tmp_path / "m", **BALANCED, **more))
    three = run(plans(RING, [[0], [1, 2], [3]], unix(short), tmp_path / "u", **BALANCED, **more))
    assert told(one) == told(three) == [HELD.sum(axis=0).tolist()] * 4
    assert thetas(one).tobytes() == thetas(three).tobytes()


def test_peers_that_exchange_nothing_know_their_own_images(tmp_path):
    problems = run(plans(RING, [[0, 1, 2, 3]], {}, tmp_path, algorithm="local", **BALANCED))
    assert told(problems) == HELD.tolist()


def test_without_weights_nothing_is_counted(tmp_path):
    (problem,) = run(plans(RING, [[0, 1, 2, 3]], {}, tmp_path), [Quadratics()])
    assert not hasattr(problem.built[0], "counts")


def test_a_resumed_run_weighs_as_the_uninterrupted_one_even_if_a_site_has_other_images(tmp_path, monkeypatch):
    how = {**BALANCED, "every": 10}
    whole = run(keeping(tmp_path / "whole", **how))
    broken = [Sites(fail_at={1: 14}) for _ in range(len(keeping(tmp_path / "x", **how)))]
    with pytest.raises(PeerFailedError):
        run(keeping(tmp_path / "first", **how), broken)
    monkeypatch.setattr(Weighed, "class_counts", lambda self: HELD[self.peer] + 1.0)
    rest = run(going_on(tmp_path / "rest", tmp_path / "first", **how))
    assert told(rest) == told(whole)
    assert thetas(rest).tobytes() == thetas(whole).tobytes()


@pytest.mark.parametrize("every", [-1, 5], ids=["without a checkpoint", "with one"])
def test_who_is_let_in_again_gets_the_weights_of_the_start_from_the_others(every, federation, monkeypatch):
    monkeypatch.setattr("tests.host.hosts.Quadratics", Sites)
    net = federation(tcp(), **BALANCED, **{"iterations": 60, "peer-timeout": 8.0})
    net.plans = [replace(plan, checkpoint_every=every, checkpoint_files=20) for plan in net.plans]
    net.all_there.set()
    let_in = threading.Event()

    def hook(peer, drawn):
        if peer == 2 and drawn == 15:
            raise ValueError("no more images")
        if peer != 2 and net.hosts[peer]._iteration == 45:
            assert let_in.wait(60)

    runs = [net.start(p, hook=hook) for p in range(4)]
    with pytest.raises(PeerFailedError):
        runs[2].result(60)
    until(lambda: all(net.hosts[p]._iteration >= 41 for p in (0, 1, 3)))
    # Its images may be other ones now: what all others weigh by holds for it, too.
    monkeypatch.setattr(Weighed, "class_counts", lambda self: HELD[self.peer] + 1.0)
    runs[2] = net.start(2, joining=True)
    until(lambda: all(net.view_of(p) == 2 for p in (0, 1, 3)))
    let_in.set()
    for one in runs:
        assert one.result(60)[0].iterations == 60
    assert told(net.problems.values()) == [HELD.sum(axis=0).tolist()] * 4


def departing(monkeypatch, *who):
    """Let peers, each as (peer, view), fail as the numbers are summed up, while all others wait for them."""
    count, seen = Weighed.class_counts, dict.fromkeys(range(4), -1)

    def class_counts(self):
        seen[self.peer] += 1
        if (self.peer, seen[self.peer]) in who:
            raise ValueError("no more images")
        return count(self)

    monkeypatch.setattr("tests.host.hosts.Quadratics", Sites)
    monkeypatch.setattr(Weighed, "class_counts", class_counts)


def test_a_peer_lost_before_anybody_knows_of_its_images_does_not_count_and_the_others_agree(
    federation, monkeypatch
):
    """Nobody has a gradient yet: as if peer 2 were killed, as an error of its own would stop all."""
    departing(monkeypatch, (2, 0))
    monkeypatch.setattr(Host, "_begun", property(lambda self: bool(self._training.states)))
    net = federation(tcp(), **BALANCED, **{"iterations": 20, "peer-timeout": 8.0})
    net.all_there.set()
    runs = [net.start(p) for p in range(4)]
    assert runs[2].exception(60) is not None
    for p in (0, 1, 3):
        assert runs[p].result(60)[0].iterations == 20
        assert net.problems[p].built[p].counts.tolist() == HELD[[0, 1, 3]].sum(axis=0).tolist()


def test_a_peer_lost_while_a_later_view_begins_leaves_the_weights_as_they_are(federation, monkeypatch):
    departing(monkeypatch, (1, 1))
    net = federation(tcp(), **BALANCED, **{"iterations": 30, "peer-timeout": 8.0})
    net.all_there.set()
    runs = [net.start(p, fail_at={2: 12}) for p in range(4)]
    assert runs[2].exception(60) is not None
    assert runs[1].exception(60) is not None
    for p in (0, 3):
        assert runs[p].result(60)[0].iterations == 30
        assert net.problems[p].built[p].counts.tolist() == HELD.sum(axis=0).tolist()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([0.0, 5, 5, 0], "half told"),
        ([1.0, 5, 2.5, 0], "none of images"),
        ([1.0, 5, -1, 0], "none of images"),
        ([1.0, 5, 6, 0], "more images of a class than images"),
    ],
)
def test_a_table_that_no_peer_makes_is_refused_by_name(row, problem):
    come = np.zeros((2, 4))
    come[1] = row
    with pytest.raises(CountsError, match=f"from peer 1 .*{problem}"):
        merged_counts(np.zeros((2, 4)), come, (1, 0))


def test_a_row_never_changes():
    table = np.array([[1.0, 5, 5, 0], [0, 0, 0, 0]])
    with pytest.raises(CountsError, match="other numbers of a peer"):
        merged_counts(table, np.array([[1.0, 6, 5, 0], [0, 0, 0, 0]]), (1, 0))
    assert merged_counts(table, table[::-1], (1, 0)).tolist() == [[1, 5, 5, 0]] * 2


def test_each_edge_carries_a_table_a_round_once_and_no_more(tmp_path):
    def sent(**settings):
        (outcomes,) = run_together(plans(RING, [[0, 1, 2, 3]], {}, tmp_path, **settings), [Sites()])
        return np.array([o.bytes_sent for o in outcomes])

    table = 4 * (2 + 3) * 8
    whole = {"iterations": 40}
    more = sent(**BALANCED, **whole) - np.array([40 * 2 * 300 * 4] * 4)
    assert more.tolist() == [Graph.load("directed-ring:4").diameter * table] * 4
