"""Datasets of features: arrays that a model made of images, slides or scans elsewhere, with labels.

A file is a ``.safetensors`` or an ``.npz`` with the arrays ``train.features`` (N, D) and ``train.labels``
(N,), and the same two of ``test``. Labels may also be (N, C) of 0 and 1: whether a sample has each of
several labels. Names of the classes are a JSON list in the metadata's ``classes`` of a
safetensors file, and an array of texts ``classes`` in an npz.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.array_files import SUFFIXES, read_arrays
from p2pft_flower.learning.data.label_arrays import has_several, held_classes, warn_of_one_each
from p2pft_flower.learning.data.names import look_alikes, some_names
from p2pft_flower.learning.data.splits import Dataset, Split

log = logging.getLogger(__name__)

__all__ = ["feature_classes", "features", "require_feature_file"]

_WHAT = "file of features"

_ARRAYS = tuple(f"{part}.{what}" for part in ("train", "test") for what in ("features", "labels"))


def require_feature_file(path: str) -> Path:
    """Return the file of ``features:PATH``, after a check that there is one of a known kind.

    Raises
    ------
    DataError
        When there is no such file, or its ending is not one of :data:`SUFFIXES`.
    """
    file = Path(path).expanduser()
    if file.suffix not in SUFFIXES:
        raise DataError(
            f"dataset = 'features:{path}': a file of features ends in {' or '.join(SUFFIXES)}; one folder of "
            "images a class is folder:/path"
        )
    if not file.is_file():
        raise DataError(
            f"dataset = 'features:{path}': there is no such file; give an absolute path that the peers' "
            "machine has"
        )
    return file


def feature_classes(path: str) -> tuple[str, ...] | None:
    """Return the names of the classes in a file of features; None if it names none.

    Raises
    ------
    DataError
        When the file is missing or cannot be read.
    """
    file = require_feature_file(path)
    return read_arrays(file, (), "classes", _WHAT).names


def features(path: str, *, site: bool = False) -> Dataset:
    """Return the dataset in the file ``path``; its "images" are rows of D numbers, float32.

    Parameters
    ----------
    path : str
        The file.
    site : bool
        Whether the file is one peer's own: then it must name the classes, may lack training samples of
        some, and may have no test samples.

    Raises
    ------
    DataError
        When the file cannot be read, an array is missing or of another shape or type, a number is not finite
        (the message names the row), a label has no class, or, unless ``site``, a class has no training
        sample.
    """
    file = require_feature_file(path)
    found = read_arrays(file, _ARRAYS, "classes", _WHAT)
    arrays, classes = found.arrays, found.names
    if site and not any(name.startswith("test.") for name in arrays):
        width = np.shape(arrays.get("train.features", np.empty((0, 0))))[-1]
        none = np.empty((0, *np.shape(arrays.get("train.labels", ()))[1:]), np.int64)
        arrays |= {"test.features": np.empty((0, width), np.float32), "test.labels": none}
    if missing := [name for name in _ARRAYS if name not in arrays]:
        raise DataError(f"{file}: it has no array {', '.join(missing)}; it has {some_names([*arrays])}")
    if classes is None:
        if site:
            raise DataError(
                f"{file}: it does not name the classes, so nobody knows that label 0 means the same at all "
                "peers: give classes, the same list in every peer's file"
            )
        classes = _numbered(file, arrays["train.labels"])
    train, test = (_split(file, arrays, part, classes) for part in ("train", "test"))
    widths = [split.vectors.shape[1] for split in (train, test) if split.vectors is not None]
    if widths[0] != widths[1]:
        raise DataError(f"{file}: train.features have {widths[0]} numbers each, test.features {widths[1]}")
    for part, split in (("train", train), ("test", test)):
        if not len(split) and (part == "train" or not site):
            raise DataError(f"{file}: {part}.features has no row")
    if has_several(train.labels) != has_several(test.labels):
        raise DataError(
            f"{file}: train.labels has the shape {train.labels.shape}, test.labels {test.labels.shape}"
        )
    held = set(held_classes(train.labels).tolist())
    absent = [name for label, name in enumerate(classes) if label not in held]
    if absent and not site:
        raise DataError(
            f"{file}: no training sample of the classes {some_names(absent)}; add some, or leave the classes "
            "out"
        )
    for alike in look_alikes(classes):
        log.warning("%s: the names of the classes %s", file, alike)
    warn_of_one_each(f"features:{path}", train.labels, test.labels)
    return Dataset(f"features:{path}", classes, train, test)


def _numbered(file: Path, labels: npt.NDArray[Any]) -> tuple[str, ...]:
    """Return the labels as names; each must have a training sample, so there are no more than samples."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        raise DataError(
            f"{file}: train.labels is {labels.shape}: a class a sample is ({len(labels)},), without the "
            "second axis; one label that samples have or lack needs its name in classes"
        )
    if labels.ndim == 2:
        return tuple(str(label) for label in range(labels.shape[1]))
    highest = int(labels.max(initial=0)) if labels.dtype.kind in "iu" and labels.size else 0
    if highest >= max(1, labels.size):
        raise DataError(
            f"{file}: train.labels has {highest}, but the labels of C classes are 0 to C - 1, and there are "
            f"{labels.size} training samples"
        )
    return tuple(str(label) for label in range(highest + 1))


def _split(file: Path, arrays: Mapping[str, npt.NDArray[Any]], part: str, classes: tuple[str, ...]) -> Split:
    vectors, labels = arrays[f"{part}.features"], arrays[f"{part}.labels"]
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or vectors.shape[1] == 0:
        raise DataError(
            f"{file}: {part}.features is {vectors.shape} of {vectors.dtype}; it must be (N, D) of float16, "
            "float32 or float64"
        )
    fits = labels.shape in ((len(vectors),), (len(vectors), len(classes)))
    if not fits or labels.dtype.kind not in "iu":
        raise DataError(
            f"{file}: {part}.labels is {labels.shape} of {labels.dtype}; it must be ({len(vectors)},) whole "
            f"numbers, a label for each row of {part}.features, or ({len(vectors)}, {len(classes)}) of 0 and "
            "1, whether a row has each of several labels"
        )
    with np.errstate(over="ignore"):  # such numbers are refused below
        numbers = vectors.astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if len(broken):
        raise DataError(
            f"{file}: row {broken[0]} of {part}.features has NaN or an infinite number (in float32), as have "
            f"{len(broken)} rows in all"
        )
    if has_several(labels):
        wrong = np.flatnonzero(((labels != 0) & (labels != 1)).any(axis=1))
        if len(wrong):
            raise DataError(f"{file}: row {wrong[0]} of {part}.labels has others than 0 and 1")
        return Split.of_vectors(numbers, labels.astype(np.int64))
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        raise DataError(
            f"{file}: row {outside[0]} of {part}.labels has {labels[outside[0]]}; the labels of "
            f"{len(classes)} classes are 0 to {len(classes) - 1}"
        )
    return Split.of_vectors(numbers, labels.astype(np.int64))
