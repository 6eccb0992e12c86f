"""MedMNIST's files, of every size: ``pathmnist.npz``, ``pathmnist_64.npz``, …, read without its package.

A file has the arrays ``train_images`` (N, H, W) or (N, H, W, 3) and ``train_labels`` (N, 1), and the same two
of ``val`` and of ``test``. Labels of shape (N, C) are 0 and 1: whether an image has each of several labels.
 The peers train on ``train`` and are scored on ``test``; ``val`` is not used, as
published figures have it: it is neither trained on nor scored.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import ConfigError, DataError, did_you_mean
from p2pft_flower.learning.data.images import array_content
from p2pft_flower.learning.data.label_arrays import has_several
from p2pft_flower.learning.data.medmnist_names import NAMES
from p2pft_flower.learning.data.names import some_names
from p2pft_flower.learning.data.npz_members import Head, heads_in, member
from p2pft_flower.learning.data.splits import Dataset, Split
from p2pft_flower.learning.data.torchvision_folders import data_root

__all__ = [
    "MEDMNIST",
    "check_medmnist_name",
    "medmnist",
    "medmnist_classes",
    "medmnist_has_several",
    "require_medmnist",
]

MEDMNIST = "medmnist:"
"""The beginning of a ``dataset`` that is a file of MedMNIST; the file's name without .npz follows."""

_WHAT = "file of MedMNIST"

_PARTS = ("train", "test")

log = logging.getLogger(__name__)


def check_medmnist_name(dataset: str) -> None:
    """Refuse a ``dataset`` that begins with :data:`MEDMNIST` and names no file, such as one with a path.

    Raises
    ------
    ConfigError
        When no name of a file follows; the message says what to give.
    """
    name = dataset.removeprefix(MEDMNIST)
    if not re.fullmatch(r"\w+", name, re.ASCII):
        raise ConfigError(
            f"dataset = {dataset!r}: give medmnist:NAME with the name of MedMNIST's file without .npz, such "
            "as medmnist:pathmnist or medmnist:pathmnist_64, and data-dir = the folder that holds the file"
        )


def medmnist_has_several(file: Path) -> bool:
    """Return whether an image of a file of MedMNIST may have several labels; only heads are read."""
    return _labels_an_image(heads_in(file, _WHAT)["train_labels"].shape[1:]) > 1


def medmnist_classes(dataset: str) -> tuple[str, ...] | None:
    """Return the names that MedMNIST gives a dataset's classes; None if it gives none."""
    return NAMES.get(re.sub(r"_\d+$", "", dataset.removeprefix(MEDMNIST)))


def require_medmnist(dataset: str, data_dir: str) -> Path:
    """Return the file of a dataset of MedMNIST, after a check of its arrays' shapes and types by their heads.

    Parameters
    ----------
    dataset : str
        ``"medmnist:NAME"``.
    data_dir : str
        The run-config's ``data-dir``; empty: ``$P2PFT_HOME/data``.

    Raises
    ------
    DataError
        When there is no such file or it cannot be read, an array is missing or of another shape or type, or
        the images are volumes; the message names the file and the array.
    """
    name, root = dataset.removeprefix(MEDMNIST), data_root(data_dir)
    file = root / f"{name}.npz"
    if not file.is_file():
        there = sorted(other.stem for other in root.glob("*mnist*.npz"))
        held = f"; the folder holds {some_names(there)}" if there else ""
        raise DataError(
            f"dataset = {dataset!r}: there is no file {file}{held}; give data-dir = the folder that holds "
            f"{name}.npz, which MedMNIST publishes; it is not downloaded{did_you_mean(name, there)}"
        )
    heads = heads_in(file, _WHAT)
    for part in _PARTS:
        wanted = [f"{part}_{what}" for what in ("images", "labels")]
        if missing := [array for array in wanted if array not in heads]:
            raise DataError(f"{file}: it has no array {', '.join(missing)}; it has {some_names([*heads])}")
        _check(file, part, *(heads[array] for array in wanted))
    for what in ("images", "labels"):
        train, test = (heads[f"{part}_{what}"].shape[1:] for part in _PARTS)
        if train != test and (what == "images" or _labels_an_image(train) != _labels_an_image(test)):
            raise DataError(f"{file}: train_{what} are {train} each, but test_{what} {test}")
    return file


