"""Labelled images by name: scikit-learn's digits, torchvision's sets, folders of images, and own datasets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.dataset_names import TORCHVISION, check_dataset_name, require_parts
from p2pft_flower.learning.data.decoding import REMEDY, UNREADABLE, decode, look_at
from p2pft_flower.learning.data.images import (
    Listing,
    array_content,
    file_content,
    find_images,
    folders_in,
    identity,
    looks_hidden,
)
from p2pft_flower.learning.data.names import differing_unseen, in_order, look_alikes, some_names
from p2pft_flower.learning.data.own_images import require_image
from p2pft_flower.learning.data.pixels import Pixels, Source
from p2pft_flower.learning.data.samples import Look
from p2pft_flower.plugins import call_reference, telling_of_the_bundle

__all__ = [
    "DATASETS",
    "TORCHVISION",
    "Dataset",
    "Sites",
    "Split",
    "load_dataset",
    "load_sites",
]

TEST_SHARE = 0.2
"""Share of the digits that is kept for testing; the split is fixed, whatever the run's seed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Images with labels, read when asked for.

    Attributes
    ----------
    labels : (N,) int64 array
        Class of each image.
    read : callable
        Position ↦ the image as its reader has it: a PIL image, an (H, W) or (H, W, 1..4) array, or
        :class:`~p2pft_flower.learning.data.decoding.Samples`. It may be called from several threads at once.
    content : callable, optional
        Position ↦ bytes that tell what ``read`` returns from every other image, faster than reading it does:
        a file's content (:func:`file_content`), an array's pixels with their shape (:func:`array_content`).
        Without it, the picture itself.
    files : sequence of Path, optional
        The images' files, where each has one of its own; errors name them.
    look : callable, optional
        Position ↦ what can be said of the image before it is decoded; without it, it is read.
    pixels : Pixels, optional
        How what is read becomes a picture; None: ``read`` returns pictures that ``content`` tells apart.
    called : str
        How errors call the split, where its images have no files; empty: they say only what is wrong.
    """

    labels: npt.NDArray[np.int64]
    read: Callable[[int], Source]
    content: Callable[[int], bytes] | None = None
    files: Sequence[Path] | None = None
    look: Callable[[int], Look] | None = None
    pixels: Pixels | None = field(default_factory=Pixels)
    called: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, index: int) -> Image.Image:
        """Return image ``index`` as a viewer shows it, mode ``L`` or ``RGB``: what every model is given.

        Raises
        ------
        DataError
            When its file cannot be read.
        ValueError, OSError
            When an image without a file of its own cannot be read.
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
        """Return 16 bytes (XXH3-128) by which a cache may know the picture of image ``index``.

        Raises
        ------
        DataError
            When its file cannot be read.
        """
        found = xxhash.xxh3_128()
        for part in self._identity(index):
            found.update(part)
        return found.digest()

    def _identity(self, index: int) -> Iterator[bytes]:
        """Yield the bytes that tell the picture of image ``index`` from every other."""
        if self.content is None:
            picture = self.picture(index)
            yield f"{picture.mode} {picture.size} ".encode()
            yield picture.tobytes()
            return
        if self.pixels is not None:
            yield self.pixels.key
        yield self.content(index)

    def name(self, index: int, what: str) -> str:
        """Return how errors call image ``index``: by its file, else ``what`` images it is one of."""
        return f"{what} image {index}" if self.files is None else str(self.files[index])

    @classmethod
    def of_files(cls, files: Sequence[Path], labels: npt.NDArray[np.int64]) -> Split:
        """Return the images of ``files``, with their ``labels``, (N,) int64."""
        return cls(
            labels,
            lambda index: decode(files[index]),
            lambda index: file_content(files[index]),
            files,
            lambda index: look_at(files[index]),
        )

    @classmethod
    def joined(cls, parts: Sequence[Split]) -> Split:
        """Return the pictures of ``parts``, one after the other, as one split."""
        starts = np.cumsum([0, *(len(part) for part in parts)])

        def of(index: int) -> tuple[Split, int]:
            # The last part that begins at or before: an empty one begins where its successor does.
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
        return cls(np.concatenate([part.labels for part in parts]), read, content, files, pixels=None)


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
        A line on what lies in its folders and is hidden; empty where nothing is.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    passed_over: str = ""


