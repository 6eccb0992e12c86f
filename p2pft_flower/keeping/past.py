"""The journal and checkpoints that an earlier life of a peer, or the run that it goes on from, has left."""

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
    """A peer's lives in a run, by its journal.

    Attributes
    ----------
    lives : list of Life
        The lives, in the order of the journal.
    view : int
        Number of the newest view that the peer may have adopted: each line that cannot be read may have told
        of one more.
    """

    lives: list[Life]
    view: int = 0

    def before(self, iteration: int) -> list[Evaluation | ViewChange]:
        """Return the evaluations and changes of view before ``iteration``, each once, in order of time.

        A life is one start of the peer. A life that the others have let in copies the lines of the earlier
        lives; a life that ended before it was let in has copied none, so all lives are read. If a life was
        let in at an iteration that the lives before had already passed, their lines from that iteration on
        are left out.
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
    """Return a peer's lives in ``run`` from its journal, which may begin with an earlier run.

    Lines that cannot be read are left out, with a warning, and so is a journal that cannot be read: θ depends
    on the checkpoints alone.
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
    """Return the most iterations whose gradients the run may have drawn after ``checkpoint``, up to ``view``.

    The peer had done at most two intervals of checkpoints more than its newest file says, or one unfinished
    iteration if the run was stopped.

    Parameters
    ----------
    checkpoint : Checkpoint
        The checkpoint from which the peer goes on.
    about : PeerAbout
        The facts in the checkpoint.
    folder : Path
        The folder of the peer's checkpoints.
    view : int
        Number of the newest view that the peer may have adopted; default 0.
    """
    newest, path = max(checkpoint_files(folder).items())
    after = 2 * about.checkpoint_every
    try:
        after = 1 if read_checkpoint(path)[0].stopped else after
    except DataError:  # reported when the files were looked through; the greater number holds
        log.debug("%s is torn", path)
    last: int = min(newest + after, about.iterations)
    # Each change of view costs no more than two: the iteration given up, and the new start.
    return last - checkpoint.iteration + 2 * max(0, view - checkpoint.view)
