"""Folders of images as users have them: with what systems leave in them, links, odd names and other files."""

from __future__ import annotations

import os
import socket
import unicodedata

import numpy as np
import pytest
from PIL import Image

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.datasets import load_dataset
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.images import find_images
from p2pft_flower.learning.data.names import differing_unseen, in_order, look_alikes
from p2pft_flower.learning.data.sites import load_sites
from tests.learning.conftest import write_images


def paint(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(file)


def read(root):
    return load_dataset(f"folder:{root}")


LEFT_BEHIND = [
    ".ipynb_checkpoints/0-checkpoint.png",
    "@eaDir/0.png",
    "__MACOSX/0.png",
    ".hidden.png",
    "._0.png",
    ".thumbnails/large/0.jpg",
    "#recycle/0.png",
    "$RECYCLE.BIN/0.png",
    "lost+found/0.png",
    "$Recycle.Bin/0.png",
    "RECYCLER/0.png",
    "~snapshot/0.png",
    "@Recycle/0.png",
    "Temporary Items/0.png",
    "Network Trash Folder/0.png",
    "SYSTEM VOLUME INFORMATION/0.png",
    "__macosx/0.png",
    "_gsdata_/0.png",
    "Thumbs.db/0.png",
]
"""What notebooks, macOS, archives and network storage put beside images."""


@pytest.mark.parametrize("path", LEFT_BEHIND)
@pytest.mark.parametrize("part", ["train", "test"])
def test_what_systems_leave_behind_is_no_class_and_no_image(path, part, folder):
    before = read(folder)
    paint(folder / part / path, folder / part / "red" / path, folder / part / "red" / "deeper" / path)
    after = read(folder)
    assert after.classes == before.classes
    for split in ("train", "test"):
        assert getattr(after, split).files == getattr(before, split).files
    assert (
        f"hidden files and folders, 3 in all, are passed over: {path.partition('/')[0]}" in after.passed_over
    )
    assert not before.passed_over


def test_a_class_of_files_of_other_kinds_only_is_refused_with_their_number(folder):
    (folder / "train" / "phone").mkdir()
    for name in ("1.heic", "2.HEIC", "notes.txt"):
        (folder / "train" / "phone" / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"no image of class 'phone', but 2 \.heic, 1 \.txt"):
        read(folder)


def test_a_class_that_is_named_as_systems_name_theirs_and_has_no_test_folder_is_warned_of(folder, caplog):
    names = ("$cache", "~old", "_backup", "#archive", "@index")
    paint(*(folder / "train" / name / "0.png" for name in (*names, "_background", "violet")))
    paint(folder / "test" / "_background" / "0.png")
    assert set(read(folder).classes) == {"blue", "green", "red", "_background", "violet", *names}
    (line,) = [r.message for r in caplog.records if "are CLASSES here" in r.message]
    assert all(name in line for name in names)
    assert "_background" not in line
    assert "violet" not in line


def test_hidden_folders_are_no_classes_of_sites_and_no_new_classes_of_streams(tmp_path, caplog):
    for site in range(2):
        write_images(tmp_path / f"site-{site}", {"train": 4, "test": 2})
        (tmp_path / f"site-{site}" / "train" / ".ipynb_checkpoints").mkdir()
    name = f"folder:{tmp_path}/site-{{peer}}"
    assert load_sites(name, [0, 1]).dataset.classes == ("blue", "green", "red")
    stream = Holdings(LearningConfig(dataset=name, stream=True), n=2).stream(0)
    paint(tmp_path / "site-0" / "train" / "red" / "@eaDir" / "new.png")
    assert len(stream.refresh()) == 12
    assert "classes that were not there" not in caplog.text


def test_files_that_cannot_be_opened_are_counted_by_suffix_in_one_line(folder, caplog):
    red = folder / "train" / "red"
    for name in ("a.heic", "b.HEIC", "c.nii", "scan", "d.h5", "e.mpg", "f.ps", "g.fits", "h.wmf", "i.grib"):
        (red / name).write_bytes(b"\x89HDF\r\n\x1a\nwhatever")
    assert len(read(folder).train) == 12
    (line,) = [r.message for r in caplog.records if "no pictures that can be opened" in r.message]
    assert "10 files are no pictures that can be opened here and are not used: 2 .heic" in line
    for kind in ("1 .nii", "1 without a suffix", "1 .h5", "1 .mpg", "1 .ps", "1 .fits", "1 .wmf", "1 .grib"):
        assert kind in line


def test_pipes_sockets_and_devices_are_no_pictures_whatever_they_are_called(folder, caplog, monkeypatch):
    red = folder / "train" / "red"
    os.mkfifo(red / "waits.png")
    os.mkfifo(folder / "train" / "aside.jpg")
    (red / "endless.tif").symlink_to("/dev/zero")
    (red / "linked.png").symlink_to("waits.png")
    monkeypatch.chdir(red)  # the name of a socket may not be long
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("listens.png")
    assert len(read(folder).train) == 12
    assert (
        "5 files are no pictures that can be opened here and are not used: 5 pipe, socket or dev"
        in caplog.text
    )


def test_pictures_outside_of_the_class_folders_are_named(folder, caplog):
    paint(folder / "train" / "stray.png", folder / "test" / "other.jpg")
    assert len(read(folder).train) == 12
    assert "2 pictures lie in no class's folder and are not used: " in caplog.text
    assert "stray.png" in caplog.text


def test_linked_folders_are_followed_wherever_they_lie(folder, tmp_path, caplog):
    paint(*(tmp_path / "store" / "batch" / f"{i}.png" for i in range(5)))
    paint(*(tmp_path / "more" / "deeper" / f"{i}.png" for i in range(5)))
    (folder / "train" / "red" / "batch-1").symlink_to(tmp_path / "store" / "batch", target_is_directory=True)
    (folder / "train" / "yellow").symlink_to(tmp_path / "more", target_is_directory=True)
    data = read(folder)
    assert data.classes == ("blue", "green", "red", "yellow")
    assert np.bincount(data.train.labels).tolist() == [4, 4, 4 + 5, 5]
    assert "links" not in caplog.text
    assert "one file" not in caplog.text


@pytest.mark.parametrize("link", ["0-before", "z-after"])
def test_a_folder_that_a_link_leads_to_again_counts_once_and_is_said(link, folder, caplog):
    red = folder / "train" / "red"
    paint(*(red / "2024" / "deep" / f"{i}.png" for i in range(5)))
    (red / link).symlink_to("2024")
    (red / f"{link}-deep").symlink_to("2024/deep")
    files = read(folder).train.files
    assert [f for f in files if "deep" in str(f)] == [red / "2024" / "deep" / f"{i}.png" for i in range(5)]
    (line,) = [r.message for r in caplog.records if "count once" in r.message]
    assert str(red / link) in line
    assert str(red / f"{link}-deep") in line


def test_folders_that_link_to_each_other_are_looked_into_once_each(folder):
    red = folder / "train" / "red"
    parts = [red / str(number) for number in range(12)]  # 12! ways lead through them
    paint(*(part / "0.png" for part in parts))
    for part in parts:
        for other in parts:
            (part / f"to-{other.name}").symlink_to(other, target_is_directory=True)
    assert sorted(f.parent for f in find_images(red).files if f.parent != red) == sorted(parts)


def _link_folder(folder):
    (folder / "train" / "red" / "blues").symlink_to("../blue")


def _link_class(folder):
    (folder / "train" / "azure").symlink_to("blue")


def _link_file(folder):
    (folder / "train" / "red" / "x.png").symlink_to("../blue/0.png")


def _hard_link(folder):
    (folder / "train" / "red" / "x.png").hardlink_to(folder / "train" / "blue" / "0.png")


def _link_into_test(folder):
    (folder / "test" / "red" / "x.png").symlink_to("../../train/blue/0.png")


@pytest.mark.parametrize("link", [_link_folder, _link_class, _link_file, _hard_link, _link_into_test])
def test_a_file_in_two_classes_is_refused_with_both_paths(link, folder):
    link(folder)
    with pytest.raises(DataError, match=r"image files lie in two classes, as (.+) and (.+) \('") as caught:
        read(folder)
    assert "blue/0.png" in str(caught.value)
    assert "which are one file" in str(caught.value)


def test_test_images_that_are_training_images_are_warned_of(folder, caplog):
    (folder / "test" / "red" / "more").symlink_to(folder / "train" / "red", target_is_directory=True)
    assert len(read(folder).test) == 6 + 4
    assert "4 TEST IMAGES ARE TRAINING IMAGES too, as " in caplog.text
    assert str(folder / "train" / "red" / "0.png") in caplog.text


def test_files_that_are_linked_within_their_class_count_as_often_as_they_lie_there(folder, caplog):
    red = folder / "train" / "red"
    one, other, *_ = red.iterdir()
    (red / "again.png").symlink_to(one)
    (red / "hard.png").hardlink_to(other)
    assert len(read(folder).train) == 12 + 2
    assert "2 image files lie more than once in their class, as " in caplog.text


def test_links_that_lead_back_are_found_and_named_not_followed_for_ever(folder, tmp_path, caplog):
    red = folder / "train" / "red"
    (red / "self").symlink_to(red, target_is_directory=True)
    (red / "all").symlink_to(folder, target_is_directory=True)  # would bring other classes' images in
    paint(tmp_path / "elsewhere" / "new.png")
    (red / "there").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "back").symlink_to(red, target_is_directory=True)
    assert np.bincount(read(folder).train.labels).tolist() == [4, 4, 5]
    for link in ("self", "all", "there/back"):
        assert str(red / link) in caplog.text


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(folder):
    (folder / "train" / "red" / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "train" / "red" / "round.png").symlink_to("round.png")
    (folder / "train" / "red" / "round").symlink_to("round")
    listing = find_images(folder / "train" / "red")
    assert {f.name for f in listing.files} >= {"gone.png", "round.png"}
    config = LearningConfig(dataset=f"folder:{folder}", bad_images="skip")
    holdings = Holdings(config, n=1)
    assert holdings.data(0).images == 12
    assert holdings.unreadable == 2


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["0", "1", "10", "11", "2", "3"], ["0", "1", "2", "3", "10", "11"]),
        (["class_10", "class_2", "class_1"], ["class_1", "class_2", "class_10"]),
        (["b", "a10b2", "a10b10", "a9", "C"], ["C", "a9", "a10b2", "a10b10", "b"]),
        (["2", "02", "10"], ["02", "2", "10"]),
        (["0", "1", "-1", "-10"], ["-10", "-1", "0", "1"]),
        (["cat", "10.0", "0.5", "0.25", "-0.5", "2"], ["-0.5", "0.25", "0.5", "2", "10.0", "cat"]),
        (["a-2", "a-1", "a-10"], ["a-1", "a-2", "a-10"]),
        (["n02085620-Chihuahua", "n02085936-Maltese"], ["n02085620-Chihuahua", "n02085936-Maltese"]),
    ],
)
def test_classes_are_in_natural_order(names, order, tmp_path):
    assert in_order(names) == order
    for name in names:
        paint(tmp_path / "train" / name / "0.png", tmp_path / "test" / name / "0.png")
    assert list(read(tmp_path).classes) == order


