"""What several hosts tell of one change of view, as one."""

from __future__ import annotations

from p2pft_flower.report.results import merged_views


def told(seconds, why=None, presumed=None):
    same = {"number": 1, "iteration": 7, "peers": [0, 2], "edges": [], "lost": [1], "joined": []}
    return {**same, "why": why or {}, "presumed": presumed or {}, "seconds": seconds}


def test_what_somebody_noticed_stands_and_not_what_others_presume_whoever_tells_first():
    noticed, presumed = told(1.0, why={"1": "crashed"}), told(2.0, presumed={"1": "took no part"})
    for lines in ([noticed, presumed], [presumed, noticed]):
        (view,) = merged_views(lines)
        assert (view["why"], view["seconds"]) == ({"1": "crashed"}, 2.0)
        assert "presumed" not in view


def test_what_is_presumed_stands_where_nobody_noticed_anything():
    (view,) = merged_views([told(1.0, presumed={"1": "took no part"}), told(2.0)])
    assert view["why"] == {"1": "took no part"}
