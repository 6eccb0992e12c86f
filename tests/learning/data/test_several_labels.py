"""Images with several labels, or none: tables, MedMNIST, features and datasets of one's own."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.data_digest import images_digest
from p2pft_flower.learning.data.datasets import Dataset, Split, load_dataset
from p2pft_flower.learning.data.feature_files import features
from p2pft_flower.learning.data.held_out import held_out
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.label_arrays import draw_groups, held_classes, images_by_class, named
from p2pft_flower.learning.data.sites import load_sites
from p2pft_flower.learning.settings import require_here
from tests.several_labels import NAMES, rows_of, truth_of, write_digits, write_site_tables, write_table


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A table of digits with their looks."""
    return write_digits(tmp_path_factory.mktemp("looks"), 40, 20)


def read(file, **settings):
    return load_dataset(f"table:{file}", **settings)


# --- tables -------------------------------------------------------------------------------------------------


def test_a_column_of_labels_gives_a_row_of_0_and_1_for_each_image_and_an_empty_cell_zeros(labels):
    data = read(labels)
    cells = [line.split(",")[1] for line in labels.read_text().splitlines()[1:]]
    assert data.classes == NAMES
    assert data.several_labels
    assert data.train.labels.dtype == np.int64
    np.testing.assert_array_equal(data.train.labels, truth_of(cells[:40]))
    np.testing.assert_array_equal(data.test.labels, truth_of(cells[40:]))
    assert not data.train.labels[1].any()  # the digit 1


def test_a_column_with_the_class_counts_before_one_of_labels_as_it_did_before(tmp_path):
    rows = [
        [image, "x" if "even" in cell else "y", cell, *rest]
        for image, cell, *rest in rows_of(tmp_path, 12, 6)
    ]
    table = write_table(tmp_path / "both.csv", rows, ("image", "label", "labels", "split", "site"))
    assert read(table).classes == ("x", "y")
    assert read(table).train.labels.ndim == 1


def test_blanks_around_names_and_names_given_twice_do_not_count(tmp_path):
    rows = rows_of(tmp_path, 8, 2)
    rows[0][1], rows[1][1] = " round | even ", "even|even"
    data = read(write_table(tmp_path / "labels.csv", rows))
    assert [named(row, data.classes) for row in data.train.labels[:2]] == ["even|round", "even"]