def test_ranges_of_numeric_folders_are_those_of_their_names(tmp_path):
    for c in range(12):
        paint(*(tmp_path / part / str(c) / "0.png" for part in ("train", "test")))
    config = LearningConfig(dataset=f"folder:{tmp_path}", partition="classes:0-5,6-11")
    holdings = Holdings(config, n=2)
    assert [holdings.data(p).classes for p in range(2)] == [tuple("012345"), ("6", "7", "8", "9", "10", "11")]
    for part in ("train", "test"):  # now from 1 to 12: numbers are names, and no positions
        (tmp_path / part / "0").rename(tmp_path / part / "12")
    config = LearningConfig(dataset=f"folder:{tmp_path}", partition="classes:1-6,7-12")
    assert Holdings(config, n=2).data(0).classes == tuple("123456")
    with pytest.raises(
        ConfigError, match=r"no class is called '0', and numbers are names here, as class '1'"
    ):
        Holdings(LearningConfig(dataset=f"folder:{tmp_path}", partition="classes:0-5,6-11"), n=2).data(0)
    auto = Holdings(LearningConfig(dataset=f"folder:{tmp_path}"), n=2)
    assert auto.partition_spec == "classes:1-6,7-12"
    assert auto.data(1).classes == ("7", "8", "9", "10", "11", "12")


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        (COMPOSED, DECOMPOSED, "Unicode form"),
        ("cat", "Cat", "case"),
        ("cat", "cat ", "blanks"),
        ("grey  cat", "grey cat", "blanks"),
        ("grey\u00a0cat", "grey cat", "Unicode form"),
        ("ﬁsh", "fish", "Unicode form"),
        ("Cat ", "cat", "Unicode form, blanks or case"),
        ("1.0", "1", "the way in which a number is written"),
        ("01", "1", "the way in which a number is written"),
    ],
)
def test_names_that_differ_only_in_what_nobody_sees_are_said_to_do_so(one, other, what, tmp_path, caplog):
    assert differing_unseen(one, [other]).endswith(f"only in {what}")
    (line,) = look_alikes([one, "dog", other])
    assert line.endswith(f"differ only in {what}")
    for site, name in enumerate((one, other)):
        paint(
            *(
                tmp_path / f"site-{site}" / part / c / "0.png"
                for part in ("train", "test")
                for c in (name, "dog")
            )
        )
    with pytest.raises(DataError, match=rf"the class folders in train/ differ: .*only in {what}"):
        load_sites(f"folder:{tmp_path}/site-{{peer}}", [0, 1])
    (tmp_path / "site-0" / "test" / one).rename(tmp_path / "site-0" / "test" / other)
    with pytest.raises(DataError, match=rf"has no folder in train/; it differs from .* only in {what}"):
        read(tmp_path / "site-0")
    (tmp_path / "site-0" / "test" / other).rename(tmp_path / "site-0" / "test" / one)
    paint(tmp_path / "site-0" / "train" / other / "0.png")
    read(tmp_path / "site-0")
    assert f"differ only in {what}" in caplog.text


def test_names_that_differ_in_more_are_not_said_to_look_alike():
    assert differing_unseen("cat", ["cats", "dog"]) == ""
    assert look_alikes(["cat", "cats", "dog"]) == []
