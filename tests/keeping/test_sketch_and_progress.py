"""Progress without anybody seeing a θ: sketches and lines."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from p2pft_flower.keeping import progress as progress_module
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.journal import Journal
from p2pft_flower.keeping.lines import Report
from p2pft_flower.keeping.progress import TOLD, Progress, human_bytes, told_evaluations
from p2pft_flower.typed import plain
from tests.journals import EMPTY, made_line


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), n=st.integers(2, 8))
def test_sketches_estimate_the_consensus_error(seed, n):
    theta = np.random.default_rng(seed).normal(size=(n, 20_000)).astype(np.float32)
    exact = np.sqrt(((theta - theta.mean(axis=0)) ** 2).sum(axis=1).mean())
    sketcher = sketch.Sketcher(20_000)
    estimate = sketch.consensus_error([sketcher(t) for t in theta])
    assert estimate == pytest.approx(exact, rel=0.3)  # five deviations of 6 %


def test_equal_vectors_have_no_consensus_error_and_sketches_survive_text():
    theta = np.random.default_rng(0).normal(size=1000)
    one = sketch.Sketcher(1000)(theta)
    assert sketch.consensus_error([one, one.copy()]) == 0.0
    assert sketch.decode(sketch.encode(one)).tobytes() == one.tobytes()
    assert one.shape == (sketch.SIZE,)


def report(peer, iteration, accuracy=0.5, sent=1000):
    scores = {"loss": 1.0, "accuracy": accuracy, "accuracy_unseen": None, "bytes_sent": sent}
    return Report(peer=peer, iteration=iteration, sketch=EMPTY, **scores)


def test_a_line_is_told_once_when_all_peers_have_reported():
    lines = []
    progress = Progress(2, 10, lines.append)
    progress.add(report(0, 5))
    assert lines == []
    progress.add(report(1, 5))
    progress.add(report(1, 5))
    assert len(lines) == 1
    assert "iteration  5/10" in lines[0]
    assert "accuracy 0.500 0.500" in lines[0]
    assert "sent 2.0 kB" in lines[0]
    assert "left" not in lines[0]  # nothing is known of the speed yet
    progress.add(report(0, 10))
    progress.add(report(1, 10))
    assert " in " in lines[1]


def test_the_time_left_is_that_of_the_last_evaluations_also_after_a_long_stand_still(monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    progress = Progress(1, 100, lines.append)
    for iteration in range(0, 61, 5):
        now[0] += 1000.0 if iteration == 10 else 5.0
        progress.add(report(0, iteration))
    assert lines[-1].endswith("40 s left")
    assert lines[3].endswith("85 s left"), "nor does the one right after it count it in"
    now[0] += 40.0
    progress.add(report(0, 100))
    assert lines[-1].endswith("in 1095 s")


def test_scores_that_others_told_have_no_sketch_and_give_way_to_the_peers_own_word():
    lines = []
    progress = Progress(2, 10, lines.append)
    progress.add(report(0, 5))
    progress.add(structs.replace(report(1, 5), sketch=None))
    assert "consensus error" not in lines[0]
    assert progress.history()[0]["consensus_error"] is None
    progress.fill(report(1, 5))
    assert progress.history()[0]["consensus_error"] == 0.0
    progress.fill(structs.replace(report(1, 5), sketch=None))
    assert progress.history()[0]["consensus_error"] == 0.0
    assert len(lines) == 1


def test_beyond_eight_peers_a_line_shows_min_mean_max():
    lines = []
    progress = Progress(9, 10, lines.append)
    for p in range(9):
        progress.add(report(p, 10, accuracy=p / 8))
    assert "accuracy 0.000/0.500/1.000 (min/mean/max)" in lines[0]


def test_after_a_loss_a_line_says_whose_its_columns_are():
    lines = []
    progress = Progress(3, 20, lines.append)
    for p in range(3):
        progress.add(report(p, 5))
    progress.go_on_with({0, 2})
    for p in (0, 2):
        progress.add(report(p, 10, accuracy=p / 4))
    progress.go_on_with({0, 1, 2})
    for p in range(3):
        progress.add(report(p, 15))
    first, without, again = lines
    assert "| peers 0 2 | loss" in without
    assert "| accuracy 0.000 0.500 |" in without
    assert "peers" not in first + again


def test_beyond_eight_peers_a_line_says_how_many_of_them_it_is_about():
    lines = []
    progress = Progress(10, 20, lines.append, missing=[3])
    for p in set(range(10)) - {3}:
        progress.add(report(p, 5))
    assert "| 9 of 10 peers | loss" in lines[0]


def test_what_a_lost_peer_has_sent_stays_in_the_sum():
    lines = []
    progress = Progress(3, 20, lines.append)
    for p in range(3):
        progress.add(report(p, 5, sent=1000))
    progress.go_on_with({0, 2})
    progress.add(report(0, 15, sent=3000))  # ahead of the other one
    for p in (0, 2):
        progress.add(report(p, 10, sent=2000))
    assert ["sent 3.0 kB" in lines[0], "sent 5.0 kB" in lines[1]] == [True, True]
    progress.go_on_with({0, 1, 2})
    progress.add(report(1, 15, sent=1500))  # it is back
    progress.add(report(2, 15, sent=3000))
    assert [row["bytes_sent"] for row in progress.history()] == [3000, 5000, 7500]


def test_the_history_names_what_is_missing():
    progress = Progress(2, 10, lambda _: None)
    progress.add(report(1, 5))
    progress.fill(report(0, 10))
    progress.fill(report(1, 10))
    history = progress.history()
    assert [h["iteration"] for h in history] == [5, 10]
    assert history[0]["accuracy"] == [None, 0.5]
    assert history[0]["consensus_error"] is None
    assert history[1]["consensus_error"] == 0.0


def test_bytes_are_told_for_people():
    assert [human_bytes(b) for b in (0, 999, 1500, 2_500_000, 3e9, 4e15)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "3.0 GB",
        "4000.0 TB",
    ]


@pytest.mark.parametrize(
    ("evaluations", "n", "told"),
    [
        (5, 4, [0, 1, 2, 3, 4]),
        (32, 4, list(range(32))),
        (1001, 4, [round(k * 1000 / 31) for k in range(32)]),
        (1001, 100, [1000]),
        (1001, 1000, [1000]),
        (0, 4, []),
    ],
)
def test_a_deployed_peer_tells_of_evenly_spaced_evaluations_and_of_the_last(evaluations, n, told, tmp_path):
    journal = Journal(tmp_path, 3)
    for run in ("an earlier one", "this"):
        journal.write(made_line("run", 3, run=run))
        for k in range(evaluations):
            journal.write(made_line("evaluation", **plain(report(3, k))))
    journal.close()
    rows = told_evaluations(tmp_path / "peers", 3, n)
    assert [row.iteration for row in rows] == told
    assert n * len(rows) <= max(TOLD, n)
    assert all(row.peer == 3 for row in rows)
