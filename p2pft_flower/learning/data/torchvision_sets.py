"""The paper's four datasets, in torchvision's folders; torchvision itself is imported to download only."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.cifar_files import read_cifar, read_names
from p2pft_flower.learning.data.flower_names import FLOWERS
from p2pft_flower.learning.data.images import array_content
from p2pft_flower.learning.data.splits import Dataset, Split
from p2pft_flower.learning.data.torchvision_folders import FOLDERS, data_root, find_folder, require_folder

__all__ = ["load_torchvision"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The way to fetch and read one of the datasets; `torchvision_folders.py` names the folder.

    Attributes
    ----------
    md5 : dict of str to str
        The official md5 sum of each file that has one.
    fetch : callable
        Downloads the dataset's folder into a given folder.
    read : callable
        Folder ``data-dir`` ↦ the dataset; called after the md5 sums were checked.
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
        The folder that holds torchvision's folders; empty: ``$P2PFT_HOME/data``.
    download : bool
        Whether torchvision may fetch the dataset if its folder does not exist.
    verify : bool
        Whether md5 sums that are not the official ones are an error; else they are a warning. Pets have none.

    Raises
    ------
    DataError
        When the folder is missing or incomplete, cannot be fetched or read, or differs from the official one.
    """
    source, root = SOURCES[name], data_root(data_dir)
    if download and find_folder(name, data_dir) is None:
        _download(name, source.fetch, root)
    folder = require_folder(name, data_dir)
    odd = [file for file, md5 in source.md5.items() if _md5(folder / file) != md5]
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
    except Exception as error:  # the readers of pickles and SciPy raise many kinds of errors
        raise DataError(f"dataset = {name!r}: {folder} cannot be read: {error!r}") from error


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _download(name: str, fetch: Callable[[str], object], root: Path) -> None:
    """Fetch a dataset into a temporary folder and rename it: other processes see a whole dataset or none."""
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


def _torchvision(reader: str) -> Callable[[str], object]:
    """Return a function that downloads a dataset by torchvision's reader, the only use of torchvision."""

    def fetch(root: str) -> object:
        from torchvision import datasets

        return getattr(datasets, reader)(root, download=True)

    return fetch


def _cifar(name: str, reader: str, md5: dict[str, str], train: Sequence[str], test: str, meta: str) -> Source:
    def read(root: Path) -> Dataset:
        folder = root / FOLDERS[name].name

        def split(*files: str) -> Split:
            pixels, labels = read_cifar(*(folder / file for file in files))
            return Split(
                labels,
                lambda index: Image.fromarray(pixels[index]),
                lambda index: array_content(pixels[index]),
            )

        return Dataset(name, read_names(folder / meta), split(*train), split(test))

    return Source(md5, _torchvision(reader), read)


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
    classes = FLOWERS if len(FLOWERS) == count else tuple(str(label) for label in range(count))
    return Dataset("oxford-flowers102", classes, split("trnid", "valid"), split("tstid"))


_CIFAR10 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
_CIFAR100 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}

SOURCES = {
    "cifar10": _cifar("cifar10", "CIFAR10", _CIFAR10, [*_CIFAR10][:5], "test_batch", "batches.meta"),
    "cifar100": _cifar("cifar100", "CIFAR100", _CIFAR100, ["train"], "test", "meta"),
    "oxford-iiit-pet": Source({}, _torchvision("OxfordIIITPet"), _read_pets),
    "oxford-flowers102": Source(
        {
            "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
            "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
        },
        _torchvision("Flowers102"),
        _read_flowers,
    ),
}
"""The datasets by their run-config value."""
