"""The package's errors: each says what happened, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["ConfigError", "DataError", "P2PFTError", "TopologyError", "did_you_mean", "printable"]


class P2PFTError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(P2PFTError, ValueError):
    """A setting is unknown or has a value that cannot be used; names the key, the value and the choices."""


class TopologyError(P2PFTError, ValueError):
    """A graph cannot be used; names the peer or edge and the remedy."""


class DataError(P2PFTError, ValueError):
    """A dataset, partition or weights file cannot be used; names the file, class or peer."""


def printable(text: str) -> str:
    """Return another's ``text`` for one line of a log: whatever moves a cursor or ends a line is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(value: str, choices: Iterable[str], most: int = 1) -> str:
    """Return, for the end of a message, which of ``choices`` are spelt nearly as ``value``; empty: none.

    Parameters
    ----------
    value : str
        What was given.
    choices : iterable of str
        What there is.
    most : int
        How many are named at most.
    """
    close = difflib.get_close_matches(value, list(choices), n=most)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
