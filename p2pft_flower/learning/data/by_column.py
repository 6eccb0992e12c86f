"""The partition ``by:COLUMN``: each peer holds the images that have its value in a column of the source."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import ConfigError, DataError, did_you_mean
from p2pft_flower.learning.data.names import in_order, is_missing, look_alikes, number_of, some_names

__all__ = [
    "BY",
    "DEALING",
    "Columns",
    "advise_column",
    "by_names",
    "check_by",
    "column_of",
    "deal_by",
    "names_by",
    "refuse_all_held_out",
    "resolve_by",
]

BY = "by:"
"""The beginning of a partition by a column; its name follows, and perhaps ``=`` and its values."""

DEALING = ("peer", "site")
"""Columns that say whose an image is: ``auto`` means the first of these that the source has."""

CENTRES = ("center", "centre", "hospital", "institution", "institute", "clinic")
"""Columns that tell sites apart, but are not dealt by unless ``partition`` names them."""

PEER = "peer"
"""The column whose values, if they are numbers, are the peers' own numbers."""

_LONGEST = 64
"""Letters of a peer's name, at most, as of a site's."""

log = logging.getLogger(__name__)

Columns = Mapping[str, npt.NDArray[np.object_]]
"""The values of each training image, by the column's name."""


def column_of(spec: str) -> str:
    """Return the column that a partition names; empty if it is not one by a column."""
    return _parts(spec)[0] if spec.startswith(BY) else ""


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


def resolve_by(spec: str, n: int, columns: Columns, *, warn: bool = True) -> str:
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
    warn : bool
        Whether a warning tells of values that only look different, if ``spec`` does not give the values.

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
    told = _counted(counts)
    lacking = [value for value in in_order(counts) if is_missing(value)]
    if counts[""] or (lacking and not wanted):
        called = f", or, if {lacking[-1]!r} is one, give all values, as {BY}{name}=…" if lacking[-1] else ""
        raise DataError(
            f"partition = {spec!r}: the column has no value for some training images: {told}; give each one, "
            f"or remove these images{called}"
        )
    alike = look_alikes(counts)
    if len(counts) != n:
        unseen = f"; {'; '.join(alike)}" if alike else ""
        raise DataError(
            f"partition = {spec!r}: the column has {len(counts)} values for {n} peers: {told}{unseen}; give "
            f"topology = a graph of {len(counts)} peers, or a column with {n} values"
        )
    for names in alike if warn and not wanted else ():
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


def by_names(spec: str, resolved: str, names: Sequence[str], nameless: Collection[int] = ()) -> str:
    """Return the partition in which each value is that of the peer of this name, if the values are names.

    Parameters
    ----------
    spec, resolved : str
        The run-config's partition, and that with the values in the peers' order.
    names : sequence of str
        The peers' names, of the graph or of the sites.
    nameless : collection of int
        Peers that are not there, so that nobody knows the names of their sites.

    Returns
    -------
    str
        ``resolved`` with the values in the order of the names; ``resolved`` itself if it is no partition by a
        column, ``spec`` gives the values, or the values are not exactly the names.

    Raises
    ------
    ConfigError
        When peers are nameless, the values are the names of the others, and belong to others by order.
    """
    column, values = _parts(resolved)
    if not resolved.startswith(BY) or _parts(spec)[1]:
        return resolved
    known = {peer: name for peer, name in enumerate(names) if peer not in nameless}
    if nameless and known and set(known.values()) <= set(values):
        wrong = [(peer, name) for peer, name in known.items() if values[peer] != name]
        if wrong:
            peer, name = wrong[0]
            raise ConfigError(
                f"partition = {spec!r}: the values of column {column!r} are names of sites, as {name!r} of "
                f"peer {peer}, but the sites of peers {some_names([*nameless])} are not there to tell "
                f"theirs: give the values in the peers' order, as {BY}{column}=…, or names in the graph's "
                "file"
            )
    if set(values) != set(names):
        return resolved
    return f"{BY}{column}={_joined(names)}"


def names_by(resolved: str) -> dict[int, str]:
    """Return the names that a partition's values give to the peers that hold them; none but for ``by:``.

    A number is no name, so ``by:center=1,2`` names the peers ``center 1`` and ``center 2``; those of the
    column ``peer`` are the peers' own numbers.

    Parameters
    ----------
    resolved : str
        The partition, with the values in the peers' order.
    """
    column, values = _parts(resolved)
    if not resolved.startswith(BY) or (column == PEER and all(value.isdecimal() for value in values)):
        return {}
    names = [value if number_of(value) is None else f"{column} {value}" for value in values]
    fit = all(name.isprintable() and len(name) <= _LONGEST for name in names)
    return dict(enumerate(names)) if fit else {}


def advise_column(columns: Columns, means: str) -> None:
    """Warn if ``partition = auto`` deals images out across the values of a column that tells sites apart.

    Parameters
    ----------
    columns : mapping of str to array of str
        The columns of the source, none of them of :data:`DEALING`.
    means : str
        The partition that ``auto`` means.
    """
    name = next((name for name in CENTRES if name in columns), "")
    counts = Counter(str(value) for value in columns[name]) if name else Counter()
    if len(counts) > 1:
        log.warning(
            "partition = auto means %s, whatever column %r says: %s; with partition = by:%s each peer has "
            "the images of one value, in a graph of %d peers",
            means,
            name,
            _counted(counts),
            name,
            len(counts),
        )


def _counted(counts: Counter[str]) -> str:
    """Return the values of a column with their numbers of images, for messages."""
    return some_names([f"{value or '(empty)'} ({counts[value]} images)" for value in in_order(counts)])


def refuse_all_held_out(spec: str, share: float, left: Columns, held: Columns) -> None:
    """Refuse a column of which ``validation`` holds out all images of a value: that peer would have none.

    Parameters
    ----------
    spec : str
        The partition.
    share : float
        The run-config's ``validation``.
    left, held : mapping of str to array of str
        The columns of the training images that are left, and of those that are held out.

    Raises
    ------
    DataError
        When all images of a value are held out; the message names the values.
    """
    given = column_of(spec).lower()
    auto = next((name for name in DEALING if name in left), "")
    name = next((column for column in left if column.lower() == given), "" if given else auto)
    if not name or name not in held:
        return
    remain = {str(value) for value in left[name]}
    counts = Counter(str(value) for value in held[name] if str(value) not in remain)
    if counts:
        told = _counted(counts)
        raise DataError(
            f"partition = {spec!r}: validation = {share:g} holds out all images of some values of column "
            f"{name!r}: {told}, so the peers of these would have none to train on; give a smaller "
            "validation, another seed, or more images, or mark test rows, which need no validation"
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
