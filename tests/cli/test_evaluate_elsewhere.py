"""``p2pft evaluate --dataset``: tails are scored on the other dataset's own test images, and on no others."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.datasets import load_dataset
from p2pft_flower.learning.data.holdings import Holdings
from tests.cli.test_commands import invoke
from tests.flower.engine import run_app

SETTINGS = {
    "model": "glyph_vit_8", "topology": "complete:2", "partition": "iid", "iterations": 6,
    "batch_size": 4, "learning_rate": 0.5,
}  # fmt: skip


def write_hospital(folder, dark, images="."):
    """A table of a hospital whose ``dark`` animal is dark; every hospital's files have the same names."""
    rows = [("image", "label", "split")]
    for split, count in (("train", 6), ("test", 4)):
        for label in ("cat", "dog"):
            for _ in range(count):
                file = folder / images / f"{len(rows):03d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 20 if label == dark else 230).save(file)
                rows.append((file.name, label, split))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return f"table:{folder}/labels.csv"


def evaluated(*words):
    done = invoke("evaluate", *map(str, words), "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)[0]


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    """A run on one hospital's images, another one on images that it holds out, and a second hospital."""
    root = tmp_path_factory.mktemp("hospitals")
    settings = {**SETTINGS, "dataset": write_hospital(root / "one", "cat", "images")}
    settings["data_dir"] = str(root / "one" / "images")
    run_app(root / "run", nodes=1, **settings)
    run_app(root / "held", nodes=1, validation=0.34, **settings)
    run_app(root / "some", nodes=1, evaluate_on=6, **settings)
    write_hospital(root / "two", "dog")
    return root


def test_another_tables_images_are_its_own_though_the_first_ones_have_the_same_names(hospitals):
    """The run's data-dir belongs to the run's table."""
    told = evaluated(hospitals / "run", "--dataset", f"table:{hospitals}/two/labels.csv")
    assert told["accuracy"] == 0.0  # here the cats are bright
    assert told["same_images"] is False


def test_the_runs_own_table_is_read_with_the_runs_data_dir(hospitals):
    same = evaluated(hospitals / "run", "--dataset", f"table:{hospitals}/one/labels.csv")
    assert same == evaluated(hospitals / "run")
    assert (same["accuracy"], same["same_images"]) == (1.0, True)


def test_of_another_dataset_the_test_images_are_scored_also_if_the_run_held_training_images_out(hospitals):
    assert evaluated(hospitals / "held")["images"] == 4  # two of six cats, two of six dogs
    told = evaluated(hospitals / "held", "--dataset", f"table:{hospitals}/two/labels.csv")
    assert (told["images"], told["same_images"]) == (8, False)


def test_the_held_out_images_are_found_again_at_another_path(hospitals, tmp_path):
    moved = shutil.copytree(hospitals / "one", tmp_path / "moved")
    words = ("--dataset", f"table:{moved}/labels.csv", "--data-dir", moved / "images")
    told = evaluated(hospitals / "held", *words)
    assert (told["images"], told["same_images"]) == (4, True)


# --- classes in another order, or others ---


@pytest.fixture(scope="module")
def features_run(tmp_path_factory):
    """A run on features of three classes, each of which has its own direction."""
    root = tmp_path_factory.mktemp("features")
    run_app(
        root / "run", nodes=1, dataset=write_features(root / "one.npz", ["cat", "dog", "eel"]), model="none",
        tune="head", topology="complete:2", partition="iid", iterations=40, learning_rate=0.5,
    )  # fmt: skip
    return root


def write_features(file, classes, *, several=False, test=(0, 1, 2)):
    """Features of a cat, a dog and an eel by their names, whatever number a name has among ``classes``."""
    direction = {"cat": 0, "dog": 1, "eel": 2, "fox": 0}
    arrays = {}
    for part, held in (("train", [0, 1, 2] * 4), ("test", test)):
        labels = np.array(held)
        arrays[f"{part}.features"] = np.eye(3, dtype=np.float32)[[direction[classes[k]] for k in labels]]
        arrays[f"{part}.labels"] = np.eye(len(classes), dtype=np.int64)[labels] if several else labels
    np.savez(file, classes=np.array(classes), **arrays)
    return f"features:{file}"


def test_classes_in_another_order_are_matched_by_their_names_and_a_line_says_so(features_run, caplog):
    assert evaluated(features_run / "run")["accuracy"] == 1.0
    caplog.clear()
    other = write_features(features_run / "two.npz", ["eel", "cat", "dog"], test=(0, 0, 1, 2))
    told = evaluated(features_run / "run", "--dataset", other)
    assert told["accuracy"] == 1.0
    by_class = told["class_scores"]["classes"]
    assert by_class["names"] == ["cat", "dog", "eel"]
    assert by_class["support"] == [1, 1, 2]
    line = "its classes are those of the model in another order, and are matched by their names"
    assert [m for m in caplog.messages if line in m] == [f"dataset = {other!r}: {line}"]


def test_answers_are_told_by_the_names_of_the_other_dataset(features_run, tmp_path):
    other = write_features(features_run / "two.npz", ["dog", "eel", "cat"])
    evaluated(features_run / "run", "--dataset", other, "--predictions", tmp_path)
    with (tmp_path / "peer-0.predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["truth"] for row in rows] == ["dog", "eel", "cat"]
    assert [row["predicted"] for row in rows] == ["dog", "eel", "cat"]


def test_other_classes_are_one_error_that_names_the_missing_and_the_extra_ones(features_run):
    other = write_features(features_run / "two.npz", ["dog", "fox", "eel"])
    done = invoke("evaluate", str(features_run / "run"), "--dataset", other)
    assert done.exit_code == 2
    assert "without cat and with fox: answers would mean other classes here" in " ".join(done.stderr.split())


def test_columns_of_several_labels_are_matched_by_their_names(tmp_path):
    names = ["cat", "dog", "eel"]
    one = load_dataset(write_features(tmp_path / "one.npz", names, several=True))
    two = load_dataset(write_features(tmp_path / "two.npz", ["eel", "cat", "dog"], several=True))
    again = two.numbered_as(names)
    assert again.classes == one.classes
    by_name = np.argmax(again.test.labels, axis=1)
    assert (by_name == np.argmax(again.test.vectors, axis=1)).all()
    assert (np.argmax(two.test.labels, axis=1) != by_name).all()


def test_each_sites_classes_are_matched_by_their_names(tmp_path):
    for peer in range(2):
        write_features(tmp_path / f"site-{peer}.npz", ["dog", "eel", "cat"])
    config = LearningConfig(dataset=f"features:{tmp_path}/site-{{peer}}.npz", model="none", tune="head")
    holdings = Holdings(config, 2, classes=["cat", "dog", "eel"])
    for split in (holdings.dataset.test, holdings.pictures.test):
        assert (split.labels == np.argmax(split.vectors, axis=1)).all()


# --- a table with test rows only ---


def only_tested(folder, dark, *names):
    """A hospital's table without its training rows, and only with rows of the classes in ``names``."""
    write_hospital(folder, dark)
    with (folder / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if row[2] != "train" and row[1] in ("label", *names)]
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return f"table:{folder}/labels.csv"


def test_a_table_with_test_rows_only_is_scored_by_the_models_classes(hospitals, tmp_path):
    table = only_tested(tmp_path, "cat", "cat", "dog")
    told = evaluated(hospitals / "run", "--dataset", table)
    assert (told["images"], told["accuracy"], told["same_images"]) == (8, 1.0, True)
    assert told["class_scores"]["classes"]["names"] == ["cat", "dog"]


def test_test_rows_may_lack_a_class_which_is_not_scored_then(hospitals, tmp_path, caplog):
    """With the classes of the rows alone the dog would have the number of the cat."""
    told = evaluated(hospitals / "run", "--dataset", only_tested(tmp_path, "cat", "dog"))
    assert (told["images"], told["accuracy"]) == (4, 1.0)
    assert told["class_scores"]["classes"]["support"] == [0, 4]
    assert "no test image of the classes cat: they are not scored" in caplog.text


def test_test_rows_of_other_classes_are_one_error_with_line_and_names(hospitals, tmp_path):
    table = only_tested(tmp_path, "cat", "cat", "dog")
    file = tmp_path / "labels.csv"
    file.write_text(file.read_text().replace(",dog,", ",fox,"))
    done = invoke("evaluate", str(hospitals / "run"), "--dataset", table)
    assert done.exit_code == 2
    assert re.search(
        r"line 6: a test row of class 'fox', which the model was not trained on, as fox in 4 rows; its "
        r"classes: cat, dog",
        " ".join(done.stderr.split()),
    )


def test_a_run_on_a_table_with_test_rows_only_is_still_refused(hospitals, tmp_path):
    table = only_tested(tmp_path, "cat", "cat", "dog")
    with pytest.raises(DataError, match=r"labels\.csv: no training image"):
        load_dataset(table)


def test_a_sites_table_with_test_rows_only_is_scored(hospitals, tmp_path):
    only_tested(tmp_path / "site-0", "cat", "cat", "dog")
    told = evaluated(
        hospitals / "run" / "peers" / "peer-0.safetensors",
        "--dataset",
        f"table:{tmp_path}/site-{{peer}}/labels.csv",
    )
    assert (told["images"], told["accuracy"]) == (8, 1.0)


def test_the_images_that_the_seed_drew_are_scored_again_and_all_of_another_dataset(hospitals, tmp_path):
    assert evaluated(hospitals / "some")["images"] == 6
    moved = shutil.copytree(hospitals / "one", tmp_path / "moved")
    words = ("--dataset", f"table:{moved}/labels.csv", "--data-dir", moved / "images")
    told = evaluated(hospitals / "some", *words)
    assert (told["images"], told["same_images"]) == (6, True)
    told = evaluated(hospitals / "some", "--dataset", f"table:{hospitals}/two/labels.csv")
    assert (told["images"], told["same_images"]) == (8, False)
