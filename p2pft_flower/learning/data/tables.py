"""Datasets in tables: a CSV with a row an image, its file and its class, as clinical data comes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import DataError, printable
from p2pft_flower.learning.data.frames import frames_of, numbered
from p2pft_flower.learning.data.image_folders import check_same_files
from p2pft_flower.learning.data.images import picture_suffixes
from p2pft_flower.learning.data.label_arrays import SEPARATOR
from p2pft_flower.learning.data.names import differing_unseen, in_order, look_alikes, some_names
from p2pft_flower.learning.data.splits import Dataset, Split
from p2pft_flower.learning.data.table_files import FRAME, SEVERAL, Table, read_table

__all__ = ["table"]

log = logging.getLogger(__name__)


def table(
    path: str,
    data_dir: str = "",
    *,
    site: bool = False,
    missing_ok: bool = False,
    untested: bool = False,
    known: Sequence[str] | None = None,
) -> Dataset:
    """Return the dataset of a table; :func:`read_table` says what the file is like.

    An ``image`` is a file's path, from ``data_dir``, or absolute; it may lack its suffix if one picture only
    has that name. Images are in the order of the rows. The columns are those of the training split. Of a
    DICOM file of several frames each is an image, or the one that the row names in a column ``frame``.

    Parameters
    ----------
    path : str
        The table's file.
    data_dir : str
        The folder from which paths lead to images; by default the table's own.
    site : bool
        Whether the table is one peer's own: then a row with a label and no image names a class of which the
        peer holds no image, and there may be no test rows.
    missing_ok : bool
        Whether images may be missing; reading them reports them.
    untested : bool
        Whether no test rows are needed, as something else takes their place.
    known : sequence of str, optional
        The classes of a model that is scored: if given, the table may have test rows only, which then have
        classes of these, perhaps not all.

    Raises
    ------
    DataError
        When the table cannot be used, an image is missing or stands in two rows, there is no such frame, a
        class has no training image, or a test row has a class that no training row has; the message names
        file and line.
    """
    rows = read_table(path)
    tested_only = all(rows.test)
    if tested_only and known is None:
        raise DataError(
            f"{rows.file}: no training image, as all rows are for the test; such a table is for p2pft "
            "evaluate --dataset"
        )
    if not site and not untested and not any(rows.test):
        what = (
            f"{rows.split} = test in no row" if rows.split else "no column split, so no row is for the test"
        )
        held_out = ", or hold out training images by validation = 0.2" if known is None else ""
        raise DataError(f"{rows.file}: {what}; mark some rows test in a column split{held_out}")
    classes = tuple(known) if known is not None and tested_only else rows.classes
    for alike in look_alikes(classes):
        log.warning(
            "%s: the names of the classes %s, and each is a class of its own: write them alike if they mean "
            "one",
            rows.file,
            alike,
        )
    if rows.several and not tested_only and all(len(names) == 1 for names in rows.labels):
        log.warning(
            "%s: column %s has one name in each row, as if each image had one class: if so, call the column "
            "label; several names have %s between them",
            rows.file,
            SEVERAL,
            SEPARATOR,
        )
    if tested_only:
        _check_known(rows, classes)
    _check_labels(rows, classes, site=site and not tested_only)
    places = _files(
        rows, Path(data_dir).expanduser() if data_dir else rows.file.parent, missing_ok=missing_ok
    )

    there = [row for row in range(len(rows)) if rows.images[row]]
    owners, frames = _frames(rows, there, places)

    def split(*, test: bool) -> Split:
        images = [i for i, owner in enumerate(owners) if rows.test[there[owner]] is test]
        held = [there[owners[i]] for i in images]
        found = Split.of_files(
            [places[row] for row in held],
            _label_array(rows, held, classes),
            frames=None if frames is None else frames[images],
        )
        return replace(found, columns=rows.columns_at(held))

    train, tested = split(test=False), split(test=True)
    if not len(train) and not tested_only:
        raise DataError(f"{rows.file}: no training image")
    if not classes:
        raise DataError(f"{rows.file}: no training row has a label; there is nothing to learn")
    check_same_files(rows.file, classes, train, tested)
    return Dataset(f"table:{path}", classes, train, tested)


def _frames(
    rows: Table, there: Sequence[int], places: Sequence[Path]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Return for each image the position of its row in ``there``, and its frame, as :func:`numbered` does.

    Raises
    ------
    DataError
        When a row names a frame that its file has not, or two rows have one image; the message names the
        line.
    """
    counts = frames_of([places[row] for row in there])
    told = rows.columns.get(FRAME, [""] * len(rows))
    wanted = np.zeros(len(there), np.int64)
    first: dict[Path, dict[int, int]] = {}
    for place, row in enumerate(there):
        text, most = told[row], int(counts[place])
        if text and most > 1:
            if not (text.isdecimal() and 1 <= int(text) <= most):
                raise DataError(
                    f"{rows.at(row)}: {FRAME} = {printable(text)!r}, but {rows.images[row]} has the frames 1 "
                    f"to {most}: give one of these, or nothing, if each of them is an image"
                )
            wanted[place] = int(text)
        others = first.setdefault(places[row], {})
        again = [r for frame, r in others.items() if 0 in (frame, wanted[place]) or frame == wanted[place]]
        if again:
            raise DataError(
                f"{rows.at(row)}: {places[row]} stands in line {rows.lines[again[0]]} already, as "
                f"{printable(SEPARATOR.join(rows.labels[again[0]]))!r}; an image has one row: remove the "
                "other"
            )
        others[int(wanted[place])] = row
    owners, frames = numbered(counts)
    if frames is None:
        return owners, None
    kept = (wanted[owners] == 0) | (frames == wanted[owners])
    return owners[kept], frames[kept]


