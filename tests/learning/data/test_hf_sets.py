"""Datasets of Hugging Face: from folders that its library writes or knows, from a cache, or from the hub."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import traceback

import datasets
import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.dataset_names import check_dataset_name, refuse_data_dir, require_data
from p2pft_flower.learning.data.datasets import load_dataset
from p2pft_flower.learning.data.hf_names import HfName, read_hf_name
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.workload import Workload

CLASSES = ["cat", "dog", "emu"]


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    for variable in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "usual"))


def pixels(number, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, 8, 8), dtype=np.uint8)


def table(number, seed=0, *, label=None, **more):
    images = [Image.fromarray(image) for image in pixels(number, seed)]
    features = {"image": datasets.Image(), "label": label or datasets.ClassLabel(names=CLASSES)}
    rows = {"image": images, "label": [i % 3 for i in range(number)]}
    for name, (feature, values) in more.items():
        features[name], rows[name] = feature, values
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def saved(folder, **splits):
    datasets.DatasetDict(splits or {"train": table(9), "test": table(6, 1)}).save_to_disk(str(folder))
    return f"hf:{folder}"


def shown(split):
    return np.stack([np.asarray(split.picture(i)) for i in range(len(split))])


def test_a_folder_of_save_to_disk_gives_its_images_labels_and_classes(tmp_path):
    data = load_dataset(saved(tmp_path / "birds"))
    assert data.classes == tuple(CLASSES)
    np.testing.assert_array_equal(shown(data.train), pixels(9))
    np.testing.assert_array_equal(shown(data.test), pixels(6, 1))
    assert data.train.labels.tolist() == [0, 1, 2] * 3


def test_a_folder_of_parquet_files_and_one_of_images_are_read_too(tmp_path):
    (tmp_path / "tables" / "data").mkdir(parents=True)
    for part, rows in (("train", table(9)), ("test", table(6, 1))):
        rows.to_parquet(tmp_path / "tables" / "data" / f"{part}-00000-of-00001.parquet")
        for index, image in enumerate(pixels(len(rows), int(part == "test"))):
            file = tmp_path / "images" / part / CLASSES[index % 3] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    for kind in ("tables", "images"):
        data = load_dataset(f"hf:{tmp_path / kind}")
        assert data.classes == tuple(CLASSES)
        order = np.argsort(data.train.labels, kind="stable")
        expected = pixels(9)[np.argsort(np.arange(9) % 3, kind="stable")]
        np.testing.assert_array_equal(shown(data.train)[order], expected)


def test_deep_samples_keep_their_bits(tmp_path):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    rows = {"image": [Image.fromarray(deep)] * 3, "label": [0, 1, 2]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    part = datasets.Dataset.from_dict(rows, features=features)
    data = load_dataset(saved(tmp_path / "deep", train=part, test=part))
    np.testing.assert_array_equal(data.train.read(1).values, deep)
    assert data.train.look(1).form.bits == 16


def test_rows_that_were_chosen_or_formatted_before_are_the_ones_that_are_read(tmp_path):
    part = table(9).select([8, 1, 3]).with_format("numpy", columns=["label"])
    data = load_dataset(saved(tmp_path / "some", train=part, test=part))
    np.testing.assert_array_equal(shown(data.train), pixels(9)[[8, 1, 3]])
    assert data.train.labels.tolist() == [2, 1, 0]


def test_texts_and_numbers_are_classes_in_natural_order_if_the_column_is_called_label_or_named(tmp_path):
    text = datasets.Value("string")
    grades = [("10", "2", "9")[i % 3] for i in range(9)]
    part = table(9, label=datasets.Value("int64"), grade=(text, grades))
    name = saved(tmp_path / "graded", train=part, test=part)
    assert load_dataset(name).classes == ("0", "1", "2")
    graded = load_dataset(f"{name}?label=grade")
    assert graded.classes == ("2", "9", "10")
    assert graded.train.labels.tolist() == [2, 0, 1] * 3


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_blanks_around_texts_do_not_count_and_names_that_look_the_same_are_told(kind, tmp_path, caplog):
    """As in tables; pandas and polars write large_string."""
    text = datasets.Value(kind)
    words = [("cat", " cat ", "Caf\u00e9", "Cafe\u0301")[i % 4] for i in range(8)]
    centers = [(" north", "south")[i // 4] for i in range(8)]
    images = [Image.fromarray(image) for image in pixels(8)]
    part = datasets.Dataset.from_dict(
        {"image": images, "label": words, "center": centers},
        features=datasets.Features({"image": datasets.Image(), "label": text, "center": text}),
    )
    name = saved(tmp_path / "birds", train=part, test=part)
    holdings = Holdings(LearningConfig(dataset=name, partition="by:center"), n=2)
    assert len(holdings.classes) == 3
    assert holdings.dataset.train.labels[0] == holdings.dataset.train.labels[1]
    assert [share.tolist() for share in holdings.partition] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert "differ only in Unicode form" in caplog.text


def test_of_several_columns_of_a_type_none_is_guessed(tmp_path):
    images, label = [Image.fromarray(image) for image in pixels(9, 5)], datasets.ClassLabel(names=["a", "b"])
    part = table(9, mask=(datasets.Image(), images), kind=(label, [0, 1, 0] * 3))
    name = saved(tmp_path / "two", train=part, test=part)
    with pytest.raises(
        DataError, match=r"which column has the images\? By their types: image, mask. .*\?image=COL"
    ):
        load_dataset(name)
    with pytest.raises(
        DataError, match=r"the classes\? By their types: label, kind. .*\?image=mask&label=COLUMN"
    ):
        load_dataset(f"{name}?image=mask")
    data = load_dataset(f"{name}?image=mask&label=kind")
    np.testing.assert_array_equal(shown(data.train), pixels(9, 5))
    assert data.classes == ("a", "b")


def test_a_missing_split_is_told_with_those_that_are_there_and_another_can_be_named(tmp_path):
    name = saved(tmp_path / "val", train=table(9), validation=table(6, 1))
    with pytest.raises(
        DataError, match=r"it has no split test, but train, validation: name others, as .*\?test=val"
    ):
        load_dataset(name)
    assert len(load_dataset(f"{name}?test=validation").test) == 6
    with pytest.raises(
        DataError, match=r"it has no split test, but train: name others, as .*subset=fine&test=val"
    ):
        load_dataset(f"{two_subsets(tmp_path / 'subsets')}?subset=fine")
    table(9).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(
        DataError, match=r"has no split train or test, as it is one table without splits: make a folder with"
    ):
        load_dataset(f"hf:{tmp_path / 'one'}")


def test_a_folders_relative_path_is_answered_by_its_absolute_one(tmp_path, monkeypatch):
    """Without a slash in front it is a name of the hub."""
    (tmp_path / "data" / "birds").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    absolute = re.escape(f"did you mean 'hf:{tmp_path / 'data' / 'birds'}'?")
    with pytest.raises(DataError, match=f"in no cache of this machine; .*{absolute}"):
        load_dataset("hf:data/birds")
    with pytest.raises(ConfigError, match=f"a folder's path is absolute; {absolute}"):
        load_dataset("hf:./data/birds")
    with pytest.raises(DataError, match=r"give dataset = hf:/folder$"):
        load_dataset("hf:data/bees")


def two_subsets(root):
    (root / "data").mkdir(parents=True)
    for subset in ("fine", "coarse"):
        table(3).to_parquet(root / "data" / f"{subset}.parquet")
    listed = "".join(f"- config_name: {s}\n  data_files: data/{s}.parquet\n" for s in ("fine", "coarse"))
    (root / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    return f"hf:{root}"


def other_classes(root):
    return saved(root, train=table(9), test=table(6, label=datasets.ClassLabel(names=["x", "y", "z"])))


def no_label_in_test(root):
    return saved(root, train=table(9), test=table(6).remove_columns("label"))


def hidden_labels(root):
    hidden = table(6).remove_columns("label").add_column("label", [-1] * 6)
    return saved(root, train=table(9), test=hidden.cast_column("label", datasets.ClassLabel(names=CLASSES)))


def a_class_of_the_test_alone(root):
    label = datasets.Value("int64")
    return saved(root, train=table(2, label=label), test=table(6, label=label))


def a_row_without_a_class(root):
    part = table(3).remove_columns("label").add_column("label", [0, None, 1])
    part = part.cast_column("label", datasets.ClassLabel(names=CLASSES))
    return saved(root, train=part, test=part)


def scores_for_classes(root):
    part = table(3, label=datasets.Value("float32"))
    return saved(root, train=part, test=part)


def no_images(root):
    return saved(root, train=table(3).remove_columns("image"), test=table(3).remove_columns("image"))


def damaged(root):
    name = saved(root)
    next((root / "train").glob("*.arrow")).write_bytes(b"no arrow")
    return name


def nothing(root):
    root.mkdir()
    return f"hf:{root}"


FINDINGS = datasets.ClassLabel(names=["effusion", "mass"])


def chest(number, findings, feature=None, seed=0):
    """Images whose findings, several or none, are in a column of lists."""
    feature = datasets.Sequence(FINDINGS) if feature is None else feature
    values = [findings[i % len(findings)] for i in range(number)]
    return table(number, seed, finding=(feature, values)).remove_columns("label")


SOME = [[0], [1, 0], [], [1]]


def a_list_without_a_value(root):
    return saved(root, train=chest(3, [[0], None, [1]]), test=chest(3, SOME))


def an_empty_text_in_a_list(root):
    part = chest(2, [["a"], ["b", " "]], datasets.Sequence(datasets.Value("string")))
    return f"{saved(root, train=part, test=part)}?label=finding"


def a_number_of_no_class_in_a_list(root):
    raw = chest(3, [[0], [1, -1]], datasets.Sequence(datasets.Value("int64")))
    part = raw.cast_column("finding", datasets.Sequence(FINDINGS))
    return saved(root, train=part, test=part)


def lists_in_one_split(root):
    test = table(3, finding=(FINDINGS, [0, 1, 0])).remove_columns("label")
    return saved(root, train=chest(3, SOME), test=test)


def a_label_of_the_test_alone(root):
    text = datasets.Sequence(datasets.Value("string"))
    train, test = chest(2, [["effusion"]], text), chest(2, [["mass", "effusion"]], text)
    return f"{saved(root, train=train, test=test)}?label=finding"


def lists_of_numbers_with_fractions(root):
    part = chest(2, [[0.5], []], datasets.Sequence(datasets.Value("float64")))
    return f"{saved(root, train=part, test=part)}?label=finding"


HARM = {
    other_classes: r"the classes of its split test are x, y, z, but those of train cat, dog, emu",
    no_label_in_test: r"its split test has no column label, as train has; its columns are image",
    hidden_labels: r"its test split has labels \[-1\] beyond its 3 classes",
    a_class_of_the_test_alone: r"no image of its split train has the label 2, as images of test have",
    a_row_without_a_class: r"row 1 of its split train has no label",
    scores_for_classes: r"the column 'label' holds no classes",
    no_images: r"which column has the images\? By their types: none; its columns are label",
    damaged: r"cannot be read \(",
    two_subsets: r"it has the subsets fine, coarse; name one with \?subset=",
    a_list_without_a_value: r"row 1 of its split train has no finding; give an empty list if the image has",
    an_empty_text_in_a_list: r"row 1 of its split train has no finding; remove what is empty from the list",
    a_number_of_no_class_in_a_list: r"row 1 of its split train has the label -1 in finding, beyond its 2 cla",
    lists_in_one_split: r"the column 'finding' has lists in only one of the splits train, test: give both",
    a_label_of_the_test_alone: r"no image of its split train has the finding mass, as images of test have",
    lists_of_numbers_with_fractions: r"the column 'finding' holds no classes",
    nothing: r"cannot be read \(",
}


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_what_cannot_be_used_is_refused_by_name(harm, tmp_path):
    name = harm(tmp_path / "odd")
    with pytest.raises(DataError, match=re.escape(f"dataset = {name!r}: ") + ".*" + HARM[harm]):
        load_dataset(name)


def test_an_image_that_cannot_be_read_is_named_by_split_and_row(tmp_path):
    part = table(3).cast_column("image", datasets.Image(decode=False))
    rows = [dict(row) for row in part]
    rows[1]["image"] = {"bytes": b"no image", "path": None}
    rows[2]["image"] = None
    part = datasets.Dataset.from_list(rows, features=table(3).features)
    data = load_dataset(saved(tmp_path / "odd", train=part, test=part))
    for row in (1, 2):
        with pytest.raises(DataError, match=rf"odd', train image {row}: not a readable image"):
            data.train.picture(row)


def test_peers_train_on_it_with_the_embedded_model(tmp_path):
    config = LearningConfig(dataset=saved(tmp_path / "birds"), batch_size=3)
    workload = Workload(config, n=3)
    assert [workload.holdings.data(peer).classes for peer in range(3)] == [(name,) for name in CLASSES]
    assert np.abs(workload.objectives(range(3))[0].gradient(workload.theta0)).max() > 0


def test_a_column_deals_the_images_out_and_one_called_site_does_so_by_itself(tmp_path):
    text, number = datasets.Value("string"), datasets.Value("int64")
    sites = (text, [("north", "south", "lab")[i // 3] for i in range(9)])
    part = table(9, site=sites, scanner=(number, [i % 2 for i in range(9)]))
    name = saved(tmp_path / "sites", train=part, test=table(6, 1))

    def dealt(partition, n):
        holdings = Holdings(LearningConfig(dataset=name, partition=partition), n=n)
        return holdings.partition_spec, [share.tolist() for share in holdings.partition]

    by_site = ("by:site=lab,north,south", [[6, 7, 8], [0, 1, 2], [3, 4, 5]])
    assert dealt("by:site", 3) == dealt("auto", 3) == by_site
    assert dealt("by:scanner", 2) == ("by:scanner=0,1", [[0, 2, 4, 6, 8], [1, 3, 5, 7]])
    assert dealt("by:label", 3)[0] == "by:label=cat,dog,emu"
    with pytest.raises(ConfigError, match="the dataset has no column 'centre'; it has label, site, scanner"):
        dealt("by:centre", 2)


def test_whole_numbers_that_are_floats_since_one_is_missing_are_a_column_and_fractions_are_none(tmp_path):
    told = {"patient_id": [11.0, 11.0, None, float("nan")], "age": [61.5, 61.5, 70.0, 40.0]}
    told = {name: (datasets.Value("float64"), values) for name, values in told.items()}
    name = saved(tmp_path / "x", train=table(4, **told), test=table(4, **told))
    columns = load_dataset(name).train.columns
    assert columns["patient_id"].tolist() == ["11", "11", "", ""]
    assert "age" not in columns


def on_the_hub(cache, place="owner/birds"):
    """Write what a download of the hub's dataset leaves in a cache."""
    root = cache / f"datasets--{place.replace('/', '--')}"
    snapshot = root / "snapshots" / "0a1b"
    (snapshot / "data").mkdir(parents=True)
    table(9).to_parquet(snapshot / "data" / "train-00000-of-00001.parquet")
    table(6, 1).to_parquet(snapshot / "data" / "test-00000-of-00001.parquet")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0a1b")


