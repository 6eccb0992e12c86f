"""What an earlier life of a peer, or the run that it goes on from, left in its log and checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from p2pft_flower.errors import DataError
from p2pft_flower.keeping.about import PeerAbout
from p2pft_flower.keeping.checkpoints import Checkpoint, checkpoint_files, read_checkpoint
from p2pft_flower.keeping.journal import Life, by_run, read_whole_lines
from p2pft_flower.keeping.lines import Evaluation, ViewChange

__all__ = ["Past", "drawn_since", "read_past"]

log = logging.getLogger("p2pft_flower")


class Past(NamedTuple):
    """What a peer's log says of its lives in a run.

    Attributes
    ----------
    lives : list of Life
        In the order of the log.
    view : int
        Number of the newest view that the peer may have come to: a line that cannot be read may have told of
        one.
    """

    lives: list[Life]
    view: int = 0

    def before(self, iteration: int) -> list[Evaluation | ViewChange]:
        """Return evaluations and changes of view before ``iteration``, each once, by their time.

        A life repeats what the earlier ones have told once it was let in; one that ended sooner tells
        nothing, so all are looked at. What an earlier one did after a later one was let in is given up.
        """
        told: dict[tuple[type, int], Evaluation | ViewChange] = {}
        for life in self.lives:
            kept = [e for e in life.lines if isinstance(e, Evaluation | ViewChange)]
            if kept and isinstance(
                kept[0], ViewChange
            ):  # it was let in; a first life begins with an evaluation
                told = {key: e for key, e in told.items() if e.iteration < kept[0].iteration}
            told |= {(type(e), e.number if isinstance(e, ViewChange) else e.iteration): e for e in kept}
        return sorted((e for e in told.values() if e.iteration < iteration), key=lambda e: e.time)


def read_past(log_file: Path, run: str) -> Past:
    """Read what a peer's log says of ``run``; the log may begin with an earlier run's.

    What cannot be read is left out, with a warning: the peer's checkpoints are what counts.
    """
    try:
        lines, odd = read_whole_lines(log_file)
    except DataError as error:
        log.warning("%s: the results will not show what was evaluated before", error)
        return Past([])
    lives = [life for life in by_run(lines) if life.run.run == run]
    views = (e.number for life in lives for e in life.lines if isinstance(e, ViewChange))
    return Past(lives, max(views, default=0) + odd)


def drawn_since(checkpoint: Checkpoint, about: PeerAbout, folder: Path, view: int = 0) -> int:
    """Return of how many iterations at most the run drew gradients after ``checkpoint``, up to ``view``.

    The peer had done two intervals more than its newest file says at most, or one unfinished iteration where
    the run was stopped.

    Parameters
    ----------
    checkpoint : Checkpoint
        The one that the peer goes on from.
    about : PeerAbout
        What it says of its run.
    folder : Path
        Where the peer's checkpoints lie.
    view : int
        The newest view that the peer may have come to.
    """
    newest, path = max(checkpoint_files(folder).items())
    after = 2 * about.checkpoint_every
    try:
        after = 1 if read_checkpoint(path)[0].stopped else after
    except DataError:  # told when the files were looked through; the greater number holds
        log.debug("%s is torn", path)
    last: int = min(newest + after, about.iterations)
    # Each change of view costs no more than two: the iteration given up, and the new start.
    return last - checkpoint.iteration + 2 * max(0, view - checkpoint.view)
