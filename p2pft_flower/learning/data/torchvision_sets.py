"""The paper's four datasets, in the folders that torchvision makes and reads."""

from __future__ import annotations

import fcntl
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets as torchvision
from torchvision.datasets.utils import check_integrity

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.images import array_content
from p2pft_flower.learning.data.splits import Dataset, Split
from p2pft_flower.learning.data.torchvision_folders import FOLDERS, data_root, find_folder, require_folder

__all__ = ["load_torchvision"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The way to fetch and read one of the datasets; `torchvision_folders.py` has its folder.

    Attributes
    ----------
    md5 : dict
        The official md5 sums of the files that have one.
    fetch : callable
        Downloads the dataset's folder into a given folder.
    read : callable
        Folder ``data-dir`` ↦ the dataset, after the md5 sums were checked.
    """

    md5: dict[str, str]
    fetch: Callable[[str], object]
    read: Callable[[Path], Dataset]


def load_torchvision(name: str, data_dir: str, *, download: bool, verify: bool) -> Dataset:
    """Load ``cifar10``, ``cifar100``, ``oxford-iiit-pet`` or ``oxford-flowers102``.

    The training split is torchvision's ``train`` (CIFAR), ``trainval`` (Pets), or ``train`` and ``val``
    together (Flowers: 20 images of each class); the test split is torchvision's ``test``.

    Parameters
    ----------
    name : str
        A key of :data:`SOURCES`.
    data_dir : str
        The folder that holds torchvision's; empty: ``$P2PFT_HOME/data``.
    download : bool
        Whether torchvision may fetch missing files.
    verify : bool
        Whether md5 sums that are not the official ones are an error or a warning. There are none for Pets.

    Raises
    ------
    DataError
        When the folder is missing or incomplete, cannot be fetched or read, or differs from the official.
    """
    source, root = SOURCES[name], data_root(data_dir)
    if download and find_folder(name, data_dir) is None:
        _download(name, source.fetch, root)
    folder = require_folder(name, data_dir)
    odd = [file for file, md5 in source.md5.items() if not check_integrity(folder / file, md5)]
    if odd and verify:
        raise DataError(
            f"dataset = {name!r}: in {folder} the md5 sums of {', '.join(odd)} are not the official ones; "
            "set verify = false if you trust these files, or remove them and set download = true"
        )
    if odd:
        log.warning(
            "verify = false: %s in %s are NOT the official files of %s (other md5 sums); "
            "figures hold for this copy only",
            ", ".join(odd),
            folder,
            name,
        )
    try:
        return source.read(root)
    except DataError:
        raise
    except Exception as error:  # the readers of torchvision and SciPy raise many kinds of errors
        raise DataError(f"dataset = {name!r}: {folder} cannot be read: {error!r}") from error


def _download(name: str, fetch: Callable[[str], object], root: Path) -> None:
    """Fetch into a temporary folder and rename it: other processes see a whole dataset or none."""
    folder = FOLDERS[name].name
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / f".{folder}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (root / folder).is_dir():  # another process was faster
                return
            log.info("dataset %s: downloading into %s", name, root)
            with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as aside:
                fetch(aside)
                (Path(aside) / folder).rename(root / folder)
    except Exception as error:  # errors of network, disk and archives pass through torchvision
        raise DataError(
            f"dataset = {name!r}: the download into {root} failed: {error}; "
            f"give data-dir = a folder that holds {folder}/"
        ) from error


def _cifar(name: str, reader: Any) -> Source:
    md5 = dict([*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])])
    # torchvision checks md5 sums while it reads; a subclass without them reads copies too.
    lenient = type(
        f"Lenient{reader.__name__}",
        (reader,),
        {
            "train_list": [[file, None] for file, _ in reader.train_list],
            "test_list": [[file, None] for file, _ in reader.test_list],
            "meta": reader.meta | {"md5": None},
        },
    )

    def split(part: Any) -> Split:
        return Split(
            np.array(part.targets, dtype=np.int64),
            lambda index: Image.fromarray(part.data[index]),
            lambda index: array_content(part.data[index]),
        )

    def read(root: Path) -> Dataset:
        train, test = lenient(str(root), train=True), lenient(str(root), train=False)
        return Dataset(name, tuple(train.classes), split(train), split(test))

    return Source(md5, lambda root: reader(root, download=True), read)


# torchvision's readers of Pets and Flowers give labels only with the decoded images, one by one.


def _files(files: Sequence[Path], labels: Sequence[int]) -> Split:
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: no such image, and {len(missing)} in all of {len(files)} are missing")
    return Split.of_files(files, np.array(labels, dtype=np.int64))


def _read_pets(root: Path) -> Dataset:
    folder = root / FOLDERS["oxford-iiit-pet"].name
    names: dict[int, str] = {}

    def split(part: str) -> Split:
        rows = [line.split() for line in (folder / "annotations" / f"{part}.txt").read_text().splitlines()]
        labels = [int(row[1]) - 1 for row in rows]
        for row, label in zip(rows, labels, strict=True):
            names[label] = row[0].rpartition("_")[0].replace("_", " ").title()
        return _files([folder / "images" / f"{row[0]}.jpg" for row in rows], labels)

    train, test = split("trainval"), split("test")
    classes = tuple(names.get(label, str(label)) for label in range(max(names) + 1))
    return Dataset("oxford-iiit-pet", classes, train, test)


def _read_flowers(root: Path) -> Dataset:
    from scipy.io import loadmat

    folder = root / FOLDERS["oxford-flowers102"].name
    of_image = loadmat(folder / "imagelabels.mat")["labels"].ravel().astype(np.int64) - 1
    numbers = loadmat(folder / "setid.mat")

    def split(*parts: str) -> Split:
        ids = np.concatenate([numbers[part].ravel() for part in parts]).astype(np.int64)
        return _files([folder / "jpg" / f"image_{i:05d}.jpg" for i in ids], of_image[ids - 1].tolist())

    count = int(of_image.max()) + 1
    names = tuple(getattr(torchvision.Flowers102, "classes", ()))  # newer versions of torchvision
    classes = names if len(names) == count else tuple(str(label) for label in range(count))
    return Dataset("oxford-flowers102", classes, split("trnid", "valid"), split("tstid"))


SOURCES = {
    "cifar10": _cifar("cifar10", torchvision.CIFAR10),
    "cifar100": _cifar("cifar100", torchvision.CIFAR100),
    "oxford-iiit-pet": Source(
        {},
        lambda root: torchvision.OxfordIIITPet(root, download=True),
        _read_pets,
    ),
    "oxford-flowers102": Source(
        {
            "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
            "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
        },
        lambda root: torchvision.Flowers102(root, download=True),
        _read_flowers,
    ),
}
"""The datasets by their run-config value."""
