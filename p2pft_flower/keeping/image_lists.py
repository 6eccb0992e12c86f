"""Lists of a peer's images beside its checkpoints, by which a resumed run names what has changed."""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import msgspec

from p2pft_flower.errors import DataError, printable
from p2pft_flower.facts import ImageChanges, ListedImage
from p2pft_flower.keeping.folders import replacing
from p2pft_flower.typed import decoded

__all__ = ["FILE", "Difference", "ImageLists", "difference", "read_lists", "write_lists"]

FILE = "images.json.gz"
"""The file's name, in the folder of a peer's checkpoints."""

SCHEMA = "p2pft.images/1"

NAMED = 3
"""Most images of a kind of change that a message names."""

log = logging.getLogger("p2pft_flower")


class ImageLists(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A peer's images: those that it trains on, and those that it is scored on.

    Attributes
    ----------
    training, test : tuple of ListedImage or None
        The images; None if they are not listed.
    schema : str
        The version of the file.
    """

    training: tuple[ListedImage, ...] | None
    test: tuple[ListedImage, ...] | None
    schema: str = SCHEMA


@dataclass(frozen=True)
class Difference:
    """The difference of two lists of images, by names below a folder that they have in common.

    Attributes
    ----------
    new, removed, changed : tuple of str
        Images that only the later list has, that only the earlier one has, and that have another class, size
        or content in the later one.
    """

    new: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def counts(self) -> ImageChanges:
        """The numbers of images."""
        return ImageChanges(len(self.new), len(self.removed), len(self.changed))

    def __str__(self) -> str:
        """Return the numbers with a few names, as ``2 new (a.png, b.png), 1 removed (c.png)``."""
        kinds = (("new", self.new), ("removed", self.removed), ("changed", self.changed))
        told = [f"{len(names)} {what} ({_some(names)})" for what, names in kinds if names]
        return ", ".join(told) or "none is new, removed or changed: the order is another, or contents are"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(printable(name) for name in names[:NAMED]) + more


def write_lists(folder: Path, lists: ImageLists) -> None:
    """Write the lists into the folder of a peer's checkpoints, for their owner only.

    If they cannot be written, a warning says so: the checkpoints do without them.
    """
    path = folder / FILE
    try:
        with replacing(path) as partial:
            # Without a time, so that the same lists are the same file.
            partial.write_bytes(gzip.compress(msgspec.json.encode(lists), mtime=0))
    except OSError as error:
        log.warning(
            "%s: cannot be written (%s), so a resumed run can say that images have changed, but not which",
            path,
            error.strerror or error,
        )


def read_lists(folder: Path) -> ImageLists | None:
    """Return the lists in the folder of a peer's checkpoints; None if there are none to be read."""
    path = folder / FILE
    try:
        return decoded(gzip.decompress(path.read_bytes()), ImageLists, path)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, DataError) as error:  # gzip's own error is an OSError
        log.warning("%s: cannot be read, so nobody knows which images have changed (%s)", path, error)
        return None


def difference(before: Sequence[ListedImage], now: Sequence[ListedImage]) -> Difference:
    """Return the difference of two lists of images, which may lie in another folder now.

    Images are matched by their whole path, by what follows the folder that all of a list have in common, or
    by the last parts of their paths: whichever matches most.
    """
    named = [(_by(naming, before), _by(naming, now)) for naming in _NAMINGS]
    earlier, later = max(named, key=lambda pair: len(pair[0].keys() & pair[1].keys()))
    both = earlier.keys() & later.keys()
    return Difference(
        _short(later[name] for name in sorted(later.keys() - both)),
        _short(earlier[name] for name in sorted(earlier.keys() - both)),
        _short(later[name] for name in sorted(both) if _differs(earlier[name], later[name])),
    )


_Naming = Callable[[Sequence[ListedImage]], list[str]]


def _whole(images: Sequence[ListedImage]) -> list[str]:
    return [one.file for one in images]


def _below(images: Sequence[ListedImage]) -> list[str]:
    above = os.path.commonpath([os.path.dirname(one.file) for one in images]) if images else ""  # noqa: PTH120
    return [one.file.removeprefix(above) for one in images]


def _last(parts: int) -> _Naming:
    return lambda images: ["/".join(PurePath(one.file).parts[-parts:]) for one in images]


_NAMINGS = (_whole, _below, _last(3), _last(2), _last(1))
"""Ways to name the images of a list, the most precise first."""


def _by(naming: _Naming, images: Sequence[ListedImage]) -> dict[str, ListedImage]:
    """Return the images by their names; by their whole paths if two have the same name."""
    found = dict(zip(naming(images), images, strict=True))
    return found if len(found) == len(images) else {one.file: one for one in images}


def _differs(one: ListedImage, other: ListedImage) -> bool:
    looked_into = one.content and other.content
    return (one.label, one.size) != (other.label, other.size) or bool(
        looked_into and one.content != other.content
    )


def _short(images: Iterable[ListedImage]) -> tuple[str, ...]:
    """Return the last two parts of each image's path: its folder and its name."""
    return tuple("/".join(PurePath(one.file).parts[-2:]) for one in images)
