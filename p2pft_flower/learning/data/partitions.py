"""Partitions: how training images are dealt out to peers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import ConfigError, DataError, did_you_mean
from p2pft_flower.learning.data.by_column import (
    BY,
    DEALING,
    Columns,
    advise_column,
    check_by,
    deal_by,
    resolve_by,
)
from p2pft_flower.learning.data.class_groups import check_groups, class_owners, even_groups
from p2pft_flower.learning.data.dealing import deal_dirichlet, deal_iid, deal_shards
from p2pft_flower.learning.data.frames import whole_files
from p2pft_flower.plugins import call_reference, is_reference

__all__ = [
    "OWN",
    "Partition",
    "check_partition",
    "draw_shots",
    "partition_images",
    "resolve_partition",
]

Partition: TypeAlias = list[npt.NDArray[np.int64]]
"""For each peer an array of positions in the training split, ascending."""

Labels: TypeAlias = npt.NDArray[np.int64]

TABLE_1 = {
    ("cifar10", 4): "classes:0-1,2-3,4-6,7-9",
    ("cifar100", 4): "classes:0-9,10-19,20-74,75-99",
    ("oxford-iiit-pet", 4): "classes:0-4,5-19,20-29,30-36",
    ("oxford-flowers102", 4): "classes:0-19,20-39,40-79,80-101",
    ("digits", 4): "classes:0-1,2-3,4-6,7-9",
}
"""The class ranges of the paper's Table 1 by (dataset, peers).

