"""``keep = best:…`` through Flower: what results, tails and tables tell, and a run that over-fits."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.tails import load_tail
from p2pft_flower.report.results import read_results
from p2pft_flower.report.tables import kept_lines
from tests.blocks import ROOT, blocks_of
from tests.flower.engine import run_app
from tests.flower.test_moved_data import SETTINGS, anew, interrupted, write

SHORT = {"tune": "head", "shots": 8, "iterations": 12, "evaluate_every": 3, "validation": 0.25}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """The module of the documents whose labels are wrong for three training images in ten."""
    (block,) = [b for b in blocks_of(ROOT / "docs/keeping-the-best.md") if b.language == "python"]
    file = tmp_path_factory.mktemp("noisy") / "noisy_digits.py"
    file.write_text(block.text)
    return f"{file}:noisy"


def mean(numbers):
    return sum(numbers) / len(numbers)


@pytest.mark.parametrize("seed", [0, 2])
def test_a_run_that_over_fits_ends_with_a_better_test_score_than_its_last_theta(seed, noisy, tmp_path):
    """Chosen by images with wrong labels among them, which are no test images, by default settings."""
    run_app(
        tmp_path, nodes=1, dataset=noisy, partition="iid", shots=40, seed=seed, iterations=200,
        evaluate_every=20, validation=0.25, keep="best:balanced-accuracy",
    )  # fmt: skip
    results = read_results(tmp_path)
    last = results["history"][-1]
    assert last["iteration"] == 200
    assert results["summary"]["accuracy"]["mean"] > mean(last["accuracy"]) + 0.03
    (at,) = [row for row in results["history"] if row["iteration"] == results["kept"]["iteration"]]
    assert [peer["accuracy"] for peer in results["peers"]] == at["accuracy"]


@pytest.mark.parametrize("nodes", [1, 2], ids=["one host", "two hosts"])
@pytest.mark.parametrize("algorithm", ["p2pft", "dgd", "centralized"])
def test_results_and_tails_are_those_of_the_kept_iteration(algorithm, nodes, tmp_path):
    if algorithm == "centralized" and nodes == 2:
        nodes = 1  # one pooled peer has one host
    run_app(tmp_path, nodes=nodes, algorithm=algorithm, keep="best:loss", **SHORT)
    results = read_results(tmp_path)
    kept = results["kept"]
    assert kept["by"] == "loss"
    assert kept["iteration"] in (3, 6, 9, 12)
    assert [peer["kept"] for peer in results["peers"]] == [{**kept, "own": True}] * len(results["peers"])
    (line,) = kept_lines(results)
    assert line.startswith(f"kept: θ of iteration {kept['iteration']}, the best: loss 0.")
    for peer in results["peers"]:
        tail = load_tail(tmp_path / peer["tail"])
        assert tail.metadata["iterations"] == str(kept["iteration"])
        assert tail.workload.score(tail.theta).loss == peer["loss"]
        answers = tail.workload.answers(tail.theta, probabilities=True)
        by_class = answers.by_class(tail.workload.holdings.classes)
        assert peer["class_scores"]["balanced_accuracy"] == by_class.balanced_accuracy
        assert peer["class_scores"]["calibration_error"] == by_class.calibration_error


def test_peers_that_exchange_nothing_keep_their_own_and_the_run_has_no_common_one(tmp_path):
    run_app(tmp_path, nodes=1, algorithm="local", keep="best:balanced-accuracy", **SHORT)
    results = read_results(tmp_path)
    assert {peer["kept"]["own"] for peer in results["peers"]} == {True}
    if len({(peer["kept"]["iteration"], peer["kept"]["score"]) for peer in results["peers"]}) > 1:
        assert results["kept"] is None


def test_the_last_theta_is_kept_unless_asked_and_nothing_is_told(tmp_path):
    run_app(tmp_path, nodes=1, **{**SHORT, "iterations": 3})
    results = read_results(tmp_path)
    assert results["kept"] is None
    assert [peer["kept"] for peer in results["peers"]] == [None] * 4
    assert kept_lines(results) == []


def test_strategies_of_flower_refuse_it_before_anything_is_sent(tmp_path):
    with pytest.raises(ConfigError, match=r"keep = 'best:loss' with algorithm = 'fedavg': .*keep = last"):
        run_app(tmp_path, nodes=1, algorithm="fedavg", keep="best:loss", **SHORT)


def test_who_has_no_theta_of_the_kept_iteration_is_named():
    kept = {"by": "loss", "iteration": 30, "score": 0.25, "own": True}
    rows = [{"peer": 0, "kept": kept}, {"peer": 1, "kept": {**kept, "own": False}}]
    assert kept_lines({"peers": rows}) == [
        "kept: θ of iteration 30, the best: loss 0.2500 on validation images",
        "peers [1] were not there then: their scores are those of their last θ",
    ]
    other = [{"peer": 2, "kept": {**kept, "iteration": 40}}]
    assert kept_lines({"peers": rows + other})[1].startswith("peers [2] kept: θ of iteration 40")


CHOOSES = {**SETTINGS, "evaluate_every": 1, "keep": "best:loss", "validation": 0.34}


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory):
    """A folder of images, and what a run on it that chooses its θ has left after an iteration."""
    root = tmp_path_factory.mktemp("broken-off")
    run_app(root / "run", nodes=1, dataset=f"folder:{write(root / 'data')}", **CHOOSES)
    interrupted(root / "run", root / "killed")
    return root


def resumed(root, tmp_path, **more):
    data = tmp_path / "data"
    settings = {**CHOOSES, "dataset": f"folder:{data}", "resume": str(root / "killed"), **more}
    run_app(tmp_path / "on", nodes=1, **settings)


def test_a_resumed_run_notices_that_an_image_by_which_it_chooses_has_changed(broken_off, tmp_path):
    data = shutil.copytree(broken_off / "data", tmp_path / "data")
    config = LearningConfig(dataset=f"folder:{data}", keep="best:loss", validation=0.34)
    held = Holdings(config, n=2)
    Image.new("L", (8, 8)).save(held.dataset.train.files[held.validations[1][0]])
    with pytest.raises(
        P2PFTError, match=r"peer 1's training images: other labels.*: 1 changed \(dog/\d.png\)"
    ):
        resumed(broken_off, tmp_path)


def test_other_training_images_are_not_accepted_as_learned_ones_would_be_held_out(broken_off, tmp_path):
    data = shutil.copytree(broken_off / "data", tmp_path / "data")
    Image.new("L", (8, 8)).save(data / "train" / "dog" / "new.png")
    anew()
    with pytest.raises(
        P2PFTError, match=r"1 new \(dog/new.png\) \(with keep = best:… a run goes on with the same"
    ):
        resumed(broken_off, tmp_path, data_changed="accept")


def test_other_test_images_are_accepted_as_nothing_is_chosen_by_them(broken_off, tmp_path):
    data = shutil.copytree(broken_off / "data", tmp_path / "data")
    Image.new("L", (8, 8)).save(data / "test" / "dog" / "new.png")
    anew()
    resumed(broken_off, tmp_path, data_changed="accept")
    results = read_results(tmp_path / "on")
    assert results["peers"][0]["data_changed"]["test"]["new"] == 1