def digits(data_dir: str) -> Dataset:  # noqa: ARG001 - a dataset's signature
    """Return scikit-learn's 1,797 digits of 8 × 8 (they come with it): 1,437 to train, 360 to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    # Counts of 0..16 to grey levels of 0..255.
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=0
    )

    def split(positions: npt.NDArray[np.int64]) -> Split:
        return Split(
            labels=labels[positions].astype(np.int64),
            read=lambda index: Image.fromarray(pixels[positions[index]]),
            content=lambda index: array_content(pixels[positions[index]]),
        )

    return Dataset("digits", tuple(str(d) for d in range(10)), split(train), split(test))


def folder(path: str, *, site: bool = False) -> Dataset:
    """Read ``path/train/<class>/<image>`` and ``path/test/<class>/<image>``; classes are in natural order.

    Hidden files and folders are passed over, links to folders followed, once a class into each; what is no
    picture that can be opened is counted in a warning.

    Parameters
    ----------
    path : str
        The folder.
    site : bool
        Whether it is one peer's own: a class may then have a folder in train/ without an image, and test/ may
        be missing or empty. Warnings say so.

    Raises
    ------
    DataError
        When a folder is missing, a class has no training image, train/ or test/ has none at all, test/ has a
        class that train/ has not, or one file lies in two classes.
    """
    root = require_parts(path, site=site)
    found, passed_over = folders_in(root / "train")
    tested, beside = folders_in(root / "test")
    passed_over.add(beside)
    classes = in_order(found)
    for alike in look_alikes(classes):
        log.warning("%s: the names of the classes %s", root / "train", alike)
    if doubtful := [name for name in classes if looks_hidden(name) and name not in tested]:
        log.warning(
            "%s: %s are CLASSES here, named as systems name their folders, and have no folder in test/: if "
            "they are none, remove them, or begin their names with a dot",
            root / "train",
            some_names(doubtful),
        )
    for name in in_order(set(tested) - set(classes)):
        raise DataError(
            f"{root / 'test'}: class {name!r} has no folder in train/{differing_unseen(name, classes)}; the "
            f"classes there: {classes}"
        )
    outside, passed_over.files = passed_over.files, []

    def split(part: str) -> Split:
        files: list[Path] = []
        labels: list[int] = []
        empty: list[str] = []
        for label, name in enumerate(classes):
            listing = find_images(root / part / name)
            passed_over.add(listing)
            if part == "train" and not listing.files:
                if not site:
                    kinds = f", but {_kinds(listing)}" if listing.others else ""
                    raise DataError(
                        f"{root / part / name}: no image of class {name!r}{kinds}; add some or remove the "
                        "folder"
                    )
                empty.append(name)
            files += listing.files
            labels += [label] * len(listing.files)
        if not files and (part == "train" or not site):
            raise DataError(f"{root / part}: no image in any class folder")
        if empty:
            log.warning(
                "%s: no image of the classes %s: this peer holds none", root / part, some_names(empty)
            )
        return Split.of_files(files, np.array(labels, dtype=np.int64))

    train, test = split("train"), split("test")
    _tell_passed_over(root, passed_over, outside)
    _check_same_files(root, classes, train, test)
    hidden = passed_over.hidden
    line = f"{root}: {hidden.total()} hidden files and folders are passed over: {some_names([*hidden])}"
    return Dataset(f"folder:{path}", tuple(classes), train, test, line if hidden else "")


def _kinds(found: Listing) -> str:
    """Return how many files there are of each kind that is no picture."""
    return some_names(
        [f"{number} {suffix or 'without a suffix'}" for suffix, number in found.others.most_common()]
    )


def _tell_passed_over(root: Path, found: Listing, outside: Sequence[Path]) -> None:
    """Log what lies in a dataset's folders and is not used, a line for each kind."""
    if found.others:
        log.warning(
            "%s: %d files are no pictures that can be opened here and are not used: %s",
            root,
            found.others.total(),
            _kinds(found),
        )
    if found.loops:
        log.warning("%s: links that lead back to a folder above them: %s", root, some_names(found.loops))
    if found.repeated:
        log.warning(
            "%s: links to folders whose images are in the class already, and count once: %s",
            root,
            some_names(found.repeated),
        )
    if outside:
        log.warning(
            "%s: %d pictures lie in no class's folder and are not used: %s",
            root,
            len(outside),
            some_names(outside),
        )


