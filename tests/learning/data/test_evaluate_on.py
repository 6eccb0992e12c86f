"""``evaluate-on = N``: peers are scored on N of the test images, the same for all that share them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from p2pft_flower.config import LearningConfig
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.tails import load_tail
from p2pft_flower.report.results import read_results
from p2pft_flower.report.tables import run_table
from tests.flower.engine import run_app


def write_site(folder, images):
    """A folder with so many test images, of two classes; each picture is another."""
    for split, count in (("train", 2), ("test", images)):
        for place in range(count):
            file = folder / split / "ab"[place % 2] / f"{place}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 20 * place).save(file)


def held(most, n=4, peers=None, **keys):
    return Holdings(LearningConfig(evaluate_on=most, **keys), n, peers=peers)


def test_all_peers_are_scored_on_the_same_images_and_the_seed_draws_them(caplog):
    with caplog.at_level(logging.INFO):
        some = held(50)
        assert all(np.array_equal(some.tests[p], some.test_positions) for p in range(4))
    assert "scored on 50 of 360 test images, drawn by seed 0" in caplog.text
    drawn = some.test_positions
    assert len(set(drawn.tolist())) == 50
    assert drawn.tolist() == sorted(drawn) == held(50, n=64, partition="iid").test_positions.tolist()
    assert set(drawn) < set(held(200).test_positions.tolist())
    assert set(drawn) != set(held(50, seed=1).test_positions.tolist())


@pytest.mark.parametrize("most", [0, 360, 1000])
def test_zero_and_more_than_there_are_mean_all(most, caplog):
    with caplog.at_level(logging.INFO):
        assert held(most).test_positions.tolist() == list(range(360))
    assert "evaluate-on" not in caplog.text


def test_each_site_is_scored_on_so_many_of_its_own_wherever_it_is_looked_at(tmp_path):
    for peer, images in enumerate((8, 8, 3)):
        write_site(tmp_path / f"site-{peer}", images)
    config = {"dataset": f"folder:{tmp_path}/site-{{peer}}"}
    whole = held(5, n=3, **config)
    assert [len(test) for test in whole.tests] == [5, 5, 3]
    for peer in range(3):
        alone = held(5, n=3, peers=(peer,), **config)
        assert alone.test_names(alone.tests[peer]) == whole.test_names(whole.tests[peer])


def test_results_and_table_say_so_and_a_tail_is_scored_on_the_same_images_again(tmp_path):
    run_app(tmp_path, nodes=1, tune="head", evaluate_on=40, shots=4, iterations=3, learning_rate=0.1)
    results = read_results(tmp_path)
    assert results["config"]["evaluate-on"] == 40
    assert {peer["class_scores"]["images"] for peer in results["peers"]} == {40}
    assert "scored on 40 test images at most, drawn by the seed" in run_table(results)
    (first, *_) = results["peers"]
    tail = load_tail(tmp_path / first["tail"])
    assert tail.same_images
    assert tail.workload.score(tail.theta).accuracy == first["accuracy"]
