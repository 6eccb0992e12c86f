"""DICOM files of several frames: every frame is an image, and the frames of a file stay together."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset as Tags
from pydicom.pixels import iter_pixels, pixel_array
from pydicom.sequence import Sequence

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import DataError
from p2pft_flower.keeping.image_lists import difference
from p2pft_flower.learning.data import decoding
from p2pft_flower.learning.data.data_digest import images_digest, listed_images
from p2pft_flower.learning.data.datasets import load_dataset
from p2pft_flower.learning.data.decoding import decode, look_at
from p2pft_flower.learning.data.frames import frames_of
from p2pft_flower.learning.data.held_out import held_out
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.splits import Split
from p2pft_flower.learning.data.streams import ImageStream, StreamPart
from p2pft_flower.learning.workload import Workload


def own_file(name):
    """One of the files that pydicom's wheel has; nothing is fetched."""
    return Path(get_testdata_file(name, download=False))


def written(path, frames, *, bits=16, enhance=None, syntax=None):
    """A grey file of the frames' values; ``enhance`` adds to its tags."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = pydicom.dcmread(own_file("MR_small.dcm"))
    for tag in (
        "WindowCenter",
        "WindowWidth",
        "SmallestImagePixelValue",
        "LargestImagePixelValue",
        "DataSetTrailingPadding",
    ):
        if tag in held:
            delattr(held, tag)
    held.NumberOfFrames, (held.Rows, held.Columns) = len(frames), frames[0].shape
    held.BitsAllocated = 1 if bits == 1 else 8 if bits == 8 else 16
    held.BitsStored, held.HighBit, held.PixelRepresentation = bits, bits - 1, 0
    if bits == 1:
        packed = np.packbits(np.stack(frames).ravel(), bitorder="little").tobytes()
        held.PixelData = packed + b"\0" * (len(packed) % 2)
    else:
        held.PixelData = np.stack(frames).astype(np.uint8 if bits == 8 else np.uint16).tobytes()
    held["PixelData"].VR = "OW"
    if enhance is not None:
        enhance(held)
    if syntax is not None:
        held.file_meta.TransferSyntaxUID = syntax
    held.save_as(path)
    return path


def levels(number, *, size=8, base=0):
    """``number`` frames of 8 bits, each of another grey level."""
    return [np.full((size, size), base + k, np.uint8) for k in range(number)]


def functions(**groups):
    """A functional group with an item of tags for each sequence's name."""
    group = Tags()
    for name, tags in groups.items():
        item = Tags()
        for tag, value in tags.items():
            setattr(item, tag, value)
        setattr(group, name, Sequence([item]))
    return group


@pytest.mark.parametrize(
    "name",
    [
        *("examples_ybr_color.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_rle_16bit_2frame.dcm"),
        *("rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm"),
    ],
)
def test_each_frame_is_what_pydicom_reads_of_it(name):
    file = own_file(name)
    (number,) = frames_of([file])
    held = list(iter_pixels(file))
    assert number == len(held) > 1
    for frame in (1, 2, number):
        found = decode(file, frame=frame)
        values = found.values if hasattr(found, "values") else np.asarray(found)
        np.testing.assert_array_equal(values, held[frame - 1])
        assert look_at(file, frame=frame).form == getattr(found, "form", None)
    assert any((one != held[0]).any() for one in held) or name.startswith("SC_rgb_rle_16bit")


def test_one_frame_is_decoded_without_the_others(tmp_path, monkeypatch):
    file = written(tmp_path / "x.dcm", [np.full((256, 256), k) for k in range(100)], bits=12)
    size, read = file.stat().st_size, 0

    class Counting:
        def __init__(self, opened):
            self.opened = opened

        def read(self, *given):
            nonlocal read
            data = self.opened.read(*given)
            read += len(data)
            return data

        def __getattr__(self, name):
            return getattr(self.opened, name)

    with file.open("rb") as opened:
        found = decoding.decode_dicom(Counting(opened), frame=77)
    assert (found.values == 76).all()
    assert read < size / 20


