"""The rules on which checkpoints are written, and which of their files stay.

All peers write after the same iterations: the first of the run, every E-th, and the last. A run goes on from
an iteration of which all have a file in good state, so there must always be one, even if the peers are far
apart:

- A peer that has done k iterations has the payloads of its in-neighbours of iteration k - 1, so they have
  done k - 1 at least; on a graph of diameter D no two peers are more than D iterations apart. If weights
  change with the iteration, an edge may carry nothing for a period, and D is the diameter times the period.
- One checkpoint is written at a time, beside training, and the next one waits for it. So a peer that has done
  k iterations has on disk the checkpoint of the last but one multiple of E up to k, or a newer one.

So the newest files of two peers are at most 1 + ⌈D / E⌉ checkpoints apart, and with K + 1 + ⌈D / E⌉ files a
peer, all peers have K iterations at least; K is ``checkpoints-kept``. The file of the last iteration, which
may be less than E after the one before, comes on top: no file is removed for it. If peers exchange nothing,
each goes on from its own newest file, and K files a peer are enough.

When the view changes, the method begins again, so files of one iteration but of two views do not belong
together. All this holds for the files of one view, with the largest D so far. Files of earlier views stay
until there are enough of the present view. And as long as peers or links are missing, the files of the last
view that had all of them stay, too: from there all can go on when the missing ones are back.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

__all__ = ["files_kept", "iterations_apart", "spared_files"]

_APART = 50
"""The least iterations between two checkpoints, if the run-config leaves them open. With iterations of
milliseconds and a dozen iterations in an epoch, a checkpoint after each evaluation took 5 % of the time."""


def iterations_apart(asked: int, evaluate_every: int) -> int:
    """Return E, the number of iterations between two checkpoints; negative if none are written.

    Parameters
    ----------
    asked : int
        Run-config ``checkpoint-every``; 0 leaves E open: after evaluations, 50 iterations apart at least.
    evaluate_every : int
        Number of iterations between two evaluations.
    """
    return asked or evaluate_every * math.ceil(_APART / evaluate_every)


def files_kept(kept: int, every: int, lead: int | None) -> int:
    """Return how many files each peer keeps, so that all peers have ``kept`` iterations; see the module.

    Parameters
    ----------
    kept : int
        K ≥ 1, the number of iterations of which all peers have a file.
    every : int
        E, the number of iterations between two checkpoints; negative if none are written.
    lead : int or None
        D, the most iterations that two peers can be apart (:attr:`~p2pft_flower.topology.Graph.lead`); None
        if peers exchange nothing.
    """
    if lead is None or every < 0:
        return kept
    return kept + 1 + math.ceil(lead / every)


def spared_files(views: Mapping[int, int], whole: Collection[int], files: int) -> set[int]:
    """Return the iterations of a peer's files that stay; see the module.

    Parameters
    ----------
    views : mapping of int to int
        The number of the view in which each file was written, by the file's iteration.
    whole : collection of int
        The numbers of the views with all peers and links of the run.
    files : int
        The number of files of a view that are kept (:func:`files_kept`).
    """
    spared: set[int] = set()
    for among in (set(views.values()), set(views.values()).intersection(whole)):
        for view in sorted(among, reverse=True):
            newest = sorted(k for k, v in views.items() if v == view)[-files:]
            spared.update(newest)
            if len(newest) == files:
                break
    return spared