@pytest.mark.parametrize("cache", ["usual", "home/huggingface/hub"])
def test_a_dataset_of_the_hub_that_is_in_a_cache_needs_no_network(cache, tmp_path):
    on_the_hub(tmp_path / cache)
    require_data("hf:owner/birds", "", download=False, peers=())
    np.testing.assert_array_equal(shown(load_dataset("hf:owner/birds").train), pixels(9))


def test_without_a_cache_the_remedies_are_named(tmp_path, monkeypatch):
    with pytest.raises(
        DataError, match=r"in no cache of this machine; set download = true, or, .* hf:/folder"
    ):
        require_data("hf:owner/birds", "", download=False, peers=())
    with pytest.raises(DataError, match=rf"there is no folder {tmp_path}/none; give an absolute path"):
        require_data(f"hf:{tmp_path}/none", "", download=True, peers=())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"cannot be downloaded \(.*; without a network \(HF_HUB_OFFLINE\) give"
    ):
        load_dataset("hf:owner/birds", download=True)


def test_a_download_goes_below_p2pft_home_unless_the_user_chose_another_place(tmp_path, monkeypatch):
    places = []

    def fetched(place, *, repo_type, cache_dir, local_files_only=False):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not there")
        places.append(cache_dir)
        on_the_hub(tmp_path / "fetched")
        return str(next((tmp_path / "fetched").glob("*/snapshots/*")))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    assert len(load_dataset("hf:owner/birds", download=True).train) == 9
    monkeypatch.setenv("HF_HOME", str(tmp_path / "mine"))
    monkeypatch.setattr("tests.learning.data.test_hf_sets.on_the_hub", lambda cache: None)
    load_dataset("hf:owner/birds", download=True)
    assert places == [tmp_path / "home" / "huggingface" / "hub", None]


