"""Names of datasets, the folders from which they are read, and checks of both without reading an image."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from p2pft_flower.errors import ConfigError, DataError, did_you_mean
from p2pft_flower.learning.data.array_files import SUFFIXES
from p2pft_flower.learning.data.by_column import Columns
from p2pft_flower.learning.data.feature_files import feature_classes, require_feature_file
from p2pft_flower.learning.data.hf_names import HF, read_hf_name, require_hf
from p2pft_flower.learning.data.images import folders_in
from p2pft_flower.learning.data.medmnist_files import (
    MEDMNIST,
    check_medmnist_name,
    medmnist_classes,
    medmnist_has_several,
    require_medmnist,
)
from p2pft_flower.learning.data.names import in_order, some_names
from p2pft_flower.learning.data.table_files import SUFFIXES as TABLES
from p2pft_flower.learning.data.table_files import read_table, table_classes, table_columns
from p2pft_flower.learning.data.torchvision_folders import FOLDERS, require_folder
from p2pft_flower.plugins import is_reference

__all__ = [
    "BUILT_IN",
    "FEATURES",
    "FOLDER",
    "HF",
    "MEDMNIST",
    "TABLE",
    "TORCHVISION",
    "check_dataset_name",
    "classes_of",
    "columns_of",
    "data_dir_of",
    "is_users_own",
    "reads_data_dir",
    "refuse_data_dir",
    "require_data",
    "require_parts",
    "several_labels_in",
]

BUILT_IN = ("digits",)
"""Names of datasets that come with a library, the keys of ``DATASETS`` in ``datasets.py``."""

TORCHVISION = tuple(FOLDERS)
"""Names of the datasets of :mod:`p2pft_flower.learning.data.torchvision_sets`."""

FOLDER = "folder:"
"""The beginning of a ``dataset`` that is a folder; the folder's path follows."""

FEATURES = "features:"
"""The beginning of a ``dataset`` of features that were made elsewhere; the file's path follows."""

TABLE = "table:"
"""The beginning of a ``dataset`` that is a table of images; the path of the CSV follows."""

_PLACES = (FOLDER, FEATURES, TABLE)

_OURS = (*_PLACES, MEDMNIST, HF)
"""Beginnings of datasets of this package, some of which look like references to a user's own module."""


def is_users_own(dataset: str) -> bool:
    """Return whether ``dataset`` names a callable of the user's own, as ``my_module:my_dataset``."""
    return is_reference(dataset) and not dataset.startswith(_OURS)


def check_dataset_name(name: str) -> None:
    """Refuse an unknown dataset.

    Parameters
    ----------
    name : str
        The run-config's ``dataset``.

    Raises
    ------
    ConfigError
        When the dataset is unknown; the message gives the nearest name and the choices.
    """
    known = [*BUILT_IN, *TORCHVISION]
    if name.startswith(MEDMNIST):
        check_medmnist_name(name)
        return
    if name.startswith(HF):
        read_hf_name(name)
        return
    if name.startswith(_PLACES) and name not in _PLACES:
        return
    if name in known or is_users_own(name):
        return
    within = [k for k in known if name.rstrip("s") in k] if len(name) > 2 else []
    nearest = did_you_mean(name, known, 2) or (f"; did you mean {within[0]!r}?" if len(within) == 1 else "")
    kind, colon, place = name.partition(":")
    if colon and (meant := get_close_matches(kind + colon, _OURS, n=1)):
        nearest = f"; did you mean {meant[0] + place!r}?"
    elif Path(name).is_dir():
        nearest = f"; did you mean 'folder:{name}'?"
    elif Path(name).suffix in SUFFIXES:
        nearest = f"; did you mean 'features:{name}'?"
    elif Path(name).suffix in TABLES:
        nearest = f"; did you mean 'table:{name}'?"
    raise ConfigError(
        f"dataset = {name!r} is unknown; choose one of {', '.join(known)}, folder:/path, table:/path, "
        f"features:/path, medmnist:NAME, hf:NAME, my_module:my_dataset{nearest}"
    )


def reads_data_dir(dataset: str) -> bool:
    """Return whether ``dataset`` uses the run-config's ``data-dir``."""
    return dataset in TORCHVISION or dataset.startswith((TABLE, MEDMNIST)) or is_users_own(dataset)


def data_dir_of(dataset: str, run_dataset: str, run_data_dir: str) -> str:
    """Return the ``data-dir`` with which ``dataset`` is read in place of a run's own dataset.

    That of the run counts only for what may lie in it: a table's paths lead from the table's own folder, so
    images of the same names in the folder of another table's images are not taken for its own.

    Parameters
    ----------
    dataset : str
        The dataset to read.
    run_dataset, run_data_dir : str
        The values of the run's run-config.
    """
    if dataset == run_dataset:
        return run_data_dir if reads_data_dir(dataset) else ""
    published = all(name in TORCHVISION or name.startswith(MEDMNIST) for name in (dataset, run_dataset))
    own = is_users_own(dataset) and is_users_own(run_dataset)
    return run_data_dir if published or own else ""


