"""JSON of a file or of another process becomes a dataclass at once, or is refused by the field's name."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

import msgspec

from p2pft_flower.errors import DataError

__all__ = [
    "MAX_PEERS",
    "Count",
    "Number",
    "PeerCount",
    "PeerNumber",
    "Positive",
    "Settings",
    "Share",
    "converted",
    "decoded",
    "encoded",
    "plain",
    "read_object",
]

T = TypeVar("T")

MAX_PEERS = 4096
"""A graph's W is dense: beyond this a number of peers is a slip of the keyboard rather than a graph."""

PeerNumber = Annotated[int, msgspec.Meta(ge=0, lt=MAX_PEERS)]
"""The number of a peer."""

PeerCount = Annotated[int, msgspec.Meta(ge=1, le=MAX_PEERS)]
"""A number of peers in a graph."""

Number = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
"""A whole number that every reader of JSON takes as it is."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A number of iterations, bytes, images."""

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
"""A number of iterations, bytes or images that is at least one."""

Share = Annotated[float, msgspec.Meta(gt=0)]
"""A weight of a graph."""

Settings = dict[str, bool | int | float | str]
"""A run-config by its keys, perhaps of an earlier version, which had others."""

_FAULTS = (ValueError, TypeError, OverflowError, RecursionError, MemoryError)
"""Errors of reading: msgspec's are ValueErrors, and so are those of texts and numbers."""


def decoded(data: bytes | str, kind: type[T], where: object) -> T:
    """Read JSON as ``kind``.

    Parameters
    ----------
    data : bytes or str
        One JSON value.
    kind : type
        The type that it must have: a dataclass or ``msgspec.Struct``, checked down to each field's bounds.
    where : object
        The value's place (a path, a line), for the error.

    Raises
    ------
    DataError
        If it is none; names ``where`` and the field.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except _FAULTS as error:
        raise DataError(f"{where}: {_reason(error)}") from error


def read_object(data: bytes, where: object) -> dict[str, Any]:
    """Read a JSON object of any keys, whose texts may hold bytes that are no text, escaped.

    Raises
    ------
    DataError
        If it is none; names ``where``.
    """
    try:
        value = json.loads(data)
    except _FAULTS as error:
        raise DataError(f"{where}: {_reason(error)}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: no JSON object")
    return value


def converted(value: Any, kind: type[T], where: object) -> T:
    """Take what :func:`plain` returned, after a message, as ``kind``; as :func:`decoded` otherwise."""
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except _FAULTS as error:
        raise DataError(f"{where}: {_reason(error)}") from error


def encoded(value: Any) -> bytes:
    """Return JSON of a struct or dataclass; numbers that are not finite become null.

    A string that is no text (a file's name in another encoding) becomes one: its bytes are escaped.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_textual(plain(value)))


def _textual(value: Any) -> Any:
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {_textual(k): _textual(v) for k, v in value.items()}
        case list() | tuple():
            return [_textual(v) for v in value]
    return value


def plain(value: Any) -> Any:
    """Return a struct or dataclass as dictionaries with texts for keys, lists and numbers."""
    return msgspec.to_builtins(value, str_keys=True)


def _reason(error: Exception) -> str:
    match error:
        case RecursionError():
            return "nested too deeply"
        case MemoryError():
            return "too large"
    return str(error)
