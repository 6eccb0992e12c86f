"""The draws of ``iid``, ``dirichlet:ALPHA`` and ``shards:K``: those of flwr-datasets' partitioners, in NumPy.

flwr-datasets deals out tables of Hugging Face's. Importing flwr-datasets takes two seconds, pandas and
matplotlib, in every process that says how many images it holds. A test compares these functions with the
partitioners.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import DataError

__all__ = ["deal_dirichlet", "deal_iid", "deal_shards"]

Labels = npt.NDArray[np.int64]
Parts = list[npt.NDArray[np.int64]]

_DRAWS = 11
"""Most draws of ``dirichlet`` until no peer has too few images."""


def deal_iid(labels: Labels, n: int, seed: int) -> Parts:
    """Deal all images out at random, in n shares as equal as can be (``IidPartitioner``).

    Parameters
    ----------
    labels : (N,) int64 array
        Classes of the images, of which only N counts here.
    n : int
        Number of peers.
    seed : int
        Number that decides the draw.

    Returns
    -------
    list of n int64 arrays
        The positions of each peer's images.
    """
    return np.array_split(np.random.default_rng(seed).permutation(len(labels)), n)


def deal_dirichlet(labels: Labels, n: int, alpha: float, at_least: int, seed: int) -> Parts:
    """Deal each class out in shares drawn from Dirichlet(α, …, α) (``DirichletPartitioner``).

    Parameters
    ----------
    labels, n, seed
        As for :func:`deal_iid`; here the classes count too.
    alpha : float
        α > 0; the smaller, the more unequal are the shares.
    at_least : int
        The least number of images of a peer: all is drawn again until each peer has as many.

    Returns
    -------
    list of n int64 arrays
        The positions of each peer's images.

    Raises
    ------
    DataError
        When none of eleven draws gives each peer as many images.
    """
    rng = np.random.default_rng(seed)
    for _ in range(_DRAWS):
        held: list[Parts] = [[] for _ in range(n)]
        for c in np.unique(labels):
            of_class = np.flatnonzero(labels == c)
            ends = (np.cumsum(rng.dirichlet(np.full(n, alpha))) * len(of_class)).astype(int)[:-1]
            for peer, share in enumerate(np.split(of_class, ends)):
                held[peer].append(share)
        parts = [np.concatenate(shares) for shares in held]
        if min(map(len, parts)) >= at_least:
            return parts
    raise DataError(
        f"partition = 'dirichlet:{alpha:g}' could not deal {len(labels)} images out to {n} peers: of "
        f"{_DRAWS} draws none gave each of them {at_least}; choose a greater ALPHA, or fewer peers"
    )


def deal_shards(labels: Labels, n: int, classes: int, seed: int) -> Parts:
    """Give each peer images of K classes (``PathologicalPartitioner``, ``first-deterministic``).

    The first class of a peer is that of the peer's number, counted round; the others are drawn. The peers
    that hold a class share the class's images as equally as can be.

    Parameters
    ----------
    labels, n, seed
        As for :func:`deal_iid`; here the classes count too.
    classes : int
        K, at most the number of classes in ``labels``.

    Returns
    -------
    list of n int64 arrays
        The positions of each peer's images.

    Raises
    ------
    DataError
        When more peers hold a class than it has images.
    """
    rng = np.random.default_rng(seed)
    there = np.unique(labels)
    chosen: list[list[int]] = []
    for peer in range(n):
        mine = [int(there[peer % len(there)])]
        while len(mine) < classes:
            if (drawn := int(rng.choice(there, size=1)[0])) not in mine:
                mine.append(drawn)
        chosen.append(mine)
    held: list[Parts] = [[] for _ in range(n)]
    for c in there.tolist():
        holders = [peer for peer, mine in enumerate(chosen) if c in mine]
        of_class = np.flatnonzero(labels == c)
        if len(holders) > len(of_class):
            raise DataError(
                f"partition = 'shards:{classes}' could not deal {len(labels)} images out to {n} peers: "
                f"{len(holders)} of them hold class number {c}, which has {len(of_class)} images; choose a "
                "smaller K, or fewer peers"
            )
        for peer, share in zip(holders, np.array_split(of_class, max(1, len(holders))), strict=False):
            held[peer].append(share)
    return [np.concatenate(shares) for shares in held]
