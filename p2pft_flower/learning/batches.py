"""The order in which a peer sees its images: a function of seed, peer and position alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Batches", "PooledBatches"]


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


class PooledBatches:
    """Batch t of several peers, laid end to end: what n peers draw in one iteration, for one model.

    The mean loss over such a batch is the mean of the peers' losses, so that one model on pooled data
    minimises the objective in which every peer counts the same (peers with fewer images than a batch
    count by what they draw).

    Parameters
    ----------
    parts : list of Batches
        The peers' own streams.
    offsets : list of int
        Where each peer's images begin in the pooled data.
    """

    def __init__(self, parts: list[Batches], offsets: list[int]) -> None:
        self._parts, self._offsets = parts, offsets

    def batch(self, t: int) -> npt.NDArray[np.int64]:
        """Return the positions, in the pooled data, of batch ``t`` of every peer."""
        return np.concatenate(
            [part.batch(t) + offset for part, offset in zip(self._parts, self._offsets, strict=True)]
        )
