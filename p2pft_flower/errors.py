"""The package's errors: each says what happened, where, and what to do about it."""

from __future__ import annotations

__all__ = ["ConfigError", "DataError", "P2PFTError", "TopologyError", "printable"]


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
