"""A folder for each peer."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.flower.nodes import RunFailedError
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.workload import Workload
from p2pft_flower.report.figures import draw_comparison
from p2pft_flower.report.results import read_results
from p2pft_flower.report.tables import comparison_markdown, run_table
from tests.cli.test_commands import invoke
from tests.flower.engine import run_app
from tests.learning.conftest import write_images


@pytest.fixture
def sites(tmp_path):
    """Three sites; site 1 has no red images, site 2 none but green ones."""
    for peer, count in enumerate((3, 4, 2)):
        write_images(tmp_path / f"site-{peer}", {"train": count, "test": 2 + peer})
    for peer, names in ((1, ["red"]), (2, ["red", "blue"])):
        for name in names:
            for file in (tmp_path / f"site-{peer}" / "train" / name).iterdir():
                file.unlink()
    return tmp_path


def config_of(sites, **settings):
    return LearningConfig(dataset=f"folder:{sites}/site-{{peer}}", batch_size=2, **settings)


def test_each_peer_holds_the_images_of_its_own_folder_and_is_scored_on_its_own_test(sites):
    workload = Workload(config_of(sites), n=3)
    assert workload.holdings.partition_spec == "own"
    assert [workload.holdings.data(p).images for p in range(3)] == [9, 8, 2]
    assert workload.holdings.data(0).classes == ("blue", "green", "red")
    assert workload.holdings.data(1).classes == ("blue", "green")
    assert workload.holdings.data(2).classes == ("green",)
    assert len(workload.holdings.test_positions) == 6 + 9 + 12
    objectives = workload.objectives(range(3))
    for peer, objective in objectives.items():
        alone = Workload(config_of(sites), n=3, peers=(peer,))
        assert objective.evaluate(workload.theta0) == alone.objectives([peer])[peer].evaluate(alone.theta0)


def test_where_a_peer_is_deployed_no_other_peers_folder_is_needed(sites):
    together = Workload(config_of(sites), n=3)
    expected = together.objectives([1])[1].gradient(together.theta0)
    for other in (0, 2):
        shutil.rmtree(sites / f"site-{other}")
    alone = Workload(config_of(sites), n=3, peers=(1,))
    assert alone.holdings.data(1) == together.holdings.data(1)
    assert alone.model_digest == together.model_digest
    np.testing.assert_array_equal(alone.objectives([1])[1].gradient(alone.theta0), expected)


def test_a_class_that_a_site_does_not_hold_is_named_in_a_warning(sites, caplog):
    assert Holdings(config_of(sites), n=3).dataset.classes == ("blue", "green", "red")
    assert "site-1/train: no image of the classes red: this peer holds none" in caplog.text
    assert "site-2/train: no image of the classes blue, red" in caplog.text
    assert "site-0/train" not in caplog.text


def test_without_peer_in_its_name_a_folder_needs_images_of_every_class(sites):
    with pytest.raises(DataError, match=r"site-1/train/red: no image of class 'red'"):
        _ = Holdings(LearningConfig(dataset=f"folder:{sites}/site-1"), n=1).dataset


def test_sites_with_other_class_folders_are_refused_with_both_lists(sites):
    (sites / "site-2" / "train" / "pink").mkdir()
    message = (
        r"differ: folder:.*site-0 has \['blue', 'green', 'red'\], "
        r"folder:.*site-2 has \['blue', 'green', 'pink', 'red'\]; every peer needs the same folders"
    )
    with pytest.raises(DataError, match=message):
        _ = Holdings(config_of(sites), n=3).dataset


def test_a_peer_without_a_folder_or_without_data_is_named(sites):
    with pytest.raises(DataError, match=r"peer 3: dataset folder '.*site-3' does not exist"):
        _ = Holdings(config_of(sites), n=4).dataset
    for file in (sites / "site-2" / "train" / "green").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"peer 2: .*site-2/train: no image in any class folder"):
        _ = Holdings(config_of(sites), n=3).dataset


def test_shots_are_drawn_from_each_folder_and_a_class_with_fewer_is_named(sites, caplog):
    holdings = Holdings(config_of(sites, shots=3), n=3)
    assert [holdings.data(p).images for p in range(3)] == [9, 6, 2]
    assert "'green' has 2" in caplog.text
    assert "'red' has 0" not in caplog.text


def test_pooled_training_takes_the_images_of_all_folders(sites):
    workload = Workload(config_of(sites), n=3, pooled="uniform")
    assert workload.holdings.data(0).images == 19
    assert len(workload.holdings.test_positions) == 27
    assert np.isfinite(workload.objectives([0])[0].gradient(workload.theta0)).all()
    with pytest.raises(ConfigError, match=r"the peers' folders are on separate machines"):
        Holdings(config_of(sites), n=3, pooled="uniform", peers=(0,))


def settings_of(sites, **settings):
    return {
        "dataset": f"folder:{sites}/site-{{peer}}",
        "topology": "directed-ring:3",
        "tune": "head",
        "iterations": 3,
        "batch_size": 2,
        **settings,
    }


def test_sites_train_in_simulation_and_deployed_to_the_same_scores(sites, tmp_path):
    run_app(tmp_path / "s", nodes=3, slots=2, **settings_of(sites))
    nodes = [{"peer-id": p, "peer-address": f"127.0.0.1:{port}"} for p, port in enumerate(free_ports(3))]
    run_app(tmp_path / "d", slots=3, node_configs=nodes, **settings_of(sites))
    simulated, deployed = read_results(tmp_path / "s"), read_results(tmp_path / "d")
    assert simulated["partition"] == deployed["partition"] == "own"
    for a, b in zip(simulated["peers"], deployed["peers"], strict=True):
        for key in ("images", "classes", "accuracy", "loss"):
            assert a[key] == b[key], key
    assert [p["images"] for p in deployed["peers"]] == [9, 8, 2]


def without_tests(sites):
    """Site 1 has no test/ at all, site 2 an empty one and one training image."""
    shutil.rmtree(sites / "site-1" / "test")
    for file in (sites / "site-2" / "test").rglob("*.*"):
        file.unlink()
    for file in sorted((sites / "site-2" / "train" / "green").iterdir())[1:]:
        file.unlink()


def test_a_site_without_test_images_or_with_one_training_image_is_said_to_be_so(sites, caplog):
    without_tests(sites)
    problem = Workload(config_of(sites), n=3)
    assert len(problem.holdings.test_positions) == 6
    for peer in (1, 2):
        assert f"peer {peer} has no test image: it trains with the others and is not scored" in caplog.text
    assert "peer 2 has one training image" in caplog.text
    score = problem.objectives([1])[1].evaluate(problem.theta0)
    assert np.isnan(score.accuracy)
    assert np.isnan(score.loss)
    assert score.accuracy_unseen is None


@pytest.mark.parametrize(
    ("algorithm", "cache"), [("p2pft", True), ("p2pft", False), ("fedavg", True), ("centralized", False)]
)
def test_sites_without_test_images_train_with_the_others_and_have_no_scores(
    algorithm, cache, sites, tmp_path, capsys
):
    without_tests(sites)
    run_app(tmp_path / "r", **settings_of(sites, algorithm=algorithm, cache=cache, epochs=3, iterations=0))
    results = read_results(tmp_path / "r")
    assert results["status"] == "completed"
    if algorithm == "centralized":
        assert results["peers"][0]["accuracy"] is not None
        return
    accuracy = [peer["accuracy"] for peer in results["peers"]]
    assert [a is None for a in accuracy] == [False, True, True]
    assert [peer["loss"] is None for peer in results["peers"]] == [False, True, True]
    assert results["summary"]["accuracy"]["mean"] == results["summary"]["accuracy"]["min"] == accuracy[0]
    assert [a is None for a in results["history"][-1]["accuracy"]] == [False, True, True]
    assert f"accuracy {accuracy[0]:.3f} – – " in capsys.readouterr().out
    assert "mean" in run_table(results)
    draw_comparison([results], "x", tmp_path / "x.png")
    scored = _json(invoke("evaluate", str(tmp_path / "r"), "--json").stdout)
    assert [line["accuracy"] for line in scored] == accuracy
    assert "–" in invoke("evaluate", str(tmp_path / "r")).stdout


def test_where_no_site_has_test_images_nothing_is_scored_and_the_run_completes(sites, tmp_path):
    for site in range(3):
        shutil.rmtree(sites / f"site-{site}" / "test")
    run_app(tmp_path / "r", **settings_of(sites))
    results = read_results(tmp_path / "r")
    assert (results["status"], results["summary"]["accuracy"]) == ("completed", None)
    assert "accuracy" in run_table(results)
    draw_comparison([results], "x", tmp_path / "x.png")
    assert "–" in comparison_markdown([results], "x")


def test_tails_of_sites_are_scored_again_on_their_own_test_images(sites, tmp_path):
    run_app(tmp_path / "s", **settings_of(sites))
    run_app(tmp_path / "c", algorithm="centralized", **settings_of(sites))
    for folder, images in (("s", ["6", "9", "12"]), ("c", ["27"])):
        said = read_results(tmp_path / folder)["peers"]
        result = invoke("evaluate", str(tmp_path / folder), "--json")
        assert result.exit_code == 0, result.stderr
        for line, peer in zip(_json(result.stdout), said, strict=True):
            assert line["accuracy"] == peer["accuracy"]
            assert str(line["images"]) == images[peer["peer"]]


def _json(text):
    import json

    return json.loads(text)


def test_deployed_sites_with_other_classes_end_the_run_with_both_lists(sites, tmp_path):
    (sites / "site-2" / "train" / "pink").mkdir()
    nodes = [{"peer-id": p, "peer-address": f"127.0.0.1:{port}"} for p, port in enumerate(free_ports(3))]
    message = (
        r"the classes differ: peers \[2\] have \['blue', 'green', 'pink', 'red'\], "
        r"peers \[0\] have \['blue', 'green', 'red'\]"
    )
    with pytest.raises(RunFailedError, match=message):
        run_app(tmp_path / "d", slots=3, node_configs=nodes, **settings_of(sites))


def test_a_strategys_coordinator_needs_no_folder_of_its_own(sites, tmp_path):
    nodes = [{"peer-id": p, "peer-address": ""} for p in range(3)]
    run_app(tmp_path / "f", slots=3, node_configs=nodes, algorithm="fedavg", **settings_of(sites))
    assert [p["images"] for p in read_results(tmp_path / "f")["peers"]] == [9, 8, 2]


def test_data_show_counts_the_images_of_each_folder(sites):
    result = invoke(
        "data", "show", f"dataset=folder:{sites}/site-{{peer}}", "topology=directed-ring:3", "--json"
    )
    assert result.exit_code == 0, result.stderr
    shares = _json(result.stdout)
    assert shares["partition"] == "own"
    assert [peer["images"] for peer in shares["peers"]] == [[3, 3, 3], [4, 4, 0], [0, 2, 0]]
    assert shares["test"] == [9, 9, 9]
    wrong = invoke("data", "show", f"dataset=folder:{sites}/site-{{peer}}", "partition=iid")
    assert wrong.exit_code == 2
    assert "each peer has a folder of its own" in wrong.stderr
