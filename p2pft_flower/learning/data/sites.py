"""The peers' own folders or tables of images, or files of features, as one dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.feature_files import features
from p2pft_flower.learning.data.image_folders import folder
from p2pft_flower.learning.data.names import differing_unseen
from p2pft_flower.learning.data.odd_data import warn_of_shared_patients
from p2pft_flower.learning.data.splits import Dataset, Split
from p2pft_flower.learning.data.tables import table

__all__ = ["Sites", "load_sites"]


@dataclass(frozen=True)
class Sites:
    """Folders, or files of features, of several peers as one dataset.

    Attributes
    ----------
    name : str
        The run-config's ``dataset``, with ``{peer}`` in it.
    folders : mapping of int to Dataset
        The dataset in each peer's own folder or file; all have the same classes.
    """

    name: str
    folders: Mapping[int, Dataset]

    @cached_property
    def dataset(self) -> Dataset:
        """The images of all these folders, one folder after the other."""
        train, test = ([getattr(f, part) for f in self.folders.values()] for part in ("train", "test"))
        classes = next(iter(self.folders.values())).classes
        return Dataset(self.name, classes, Split.joined(train), Split.joined(test))

    def within(self, most: int) -> Sites:
        """Return the sites with ``most`` as the most pixels of an image."""
        return Sites(self.name, {peer: data.within(most) for peer, data in self.folders.items()})

    def numbered_as(self, classes: Sequence[str]) -> Sites:
        """Return the sites with labels that are numbers in ``classes`` (:meth:`Dataset.numbered_as`)."""
        return Sites(self.name, {peer: data.numbered_as(classes) for peer, data in self.folders.items()})

    @property
    def train(self) -> dict[int, npt.NDArray[np.int64]]:
        """The positions of a peer's images in the dataset's training split, (N_i,) int64, by peer."""
        return self._positions([f.train for f in self.folders.values()])

    @property
    def test(self) -> dict[int, npt.NDArray[np.int64]]:
        """The positions of a peer's images in the dataset's test split, (N_i,) int64, by peer."""
        return self._positions([f.test for f in self.folders.values()])

    def _positions(self, splits: Sequence[Split]) -> dict[int, npt.NDArray[np.int64]]:
        starts = np.cumsum([0, *(len(split) for split in splits)])
        return {p: np.arange(starts[i], starts[i + 1]) for i, p in enumerate(self.folders)}


_DIFFER = {
    "folder": (
        "the class folders in train/ differ",
        "every peer needs the same folders, empty ones for the classes that it does not hold",
    ),
    "features": ("the classes differ", "every peer's file needs the same list"),
    "table": (
        "the classes differ",
        "every peer's table needs the same, with a row without an image for each that the peer does not hold",
    ),
}
"""What is said, and what to do, if two peers have different classes."""


def load_sites(
    name: str,
    peers: Sequence[int],
    data_dir: str = "",
    *,
    missing_ok: bool = False,
    known: Sequence[str] | None = None,
) -> Sites:
    """Read the folders, tables, or files of features, of ``peers``, and of no other peer.

    Parameters
    ----------
    name : str
        ``"folder:/data/site-{peer}"``, ``"table:/data/site-{peer}.csv"`` or
        ``"features:/data/site-{peer}.npz"``; ``{peer}`` is replaced by the peer's number.
    peers : sequence of int
        The peers whose folders or files are read, at least one.
    data_dir : str
        The folder of the images of tables, by default each table's own.
    missing_ok : bool
        Whether images of tables may be missing.
    known : sequence of str, optional
        The classes of a model that is scored, with which tables need no training rows.

    Raises
    ------
    DataError
        When a folder or file cannot be used (the message names the peer), or two of them have different
        classes (the message names both lists), kinds of labels, or features of different lengths.
    """
    kind, _, place = name.partition(":")
    of_table = partial(table, data_dir=data_dir, missing_ok=missing_ok, known=known)
    readers: dict[str, Callable[..., Dataset]] = {"folder": folder, "features": features, "table": of_table}
    read = readers[kind]
    folders: dict[int, Dataset] = {}
    for peer in peers:
        try:
            folders[peer] = read(place.replace("{peer}", str(peer)), site=True)
        except DataError as error:
            raise DataError(f"peer {peer}: {error}") from error
        warn_of_shared_patients(f"peer {peer}", folders[peer].train.columns, folders[peer].test.columns)
        first = folders[peers[0]]
        if (several := folders[peer].several_labels) is not first.several_labels:
            kinds = {True: "several labels an image", False: "one class an image"}
            raise DataError(
                f"the kinds of labels differ: {first.name} has {kinds[not several]}, {folders[peer].name} "
                f"has {kinds[several]}: give all peers the same kind"
            )
        if folders[peer].classes != first.classes:
            new = [c for c in folders[peer].classes if c not in first.classes]
            unseen = [differing_unseen(c, first.classes) for c in new]
            what, remedy = _DIFFER[kind]
            raise DataError(
                f"{what}: {first.name} has {list(first.classes)}, {folders[peer].name} has "
                f"{list(folders[peer].classes)}{next(filter(None, unseen), '')}; {remedy}"
            )
        if (here := folders[peer].width) != first.width:
            raise DataError(
                f"the features of {first.name} have {first.width} numbers each, those of "
                f"{folders[peer].name} {here}: one model must have made all of them"
            )
    return Sites(name, folders)
