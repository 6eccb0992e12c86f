"""Labelled images by name: scikit-learn's digits, torchvision's sets, folders of images, and own datasets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.images import array_content, file_content, image_files, read_image
from p2pft_flower.plugins import is_reference, load_reference

__all__ = [
    "DATASETS",
    "TORCHVISION",
    "Dataset",
    "Sites",
    "Split",
    "load_dataset",
    "load_sites",
    "some_names",
]

TEST_SHARE = 0.2
"""Share of the digits that is kept for testing; the split is fixed, whatever the run's seed."""

NAMED = 10
"""A warning names this many files, and counts the others."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Images with labels, read when asked for.

    Attributes
    ----------
    labels : (N,) int64 array
        Class of each image.
    read : callable
        Position ↦ the image, as PIL has it. It may be called from several threads at once.
    content : callable, optional
        Position ↦ bytes that tell the image from every other, faster than reading it does: a file's
        content (:func:`file_content`), an array's pixels with their shape (:func:`array_content`). Without
        it, mode, size and pixels of what ``read`` returns.
    files : sequence of Path, optional
        The images' files, where each has one of its own; errors name them.
    """

    labels: npt.NDArray[np.int64]
    read: Callable[[int], Image.Image]
    content: Callable[[int], bytes] | None = None
    files: Sequence[Path] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def identity(self, index: int) -> bytes:
        """Return the bytes that tell image ``index`` from every other.

        Raises
        ------
        DataError
            When its file cannot be read.
        """
        if self.content is not None:
            return self.content(index)
        image = self.read(index)
        palette = bytes(image.getpalette() or ()) if image.mode in ("P", "PA") else b""
        return f"{image.mode} {image.size} ".encode() + palette + image.tobytes()

    def digest(self, index: int) -> bytes:
        """Return 16 bytes (XXH3-128 of :meth:`identity`) by which a cache may know image ``index``.

        Raises
        ------
        DataError
            When its file cannot be read.
        """
        return xxhash.xxh3_128_digest(self.identity(index))

    def name(self, index: int, what: str) -> str:
        """Return how errors call image ``index``: by its file, else ``what`` images it is one of."""
        return f"{what} image {index}" if self.files is None else str(self.files[index])

    @classmethod
    def of_files(cls, files: Sequence[Path], labels: npt.NDArray[np.int64]) -> Split:
        """Return the images of ``files``, with their ``labels``, (N,) int64."""
        return cls(
            labels,
            lambda index: read_image(files[index]),
            lambda index: file_content(files[index]),
            files,
        )

    @classmethod
    def joined(cls, parts: Sequence[Split]) -> Split:
        """Return the images of ``parts``, one after the other, as one split."""
        starts = np.cumsum([0, *(len(part) for part in parts)])

        def of(index: int) -> tuple[Split, int]:
            # The last part that begins at or before: an empty one begins where its successor does.
            number = int(np.searchsorted(starts, index, side="right")) - 1
            return parts[number], index - int(starts[number])

        def read(index: int) -> Image.Image:
            part, inside = of(index)
            return part.read(inside)

        def content(index: int) -> bytes:
            part, inside = of(index)
            return part.identity(inside)

        named = [part.files for part in parts if part.files is not None]
        files = [file for some in named for file in some] if len(named) == len(parts) else None
        return cls(np.concatenate([part.labels for part in parts]), read, content, files)