def _check_same_files(root: Path, classes: Sequence[str], train: Split, test: Split) -> None:
    """Refuse files that links put into two classes; warn of those in train/ and test/, or twice in a class.

    Raises
    ------
    DataError
        With two paths of such a file.
    """
    first: dict[tuple[int, int], tuple[Path, int, bool]] = {}
    twice, in_both, in_two = [], [], []
    for split in (train, test):
        for file, label in zip(split.files or (), split.labels.tolist(), strict=True):
            before, other, trained = first.setdefault(identity(file), (file, label, split is train))
            pair = f"{before} and {file}"
            if other != label:
                in_two.append(f"{pair} ({classes[other]!r} and {classes[label]!r})")
            elif trained and split is test:
                in_both.append(pair)
            elif before != file:
                twice.append(pair)
    if in_two:
        raise DataError(
            f"{root}: {len(in_two)} image files lie in two classes, as {in_two[0]}, which are one file: what "
            "it shows cannot be both; remove it, or the link that leads to it, from one of them"
        )
    if in_both:
        log.warning(
            "%s: %d TEST IMAGES ARE TRAINING IMAGES too, as %s, which are one file: scores on them say "
            "nothing of new images",
            root,
            len(in_both),
            in_both[0],
        )
    if twice:
        log.warning(
            "%s: %d image files lie more than once in their class, as %s, which are one file: they count as "
            "often as they lie there",
            root,
            len(twice),
            twice[0],
        )


@dataclass(frozen=True)
class Sites:
    """Folders of several peers as one dataset.

    Attributes
    ----------
    name : str
        The dataset, with ``{peer}`` in it.
    folders : dict of int to Dataset
        Each peer's own, over the same classes.
    """

    name: str
    folders: Mapping[int, Dataset]

    @cached_property
    def dataset(self) -> Dataset:
        """The images of all these folders, one folder after the other."""
        train, test = ([getattr(f, part) for f in self.folders.values()] for part in ("train", "test"))
        classes = next(iter(self.folders.values())).classes
        return Dataset(self.name, classes, Split.joined(train), Split.joined(test))

    @property
    def train(self) -> dict[int, npt.NDArray[np.int64]]:
        """Peer ↦ positions of its own images in the dataset's training split."""
        return self._positions([f.train for f in self.folders.values()])

    @property
    def test(self) -> dict[int, npt.NDArray[np.int64]]:
        """Peer ↦ positions of its own images in the dataset's test split."""
        return self._positions([f.test for f in self.folders.values()])

    def _positions(self, splits: Sequence[Split]) -> dict[int, npt.NDArray[np.int64]]:
        starts = np.cumsum([0, *(len(split) for split in splits)])
        return {p: np.arange(starts[i], starts[i + 1]) for i, p in enumerate(self.folders)}


