"""DICOM files become the picture that pydicom's own chain of functions makes; the files are pydicom's own."""

from __future__ import annotations

import logging
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.sequence import Sequence

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.datasets import load_dataset
from p2pft_flower.learning.data.decoding import decode, look_at
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.lone_picture import picture_of
from p2pft_flower.learning.data.pixels import Pixels
from p2pft_flower.learning.workload import Workload


def own_file(name):
    """One of the files that pydicom's wheel has; nothing is fetched."""
    return Path(get_testdata_file(name, download=False))


def written(path, change, name="MR_small.dcm"):
    """One of pydicom's files, with its tags changed."""
    held = pydicom.dcmread(own_file(name))
    change(held)
    held.save_as(path)
    return path


def by_pydicom(file, **window):
    """The grey levels of pydicom's chain: its output scaled to 0..255, and inverted for MONOCHROME1."""
    held = pydicom.dcmread(file)
    for tag, value in window.items():
        setattr(held, tag, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shown = apply_voi_lut(apply_modality_lut(pixel_array(held), held), held).astype(np.float64)
    low, high = 0, 2**held.BitsStored - 1
    if held.PixelRepresentation:
        low, high = -(2 ** (held.BitsStored - 1)), 2 ** (held.BitsStored - 1) - 1
    if "RescaleSlope" in held:
        low, high = (float(held.RescaleSlope) * v + float(held.RescaleIntercept) for v in (low, high))
    if held.get("VOILUTSequence"):
        low, high = 0, 2 ** held.VOILUTSequence[0].LUTDescriptor[2] - 1
    shares = np.clip((shown - low) / (high - low), 0, 1)
    return np.rint(255 * (1 - shares if held.PhotometricInterpretation == "MONOCHROME1" else shares))


WINDOWED = [
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "693_J2KI.dcm",
    "examples_overlay.dcm",
    "dicomdirtests/77654033/CR1/6154",  # MONOCHROME1, with a slope and an intercept
    "dicomdirtests/98892001/CT5N/2392",
]


@pytest.mark.parametrize("name", WINDOWED)
def test_a_grey_file_is_shown_in_its_own_window(name):
    file = own_file(name)
    np.testing.assert_array_equal(np.asarray(picture_of(file, None)), by_pydicom(file))


def sigmoid(held):
    held.VOILUTFunction = "SIGMOID"


def exact(held):
    held.VOILUTFunction = "LINEAR_EXACT"


def two_windows(held):
    held.WindowCenter, held.WindowWidth = [500, 900], [600, 100]


def table(held, depth=12, entries=2000):
    item = Dataset()
    item.LUTDescriptor = [entries, 100, depth]
    item.add_new("LUTData", "US", np.linspace(0, 2**depth - 1, entries).astype(int).tolist())
    held.VOILUTSequence = Sequence([item])


def falling(held):
    held.RescaleSlope, held.RescaleIntercept = -2, 3000


@pytest.mark.parametrize("change", [sigmoid, exact, two_windows, table], ids=lambda change: change.__name__)
def test_every_kind_of_window_is_that_of_pydicom_the_first_of_several(change, tmp_path):
    file = written(tmp_path / "x.dcm", change)
    shown = np.asarray(picture_of(file, None))
    np.testing.assert_array_equal(shown, by_pydicom(file))
    assert shown.std() > 0


def test_a_window_shows_larger_values_of_the_modality_brighter_also_if_they_fall(tmp_path):
    file = written(tmp_path / "x.dcm", falling)
    held = pydicom.dcmread(file)
    values, shown = (
        apply_modality_lut(pixel_array(held), held),
        np.asarray(picture_of(file, None)).astype(int),
    )
    order = np.argsort(values, axis=None)
    assert (np.diff(shown.ravel()[order]) >= 0).all()
    assert shown.min() < shown.max()


def test_without_a_window_values_are_those_of_the_modality_and_the_range_must_be_given(tmp_path):
    file = own_file("CT_small.dcm")
    with pytest.raises(ConfigError, match=r"rescaled DICOM samples.*-1000:400 is usual for CT in Hounsfield"):
        picture_of(file, None)
    held = pydicom.dcmread(file)
    values = held.pixel_array.astype(np.float64) * held.RescaleSlope + held.RescaleIntercept
    expected = np.rint(255 * np.clip((values + 1000) / 1400, 0, 1))
    np.testing.assert_array_equal(np.asarray(picture_of(file, (-1000, 400))), expected)


@pytest.mark.parametrize("name", ["CT_small.dcm", *WINDOWED[-2:]])
def test_a_window_of_the_run_is_pydicoms_window_with_these_numbers(name):
    file = own_file(name)
    dicom = LearningConfig(dicom_window="40:400").dicom_range
    expected = by_pydicom(file, WindowCenter=40, WindowWidth=400)
    np.testing.assert_array_equal(np.asarray(picture_of(file, None, dicom=dicom)), expected)
    np.testing.assert_array_equal(
        np.asarray(picture_of(file, (0, 1), dicom=dicom)), expected
    )  # before pixel-range


def test_a_pixel_range_counts_before_the_files_own_windows():
    file = own_file("MR_small.dcm")
    expected = np.rint(255 * np.clip(pydicom.dcmread(file).pixel_array / 2000, 0, 1))
    np.testing.assert_array_equal(np.asarray(picture_of(file, (0, 2000))), expected)


def test_the_cache_tells_windows_apart_and_finds_what_was_stored_without_one():
    assert Pixels().key == b"pixels 3 None [] [] "
    assert len({Pixels().key, Pixels(dicom=(0, 1)).key, Pixels(dicom=(0, 2)).key, Pixels((0, 1)).key}) == 4


@pytest.mark.parametrize(
    "name",
    [
        *("SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_ybr_full_422_uncompressed.dcm", "examples_rgb_color.dcm"),
        *("SC_rgb_rle.dcm", "examples_jpeg2k.dcm", "SC_rgb_small_odd.dcm"),
    ],
)
def test_colours_are_rgb(name):
    file = own_file(name)
    picture = picture_of(file, None)
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), pixel_array(file))
    assert look_at(file).form is None


