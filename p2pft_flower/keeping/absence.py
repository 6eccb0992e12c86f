"""How long a peer was away from a run, and how far the others went on without it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from p2pft_flower.errors import DataError
from p2pft_flower.keeping.bulletins import bulletins
from p2pft_flower.keeping.journal import by_run, read_whole_lines
from p2pft_flower.keeping.lines import Evaluation, Failed, Stall, ViewChange

__all__ = ["LastWord", "last_word", "returned"]

log = logging.getLogger("p2pft_flower")


class LastWord(NamedTuple):
    """The last sign of a peer before it was lost.

    Attributes
    ----------
    time : float
        The time of that sign, Unix seconds.
    iteration : int
        The most iterations that the peer is known to have completed.
    """

    time: float
    iteration: int


def last_word(folder: Path, peer: int, run: str) -> LastWord | None:
    """Return the last word of a peer's earlier life on this machine, by its journal and its bulletin.

    A life that the others have not let in does not count. A process that was killed has left its bulletin,
    which is a second old at most; without that, the journal's last line is the last word. A process that
    knows that its peer is gone, this one among them, hands on what it knows.

    Parameters
    ----------
    folder : Path
        The run's folder.
    peer : int
        The peer, which does not train at the moment.
    run : str
        The run's identifier.

    Returns
    -------
    LastWord or None
        None if nothing of an earlier life is here.
    """
    words = []
    try:
        lives = by_run(read_whole_lines(folder / "peers" / f"peer-{peer}.jsonl")[0])
    except DataError as error:
        log.debug("%s", error)  # `read_past` warns of it
        lives = []
    mine = [life.lines for life in lives if life.run.run == run]
    trained = [told for told in mine if any(isinstance(e, Evaluation | ViewChange) for e in told)]
    for told in trained[-1:]:
        done = (e.iteration for e in told if isinstance(e, Evaluation | ViewChange | Stall | Failed))
        words.append(LastWord(told[-1].time, max(done)))
    for b in bulletins(run):
        if peer not in b.own or (b.alive and peer not in b.gone):
            continue
        done_there = max((p.iteration for p in b.peers if p.peer == peer), default=0)
        words.append(LastWord(b.gone.get(peer, b.written), done_there))
    if not words:
        return None
    return LastWord(max(w.time for w in words), max(w.iteration for w in words))


def returned(who: str, iteration: int, missed: int | None) -> str:
    """Return, in words, that a peer has come back, and how far behind it was.

    Parameters
    ----------
    who : str
        The peer's number and name.
    iteration : int
        The iteration after which the view that let it in began.
    missed : int or None
        The number of iterations that went by without it; None if that is not known.
    """
    if missed is None:
        return f"{who} has come back"
    if missed == 0:
        return f"{who} has come back, no iteration behind"
    many = "1 iteration" if missed == 1 else f"{missed} iterations"
    return f"{who} has come back, {many} behind (it was lost after {iteration - missed})"
