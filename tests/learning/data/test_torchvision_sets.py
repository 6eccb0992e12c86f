"""The paper's datasets in torchvision's folders: made up here, and real subsets where they lie beside."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.io import savemat

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import DataError
from p2pft_flower.learning.data import torchvision_sets
from p2pft_flower.learning.data.datasets import TORCHVISION, Dataset, Split, load_dataset
from p2pft_flower.learning.data.torchvision_folders import FOLDERS
from p2pft_flower.learning.model.models import preprocessing
from p2pft_flower.learning.workload import Workload
from tests.learning.real_data import shared


def write_cifar(root, *, kind):
    """Three images a class and batch whose every pixel is the label."""
    folder = root / ("cifar-10-batches-py" if kind == 10 else "cifar-100-python")
    folder.mkdir(parents=True)
    labels = list(range(kind)) * 3
    batch = {"data": np.repeat(np.uint8(labels), 3072).reshape(-1, 3072)}
    batch["labels" if kind == 10 else "fine_labels"] = labels
    names = [f"class {c}" for c in range(kind)]
    if kind == 10:
        files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        meta, key = "batches.meta", "label_names"
    else:
        files, meta, key = ["train", "test"], "meta", "fine_label_names"
    for file in files:
        (folder / file).write_bytes(pickle.dumps(batch))
    (folder / meta).write_bytes(pickle.dumps({key: names}))
    return folder


def write_pets(root):
    folder = root / "oxford-iiit-pet"
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True)
    for part, numbers in (("trainval", (1, 2)), ("test", (3,))):
        rows = []
        for label, name in enumerate(["Abyssinian", "american_bulldog", "Pug"], 1):
            for number in numbers:
                Image.new("RGB", (9, 7), (80 * label, 0, 0)).save(folder / "images" / f"{name}_{number}.jpg")
                rows.append(f"{name}_{number} {label} 1 1")
        (folder / "annotations" / f"{part}.txt").write_text("\n".join(rows) + "\n")
    return folder


def write_flowers(root, classes=5):
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    labels = np.arange(classes * 4) % classes + 1
    for number, label in enumerate(labels, 1):
        Image.new("RGB", (9, 7), (2 * label, 0, 0)).save(folder / "jpg" / f"image_{number:05d}.jpg")
    ids = np.arange(1, len(labels) + 1).reshape(4, classes)
    savemat(folder / "imagelabels.mat", {"labels": labels[None]})
    savemat(
        folder / "setid.mat",
        {"trnid": ids[2][None], "valid": ids[:1], "tstid": np.concatenate([ids[1], ids[3]])[None]},
    )
    return folder


WRITE = {
    "cifar10": lambda root: write_cifar(root, kind=10),
    "cifar100": lambda root: write_cifar(root, kind=100),
    "oxford-iiit-pet": write_pets,
    "oxford-flowers102": write_flowers,
}
HAVE_MD5 = ["cifar10", "cifar100", "oxford-flowers102"]


@pytest.mark.parametrize(("name", "kind", "batches"), [("cifar10", 10, 5), ("cifar100", 100, 1)])
def test_cifar_gives_each_image_under_its_label_and_the_names_of_the_classes(name, kind, batches, tmp_path):
    WRITE[name](tmp_path)
    data = load_dataset(name, str(tmp_path), verify=False)
    assert data.name == name
    assert data.classes == tuple(f"class {c}" for c in range(kind))
    assert (len(data.train), len(data.test)) == (3 * kind * batches, 3 * kind)
    for split in (data.train, data.test):
        assert split.labels.dtype == np.int64
        image = split.read(7)
        assert (image.mode, image.size) == ("RGB", (32, 32))
        assert (np.asarray(image) == split.labels[7]).all()


def test_pets_gives_trainval_and_test_and_names_as_torchvision_does(tmp_path):
    write_pets(tmp_path)
    data = load_dataset("oxford-iiit-pet", str(tmp_path))
    theirs = torchvision.datasets.OxfordIIITPet(str(tmp_path), split="trainval")
    assert list(data.classes) == theirs.classes == ["Abyssinian", "American Bulldog", "Pug"]
    assert data.train.labels.tolist() == [label for _, label in theirs] == [0, 0, 1, 1, 2, 2]
    for i, (image, _) in enumerate(theirs):
        np.testing.assert_array_equal(np.asarray(data.train.read(i)), np.asarray(image))
    assert data.test.labels.tolist() == [0, 1, 2]


def test_flowers_trains_on_train_and_val_and_tests_on_test(tmp_path):
    write_flowers(tmp_path)
    data = load_dataset("oxford-flowers102", str(tmp_path), verify=False)
    assert (len(data.train), len(data.test)) == (10, 10)
    assert np.bincount(data.train.labels).tolist() == [2] * 5
    for split in (data.train, data.test):
        for i, label in enumerate(split.labels):
            assert np.asarray(split.read(i))[0, 0, 0] == pytest.approx(2 * (label + 1), abs=1)


def test_flowers_has_torchvisions_names_where_all_102_classes_are_there(tmp_path):
    write_flowers(tmp_path / "some")
    assert load_dataset("oxford-flowers102", str(tmp_path / "some"), verify=False).classes == tuple("01234")
    write_flowers(tmp_path / "all", classes=102)
    data = load_dataset("oxford-flowers102", str(tmp_path / "all"), verify=False)
    names = getattr(torchvision.datasets.Flowers102, "classes", [str(c) for c in range(102)])
    assert data.classes == tuple(names)


@pytest.mark.parametrize("name", TORCHVISION)
def test_without_a_folder_the_error_says_where_it_looked_and_what_would_help(name, tmp_path, monkeypatch):
    folder = FOLDERS[name].name
    help_ = rf"give data-dir = the folder that holds {folder}/, or download = true"
    with pytest.raises(DataError, match=rf"'{name}': there is no folder {tmp_path}/{folder}; {help_}"):
        load_dataset(name, str(tmp_path))
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match=rf"there is no folder {tmp_path}/home/data/{folder}"):
        load_dataset(name)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("name", TORCHVISION)
def test_an_incomplete_folder_is_refused_with_what_it_lacks(name, tmp_path):
    folder = WRITE[name](tmp_path)
    last = FOLDERS[name].needs[-1]
    (folder / last).unlink()
    with pytest.raises(DataError, match=rf"{folder} lacks {last}; complete it, or remove it"):
        load_dataset(name, str(tmp_path), verify=False)


@pytest.mark.parametrize("name", HAVE_MD5)
def test_another_md5_is_refused_or_accepted_with_a_warning(name, tmp_path, caplog):
    folder = WRITE[name](tmp_path)
    with pytest.raises(DataError, match=rf"in {folder} the md5 sums of .* set verify = false"):
        load_dataset(name, str(tmp_path))
    with caplog.at_level(logging.WARNING):
        load_dataset(name, str(tmp_path), verify=False)
    assert [m for m in caplog.messages if m.startswith("verify = false: ") and "NOT the official" in m]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "data_batch_2"),
        ("oxford-iiit-pet", "annotations/test.txt"),
        ("oxford-flowers102", "setid.mat"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_that_names_the_folder(name, file, tmp_path):
    folder = WRITE[name](tmp_path)
    (folder / file).write_bytes(b"no such thing")
    with pytest.raises(DataError, match=rf"'{name}': {folder} cannot be read: "):
        load_dataset(name, str(tmp_path), verify=False)


@pytest.mark.parametrize(("name", "images"), [("oxford-iiit-pet", "images"), ("oxford-flowers102", "jpg")])
def test_a_missing_image_and_a_corrupt_one_are_named(name, images, tmp_path):
    folder = WRITE[name](tmp_path)
    victim = sorted((folder / images).iterdir())[0]
    victim.write_bytes(b"this was an image once")
    data = load_dataset(name, str(tmp_path), verify=False)
    position = 0 if name == "oxford-iiit-pet" else 5  # val comes after train
    with pytest.raises(DataError, match=rf"{victim}: not a readable image"):
        data.train.read(position)
    victim.unlink()
    with pytest.raises(DataError, match=rf"{victim}: no such image, and 1 in all of"):
        load_dataset(name, str(tmp_path), verify=False)


def test_labels_beyond_the_classes_are_refused(tmp_path):
    folder = write_cifar(tmp_path, kind=10)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["only", "two"]}))
    with pytest.raises(DataError, match=r"its train split has labels \[2, .*\] beyond its 2 classes"):
        load_dataset("cifar10", str(tmp_path), verify=False)


def fetch_with(monkeypatch, fetch):
    source = torchvision_sets.SOURCES["oxford-iiit-pet"]
    changed = torchvision_sets.Source(source.md5, fetch, source.read)
    monkeypatch.setitem(torchvision_sets.SOURCES, "oxford-iiit-pet", changed)


def test_a_download_is_made_aside_once_and_found_the_next_time(tmp_path, monkeypatch):
    calls = []

    def fetch(root):
        calls.append(root)
        write_pets(Path(root))

    fetch_with(monkeypatch, fetch)
    root = tmp_path / "new" / "data"
    for _ in range(2):
        assert len(load_dataset("oxford-iiit-pet", str(root), download=True).train) == 6
    assert len(calls) == 1
    assert calls[0] != str(root)
    assert sorted(p.name for p in root.iterdir()) == [".oxford-iiit-pet.lock", "oxford-iiit-pet"]


def test_a_download_that_breaks_off_leaves_no_half_dataset(tmp_path, monkeypatch):
    def fetch(root):
        write_pets(Path(root))
        raise OSError("no route to host")

    fetch_with(monkeypatch, fetch)
    with pytest.raises(DataError, match=r"the download into .* failed: no route to host; give data-dir"):
        load_dataset("oxford-iiit-pet", str(tmp_path), download=True)
    assert [p.name for p in tmp_path.iterdir()] == [".oxford-iiit-pet.lock"]


@pytest.mark.parametrize(
    ("name", "folder", "classes", "train", "test"),
    [
        ("cifar10", "cifar10", 10, 4000, 1000),
        ("cifar100", "cifar100", 100, 4000, 1000),
        ("oxford-iiit-pet", "pets37", 37, 323, 148),
        ("oxford-flowers102", "flowers17", 17, 1020, 340),
    ],
)
def test_the_real_subsets_are_read(name, folder, classes, train, test):
    data = load_dataset(name, str(shared(folder)), verify=False)
    assert (len(data.classes), len(data.train), len(data.test)) == (classes, train, test)
    for split in (data.train, data.test):
        assert np.unique(split.labels).tolist() == list(range(classes))
        image = split.read(len(split) - 1)
        assert image.mode == "RGB"
        assert np.asarray(image).std() > 5


def test_real_vit_tiny_takes_a_gradient_and_an_evaluation_on_real_cifar_images():
    weights = shared("weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.fp16.safetensors")
    config = LearningConfig(
        model="vit_tiny_patch16_224",
        weights=str(weights),
        dataset="cifar10",
        data_dir=str(shared("cifar10")),
        verify=False,
        shots=2,
        batch_size=8,
    )
    workload = Workload(config, n=4)
    whole = workload.holdings.dataset
    # The trunk is slow: 3 test images of each class instead of 100.
    some = np.sort(np.concatenate([np.flatnonzero(whole.test.labels == c)[:3] for c in range(10)]))
    few = Split(whole.test.labels[some], lambda index: whole.test.read(int(some[index])))
    workload.holdings.dataset = Dataset(whole.name, whole.classes, whole.train, few)

    # Preprocessing is that of these weights: 0.5 and 0.5, which takes white to 1 and black to -1.
    transform = preprocessing(workload.model)
    for level, value in ((255, 1.0), (0, -1.0)):
        plain = transform(Image.new("RGB", (32, 32), (level,) * 3))
        assert plain.shape == (3, 224, 224)
        torch.testing.assert_close(plain, torch.full_like(plain, value))
    assert {p.dtype for p in workload.model.parameters()} == {torch.float32}

    assert [workload.holdings.data(p).images for p in range(4)] == [4, 4, 6, 6]
    objectives = workload.objectives(range(4))
    theta = workload.theta0
    before = objectives[0].evaluate(theta)
    for _ in range(15):
        gradients = [objective.gradient(theta) for objective in objectives.values()]
        assert all(g.dtype == np.float32 and np.isfinite(g).all() for g in gradients)
        theta = theta - 0.05 * np.mean(gradients, axis=0)
    after = objectives[0].evaluate(theta)
    assert after.accuracy > 0.4 > 0.25 > before.accuracy  # of ten classes, from two images of each
