"""The keys on pixels as texts: channels' means and deviations, black and white, and DICOM's window."""

from __future__ import annotations

import math
from collections.abc import Sequence

from p2pft_flower.config.bounds import require
from p2pft_flower.errors import ConfigError

__all__ = ["channel_fault", "read_channels", "read_dicom_window", "read_range"]

_BRIGHTEST = 1e30
"""The largest absolute value that a range may have; no image has larger samples."""

_CHANNELS = {"mean": (0.0, 1.0), "std": (0.001, 1.0)}
"""Least and largest mean and deviation of pixels of 0..1; mean 0 with deviation 1 changes no pixel."""


def read_channels(key: str, text: str) -> tuple[float, ...]:
    """Return the numbers in a text: one, or one a channel (``"0.5"``, ``"0.485,0.456,0.406"``).

    An empty text gives an empty tuple.

    Raises
    ------
    ConfigError
        If the text is something else, or a number cannot be ``key`` ("mean" or "std"); the message names
        ``key``.
    """
    try:
        numbers = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        numbers = (math.nan,)
    right = "a number, or one for each of three channels as 0.485,0.456,0.406"
    require(len(numbers) in (0, 1, 3) and all(map(math.isfinite, numbers)), key, text, right)
    fault = channel_fault(key, numbers)
    if fault:
        raise ConfigError(f"{key} = {text!r}: {fault}")
    return numbers


def channel_fault(key: str, numbers: Sequence[float]) -> str:
    """Return the reason why numbers cannot be ``mean`` or ``std`` of pixels of 0..1; empty if they can.

    Parameters
    ----------
    key : {"mean", "std"}
        The key whose value the numbers are.
    numbers : sequence of float
        The numbers, one a channel.
    """
    low, high = _CHANNELS[key]
    if all(low <= number <= high for number in numbers):
        return ""
    divide = "; divide by 255?" if any(number > high for number in numbers) else ""
    return f"must be numbers from {low:g} to {high:g}, as pixels are of 0 … 1{divide}"


def _pair(text: str) -> tuple[float, float]:
    """Return the two numbers of ``A:B``; not-a-numbers, which are in no bounds, if the text is none such."""
    first, _, second = text.partition(":")
    try:
        return float(first), float(second)
    except ValueError:
        return math.nan, math.nan


def read_range(text: str) -> tuple[float, float] | None:
    """Return the samples shown as black and as white by one part of ``pixel-range``, ``"LOW:HIGH"``.

    None for ``"auto"``.

    Raises
    ------
    ConfigError
        If the text is neither, LOW is not below HIGH, or one of them is beyond ±1e30.
    """
    if text == "auto":
        return None
    black, white = _pair(text)
    require(
        -_BRIGHTEST <= black < white <= _BRIGHTEST,
        "pixel-range",
        text,
        "auto or LOW:HIGH with LOW < HIGH, such as -1000:400",
    )
    return black, white


def read_dicom_window(text: str) -> tuple[float, float] | None:
    """Return the (black, white) of ``dicom-window``, ``"CENTRE:WIDTH"``; None for ``"auto"``.

    Black and white are the ends of DICOM's linear window (PS3.3, C.11.2.1.2): centre − 0.5 ∓ (width − 1) / 2.

    Raises
    ------
    ConfigError
        If the text is something else.
    """
    if text == "auto":
        return None
    centre, width = _pair(text)
    require(
        abs(centre) <= _BRIGHTEST and 1 < width <= _BRIGHTEST,
        "dicom-window",
        text,
        "auto or CENTRE:WIDTH with WIDTH > 1, such as 40:400",
    )
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
