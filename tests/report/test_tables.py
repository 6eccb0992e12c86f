"""Tables of runs: random weights are said in the title, and a reason cannot break a table."""

from __future__ import annotations

import pytest
from rich.table import Table

from p2pft_flower.report.tables import comparison_markdown, comparison_table, render, run_table, titled
from tests.report.made_up import results

FAILED = {"status": "failed", "algorithm": "gt-dgd", "error": "row 0 | column 1\nis not one"}


@pytest.mark.parametrize(("weights", "said"), [("none", True), ("pretrained", False), ("/w.pth", False)])
def test_a_runs_title_says_random_weights_when_there_was_no_pre_training(weights, said):
    title = run_table(results(config={"weights": weights})).splitlines()[0]
    assert ("RANDOM WEIGHTS" in title) == said


def test_of_many_peers_the_worst_have_a_row_and_all_count():
    scores = [0.5 + peer / 1000 for peer in range(100)]
    table = run_table(results(accuracies=scores[50:] + scores[:50]))
    rows = [line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")]
    assert rows == [str(peer) for peer in range(50, 66)]
    assert "the 16 of 100 peers with the lowest accuracy; results.json has all of them" in table
    assert "min 0.5000, max 0.5990" in table
    assert "lowest accuracy" not in run_table(results(accuracies=scores[:64]))


def test_a_comparisons_title_says_random_weights_whoever_failed_beside_it():
    runs = [FAILED, results(config={"weights": "none"})]
    title = titled("p2pft, gt-dgd", runs)
    assert "RANDOM WEIGHTS" in comparison_table(runs, title)
    assert "RANDOM WEIGHTS" in comparison_markdown(runs, title).splitlines()[0]
    assert "RANDOM" not in titled("p2pft", [FAILED, results()])


def test_a_reason_with_bars_and_line_ends_stays_in_its_cell():
    lines = comparison_markdown([FAILED, results()], "two").splitlines()
    assert r"failed: row 0 \| column 1 is not one" in lines[4]
    assert len(lines) == 6


def test_what_others_call_their_things_is_shown_as_it_is():
    """Brackets are markup to rich: an IPv6 address would vanish, a class named "[/x]" would raise."""
    table = Table("address", title="[fd00::2]")
    table.add_row("[fd00::1]:9000 :smile:")
    table.add_row("[/x]cat")
    text = render(table)
    assert "[fd00::1]:9000 :smile:" in text
    assert "[/x]cat" in text
    assert "[fd00::2]" in text


def test_where_each_peer_has_its_own_test_images_the_table_says_so():
    own = results()
    assert "accuracy on all classes: mean" in run_table(own)
    own["partition"] = "own"
    table = run_table(own)
    assert "accuracy, each on its own test images: mean" in table
    assert "on all classes" not in table


def test_what_a_head_of_texts_knew_before_training_is_told():
    made = results(config={"weights": "pretrained", "head": "text"})
    made["history"][0] |= {"iteration": 0, "accuracy": [0.25, None, 0.75, 0.5]}
    assert "zero-shot, before training: mean accuracy 0.5000" in run_table(made)
    made["config"]["head"] = "random"
    assert "zero-shot" not in run_table(made)
