"""Tables of images: a CSV with a row an image, for all peers or one a peer."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.flower import client
from p2pft_flower.flower.nodes import RunFailedError
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.learning.data.datasets import load_dataset
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.sites import load_sites
from p2pft_flower.report.results import read_results
from tests.cli.test_commands import invoke
from tests.flower.engine import run_app
from tests.learning.image_files import png

ROWS = [
    f"images/{label}-{i}.png,{label},{'train' if i < 4 else 'test'},{('north', 'south')[i % 2]}"
    for label in ("cat", "dog")
    for i in range(6)
]
HEADER = "image,label,split,center"


NO_SPLIT = [row.replace("train", "left").replace("test", "right") for row in ROWS]


def paint(folder, names):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        bright = 90 * name.count("dog")
        Image.fromarray(rng.integers(0, 60, (8, 8), dtype=np.uint8) + np.uint8(bright)).save(folder / name)


def write(folder, rows=ROWS, header=HEADER, name="labels.csv", encoding="utf-8", end="\n"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes((end.join([header, *rows]) + end).encode(encoding))
    return folder / name


@pytest.fixture
def labels(tmp_path):
    """A table of two classes: four training and two test images each, of two centres."""
    paint(tmp_path / "data", [row.split(",")[0] for row in ROWS])
    return write(tmp_path / "data")


def read(file, data_dir="", **settings):
    return load_dataset(f"table:{file}", str(data_dir), **settings)


def test_a_table_is_the_dataset_that_its_rows_say_in_their_order(labels):
    data = read(labels)
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert [file.name for file in data.test.files] == ["cat-4.png", "cat-5.png", "dog-4.png", "dog-5.png"]
    assert data.train.columns["center"].tolist() == ["north", "south"] * 4
    assert data.test.at(np.array([3])).columns["center"].tolist() == ["south"]
    np.testing.assert_array_equal(data.train.picture(5), Image.open(labels.parent / "images" / "dog-1.png"))


@pytest.mark.parametrize(
    ("header", "mark", "encoding", "end"),
    [
        ("image,label,split,center", ",", "utf-8", "\n"),
        (" Image , LABEL,Split,center", ",", "utf-8-sig", "\r\n"),
        ("image;label;split;center", ";", "utf-8-sig", "\r\n"),
        ('"image"\t"target"\t"fold"\t"center"', "\t", "utf-8", "\n"),
    ],
)
def test_programs_of_offices_and_scientists_write_tables_in_several_ways_that_are_all_read(
    header, mark, encoding, end, labels
):
    rows = [row.replace(",", f" {mark}").replace("train", "TRAIN") for row in ROWS]
    other = write(labels.parent, [*rows, mark * 3, ""], header, "other.csv", encoding, end)
    one, two = read(labels), read(other)
    assert two.classes == one.classes
    assert [two.train.files, two.test.files] == [one.train.files, one.test.files]
    assert two.train.columns["center"].tolist() == one.train.columns["center"].tolist()


def test_classes_are_in_natural_order_whatever_the_order_of_rows(tmp_path):
    names = ["10", "2", "1"]
    paint(tmp_path, [f"{name}{part}.png" for name in names for part in "ab"])
    parts = (("a", "train"), ("b", "test"))
    rows = [f"{name}{part}.png,{name},{split}" for name in names for part, split in parts]
    data = read(write(tmp_path, rows, "image,label,split"))
    assert data.classes == ("1", "2", "10")
    assert data.train.labels.tolist() == [2, 1, 0]


def test_paths_lead_from_the_table_or_from_data_dir_and_may_be_absolute(labels, tmp_path):
    rows = [*ROWS[:-1], f"{tmp_path}/far/away.png,dog,test,south"]
    paint(tmp_path, ["far/away.png"])
    files = read(write(labels.parent, rows)).test.files
    assert files[-1] == tmp_path / "far" / "away.png"
    shutil.move(labels.parent / "images", tmp_path / "moved" / "images")
    with pytest.raises(
        DataError, match=r"labels.csv, line 2: there is no file .*cat-0.png, as for 11 of 12 ro"
    ):
        read(labels)
    assert read(labels, tmp_path / "moved").train.files[0] == tmp_path / "moved" / "images" / "cat-0.png"


def test_an_image_may_lack_its_suffix_if_one_picture_has_its_name(labels):
    bare = write(labels.parent, [row.replace(".png", "", 1) for row in ROWS])
    (labels.parent / "images" / "cat-0.txt").write_text("no picture")
    assert read(bare).train.files[0].name == "cat-0.png"
    paint(labels.parent, ["images/cat-0.jpg"])
    with pytest.raises(
        DataError, match=r"line 2: image 'images/cat-0' may be any of cat-0.jpg, cat-0.png in"
    ):
        read(bare)


def changed(line, text):
    """The rows with line ``line`` of the file replaced; without a text it is removed."""
    rows = list(ROWS)
    rows[line - 2 : line - 1] = text if isinstance(text, list) else [text]
    return rows


FAULTS = {
    "no column image": (
        ROWS,
        "picture,label,split,center",
        "line 1: no column image; .* it has picture, label",
    ),
    "no column label": (
        ROWS,
        "image,lable,split,center",
        "no column label or target or labels; .* did you mean 'lable'",
    ),
    "two columns": (ROWS, "image,label,split,Label", "line 1: several columns are called label"),
    "no row": ([], HEADER, "has no row"),
    "no label": (changed(4, "images/cat-2.png,  ,train,north"), HEADER, "line 4: no label, as in 1 rows"),
    "no image": (changed(4, ",cat,train,north"), HEADER, "line 4: no image; only in a table of one peer"),
    "cells": (changed(5, "images/cat-3.png,cat,train"), HEADER, "line 5: 3 cells for 4 columns"),
    "quotes": (changed(5, 'images/cat-3.png,"cat"s,train,x'), HEADER, "line 5: no row of a CSV"),
    "split": (changed(3, "images/cat-1.png,cat,0,south"), HEADER, "line 3: split = '0'; it must be train"),
    "validation": (
        changed(3, "images/cat-1.png,cat,val,south"),
        HEADER,
        "line 3: split = 'val'; .* validation = 0.1 holds out",
    ),
    "missing": (
        changed(3, "images/cat-9.png,cat,train,south"),
        HEADER,
        "line 3: there is no file .*cat-9.png; pa",
    ),
    "backslash": (changed(3, "images\\cat-1.png,cat,train,south"), HEADER, r"line 3: .* \(paths have / here"),
    "a folder": (
        changed(3, "images,cat,train,south"),
        HEADER,
        "line 3: there is no file .*/images; paths lead",
    ),
    "twice": (
        changed(3, "images/cat-0.png,cat,train,south"),
        HEADER,
        "line 3: .*cat-0.png stands in line 2 already, as 'cat'; an image has one row",
    ),
    "two classes": (
        changed(3, "./images/cat-0.png,dog,train,x"),
        HEADER,
        "line 3: .*in line 2 already, as 'cat'",
    ),
    "a test class": (
        changed(13, "images/dog-5.png,Dog,test,south"),
        HEADER,
        "line 13: a test row of class 'Dog', which no training row has; it differs from 'dog' only in case",
    ),
    "no test": ([row.replace("test", "train") for row in ROWS], HEADER, "split = test in no row; mark some"),
    "no split": (NO_SPLIT, "image,label,part,center", "no column split, so no row is for the test"),
    "a split by another name": (
        changed(3, "images/cat-1.png,cat,Valid,south"),
        "image,label,subset,center",
        "line 1: no column split or fold, .* column 'subset' says train and test: rename it to split, or rem",
    ),
    "no training": (
        [row.replace("train", "test") for row in ROWS],
        HEADER,
        "no training image, as all rows are for the test",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_table_is_told_with_file_and_line(fault, labels):
    rows, header, message = FAULTS[fault]
    with pytest.raises(DataError, match=f"labels.csv.*{message}"):
        read(write(labels.parent, rows, header))


def test_test_rows_of_a_misspelt_column_are_not_trained_on(labels, tmp_path):
    """With validation, and of one peer, a table needs no test rows, so nothing else would tell of them."""
    write(labels.parent, ROWS, "image,label,spilt,center")
    with pytest.raises(DataError, match="column 'spilt' says train and test: rename it to split"):
        Holdings(LearningConfig(dataset=f"table:{labels}", validation=0.25, partition="iid"), n=2).data(0)
    paint(tmp_path / "site-0", [row.split(",")[0] for row in ROWS])
    write(tmp_path / "site-0", header="image,label,spilt,center", name="0.csv")
    with pytest.raises(DataError, match="column 'spilt' says train and test: rename it to split"):
        load_sites(f"table:{tmp_path}/site-{{peer}}/{{peer}}.csv", [0])


def test_classes_that_only_look_alike_are_told_to_be_several(labels, caplog):
    rows = [row.replace(",cat,", ",01,").replace(",dog,", ",1,") for row in ROWS]
    assert read(write(labels.parent, rows)).classes == ("01", "1")
    assert "'01' and '1' differ only in the way in which a number is written, and each is a" in caplog.text


def test_a_column_of_several_labels_with_one_name_in_each_row_is_told(labels, caplog):
    """It may have another separator, or be of images of one class each, which another loss trains."""
    said = "column labels has one name in each row"
    several = [ROWS[0].replace(",cat,", ",cat|dog,"), *ROWS[1:]]
    none = [ROWS[0].replace(",cat,", ",,"), *ROWS[1:]]
    for rows in (several, none):
        read(write(labels.parent, rows, "image,labels,split,center"))
        assert said not in caplog.text
    commas = [row.replace(",cat,", ",cat; dog,") for row in ROWS]
    read(write(labels.parent, commas, "image,labels,split,center"))
    assert f"{said}, as if each image had one class: if so, call the column label; several" in caplog.text


def test_little_is_told_of_a_file_that_is_no_table(tmp_path):
    """Whoever sets the dataset may not read any file of a site by its error."""
    secret = tmp_path / "secret"
    secret.write_text("admin:x:0:0,key=abc,zzz\tmore\n")
    with pytest.raises(DataError, match="no column image") as raised:
        read(secret)
    assert not [word for word in ("admin", "abc", "more") if word in str(raised.value)]


def test_a_table_in_another_encoding_is_refused_with_the_line(labels):
    with pytest.raises(DataError, match=r"line 3: not UTF-8 \(byte 0xe9\); save the table as CSV in UTF-8"):
        read(write(labels.parent, changed(3, "images/cat-1.png,café,train,x"), encoding="latin-1"))
    with pytest.raises(DataError, match="the table is UTF-16; save"):
        read(write(labels.parent, encoding="utf-16"))


def test_one_image_by_two_paths_is_named(labels, caplog):
    """As in folders: the same file in two classes is refused, in train and test warned of."""
    images = labels.parent / "images"
    os.link(images / "cat-0.png", images / "cat-6.png")
    read(write(labels.parent, [*ROWS, "images/cat-6.png,cat,test,x"]))
    assert "1 TEST IMAGES ARE TRAINING IMAGES too" in caplog.text
    with pytest.raises(DataError, match="1 image files lie in two classes"):
        read(write(labels.parent, [*ROWS, "images/cat-6.png,dog,train,x"]))


def test_a_missing_table_and_a_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such file; give an absolute path"):
        read(tmp_path / "labels.csv")
    with pytest.raises(DataError, match="that is a folder"):
        read(tmp_path)
    with pytest.raises(ConfigError, match=r"is unknown; .* did you mean 'table:labels.csv'"):
        load_dataset("labels.csv")
    with pytest.raises(ConfigError, match=r"is unknown; .* did you mean 'table:/data/labels.csv'"):
        load_dataset("tabel:/data/labels.csv")


def test_bad_images_of_a_table_are_refused_or_skipped_missing_ones_too(labels, caplog):
    images = labels.parent / "images"
    (images / "cat-0.png").write_bytes(b"broken")
    (images / "dog-5.png").unlink()
    with pytest.raises(DataError, match=r"line 13: there is no file .*dog-5.png; .* set bad-images = skip"):
        _ = Holdings(LearningConfig(dataset=f"table:{labels}"), n=2).dataset
    held = Holdings(LearningConfig(dataset=f"table:{labels}", bad_images="skip", partition="iid"), n=2)
    assert sum(len(share) for share in held.shares) == 7
    assert len(held.test_positions) == 3
    assert held.unreadable == 2
    assert "1 of 8 training images cannot be read and are left out" in caplog.text
    paint(labels.parent, ["images/dog-5.png"])
    held = Holdings(LearningConfig(dataset=f"table:{labels}", partition="iid"), n=2)
    with pytest.raises(DataError, match=r"cat-0.png: not a readable image"):
        held.check_images([0, 1])


def test_deep_and_turned_images_of_a_table_become_what_those_of_folders_become(labels, tmp_path):
    images = labels.parent / "images"
    deep = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("cat-0", "cat-1", "dog-0"):
        (images / f"{name}.png").write_bytes(png(deep, 16, 0))
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    picture.save(images / "dog-1.png", exif=exif)
    for row in ROWS:
        name, label, part, _ = row.split(",")
        (tmp_path / "f" / part / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(labels.parent / name, tmp_path / "f" / part / label)
    table, folder = (
        Holdings(LearningConfig(dataset=name, partition="iid"), n=1)
        for name in (f"table:{labels}", f"folder:{tmp_path}/f")
    )
    assert table.notes == folder.notes
    assert "1 turned upright" in str(table.notes)
    for index in range(8):
        one, two = (held.pictures.train.picture(index) for held in (table, folder))
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def test_training_rows_can_be_held_out_where_a_table_has_no_test(labels):
    write(labels.parent, NO_SPLIT, "image,label,part,center")
    held = Holdings(LearningConfig(dataset=f"table:{labels}", validation=0.25, partition="by:center"), n=2)
    assert len(held.test_positions) == 4  # a quarter of six of each class is 1.5, rounded to two
    assert sum(map(len, held.shares)) == 8
    for share, center in zip(held.shares, ("north", "south"), strict=True):
        assert set(held.dataset.train.columns["center"][share]) == {center}


def test_the_digest_knows_the_same_table_at_another_place_and_another_order_of_rows(labels, tmp_path):
    shutil.copytree(labels.parent, tmp_path / "copy")
    digests = [
        Holdings(LearningConfig(dataset=f"table:{file}", partition="iid"), n=2).data(0).train_digest
        for file in (
            labels,
            tmp_path / "copy" / "labels.csv",
            write(tmp_path / "copy", ROWS[::-1], name="b.csv"),
        )
    ]
    assert digests[0] == digests[1] != digests[2]


# --- a table for each peer ----------------------------------------------------------------------------------


@pytest.fixture
def sites(tmp_path):
    """Two peers' tables; peer 1 holds no cat, which a row without an image says."""
    for peer in range(2):
        paint(tmp_path / f"site-{peer}", [row.split(",")[0] for row in ROWS])
    write(tmp_path / "site-0", name="0.csv")
    write(tmp_path / "site-1", [",cat,train,", *ROWS[6:]], name="1.csv")
    return f"table:{tmp_path}/site-{{peer}}/{{peer}}.csv"