def _labels_an_image(shape: tuple[int, ...]) -> int:
    """Return C of labels of several an image by the ``shape`` of one image's; 1: each image has one class."""
    return shape[0] if shape else 1


def _check(file: Path, part: str, images: Head, labels: Head) -> None:
    """Refuse two arrays of a split by their heads."""
    shape = images.shape
    if len(shape) == 4 and shape[3] not in (1, 3):
        raise DataError(
            f"{file}: {part}_images is {shape}: volumes of {shape[1]} slices each, and a model here sees "
            "flat images. A label says what the whole volume shows, so none of its slices is chosen for you: "
            f"write those that you want into a file of your own, such as {part}_images[:, {shape[1] // 2}], "
            "the middle ones (docs/images.md, MedMNIST's files, has it in whole), or choose a file of "
            "MedMNIST2D"
        )
    if images.dtype != np.uint8 or len(shape) not in (3, 4) or 0 in shape:
        raise DataError(
            f"{file}: {part}_images is {shape} of {images.dtype}; it must be (N, H, W) or (N, H, W, 3) of "
            "uint8"
        )
    fits = len(labels.shape) in (1, 2) and labels.shape[0] == shape[0] and 0 not in labels.shape[1:]
    if not fits or labels.dtype.kind not in "iu":
        raise DataError(
            f"{file}: {part}_labels is {labels.shape} of {labels.dtype}; it must be ({shape[0]}, 1) whole "
            f"numbers, a label for each of {part}_images, or ({shape[0]}, C) of 0 and 1, whether it has each "
            "of C labels"
        )


def medmnist(dataset: str, data_dir: str) -> Dataset:
    """Return the dataset of a file of MedMNIST; the parameters are those of :func:`require_medmnist`.

    The images are read once a process, or stay in the file if it is not compressed; all peers share them.

    Raises
    ------
    DataError
        As :func:`require_medmnist` does; also when an array is damaged.
    """
    file = require_medmnist(dataset, data_dir)
    labels = {part: _labels(file, part) for part in _PARTS}
    held = heads_in(file, _WHAT).get("val_labels")
    if held is not None and held.shape:
        log.info("%s: its %d validation images (val) are neither trained on nor scored", file, held.shape[0])
    names = medmnist_classes(dataset) or _numbered(file, labels["train"])
    train, test = (
        _split(member(file, f"{part}_images", _WHAT), labels[part], f"{file}, {part}") for part in _PARTS
    )
    return Dataset(dataset, names, train, test)


def _labels(file: Path, part: str) -> npt.NDArray[np.int64]:
    """Return the labels of a split: (N,), or (N, C) if an image may have several."""
    found = member(file, f"{part}_labels", _WHAT).astype(np.int64)
    return found if _labels_an_image(found.shape[1:]) > 1 else found.reshape(-1)


def _numbered(file: Path, labels: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """Return the labels as names; each must have a training image, so there are no more than images."""
    if has_several(labels):
        return tuple(str(label) for label in range(labels.shape[1]))
    highest = int(labels.max(initial=0))
    if highest >= max(1, len(labels)):
        raise DataError(
            f"{file}: train_labels has {highest}, but the labels of C classes are 0 to C - 1, and there are "
            f"{len(labels)} training images"
        )
    return tuple(str(label) for label in range(highest + 1))


def _split(images: npt.NDArray[Any], labels: npt.NDArray[np.int64], called: str) -> Split:
    return Split(
        labels,
        lambda index: np.asarray(images[index]),
        lambda index: array_content(images[index]),
        called=called,
    )
