"""Datasets by name: scikit-learn's digits, torchvision's sets, folders, tables, features, own ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.dataset_names import (
    FEATURES,
    FOLDER,
    HF,
    TABLE,
    TORCHVISION,
    check_dataset_name,
)
from p2pft_flower.learning.data.digits import digits
from p2pft_flower.learning.data.feature_files import features
from p2pft_flower.learning.data.hf_sets import hf_dataset
from p2pft_flower.learning.data.image_folders import folder
from p2pft_flower.learning.data.label_arrays import (
    SEPARATOR,
    has_several,
    held_classes,
    warn_of_one_each,
)
from p2pft_flower.learning.data.medmnist_files import MEDMNIST, medmnist
from p2pft_flower.learning.data.names import some_names
from p2pft_flower.learning.data.own_images import require_image
from p2pft_flower.learning.data.pixels import Source
from p2pft_flower.learning.data.splits import Dataset, Split
from p2pft_flower.learning.data.tables import table
from p2pft_flower.plugins import call_reference, telling_of_the_bundle

__all__ = ["DATASETS", "TORCHVISION", "Dataset", "Split", "load_dataset"]

DATASETS: dict[str, Callable[[str], Dataset]] = {"digits": digits}


def load_dataset(
    name: str,
    data_dir: str = "",
    *,
    download: bool = False,
    verify: bool = True,
    missing_ok: bool = False,
    untested: bool = False,
    known: Sequence[str] | None = None,
) -> Dataset:
    """Load a dataset by its run-config value.

    Parameters
    ----------
    name : str
        A key of :data:`DATASETS`, one of :data:`TORCHVISION`, ``"folder:/path"``, ``"features:/path"``,
        ``"table:/path"``, ``"medmnist:NAME"``, ``"hf:NAME"``, or ``"my_module:my_dataset"``: a callable that
        takes ``data_dir`` and returns a :class:`Dataset`.
        Folders of single peers are read by
        :func:`~p2pft_flower.learning.data.sites.load_sites`.
    data_dir : str
        The folder of torchvision's folders or MedMNIST's files, by default ``$P2PFT_HOME/data``; of a table's
        images, by default its own; passed to a callable of the user's own.
    download : bool
        Whether a missing dataset may be fetched by torchvision or from Hugging Face's hub.
    verify : bool
        Whether torchvision's files are refused if their md5 sums are not the official ones.
    missing_ok, untested : bool
        Whether images of a table may be missing, and whether it needs no test rows.
    known : sequence of str, optional
        The classes of a model that is scored, with which a table needs no training rows.

    Raises
    ------
    ConfigError
        When there is no such dataset, or the user's callable returns something else.
    DataError
        When the dataset's files cannot be used, a split has no images or wrong labels, or a class has no
        training image.
    """
    check_dataset_name(name)
    if name.startswith(FOLDER):
        return folder(name.removeprefix(FOLDER))
    if name.startswith(FEATURES):
        return features(name.removeprefix(FEATURES))
    if name.startswith(TABLE):
        return table(
            name.removeprefix(TABLE), data_dir, missing_ok=missing_ok, untested=untested, known=known
        )
    if name in DATASETS:
        return DATASETS[name](data_dir)
    if name in TORCHVISION or name.startswith((MEDMNIST, HF)):
        return _checked(name, _published(name, data_dir, download=download, verify=verify))
    return _users_own(name, data_dir)


def _published(name: str, data_dir: str, *, download: bool, verify: bool) -> Dataset:
    if name.startswith(MEDMNIST):
        return medmnist(name, data_dir)
    if name.startswith(HF):
        return hf_dataset(name, download=download)
    from p2pft_flower.learning.data.torchvision_sets import load_torchvision

    return load_torchvision(name, data_dir, download=download, verify=verify)


def _users_own(name: str, data_dir: str) -> Dataset:
    own = _checked(name, call_reference(name, data_dir, key="dataset"))

    def reading(split: Split, part: str) -> Split:
        called = f"dataset = {name!r}, {part}"

        def read(index: int) -> Source:
            with telling_of_the_bundle(name, key="dataset"):
                found = split.read(index)
            return require_image(found, f"{called} image {index}")

        # A reader may change how it decodes a file: only the image that it returns identifies it.
        return replace(split, read=read, content=None, called=called)

    train, test = reading(own.train, "train"), reading(own.test, "test")
    return replace(own, train=train, test=test)


def _check_several(name: str, part: str, labels: npt.NDArray[np.int64], classes: Sequence[str]) -> None:
    """Refuse labels of a split, (N, C), that are not 0 and 1 for each class.

    Raises
    ------
    DataError
        When they are others, there is no image, or a class has a name that no list of labels can hold.
    """
    what = f"dataset = {name!r}: the labels of its {part} split"
    if not len(labels):
        raise DataError(f"dataset = {name!r}: its {part} split has no images")
    if labels.shape[1] != len(classes):
        raise DataError(
            f"{what} are {labels.shape}, but there are {len(classes)} classes: give a column each"
        )
    wrong = np.flatnonzero(((labels != 0) & (labels != 1)).any(axis=1))
    if len(wrong):
        raise DataError(f"{what} are of several an image, but row {wrong[0]} has others than 0 and 1")
    if odd := [name for name in classes if SEPARATOR in name]:
        raise DataError(
            f"{what} are of several an image, and the class {odd[0]!r} has {SEPARATOR} in its name, which "
            "separates names: rename it"
        )


def _checked(name: str, dataset: object) -> Dataset:
    if not isinstance(dataset, Dataset):
        raise ConfigError(
            f"dataset = {name!r} returned a {type(dataset).__name__}, not a p2pft_flower Dataset"
        )
    splits: Sequence[tuple[str, Split]] = (("train", dataset.train), ("test", dataset.test))
    for part, split in splits:
        labels = split.labels
        if not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.ndim not in (1, 2):
            raise DataError(f"dataset = {name!r}: the labels of its {part} split are not an (N,) int64 array")
        if has_several(labels):
            _check_several(name, part, labels, dataset.classes)
            continue
        outside = set(np.unique(labels).tolist()) - set(range(len(dataset.classes)))
        if outside or len(split) == 0:
            what = (
                f"labels {sorted(outside)} beyond its {len(dataset.classes)} classes"
                if outside
                else "no images"
            )
            raise DataError(f"dataset = {name!r}: its {part} split has {what}")
    if dataset.several_labels != has_several(dataset.test.labels):
        raise DataError(
            f"dataset = {name!r}: the labels of its splits are (N,) of one split, (N, C) of the other"
        )
    held = set(held_classes(dataset.train.labels).tolist())
    absent = [c for label, c in enumerate(dataset.classes) if label not in held]
    if absent:
        raise DataError(
            f"dataset = {name!r}: its train split has no image of {len(absent)} of {len(dataset.classes)} "
            f"classes: {some_names(absent)}; add some, or leave the classes out"
        )
    warn_of_one_each(name, dataset.train.labels, dataset.test.labels)
    return dataset