def test_each_peer_has_a_table_of_its_own_and_sees_no_other(sites, tmp_path, caplog):
    together = Holdings(LearningConfig(dataset=sites), n=2)
    assert together.partition_spec == "own"
    assert [len(share) for share in together.shares] == [8, 4]
    assert [len(test) for test in together.tests] == [4, 2]
    assert together.data(1).classes == ("dog",)
    assert "no image of the classes cat: this peer holds none" in caplog.text
    shutil.rmtree(tmp_path / "site-0")
    alone = Holdings(LearningConfig(dataset=sites), n=2, peers=(1,))
    assert alone.data(1) == together.data(1)
    assert alone.classes == ("cat", "dog")


def test_tables_of_peers_whose_classes_differ_are_refused_with_both_lists(sites, tmp_path):
    write(tmp_path / "site-1", ROWS[6:], name="1.csv")
    with pytest.raises(
        DataError, match=r"the classes differ: .*\['cat', 'dog'\], .*\['dog'\]; .* row without an"
    ):
        load_sites(sites, [0, 1])
    write(tmp_path / "site-1", [",dog,train,", *ROWS], name="1.csv")
    with pytest.raises(DataError, match=r"peer 1: .*1.csv, line 2: no image"):  # its dogs are there
        load_sites(sites, [0, 1])


