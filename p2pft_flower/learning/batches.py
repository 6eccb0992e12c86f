"""The order in which a peer sees its images: a function of seed, peer and position alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Batches"]


class Batches:
    """An endless stream of mini-batches over ``size`` images, each epoch in a new order.

    Batch t is the same wherever and whenever it is drawn: the peer may live alone or with others, on one
    thread or many, and a resumed peer goes on at its position.

    Parameters
    ----------
    size : int
        Number of images of the peer, N ≥ 1.
    batch_size : int
        Images a batch; at most N are drawn.
    seed, peer : int
        Decide the order.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, peer: int) -> None:
        self._size = size
        self._batch = min(batch_size, size)
        self._key = (seed, peer)
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def batch(self, t: int) -> npt.NDArray[np.int64]:
        """Return the positions of batch ``t`` (t ≥ 0): the t-th stretch of the epochs laid end to end."""
        first, parts, missing = t * self._batch, [], self._batch
        while missing:
            epoch, offset = divmod(first, self._size)
            part = self._permutation(epoch)[offset : offset + missing]
            parts.append(part)
            first, missing = first + len(part), missing - len(part)
        return np.concatenate(parts)

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            self._order = np.random.default_rng((*self._key, epoch)).permutation(self._size)
            self._epoch = epoch
        return self._order
