"""The largest images: an error with file, size and key, above Pillow's limit or that of the key."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.decoding import decode, look_at
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.pixels import as_source
from p2pft_flower.learning.data.sizes import LARGEST, allow, check_size
from tests.learning.image_files import png, tiff

DEEP = np.arange(200 * 100, dtype=np.uint16).reshape(100, 200)


@pytest.fixture(autouse=True)
def limit(monkeypatch):
    """Pillow's limit is the process's: each test leaves it as it was."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture
def folder(tmp_path):
    """A class with images of 200 × 100 pixels in several formats, which are read in several ways."""
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        file = tmp_path / part / "a"
        (file / "deep.png").write_bytes(png(DEEP, 16, 0))
        (file / "deep.tif").write_bytes(tiff(DEEP))
        Image.fromarray(DEEP.astype(np.uint8)).save(file / "grey.jpg")
        Image.fromarray(DEEP.astype(np.uint8)).save(file / "grey.tiff")
    return tmp_path


def holdings(folder, **settings):
    return Holdings(LearningConfig(dataset=f"folder:{folder}", pixel_range="0:20000", **settings), n=1)


def test_images_of_more_pixels_than_the_key_are_refused_with_file_size_and_key(folder):
    for index, name in enumerate(("deep.png", "deep.tif", "grey.jpg", "grey.tiff")):
        with pytest.raises(
            DataError,
            match=rf"/train/a/{name}: not a readable image \(200 × 100 pixels, 0.02 megapixels, more than "
            r"0.019: max-megapixels allows more\)",
        ):
            holdings(folder, max_megapixels=0.019).pictures.train.picture(index)
        assert holdings(folder, max_megapixels=0.02).pictures.train.picture(index).size == (200, 100)


def test_too_large_images_are_bad_images_and_can_be_skipped(folder, caplog):
    for name in ("deep.png", "deep.tif", "grey.tiff"):
        Image.new("L", (8, 8)).save(folder / "train" / "a" / name)
        (folder / "test" / "a" / name).unlink()
    Image.new("L", (8, 8)).save(folder / "test" / "a" / "0.png")
    with pytest.raises(DataError, match=r"grey.jpg: not a readable image \(200 × 100 pixels"):
        holdings(folder, max_megapixels=0.01).check_images([0])
    held = holdings(folder, max_megapixels=0.01, bad_images="skip")
    assert len(held.shares[0]) == 3
    assert len(held.test_positions) == 1
    assert "grey.jpg: not a readable image (200 × 100 pixels" in caplog.text


def test_above_pillows_limit_the_key_allows_more_and_its_error_names_the_key(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    with pytest.raises(
        DataError, match=r"grey.jpg: not a readable image \(.*20000 pixels.* max-megapixels allows"
    ):
        holdings(folder).pictures.train.picture(2)
    assert holdings(folder, max_megapixels=0.02).pictures.train.picture(2).size == (200, 100)
    assert Image.MAX_IMAGE_PIXELS == 20000


def test_a_higher_limit_of_other_holdings_is_none_of_these(folder):
    low = holdings(folder, max_megapixels=0.01)
    allow(10_000.0)
    with pytest.raises(DataError, match=r"more than 0.01: max-megapixels"):
        low.pictures.train.picture(0)
    with pytest.raises(ValueError, match=r"more than 179: max-megapixels"):
        check_size(20_000, 10_000, allow(0))
    allow(1.0)
    assert Image.MAX_IMAGE_PIXELS == 10**10  # never lowered: others may need it


def test_a_file_that_claims_more_pixels_than_memory_holds_is_not_decoded(tmp_path):
    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 16, 0, 0, 0, 0))
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    for read in (decode, look_at):
        with pytest.raises(DataError, match=r"bomb.png: .*3600000000 pixels.* max-megapixels allows more"):
            read(bomb)
        allow(10_000.0)
        with pytest.raises(
            DataError, match=r"bomb.png: .*60000 × 60000 pixels, 3600 megapixels, more than 179"
        ):
            read(bomb, LARGEST)
        Image.MAX_IMAGE_PIXELS = LARGEST // 2


def test_an_image_that_a_dataset_of_ones_own_has_opened_was_checked_by_pillow(monkeypatch):
    content = io.BytesIO(png(DEEP, 16, 0))
    opened = Image.open(content)
    assert as_source(opened).values.shape[:2] == (100, 200)


def test_features_have_no_such_limit():
    config = LearningConfig(dataset="features:/f.npz", model="none", tune="head", max_megapixels=1.0)
    with pytest.raises(ConfigError, match=r"max-megapixels = 1.0 with dataset = 'features:/f.npz'"):
        config.check_data()