def test_peers_tables_may_have_their_images_in_data_dir(sites, tmp_path):
    for peer in range(2):
        shutil.copytree(tmp_path / f"site-{peer}" / "images", tmp_path / "all" / "images", dirs_exist_ok=True)
        shutil.rmtree(tmp_path / f"site-{peer}" / "images")
    held = Holdings(LearningConfig(dataset=sites, data_dir=str(tmp_path / "all")), n=2)
    assert held.dataset.train.files[0] == tmp_path / "all" / "images" / "cat-0.png"


# --- runs ---------------------------------------------------------------------------------------------------

SETTINGS = {
    "topology": "complete:2",
    "iterations": 2,
    "evaluate_every": 2,
    "checkpoint_every": 1,
    "batch_size": 2,
}


def test_a_deployment_of_tables_gives_the_simulations_scores(sites, tmp_path):
    settings = {**SETTINGS, "dataset": sites}
    run_app(tmp_path / "s", **settings)
    nodes = [
        {"peer-id": p, "peer-address": f"127.0.0.1:{port}", "data-dir": str(tmp_path / f"site-{p}")}
        for p, port in enumerate(free_ports(2))
    ]
    run_app(tmp_path / "d", slots=2, node_configs=nodes, **settings)
    simulated, deployed = read_results(tmp_path / "s"), read_results(tmp_path / "d")
    done = invoke("evaluate", str(tmp_path / "s"), "--json")
    assert done.exit_code == 0, done.stderr
    assert [(line["images"], line["accuracy"]) for line in json.loads(done.stdout)] == [
        (images, peer["accuracy"]) for images, peer in zip((4, 2), simulated["peers"], strict=True)
    ]
    for a, b in zip(simulated["peers"], deployed["peers"], strict=True):
        for key in ("images", "classes", "accuracy", "loss"):
            assert a[key] == b[key], key
    write(tmp_path / "site-1", ROWS[6:], name="1.csv")
    for kept in (client.workload, client.holdings, client._facts):  # each process looks once
        kept.cache_clear()
    with pytest.raises(RunFailedError, match=r"the classes differ: .*in tables, a row without an image"):
        run_app(tmp_path / "e", slots=2, node_configs=nodes, **settings)


