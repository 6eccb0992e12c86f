"""Arrays by name, with a list of names beside them, in a safetensors or npz file; nothing is unpickled."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.names import some_names

__all__ = ["SCALE", "SUFFIXES", "ArrayFile", "read_arrays"]

SCALE = "logit-scale"
"""The name of the number :attr:`ArrayFile.scale`; read if it is wanted."""

SUFFIXES = (".safetensors", ".npz")
"""The endings of such files."""


@dataclass(frozen=True)
class ArrayFile:
    """The arrays, names and metadata that were read from a file.

    Attributes
    ----------
    arrays : dict of str to array
        The arrays that were asked for, as far as the file has them.
    names : tuple of str or None
        The list of names; None if the file has none.
    scale : float or None
        The number ``logit-scale``, an array or in the metadata; None if the file has none, or it was not
        asked for.
    metadata : dict of str to str
        The metadata of a safetensors file; empty for an npz, which has none.
    """

    arrays: dict[str, npt.NDArray[Any]]
    names: tuple[str, ...] | None
    scale: float | None
    metadata: dict[str, str] = field(default_factory=dict)


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
        return (_npz if file.suffix == ".npz" else _safetensors)(file, wanted, names)
    except (*_UNREADABLE, SafetensorError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: not a readable {what} ({error})") from error


_UNREADABLE = (
    *(OSError, EOFError, ValueError, RecursionError, MemoryError),
    TypeError,  # of a dtype that NumPy lacks, as bfloat16, and of an npy called npz
    NotImplementedError,  # of a zip with an unknown compression
)
"""What NumPy, zipfile and json raise of files that they cannot read, beside their own errors."""


def _npz(file: Path, wanted: Collection[str], names: str) -> ArrayFile:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as held:
        told = _list(held[names].tolist(), names) if names in held.files else None
        scale = float(held[SCALE].item()) if SCALE in held.files and SCALE in wanted else None
        arrays = {name: held[name] for name in held.files if name in wanted and name != SCALE}
    return ArrayFile(arrays, told, scale)


def _safetensors(file: Path, wanted: Collection[str], names: str) -> ArrayFile:
    with safe_open(file, framework="numpy") as held:
        metadata = held.metadata() or {}
        arrays = {name: held.get_tensor(name) for name in held.keys() if name in wanted}  # noqa: SIM118
    told = _list(json.loads(metadata[names]), names) if names in metadata else None
    number = arrays.pop(SCALE, metadata.get(SCALE)) if SCALE in wanted else None
    scale = None if number is None else float(np.asarray(number, dtype=np.float64).item())
    return ArrayFile(arrays, told, scale, metadata)


def _list(told: object, names: str) -> tuple[str, ...]:
    if not isinstance(told, list) or not told or not all(isinstance(name, str) for name in told):
        raise ValueError(f"its {names} are no list of texts")
    if len(set(told)) < len(told):
        twice = sorted({name for name in told if told.count(name) > 1})
        raise ValueError(f"its {names} have {some_names(twice)} more than once")
    return tuple(told)
