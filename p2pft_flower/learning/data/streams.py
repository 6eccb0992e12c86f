"""Streams: folders in which new images appear while a run trains on their images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.frames import frames_of
from p2pft_flower.learning.data.images import find_images, is_hidden
from p2pft_flower.learning.data.names import some_names
from p2pft_flower.learning.data.pixels import Pixels
from p2pft_flower.learning.data.readable import unreadable_images
from p2pft_flower.learning.data.splits import Split

__all__ = ["ImageStream", "StreamPart"]

Positions: TypeAlias = npt.NDArray[np.int64]

_Place: TypeAlias = tuple[Path, int]
"""An image's file, and the number of its frame in it, from 1; 0: the file is one image."""

PATIENCE = 3
"""Number of listings at which a file must be unreadable for a warning to name it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamPart:
    """One folder of a stream, and the classes in it that count.

    Attributes
    ----------
    folder : Path
        The folder of the classes' folders (``train/``).
    labels : (K,) int64 array
        The numbers of the classes that count.
    pixels : Pixels
        The conversion of the folder's images to pictures.
    most : int, optional
        The most pixels of an image.
    """

    folder: Path
    labels: npt.NDArray[np.int64]
    pixels: Pixels = field(default_factory=Pixels)
    most: int | None = None


class ImageStream:
    """The training images of folders in which new images appear.

    Every image that was ever readable keeps its position; :meth:`refresh` returns those of present images.

    - An unreadable file is assumed to be incomplete, and tried again at the next listing. A warning names
      files that stay unreadable. To be safe, write a file under another extension and rename it.
    - Deleted images are left out from the next listing on, with a warning.
    - Folders of new classes are passed over, with a warning: the model's head has a fixed size.

    Parameters
    ----------
    parts : sequence of StreamPart
        The folders of the images.
    classes : sequence of str
        Names of all classes, by number.
    what : str
        Words for the folders' owner in messages, e.g. ``"peer 2's"``.

    Raises
    ------
    DataError
        When there is no image to begin with, or a folder cannot be read.
    """

    def __init__(self, parts: Sequence[StreamPart], classes: Sequence[str], what: str) -> None:
        self._parts, self._classes, self._what = parts, tuple(classes), what
        self.labels: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        """Classes of all images ever listed, (N,) int64, by position; replaced when N grows."""
        self._files: list[_Place] = []
        self._part_of: list[int] = []
        self._names: list[str] = []
        self._positions: dict[_Place, int] = {}
        self._there: list[set[_Place]] = [set() for _ in parts]
        self._unreadable: dict[_Place, int] = {}
        self._frames: dict[Path, int] = {}
        self._strange: set[Path] = set()
        self.refresh()

    def picture(self, position: int) -> Image.Image:
        """Return an image as a viewer shows it, mode ``L`` or ``RGB``.

        Raises
        ------
        DataError
            When the image cannot be read; the message names it.
        """
        return self._split([self._files[position]], self._parts[self._part_of[position]]).picture(0)

    def names(self, positions: Positions) -> list[str]:
        """Return the names of images: number of the part, class and file; the same names on every machine."""
        return [self._names[p] for p in positions.tolist()]

    def positions(self, names: Sequence[str]) -> Positions:
        """Return the positions of the images of these ``names``.

        Deleted images get a position too: like any image deleted after it was listed, they are left out when
        their turn comes. A warning names them.

        Raises
        ------
        DataError
            When a name is of no part or class of this stream.
        """
        known = dict(zip(self._names, range(len(self._names)), strict=True))
        gone = [name for name in names if name not in known]
        places = [self._place(name) for name in gone]
        for name, (number, file, _) in zip(gone, places, strict=True):
            known[name] = self._enter(number, (file, 0))
        if gone:
            self.labels = np.concatenate([self.labels, np.array([label for *_, label in places])])
            log.warning(
                "%s stream: %d images that were listed before the run was interrupted are gone, and will be "
                "left out: %s",
                self._what,
                len(gone),
                some_names(gone),
            )
        return np.array([known[name] for name in names], dtype=np.int64)

    def _place(self, name: str) -> tuple[int, Path, int]:
        """Return part, file and class of a name that :meth:`names` made; see :meth:`positions` for errors."""
        number, _, relative = name.partition("/")
        label = relative.partition("/")[0]
        if not number.isdecimal() or int(number) >= len(self._parts) or label not in self._classes:
            raise DataError(
                f"{self._what} stream: the image {name!r} was listed before the run was interrupted, and is "
                f"of no class here ({', '.join(self._classes)}); resume with the folders that the run had"
            )
        return int(number), self._parts[int(number)].folder / relative, self._classes.index(label)

    def _enter(self, number: int, place: _Place) -> int:
        """Give an image a position, and return the position; the caller adds the label."""
        position = self._positions[place] = len(self._files)
        self._files.append(place)
        self._part_of.append(number)
        file, frame = place
        name = f"{number}/{file.relative_to(self._parts[number].folder).as_posix()}"
        self._names.append(f"{name}#{frame}" if frame else name)
        return position

    def refresh(self) -> Positions:
        """List the folders, and return the positions of the present images, by part, class and file name.

        Raises
        ------
        DataError
            When there is no readable image, or a folder cannot be read.
        """
        listed = (self._list(number) for number in range(len(self._parts)))
        there = np.array(list(chain.from_iterable(listed)), dtype=np.int64)
        if not len(there):
            folders = some_names([part.folder for part in self._parts])
            raise DataError(f"{self._what} stream: no readable image of its classes in {folders}; add some")
        return there

    def _list(self, number: int) -> list[int]:
        part, before = self._parts[number], self._there[number]
        self._warn_of_new_classes(part.folder)
        listed = {f: int(c) for c in part.labels for f in find_images(part.folder / self._classes[c]).files}
        found = self._by_frame(listed)
        gone = sorted(before - found.keys())
        if gone:
            names = [f"{file}#{frame}" if frame else file for file, frame in gone]
            log.warning("%s stream: %d images are gone: %s", self._what, len(gone), some_names(names))
        waiting = self._not_yet([f for f in found if f not in before], part)
        new = [file for file in found if file not in waiting and file not in self._positions]
        for file in new:
            self._enter(number, file)
        if new:
            self.labels = np.concatenate([self.labels, np.array([found[file] for file in new])])
        there = [file for file in found if file not in waiting]
        self._frames |= {file: frame for file, frame in there if not frame or (file, frame + 1) not in found}
        self._there[number] = set(there)
        if before and len(there) > len(before) - len(gone):
            come = len(there) - len(before) + len(gone)
            log.info("%s stream: %d new images, %d in all", self._what, come, len(there))
        return [self._positions[file] for file in there]

    def _by_frame(self, listed: dict[Path, int]) -> dict[_Place, int]:
        """Return files and their classes as images and theirs; heads are read of files that are not known."""
        new = [file for file in listed if file not in self._frames]
        frames = self._frames | {
            file: 0 if many == 1 else many for file, many in zip(new, frames_of(new).tolist(), strict=True)
        }
        return {
            (file, frame): label
            for file, label in listed.items()
            for frame in (range(1, frames[file] + 1) if frames[file] else (0,))
        }

    def _split(self, files: list[_Place], part: StreamPart) -> Split:
        paths, frames = [file for file, _ in files], np.array([frame for _, frame in files], np.int64)
        labels = np.zeros(len(files), dtype=np.int64)
        return replace(Split.of_files(paths, labels, part.most, frames), pixels=part.pixels)

    def _not_yet(self, files: list[_Place], part: StreamPart) -> set[_Place]:
        """Return those of ``files`` that cannot be read; warn of files that stay unreadable."""
        fresh = self._split(files, part)
        wrong = {files[i]: why for i, why in unreadable_images(fresh, range(len(files)), self._what).items()}
        for file in files:
            if file not in wrong:
                self._unreadable.pop(file, None)
                continue
            times = self._unreadable[file] = self._unreadable.get(file, 0) + 1
            if times == 1:
                log.debug(
                    "%s stream: not yet readable, left for the next listing: %s", self._what, wrong[file]
                )
            elif times == PATIENCE:
                log.warning(
                    "%s stream: not readable at %d listings, left out until it is: %s",
                    self._what,
                    times,
                    wrong[file],
                )
        return set(wrong)

    def _warn_of_new_classes(self, folder: Path) -> None:
        try:
            others = (p for p in folder.iterdir() if p.name not in self._classes and not is_hidden(p.name))
            here = {p for p in others if p.is_dir()}
        except OSError as error:
            raise DataError(f"{folder}: the folder cannot be read ({error.strerror})") from error
        new = sorted(here - self._strange)
        if new:
            self._strange.update(new)
            log.warning(
                "%s stream: folders of classes that were not there when the run began are passed over "
                "(the model's head has %d outputs): %s",
                self._what,
                len(self._classes),
                some_names(new),
            )
