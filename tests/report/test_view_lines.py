"""The printed table tells of each change of view what results.json does."""

from __future__ import annotations

from p2pft_flower.report.tables import EDGES_SHOWN, run_table, view_lines
from tests.report.made_up import results

LOST = {
    "number": 1,
    "iteration": 240,
    "peers": [0, 2],
    "edges": [[0, 2], [2, 0]],
    "lost": [1],
    "joined": [],
    "why": {"1": "not heard from for 5 s (crashed)"},
    "seconds": 6.28,
}
BACK = LOST | {
    "number": 2,
    "iteration": 300,
    "peers": [0, 1, 2],
    "edges": [[0, 1], [1, 2], [2, 0]],
    "lost": [],
    "joined": [1],
    "why": {},
    "seconds": 0.5,
}


def words(text):
    return " ".join(text.split())


def test_a_line_says_when_who_why_how_long_and_which_graph_followed():
    assert view_lines([LOST, BACK]) == [
        "view 1 after iteration 240: peer 1 lost (not heard from for 5 s (crashed)); 6.3 s until "
        "they agreed, then peers 0 2, 2 edges (sender to receiver: 0 to 2, 2 to 0)",
        "view 2 after iteration 300: peer 1 joined; 0.5 s until they agreed, then peers 0 1 2, 3 edges "
        "(sender to receiver: 0 to 1, 1 to 2, 2 to 0)",
    ]


def test_a_runs_table_ends_with_its_changes_of_view_and_has_none_without():
    table = words(run_table(results() | {"views": [LOST, BACK]}))
    assert all(words(line) in table for line in view_lines([LOST, BACK]))
    assert table.endswith(words(view_lines([BACK])[0]))
    assert "view" not in run_table(results() | {"views": []})


def test_who_was_lost_without_a_word_and_a_broken_edge_alone_are_told_too():
    assert "peer 1 lost; 6.3 s" in view_lines([LOST | {"why": {}}])[0]
    assert ": nobody lost; 6.3 s" in view_lines([LOST | {"lost": [], "why": {}}])[0]


def test_a_peer_that_joined_is_told_with_how_far_behind_it_was():
    assert "peer 1 joined, 60 iterations behind; 0.5 s" in view_lines([BACK | {"missed": {"1": 60}}])[0]


def test_of_a_large_graph_the_number_of_edges_is_told_alone():
    edges = [[p, p + 1] for p in range(EDGES_SHOWN + 1)]
    assert view_lines([LOST | {"edges": edges}])[0].endswith(f"{EDGES_SHOWN + 1} edges")


def test_a_reason_that_others_tell_makes_no_line_of_its_own():
    (line,) = view_lines([LOST | {"why": {"1": "gone\n07:00:00 run 7 ended: completed"}}])
    assert "\n" not in line
