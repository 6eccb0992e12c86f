"""``p2pft evaluate --dataset``: tails are scored on the other dataset's own test images, and on no others."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
from PIL import Image

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
