"""Readers that make JSON of a file or of another process a dataclass at once, or name the wrong field."""

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
    "textual",
]

T = TypeVar("T")

MAX_PEERS = 4096
"""The most peers of a graph, whose W is dense; a larger number is rather a slip of the keyboard."""

PeerNumber = Annotated[int, msgspec.Meta(ge=0, lt=MAX_PEERS)]
"""The number of a peer."""

PeerCount = Annotated[int, msgspec.Meta(ge=1, le=MAX_PEERS)]
"""The number of peers in a graph."""

Number = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
"""A whole number that every reader of JSON takes as it is."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A number of iterations, bytes, images."""

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
"""A number of iterations, bytes or images that is at least one."""

Share = Annotated[float, msgspec.Meta(gt=0)]
"""A number above zero, such as a weight of a graph or the factor of a loss."""

Settings = dict[str, bool | int | float | str]
"""A run-config by its keys; an earlier version's may have other keys."""

_FAULTS = (ValueError, TypeError, OverflowError, RecursionError, MemoryError)
"""Errors of reading; the errors of msgspec are ValueErrors, and so are those of texts and numbers."""


def decoded(data: bytes | str, kind: type[T], where: object) -> T:
    """Return a JSON value as an object of ``kind``.

    Parameters
    ----------
    data : bytes or str
        One JSON value.
    kind : type
        The type that the value must have, such as a dataclass or ``msgspec.Struct``; it is checked down to
        each field's bounds.
    where : object
        The value's place (a path, a line), for the error.

    Raises
    ------
    DataError
        If ``data`` is no JSON of this type; the message names ``where`` and the field.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except _FAULTS as error:
        raise DataError(f"{where}: {_reason(error)}") from error


def read_object(data: bytes, where: object) -> dict[str, Any]:
    """Return a JSON object of any keys; its texts may hold escaped bytes that are no text.

    Raises
    ------
    DataError
        If ``data`` is no JSON object; the message names ``where``, its place.
    """
    try:
        value = json.loads(data)
    except _FAULTS as error:
        raise DataError(f"{where}: {_reason(error)}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: no JSON object")
    return value


def converted(value: Any, kind: type[T], where: object) -> T:
    """Return, as an object of ``kind``, a value that :func:`plain` returned and a message has carried.

    Raises
    ------
    DataError
        If ``value`` is not of this type; the message names ``where``, the value's place, and the field.
    """
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except _FAULTS as error:
        raise DataError(f"{where}: {_reason(error)}") from error


def encoded(value: Any) -> bytes:
    """Return a struct or dataclass as JSON; numbers that are not finite become null.

    In a string that is no valid text (a file's name in another encoding), the odd bytes are escaped.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_textual(plain(value)))


def textual(text: str) -> str:
    """Return a text in which odd bytes are escaped, as those of a file's name in another encoding."""
    return text.encode(errors="backslashreplace").decode()


def _textual(value: Any) -> Any:
    match value:
        case str():
            return textual(value)
        case dict():
            return {_textual(k): _textual(v) for k, v in value.items()}
        case list() | tuple():
            return [_textual(v) for v in value]
    return value


def plain(value: Any) -> Any:
    """Return a struct or dataclass as dictionaries with texts for keys, lists, texts and numbers."""
    return msgspec.to_builtins(value, str_keys=True)


def _reason(error: Exception) -> str:
    match error:
        case RecursionError():
            return "nested too deeply"
        case MemoryError():
            return "too large"
    return str(error)