def test_sites_whose_copies_of_a_table_deal_images_out_otherwise_are_refused(labels, tmp_path):
    """The images are the same ones: only whose they are differs."""
    shutil.copytree(labels.parent, tmp_path / "other")
    swapped = [row.replace("north", "x").replace("south", "north").replace("x", "south") for row in ROWS]
    held = [
        Holdings(LearningConfig(dataset=f"table:{file}", partition="by:center"), n=2)
        for file in (
            labels,
            tmp_path / "other" / "labels.csv",
            write(tmp_path / "other", swapped, name="b.csv"),
        )
    ]
    assert held[0].dealt_digest == held[1].dealt_digest != held[2].dealt_digest
    assert held[0].partition_spec == held[2].partition_spec


def test_a_run_on_a_table_is_scored_again_and_goes_on_with_the_table_at_another_place(labels, tmp_path):
    run_app(tmp_path / "r", dataset=f"table:{labels}", partition="by:center", **SETTINGS)
    results = read_results(tmp_path / "r")
    assert results["partition"] == "by:center=north,south"
    moved = shutil.move(labels.parent, tmp_path / "moved")
    gone = invoke("evaluate", str(tmp_path / "r"))
    assert gone.exit_code == 2
    assert "there is no such file" in gone.stderr
    done = invoke("evaluate", str(tmp_path / "r"), "--dataset", f"table:{moved}/labels.csv", "--json")
    assert done.exit_code == 0, done.stderr
    scores = json.loads(done.stdout)
    assert [line["accuracy"] for line in scores] == [p["accuracy"] for p in results["peers"]]
    assert all(line["same_images"] for line in scores)
    settings = SETTINGS | {"iterations": 4, "extend": True, "dataset": f"table:{moved}/labels.csv"}
    run_app(tmp_path / "on", partition="by:center", resume=str(tmp_path / "r"), **settings)
    assert read_results(tmp_path / "on")["resumed_from"]["iteration"] == 2


