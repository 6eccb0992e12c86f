"""What the reader of one's own dataset returns: images are taken, all else is refused before a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import DataError, P2PFTError
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.own_images import NoImageError, require_image
from p2pft_flower.learning.data.pixels import Pixels
from p2pft_flower.learning.workload import Workload
from tests.cli.test_commands import invoke
from tests.flower.engine import run_app

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)

MODULE = """
import numpy as np, torch
from p2pft_flower.learning.data.datasets import Dataset, Split

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)

def of(convert, odd=None):
    def make(data_dir):
        labels = np.arange(12, dtype=np.int64) % 2
        def read(index):
            return GREY + np.uint8(index) if odd is not None and index != odd else convert(GREY)
        def plain(index):
            return GREY + np.uint8(100 + index)
        return Dataset("own", ("a", "b"), Split(labels, plain), Split(labels, read))
    return make

first = of(lambda grey: np.stack([grey] * 3), odd=7)
tensor = of(torch.tensor)
masked = of(lambda grey: np.ma.masked_less(grey, 3))
nan = of(lambda grey: np.where(grey, grey / 63, np.nan), odd=5)
"""


@pytest.fixture
def module(tmp_path):
    file = tmp_path / "own_module.py"
    file.write_text(MODULE)
    return file


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        GREY,
        GREY[..., None],
        *(np.stack([GREY] * channels, axis=-1) for channels in (2, 3, 4)),
        GREY > 7,
        GREY.astype(np.int32),
        GREY / 63,
    ],
    ids=lambda image: getattr(image, "mode", None) or f"{image.shape} {image.dtype}",
)
def test_images_are_taken(image):
    expected, found = (Pixels(window=(0.0, 63.0)).picture(one) for one in (image, require_image(image, "it")))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (np.stack([GREY] * 3), r"shape \(3, 8, 8\) is no image; .* come last: np\.moveaxis\(image, 0, -1\)$"),
        (GREY[None], r"shape \(1, 8, 8\) .*np\.moveaxis\(image, 0, -1\)$"),
        (np.stack([GREY] * 5, axis=-1), r"shape \(8, 8, 5\) is no image; .* which come last$"),
        (GREY.ravel(), r"shape \(64,\) is no image"),
        (GREY[:0], r"shape \(0, 8\) is no image"),
        (GREY.astype(complex), "type complex128 is no image"),
        (GREY.astype(object), "type object is no image"),
        (
            np.ma.masked_equal(GREY, 3),
            r"a masked array has no values .*image\.filled\(VALUE\) gives them; return",
        ),
        (
            torch.tensor(GREY),
            r"a torch\.Tensor of shape \(8, 8\) \(torch\.uint8\) is .*: np\.asarray\(image\)$",
        ),
        (
            torch.zeros(3, 8, 8),
            r"a torch\.Tensor of shape \(3, 8, 8\) .*: np\.moveaxis\(np\.asarray\(image\)",
        ),
        (GREY.tolist(), "a list is no image"),
        ("a.png", "a str is no image"),
        (None, "a NoneType is no image"),
        (np.uint8(3), r"a numpy\.uint8 of shape \(\) \(uint8\) is no image"),
    ],
    ids=str,
)
def test_whatever_is_no_image_is_refused_with_what_it_is_and_what_to_return(found, says):
    with pytest.raises(NoImageError, match=f"^x image 3: .*{says}") as raised:
        require_image(found, "x image 3")
    assert "return a PIL image, or a NumPy array of shape (H, W), or (H, W, C)" in str(raised.value)


@pytest.mark.parametrize("bad_images", ["refuse", "skip"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("first", r"test image 7: an array of shape \(3, 8, 8\) is no image"),
        ("tensor", r"test image 0: a torch\.Tensor of shape"),
        ("masked", "test image 0: a masked array"),
    ],
)
def test_a_run_and_data_show_refuse_it_before_anything_trains(name, says, bad_images, module, tmp_path):
    dataset = f"{module}:{name}"
    expected = f"dataset = '{dataset}', {says}"
    shown = invoke("data", "show", f"dataset={dataset}", "topology=ring:2", f"bad-images={bad_images}")
    assert shown.exit_code == 2
    with pytest.raises(NoImageError, match=expected) as raised:
        _ = Holdings(LearningConfig(dataset=dataset, bad_images=bad_images), 2).surveys
    assert str(raised.value) in shown.stderr
    with pytest.raises(P2PFTError, match=expected):
        run_app(tmp_path / "run", dataset=dataset, topology="complete:2", iterations=1, bad_images=bad_images)
    assert not (tmp_path / "run" / "peers").exists()


def test_what_is_no_image_and_was_not_looked_at_is_refused_when_all_are(module, monkeypatch):
    monkeypatch.setattr("p2pft_flower.learning.data.survey.LOOKED_AT", 1)
    holdings = Holdings(LearningConfig(dataset=f"{module}:first", bad_images="skip"), 2)
    assert holdings.surveys[None].looked_at == 2
    with pytest.raises(NoImageError, match="test image 7"):
        _ = holdings.test_positions


@pytest.mark.parametrize("cache", [True, False])
def test_an_own_image_of_which_no_picture_can_be_made_is_named(cache, module, monkeypatch, tmp_path):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    problem = Workload(LearningConfig(dataset=f"{module}:nan", pixel_range="0:1", cache=cache), 2)
    message = r"nan', test image 5: not a readable image \(.*NaN.*set bad-images = skip"
    with pytest.raises(DataError, match=message):
        problem.score(problem.theta0)