def test_frames_of_one_bit_that_begin_within_a_byte_are_read(tmp_path):
    held = np.random.default_rng(0).integers(0, 2, (3, 5, 5))
    file = written(tmp_path / "x.dcm", list(held), bits=1)
    for frame in (1, 2, 3):
        np.testing.assert_array_equal(np.asarray(decode(file, frame=frame).values), held[frame - 1])


def test_a_deflated_file_has_its_frames_too(tmp_path):
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file = written(tmp_path / "x.dcm", levels(3, base=4), bits=8, syntax=DeflatedExplicitVRLittleEndian)
    assert frames_of([file]).tolist() == [3]
    assert [int(decode(file, frame=k).values[0, 0]) for k in (1, 2, 3)] == [4, 5, 6]


def enhanced(held):
    """Slope 2 for all frames; of two frames each has a window of its own, the second its own slope, too."""
    held.SharedFunctionalGroupsSequence = Sequence(
        [functions(PixelValueTransformationSequence={"RescaleSlope": 2, "RescaleIntercept": -100})]
    )
    first = functions(FrameVOILUTSequence={"WindowCenter": 0, "WindowWidth": 200})
    second = functions(
        FrameVOILUTSequence={"WindowCenter": 500, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"},
        PixelValueTransformationSequence={"RescaleSlope": 10, "RescaleIntercept": 0},
    )
    held.PerFrameFunctionalGroupsSequence = Sequence([first, second])


def test_an_enhanced_files_frames_have_their_own_rescale_and_window_before_the_shared_ones(tmp_path):
    ramp = np.arange(64).reshape(8, 8) * 2
    (tmp_path / "test" / "a").mkdir(parents=True)
    file = written(tmp_path / "train" / "a" / "x.dcm", [ramp, ramp], bits=12, enhance=enhanced)
    shutil.copy(file, tmp_path / "test" / "a" / "y.dcm")
    pictures = Holdings(LearningConfig(dataset=f"folder:{tmp_path}", partition="iid"), 1).pictures.train
    first, second = (np.asarray(pictures.picture(k)).astype(float) for k in range(2))
    # PS3.3 C.11.2.1.2.1 and C.11.2.1.3.2
    values = ramp * 2.0 - 100
    np.testing.assert_array_equal(first, np.rint(255 * np.clip((values + 0.5) / 199 + 0.5, 0, 1)))
    values = ramp * 10.0
    np.testing.assert_array_equal(second, np.rint(255 * np.clip((values - 500) / 100 + 0.5, 0, 1)))
    assert (first != second).any()


def test_an_enhanced_file_of_one_frame_is_read_as_a_classic_one(tmp_path):
    ramp = np.arange(64).reshape(8, 8)

    def alone(held):
        enhanced(held)
        del held.PerFrameFunctionalGroupsSequence[1]

    file = written(tmp_path / "x.dcm", [ramp], bits=12, enhance=alone)
    found = decode(file)
    np.testing.assert_array_equal(found.values, ramp * 2.0 - 100)
    assert found.own_window is not None


def folder_of(root, files, *, part="train", frames=4):
    """A folder of DICOM files, by class and name; each has its own base level and so many frames."""
    for number, name in enumerate(files):
        written(root / part / name, levels(frames, base=10 * number), bits=8)
    return root


def test_a_folder_has_an_image_for_each_frame_with_the_files_class_and_trains(tmp_path):
    folder_of(tmp_path, ["ct/a.dcm", "ct/b", "mr/c.dcm"])
    folder_of(tmp_path, ["ct/d.dcm", "mr/e.dcm"], part="test")
    written(tmp_path / "train" / "mr" / "single.dcm", levels(1, base=99), bits=8)
    data = load_dataset(f"folder:{tmp_path}")
    assert [len(data.train), len(data.test)] == [13, 8]
    assert data.train.labels.tolist() == [0] * 8 + [1] * 5
    names = [data.train.name(k, "") for k in range(13)]
    assert names[:2] == [f"{tmp_path}/train/ct/a.dcm#1", f"{tmp_path}/train/ct/a.dcm#2"]
    assert names[-1] == f"{tmp_path}/train/mr/single.dcm"
    assert len({data.train.digest(k) for k in range(13)}) == 13
    assert [data.train.picture(k).getpixel((0, 0)) for k in (0, 3, 7, 12)] == [0, 3, 13, 99]
    workload = Workload(LearningConfig(dataset=f"folder:{tmp_path}", batch_size=2, partition="iid"), n=2)
    assert np.abs(workload.objectives(range(2))[0].gradient(workload.theta0)).max() > 0
    ((_, note),) = workload.holdings.notes
    assert note == "of 21 images 20 frames of DICOM files of several, each an image with its file's class"


def table_of(root, *rows, header="image,label,split,frame"):
    file = root / "scans.csv"
    file.write_text("\n".join([header, *rows]))
    return f"table:{file}"


def test_a_table_names_a_frame_or_means_all_of_them(tmp_path):
    folder_of(tmp_path, ["a.dcm", "b.dcm", "c.dcm"], part="")
    data = load_dataset(
        table_of(tmp_path, "a.dcm,x,train,3", "a,y,train,1", "b.dcm,y,train,", "c.dcm,x,test,2")
    )
    assert [data.train.name(k, "").rpartition("/")[2] for k in range(len(data.train))] == [
        *("a.dcm#3", "a.dcm#1"),
        *(f"b.dcm#{k}" for k in (1, 2, 3, 4)),
    ]
    assert data.train.labels.tolist() == [0, 1, 1, 1, 1, 1]
    assert data.train.columns["frame"].tolist() == ["3", "1", "", "", "", ""]
    assert [data.train.picture(k).getpixel((0, 0)) for k in range(3)] == [2, 0, 10]
    assert data.test.picture(0).getpixel((0, 0)) == 21


@pytest.mark.parametrize("number", ["0", "5", "-1", "1.0", "first"])
def test_a_frame_that_a_file_has_not_is_refused_with_the_line_and_what_it_has(number, tmp_path):
    folder_of(tmp_path, ["a.dcm", "b.dcm"], part="")
    rows = ["a.dcm,x,train,1", f"b.dcm,y,train,{number}", "b.dcm,x,test,1"]
    with pytest.raises(DataError, match=rf"line 3: frame = '{number}', but b.dcm has the frames 1 to 4"):
        load_dataset(table_of(tmp_path, *rows))


@pytest.mark.parametrize("again", ["2", ""])
def test_one_frame_in_two_rows_is_refused(again, tmp_path):
    folder_of(tmp_path, ["a.dcm", "b.dcm"], part="")
    with pytest.raises(
        DataError, match=r"line 3: .*a.dcm stands in line 2 already, as 'x'; an image has one"
    ):
        load_dataset(table_of(tmp_path, "a.dcm,x,train,2", f"a.dcm,y,train,{again}", "b.dcm,x,test,"))


def test_a_column_frame_says_nothing_of_files_of_one_image(tmp_path):
    from PIL import Image

    for name in ("a.png", "b.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    data = load_dataset(table_of(tmp_path, "a.png,x,train,17", "b.png,x,test,18"))
    assert (len(data.train), data.train.frames) == (1, None)
    with pytest.raises(DataError, match=r"line 3: .*a.png stands in line 2 already"):
        load_dataset(table_of(tmp_path, "a.png,x,train,17", "a.png,x,test,18"))


def test_frames_of_one_file_to_train_and_to_test_are_told(tmp_path, caplog):
    folder_of(tmp_path, ["a.dcm"], part="")
    with caplog.at_level(logging.WARNING):
        load_dataset(table_of(tmp_path, "a.dcm,x,train,2", "a.dcm,x,test,3"))
    assert "1 TEST IMAGES ARE TRAINING IMAGES too, as" in caplog.text
    assert "a.dcm#2 and" in caplog.text


def files_at(split, positions):
    return {str(split.files[p]) for p in positions}


@pytest.mark.parametrize("keep", ["last", "best:loss"])
@pytest.mark.parametrize("partition", ["iid", "dirichlet:1", "shards:2", "classes:0,1"])
def test_no_file_has_frames_on_both_sides_of_validation_nor_at_two_peers(partition, keep, tmp_path):
    names = [f"{label}/{k}.dcm" for label in ("ct", "mr") for k in range(8)]
    folder_of(tmp_path, names)
    folder_of(tmp_path, ["ct/t.dcm", "mr/u.dcm"], part="test", frames=1)
    config = LearningConfig(
        dataset=f"folder:{tmp_path}", partition=partition, validation=0.25, keep=keep, seed=1
    )
    holdings = Holdings(config, 2)
    train = holdings.dataset.train
    shares = [files_at(train, share) for share in holdings.shares]
    assert not shares[0] & shares[1]
    if keep == "last":
        scored = set(map(str, holdings.dataset.test.files))
        assert len(holdings.dataset.test) == 4 * len(scored) == 16
    else:
        scored = set().union(*(files_at(train, held) for held in holdings.validations))
        assert sum(map(len, holdings.validations)) == 4 * len(scored) > 0
    assert scored
    assert not scored & (shares[0] | shares[1])


def test_fewer_files_than_peers_are_told_as_files(tmp_path):
    folder_of(tmp_path, ["ct/a.dcm", "mr/b.dcm"])
    folder_of(tmp_path, ["ct/t.dcm", "mr/u.dcm"], part="test", frames=1)
    with pytest.raises(DataError, match="are frames of 2 files, which cannot be dealt out to 3 peers"):
        Holdings(LearningConfig(dataset=f"folder:{tmp_path}", partition="iid"), 3).shares  # noqa: B018


def test_the_share_counts_files_and_one_file_of_a_class_is_left(tmp_path):
    folder_of(tmp_path, ["ct/a.dcm", "ct/b.dcm", "mr/c.dcm"])
    folder_of(tmp_path, ["ct/t.dcm", "mr/u.dcm"], part="test", frames=1)
    found = held_out(load_dataset(f"folder:{tmp_path}"), 0.9, seed=0)
    assert np.bincount(found.test.labels).tolist() == [4]
    assert np.bincount(found.train.labels).tolist() == [4, 4]
    shutil.rmtree(tmp_path / "train" / "ct")
    shutil.rmtree(tmp_path / "test" / "ct")
    with pytest.raises(DataError, match=r"two training images.*the frames of one file stay together"):
        held_out(load_dataset(f"folder:{tmp_path}"), 0.5, seed=0)


def test_a_file_whose_frames_two_peers_hold_cannot_be_held_out_by_one(tmp_path):
    folder_of(tmp_path, ["a.dcm", "b.dcm", "c.dcm", "d.dcm"], part="")
    rows = [f"{name}.dcm,x,train,{k},{k % 2}" for name in "abc" for k in (1, 2, 3, 4)]
    dataset = table_of(tmp_path, *rows, "d.dcm,x,test,,0", header="image,label,split,frame,clinic")
    config = LearningConfig(dataset=dataset, partition="by:clinic", validation=0.5, keep="best:loss")
    with pytest.raises(DataError, match=r"peer 0 would hold .*\.dcm#\d out, and peer 1 has other frames of"):
        Holdings(config, 2).shares  # noqa: B018


def test_lists_and_digests_tell_frames_apart_and_name_them(tmp_path):
    file = written(tmp_path / "x.dcm", levels(3), bits=8)
    labels = np.zeros(2, np.int64)
    splits = [Split.of_files([file] * 2, labels, frames=np.array(two)) for two in ([1, 2], [1, 3])]
    before, now = (listed_images(split, np.arange(2), ["x"], {}) for split in splits)
    assert [Path(one.file).name for one in now] == ["x.dcm#1", "x.dcm#3"]
    assert re.fullmatch(r"1 new \(.*x\.dcm#3\), 1 removed \(.*x\.dcm#2\)", str(difference(before, now)))
    digests = [images_digest(split, np.arange(2), ["x"]) for split in splits]
    assert digests[0] != digests[1]


def test_joined_and_chosen_images_keep_their_frames(tmp_path):
    file = written(tmp_path / "x.dcm", levels(3), bits=8)
    alone = written(tmp_path / "y.dcm", levels(1, base=50), bits=8)
    frames = Split.of_files([file] * 3, np.zeros(3, np.int64), frames=np.array([1, 2, 3]))
    joined = Split.joined([Split.of_files([alone], np.zeros(1, np.int64)), frames])
    assert [joined.frame(k) for k in range(4)] == [0, 1, 2, 3]
    assert [joined.picture(k).getpixel((0, 0)) for k in range(4)] == [50, 0, 1, 2]
    some = frames.at(np.array([2, 0])).within(100)
    assert [some.picture(k).getpixel((0, 0)) for k in range(2)] == [2, 0]
    assert some.name(0, "") == f"{file}#3"
    with pytest.raises(DataError, match=r"x.dcm#3: .* max-megapixels allows more"):
        frames.within(10).picture(2)


def test_a_stream_has_each_frame_of_a_file_that_comes_and_names_it(tmp_path):
    written(tmp_path / "ct" / "a.dcm", levels(2), bits=8)
    stream = ImageStream([StreamPart(tmp_path, np.array([0]))], ["ct"], "peer 0's")
    assert stream.names(stream.refresh()) == ["0/ct/a.dcm#1", "0/ct/a.dcm#2"]
    whole = written(tmp_path / "new.dcm", levels(3, base=70), bits=8).read_bytes()
    (tmp_path / "new.dcm").rename(tmp_path / "ct" / "b.dcm")
    (tmp_path / "ct" / "b.dcm").write_bytes(whole[:-100])  # not yet whole
    assert stream.names(stream.refresh())[2:] == ["0/ct/b.dcm#1"]
    (tmp_path / "ct" / "b.dcm").write_bytes(whole)
    there = stream.refresh()
    assert stream.names(there)[2:] == [f"0/ct/b.dcm#{k}" for k in (1, 2, 3)]
    assert [stream.picture(p).getpixel((0, 0)) for p in there] == [0, 1, 70, 71, 72]
    assert stream.positions(["0/ct/b.dcm#2"]).tolist() == [3]


def cut_off(held):
    held.NumberOfFrames = 1000


def of_few_groups(held):
    enhanced(held)
    held.NumberOfFrames = 2
    del held.PerFrameFunctionalGroupsSequence[1]


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (cut_off, "a DICOM file of 1000 frames, which take 64000 bytes or more, but has"),
        (of_few_groups, "a broken DICOM file, which has fewer groups"),
    ],
)
def test_a_file_that_claims_frames_that_it_has_not_is_one_image_that_cannot_be_read(harm, told, tmp_path):
    file = written(tmp_path / "x.dcm", levels(2), bits=8, enhance=harm)
    assert frames_of([file]).tolist() == [1]
    with pytest.raises(DataError, match=f"x.dcm: not a readable image \\({told}"):
        decode(file)


def test_a_damaged_frame_is_named_and_left_out_if_that_is_wanted(tmp_path):
    folder_of(tmp_path, ["ct/a.dcm", "mr/b.dcm"])
    folder_of(tmp_path, ["ct/d.dcm", "mr/e.dcm"], part="test")
    rle = own_file("SC_rgb_rle_2frame.dcm")
    harmed = bytearray(rle.read_bytes())
    expected = pixel_array(rle, index=0)
    second = harmed.rindex(b"\xfe\xff\x00\xe0")
    harmed[second + 8 : second + 40] = b"\xff" * 32
    (tmp_path / "train" / "ct" / "harmed.dcm").write_bytes(bytes(harmed))
    config = LearningConfig(dataset=f"folder:{tmp_path}", partition="iid", bad_images="skip")
    holdings = Holdings(config, 2)
    held = sorted(holdings.dataset.train.name(int(p), "") for share in holdings.shares for p in share)
    assert f"{tmp_path}/train/ct/harmed.dcm#1" in held
    assert f"{tmp_path}/train/ct/harmed.dcm#2" not in held
    assert holdings.unreadable == 1
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "train/ct/harmed.dcm", frame=1)), expected)
