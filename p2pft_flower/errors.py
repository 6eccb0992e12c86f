"""The package's errors: each message has the fault, its place and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from enum import Enum

__all__ = [
    "Cause",
    "ConfigError",
    "DataError",
    "P2PFTError",
    "TopologyError",
    "called",
    "cause_of",
    "did_you_mean",
    "listed",
    "printable",
    "said_by",
]


class Cause(Enum):
    """The cause for which a host ends, as others see it; each error and each passed-on stop has one."""

    OWN = "own"
    """The host's own affair: its code, its disk, or a person at its site who ended it."""
    RUN = "run"
    """The run's affair: its computation, or its settings, would end every host."""
    LOST = "lost"
    """The host has lost others, and noticed that itself; it cannot know why they are gone."""
    HEARSAY = "hearsay"
    """Another host has reported that it gives up, for a reason of its own."""
    STOPPED = "stopped"
    """Somebody stopped the run."""

    @property
    def told(self) -> Cause:
        """The cause of a host that ends because another one ended for this cause."""
        return self if self is Cause.STOPPED else Cause.HEARSAY


class P2PFTError(Exception):
    """Base of every error that this package raises on purpose.

    Attributes
    ----------
    cause : Cause
        The error's cause if it ends a host; RUN unless the class says otherwise.
    """

    cause: Cause = Cause.RUN


def said_by(who: str, text: str) -> str:
    """Return ``text`` with the name of who said it before it, unless it begins with that name itself."""
    return text if re.match(rf"{re.escape(who)}(?!\d)", text) else f"{who}: {text}"


def listed(peers: Collection[int]) -> str:
    """Return the numbers of peers for a message, as ``[0, 1, 2]``; of more than 16 the first and the last."""
    if len(peers) <= 16:
        return str(list(peers))
    first = ", ".join(map(str, sorted(peers)[:3]))
    return f"[{first}, …, {max(peers)}] ({len(peers)} in all)"


def called(peer: int, names: Mapping[int, str]) -> str:
    """Return a peer's number for a message, with its name in brackets if ``names`` has one."""
    return f"peer {peer} ({names[peer]})" if peer in names else f"peer {peer}"


def cause_of(error: BaseException) -> Cause:
    """Return an error's cause; RUN for an error without one, as other packages' errors are."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Cause) else Cause.RUN


class ConfigError(P2PFTError, ValueError):
    """A setting is unknown or has a value that cannot be used; the message names key, value and choices."""


class TopologyError(P2PFTError, ValueError):
    """A graph cannot be used; the message names the peer or edge and the remedy."""


class DataError(P2PFTError, ValueError):
    """A dataset, partition, file or message cannot be used; the message names file, field, class or peer."""


def printable(text: str) -> str:
    """Return another process's ``text`` for one line of a log, with control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(value: str, choices: Iterable[str], most: int = 1) -> str:
    """Return an end for a message that names the choices spelt nearly as ``value``; empty without any.

    Parameters
    ----------
    value : str
        The value that was given.
    choices : iterable of str
        All valid values.
    most : int
        The most choices that are named; default 1.
    """
    close = difflib.get_close_matches(value, list(choices), n=most)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
