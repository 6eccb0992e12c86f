"""Tables of images as files: a CSV with a row an image, read and checked without opening an image.

The columns ``image`` and ``label``, or ``labels``, are needed. ``split`` says which rows are for the test;
all columns, also those that mean nothing here, can deal the images out to peers (``partition =
by:COLUMN``).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import DataError, did_you_mean, printable
from p2pft_flower.learning.data.label_arrays import SEPARATOR
from p2pft_flower.learning.data.names import in_order, is_missing, some_names

__all__ = ["SUFFIXES", "Table", "read_table", "require_table_file", "table_classes", "table_columns"]

SUFFIXES = (".csv", ".tsv")
"""Endings of names of files that are probably tables."""

FRAME = "frame"
"""The column with the number of the image's frame, from 1, if its file has several."""

IMAGE = "image"
"""The column with the image's file."""

LABELS = ("label", "target")
"""Columns with the image's class; if a table has both, the first counts."""

SEVERAL = "labels"
"""The column with the names of all labels of an image, if a table has none with its class."""

SPLITS = ("split", "fold")
"""Columns that say which rows are for the test; if a table has both, the first counts."""

TRAIN, TEST = ("train", "training"), ("test", "testing")
"""The words in a split's column, in capitals or not."""

_DELIMITERS = (",", ";", "\t")

_COLUMN = re.compile(r"[\w .()/-]{1,40}")
"""The name of a column, as messages tell it."""

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Table:
    """A table of images; the lists have an entry a row, in the file's order.

    Attributes
    ----------
    file : Path
        The table's file.
    lines : list of int
        The number of each row's line in the file, from 1.
    images : list of str
        Each row's image, as the file has it but for blanks around; it may be empty.
    labels : list of tuple of str
        Each row's class; if an image may have ``several`` labels, these, perhaps none.
    test : list of bool
        Whether the row is for the test.
    split : str
        The name of the column that says so; empty if there is none, and all rows are for training.
    columns : mapping of str to list of str
        All columns by their names, in lower case.
    several : bool
        Whether an image may have several labels, or none.
    """

    file: Path
    lines: Sequence[int]
    images: Sequence[str]
    labels: Sequence[tuple[str, ...]]
    test: Sequence[bool]
    split: str
    columns: Mapping[str, Sequence[str]]
    several: bool = False

    def __len__(self) -> int:
        return len(self.lines)

    def at(self, row: int) -> str:
        """Return the place of a row for messages: file and line."""
        return f"{self.file}, line {self.lines[row]}"

    def columns_at(self, rows: Sequence[int]) -> dict[str, npt.NDArray[np.object_]]:
        """Return the columns' cells in ``rows``, by the column's name."""
        return {
            name: np.array([cells[row] for row in rows], dtype=object) for name, cells in self.columns.items()
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the training rows, in natural order; also those of rows without an image."""
        return tuple(
            in_order(
                {name for row, test in zip(self.labels, self.test, strict=True) if not test for name in row}
            )
        )


def require_table_file(path: str) -> Path:
    """Return the file of ``table:PATH``, after a check that there is one.

    Raises
    ------
    DataError
        When there is no such file.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise DataError(f"dataset = 'table:{path}': that is a folder; give the path of the table itself")
    if not file.is_file():
        raise DataError(
            f"dataset = 'table:{path}': there is no such file; give an absolute path that the peers' machine "
            "has"
        )
    return file


def table_classes(path: str) -> tuple[str, ...]:
    """Return the names of the classes in a table.

    Raises
    ------
    DataError
        When the table cannot be read; see :func:`read_table`.
    """
    return read_table(path).classes


def read_table(path: str) -> Table:
    """Read a table; no image is looked at.

    The file is UTF-8, with a byte order mark or without, and its first line names the columns, in capitals or
    not. Commas, semicolons or tabs separate cells, whichever give the first line a column ``image``. Blanks
    around a cell do not count, and rows without any text are passed over.

    Raises
    ------
    DataError
        When the table is missing, is no such file, lacks a column, or has a row with another number of
        cells, no label where each image has one, or a word for a missing one, an empty name among several,
        or a split that is neither train nor test, or when only a column of another name says which rows are
        for the test; the message names file and line.
    """
    file = require_table_file(path)
    rows = _Rows(file, _text(file))
    label, split = rows.column((*LABELS, SEVERAL)), rows.column(SPLITS, needed=False)
    several = label == SEVERAL
    lines, cells = rows.read()
    columns = {name: [row[place] for row in cells] for place, name in enumerate(rows.header) if name}
    if not lines:
        raise DataError(f"{file}: the table has no row below its first line")
    if not several:
        _refuse_missing(file, label, lines, columns[label])
    test = [False] * len(lines)
    if not split and (meant := _split_by_another_name(columns, label)):
        raise DataError(
            f"{file}, line 1: no column {' or '.join(SPLITS)}, so all rows would be for training, but column "
            f"{printable(meant)!r} says train and test: rename it to {SPLITS[0]}, or remove it"
        )
    if split:
        test = [_is_test(file, line, split, word) for line, word in zip(lines, columns[split], strict=True)]
    labels = [
        _names(file, line, text) if several else (text,)
        for line, text in zip(lines, columns[label], strict=True)
    ]
    return Table(file, lines, columns[IMAGE], labels, test, split, columns, several)


def table_columns(path: str) -> dict[str, npt.NDArray[np.object_]]:
    """Return the columns of a table's training images, by name.

    Raises
    ------
    DataError
        When the table cannot be read; see :func:`read_table`.
    """
    found = read_table(path)
    held = [row for row in range(len(found)) if found.images[row] and not found.test[row]]
    return found.columns_at(held)


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: the table cannot be read ({error.strerror})") from error
    remedy = "save the table as CSV in UTF-8 (in Excel: CSV UTF-8)"
    if data.startswith(_UTF_16):
        raise DataError(f"{file}: the table is UTF-16; {remedy}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{file}, line {line}: not UTF-8 (byte {data[error.start]:#04x}); {remedy}"
        ) from error


class _Rows:
    """The cells of a table.

    Attributes
    ----------
    header : list of str
        Names of the columns, in lower case; empty for a column without a name.
    """

    def __init__(self, file: Path, text: str) -> None:
        self._file, self._text = file, text
        first = text.splitlines()[0] if text.strip() else ""
        headers = {d: self._names(first, d) for d in _DELIMITERS}
        # If none gives the column, the error shows the one with the most columns.
        most = sorted(_DELIMITERS, key=lambda d: len(headers[d]), reverse=True)
        self._delimiter = next((d for d in _DELIMITERS if IMAGE in headers[d]), most[0])
        self.header = headers[self._delimiter]
        named = [name for name in self.header if name]
        twice = [name for name in dict.fromkeys(named) if named.count(name) > 1]
        if twice:
            raise DataError(
                f"{file}, line 1: several columns are called {some_names(twice)}; rename all but one"
            )
        self.column((IMAGE,))

    def _names(self, line: str, delimiter: str) -> list[str]:
        try:
            return [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])]
        except csv.Error:  # reading the rows will report the error
            return []

    def column(self, names: Sequence[str], *, needed: bool = True) -> str:
        """Return the first of ``names`` that is a column; if there is none, empty unless it is needed.

        Raises
        ------
        DataError
            When the column is needed and missing.
        """
        found = next((name for name in names if name in self.header), "")
        if needed and not found:
            # The setting may name any file of this machine: only what can be a column is told of it.
            there = some_names([name for name in self.header if _COLUMN.fullmatch(name)])
            there = there or "none, if commas, semicolons or tabs separate them"
            raise DataError(
                f"{self._file}, line 1: no column {' or '.join(names)}; the first line names the columns: "
                f"it has {there}{did_you_mean(names[0], filter(_COLUMN.fullmatch, self.header))}"
            )
        return found

    def read(self) -> tuple[list[int], list[list[str]]]:
        """Return the numbers of the lines, and the cells of the rows, without blank rows.

        Raises
        ------
        DataError
            When a row has another number of cells than the first line, or quotes do not match.
        """
        lines, cells = [], []
        reader = csv.reader(io.StringIO(self._text, newline=""), delimiter=self._delimiter, strict=True)
        try:
            next(reader)
            for row in reader:
                found = [cell.strip() for cell in row]
                if not any(found):
                    continue
                if len(found) != len(self.header):
                    raise DataError(
                        f"{self._file}, line {reader.line_num}: {len(found)} cells for {len(self.header)} "
                        "columns; a cell with the separator in it needs quotes"
                    )
                lines.append(reader.line_num)
                cells.append(found)
        except csv.Error as error:
            raise DataError(f"{self._file}, line {reader.line_num}: no row of a CSV ({error})") from error
        return lines, cells


