"""The folders of torchvision's datasets, found without importing torchvision, which takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2pft_flower.errors import DataError
from p2pft_flower.resources import home

__all__ = ["FOLDERS", "TorchvisionFolder", "data_root", "find_folder", "require_folder"]


@dataclass(frozen=True)
class TorchvisionFolder:
    """A dataset's folder below ``data-dir``.

    Attributes
    ----------
    name : str
        The folder's name.
    needs : tuple of str
        Files and folders that must be in the folder.
    """

    name: str
    needs: tuple[str, ...]


FOLDERS = {
    "cifar10": TorchvisionFolder(
        "cifar-10-batches-py",
        (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
    ),
    "cifar100": TorchvisionFolder("cifar-100-python", ("train", "test", "meta")),
    "oxford-iiit-pet": TorchvisionFolder(
        "oxford-iiit-pet", ("images", "annotations/trainval.txt", "annotations/test.txt")
    ),
    "oxford-flowers102": TorchvisionFolder("flowers-102", ("jpg", "imagelabels.mat", "setid.mat")),
}
"""The folders, by the run-config's ``dataset``."""


def data_root(data_dir: str) -> Path:
    """Return the folder that holds torchvision's folders: ``data_dir``; if empty, ``$P2PFT_HOME/data``."""
    return Path(data_dir).expanduser() if data_dir else home() / "data"


def find_folder(dataset: str, data_dir: str) -> Path | None:
    """Return a dataset's folder; None if the folder does not exist.

    Parameters
    ----------
    dataset : str
        A key of :data:`FOLDERS`.
    data_dir : str
        The run-config's ``data-dir``, as for :func:`data_root`.

    Raises
    ------
    DataError
        When something is missing in the folder.
    """
    layout = FOLDERS[dataset]
    folder = data_root(data_dir) / layout.name
    if not folder.is_dir():
        return None
    missing = [file for file in layout.needs if not (folder / file).exists()]
    if missing:
        raise DataError(
            f"dataset = {dataset!r}: {folder} lacks {', '.join(missing)}; "
            "complete it, or remove it and set download = true"
        )
    return folder


def require_folder(dataset: str, data_dir: str) -> Path:
    """Return a dataset's folder without downloading it.

    Raises
    ------
    DataError
        When the folder does not exist, or something is missing in it.
    """
    folder = find_folder(dataset, data_dir)
    if folder is None:
        name = FOLDERS[dataset].name
        raise DataError(
            f"dataset = {dataset!r}: there is no folder {data_root(data_dir) / name}; "
            f"give data-dir = the folder that holds {name}/, or download = true"
        )
    return folder
