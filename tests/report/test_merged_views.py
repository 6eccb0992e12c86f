"""What several hosts tell of changes of view, each once."""

from __future__ import annotations

import itertools

import pytest

from p2pft_flower.errors import DataError
from p2pft_flower.report.results import lost_on_the_way, merged_views
from tests.journals import made_line


def told(seconds=1.0, number=1, iteration=7, peers=(0, 2), lost=(1,), joined=(), why=None, presumed=None):
    same = {"number": number, "iteration": iteration, "peers": peers, "lost": lost, "joined": joined}
    return made_line("view", **same, seconds=seconds, why=why or {}, presumed=presumed or {})


def test_what_somebody_noticed_stands_and_not_what_others_presume_whoever_tells_first():
    noticed, presumed = told(1.0, why={1: "crashed"}), told(2.0, presumed={1: "took no part"})
    for lines in ([noticed, presumed], [presumed, noticed]):
        (view,) = merged_views(lines, range(3))
        assert (view["why"], view["seconds"]) == ({"1": "crashed"}, 2.0)
        assert "presumed" not in view


def test_what_is_presumed_stands_where_nobody_noticed_anything():
    (view,) = merged_views([told(1.0, presumed={1: "took no part"}), told(2.0)], range(3))
    assert view["why"] == {"1": "took no part"}


def test_a_peer_is_lost_once_though_one_that_was_away_misses_it_when_it_comes_back():
    # Peer 4 is suspended and left out, peer 3 crashes, and view 3 lets peer 4 in: its last view had peer 3.
    others = [
        told(number=1, iteration=10, peers=(0, 1, 2, 3), lost=(4,), why={4: "silent"}),
        told(number=2, iteration=20, peers=(0, 1, 2), lost=(3,), why={3: "crashed"}),
        told(number=3, iteration=30, peers=(0, 1, 2, 4), lost=(), joined=(4,)),
    ]
    away = told(number=3, iteration=30, peers=(0, 1, 2, 4), lost=(3,), joined=(4,), why={3: "cut off"})
    for lines in itertools.permutations([*others, away]):
        views = merged_views(lines, range(5))
        assert [(v["lost"], v["joined"]) for v in views] == [([4], []), ([3], []), ([], [4])]
        assert [v["why"] for v in views] == [{"4": "silent"}, {"3": "crashed"}, {}]
        assert lost_on_the_way(views, [3]) == "peer 3 was lost after 20 iterations: crashed"


def test_a_peer_that_was_lost_twice_is_told_of_by_its_last_loss():
    views = merged_views(
        [
            told(number=1, iteration=10, peers=(0, 1), lost=(2,), why={2: "crashed"}),
            told(number=2, iteration=20, peers=(0, 1, 2), lost=(), joined=(2,)),
            told(number=3, iteration=30, peers=(0, 1), lost=(2,), why={2: "silent"}),
        ],
        range(3),
    )
    assert lost_on_the_way(views, [2]) == "peer 2 was lost after 30 iterations: silent"


def test_who_began_another_life_while_one_was_away_joined_the_view_that_let_it_in():
    # Peer 1, restarted before it was missed, is let in by view 2; peer 3, away since view 1, by view 3.
    views = merged_views(
        [
            told(number=1, peers=(0, 1, 2), lost=(3,)),
            told(number=2, peers=(0, 1, 2), lost=(), joined=(1,)),
            told(number=3, peers=(0, 1, 2, 3), lost=(), joined=(1, 3)),
            told(number=3, peers=(0, 1, 2, 3), lost=(), joined=(3,)),
        ],
        range(4),
    )
    assert [v["joined"] for v in views] == [[], [1], [3]]


def test_a_reason_told_by_one_that_came_over_two_views_at_once_stands_by_the_view_of_the_loss():
    views = merged_views(
        [
            told(number=1, peers=(0, 1, 2), lost=(3,), presumed={3: "took no part"}),
            told(number=2, peers=(0, 1), lost=(2,), why={2: "crashed"}),
            told(number=2, peers=(0, 1), lost=(2, 3), why={3: "silent"}),
        ],
        range(4),
    )
    assert [(v["lost"], v["why"]) for v in views] == [([3], {"3": "silent"}), ([2], {"2": "crashed"})]


def test_where_no_log_tells_of_a_view_the_next_ones_losses_are_by_the_one_before_it():
    views = merged_views([told(number=2, peers=(0, 2), lost=())], range(3))
    assert [v["lost"] for v in views] == [[1]]


def test_what_a_peer_missed_counts_from_the_view_that_lost_it():
    away = made_line("view", number=3, iteration=50, peers=(0, 1, 2, 3), joined=(3,), missed={3: 45})
    lines = [
        told(number=1, iteration=10, peers=(0, 1, 3), lost=(2,)),
        told(number=2, iteration=30, peers=(0, 1, 2, 3), lost=(), joined=(2,)),
        told(number=3, iteration=50, peers=(0, 1, 2, 3), lost=(), joined=(3,)),
        away,
    ]
    views = merged_views(lines, range(4))
    assert [v["missed"] for v in views] == [{}, {"2": 20}, {"3": 45}], "its own word, if nobody lost it"


@pytest.mark.parametrize(
    "other", [{"peers": (2, 3, 4)}, {"iteration": 8}, {"edges": ((0, 1), (1, 4), (4, 0), (1, 0))}]
)
def test_parts_that_went_on_in_views_of_one_number_are_never_told_as_one_run(other):
    one = {"number": 2, "iteration": 7, "peers": (0, 1, 4), "edges": ((0, 1), (1, 4), (4, 0))}
    lines = [
        made_line("view", 0, **one),
        made_line("view", 1, **one | {"edges": one["edges"][::-1], "seconds": 4.0}),
        made_line("view", 2, **one | other),
    ]
    assert len(merged_views(lines[:2], range(5))) == 1
    for order in itertools.permutations(lines):
        with pytest.raises(DataError, match=r"different views 2.*the peers of both views are \["):
            merged_views(order, range(5))


def test_a_view_began_when_the_first_took_it_up():
    lines = [made_line("view", peer, time=at, peers=(0, 2)) for peer, at in ((0, 7.5), (2, 7.0))]
    for order in (lines, lines[::-1]):
        (view,) = merged_views(order, range(3))
        assert view["time"] == 7.0
