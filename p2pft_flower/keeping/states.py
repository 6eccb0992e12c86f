"""A method's state by its fields: the kinds of fields that can be kept, and the state put together again."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from p2pft_flower.errors import ConfigError

__all__ = ["as_number", "as_text", "most_bytes", "state_fields"]

_VECTORS, _MORE = 64, 2**20
"""A state has at most _VECTORS · q + _MORE numbers, each of at most 8 bytes."""


def most_bytes(q: int) -> int:
    """Return the most bytes that the arrays of a method's state may have together, if θ has ``q`` numbers."""
    return 8 * (_VECTORS * q + _MORE)


def state_fields(state: Any, algorithm: str) -> dict[str, Any]:
    """Return a method's state by field: NumPy arrays and scalars, numbers, truth values and None.

    Parameters
    ----------
    state : NamedTuple or dataclass
        The state that the method's ``start`` or ``step`` returned.
    algorithm : str
        The run-config's ``algorithm``, for the error message.

    Raises
    ------
    ConfigError
        If the state is of another kind or too large, or a field holds something else.
    """
    remedy = (
        "so it cannot be kept in a checkpoint: make it a NamedTuple or a dataclass of NumPy arrays, numbers "
        "and None, or set checkpoint-every = -1, with which nothing is kept and the run cannot be resumed"
    )
    fields: dict[str, Any]
    if isinstance(state, tuple) and hasattr(state, "_asdict"):
        fields = state._asdict()
    elif dataclasses.is_dataclass(state) and not isinstance(state, type):
        fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
        if late := [f.name for f in dataclasses.fields(state) if not f.init]:
            raise ConfigError(
                f"algorithm = {algorithm!r}: its state takes no {late[0]!r} when built, {remedy}"
            )
    else:
        raise ConfigError(f"algorithm = {algorithm!r}: its state is a {type(state).__name__}, {remedy}")
    # Vectors of an accelerator calculate as NumPy's do, and are kept as such.
    fields = {n: np.asarray(v) if isinstance(v, NDArrayOperatorsMixin) else v for n, v in fields.items()}
    for name, value in fields.items():
        numeric = (
            isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fiub" and value.itemsize <= 8
        )
        if not numeric and not isinstance(value, (bool, int, float, type(None))):
            raise ConfigError(
                f"algorithm = {algorithm!r}: {name!r} of its state is a {type(value).__name__}, {remedy}"
            )
    size = sum(value.nbytes for value in fields.values() if isinstance(value, np.ndarray))
    if size > (most := most_bytes(int(np.size(fields.get("theta", 0))))):
        raise ConfigError(
            f"algorithm = {algorithm!r}: its state has {size} bytes, more than {most}, {remedy}"
        )
    return fields


def changed(state: Any, change: Callable[[np.ndarray[Any, Any]], Any]) -> Any:
    """Return ``state`` with ``change`` applied to each array among the fields of :func:`state_fields`."""
    return type(state)(
        **{
            name: change(value) if isinstance(value, np.ndarray) else value
            for name, value in state_fields(state, "").items()
        }
    )


def as_text(value: bool | int | float | None) -> bool | str | None:
    """Return a number as a text from which :func:`as_number` makes the very same; return others unchanged."""
    if isinstance(value, bool | None):
        return value
    return str(value) if isinstance(value, int) else value.hex()


def as_number(value: bool | str | None) -> bool | int | float | None:
    """Return the number from which :func:`as_text` made ``value``; return other values unchanged.

    Raises
    ------
    ValueError
        If a text is no number.
    """
    if not isinstance(value, str):
        return value
    return int(value) if re.fullmatch(r"-?[0-9]+", value) else float.fromhex(value)
