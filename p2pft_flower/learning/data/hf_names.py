"""Datasets of Hugging Face by name: their texts, and whether they are here; ``datasets`` is not imported."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from p2pft_flower.errors import ConfigError, DataError, did_you_mean
from p2pft_flower.resources import home

__all__ = ["HF", "HfName", "cache_dir", "cached", "read_hf_name", "require_hf"]

HF = "hf:"
"""The beginning of a ``dataset`` of Hugging Face; a name of the hub or a folder's path follows."""

_KEYS = ("image", "label", "train", "test", "subset")

_FORM = "hf:NAME, hf:OWNER/NAME or hf:/folder, and behind it, if need be, ?image=COLUMN&label=COLUMN"


@dataclass(frozen=True)
class HfName:
    """A dataset of Hugging Face, as the run-config names it.

    Attributes
    ----------
    place : str
        A name of the hub, or the path of a folder.
    image, label : str
        The columns of the images and of their classes; empty: found by their types.
    train, test : str
        The splits.
    subset : str
        The dataset's configuration; empty: its only one, or its default.
    """

    place: str
    image: str = ""
    label: str = ""
    train: str = "train"
    test: str = "test"
    subset: str = ""

    @property
    def folder(self) -> Path | None:
        """The folder, if the place is one of this machine's; None for a name of the hub."""
        return Path(self.place).expanduser() if self.place.startswith(("/", "~")) else None


def read_hf_name(dataset: str) -> HfName:
    """Return the parts of a ``dataset`` that begins with :data:`HF`.

    Raises
    ------
    ConfigError
        When the text cannot be read; the message gives the form.
    """
    place, mark, query = dataset.removeprefix(HF).partition("?")
    local = place.startswith(("/", "~"))
    if "{peer}" in place:
        raise ConfigError(
            f"dataset = {dataset!r}: one dataset of Hugging Face for all peers is read, with partition = "
            "by:COLUMN by a column of it; a folder for each peer is folder:/path-{peer}"
        )
    if not local and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place, re.ASCII):
        raise ConfigError(f"dataset = {dataset!r}: give {_FORM}; a folder's path is absolute{_meant(place)}")
    try:
        given = parse_qsl(query, strict_parsing=True, keep_blank_values=True) if mark else []
    except ValueError as error:
        raise ConfigError(f"dataset = {dataset!r}: {query!r} cannot be read; give {_FORM}") from error
    for key, value in given:
        if key not in _KEYS:
            raise ConfigError(
                f"dataset = {dataset!r}: {key!r} is unknown behind the question mark; choose of "
                f"{', '.join(_KEYS)}{did_you_mean(key, _KEYS)}"
            )
        if not value:
            raise ConfigError(f"dataset = {dataset!r}: {key} is empty; leave it out, or name one")
    if len(dict(given)) < len(given):
        raise ConfigError(f"dataset = {dataset!r}: a key is given twice behind the question mark; keep one")
    name = HfName(place, **dict(given))
    if name.train == name.test:
        raise ConfigError(
            f"dataset = {dataset!r}: {name.train} cannot be both the training and the test split; a score on "
            "training images says nothing of new ones"
        )
    return name


def cache_dir(kind: str) -> Path | None:
    """Return the folder below ``$P2PFT_HOME`` in which Hugging Face's libraries keep files.

    Parameters
    ----------
    kind : {"hub", "datasets"}
        Files as they are on the hub, or tables made of them.

    Returns
    -------
    Path or None
        None: the user has chosen their folder (``HF_HOME``, ``HF_HUB_CACHE``, ``HF_DATASETS_CACHE``).
    """
    if os.environ.get("HF_HOME") or os.environ.get(f"HF_{kind.upper()}_CACHE"):
        return None
    return home() / "huggingface" / kind


def cached(place: str) -> Path | None:
    """Return the folder of a hub's dataset that is on this machine already; None if it is not.

    It is looked for in Hugging Face's own cache, then in that of :func:`cache_dir`.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    for folder in (Path(constants.HF_HUB_CACHE), cache_dir("hub")):
        if folder is not None and folder.is_dir():
            try:
                held = snapshot_download(place, repo_type="dataset", cache_dir=folder, local_files_only=True)
            except (LocalEntryNotFoundError, HFValidationError, FileNotFoundError):
                continue
            return Path(held)
    return None


def require_hf(dataset: str, *, download: bool) -> None:
    """Refuse a dataset of Hugging Face that is not on this machine, or without the library that reads it.

    Parameters
    ----------
    dataset : str
        ``"hf:…"``.
    download : bool
        Whether a dataset of the hub will be downloaded; if so, it is not refused here.

    Raises
    ------
    ConfigError
        When the library ``datasets`` is not installed.
    DataError
        When the folder does not exist, or a name of the hub is neither in a cache nor may be downloaded.
    """
    name = read_hf_name(dataset)
    if importlib.util.find_spec("datasets") is None:
        raise ConfigError(
            f"dataset = {dataset!r}: Hugging Face's library datasets is not installed here: run pip install "
            "'datasets>=4' (in a clone of the repository: pip install -e '.[hf]')"
        )
    if name.folder is not None:
        if not name.folder.is_dir():
            raise DataError(
                f"dataset = {dataset!r}: there is no folder {name.folder}; give an absolute path that the "
                "peers' machine has, or a name of the hub"
            )
    elif not download and cached(name.place) is None:
        raise DataError(
            f"dataset = {dataset!r}: the hub's dataset {name.place} is in no cache of this machine; set "
            "download = true, or, without a network, copy a folder of it here and give dataset = hf:/folder"
            f"{_meant(name.place)}"
        )


def _meant(place: str) -> str:
    """Return the end of a message that gives a folder's absolute path, if ``place`` is one from here."""
    folder = Path(place)
    return f"; did you mean {HF + str(folder.resolve())!r}?" if folder.is_dir() else ""