FAULTS = {
    "an empty name": (
        3,
        "even||round",
        r"line 5: labels = 'even\|\|round' has an empty name; give names with \|",
    ),
    "a bar at the end": (3, "even|", "line 5: labels = 'even|' has an empty name"),
    "a name of the test": (
        39 + 3,
        "even|Round",
        "line 44: a test row of class 'Round', .* differs from 'round' only",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_labels_is_told_with_file_and_line(fault, tmp_path):
    row, cell, message = FAULTS[fault]
    rows = rows_of(tmp_path, 40, 20)
    rows[row][1] = cell
    with pytest.raises(DataError, match=rf"labels.csv, {message}"):
        read(write_table(tmp_path / "labels.csv", rows))


def test_a_table_without_any_label_has_nothing_to_learn(tmp_path):
    rows = [[image, "", *rest] for image, _, *rest in rows_of(tmp_path, 4, 2)]
    with pytest.raises(
        DataError, match=r"labels.csv: no training row has a label; there is nothing to learn"
    ):
        read(write_table(tmp_path / "labels.csv", rows))


def test_a_sites_row_without_an_image_names_the_labels_that_it_does_not_hold(tmp_path):
    sites = load_sites(write_site_tables(tmp_path), range(4))
    assert sites.dataset.classes == NAMES
    holdings = Holdings(LearningConfig(dataset=write_site_tables(tmp_path)), 4)
    held = [holdings.data(peer).classes for peer in range(4)]
    assert held == [("even", "round"), ("even",), NAMES, NAMES]
    rows = rows_of(tmp_path, 8, 4)
    table = tmp_path / "site-0.csv"
    rows = [*(row[:3] for row in rows), ["", "even|oval", "train"]]
    write_table(table, rows, ("image", "labels", "split"))
    with pytest.raises(
        DataError, match=r"peer 0: .*site-0.csv, line 14: no image; only in a table of one peer"
    ):
        load_sites(f"table:{table.parent}/site-{{peer}}.csv", [0])


def test_a_site_with_one_class_an_image_beside_sites_with_several_labels_is_refused(tmp_path):
    name = write_site_tables(tmp_path)
    text = (tmp_path / "site-3.csv").read_text().replace("image,labels", "image,label").replace("|", "-")
    (tmp_path / "site-3.csv").write_text(text)
    with pytest.raises(
        DataError, match=r"kinds of labels differ: .*site-0.csv has several .*site-3.csv has one"
    ):
        load_sites(name, range(4))


# --- what needs one class an image --------------------------------------------------------------------------

REFUSED = {
    "loss": (
        {"loss": "ce"},
        "loss = 'ce' with dataset = .*: an image has several labels there, .* auto or bce",
    ),
    "shots": ({"shots": 3}, "shots = 3 with dataset = .*: an image has several labels there"),
    "classes": ({"partition": "classes:0,1,2"}, "partition = 'classes:0,1,2' with .* choose iid, by:COLUMN"),
    "dirichlet": (
        {"partition": "dirichlet:0.5"},
        "partition = 'dirichlet:0.5' with .* cannot be dealt out by",
    ),
    "shards": ({"partition": "shards:1"}, "partition = 'shards:1' with .* cannot be dealt out by class"),
    "texts": (
        {"model": "glyph_clip_8", "head": "text", "text_tower": "glyph_clip_8"},
        "head = 'text' with dataset = .* give head = random",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_settings_that_need_one_class_an_image_are_refused_by_name_before_a_run_and_in_it(what, labels):
    settings, message = REFUSED[what]
    config = LearningConfig(dataset=f"table:{labels}", **settings)
    with pytest.raises(ConfigError, match=message):
        require_here(config, 3)
    with pytest.raises(ConfigError, match=message):
        Holdings(config, 3).dataset  # noqa: B018 - it is read now


def test_bce_is_refused_where_each_image_has_one_class(tmp_path):
    rows = [
        [image, "a" if i % 2 else "b", *rest] for i, (image, _, *rest) in enumerate(rows_of(tmp_path, 4, 2))
    ]
    table = write_table(tmp_path / "one.csv", rows, ("image", "label", "split", "site"))
    with pytest.raises(
        ConfigError, match=r"loss = 'bce' with dataset = .*one.csv': each image has one class"
    ):
        Holdings(LearningConfig(dataset=f"table:{table}", loss="bce"), 2).dataset  # noqa: B018


# --- partitions, draws, digests -----------------------------------------------------------------------------


def test_auto_deals_out_by_a_column_of_sites_and_else_at_random(labels, tmp_path):
    by_site = Holdings(LearningConfig(dataset=f"table:{labels}"), 4)
    assert by_site.partition_spec == "by:site=0,1,2,3"
    assert [by_site.data(peer).classes for peer in range(4)] == [("even", "round"), ("even",), NAMES, NAMES]
    rows = [row[:3] for row in rows_of(tmp_path, 12, 6)]
    table = write_table(tmp_path / "plain.csv", rows, ("image", "labels", "split"))
    at_random = Holdings(LearningConfig(dataset=f"table:{table}"), 4)
    assert at_random.partition_spec == "iid"
    assert [len(part) for part in at_random.partition] == [3, 3, 3, 3]


def first_half(labels, n, seed):
    assert labels.shape == (40, 3)
    return np.array_split(np.arange(len(labels)), n)


def test_a_partition_of_the_users_own_is_given_the_labels_as_rows(labels):
    own = Holdings(LearningConfig(dataset=f"table:{labels}", partition=f"{__name__}:first_half"), 2)
    assert own.partition[0].tolist() == list(range(20))


def test_images_are_counted_for_each_of_their_labels_and_drawn_by_their_rarest():
    several = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0]])
    assert images_by_class(several, 3).tolist() == [4, 2, 0]
    assert held_classes(several).tolist() == [0, 1]
    assert draw_groups(several).tolist() == [1, 0, 3, 0, 1]
    one = np.array([2, 0, 2])
    assert images_by_class(one, 4).tolist() == [1, 0, 2, 0]
    assert held_classes(one).tolist() == [0, 2]
    assert draw_groups(one).tolist() == [2, 0, 2]


def test_held_out_images_are_a_share_of_those_with_each_label_and_of_those_without(labels):
    data = read(labels)
    held = held_out(data, 0.25, seed=1)
    assert len(held.train) + len(held.test) == 40
    for before, after in zip(data.train.labels.T, held.test.labels.T, strict=True):
        assert 0 < after.sum() < before.sum()
        assert after.sum() == pytest.approx(0.25 * before.sum(), abs=2)
    assert 0 < (~held.test.labels.any(axis=1)).sum() <= 3
    again = held_out(data, 0.25, seed=1)
    np.testing.assert_array_equal(again.test.labels, held.test.labels)


def test_a_label_that_validation_leaves_no_training_image_of_is_named(caplog):
    # The third label is never the rarest, and both of its images can be the one that is drawn.
    labels = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0]])
    split = Split(labels, lambda _: Image.new("L", (8, 8)))
    data = Dataset("own", ("a", "b", "c"), split, split)
    told = 0
    for seed in range(20):
        caplog.clear()
        left = held_out(data, 0.5, seed).train.labels
        assert left[:, :2].any(axis=0).all()
        named_in_log = (
            "validation = 0.5 holds out all training images here with c: nobody can learn" in caplog.text
        )
        assert named_in_log == (not left[:, 2].any())
        told += named_in_log
    assert 0 < told < 20


