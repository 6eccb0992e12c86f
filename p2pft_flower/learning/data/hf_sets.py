"""Datasets of Hugging Face: tables with a column of images and one of classes, in splits.

A table comes from a folder: one that ``save_to_disk`` wrote, one of files that ``datasets`` knows (images in
folders, parquet, webdataset, …), or a snapshot of a dataset of the hub. flwr-datasets reads them by the same
library; it is not between, because it takes names of the hub only and reports its use.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.decoding import decode_stream, look_at_stream
from p2pft_flower.learning.data.hf_faults import quiet, where
from p2pft_flower.learning.data.hf_names import HfName, cache_dir, cached, read_hf_name, require_hf
from p2pft_flower.learning.data.names import differing_unseen, in_order, look_alikes, some_names
from p2pft_flower.learning.data.splits import Dataset, Split

__all__ = ["hf_dataset"]

_Found = TypeVar("_Found")

log = logging.getLogger(__name__)


def hf_dataset(dataset: str, *, download: bool = False) -> Dataset:
    """Return a dataset of Hugging Face.

    Parameters
    ----------
    dataset : str
        ``"hf:NAME"``, ``"hf:OWNER/NAME"`` or ``"hf:/folder"``, with ``?image=COLUMN&label=COLUMN`` and the
        like behind it.
    download : bool
        Whether a dataset of the hub may be downloaded.

    Raises
    ------
    ConfigError
        When the text cannot be read, or the library ``datasets`` is not installed.
    DataError
        When the dataset is not here or cannot be read, a split is missing, or columns are missing or
        several; the message names what there is.
    """
    require_hf(dataset, download=download)
    name = read_hf_name(dataset)
    tables = _tables(dataset, name, _folder(dataset, name))
    missing = [part for part in (name.train, name.test) if part not in tables]
    if missing:
        others = (
            f", but {some_names([*tables])}: name others, as {_with(dataset, 'test=validation')}, or"
            if any(tables)
            else ", as it is one table without splits:"
        )
        raise DataError(
            f"dataset = {dataset!r}: it has no split {' or '.join(missing)}{others} make a folder with both: "
            "train_test_split(0.2).save_to_disk(FOLDER)"
        )
    train, test = tables[name.train], tables[name.test]
    image, label = _columns(dataset, name, train.features)
    if absent := [column for column in (image, label) if column not in test.features]:
        raise DataError(
            f"dataset = {dataset!r}: its split {name.test} has no column {', '.join(absent)}, as "
            f"{name.train} has; its columns are {some_names([*test.features])}"
        )
    classes, labels = _labels(dataset, label, {name.train: train, name.test: test})
    for alike in look_alikes(classes):
        log.warning("dataset = %r: the names of the classes %s", dataset, alike)

    def split(part: str) -> Split:
        return _split(tables[part], image, labels[part], f"dataset = {dataset!r}, {part}")

    return Dataset(dataset, classes, split(name.train), split(name.test))


def _folder(dataset: str, name: HfName) -> Path:
    """Return the folder that holds the dataset, after a download if there is none."""
    if name.folder is not None:
        return name.folder
    if (held := cached(name.place)) is not None:
        return held
    from huggingface_hub import snapshot_download

    target = cache_dir("hub")
    log.info("%s: downloading the hub's dataset %s", dataset, name.place)
    try:
        return Path(snapshot_download(name.place, repo_type="dataset", cache_dir=target))
    except Exception as error:  # of network, disk and hub
        raise DataError(
            f"dataset = {dataset!r}: the hub's dataset {name.place} cannot be downloaded ({_line(error)}); "
            "without a network (HF_HUB_OFFLINE) give a folder of it: dataset = hf:/folder"
        ) from error


def _tables(dataset: str, name: HfName, folder: Path) -> dict[str, Any]:
    """Return the tables of a folder by split."""
    import datasets

    datasets.disable_progress_bars()
    with quiet() as texts:
        try:
            if (folder / "dataset_dict.json").is_file():
                return dict(datasets.load_from_disk(str(folder)))
            if (folder / "state.json").is_file():  # one table alone
                return {"": datasets.load_from_disk(str(folder))}
            made = cache_dir("datasets")
            return dict(
                datasets.load_dataset(
                    str(folder), name.subset or None, cache_dir=None if made is None else str(made)
                )
            )
        except Exception as error:  # each format has its own errors
            what = f"dataset = {dataset!r}: {folder} cannot be read"
            if "Config name" in str(error):
                subsets = some_names(datasets.get_dataset_config_names(str(folder)))
                raise DataError(f"{what}: it has the subsets {subsets}; name one with ?subset=") from None
            raise DataError(
                f"{what} ({where(error, texts, folder)}); the library's own words are left out, as they may "
                "quote a cell: load_dataset(FOLDER) in Python has them"
            ) from None


def _columns(dataset: str, name: HfName, features: Any) -> tuple[str, str]:
    """Return the columns of the images and of their classes."""
    import datasets

    def one(key: str, given: str, found: list[str], what: str) -> str:
        if given:
            if given not in features:
                raise DataError(
                    f"dataset = {dataset!r}: it has no column {given!r}; its columns are "
                    f"{some_names([*features])}"
                )
            return given
        if len(found) != 1:
            which = some_names(found) if found else f"none; its columns are {some_names([*features])}"
            raise DataError(
                f"dataset = {dataset!r}: which column has the {what}? By their types: {which}. Name it: "
                f"{_with(dataset, key)}=COLUMN"
            )
        return found[0]

    def of(*kinds: type) -> list[str]:
        return [column for column, feature in features.items() if isinstance(feature, kinds)]

    image = one("image", name.image, of(datasets.Image), "images")
    if not isinstance(features[image], datasets.Image):
        raise DataError(f"dataset = {dataset!r}: the column {image!r} holds no images: {features[image]}")
    lists = [c for c in features if _inside(features[c]) is not None]
    classes = [c for c in features if isinstance(_inside(features[c]) or features[c], datasets.ClassLabel)]
    classes = classes or [c for c in ("label", "labels") if c in (*of(datasets.Value), *lists)]
    return image, one("label", name.label, classes, "classes")


def _inside(feature: Any) -> Any:
    """Return the feature of a list's entries; None: the feature is no list."""
    import datasets

    return feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else None