def test_nothing_is_written_in_the_home_folder_beyond_p2pft_home(tmp_path):
    (tmp_path / "user").mkdir()
    (tmp_path / "tables").mkdir()
    for part in ("train", "test"):
        table(6).to_parquet(tmp_path / "tables" / f"{part}.parquet")
    code = (
        f"from p2pft_flower.learning.data.datasets import load_dataset; load_dataset('hf:{tmp_path}/tables')"
    )
    chosen = {
        "HOME": str(tmp_path / "user"),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run([sys.executable, "-c", code], env=chosen, check=True, timeout=120)
    assert [entry.name for entry in (tmp_path / "user").iterdir()] == [".p2pft"]


def test_a_name_is_read_with_what_stands_behind_it():
    assert read_hf_name("hf:owner/birds") == HfName("owner/birds")
    assert read_hf_name("hf:/data/birds?subset=small&label=fine label&test=validation") == HfName(
        "/data/birds", label="fine label", test="validation", subset="small"
    )
    check_dataset_name("hf:mnist")
    wrong = {
        "hf:": "give hf:NAME",
        "hf:data/of/birds": "a folder's path is absolute",
        "hf:birds?imag=x": r"'imag' is unknown behind the question mark; .*did you mean 'image'",
        "hf:birds?image": "'image' cannot be read",
        "hf:birds?test=train": "cannot be both the training and the test split",
        "hf:birds?image=": "image is empty",
        "hf:birds?image=a&image=b": "a key is given twice",
        "hf:/data/site-{peer}": "one dataset of Hugging Face for all peers is read",
    }
    for text, message in wrong.items():
        with pytest.raises(ConfigError, match=message):
            check_dataset_name(text)
    with pytest.raises(ConfigError, match="it names its place itself: give dataset = hf:/other/path"):
        refuse_data_dir("hf:birds", "/data")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'datasets>=4' \(in a clone .* '.\[hf\]'\)"):
        require_data("hf:birds", "", download=True, peers=())


# --- several labels an image ---


@pytest.mark.parametrize("kind", ["classes", "texts", "large"])
def test_a_column_of_lists_has_several_labels_an_image_or_none(kind, tmp_path):
    if kind == "texts":
        named = [[FINDINGS.names[k] for k in found] for found in SOME]
        part = chest(8, named, datasets.Sequence(datasets.Value("string")))
    else:
        part = chest(8, SOME, datasets.LargeList(FINDINGS) if kind == "large" else None)
    data = load_dataset(saved(tmp_path / "x", train=part, test=part) + "?label=finding")
    assert data.classes == ("effusion", "mass")
    assert data.train.labels.tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]] * 2
    assert data.train.labels.dtype == np.int64


