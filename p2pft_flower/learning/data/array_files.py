"""Arrays by name, with a list of names beside them, in a safetensors or npz file; nothing is unpickled."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.names import some_names

__all__ = ["SUFFIXES", "ArrayFile", "read_arrays"]

SUFFIXES = (".safetensors", ".npz")
"""The endings of such files."""


@dataclass(frozen=True)
class ArrayFile:
    """What was read of a file.

    Attributes
    ----------
    arrays : dict of str to array
        The arrays that were asked for, as far as the file has them.
    names : tuple of str or None
        The list of names; None if the file has none.
    scale : float or None
        The number ``logit-scale``; None if the file has none.
    """

    arrays: dict[str, npt.NDArray[Any]]
    names: tuple[str, ...] | None
    scale: float | None


def read_arrays(file: Path, wanted: Collection[str], names: str, what: str) -> ArrayFile:
    """Read some arrays of a file, and the list of names.

    Parameters
    ----------
    file : Path
        The file, whose ending is one of :data:`SUFFIXES`.
    wanted : collection of str
        The arrays to read.
    names : str
        Where the list of names is: a key of a safetensors file's metadata (a JSON list), or an npz's array
        of texts.
    what : str
        What the file is, for messages: ``"file of features"``.

    Raises
    ------
    DataError
        When the file cannot be read, or the names are no list of texts that differ.
    """
    try:
        found = (_npz if file.suffix == ".npz" else _safetensors)(file, wanted, names)
        if found.names is not None:
            _check(found.names, names)
    except (*_UNREADABLE, SafetensorError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: not a readable {what} ({error})") from error
    return found


_UNREADABLE = (OSError, EOFError, ValueError, TypeError, KeyError, RecursionError, NotImplementedError)
"""What NumPy and json raise of damaged files, beside their own errors."""


def _npz(file: Path, wanted: Collection[str], names: str) -> ArrayFile:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as held:
        told = held[names].tolist() if names in held.files else None
        scale = float(held["logit-scale"]) if "logit-scale" in held.files else None
        arrays = {name: held[name] for name in held.files if name in wanted}
    return ArrayFile(arrays, None if told is None else tuple(told), scale)


def _safetensors(file: Path, wanted: Collection[str], names: str) -> ArrayFile:
    with safe_open(file, framework="numpy") as held:
        metadata = held.metadata() or {}
        arrays = {name: held.get_tensor(name) for name in held.keys() if name in wanted}  # noqa: SIM118
    told = json.loads(metadata[names]) if names in metadata else None
    scale = float(metadata["logit-scale"]) if "logit-scale" in metadata else None
    return ArrayFile(arrays, None if told is None else tuple(told), scale)


def _check(told: tuple[Any, ...], names: str) -> None:
    if not told or not all(isinstance(name, str) for name in told):
        raise ValueError(f"its {names} are no list of texts")
    if len(set(told)) < len(told):
        twice = sorted({name for name in told if told.count(name) > 1})
        raise ValueError(f"its {names} have {some_names(twice)} more than once")
