"""Images are known again at another path, and other images are not taken for them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p2pft_flower.config import LearningConfig
from p2pft_flower.learning.data import data_digest
from p2pft_flower.learning.data.data_digest import images_digest
from p2pft_flower.learning.data.datasets import Split, load_dataset
from p2pft_flower.learning.data.holdings import Holdings


def digest(root, part="train", positions=None):
    dataset = load_dataset(f"folder:{root}")
    split = getattr(dataset, part)
    chosen = np.arange(len(split)) if positions is None else np.array(positions, dtype=np.int64)
    return images_digest(split, chosen, dataset.classes)


@pytest.fixture
def moved(folder, tmp_path):
    """A copy at another path."""
    return Path(shutil.copytree(folder, tmp_path / "far" / "away" / "copy"))


def test_the_same_images_at_another_path_have_the_same_digest(folder, moved, monkeypatch):
    assert digest(folder) == digest(moved)
    for positions in ([0], [0, 1], [5, 2, 7]):
        assert digest(folder, positions=positions) == digest(moved, positions=positions)
    monkeypatch.chdir(moved.parent)
    assert digest(folder) == digest("copy")
    (moved.parent / "link").symlink_to(moved)
    assert digest(folder) == digest("link")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "train/red/0.png").rename(root / "train/red/00.png"),
        lambda root: (root / "train/red/0.png").rename(root / "train/green/9.png"),
        lambda root: (root / "train/red/0.png").unlink(),
        lambda root: shutil.copy(root / "train/red/0.png", root / "train/red/9.png"),
        lambda root: Image.new("RGB", (7, 7)).save(root / "train/red/0.png"),
        lambda root: [(root / part / "red").rename(root / part / "violet") for part in ("train", "test")],
    ],
    ids=["renamed", "of another class", "gone", "more", "of another size", "a class renamed"],
)
def test_other_images_have_another_digest(change, folder, moved):
    change(moved)
    assert digest(folder) != digest(moved)


def test_order_and_choice_count(folder):
    assert digest(folder, positions=[0, 1]) != digest(folder, positions=[1, 0])
    assert digest(folder, positions=[0, 1]) != digest(folder, positions=[0, 1, 2])
    assert digest(folder, "train") != digest(folder, "test")
    assert digest(folder, positions=[]) != digest(folder, positions=[0])


def written_over(file, at):
    """Change a byte of a file, and not its size."""
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))


def test_other_contents_of_the_same_size_have_another_digest(folder, moved):
    for part in ("train", "test"):
        for file in sorted((moved / part).rglob("*.*")):
            before = digest(moved, part)
            written_over(file, file.stat().st_size // 2)
            assert digest(moved, part) != before, file
    assert digest(folder) != digest(moved)


def test_of_many_images_some_of_each_class_are_opened_always_the_same_ones(folder, moved, monkeypatch):
    monkeypatch.setattr(data_digest, "OPENED", 6)
    opened = []
    read = data_digest._content
    monkeypatch.setattr(data_digest, "_content", lambda file: opened.append(file) or read(file))
    shuffled = np.random.default_rng(0).permutation(12)
    assert digest(folder, positions=shuffled) == digest(moved, positions=shuffled)
    assert len(opened) == 12
    first, second = (
        {file.relative_to(root) for file in opened if root in file.parents} for root in (folder, moved)
    )
    assert first == second
    assert {file.parent.name for file in first} == {"red", "green", "blue"}
    unopened = next(file for file in sorted((moved / "train").rglob("*.*")) if file not in opened)
    written_over(unopened, 30)
    assert digest(folder, positions=shuffled) == digest(moved, positions=shuffled)


@pytest.mark.parametrize(
    ("at", "read"), [(0, True), (2**16, False), (3_900_000, True), (2**23 - 1, True)], ids=str
)
def test_of_a_large_file_blocks_from_its_begin_to_its_end_are_read(at, read, folder, moved):
    for root in (folder, moved):
        (root / "train/red/0.png").write_bytes(bytes(2**23))
    assert digest(folder) == digest(moved)
    written_over(moved / "train/red/0.png", at)
    assert (digest(folder) != digest(moved)) == read


def test_a_file_that_cannot_be_read_is_left_to_whoever_reads_its_image(folder, moved):
    gone = load_dataset(f"folder:{moved}")
    (moved / "train/red/0.png").unlink()
    assert len(images_digest(gone.train, np.arange(len(gone.train)), gone.classes)) == 32


def test_of_many_images_some_sizes_are_looked_at_and_all_names(folder, moved, monkeypatch):
    monkeypatch.setattr(data_digest, "LOOKED_AT", 1)
    monkeypatch.setattr(data_digest, "OPENED", 1)
    dataset = load_dataset(f"folder:{moved}")
    last = Path(dataset.train.files[-1])
    last.write_bytes(b"another size")
    assert digest(folder) == digest(moved)
    last.rename(last.with_name("z.png"))
    assert digest(folder) != digest(moved)


def test_names_that_are_no_text_have_a_digest(folder):
    (folder / "train" / "red" / "0.png").rename(folder / "train" / "red" / os.fsdecode(b"\xff.png"))
    assert len(digest(folder)) == 32


def test_of_arrays_the_pixels_count():
    def split(value):
        pixels = np.full((4, 2, 2), value, dtype=np.uint8)
        labels = np.zeros(4, dtype=np.int64)
        return Split(labels, lambda i: Image.fromarray(pixels[i]), lambda i: pixels[i].tobytes())

    every = np.arange(4)
    assert images_digest(split(1), every, ["a"]) == images_digest(split(1), every, ["a"])
    assert images_digest(split(1), every, ["a"]) != images_digest(split(2), every, ["a"])
    assert images_digest(split(1), every, ["a"]) != images_digest(split(1), every, ["b"])


def test_a_peers_own_images_count_not_those_of_others(folder):
    holdings = Holdings(LearningConfig(dataset=f"folder:{folder}"), 3)
    data = [holdings.data(peer) for peer in range(3)]
    assert len({one.train_digest for one in data}) == 3
    assert len({one.test_digest for one in data}) == 1
    Image.new("RGB", (7, 7)).save(folder / "train/red/0.png")
    after = [Holdings(LearningConfig(dataset=f"folder:{folder}"), 3).data(peer) for peer in range(3)]
    assert [one == two for one, two in zip(data, after, strict=True)] == [True, True, False]


@pytest.mark.parametrize("settings", [{"stream": True}, {"dp_clip": 1.0}], ids=str)
def test_nothing_is_told_of_training_images_that_may_change_or_are_private(settings, folder):
    data = Holdings(LearningConfig(dataset=f"folder:{folder}", **settings), 3).data(0)
    assert data.train_digest == ""
    assert len(data.test_digest) == 32


def test_a_site_has_the_digest_that_it_has_among_all(folder, tmp_path):
    for peer in range(2):
        shutil.copytree(folder, tmp_path / f"site-{peer}")
    Image.new("RGB", (7, 7)).save(tmp_path / "site-1" / "test" / "red" / "0.png")
    config = LearningConfig(dataset=f"folder:{tmp_path}/site-{{peer}}")
    together = Holdings(config, 2)
    for peer in range(2):
        assert Holdings(config, 2, peers=[peer]).data(peer) == together.data(peer)
    assert together.data(0).train_digest == together.data(1).train_digest
    assert together.data(0).test_digest != together.data(1).test_digest
