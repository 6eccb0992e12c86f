"""The partition ``by:COLUMN``: each peer holds the images that have its value in a column of the source."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import ConfigError, DataError, did_you_mean
from p2pft_flower.learning.data.names import in_order, look_alikes, some_names

__all__ = ["BY", "DEALING", "Columns", "check_by", "deal_by", "require_named_order", "resolve_by"]

BY = "by:"
"""The beginning of a partition by a column; its name follows, and perhaps ``=`` and its values."""

DEALING = ("peer", "site")
"""Columns that say whose an image is: ``auto`` means the first of these that the source has."""

PEER = "peer"
"""The column whose values, if they are numbers, are the peers' own numbers."""

log = logging.getLogger(__name__)

Columns = Mapping[str, npt.NDArray[np.object_]]
"""The values of each training image, by the column's name."""


def check_by(spec: str, n: int) -> None:
    """Refuse a partition by a column that names no column, or another number of values than ``n`` peers.

    Raises
    ------
    ConfigError
        When the partition cannot be used; the message gives the form.
    """
    column, values = _parts(spec)
    if not column:
        raise ConfigError(
            f"partition = {spec!r}: name a column, as by:center, or also its values in the peers' order, as "
            "by:center=north,south"
        )
    if not values:
        return
    twice = [value for value, times in Counter(values).items() if times > 1]
    if len(values) != n or twice:
        told = f"{twice[0]!r} is given twice" if twice else f"{len(values)} values for {n} peers"
        raise ConfigError(f"partition = {spec!r}: {told}; give one value for each peer, in the peers' order")


def resolve_by(spec: str, n: int, columns: Columns) -> str:
    """Return ``spec`` with the column's values in the peers' order: ``by:COLUMN=VALUE,VALUE,…``.

    Without values in ``spec``, these are in natural order: 0, 1, …, 10, or the names by the alphabet.

    Parameters
    ----------
    spec : str
        The partition.
    n : int
        Number of peers.
    columns : mapping of str to array of str
        The columns of the source.

    Raises
    ------
    ConfigError
        When the source has no such column.
    DataError
        When the column has another number of values than there are peers, others than ``spec`` names, or
        none for some images; the message has the number of images of each value.
    """
    check_by(spec, n)
    given, wanted = _parts(spec)
    name = next((column for column in columns if column.lower() == given.lower()), "")
    if not name:
        there = f"it has {some_names([*columns])}" if columns else "it has none: a table has (table:/path)"
        raise ConfigError(
            f"partition = {spec!r}: the dataset has no column {given!r}; {there}"
            f"{did_you_mean(given, columns)}"
        )
    counts = Counter(str(value) for value in columns[name])
    told = some_names([f"{value or '(empty)'} ({counts[value]} images)" for value in in_order(counts)])
    if counts[""]:
        raise DataError(f"partition = {spec!r}: the column has no value for some training images: {told}")
    alike = look_alikes(counts)
    if len(counts) != n:
        unseen = f"; {'; '.join(alike)}" if alike else ""
        raise DataError(
            f"partition = {spec!r}: the column has {len(counts)} values for {n} peers: {told}{unseen}; give "
            f"topology = a graph of {len(counts)} peers, or a column with {n} values"
        )
    for names in alike:
        log.warning("partition = %s: of the column's values, %s", spec, names)
    values = wanted or tuple(in_order(counts))
    if set(values) != set(counts):
        raise DataError(f"partition = {spec!r}: the column has other values: {told}")
    if name == PEER and not wanted and all(value.isdecimal() for value in values):
        if sorted(map(int, values)) != list(range(n)):
            raise DataError(
                f"partition = {spec!r}: the peers are 0 to {n - 1}, but the column has {told}; number them "
                "from 0, or give the values in the peers' order, as by:peer=1,2"
            )
        values = tuple(sorted(values, key=int))
    return f"{BY}{name}={_joined(values)}"


def require_named_order(spec: str, resolved: str, names: Sequence[str]) -> None:
    """Refuse a partition by a column whose values are the peers' names, but belong to other peers by order.

    Parameters
    ----------
    spec, resolved : str
        The run-config's partition, and that with the values in the peers' order. Nothing is checked if they
        are no partition by a column, or ``spec`` gives the values.
    names : sequence of str
        The peers' names, of the graph or of the sites.

    Raises
    ------
    ConfigError
        When a value stands at another peer than the one of this name; the message has the right one.
    """
    column, values = _parts(resolved)
    if not resolved.startswith(BY) or _parts(spec)[1] or set(values) != set(names):
        return
    if tuple(names) != values:
        told = ", ".join(f"peer {i} {name}" for i, name in enumerate(names))
        raise ConfigError(
            f"partition = {spec!r}: the values of column {column!r} are the peers' names ({told}), but their "
            f"natural order is another; give partition = {BY}{column}={_joined(names)}"
        )


def deal_by(spec: str, columns: Columns) -> list[npt.NDArray[np.int64]]:
    """Return each peer's positions among the images of ``columns``; ``spec`` is resolved."""
    name, values = _parts(spec)
    held = np.array([str(value) for value in columns[name]], dtype=object)
    return [np.flatnonzero(held == value) for value in values]


def _parts(spec: str) -> tuple[str, tuple[str, ...]]:
    name, equals, values = spec.removeprefix(BY).partition("=")
    try:
        listed = next(csv.reader([values], skipinitialspace=True), []) if equals else []
    except csv.Error as error:
        raise ConfigError(
            f"partition = {spec!r}: the values cannot be read ({error}); a value with a comma or a line "
            "break stands in quotes"
        ) from error
    return name.strip(), tuple(value.strip() for value in listed)


def _joined(values: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(values)  # quotes what has a line break
    return line.getvalue().removesuffix("\r\n")