CIFAR-10's last range is 7-10 in the paper, but its classes end at 9; the digits have the same ten ranges.
"""

AUTO_DIRICHLET = 0.5
"""α of the Dirichlet partition that ``auto`` means if there are more peers than classes."""

OWN = "own"
"""The partition of ``folder:/data/site-{peer}``: each peer holds the images of its own folder."""

log = logging.getLogger(__name__)


def resolve_partition(
    spec: str,
    dataset: str,
    n: int,
    classes: Sequence[str],
    columns: Columns | None = None,
    *,
    several: bool = False,
) -> str:
    """Return the partition that ``auto`` means for ``n`` peers and these classes; else ``spec`` itself.

    ``auto`` means the peers' own folders if the dataset has a folder for each, else the column ``peer`` or
    ``site`` if it has one, else ``iid`` if images have ``several`` labels each, else the ranges of Table 1,
    else disjoint classes if there are enough, else Dirichlet. ``by:COLUMN`` becomes
    ``by:COLUMN=VALUE,VALUE,…``, with the values in the peers' order. If ``auto`` deals images out across the
    values of a column such as ``center``, a warning tells of it.

    Raises
    ------
    ConfigError, DataError
        When ``columns``, the columns of the training images, cannot deal them out to ``n`` peers.
    """
    if spec.startswith(BY):
        return resolve_by(spec, n, columns or {})
    if spec != "auto":
        return spec
    if "{peer}" in dataset:
        return OWN
    if dealing := [name for name in DEALING if name in (columns or {})]:
        return resolve_by(BY + dealing[0], n, columns or {})
    if several or (dataset, n) in TABLE_1:
        means = "iid" if several else TABLE_1[dataset, n]
    else:
        means = even_groups(n, classes) if n <= len(classes) else f"dirichlet:{AUTO_DIRICHLET}"
    advise_column(columns or {}, means)
    return means


def check_partition(spec: str, n: int, classes: Sequence[str] | None = None) -> None:
    """Refuse a partition that cannot be read, or does not fit the number of peers or the classes.

    Parameters
    ----------
    spec : str
        The run-config's ``partition``.
    n : int
        Number of peers.
    classes : sequence of str, optional
        Names of the dataset's classes, if they are known.

    Raises
    ------
    ConfigError
        When ``spec`` cannot be read or does not fit; the message gives the choices.
    """
    kind, _, argument = spec.partition(":")
    if spec.startswith(BY):
        check_by(spec, n)
    elif kind == "classes" and argument:
        if classes is None:
            check_groups(spec, n)
        else:
            class_owners(spec, n, classes)
    elif kind == "dirichlet" and argument:
        _alpha(spec, argument)
    elif kind == "shards" and argument:
        _classes_a_peer(spec, argument, None if classes is None else len(classes))
    elif spec not in ("auto", "iid", OWN) and not is_reference(spec):
        raise _unknown(spec)


def _unknown(spec: str) -> ConfigError:
    named = ("auto", "classes:0-1,2-3,…", "iid", "dirichlet:ALPHA", "shards:K", "by:COLUMN")
    return ConfigError(
        f"partition = {spec!r} is unknown; choose one of {', '.join(named)}, my_module:my_partition, "
        f"{OWN} (with dataset = folder:/path/with/{{peer}}){did_you_mean(spec, (*named, OWN))}"
    )


def draw_shots(labels: Labels, shots: int, classes: Sequence[str], seed: int) -> npt.NDArray[np.int64]:
    """Return the positions of ``shots`` training images of each class, drawn at random.

    Parameters
    ----------
    labels : (N,) int64 array
        Classes of the training images.
    shots : int
        Number of images of a class; a class that has fewer gives all, and a warning names the class. 0: every
        image.
    classes : sequence of str
        Names of the classes.
    seed : int
        Number that decides the draw. Fewer shots are among more shots of the same seed.

    Returns
    -------
    int64 array
        Positions, ascending.
    """
    if shots == 0:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(labels == c))[:shots] for c in range(len(classes))]
    # A class without any image was refused or warned of before.
    short = [f"{name!r} has {len(d)}" for name, d in zip(classes, drawn, strict=True) if 0 < len(d) < shots]
    if short:
        log.warning(
            "shots = %d is more than %d of %d classes have; all of their training images are used: %s",
            shots,
            len(short),
            len(classes),
            ", ".join(short),
        )
    return np.sort(np.concatenate(drawn))


def partition_images(
    spec: str,
    labels: Labels,
    n: int,
    classes: Sequence[str],
    seed: int,
    columns: Columns | None = None,
    units: Labels | None = None,
) -> Partition:
    """Deal the training images out to ``n`` peers.

    Parameters
    ----------
    spec : str
        ``"classes:0-1,2-3,4-6,7-9"`` (one range a peer, by position or name; ``+`` joins ranges:
        ``0-1+5``, ``cat+dog``, ``"0-1"+"a, b"``; if classes are named by other numbers, numbers are names;
        names in quotes are literal), ``"iid"``,
        ``"dirichlet:ALPHA"``, ``"shards:K"`` (each peer holds images of K classes, of which the first is
        that of the peer's number, counted round, and the others are drawn), ``"by:COLUMN=VALUE,VALUE"`` (one
        value a peer, as :func:`resolve_partition` returns it), or
        ``"my_module:my_partition"``: a callable ``(labels, n, seed) -> n arrays of positions``.
    labels : (N,) or (N, C) int64 array
        Classes of the training images; or 0 and 1, whether each has each label.
    n : int
        Number of peers.
    classes : sequence of str
        Names of the dataset's classes.
    seed : int
        Number that decides every draw.
    columns : mapping of str to (N,) array of str, optional
        The columns of the images, by name.
    units : (N,) int64 array, optional
        The number of each image's file, if files have several frames: a partition that draws images draws
        files then.

    Returns
    -------
    list of n ascending int64 arrays
        Each peer's positions in ``labels``; disjoint. If some images go to no peer, a warning counts them.

    Raises
    ------
    ConfigError
        When ``spec`` cannot be read or does not fit n and the classes, or the user's callable returns
        something else.
    DataError
        When a peer would be left without an image, an image is dealt twice, or a position is out of range.
    """
    if (files := whole_files(spec, labels, units)) is None:
        return _dealt(spec, labels, n, classes, seed, columns)
    first, file_of = files
    if len(first) < n:
        raise DataError(
            f"partition = {spec!r}: the training images are frames of {len(first)} files, which cannot be "
            f"dealt out to {n} peers, as the frames of a file stay together"
        )
    dealt = _dealt(spec, labels[first], n, classes, seed, None)
    return [np.flatnonzero(np.isin(file_of, part)) for part in dealt]


def _dealt(
    spec: str, labels: Labels, n: int, classes: Sequence[str], seed: int, columns: Columns | None
) -> Partition:
    kind, _, argument = spec.partition(":")
    if spec.startswith(BY):
        parts = deal_by(spec, columns or {})
    elif kind == "classes" and argument:
        owners = class_owners(spec, n, classes)
        parts = [np.flatnonzero(owners[labels] == peer) for peer in range(n)]
    elif spec == "iid":
        parts = deal_iid(_enough(labels, n), n, seed)
    elif kind == "dirichlet" and argument:
        alpha = _alpha(spec, argument)
        # All is drawn again until each peer has this many images: if there are few, not many may be asked.
        at_least = min(10, max(1, len(labels) // (8 * n)))
        parts = deal_dirichlet(_enough(labels, n), n, alpha, at_least, seed)
    elif kind == "shards" and argument:
        classes_a_peer = _classes_a_peer(spec, argument, len(np.unique(labels)))
        parts = deal_shards(_enough(labels, n), n, classes_a_peer, seed)
    elif is_reference(spec):
        parts = call_reference(spec, labels, n, seed, key="partition")
    else:
        raise _unknown(spec)
    return _checked(spec, parts, len(labels), n)


def _enough(labels: Labels, n: int) -> Labels:
    if n > len(labels):
        raise DataError(f"{len(labels)} training images cannot be dealt out to {n} peers")
    return labels


def _alpha(spec: str, argument: str) -> float:
    try:
        alpha = float(argument)
    except ValueError:
        alpha = -1.0
    if not (np.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"partition = {spec!r}: ALPHA must be a positive number, as dirichlet:0.5")
    return alpha


def _classes_a_peer(spec: str, argument: str, most: int | None) -> int:
    """Return K of ``shards:K``; ``most`` is the number of classes, None if it is not known."""
    number = int(argument) if argument.isdecimal() else 0
    if number < 1 or (most is not None and number > most):
        upto = "" if most is None else f" to {most}"
        raise ConfigError(
            f"partition = {spec!r}: K, the classes of a peer, must be a whole number from 1{upto}, "
            "as shards:2"
        )
    return number


def _checked(spec: str, parts: object, total: int, n: int) -> Partition:
    if not isinstance(parts, (list, tuple)) or len(parts) != n:
        raise ConfigError(
            f"partition = {spec!r} returned {type(parts).__name__}, not a list of {n} arrays of positions"
        )
    arrays = [np.asarray(p) for p in parts]
    for peer, positions in enumerate(arrays):
        if positions.size and (positions.ndim != 1 or positions.dtype.kind not in "iu"):
            raise ConfigError(
                f"partition = {spec!r} gives peer {peer} something else than whole numbers (positions)"
            )
    arrays = [np.sort(positions.astype(np.int64)) for positions in arrays]
    for peer, positions in enumerate(arrays):
        if len(positions) == 0:
            raise DataError(f"partition = {spec!r} leaves peer {peer} without a training image")
        if positions[0] < 0 or positions[-1] >= total:
            raise DataError(f"partition = {spec!r} gives peer {peer} a position outside 0..{total - 1}")
    dealt = np.concatenate(arrays)
    if len(np.unique(dealt)) != len(dealt):
        raise DataError(f"partition = {spec!r} gives an image to two peers, or to one twice")
    if len(dealt) < total:
        log.warning("partition %s leaves %d of %d training images unused", spec, total - len(dealt), total)
    return arrays
