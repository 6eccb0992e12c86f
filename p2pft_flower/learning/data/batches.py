"""The order in which a peer sees its images: a function of seed, peer and the batch's number alone.

Two are exceptions: :class:`GrowingBatches`, whose set grows, and :class:`PoissonBatches` without a key.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from p2pft_flower.typed import Count, converted, plain

__all__ = ["Batches", "Catalogue", "GrowingBatches", "PoissonBatches"]


class Batches:
    """An endless stream of mini-batches over ``size`` images, each epoch in a new order.

    Batch t is the same wherever and whenever it is drawn: on a host of one peer or of several, on one thread
    or many, in the first process of a run or in a resumed one.

    Parameters
    ----------
    size : int
        Number of images of the peer, N ≥ 1.
    batch_size : int
        Images in a batch; N if N is smaller.
    seed, peer : int
        Numbers that decide the order.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, peer: int) -> None:
        self._size = size
        self._batch = min(batch_size, size)
        self._key = (seed, peer)
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def batch(self, t: int) -> npt.NDArray[np.int64]:
        """Return the positions, int64, of batch ``t`` ≥ 0: the t-th stretch of the epochs laid end to end."""
        first, parts, missing = t * self._batch, [], self._batch
        while missing:
            epoch, offset = divmod(first, self._size)
            part = self._permutation(epoch)[offset : offset + missing]
            parts.append(part)
            first, missing = first + len(part), missing - len(part)
        return np.concatenate(parts)

    def position(self) -> Callable[[], dict[str, Any]]:
        """Return a function that gives an empty position: the order depends on the batch's number alone."""
        return dict

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Do nothing; see :meth:`position`."""

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            self._order = np.random.default_rng((*self._key, epoch)).permutation(self._size)
            self._epoch = epoch
        return self._order


class Catalogue(Protocol):
    """Names of images that are the same in every process; ``ImageStream`` has them."""

    def names(self, positions: npt.NDArray[np.int64]) -> list[str]:
        """Return the names of the images at ``positions``."""
        ...

    def positions(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the positions of the images of these ``names``, also of images that are gone."""
        ...


class _Pass(msgspec.Struct, frozen=True):
    """The position in a pass over a growing set: numbers of the next batch and of the pass, and images left.

    ``offset`` is the number of the pass's images that were drawn; ``left`` has the names of the others.
    """

    next: Count
    number: Count = msgspec.field(name="pass")
    offset: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    left: list[str]


class GrowingBatches:
    """An endless stream of mini-batches over a set that grows: :class:`Batches`, but listed anew each pass.

    At the start of a pass the present images are listed, and put into an order drawn from seed, peer and the
    pass's number. Later images wait for the next pass. If no image comes or goes, the batches are those of
    :class:`Batches`.

    Batches are drawn one after the other. A batch that does not follow the last one is drawn as if the set
    had never changed, so a peer that starts anew, in any process, needs no history. To continue bit for bit
    the peer needs the rest of its pass and the pass's length (:meth:`position`).

    Parameters
    ----------
    refresh : callable
        Lists the images and returns the positions of those present, an int64 array that is never empty.
    catalogue : Catalogue
        Gives names to the images, the same names in all processes.
    batch_size : int
        Images in a batch; fewer if the pass in which the batch begins has fewer.
    seed, peer : int
        Numbers that decide the order.
    """

    def __init__(
        self,
        refresh: Callable[[], npt.NDArray[np.int64]],
        catalogue: Catalogue,
        batch_size: int,
        *,
        seed: int,
        peer: int,
    ) -> None:
        self._refresh, self._catalogue, self._size = refresh, catalogue, batch_size
        self._key = (seed, peer)
        self._next = -1
        self._epoch, self._offset = 0, 0
        self._order = np.empty(0, dtype=np.int64)

    def batch(self, t: int) -> npt.NDArray[np.int64]:
        """Return the positions of batch ``t`` (t ≥ 0), int64; errors are those of ``refresh``."""
        if t != self._next:
            there = self._refresh()
            self._epoch, self._offset = divmod(t * min(self._size, len(there)), len(there))
            self._order = self._permutation(there)
        self._turn_over()
        parts, missing = [], min(self._size, len(self._order))
        while missing:
            self._turn_over()
            part = self._order[self._offset : self._offset + missing]
            parts.append(part)
            self._offset, missing = self._offset + len(part), missing - len(part)
        self._next = t + 1
        return np.concatenate(parts)

    def position(self) -> Callable[[], dict[str, Any]]:
        """Record the position in this pass; return a function that gives it as JSON-able data."""
        return partial(
            self._as_json, self._next, self._epoch, self._offset, self._order
        )  # orders are replaced, never changed

    def _as_json(
        self, following: int, epoch: int, offset: int, order: npt.NDArray[np.int64]
    ) -> dict[str, Any]:
        left = self._catalogue.names(order[offset:])
        told: dict[str, Any] = plain(_Pass(following, epoch, offset, left))
        return told

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Continue at a position that :meth:`position` recorded in any process.

        Raises
        ------
        DataError
            When an image that is left of the pass is of no class here, or ``position`` is of other batches.
        """
        told = converted(position, _Pass, "the data order of a checkpoint")
        self._next, self._epoch, self._offset = told.next, told.number, told.offset
        left = self._catalogue.positions(told.left)
        self._order = np.concatenate([np.full(self._offset, -1, dtype=np.int64), left])

    def _turn_over(self) -> None:
        """Begin the next pass if this one has ended."""
        if self._offset == len(self._order):
            self._epoch, self._offset = self._epoch + 1, 0
            self._order = self._permutation(self._refresh())

    def _permutation(self, there: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return there[np.random.default_rng((*self._key, self._epoch)).permutation(len(there))]


class PoissonBatches:
    """Batches that hold each image with the same probability, independently of all others.

    The batches have different sizes, and may be empty. Differential privacy assumes such batches, and that
    nobody knows which images are in which batch.

    Parameters
    ----------
    size : int
        Number of images of the peer, N ≥ 1.
    rate : float
        The probability, in (0, 1].
    key : tuple of int or None
        Numbers that decide the batches; None: the operating system's entropy decides, anew for each object.
    """

    _DRAW = 1
    """Distinguishes these draws from others of the same seed, peer and position."""

    def __init__(self, size: int, rate: float, *, key: tuple[int, ...] | None) -> None:
        self._size, self._rate = size, rate
        self._key = (secrets.randbits(128),) if key is None else key

    def batch(self, t: int) -> npt.NDArray[np.int64]:
        """Return the positions of batch ``t`` (t ≥ 0), int64, ascending; the same positions at every call."""
        rng = np.random.default_rng((*self._key, t, self._DRAW))
        return np.flatnonzero(rng.random(self._size) < self._rate).astype(np.int64)

    def position(self) -> Callable[[], dict[str, Any]]:
        """Return a function that gives an empty position.

        With a key the batch's number suffices; without a key nothing may be saved.
        """
        return dict

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Do nothing; see :meth:`position`."""