def test_labels_belong_to_the_digest_of_images_and_to_the_lists_of_them(labels):
    holdings = Holdings(LearningConfig(dataset=f"table:{labels}", partition="iid"), 2)
    known, train = holdings.data(0).train_digest, holdings.dataset.train
    listed = holdings.listed(0)[0]
    assert [one.label for one in listed] == [named(train.labels[i], NAMES) for i in holdings.partition[0]]
    assert "even|round" in {one.label for one in listed}
    one = int(holdings.partition[0][0])
    train.labels[one, 0] ^= 1
    try:
        assert images_digest(train, holdings.partition[0], NAMES) != known
    finally:
        train.labels[one, 0] ^= 1
    assert images_digest(train, holdings.partition[0], NAMES) == known


def test_every_single_label_counts_in_a_digest_and_a_class_is_no_list_of_labels():
    def digest(labels, names):
        return images_digest(Split(labels, lambda _: Image.new("L", (8, 8))), np.arange(len(labels)), names)

    none = np.zeros((2, 2), dtype=np.int64)
    others = [none.copy() for _ in range(4)]
    for k, labels in enumerate(others):
        labels[k // 2, k % 2] = 1
    assert len({digest(labels, ("a", "b")) for labels in [none, *others]}) == 5
    assert digest(np.zeros(2, np.int64), ("a",)) != digest(np.zeros((2, 1), np.int64), ("a",))


# --- other sources ------------------------------------------------------------------------------------------


def write_chest(folder, name="chestmnist", **changed):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, number in {"train": 30, "val": 4, "test": 12}.items():
        arrays[f"{part}_images"] = rng.integers(0, 256, (number, 8, 8), dtype=np.uint8)
        arrays[f"{part}_labels"] = (rng.random((number, 14)) < 0.3).astype(np.uint8)
    arrays |= changed
    np.savez(folder / f"{name}.npz", **arrays)
    return arrays


def test_chestmnist_has_fourteen_findings_of_which_an_image_has_some_or_none(tmp_path):
    arrays = write_chest(tmp_path)
    data = load_dataset("medmnist:chestmnist", str(tmp_path))
    assert data.classes[:2] == ("atelectasis", "cardiomegaly")
    assert len(data.classes) == 14
    np.testing.assert_array_equal(data.train.labels, arrays["train_labels"])
    np.testing.assert_array_equal(data.test.labels, arrays["test_labels"])
    held = Holdings(LearningConfig(dataset="medmnist:chestmnist", data_dir=str(tmp_path)), 3)
    assert held.partition_spec == "iid"
    with pytest.raises(ConfigError, match="loss = 'ce' with dataset = 'medmnist:chestmnist'"):
        require_here(LearningConfig(dataset="medmnist:chestmnist", data_dir=str(tmp_path), loss="ce"), 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"test_labels": np.zeros((12, 13), np.uint8)},
            r"train_labels are \(14,\) each, but test_labels \(13,\)",
        ),
        (
            {"train_labels": np.zeros((30, 14), np.float32)},
            r"train_labels is \(30, 14\) of float32; it must be",
        ),
        (
            {"train_labels": np.full((30, 14), 2, np.uint8)},
            "train split are .* row 0 has others than 0 and 1",
        ),
        ({"train_labels": np.zeros((30, 14), np.uint8)}, "its train split has no image of 14 of 14 classes"),
    ],
)
def test_labels_of_medmnist_that_do_not_fit_are_refused(changed, message, tmp_path):
    write_chest(tmp_path, **changed)
    with pytest.raises(DataError, match=message):
        load_dataset("medmnist:chestmnist", str(tmp_path))


