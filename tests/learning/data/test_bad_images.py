"""Images that cannot be read: refused or left out, named either way."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import DataError
from p2pft_flower.flower.nodes import RunFailedError
from p2pft_flower.learning.data.datasets import Split, load_dataset
from p2pft_flower.learning.data.readable import require_readable, unreadable_images
from p2pft_flower.learning.workload import Workload
from p2pft_flower.report.results import read_results
from tests.cli.test_commands import invoke
from tests.flower.engine import run_app
from tests.learning.real_data import shared


def spoil(*files):
    for file in files:
        file.write_bytes(file.read_bytes()[:40])


def workload(folder, n=3, **settings):
    return Workload(LearningConfig(dataset=f"folder:{folder}", batch_size=2, **settings), n=n)


def test_what_cannot_be_read_is_found_and_named_in_order():
    def read(index):
        if index % 5 == 3:
            raise OSError(f"sector {index}")
        return Image.new("L", (2, 2))

    split = Split(np.zeros(40, np.int64), read)
    found = unreadable_images(split, range(39, -1, -1), "training")
    assert [*found] == [38, 33, 28, 23, 18, 13, 8, 3]
    assert found[8] == "training image 8: not readable (sector 8)"
    with pytest.raises(
        DataError, match=r"test image 3: not readable \(sector 3\); repair .* bad-images = skip"
    ):
        require_readable(split, range(40), "test")
    require_readable(split, [0, 1, 2], "test")


def test_refused_images_are_named_before_the_first_iteration_with_what_to_do(folder):
    spoil(folder / "train" / "green" / "2.PNG")
    problem = workload(folder)
    message = r"train/green/2\.PNG: not a readable image .*; repair or remove it, or set bad-images = skip"
    with pytest.raises(DataError, match=message):
        problem.objectives([1])
    with pytest.raises(DataError, match=message):
        problem.holdings.check_images([0, 1])
    problem.holdings.check_images([0, 2])  # others' images are others' business


def test_skipped_images_are_named_and_count_nowhere(folder, caplog):
    spoil(folder / "train" / "green" / "2.PNG", folder / "test" / "red" / "0.png")
    problem = workload(folder, bad_images="skip")
    assert [problem.holdings.data(p).images for p in range(3)] == [4, 3, 4]
    assert len(problem.holdings.test_positions) == 5
    assert "bad-images = skip: 1 of 12 training images cannot be read and are left out: " in caplog.text
    assert "train/green/2.PNG: not a readable image" in caplog.text
    assert "1 of 6 test images cannot be read" in caplog.text
    assert problem.holdings.unreadable == 2
    objective = problem.objectives([1])[1]
    for _ in range(4):
        assert np.isfinite(objective.gradient(problem.theta0)).all()
    assert np.isfinite(objective.evaluate(problem.theta0).loss)
    problem.holdings.check_images([0, 1, 2])


def test_a_long_list_of_skipped_images_is_cut_and_counted(folder, caplog):
    for i in range(14):
        (folder / "train" / "blue" / f"broken-{i:02}.png").write_bytes(b"broken")
    assert workload(folder, bad_images="skip").holdings.data(0).images == 4
    assert "broken-09.png" in caplog.text
    assert "broken-10.png" not in caplog.text
    assert "and 4 more" in caplog.text


def test_all_peers_leave_out_the_same_images_of_a_dataset_that_is_dealt_out(folder):
    spoil(folder / "train" / "green" / "2.PNG")
    config = LearningConfig(dataset=f"folder:{folder}", bad_images="skip", partition="iid")
    together = Workload(config, n=3).holdings
    for peer in range(3):
        alone = Workload(config, n=3, peers=(peer,)).holdings
        np.testing.assert_array_equal(alone.partition[peer], together.partition[peer])
        assert alone.unreadable == 1


def test_a_deployed_peer_looks_at_no_other_peers_folder(folder, tmp_path):
    for peer in range(2):
        shutil.copytree(folder, tmp_path / f"site-{peer}")
    spoil(tmp_path / "site-1" / "train" / "green" / "2.PNG")
    config = LearningConfig(dataset=f"folder:{tmp_path}/site-{{peer}}", bad_images="skip")
    assert Workload(config, n=2, peers=(0,)).holdings.data(0).images == 12
    assert Workload(config, n=2, peers=(1,)).holdings.data(1).images == 11


def test_images_are_left_out_before_shots_are_drawn_and_shares_are_dealt(folder):
    spoil(folder / "train" / "green" / "2.PNG")
    (folder / "train" / "green" / "5.png").write_bytes((folder / "train" / "green" / "0.png").read_bytes())
    labels = load_dataset(f"folder:{folder}").train.labels
    few = workload(folder, n=1, bad_images="skip", shots=4).holdings
    assert np.bincount(labels[few.partition[0]]).tolist() == [4, 4, 4]
    even = workload(folder, n=4, bad_images="skip", partition="iid").holdings
    assert [len(part) for part in even.partition] == [3, 3, 3, 3]


def test_a_class_or_a_peer_that_loses_all_its_images_is_named(folder):
    spoil(*(folder / "train" / "green").iterdir())
    for peers in (1, 3):
        with pytest.raises(DataError, match=r"no training image can be read of the classes green"):
            workload(folder, n=peers, bad_images="skip").holdings.data(0)
    sites = folder.parent / "sites"
    shutil.copytree(folder, sites / "site-0")
    spoil(*(file for file in (sites / "site-0").rglob("*.*")))
    with pytest.raises(DataError, match=r"peer 0: none of its 12 training images can be read"):
        Workload(
            LearningConfig(dataset=f"folder:{sites}/site-{{peer}}", bad_images="skip"), n=1
        ).holdings.data(0)


def test_a_test_class_that_loses_all_its_images_is_not_scored_and_an_empty_test_is_refused(folder, caplog):
    spoil(*(folder / "test" / "green").iterdir())
    assert len(workload(folder, bad_images="skip").holdings.test_positions) == 4
    assert "no test image of the classes green: they are not scored" in caplog.text
    spoil(*(folder / "test" / "red").iterdir(), *(folder / "test" / "blue").iterdir())
    with pytest.raises(DataError, match="no test image can be read"):
        _ = workload(folder, bad_images="skip").holdings.test_positions


def test_a_picture_of_torchvisions_sets_is_skipped_the_same_way(tmp_path, caplog):
    source = shared("flowers17/flowers-102")
    copy = tmp_path / "flowers-102"
    (copy / "jpg").mkdir(parents=True)
    for file in source.glob("*.mat"):
        shutil.copy(file, copy)
    for file in (source / "jpg").iterdir():
        (copy / "jpg" / file.name).symlink_to(file)
    victim = copy / "jpg" / "image_00001.jpg"
    victim.unlink()
    victim.write_bytes(b"not a flower")
    settings = {
        "dataset": "oxford-flowers102",
        "data_dir": str(tmp_path),
        "verify": False,
        "partition": "iid",
    }
    problem = Workload(LearningConfig(**settings, bad_images="skip"), n=4)
    used = sum(problem.holdings.data(p).images for p in range(4)) + len(problem.holdings.test_positions)
    assert used == len(problem.holdings.dataset.train) + len(problem.holdings.dataset.test) - 1
    assert "image_00001.jpg: not a readable image" in caplog.text


@pytest.mark.parametrize("algorithm", ["p2pft", "fedavg"])
def test_a_run_with_a_corrupt_image_ends_by_its_name_or_completes_without_it(algorithm, folder, tmp_path):
    spoil(folder / "train" / "green" / "2.PNG")
    settings = {
        "algorithm": algorithm,
        "dataset": f"folder:{folder}",
        "topology": "ring:3",
        "tune": "head",
        "epochs": 1,
        "batch_size": 2,
        "objective": "examples",
    }
    with pytest.raises(RunFailedError, match=r"train/green/2\.PNG: not a readable image .*bad-images = skip"):
        run_app(tmp_path / "refused", **settings)
    assert "2.PNG" in read_results(tmp_path / "refused")["error"]
    run_app(tmp_path / "skipped", **settings, nodes=2, slots=2, bad_images="skip")
    assert [p["images"] for p in read_results(tmp_path / "skipped")["peers"]] == [4, 3, 4]


def test_data_show_counts_what_is_left(folder):
    spoil(folder / "train" / "green" / "2.PNG", folder / "test" / "red" / "0.png")
    words = ["data", "show", f"dataset=folder:{folder}", "topology=ring:3"]
    before = json.loads(invoke(*words, "--json").stdout)
    after = json.loads(invoke(*words, "bad-images=skip", "--json").stdout)
    assert (before["unreadable"], after["unreadable"]) == (0, 2)
    assert (before["peers"][1]["images"], after["peers"][1]["images"]) == ([0, 4, 0], [0, 3, 0])
    assert (before["test"], after["test"]) == ([2, 2, 2], [2, 2, 1])
    assert "2 unreadable images left out" in " ".join(invoke(*words, "bad-images=skip").stdout.split())


def test_a_class_without_images_ends_a_command_with_one_line(folder):
    for file in (folder / "train" / "red").iterdir():
        file.unlink()
    result = invoke("data", "show", f"dataset=folder:{folder}", "topology=ring:3")
    assert result.exit_code == 2
    assert "train/red: no image of class 'red'; add some or remove the folder" in result.stderr


def test_shots_beyond_a_class_use_all_of_it_and_name_it(folder, caplog):
    (folder / "train" / "red" / "0.png").unlink()
    problem = workload(folder, shots=4)
    assert [problem.holdings.data(p).images for p in range(3)] == [4, 4, 3]
    assert "shots = 4 is more than 1 of 3 classes have" in caplog.text
    assert "'red' has 3" in caplog.text


def test_what_hosts_leave_out_or_lack_the_coordinator_tells_once(folder, tmp_path):
    spoil(folder / "train" / "green" / "2.PNG")
    (folder / "train" / "red" / "0.png").unlink()
    for file in (folder / "test" / "red").iterdir():
        file.unlink()
    told = []

    def watch(record):  # a logger's filter sees its own records only: the coordinator's, not the hosts'
        if record.levelno == logging.WARNING:
            told.append(record.getMessage())
        return True

    settings = {"dataset": f"folder:{folder}", "bad_images": "skip", "shots": 4, "tune": "head"}
    logger = logging.getLogger("p2pft_flower")
    logger.addFilter(watch)
    try:
        run_app(tmp_path, nodes=3, slots=2, topology="ring:3", iterations=1, **settings)
    finally:
        logger.removeFilter(watch)
    assert len(told) == 3
    for part in ("train/green/2.PNG: not a readable", "classes red: they are not scored", "'red' has 3"):
        assert sum(part in line for line in told) == 1
