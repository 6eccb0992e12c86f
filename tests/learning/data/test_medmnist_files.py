"""MedMNIST's files of every size, by name from data-dir, without MedMNIST's package."""

from __future__ import annotations

import logging
import re
import zipfile

import numpy as np
import pytest

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.dataset_names import (
    check_dataset_name,
    classes_of,
    refuse_data_dir,
    require_data,
)
from p2pft_flower.learning.data.datasets import load_dataset
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.medmnist_names import NAMES
from p2pft_flower.learning.settings import require_here
from p2pft_flower.learning.workload import Workload
from tests.blocks import ROOT, blocks_of

COUNTS = {"train": 18, "val": 4, "test": 9}


def arrays(side=28, classes=9, *, colour=True, **changed):
    """The six arrays of a file of MedMNIST, drawn at random; of ``changed`` None leaves one out."""
    rng = np.random.default_rng(0)
    made = {}
    for part, number in COUNTS.items():
        shape = (number, side, side, 3) if colour else (number, side, side)
        made[f"{part}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        made[f"{part}_labels"] = (np.arange(number) % classes).astype(np.uint8)[:, None]
    return {name: array for name, array in (made | changed).items() if array is not None}


def write(folder, name="pathmnist", *, compressed=True, **options):
    made = arrays(**options)
    (np.savez_compressed if compressed else np.savez)(folder / f"{name}.npz", **made)
    return made


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(("name", "side"), [("pathmnist", 28), ("pathmnist_64", 64)])
def test_a_file_of_any_size_gives_its_training_and_test_images_with_their_labels(
    name, side, compressed, tmp_path
):
    made = write(tmp_path, name, side=side, compressed=compressed)
    data = load_dataset(f"medmnist:{name}", str(tmp_path))
    for part, split in (("train", data.train), ("test", data.test)):
        assert split.labels.tolist() == made[f"{part}_labels"].ravel().tolist()
        for index in range(len(split)):
            np.testing.assert_array_equal(np.asarray(split.picture(index)), made[f"{part}_images"][index])
    assert data.classes == NAMES["pathmnist"]


def test_grey_images_stay_grey_and_labels_may_be_of_one_dimension(tmp_path):
    made = arrays(colour=False, classes=4)
    np.savez(tmp_path / "octmnist.npz", **{name: array.squeeze() for name, array in made.items()})
    data = load_dataset("medmnist:octmnist", str(tmp_path))
    assert (data.train.picture(0).mode, data.train.picture(0).size) == ("L", (28, 28))
    assert data.train.labels.tolist() == made["train_labels"].ravel().tolist()


def test_the_val_split_is_neither_trained_on_nor_scored_and_the_log_says_so(tmp_path, caplog):
    made = write(tmp_path)
    with caplog.at_level(logging.INFO):
        data = load_dataset("medmnist:pathmnist", str(tmp_path))
    assert (len(data.train), len(data.test)) == (18, 9)
    held = {image.tobytes() for image in made["val_images"]}
    for split in (data.train, data.test):
        assert held.isdisjoint(split.picture(i).tobytes() for i in range(len(split)))
    assert [
        m for m in caplog.messages if "its 4 validation images (val) are neither trained on nor scored" in m
    ]


def test_an_uncompressed_file_is_mapped_so_that_its_images_take_no_memory_of_a_process(tmp_path, monkeypatch):
    write(tmp_path, compressed=False)
    seen = []
    mapped = np.memmap

    def noted(*arguments, **named):
        seen.append(mapped(*arguments, **named))
        return seen[-1]

    monkeypatch.setattr(np, "memmap", noted)
    data = load_dataset("medmnist:pathmnist", str(tmp_path))
    assert np.shares_memory(data.train.read(3), np.asarray([a for a in seen if a.shape[0] == 18][-1]))


def test_reading_an_image_copies_nothing_so_all_peers_share_one_copy(tmp_path):
    write(tmp_path, side=8)
    config = LearningConfig(dataset="medmnist:pathmnist", data_dir=str(tmp_path))
    holdings = Holdings(config, n=3)
    assert np.shares_memory(holdings.dataset.train.read(0), holdings.dataset.train.read(0))
    assert sum(len(share) for share in holdings.partition) == 18


def test_classes_without_a_published_name_are_numbers(tmp_path):
    write(tmp_path, "retinamnist", classes=5)
    assert load_dataset("medmnist:retinamnist", str(tmp_path)).classes == tuple("01234")
    assert classes_of("medmnist:retinamnist") is None
    assert classes_of("medmnist:pathmnist_128") == NAMES["pathmnist"]


def test_peers_train_on_it_with_the_embedded_model(tmp_path):
    write(tmp_path, side=8)
    config = LearningConfig(dataset="medmnist:pathmnist", data_dir=str(tmp_path), batch_size=4)
    require_here(config, 3)
    workload = Workload(config, n=3)
    assert workload.holdings.partition_spec == "classes:0-2,3-5,6-8"
    gradient = workload.objectives(range(3))[1].gradient(workload.theta0)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


HARM = {
    "volumes": (
        {"train_images": np.zeros((18, 8, 8, 8), np.uint8)},
        r"train_images is \(18, 8, 8, 8\): volumes of 8 slices each, .* such as train_images\[:, 4\], the",
    ),
    "several labels in one split": (
        {"train_labels": np.zeros((18, 14), np.uint8)},
        r"train_labels are \(14,\) each, but test_labels \(1,\)",
    ),
    "floats": (
        {"test_images": np.zeros((9, 28, 28, 3), np.float32)},
        r"test_images is \(9, 28, 28, 3\) of float32; it must be",
    ),
    "objects": (
        {"test_images": np.array([{}] * 9, dtype=object)},
        r"test_images is \(9,\) of object; it must be",
    ),
    "too few labels": (
        {"test_labels": np.zeros((8, 1), np.uint8)},
        r"test_labels is \(8, 1\) of uint8; it must be \(9, 1\) whole numbers",
    ),
    "no labels": ({"test_labels": None}, r"it has no array test_labels; it has train_images, train_labels"),
    "two sizes": (
        {"test_images": np.zeros((9, 8, 8, 3), np.uint8)},
        r"train_images are \(28, 28, 3\) each, but test_images \(8, 8, 3\)",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_arrays_that_do_not_fit_are_refused_before_a_run_by_file_and_array(harm, tmp_path):
    changed, message = HARM[harm]
    write(tmp_path, **changed)
    with pytest.raises(DataError, match=rf"{tmp_path}/pathmnist.npz: {message}"):
        require_data("medmnist:pathmnist", str(tmp_path), download=False, peers=())


def test_labels_beyond_the_published_classes_and_classes_without_an_image_are_refused(tmp_path):
    labels = (np.arange(18) % 10).astype(np.uint8)[:, None]
    write(tmp_path, train_labels=labels)
    with pytest.raises(DataError, match=r"its train split has labels \[9\] beyond its 9 classes"):
        load_dataset("medmnist:pathmnist", str(tmp_path))
    write(tmp_path, train_labels=labels.clip(0, 7))
    with pytest.raises(DataError, match=r"no image of 1 of 9 classes: colorectal adenocarcinoma epithelium"):
        load_dataset("medmnist:pathmnist", str(tmp_path))
    write(tmp_path, "mymnist", train_labels=labels.astype(np.int64) * 10**12)
    with pytest.raises(DataError, match=r"train_labels has 9000000000000, but the labels of C classes"):
        load_dataset("medmnist:mymnist", str(tmp_path))


@pytest.mark.parametrize("level", [None, 7])  # a stream that is nearly the pixels themselves, and a dense one
def test_a_damaged_array_is_one_error_with_file_and_array(level, tmp_path):
    write(tmp_path, **{} if level is None else {"test_images": np.full((9, 28, 28, 3), level, np.uint8)})
    file = tmp_path / "pathmnist.npz"
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as held:
        entry = held.getinfo("test_images.npy")
    middle = entry.header_offset + entry.compress_size // 2
    file.write_bytes(
        whole[:middle] + bytes(b ^ 0xFF for b in whole[middle : middle + 8]) + whole[middle + 8 :]
    )
    with pytest.raises(DataError, match=rf"{file}: array test_images: not a readable file of MedMNIST"):
        load_dataset("medmnist:pathmnist", str(tmp_path))
    for rest in (whole[: len(whole) // 2], b"no zip at all", b""):
        file.write_bytes(rest)
        with pytest.raises(DataError, match=rf"{file}: not a readable file of MedMNIST"):
            require_data("medmnist:pathmnist", str(tmp_path), download=False, peers=())


def test_a_missing_file_is_told_with_those_that_are_there(tmp_path):
    write(tmp_path, "pathmnist_64", side=8)
    message = (
        rf"there is no file {tmp_path}/pathmnist_46.npz; the folder holds pathmnist_64; give data-dir .* it "
        r"is not downloaded; did you mean 'pathmnist_64'\?$"
    )
    with pytest.raises(DataError, match=message):
        require_data("medmnist:pathmnist_46", str(tmp_path), download=False, peers=())
    with pytest.raises(DataError, match=r"give data-dir = the folder that holds pathmnist.npz"):
        load_dataset("medmnist:pathmnist", str(tmp_path / "nowhere"))


def test_a_name_is_a_name_and_data_dir_is_read():
    for name in ("medmnist:", "medmnist:../x", "medmnist:/data/pathmnist.npz", "medmnist:site-{peer}"):
        with pytest.raises(ConfigError, match=re.escape(f"dataset = {name!r}: give medmnist:NAME")):
            check_dataset_name(name)
    refuse_data_dir("medmnist:pathmnist", "/data")


def test_slices_of_volumes_are_images_as_the_page_on_images_writes_them(tmp_path, monkeypatch):
    volumes = {
        name: np.random.default_rng(k).integers(0, 256, (len(array), 28, 28, 28), dtype=np.uint8)
        for k, (name, array) in enumerate(arrays(classes=11).items())
        if name.endswith("images")
    }
    made = write(tmp_path, "organmnist3d", classes=11, **volumes)
    with pytest.raises(
        DataError, match=r"volumes of 28 slices each, .*such as train_images\[:, 14\], the midd"
    ):
        load_dataset("medmnist:organmnist3d", str(tmp_path))
    (block,) = [b for b in blocks_of(ROOT / "docs/images.md") if "organmnist3d" in b.text]
    monkeypatch.chdir(tmp_path)
    exec(block.text, {})
    data = load_dataset("medmnist:organ_middle", str(tmp_path))
    assert data.classes == tuple(map(str, range(11)))
    for part, split in (("train", data.train), ("test", data.test)):
        assert split.labels.tolist() == made[f"{part}_labels"].ravel().tolist()
        for index in range(len(split)):
            middle = made[f"{part}_images"][index, 14]
            np.testing.assert_array_equal(np.asarray(split.picture(index)), middle)


def test_one_hot_labels_are_told_as_they_may_be_classes(tmp_path, caplog):
    hot = {f"{part}_labels": np.eye(9, dtype=np.uint8)[np.arange(n) % 9] for part, n in COUNTS.items()}
    write(tmp_path, "mine", **hot)
    assert load_dataset("medmnist:mine", str(tmp_path)).several_labels
    assert "mark exactly one in each row, as if each had one class" in caplog.text
    assert "labels.argmax(axis=1)" in caplog.text
    caplog.clear()
    hot["test_labels"][0, :2] = 1
    write(tmp_path, "mine", **hot)
    load_dataset("medmnist:mine", str(tmp_path))
    assert "exactly one" not in caplog.text