def _labels(
    dataset: str, column: str, tables: dict[str, Any]
) -> tuple[tuple[str, ...], dict[str, npt.NDArray[np.int64]]]:
    """Return the classes' names, and the labels of each split: (N,), or (N, C) of a column of lists."""
    read: dict[str, list[Any]] = {
        part: table.with_format(None).select_columns([column])[:][column] for part, table in tables.items()
    }
    kinds = {part: table.features[column] for part, table in tables.items()}
    several = [_inside(kind) is not None for kind in kinds.values()]
    if several[0] is not several[1]:
        raise DataError(
            f"dataset = {dataset!r}: the column {column!r} has lists in only one of the splits "
            f"{some_names([*read])}: give both the same kind"
        )
    if not several[0]:
        return _numbers(dataset, column, kinds, read)
    kinds = {part: _inside(kind) for part, kind in kinds.items()}
    for part, values in read.items():
        if (none := next((row for row, value in enumerate(values) if value is None), None)) is not None:
            raise DataError(
                f"dataset = {dataset!r}: row {none} of its split {part} has no {column}; give an empty "
                "list if the image has no label"
            )
    # As one label each, row after row, so that the same rules hold for them.
    flat = {part: [label for row in values for label in row] for part, values in read.items()}
    rows = {part: np.repeat(np.arange(len(v)), [len(row) for row in v]) for part, v in read.items()}
    classes, numbers = _numbers(dataset, column, kinds, flat, rows)
    found = {part: np.zeros((len(values), len(classes)), dtype=np.int64) for part, values in read.items()}
    for part, labels in numbers.items():
        if len(odd := np.flatnonzero((labels < 0) | (labels >= len(classes)))):  # -1: a ClassLabel's "none"
            raise DataError(
                f"dataset = {dataset!r}: row {rows[part][odd[0]]} of its split {part} has the label "
                f"{labels[odd[0]]} in {column}, beyond its {len(classes)} classes"
            )
        found[part][rows[part], labels] = 1
    return classes, found