def test_a_column_of_lists_is_found_by_its_type_and_trains_with_bce(tmp_path):
    dataset = saved(tmp_path / "x", train=chest(8, SOME), test=chest(4, SOME, seed=1))
    workload = Workload(LearningConfig(dataset=dataset, loss="bce", partition="iid", batch_size=4), n=2)
    assert workload.holdings.several_labels
    assert np.abs(workload.objectives(range(2))[0].gradient(workload.theta0)).max() > 0
    assert workload.score(workload.theta0).loss > 0
    with pytest.raises(ConfigError, match=r"loss = 'ce' with .* an image has several labels there, or none"):
        Holdings(LearningConfig(dataset=dataset, loss="ce"), 2).dataset  # noqa: B018


# --- what may be a patient's stays out of messages ---


def test_a_file_that_cannot_be_read_is_told_without_a_cell_of_it(tmp_path, caplog, capfd):
    (root := tmp_path / "odd").mkdir()
    (root / "train.jsonl").write_text('{"label": "x", "name": 3}\n{"label": "y", "name": "Jane Secret')
    told = "train.jsonl, row 1: DatasetGenerationError of "
    with pytest.raises(DataError, match=rf"odd cannot be read \(.*{told}.*\); the library's own") as found:
        load_dataset(f"hf:{root}")
    shown = "".join(traceback.format_exception(found.value)) + caplog.text + "".join(capfd.readouterr())
    assert "Secret" not in shown


