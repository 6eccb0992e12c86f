"""Labelled images by name: scikit-learn's digits, torchvision's sets, folders of images, and own datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.plugins import is_reference, load_reference

__all__ = ["DATASETS", "TORCHVISION", "Dataset", "Split", "load_dataset", "read_image"]

TEST_SHARE = 0.2
"""Share of the digits that is kept for testing; the split is fixed, whatever the run's seed."""


@dataclass(frozen=True)
class Split:
    """Images with labels, read when asked for.

    Attributes
    ----------
    labels : (N,) int64 array
        Class of each image.
    read : callable
        Position ↦ the image, as PIL has it.
    """

    labels: npt.NDArray[np.int64]
    read: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.labels)


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
        )

    return Dataset("digits", tuple(str(d) for d in range(10)), split(train), split(test))


def folder(path: str) -> Dataset:
    """Read ``path/train/<class>/<image>`` and ``path/test/<class>/<image>``.

    Raises
    ------
    DataError
        When a folder is missing, a class has no training image, test/ has none at all, or has a class that
        train/ has not.
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

    known = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}

    def split(part: str) -> Split:
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            here = root / part / name
            found = sorted(p for p in here.rglob("*") if p.suffix.lower() in known) if here.is_dir() else []
            if part == "train" and not found:
                raise DataError(f"{here}: no image of class {name!r}; add some or remove the folder")
            files += found
            labels += [label] * len(found)
        if not files:
            raise DataError(f"{root / part}: no image in any class folder")

        return Split(np.array(labels, dtype=np.int64), lambda index: read_image(files[index]))

    return Dataset(f"folder:{path}", tuple(classes), split("train"), split("test"))


def read_image(file: Path) -> Image.Image:
    """Read an image file; greys of 16 bits become 8.

    Raises
    ------
    DataError
        When it cannot be read, naming it.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return _eight_bits(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: not a readable image ({error}); repair or remove it") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion of 16-bit greys clips at 255: nearly all would be white.
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


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
        return _checked(name, load_reference(name, key="dataset")(data_dir))
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
    return dataset
