"""Messages parsed, with the error that the rest of the package expects."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

__all__ = ["parse"]

Kind = TypeVar("Kind", bound=Message)


def parse(kind: type[Kind], content: bytes) -> Kind:
    """Return ``content`` parsed as a message of ``kind``.

    Raises
    ------
    ValueError
        When ``content`` cannot be parsed.
    """
    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise ValueError(f"a {kind.__name__} that cannot be parsed") from error