def test_an_error_that_quotes_a_cell_leaves_it_out(tmp_path, monkeypatch):
    (root := tmp_path / "odd").mkdir()
    (root / "scans.csv").write_text("age\n1\n")

    def fails(*_, **__):
        logging.getLogger("datasets.csv").error("Failed to read file '%s/scans.csv'", root)
        raise ValueError("In CSV column #2: invalid value 'Jane Secret', row 7")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(DataError, match=r"\(scans.csv, column 2, row 7: ValueError\)") as found:
        load_dataset(f"hf:{root}")
    assert "Secret" not in "".join(traceback.format_exception(found.value))


def test_max_megapixels_holds_for_its_images(tmp_path):
    dataset = saved(tmp_path / "x")
    small = Holdings(LearningConfig(dataset=dataset, max_megapixels=0.00005, partition="iid"), 1)
    assert small.surveys[None].looked_at == 0  # 8 × 8 pixels are more than 50
    with pytest.raises(DataError, match=r"train image 3: .*8 × 8 pixels.*max-megapixels allows more"):
        small.pictures.train.picture(3)
    np.testing.assert_array_equal(
        np.asarray(small.dataset.train.at(np.array([3])).within(100).picture(0)), pixels(9)[3]
    )
    large = Holdings(LearningConfig(dataset=dataset, max_megapixels=0.00007, partition="iid"), 1)
    np.testing.assert_array_equal(np.asarray(large.pictures.train.picture(3)), pixels(9)[3])
    held = Holdings(
        LearningConfig(dataset=dataset, max_megapixels=0.00005, partition="iid", validation=0.3), 1
    )
    with pytest.raises(DataError, match="max-megapixels allows more"):
        held.pictures.test.picture(0)