def test_a_palettes_colours_and_deep_colours_are_scaled_to_levels():
    from pydicom.pixels import apply_color_lut

    file = own_file("examples_palette.dcm")
    held = pydicom.dcmread(file)
    found = apply_color_lut(held.pixel_array, held)[..., :3]
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(np.asarray(picture_of(file, None)), np.rint(found / 257))
    deep = own_file("SC_rgb_rle_16bit.dcm")
    np.testing.assert_array_equal(np.asarray(picture_of(deep, None)), np.rint(pixel_array(deep) / 257))


def test_grey_levels_of_8_bits_are_as_they_are_and_a_mask_is_black_and_white():
    for name, white in (("image_dfl.dcm", 255), ("liver_1frame.dcm", 1)):
        file = own_file(name)
        assert look_at(file).form is None
        stored = pydicom.dcmread(file).pixel_array
        np.testing.assert_array_equal(np.asarray(picture_of(file, None)), stored * (255 // white))


def of_frames(name):
    return lambda path: shutil.copy(own_file(name), path)


def of_no_pixels(path):
    written(path, lambda held: delattr(held, "PixelData"))


def a_table_that_is_misread(path):
    written(path, lambda held: table(held, depth=8, entries=2000))


def truncated(path):
    path.write_bytes(own_file("MR_small.dcm").read_bytes()[:5000])


def of_harmed_jpeg_2000(path):
    """Of a compression that is read here: to install a plug-in would be the wrong advice."""
    name = "examples_jpeg2k.dcm"
    frame = next(generate_frames(pydicom.dcmread(own_file(name)).PixelData, number_of_frames=1))
    harmed = encapsulate([frame[:40] + bytes(len(frame) - 40)])
    written(path, lambda held: setattr(held, "PixelData", harmed), name)


def of_shifted_bits(path):
    written(path, lambda held: (setattr(held, "BitsStored", 12), setattr(held, "HighBit", 15)))


def of_odd_numbers(path):
    written(path, lambda held: held.add_new("WindowWidth", "DS", "0"))


def of_no_slope(path):
    """All values are one, and a window's ends too: 0 / 0 would be cast to black without a word."""

    def change(held):
        for name, value in (
            ("RescaleSlope", 0),
            ("RescaleIntercept", 0),
            ("WindowCenter", 9),
            ("WindowWidth", 9),
        ):
            setattr(held, name, value)

    written(path, change)


def cut_in_its_head(path):
    path.write_bytes(own_file("MR_small.dcm").read_bytes()[:600])


def without_its_depth(path):
    written(path, lambda held: delattr(held, "BitsStored"))


REFUSED = {
    of_frames(
        "examples_ybr_color.dcm"
    ): "a DICOM file of 30 frames, and nothing says which of them counts here",
    of_frames("SC_rgb_rle_2frame.dcm"): "a DICOM file of 2 frames",
    of_frames("reportsi.dcm"): "a DICOM file without an image, such as a report",
    of_no_pixels: "a DICOM file without pixels",
    a_table_that_is_misread: "its window cannot be applied",
    of_shifted_bits: r"a DICOM file whose samples are not in the lowest bits of their words",
    of_odd_numbers: "its window cannot be applied",
    truncated: r"a DICOM file whose pixels take \d+ bytes, but has \d+ of them: it is cut off",
    cut_in_its_head: "a DICOM file without an image, .*, or one that is cut off",
    without_its_depth: "a broken DICOM file, which does not say its BitsStored",
    of_no_slope: "its window cannot be applied",
    of_frames(
        "MR_small_jpeg_ls_lossless.dcm"
    ): r".*it is JPEG-LS Lossless Image Compression, which a plug-in of "
    r"pydicom reads; install one: .*pyjpegls",
    of_frames(
        "JPGExtended.dcm"
    ): r".*it is JPEG Extended .*, and damaged, or in need of another plug-in of pydicom: .*gdcm",
    of_harmed_jpeg_2000: r".*it is JPEG 2000 .*, and damaged, or in need of another plug-in of pydicom: ",
}


@pytest.mark.parametrize("harm", REFUSED)
def test_what_is_not_read_is_refused_with_the_files_name_and_the_reason(harm, tmp_path):
    harm(file := tmp_path / "scan.dcm")
    with pytest.raises(DataError, match=rf"^{re.escape(str(file))}: not a readable image \({REFUSED[harm]}"):
        picture_of(file, None)


def test_values_of_a_file_never_reach_messages_warnings_or_logs(tmp_path, caplog, recwarn, monkeypatch):
    def change(held):
        held.PatientName = "Secret^Name"
        held.add_new("RescaleSlope", "LO", "Secret")
        held.add_new("RescaleIntercept", "LO", "Secret")

    parsed = []
    read = pydicom.dcmread
    file = written(tmp_path / "scan.dcm", change)
    raw = file.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.Secret.Secre")
    (tmp_path / "syntax.dcm").write_bytes(raw)
    monkeypatch.setattr(
        pydicom, "dcmread", lambda *given, **named: parsed.append(read(*given, **named)) or parsed[-1]
    )
    with caplog.at_level(logging.DEBUG):
        for odd in (file, tmp_path / "syntax.dcm"):
            with pytest.raises(DataError) as told:
                decode(odd)
            assert "Secret" not in str(told.value)
            assert told.value.__cause__.__cause__ is None
    assert "Secret" not in caplog.text
    assert not [w for w in recwarn if "Secret" in str(w.message)]
    assert parsed
    assert not [held for held in parsed if "PatientName" in held]


def folder_of(root, names):
    for part in ("train", "test"):
        for label, files in names.items():
            for name in files:
                target = root / part / label / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(
                    own_file("MR_small.dcm" if label == "mr" else "dicomdirtests/98892001/CT5N/2392"), target
                )
    return root


def test_folders_of_dicom_files_with_and_without_a_suffix_train_with_the_embedded_model(tmp_path):
    root = folder_of(tmp_path, {"ct": ["a.dcm", "IM-0001", "1.2.840.113619.2"], "mr": ["b.DCM", "c.dicom"]})
    (root / "train" / "ct" / "README").write_text("no DICOM file")
    (root / "train" / "ct" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    config = LearningConfig(dataset=f"folder:{root}", batch_size=2)
    assert [
        len(split) for split in (load_dataset(config.dataset).train, load_dataset(config.dataset).test)
    ] == [5, 5]
    workload = Workload(config, n=2)
    assert np.abs(workload.objectives(range(2))[0].gradient(workload.theta0)).max() > 0
    (note,) = [line for _, line in workload.holdings.notes if "own window" in line]
    assert "6 of 64-bit floating-point rescaled DICOM samples, each in its file's own window" in note


def test_a_table_may_name_dicom_files(tmp_path):
    root = folder_of(tmp_path, {"ct": ["a.dcm"], "mr": ["b"]})
    rows = [f"{part}/{file},{file[:2]},{part}" for part in ("train", "test") for file in ("ct/a.dcm", "mr/b")]
    (root / "scans.csv").write_text("\n".join(["image,label,split", *rows]))
    holdings = Holdings(LearningConfig(dataset=f"table:{root / 'scans.csv'}"), n=2)
    assert holdings.dataset.classes == ("ct", "mr")
    expected = by_pydicom(own_file("MR_small.dcm"))
    np.testing.assert_array_equal(np.asarray(holdings.pictures.test.picture(1)), expected)


def test_a_file_of_more_pixels_than_allowed_is_refused_with_its_size_and_the_key():
    with pytest.raises(DataError, match=r"MR_small.dcm: .*64 × 64 pixels, .* max-megapixels allows more"):
        decode(own_file("MR_small.dcm"), 4000)
    with pytest.raises(DataError, match="max-megapixels allows more"):
        look_at(own_file("MR_small.dcm"), 4000)


def test_a_dicom_window_that_changes_nothing_or_shows_nothing_is_told(tmp_path, caplog):
    root = folder_of(tmp_path, {"ct": ["a.dcm"], "mr": ["b.dcm"]})
    with caplog.at_level(logging.WARNING):
        Holdings(LearningConfig(dataset=f"folder:{root}", dicom_window="90000:2"), n=2).surveys  # noqa: B018
        Holdings(LearningConfig(dicom_window="40:400"), n=2).surveys  # noqa: B018
    of_ct = "dicom-window, 89999 to 90000, leaves little of 64-bit floating-point rescaled DICOM samples"
    assert [message for message in caplog.messages if of_ct in message]
    assert [m for m in caplog.messages if "dicom-window changes nothing" in m]


def test_without_pydicom_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(DataError, match=r"pip install 'pydicom>=3,<4' \(in a clone .* '.\[medical\]'\)\)"):
        decode(own_file("MR_small.dcm"))