def _refuse_missing(file: Path, label: str, lines: Sequence[int], cells: Sequence[str]) -> None:
    """Refuse rows without a class, also those in which a word stands for a missing value."""
    empty = [(line, cell) for line, cell in zip(lines, cells, strict=True) if is_missing(cell)]
    if not empty:
        return
    line, word = empty[0]
    what = f"{label} = {printable(word)!r} stands for a missing value" if word else f"no {label}"
    called = ", or give a class that is called so another name" if word else ""
    raise DataError(
        f"{file}, line {line}: {what}, as in {len(empty)} rows in all; give these images a class, or remove "
        f"the rows{called}"
    )


def _names(file: Path, line: int, cell: str) -> tuple[str, ...]:
    """Return the names in a cell of several labels, each once."""
    names = [name.strip() for name in cell.split(SEPARATOR)] if cell else []
    if lacking := [name for name in names if name and is_missing(name)]:
        raise DataError(
            f"{file}, line {line}: {SEVERAL} = {printable(cell)!r}: {printable(lacking[0])!r} stands for a "
            "missing value: leave the cell empty if the image has no label, remove the row if its labels are "
            "not known, or give a label that is called so another name"
        )
    if not all(names):
        raise DataError(
            f"{file}, line {line}: {SEVERAL} = {printable(cell)!r} has an empty name; give names with "
            f"{SEPARATOR} between them, or leave the cell empty if the image has no label"
        )
    return tuple(dict.fromkeys(names))


def _split_by_another_name(columns: Mapping[str, Sequence[str]], label: str) -> str:
    """Return the first column whose cells are a split's words, some of them test; empty if there is none."""
    for name, cells in columns.items():
        words = {cell.lower() for cell in cells}
        rest = words - {*TRAIN, *TEST, ""}
        if name not in (IMAGE, label) and words & {*TEST} and all(map(_is_held_out, rest)):
            return name
    return ""


def _is_held_out(word: str) -> bool:
    return word.lower().startswith("val") or word.lower() == "dev"


def _is_test(file: Path, line: int, column: str, word: str) -> bool:
    if word.lower() in TEST:
        return True
    if word.lower() in TRAIN:
        return False
    remedy = (
        "; rename it to one of these, or remove the rows: validation = 0.1 holds out training images itself"
        if _is_held_out(word)
        else ""
    )
    raise DataError(
        f"{file}, line {line}: {column} = {printable(word)!r}; it must be train (or training) or test (or "
        f"testing){remedy}"
    )