def test_features_may_have_several_labels(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"classes": np.array(["a", "b"])}
    for part in ("train", "test"):
        arrays[f"{part}.features"] = rng.normal(size=(8, 4)).astype(np.float32)
        arrays[f"{part}.labels"] = np.array([[1, 1], [0, 0], [1, 0], [0, 1]] * 2)
    np.savez(tmp_path / "f.npz", **arrays)
    data = load_dataset(f"features:{tmp_path}/f.npz")
    np.testing.assert_array_equal(data.train.labels, arrays["train.labels"])
    np.savez(tmp_path / "f.npz", **(arrays | {"train.labels": arrays["train.labels"] + 1}))
    with pytest.raises(DataError, match=r"f.npz: row 0 of train.labels has others than 0 and 1"):
        load_dataset(f"features:{tmp_path}/f.npz")
    np.savez(tmp_path / "f.npz", **(arrays | {"test.labels": np.zeros(8, int)}))
    with pytest.raises(DataError, match=r"train.labels has the shape \(8, 2\), test.labels \(8,\)"):
        load_dataset(f"features:{tmp_path}/f.npz")


def test_features_labels_that_mark_one_each_are_told_as_they_may_be_classes(tmp_path, caplog):
    one_hot = np.eye(2, dtype=int)[[0, 1, 1, 0]]
    for name, parts in (("all", ("train", "test")), ("site-0", ("train",))):
        arrays = {f"{part}.features": np.ones((4, 3), np.float32) for part in parts}
        arrays |= {"classes": np.array(["a", "b"]), **{f"{part}.labels": one_hot for part in parts}}
        np.savez(tmp_path / f"{name}.npz", **arrays)
        caplog.clear()
        assert features(f"{tmp_path}/{name}.npz", site="test" not in parts).several_labels
        assert f"{name}.npz: its labels are (N, 2) and mark exactly one in each row" in caplog.text
    arrays["train.labels"] = np.array([[1, 1], [0, 1], [1, 0], [0, 0]])
    np.savez(tmp_path / "site-0.npz", **arrays)
    caplog.clear()
    features(f"{tmp_path}/site-0.npz", site=True)
    assert "exactly one" not in caplog.text


OWN = {}


def own_dataset(data_dir):
    picture = Image.new("L", (8, 8))
    train, test = (Split(labels, lambda _: picture) for labels in OWN["labels"])
    return Dataset("own", OWN["classes"], train, test)


@pytest.mark.parametrize(
    ("train", "test", "classes", "message"),
    [
        (np.eye(2, dtype=int), np.eye(2, dtype=int), ("a", "b"), None),
        (np.eye(2, dtype=int), np.array([0, 1]), ("a", "b"), r"of two kinds|are \(N,\) of one split"),
        (
            np.eye(2, dtype=int),
            np.eye(2, dtype=int),
            ("a", "b", "c"),
            "train split are .* there are 3 classes",
        ),
        (2 * np.eye(2, dtype=int), np.eye(2, dtype=int), ("a", "b"), "row 0 has others than 0 and 1"),
        (np.eye(2, dtype=int), np.eye(2, dtype=int), ("a", "b|c"), r"the class 'b\|c' has \| in its name"),
    ],
)
def test_a_dataset_of_the_users_own_may_have_several_labels(train, test, classes, message):
    OWN.update(labels=(train, test), classes=classes)
    if message is None:
        assert load_dataset(f"{__name__}:own_dataset").several_labels
        return
    with pytest.raises(DataError, match=message):
        load_dataset(f"{__name__}:own_dataset")