@dataclass(frozen=True)
class Dataset:
    """A training and a test split over the same classes."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split


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


def folder(path: str, *, empty_classes: bool = False) -> Dataset:
    """Read ``path/train/<class>/<image>`` and ``path/test/<class>/<image>``.

    Parameters
    ----------
    path : str
        The folder.
    empty_classes : bool
        Whether a class may have a folder in train/ without an image; a warning names it then.

    Raises
    ------
    DataError
        When a folder is missing, a class has no training image, train/ or test/ has none at all, or test/
        has a class that train/ has not.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(
            f"dataset folder {path!r} does not exist; give an absolute path that the peers' machine has"
        )
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise DataError(
                f"dataset folder {path!r} has no {part}/; it needs train/ and test/ with a folder a class"
            )
    classes = sorted(p.name for p in (root / "train").iterdir() if p.is_dir())
    strange = sorted({p.name for p in (root / "test").iterdir() if p.is_dir()} - set(classes))
    if strange:
        raise DataError(
            f"{root / 'test'}: class {strange[0]!r} has no folder in train/; the classes there: {classes}"
        )

    def split(part: str) -> Split:
        files: list[Path] = []
        labels: list[int] = []
        empty: list[str] = []
        for label, name in enumerate(classes):
            found = image_files(root / part / name)
            if part == "train" and not found:
                if not empty_classes:
                    raise DataError(
                        f"{root / part / name}: no image of class {name!r}; add some or remove the folder"
                    )
                empty.append(name)
            files += found
            labels += [label] * len(found)
        if not files:
            raise DataError(f"{root / part}: no image in any class folder")
        if empty:
            log.warning(
                "%s: no image of the classes %s: this peer holds none", root / part, some_names(empty)
            )
        return Split.of_files(files, np.array(labels, dtype=np.int64))

    return Dataset(f"folder:{path}", tuple(classes), split("train"), split("test"))


@dataclass(frozen=True)
class Sites:
    """Folders of several peers as one dataset, and who holds what of it.

    Attributes
    ----------
    dataset : Dataset
        The images of all these folders, one folder after the other.
    train, test : dict of int to int64 array
        Peer ↦ positions of its own images in the dataset's training and test split.
    """

    dataset: Dataset
    train: Mapping[int, npt.NDArray[np.int64]]
    test: Mapping[int, npt.NDArray[np.int64]]


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
            folders[peer] = folder(path, empty_classes=True)
        except DataError as error:
            raise DataError(f"peer {peer}: {error}") from error
        first = folders[peers[0]]
        if folders[peer].classes != first.classes:
            raise DataError(
                f"the class folders in train/ differ: {first.name} has {list(first.classes)}, "
                f"{folders[peer].name} has {list(folders[peer].classes)}; every peer needs the same folders, "
                "empty ones for the classes that it does not hold"
            )

    def positions(splits: Mapping[int, Split]) -> dict[int, npt.NDArray[np.int64]]:
        starts = np.cumsum([0, *(len(split) for split in splits.values())])
        return {p: np.arange(starts[i], starts[i + 1]) for i, p in enumerate(splits)}

    train = {peer: site.train for peer, site in folders.items()}
    test = {peer: site.test for peer, site in folders.items()}
    whole = Dataset(
        name, folders[peers[0]].classes, Split.joined([*train.values()]), Split.joined([*test.values()])
    )
    return Sites(whole, positions(train), positions(test))


def some_names(names: Sequence[object]) -> str:
    """Write the first names, and count the others."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(str(name) for name in names[:NAMED]) + more


DATASETS: dict[str, Callable[[str], Dataset]] = {"digits": digits}

TORCHVISION = ("cifar10", "cifar100", "oxford-iiit-pet", "oxford-flowers102")
"""The sets of :mod:`p2pft_flower.learning.torchvision_sets`, which is heavy to import."""


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
    if name.startswith("folder:"):
        return folder(name.removeprefix("folder:"))
    if name in DATASETS:
        return DATASETS[name](data_dir)
    if name in TORCHVISION:
        from p2pft_flower.learning.torchvision_sets import load_torchvision

        return _checked(name, load_torchvision(name, data_dir, download=download, verify=verify))
    if is_reference(name):
        own = _checked(name, load_reference(name, key="dataset")(data_dir))
        # What its reader makes of a file may change: only what it returns can name an image.
        train, test = (replace(split, content=None) for split in (own.train, own.test))
        return replace(own, train=train, test=test)
    raise ConfigError(
        f"dataset = {name!r} is unknown; choose one of {', '.join([*DATASETS, *TORCHVISION])}, "
        "folder:/path, my_module:my_dataset"
    )


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