def test_data_show_counts_the_rows_of_a_table(labels):
    result = invoke(
        "data", "show", f"dataset=table:{labels}", "partition=by:center", "topology=complete:2", "--json"
    )
    assert result.exit_code == 0, result.stderr
    shares = json.loads(result.stdout)
    assert shares["partition"] == "by:center=north,south"
    assert [peer["images"] for peer in shares["peers"]] == [[2, 2], [2, 2]]
    assert shares["test"] == [2, 2]
    assert shares["decoded"] is False


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "n/a", "#N/A", "<NA>", "NULL"])
def test_a_word_for_a_missing_label_is_no_class(word, labels):
    rows = [row if i != 3 else row.replace(row.split(",")[1], word) for i, row in enumerate(ROWS)]
    with pytest.raises(DataError, match=rf"labels.csv, line 5: label = '{word}' stands for a missing value"):
        read(write(labels.parent, rows, HEADER))


def test_none_is_a_class_as_a_grade_is_called_so(labels):
    first = ROWS[0].split(",")[1]
    rows = [row.replace(f",{first},", ",None,") for row in ROWS]
    assert "None" in read(write(labels.parent, rows, HEADER)).classes


@pytest.mark.parametrize("column", ["patient", "Patient_ID", "subject no"])
def test_patients_on_both_sides_are_told(column, labels, caplog):
    rows = [f"{row},P{i % 5 if i else 'NA'}" for i, row in enumerate(ROWS)]
    write(labels.parent, rows, f"{HEADER},{column}")
    assert Holdings(LearningConfig(dataset=f"table:{labels}", partition="iid"), n=2).data(0).images
    assert "TEST PATIENTS HAVE TRAINING IMAGES too, by the column" in caplog.text
    assert repr(column.lower()) in caplog.text
    caplog.clear()
    apart = [f"{row},P{i}" for i, row in enumerate(ROWS)]
    write(labels.parent, apart, f"{HEADER},{column}")
    Holdings(LearningConfig(dataset=f"table:{labels}", partition="iid"), n=2).data(0)
    assert "PATIENTS" not in caplog.text


def test_a_table_of_one_class_is_told(labels, caplog):
    write(labels.parent, [row.replace(",dog,", ",cat,") for row in ROWS])
    Holdings(LearningConfig(dataset=f"table:{labels}", partition="iid"), n=2).data(0)
    assert "all images are of one class, 'cat', so there is nothing to learn" in caplog.text


def test_a_table_with_other_separators_says_which_ones_there_are(labels):
    write(labels.parent, [row.replace(",", "|") for row in ROWS], HEADER.replace(",", "|"))
    with pytest.raises(DataError, match="it has none, if commas, semicolons or tabs separate them"):
        read(labels)
