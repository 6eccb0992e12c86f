"""Single arrays of an npz: their heads without their numbers, and arrays that stay in the file."""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from p2pft_flower.errors import DataError

__all__ = ["Head", "heads_in", "member"]

_UNREADABLE = (
    *(OSError, EOFError, ValueError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error),
    NotImplementedError,  # of a zip with an unknown compression
    RuntimeError,  # of a zip with a password
)

_LOCAL = 30
"""Bytes of a zip's local header before the name, whose length and that of the extra field end it."""


@dataclass(frozen=True)
class Head:
    """The description of an array in an npz.

    Attributes
    ----------
    shape : tuple of int
        The shape.
    dtype : numpy dtype
        The numbers' type.
    columns_first : bool
        Whether the numbers lie in Fortran's order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    columns_first: bool


def heads_in(file: Path, what: str) -> dict[str, Head]:
    """Return the heads of all arrays of an npz, by name; no array is read.

    Parameters
    ----------
    file : Path
        The file.
    what : str
        What the file is, for messages: ``"file of MedMNIST"``.

    Raises
    ------
    DataError
        When the file cannot be read; the message names it and, if there is one, the array.
    """
    found, name = {}, ""
    try:
        with zipfile.ZipFile(file) as held:
            for entry in held.namelist():
                name = entry.removesuffix(".npy")
                with held.open(entry) as stream:
                    found[name] = _head(stream)
    except _UNREADABLE as error:
        raise _unreadable(file, name, what, error) from error
    return found


def member(file: Path, name: str, what: str) -> npt.NDArray[Any]:
    """Return array ``name`` of an npz.

    If the npz is not compressed, the array is mapped: its numbers stay in the file, and all processes of the
    machine share what they read of it. Else it is unpacked into memory, and its checksum is checked.

    Parameters
    ----------
    file, what
        As for :func:`heads_in`.
    name : str
        The array.

    Raises
    ------
    DataError
        When the array cannot be read; the message names file and array.
    """
    try:
        with zipfile.ZipFile(file) as held:
            entry = held.getinfo(f"{name}.npy")
            if entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1:
                return _mapped(file, entry)
            with held.open(entry) as stream:
                array: npt.NDArray[Any] = npy.read_array(stream, allow_pickle=False)
                if stream.read(1):  # the end of the entry is where zipfile compares the checksum
                    raise ValueError("bytes follow the last number")
                return array
    except _UNREADABLE as error:
        raise _unreadable(file, name, what, error) from error


def _mapped(file: Path, entry: zipfile.ZipInfo) -> npt.NDArray[Any]:
    with file.open("rb") as opened:
        opened.seek(entry.header_offset)
        lengths = struct.unpack("<HH", opened.read(_LOCAL)[-4:])
        opened.seek(entry.header_offset + _LOCAL + sum(lengths))
        head = _head(opened)
        if head.dtype.hasobject:
            raise ValueError("it holds Python's objects, not numbers")
        start = opened.tell()
    order: Literal["F", "C"] = "F" if head.columns_first else "C"
    return np.asarray(np.memmap(file, head.dtype, "r", start, head.shape, order))


def _head(stream: IO[bytes]) -> Head:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, columns_first, dtype = read(stream)
    return Head(shape, dtype, columns_first)


def _unreadable(file: Path, name: str, what: str, error: Exception) -> DataError:
    of = f"array {name}: " if name else ""
    return DataError(f"{file}: {of}not a readable {what} ({error or type(error).__name__})")
