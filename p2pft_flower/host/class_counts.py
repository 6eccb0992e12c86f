"""``class-weights = balanced``: the peers sum up the training images of each class along their edges.

Each peer knows how many images of each class it holds. A *table* has a row for each peer; at first each peer
knows its own row only. At the start of each view the peers send their tables along all edges, in as many
rounds as the longest of the shortest paths has edges, and copy the rows that they lack: then all have the
same rows, and so the same weights, bit for bit, as the numbers are whole. Nobody collects them.

A row never changes. So in a later view all have what the peers of the first one knew, and the weights stay
those of the start, also if peers are lost. A peer that is let in again tells no row, and takes the others'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import Cause, ConfigError, P2PFTError

__all__ = ["ClassCounts", "CountsError", "Weighted", "class_number", "columns", "merged_counts", "weighted"]

Counts = npt.NDArray[np.float64]

_TOLD, _IMAGES = 0, 1
_MOST = 2.0**53
"""The first number that float64 may have rounded."""


class CountsError(P2PFTError):
    """A neighbour has sent a table of numbers of images that no peer of this version makes."""

    cause = Cause.RUN

    def __init__(self, sender: int, receiver: int, problem: str) -> None:
        self.peer = receiver
        super().__init__(
            f"peer {receiver}: the table of the classes' numbers of images that came from peer {sender} "
            f"{problem}: one of the peers runs another version, or lies; class-weights = none does without "
            "these tables"
        )


@runtime_checkable
class Weighted(Protocol):
    """An objective whose loss can be weighted by class."""

    def class_counts(self) -> Counts:
        """Return the number of the peer's training images, and that of each class, (1 + C,)."""
        ...

    def weigh(self, counts: Counts) -> None:
        """Weight the loss from now on by the numbers of all peers' images, (1 + C,)."""
        ...


def weighted(objective: object) -> Weighted:
    """Return ``objective``, whose loss can be weighted by class.

    Raises
    ------
    ConfigError
        If it cannot.
    """
    if isinstance(objective, Weighted):
        return objective
    raise ConfigError(
        "class-weights = 'balanced' needs an objective with class_counts() and weigh(counts); "
        "class-weights = none does not"
    )


def class_number(problem: object) -> int:
    """Return the number of classes of a problem.

    Raises
    ------
    ConfigError
        If the problem knows no classes.
    """
    classes = getattr(problem, "classes", None)
    if classes is None:
        raise ConfigError(
            "class-weights = 'balanced' needs a problem with classes; class-weights = none does not"
        )
    return len(classes)


def columns(classes: int) -> int:
    """Return the number of columns of a table: told (1 or 0), number of images, and that of each class."""
    return 2 + classes


class ClassCounts:
    """What each of a host's peers knows of the numbers of images of all peers.

    Parameters
    ----------
    n : int
        Number of peers of the run.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._tables: dict[int, Counts] = {}
        self._let_in = False

    @property
    def so_far(self) -> dict[int, Counts]:
        """The table of each local peer so far, (n, 2 + C) float64, by peer; a new dict."""
        return dict(self._tables)

    def restore(self, peer: int, table: Counts | None) -> None:
        """Go on from the table in the checkpoint of ``peer``; None: it has none."""
        if table is not None:
            self._tables[peer] = table

    def come_back(self) -> None:
        """Take the others' word for all rows, as they went on without the peers of this host."""
        self._let_in = True

    def tables(self, own: Mapping[int, Counts]) -> dict[int, Counts]:
        """Return the table that each peer begins the rounds with.

        Parameters
        ----------
        own : mapping of int to (1 + C,) array
            Each local peer's numbers: of its images, and of those of each class.
        """
        tables = {}
        for peer, counts in own.items():
            blank = np.zeros((self._n, columns(len(counts) - 1)))
            if self._let_in:
                tables[peer] = blank
                continue
            if peer not in self._tables:
                blank[peer] = 1.0, *counts
            tables[peer] = self._tables.get(peer, blank)
        return tables

    def keep(self, tables: Mapping[int, Counts]) -> None:
        """Keep the tables that the rounds ended with."""
        self._tables.update(tables)
        self._let_in = False

    def total(self, peer: int) -> Counts:
        """Return the numbers of images of all peers of whom ``peer`` knows, (1 + C,)."""
        total: Counts = self._tables[peer][:, _IMAGES:].sum(axis=0)  # whole numbers: exact in any order
        return total


def merged_counts(table: Counts, come: Counts, edge: tuple[int, int]) -> Counts:
    """Return ``table`` with the rows that it lacks and that the table along ``edge`` has.

    Parameters
    ----------
    table, come : (n, 2 + C) array
        The receiver's table, and the sender's, of finite numbers.
    edge : (int, int)
        Sender and receiver.

    Raises
    ------
    CountsError
        If no peer makes such a table: a row is half told, or has numbers that are no numbers of images, or
        another one than the receiver knows.
    """
    told, counts = come[:, _TOLD], come[:, _IMAGES:]
    known = (told == 1.0) & (table[:, _TOLD] == 1.0)
    for wrong, problem in (
        (not np.isin(told, (0.0, 1.0)).all() or come[told == 0.0].any(), "has a row that is half told"),
        (
            (counts != counts.round()).any() or counts.min() < 0 or counts.max() > _MOST / len(table),
            "has numbers that are none of images",
        ),
        ((counts[:, 1:] > counts[:, :1]).any(), "has more images of a class than images"),
        ((come[known] != table[known]).any(), "has other numbers of a peer than are known of it"),
    ):
        if wrong:
            raise CountsError(*edge, problem)
    return np.where(table[:, :1] == 1.0, table, come)