def _numbers(
    dataset: str,
    column: str,
    kinds: dict[str, Any],
    found: dict[str, list[Any]],
    rows: dict[str, npt.NDArray[np.int64]] | None = None,
) -> tuple[tuple[str, ...], dict[str, npt.NDArray[np.int64]]]:
    """Return the classes' names, and the label of each value; values of lists stand in ``rows``."""
    import datasets

    for part, values in found.items():
        empty = [at for at, value in enumerate(values) if value is None or not str(value).strip()]
        if empty:
            row = empty[0] if rows is None else rows[part][empty[0]]
            remedy = "give each image a class" if rows is None else "remove what is empty from the list"
            raise DataError(f"dataset = {dataset!r}: row {row} of its split {part} has no {column}; {remedy}")
    (train, held), (test, tested) = found.items()
    feature = kinds[train]
    if isinstance(feature, datasets.ClassLabel):
        names, of_test = tuple(feature.names), kinds[test]
        if isinstance(of_test, datasets.ClassLabel) and tuple(of_test.names) != names:
            raise DataError(
                f"dataset = {dataset!r}: the classes of its split {test} are {some_names(of_test.names)}, "
                f"but those of {train} {some_names(names)}"
            )
        if not isinstance(of_test, datasets.ClassLabel):
            raise DataError(f"dataset = {dataset!r}: {column} of its split {test} has no classes: {of_test}")
        return names, {part: np.array(values, dtype=np.int64) for part, values in found.items()}
    if not isinstance(feature, datasets.Value) or isinstance(next(iter(held), ""), float | bytes):
        raise DataError(f"dataset = {dataset!r}: the column {column!r} holds no classes: {feature}")
    names = tuple(in_order({str(value).strip() for value in held}))
    if unknown := in_order({str(value).strip() for value in tested} - set(names)):
        raise DataError(
            f"dataset = {dataset!r}: no image of its split {train} has the {column} {some_names(unknown)}, "
            f"as images of {test} have{differing_unseen(unknown[0], names)}"
        )
    number = {value: label for label, value in enumerate(names)}
    return names, {
        part: np.array([number[str(value).strip()] for value in values], dtype=np.int64)
        for part, values in found.items()
    }


def _split(
    table: Any, column: str, labels: npt.NDArray[np.int64], called: str, most: int | None = None
) -> Split:
    import datasets

    images = table.with_format(None).select_columns([column])
    images = images.cast_column(column, datasets.Image(decode=False))  # the file's bytes, not Pillow's image

    def content(index: int) -> bytes:
        held = images[index][column]
        if not held:
            raise ValueError("the row has no image")
        if held["bytes"] is not None:
            return bytes(held["bytes"])
        return Path(held["path"]).read_bytes()

    def by(read: Callable[[io.BytesIO], _Found]) -> Callable[[int], _Found]:
        return lambda index: read(io.BytesIO(content(index)))

    return Split(
        labels,
        by(partial(decode_stream, most=most)),
        content,
        look=by(partial(look_at_stream, most=most)),
        called=called,
        columns=_texts(table),
        limited=lambda limit: _split(table, column, labels, called, limit),
    )


def _texts(table: Any) -> dict[str, npt.NDArray[np.object_]]:
    """Return the columns of texts, whole numbers, truth values and classes, as texts; empty: no value.

    As in tables, blanks around a text do not count. Whole numbers may be stored as floats,
    as pandas does if one is missing.
    """
    import datasets

    def texts(column: str, feature: Any) -> list[str]:
        values = table.with_format(None).select_columns([column])[:][column]
        if isinstance(feature, datasets.ClassLabel):
            return ["" if value is None or value < 0 else feature.names[value].strip() for value in values]
        if feature.dtype.startswith("float"):
            told = [None if value is None or math.isnan(value) else value for value in values]
            if not all(value is None or value.is_integer() for value in told):
                return []
            values = [None if value is None else int(value) for value in told]
        return ["" if value is None else str(value).strip() for value in values]

    kinds = ("string", "large_string", "int", "uint", "bool", "float")
    found = {
        column: np.array(texts(column, feature), dtype=object)
        for column, feature in table.features.items()
        if isinstance(feature, datasets.ClassLabel)
        or (isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds))
    }
    return {column: values for column, values in found.items() if len(values)}


def _with(dataset: str, option: str) -> str:
    """Return ``dataset`` with an option more behind the question mark."""
    return f"{dataset}{'&' if '?' in dataset else '?'}{option}"


def _line(error: Exception) -> str:
    """Return the first line of an error's words that has any, else its kind."""
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
