"""The scores heard so far: few points, evenly spread, from the first to the last."""

from __future__ import annotations

import itertools
import math

from p2pft_flower.host.history import History, Series
from p2pft_flower.host.standings import Heard
from p2pft_flower.keeping.bulletins import Apart
from p2pft_flower.transport import PeerScores, Scores


def series(iterations, most=16):
    made = Series(most)
    for k in iterations:
        made.add(Apart(k, float(k), 0.5))
    return [p.iteration for p in made.points]


def test_few_points_are_all_kept_and_a_point_heard_twice_counts_once():
    assert series([0, 10, 10, 20]) == [0, 10, 20]


def test_of_many_points_few_are_kept_evenly_from_the_first_to_the_last():
    kept = series(range(0, 10_001, 10))
    assert len(kept) <= 17
    assert (kept[0], kept[-1]) == (0, 10_000)
    steps = {b - a for a, b in itertools.pairwise(kept[:-1])}
    assert len(steps) == 1


def test_what_came_after_an_iteration_that_the_peers_go_back_to_is_forgotten():
    assert series([0, 10, 20, 30, 20, 40]) == [0, 10, 20, 40]
    assert series([*range(0, 1000, 10), 500, 510])[-2:] == [500, 510]


def heard(*scores):
    return {0: Heard(None, Scores(member=0, peers=scores), 0.0)}


def test_a_score_that_is_none_is_kept_as_none():
    history = History([0, 1])
    history.hear(heard(PeerScores(peer=0, iteration=8, loss=math.nan, accuracy=0.5, bytes_sent=9)))
    (point,) = history.scores[0]
    assert (point.iteration, point.loss, point.accuracy, point.accuracy_unseen) == (8, None, 0.5, None)
    assert history.scores.keys() == {0}


def test_a_run_of_many_peers_keeps_few_points_of_each():
    history = History(range(100))
    for k in range(500):
        history.hear(heard(PeerScores(peer=0, iteration=k, accuracy=0.5)))
    assert len(history.scores[0]) <= 17