def load_sites(name: str, peers: Sequence[int]) -> Sites:
    """Read the folders of ``peers``; no other peer's folder is looked at.

    Parameters
    ----------
    name : str
        ``"folder:/data/site-{peer}"``; ``{peer}`` is replaced by the peer's number.
    peers : sequence of int
        Whose folders, at least one.

    Raises
    ------
    DataError
        When a folder cannot be used, naming the peer, or two have different classes, naming both lists.
    """
    folders: dict[int, Dataset] = {}
    for peer in peers:
        path = name.removeprefix("folder:").replace("{peer}", str(peer))
        try:
            folders[peer] = folder(path, site=True)
        except DataError as error:
            raise DataError(f"peer {peer}: {error}") from error
        first = folders[peers[0]]
        if folders[peer].classes != first.classes:
            new = [c for c in folders[peer].classes if c not in first.classes]
            unseen = [differing_unseen(c, first.classes) for c in new]
            raise DataError(
                f"the class folders in train/ differ: {first.name} has {list(first.classes)}, "
                f"{folders[peer].name} has {list(folders[peer].classes)}{next(filter(None, unseen), '')}; "
                "every peer needs the same folders, empty ones for the classes that it does not hold"
            )
    return Sites(name, folders)


DATASETS: dict[str, Callable[[str], Dataset]] = {"digits": digits}


def load_dataset(name: str, data_dir: str = "", *, download: bool = False, verify: bool = True) -> Dataset:
    """Load a dataset by its run-config value.

    Parameters
    ----------
    name : str
        A key of :data:`DATASETS`, one of :data:`TORCHVISION`, ``"folder:/path"``, or
        ``"my_module:my_dataset"``: a callable that takes ``data_dir`` and returns a :class:`Dataset`.
        Folders of single peers are read by :func:`load_sites`.
    data_dir : str
        Where torchvision's folders lie, empty: ``$P2PFT_HOME/data``; handed on to own datasets.
    download : bool
        Whether torchvision may fetch what is not there.
    verify : bool
        Refuse torchvision's files when their md5 sums are not the official ones.

    Raises
    ------
    ConfigError
        When there is no such dataset.
    DataError
        When its files cannot be used.
    """
    check_dataset_name(name)
    if name.startswith("folder:"):
        return folder(name.removeprefix("folder:"))
    if name in DATASETS:
        return DATASETS[name](data_dir)
    if name in TORCHVISION:
        from p2pft_flower.learning.data.torchvision_sets import load_torchvision

        return _checked(name, load_torchvision(name, data_dir, download=download, verify=verify))
    own = _checked(name, call_reference(name, data_dir, key="dataset"))

    def reading(split: Split, part: str) -> Split:
        called = f"dataset = {name!r}, {part}"

        def read(index: int) -> Source:
            with telling_of_the_bundle(name, key="dataset"):
                found = split.read(index)
            return require_image(found, f"{called} image {index}")

        # What its reader makes of a file may change: only what it returns can name an image.
        return replace(split, read=read, content=None, called=called)

    train, test = reading(own.train, "train"), reading(own.test, "test")
    return replace(own, train=train, test=test)


def _checked(name: str, dataset: object) -> Dataset:
    if not isinstance(dataset, Dataset):
        raise ConfigError(
            f"dataset = {name!r} returned a {type(dataset).__name__}, not a p2pft_flower Dataset"
        )
    splits: Sequence[tuple[str, Split]] = (("train", dataset.train), ("test", dataset.test))
    for part, split in splits:
        labels = split.labels
        if not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.ndim != 1:
            raise DataError(f"dataset = {name!r}: the labels of its {part} split are not an (N,) int64 array")
        outside = set(np.unique(labels).tolist()) - set(range(len(dataset.classes)))
        if outside or len(split) == 0:
            what = (
                f"labels {sorted(outside)} beyond its {len(dataset.classes)} classes"
                if outside
                else "no images"
            )
            raise DataError(f"dataset = {name!r}: its {part} split has {what}")
    held = set(np.unique(dataset.train.labels).tolist())
    absent = [c for label, c in enumerate(dataset.classes) if label not in held]
    if absent:
        raise DataError(
            f"dataset = {name!r}: its train split has no image of {len(absent)} of {len(dataset.classes)} "
            f"classes: {some_names(absent)}; add some, or leave the classes out"
        )
    return dataset
