"""The evaluation of many peers that share their test images: these are read once for all of them.

Peers with the same θ, as all have before the first iteration, are scored once. Each other θ runs through the
tail by itself, in the very operations of :meth:`PeerObjective.evaluate`: so a peer's scores are the same, bit
for bit, whichever peers its host runs. (One batched computation of many θ, by ``torch.func.vmap``, rounds
differently from that of one; and on processors it is slower, as it copies the images' tokens for every θ.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby

import xxhash

from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.scoring import Answers, InFull, answers_of_all, scores_of
from p2pft_flower.learning.store.features import Features
from p2pft_flower.learning.theta import Vector

__all__ = ["evaluate_together"]

MEMORY = 2**28
"""Bytes that the answers of the peers that are scored at a time take at most."""


def evaluate_together(
    objectives: Mapping[int, PeerObjective],
    thetas: Mapping[int, Vector],
    *,
    full: bool = False,
    progress: Callable[[], None] = lambda: None,
    threads: int = 1,
) -> Iterator[dict[int, InFull]]:
    """Yield each peer's scores, if ``full`` with all that is known of them, some peers at a time.

    Parameters
    ----------
    objectives : mapping of int to PeerObjective
        The peers' objectives, of one model.
    thetas : mapping of int to (q,) float32 array
        The θ of each peer that is scored, in the order in which they are yielded.
    full : bool
        Whether scores by class and predictions are wanted, as ``evaluate_in_full`` gives them; default
        False: there are none.
    progress : callable, optional
        Called after each pass of a batch through the tail.
    threads : int
        Number of threads that share the θ; the scores do not depend on it. Default 1.
    """
    answers = partial(answers_of_all, probabilities=full, progress=progress, threads=threads)
    for _, sharing in groupby(thetas, lambda peer: id(objectives[peer].test)):
        peers = list(sharing)
        one = objectives[peers[0]]
        most = max(1, MEMORY // max(1, _bytes(one.test, one.outputs if full else 0)))
        for start in range(0, len(peers), most):
            yield _scored(objectives, {p: thetas[p] for p in peers[start : start + most]}, full, answers)


def _bytes(test: Features, probabilities: int) -> int:
    """Return the bytes of one peer's answers, with so many ``probabilities`` of each image."""
    decisions = 1 if test.labels.ndim == 1 else int(test.labels.shape[1])
    return len(test) * 8 * (1 + decisions + probabilities)


def _scored(
    objectives: Mapping[int, PeerObjective],
    thetas: Mapping[int, Vector],
    full: bool,
    answers: Callable[..., list[Answers]],
) -> dict[int, InFull]:
    places, different = _distinct(list(thetas.values()))
    one = objectives[next(iter(thetas))]
    found = answers(one.tail, different, one.test)
    return {p: _of(objectives[p], found[place], full) for p, place in zip(thetas, places, strict=True)}


def _of(objective: PeerObjective, answers: Answers, full: bool) -> InFull:
    return (
        objective.in_full(answers) if full else InFull(scores_of(answers, objective.unseen()), None, iter(()))
    )


def _distinct(thetas: Sequence[Vector]) -> tuple[list[int], list[Vector]]:
    """Return each θ's place among those that differ, and these."""
    known = dict[bytes, int]()
    different, places = list[Vector](), list[int]()
    for theta in thetas:
        place = known.setdefault(xxhash.xxh3_128_digest(theta.tobytes()), len(different))
        if place == len(different):
            different.append(theta)
        places.append(place)
    return places, different