def refuse_data_dir(dataset: str, data_dir: str, where: str = "") -> None:
    """Refuse a ``data-dir`` that the dataset does not read.

    Parameters
    ----------
    dataset, data_dir : str
        The run-config's values; ``data_dir`` may be empty.
    where : str
        The place of the setting, for the message, as ``" in --node-config"``.

    Raises
    ------
    ConfigError
        When ``data_dir`` is given and the dataset does not read it; the message gives the remedy.
    """
    if not data_dir or reads_data_dir(dataset):
        return
    kind = next((beginning for beginning in (FOLDER, FEATURES, HF) if dataset.startswith(beginning)), "")
    remedy = (
        f"it names its place itself: give dataset = {kind}/other/path"
        if kind
        else f"leave it out, or choose one of {', '.join(TORCHVISION)}, table:/path, medmnist:NAME or "
        "my_module:my_dataset, which read it"
    )
    raise ConfigError(f"data-dir = {data_dir!r}{where}: dataset = {dataset!r} does not read it; {remedy}")


def require_parts(path: str, *, site: bool = False) -> Path:
    """Return the folder of ``folder:PATH``, after a check that the folders that are needed exist.

    Parameters
    ----------
    path : str
        The folder.
    site : bool
        Whether the folder is one peer's own, which needs no test/.

    Raises
    ------
    DataError
        When the folder itself, train/, or a test/ that is needed is missing.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(
            f"dataset folder {path!r} does not exist; give an absolute path that the peers' machine has"
        )
    for part in ("train", "test"):
        if not (root / part).is_dir() and not (site and part == "test"):
            sites = in_order(p.parent.name for p in root.glob("*[0-9]/train"))
            sets = f"; it holds {some_names(sites)}: is it folder:{path}/…{{peer}}?" if sites else ""
            raise DataError(
                f"dataset folder {path!r} has no {part}/; it needs train/ and test/ with a folder a class"
                f"{sets}"
            )
    return root


def classes_of(dataset: str) -> tuple[str, ...] | None:
    """Return the names of a dataset's classes if they are known without reading images or files, else None.

    Parameters
    ----------
    dataset : str
        The run-config's ``dataset``; if it is a folder or file, it must exist. With one for each peer the
        result is None.

    Raises
    ------
    DataError
        When the folder or file may not be read.
    """
    if dataset in BUILT_IN:
        return tuple(str(digit) for digit in range(10))
    if dataset.startswith(MEDMNIST):
        return medmnist_classes(dataset)
    if dataset.startswith(FOLDER) and "{peer}" not in dataset:
        return tuple(in_order(folders_in(Path(dataset.removeprefix(FOLDER)).expanduser() / "train")[0]))
    if dataset.startswith(FEATURES) and "{peer}" not in dataset:
        return feature_classes(dataset.removeprefix(FEATURES))
    if dataset.startswith(TABLE) and "{peer}" not in dataset:
        return table_classes(dataset.removeprefix(TABLE))
    return None


def columns_of(dataset: str) -> Columns | None:
    """Return the columns of a dataset's training images if they are known without reading images, else None.

    Parameters
    ----------
    dataset : str
        The run-config's ``dataset``, without ``{peer}``; if it is a table, its file must exist.

    Raises
    ------
    DataError
        When the table cannot be read.
    """
    if dataset.startswith(TABLE):
        return table_columns(dataset.removeprefix(TABLE))
    return {} if dataset in (*BUILT_IN, *TORCHVISION) or dataset.startswith((*_PLACES, MEDMNIST)) else None


def several_labels_in(dataset: str, data_dir: str) -> bool | None:
    """Return whether images may have several labels, if that is known without reading images, else None.

    Parameters
    ----------
    dataset, data_dir : str
        The run-config's values; if the dataset is a file, it must exist. With a file for each peer the result
        is None.

    Raises
    ------
    DataError
        When the file cannot be read.
    """
    if dataset in (*BUILT_IN, *TORCHVISION) or dataset.startswith(FOLDER):
        return False
    if dataset.startswith(MEDMNIST):
        return medmnist_has_several(require_medmnist(dataset, data_dir))
    if dataset.startswith(TABLE) and "{peer}" not in dataset:
        return read_table(dataset.removeprefix(TABLE)).several
    return None


def require_data(dataset: str, data_dir: str, *, download: bool, peers: Sequence[int]) -> None:
    """Refuse a dataset whose folders, or feature file, are not on this machine; no image is read.

    Parameters
    ----------
    dataset, data_dir : str
        The run-config's values.
    download : bool
        Whether a missing dataset of torchvision or of Hugging Face's hub will be downloaded; if so, it is
        not refused here.
    peers : sequence of int
        The peers whose images are on this machine.

    Raises
    ------
    DataError
        When something is missing; the message names it, and the peer if each peer has its own folder or file.
    """
    if dataset in TORCHVISION and not download:
        require_folder(dataset, data_dir)
    elif dataset.startswith(MEDMNIST):
        require_medmnist(dataset, data_dir)
    elif dataset.startswith(HF):
        require_hf(dataset, download=download)
    elif dataset.startswith(_PLACES):
        kind, _, place = dataset.partition(":")
        if "{peer}" not in place:
            _require_place(kind, place, site=False)
            return
        for peer in peers:
            try:
                _require_place(kind, place.replace("{peer}", str(peer)), site=True)
            except DataError as error:
                raise DataError(f"peer {peer}: {error}") from error


def _require_place(kind: str, place: str, *, site: bool) -> None:
    if kind == "folder":
        require_parts(place, site=site)
    elif kind == "features":
        require_feature_file(place)
    else:
        read_table(place)
