"""Labelled images in a training and a test split, and the picture of each of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.decoding import REMEDY, UNREADABLE, decode, look_at
from p2pft_flower.learning.data.images import file_content
from p2pft_flower.learning.data.label_arrays import has_several
from p2pft_flower.learning.data.names import differing_unseen, some_names
from p2pft_flower.learning.data.patients import PATIENT, patients_of
from p2pft_flower.learning.data.pixels import Pixels, Source
from p2pft_flower.learning.data.samples import Look

__all__ = ["Dataset", "Split"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Images with labels, read when needed.

    Attributes
    ----------
    labels : (N,) or (N, C) int64 array
        Class of each image; or 0 and 1, whether each image has each label.
    read : callable
        Position ↦ the image as its reader has it: a PIL image, an (H, W) or (H, W, 1..4) array, or
        :class:`~p2pft_flower.learning.data.samples.Samples`. It may be called from several threads at once.
    content : callable, optional
        Position ↦ bytes that identify the image and are faster to get than the image: a file's content
        (:func:`file_content`), an array's pixels with their shape (:func:`array_content`). By default the
        bytes of the picture identify it.
    files : sequence of Path, optional
        The images' files, if each image is one, or a frame of one; errors name the files.
    look : callable, optional
        Position ↦ the description of the image before it is decoded; by default the image is read.
    pixels : Pixels, optional
        The conversion to a picture; None: ``read`` returns pictures, and ``content`` identifies them.
    called : str
        The split's name in errors if its images have no files; empty: errors name only the fault.
    vectors : (N, D) float32 array, optional
        If given, there are no images: each sample is a row, which a model made elsewhere
        (:mod:`~p2pft_flower.learning.data.feature_files`).
    columns : mapping of str to (N,) array of str
        What the source tells of each image besides its class, by the column's name, for ``partition =
        by:COLUMN``.
    frames : (N,) int64 array, optional
        The number of each image's frame in its file, from 1; 0: the file is one image. None: all are.
    limited : callable, optional
        The most pixels of an image ↦ the split with that limit, of images without files.
    """

    labels: npt.NDArray[np.int64]
    read: Callable[[int], Source]
    content: Callable[[int], bytes] | None = None
    files: Sequence[Path] | None = None
    look: Callable[[int], Look] | None = None
    pixels: Pixels | None = field(default_factory=Pixels)
    called: str = ""
    vectors: npt.NDArray[np.float32] | None = None
    columns: Mapping[str, npt.NDArray[np.object_]] = field(default_factory=dict)
    frames: npt.NDArray[np.int64] | None = None
    limited: Callable[[int], Split] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, index: int) -> Image.Image:
        """Return image ``index`` as a viewer shows it and every model sees it, mode ``L`` or ``RGB``.

        Raises
        ------
        DataError
            When the image cannot be read, and has a file of its own or ``called`` is given.
        ValueError, OSError, SyntaxError, Image.DecompressionBombError
            When another image cannot be read.
        """
        try:
            return (self.pixels or Pixels()).picture(self.read(index))
        except DataError:
            raise
        except UNREADABLE as error:
            if self.files is None and not self.called:
                raise
            raise DataError(
                f"{self.name(index, self.called)}: not a readable image ({error}){REMEDY}"
            ) from error

    def digest(self, index: int) -> bytes:
        """Return 16 bytes (XXH3-128) that identify the picture of image ``index`` for a cache.

        Raises
        ------
        DataError
            When the image's file cannot be read; without a file, errors are those of :meth:`picture`.
        """
        found = xxhash.xxh3_128()
        for part in self._identity(index):
            found.update(part)
        return found.digest()

    def _identity(self, index: int) -> Iterator[bytes]:
        """Yield bytes that identify the picture of image ``index``."""
        if self.content is None:
            picture = self.picture(index)
            yield f"{picture.mode} {picture.size} ".encode()
            yield picture.tobytes()
            return
        if self.pixels is not None:
            yield self.pixels.key
        yield self.content(index)

    def name(self, index: int, what: str) -> str:
        """Return the name of image ``index`` in errors: the image's file, else ``what`` and the number."""
        if self.files is None:
            return f"{what} image {index}"
        frame = self.frame(index)
        return f"{self.files[index]}#{frame}" if frame else str(self.files[index])

    def frame(self, index: int) -> int:
        """Return the number of image ``index``'s frame in its file, from 1; 0: the file is one image."""
        return 0 if self.frames is None else int(self.frames[index])

    @property
    def units(self) -> npt.NDArray[np.int64] | None:
        """A number of each image's file, (N,), the same for all frames of one; None: no file has several.

        Frames of one file resemble each other, so a score on some of them says little if others are learned.
        """
        if self.frames is None or self.files is None:
            return None
        number: dict[Path, int] = {}
        return np.array([number.setdefault(file, len(number)) for file in self.files], dtype=np.int64)

    @property
    def kept_together(self) -> npt.NDArray[np.int64] | None:
        """A number of each image's patient, (N,), else of its file; None: each image is by itself.

        A score on some images of a patient says little if others of that patient are learned. Frames of one
        file have one number, also where the patient of some is not told, or theirs are several.
        """
        patients, files = patients_of(self.columns), self.units
        if patients is None:
            return files
        number: dict[object, int] = {}
        alone = range(len(self)) if files is None else files.tolist()
        keys = (who or file for who, file in zip(patients, alone, strict=True))
        found = np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)
        if files is None:
            return found
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        # A graph of patients and files, with an edge for each frame.
        ends = (found, len(number) + files)
        size = len(number) + len(files)
        graph = coo_array((np.ones(len(self), np.int8), ends), shape=(size, size))
        _, parts = connected_components(graph, directed=False)
        return np.asarray(parts, dtype=np.int64)[found]

    @classmethod
    def of_files(
        cls,
        files: Sequence[Path],
        labels: npt.NDArray[np.int64],
        most: int | None = None,
        frames: npt.NDArray[np.int64] | None = None,
    ) -> Split:
        """Return a split of the images of ``files``, with their ``labels``, (N,) or (N, C) int64.

        Images of more pixels than ``most`` cannot be read. ``frames`` are those of DICOM files of several
        (:attr:`Split.frames`).
        """
        numbers = np.zeros(len(files), np.int64) if frames is None else frames
        known: dict[Path, bytes] = {}

        def content(index: int) -> bytes:
            file, frame = files[index], int(numbers[index])
            if not frame:
                return file_content(file)
            if file not in known:  # it is read once, not for each of its frames
                known[file] = xxhash.xxh3_128_digest(file_content(file))
            return known[file] + f"#{frame}".encode()

        return cls(
            labels,
            lambda index: decode(files[index], most, int(numbers[index])),
            content,
            files,
            lambda index: look_at(files[index], most, int(numbers[index])),
            frames=frames,
        )

    def within(self, most: int) -> Split:
        """Return the split with ``most`` as the most pixels of an image; it is as :meth:`of_files` makes it.

        Images without files, and those of a reader of the user's own, stay as they are.
        """
        if self.limited is not None:
            return replace(self, read=(other := self.limited(most)).read, look=other.look)
        if self.files is None or self.content is None:
            return self
        return replace(Split.of_files(self.files, self.labels, most, self.frames), columns=self.columns)

    @classmethod
    def of_vectors(cls, vectors: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Split:
        """Return a split without images, of the rows of ``vectors``, (N, D), with their ``labels``."""

        def read(index: int) -> Source:
            raise TypeError(f"sample {index} is a vector: there is no image")

        return cls(labels, read, lambda index: vectors[index].tobytes(), pixels=None, vectors=vectors)

    def rows(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the vectors at ``positions``, (B,), as (B, D).

        Raises
        ------
        TypeError
            When the samples are images.
        """
        if self.vectors is None:
            raise TypeError("the samples are images, not vectors")
        return self.vectors[positions]

    def at(self, positions: npt.NDArray[np.int64]) -> Split:
        """Return a split of the samples at ``positions``, (B,), in this order."""
        labels = self.labels[positions]
        if self.vectors is not None:
            return Split.of_vectors(self.vectors[positions], labels)
        read, content, look, limited = self.read, self.content, self.look, self.limited
        return replace(
            self,
            labels=labels,
            read=lambda index: read(int(positions[index])),
            content=content and (lambda index: content(int(positions[index]))),
            files=self.files and [self.files[position] for position in positions],
            frames=None if self.frames is None else self.frames[positions],
            limited=limited and (lambda most: limited(most).at(positions)),
            look=look and (lambda index: look(int(positions[index]))),
            columns={name: values[positions] for name, values in self.columns.items()},
        )

    @classmethod
    def joined(cls, parts: Sequence[Split]) -> Split:
        """Return the pictures of ``parts``, or their vectors, one after the other, as one split.

        Its only column is that of the patients, if one part has it; those of two parts are never the same.
        """
        labels = np.concatenate([part.labels for part in parts])
        if vectors := [part.vectors for part in parts if part.vectors is not None]:
            return cls.of_vectors(np.concatenate(vectors), labels)
        starts = np.cumsum([0, *(len(part) for part in parts)])

        def of(index: int) -> tuple[Split, int]:
            # The last part that begins at or before: an empty one begins with its successor.
            number = int(np.searchsorted(starts, index, side="right")) - 1
            return parts[number], index - int(starts[number])

        def read(index: int) -> Image.Image:
            part, inside = of(index)
            return part.picture(inside)

        def content(index: int) -> bytes:
            part, inside = of(index)
            return b"".join(part._identity(inside))

        named = [part.files for part in parts if part.files is not None]
        files = [file for some in named for file in some] if len(named) == len(parts) else None
        frames = None
        if files is not None and any(part.frames is not None for part in parts):
            numbers = [np.zeros(len(p), np.int64) if p.frames is None else p.frames for p in parts]
            frames = np.concatenate(numbers)
        return cls(labels, read, content, files, pixels=None, frames=frames, columns=_patients(parts))


def _patients(parts: Sequence[Split]) -> dict[str, npt.NDArray[np.object_]]:
    """Return the column of the patients of ``parts``, with the part's number before each; empty: none has."""
    told = [patients_of(part.columns) for part in parts]
    if all(some is None for some in told):
        return {}
    names = [
        f"{number} {who}" if who else ""
        for number, (part, some) in enumerate(zip(parts, told, strict=True))
        for who in ([""] * len(part) if some is None else some)
    ]
    return {PATIENT: np.array(names, dtype=object)}


@dataclass(frozen=True)
class Dataset:
    """A training and a test split over the same classes.

    Attributes
    ----------
    name : str
        The run-config's ``dataset``.
    classes : tuple of str
        Names of the classes, by label.
    train, test : Split
        The images.
    passed_over : str
        A line on hidden files in the dataset's folders; empty if there are none.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    passed_over: str = ""

    def within(self, most: int) -> Dataset:
        """Return the dataset with ``most`` as the most pixels of an image (:meth:`Split.within`)."""
        return replace(self, train=self.train.within(most), test=self.test.within(most))

    def numbered_as(self, classes: Sequence[str]) -> Dataset:
        """Return the dataset with labels that are numbers in ``classes``, the same names in any order.

        Raises
        ------
        DataError
            When ``classes`` are other names; the message has those that are missing and those that are extra.
        """
        wanted = tuple(classes)
        if wanted == self.classes:
            return self
        missing = [name for name in wanted if name not in self.classes]
        extra = [name for name in self.classes if name not in wanted]
        if missing or extra:
            told = [
                f"{what} {some_names(names)}"
                for what, names in (("without", missing), ("and with", extra))
                if names
            ]
            unseen = differing_unseen(extra[0], missing) if extra else ""
            raise DataError(
                f"dataset = {self.name!r} has not the classes that the model was trained on, but is "
                f"{' '.join(told).removeprefix('and ')}{unseen}: answers would mean other classes here"
            )
        log.warning(
            "dataset = %r: its classes are those of the model in another order, and are matched by their "
            "names",
            self.name,
        )
        places = np.array([wanted.index(name) for name in self.classes], dtype=np.int64)

        def renumbered(split: Split) -> Split:
            if not has_several(split.labels):
                return replace(split, labels=places[split.labels])
            return replace(split, labels=split.labels[:, np.argsort(places)])

        return replace(self, classes=wanted, train=renumbered(self.train), test=renumbered(self.test))

    @property
    def several_labels(self) -> bool:
        """Whether an image may have several labels, or none, instead of one class."""
        return has_several(self.train.labels)

    @property
    def width(self) -> int:
        """D, the length of a sample in a dataset of features; 0 if the samples are images."""
        return 0 if self.train.vectors is None else self.train.vectors.shape[1]