def _label_array(rows: Table, held: Sequence[int], classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the labels of the rows ``held``: (N,), or (N, C) of 0 and 1 if images may have several."""
    number = {name: label for label, name in enumerate(classes)}
    if not rows.several:
        return np.array([number[rows.labels[row][0]] for row in held], dtype=np.int64)
    found = np.zeros((len(held), len(classes)), dtype=np.int64)
    for place, row in enumerate(held):
        found[place, [number[name] for name in rows.labels[row]]] = 1
    return found


def _check_labels(rows: Table, classes: Sequence[str], *, site: bool) -> None:
    """Refuse test rows of other classes than ``classes``, and rows without an image.

    Of a site such rows may name classes of which it holds no image.

    Raises
    ------
    DataError
        When there is such a row; the message names file and line.
    """
    known = set(classes)
    held = {
        name
        for names, image, test in zip(rows.labels, rows.images, rows.test, strict=True)
        if image and not test
        for name in names
    }
    for row, names in enumerate(rows.labels):
        for label in names:
            if label not in known:
                raise DataError(
                    f"{rows.at(row)}: a test row of class {printable(label)!r}, which no training row "
                    f"has{differing_unseen(label, classes)}; the classes of these: {some_names(classes)}"
                )
        if not rows.images[row] and (not site or not names or held & set(names) or rows.test[row]):
            raise DataError(
                f"{rows.at(row)}: no image; only in a table of one peer (a path with {{peer}}) a training "
                "row without an image may name a class that the peer does not hold"
            )
    absent = [name for name in classes if name not in held]
    if absent and site:
        log.warning("%s: no image of the classes %s: this peer holds none", rows.file, some_names(absent))


def _check_known(rows: Table, classes: Sequence[str]) -> None:
    """Refuse rows of classes that a model was not trained on; the message has them all, and the first line.

    Raises
    ------
    DataError
        When there is such a row.
    """
    known = set(classes)
    others = [(row, name) for row, names in enumerate(rows.labels) for name in names if name not in known]
    if others:
        row, first = others[0]
        extra = some_names(in_order({name for _, name in others}))
        number = len({row for row, _ in others})
        raise DataError(
            f"{rows.at(row)}: a test row of class {printable(first)!r}, which the model was not trained on, "
            f"as {extra} in {number} rows{differing_unseen(first, classes)}; its classes: "
            f"{some_names(classes)}"
        )


def _files(rows: Table, root: Path, *, missing_ok: bool) -> list[Path]:
    """Return each row's image file, its folder's own path if the row has no image.

    Raises
    ------
    DataError
        When a file is missing and may not be, or a name without its suffix fits several; the message names
        the line.
    """
    folders: dict[Path, _Folder] = {}
    found: list[Path] = []
    lost: list[int] = []
    for row, name in enumerate(rows.images):
        file = root / name
        if not name:
            found.append(file)
            continue
        if (folder := folders.get(file.parent)) is None:
            folder = folders[file.parent] = _Folder(file.parent)
        there = folder.named(file.name)
        if len(there) > 1:
            raise DataError(
                f"{rows.at(row)}: image {printable(name)!r} may be any of {some_names(there)} in "
                f"{file.parent}: give its suffix"
            )
        if there:
            file = file.with_name(there[0])
        else:
            lost.append(row)
        found.append(file)
    if lost and not missing_ok:
        raise DataError(_missing(rows, root, found[lost[0]], lost))
    return found


def _missing(rows: Table, root: Path, file: Path, lost: Sequence[int]) -> str:
    """Return the error for rows whose images are missing, of which the first's is ``file``."""
    more = f", as for {len(lost)} of {len(rows)} rows" if len(lost) > 1 else ""
    slashes = " (paths have / here, not \\)" if "\\" in rows.images[lost[0]] else ""
    return (
        f"{rows.at(lost[0])}: there is no file {file}{slashes}{more}; paths lead from {root}: set data-dir "
        "to the images' folder, remove the rows, or set bad-images = skip"
    )


class _Folder:
    """The names of the files in one folder, listed once."""

    def __init__(self, folder: Path) -> None:
        try:
            with os.scandir(folder) as entries:
                self._names = {entry.name for entry in entries if entry.is_file()}
        except OSError:  # the images of a folder that cannot be read are missing
            self._names = set()
        self._bare: dict[str, list[str]] = {}
        for name in sorted(self._names):
            bare, suffix = os.path.splitext(name)  # noqa: PTH122 - of many names
            if suffix.lower() in picture_suffixes():
                self._bare.setdefault(bare, []).append(name)

    def named(self, name: str) -> list[str]:
        """Return the files that ``name`` can mean: the file itself, else pictures that add a suffix to it."""
        return [name] if name in self._names else self._bare.get(name, [])
