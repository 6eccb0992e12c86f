"""How a host keeps its peers' checkpoints while they train, and takes them up again.

Which files are kept
--------------------
All peers write after the same iterations: where the run begins, every E-th, and the last. A run goes on from
an iteration of which all have a file in good state, so there must always be one, however far the peers are
apart:

- A peer that has done k iterations has what its in-neighbours sent in iteration k - 1, so they have done
  k - 1 at least; on a graph of diameter D no two peers are more than D iterations apart.
- One checkpoint is written at a time, beside training, and the next one waits for it. So a peer that has done
  k iterations has on disk that of the last but one multiple of E up to k, or a newer one.

So the newest files of two peers are at most 1 + ⌈D / E⌉ checkpoints apart, and with K + 1 + ⌈D / E⌉ files a
peer, K iterations at least are everybody's; K is ``checkpoints-kept``. That of the last iteration, which may
be less than E after the one before, comes on top: nothing is removed for it. Where peers exchange nothing,
each goes on from its own newest file, and K files a peer are enough.

When the view changes, the method begins again, so files of one iteration but of two views do not belong
together. All this holds of the files of one view, with the longest diameter so far. Those of the views
before stay until there are so many of the present one. And as long as peers or links are missing, those of
the last view that had all stay, too: from there all can go on when they are back.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from p2pft_flower.algorithms.seam import State
from p2pft_flower.errors import DataError
from p2pft_flower.host.problem import Objective
from p2pft_flower.host.recorder import Recorder
from p2pft_flower.host.session import Session
from p2pft_flower.keeping.checkpoints import (
    Checkpoint,
    CheckpointError,
    checkpoint_files,
    checkpoint_folder,
    forget,
    forget_torn,
    read_checkpoint,
    restore_state,
    state_fields,
    write_checkpoint,
)
from p2pft_flower.keeping.journal import read_runs
from p2pft_flower.keeping.resuming import KNOWN_BY, look_through
from p2pft_flower.keeping.running import running
from p2pft_flower.plan import Plan, ResumePoint
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View

__all__ = ["Keeper", "Moment", "files_kept", "iterations_apart", "spared_files"]

log = logging.getLogger("p2pft_flower")

KEPT_EVENTS = ("evaluation", "view")
"""What the log of a peer's later life repeats of the earlier one."""

_APART = 50
"""Iterations between two checkpoints at least, where the run-config leaves it open. Where iterations take
milliseconds and an epoch has a dozen, one after each evaluation took 5 % of the time."""

_UNKNOWN = -1
"""In place of a view's number."""

_LOOK = 0.1
"""Seconds between two looks whether the run was stopped, while a checkpoint waits for the one before."""


def iterations_apart(asked: int, evaluate_every: int) -> int:
    """Return E, the iterations between two checkpoints; negative where none are written.

    Parameters
    ----------
    asked : int
        Run-config ``checkpoint-every``; 0 leaves it open: after evaluations, 50 iterations apart at least.
    evaluate_every : int
        Iterations between two evaluations.
    """
    return asked or evaluate_every * math.ceil(_APART / evaluate_every)


def files_kept(kept: int, every: int, diameter: int | None) -> int:
    """Return how many files each peer keeps so that ``kept`` iterations are everybody's; see the module.

    Parameters
    ----------
    kept : int
        K ≥ 1.
    every : int
        E, iterations between two checkpoints; negative where none are written.
    diameter : int or None
        D of the graph; None where peers exchange nothing.
    """
    if diameter is None or every < 0:
        return kept
    return kept + 1 + math.ceil(diameter / every)


def spared_files(views: Mapping[int, int], whole: Collection[int], files: int) -> set[int]:
    """Return the iterations of which a peer's files stay; see the module.

    Parameters
    ----------
    views : mapping of int to int
        The view in which each file was written, by its iteration.
    whole : collection of int
        The views with all peers and links of the run.
    files : int
        How many are kept of a view (:func:`files_kept`).
    """
    spared: set[int] = set()
    for among in (set(views.values()), set(views.values()).intersection(whole)):
        for view in sorted(among, reverse=True):
            newest = sorted(k for k, v in views.items() if v == view)[-files:]
            spared.update(newest)
            if len(newest) == files:
                break
    return spared


class Moment(NamedTuple):
    """A host's peers after an iteration: all that a checkpoint needs, and training does not change.

    Attributes
    ----------
    done : int
        Iterations done.
    states : mapping of int to State
        By peer. Steps return new arrays and leave these as they are.
    positions : mapping of int to callable
        What each peer's :meth:`~p2pft_flower.host.problem.Objective.position` returned.
    bytes_sent : mapping of int to int
        Payload bytes of each peer so far.
    exchange : float
        Seconds that the host has spent in exchanges.
    session : Session
        Of the view in which the last of these iterations was done.
    """

    done: int
    states: Mapping[int, State]
    positions: Mapping[int, Callable[[], dict[str, Any]]]
    bytes_sent: Mapping[int, int]
    exchange: float
    session: Session


class Keeper:
    """Writes the checkpoints of one host, in a thread of its own, and reads those it starts from.

    Parameters
    ----------
    plan : Plan
        The host's part of the run.
    model_digest : str
        Of the frozen weights and θ^0.
    recorder : Recorder
        Knows where the peers' time goes; its logs are brought to disk before a checkpoint that follows them.
    """

    def __init__(self, plan: Plan, model_digest: str, recorder: Recorder) -> None:
        self._plan, self._model_digest, self._recorder = plan, model_digest, recorder
        self._algorithm = str(plan.config["algorithm"])
        self._folders = {p.peer: checkpoint_folder(Path(plan.output_dir), p.peer) for p in plan.peers}
        busy = {p for there in running(plan.run) if there.process.pid != os.getpid() for p in there.peers}
        for peer, folder in self._folders.items():
            if peer not in busy:  # else another process may be writing there
                forget_torn(folder)
        self._whole = {0: True}
        """Whether a view has all peers and links that the run began with, by its number."""
        self._files = plan.checkpoint_files
        self._written_in: dict[int, dict[int, int]] = {p.peer: {} for p in plan.peers}
        """By peer, the view of each iteration's file."""
        self._begin = min(plan.begins.values())
        """Iterations with which the present view began."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        self._written = -1
        """Iteration of the last :class:`Moment` that was handed over."""

    def due(self, done: int) -> bool:
        """Tell whether there is a checkpoint after ``done`` iterations: also at the beginning and the end."""
        every = self._plan.checkpoint_every
        return every > 0 and (done % every == 0 or self._written < 0 or done == self._plan.iterations)

    def keep(self, moment: Moment, check: Callable[[], None], timeout: float) -> None:
        """Have ``moment`` written while training goes on, once the one before is on disk.

        Parameters
        ----------
        moment : Moment
            All peers of the host.
        check : callable
            Called while the one before is still being written; raises when the run was stopped.
        timeout : float
            Seconds that may take.

        Raises
        ------
        CheckpointError
            When the one before could not be written, or is still not.
        ConfigError
            When the method's state cannot be kept.
        """
        self._wait(check, timeout)
        with self._lock:
            self._note(moment.session)
        # Who comes back to the iteration that it left at keeps its file of it: the others have that one, too.
        # What it had done beyond is done again by all, and kept again.
        checkpoints = [
            checkpoint
            for checkpoint in self._checkpoints(moment, stopped=False)
            if checkpoint.iteration != self._begin
            or checkpoint.iteration not in self._written_in[checkpoint.peer]
        ]
        with self._lock:
            self._written = moment.done
            self._thread = threading.Thread(
                target=self._write, args=(checkpoints,), name="p2pft-checkpoint", daemon=True
            )
            self._thread.start()

    def raise_if_failed(self) -> None:
        """Raise what went wrong when a checkpoint was written, if anything did."""
        if self._error is not None:
            raise self._error

    def finish(self, check: Callable[[], None], timeout: float) -> None:
        """Wait until everything is on disk; parameters and errors as of :meth:`keep`."""
        self._wait(check, timeout)

    def keep_stopped(self, moment: Moment) -> None:
        """Write ``moment``, the last of a run that was stopped or failed; from whichever thread.

        Never raises: that it cannot be written must not hide why the run stopped.
        """
        if self._plan.checkpoint_every < 0:
            return
        try:
            with self._lock:
                if self._thread is not None:
                    self._thread.join(2.0)  # Flower leaves little more
                    if self._thread.is_alive():
                        log.error(
                            "no checkpoint of iteration %d: that of %d is still being written",
                            moment.done,
                            self._written,
                        )
                        return
                self._note(moment.session)
                if self._written != moment.done or self._error is not None:
                    for checkpoint in self._checkpoints(moment, stopped=True):
                        self._recorder.sync(checkpoint.peer)
                        self._written_in[checkpoint.peer][checkpoint.iteration] = checkpoint.view
                        path = write_checkpoint(checkpoint, self._folders[checkpoint.peer])
                        log.info(
                            "peer %d: its checkpoint of iteration %d is %s",
                            checkpoint.peer,
                            checkpoint.iteration,
                            path,
                        )
        except Exception:
            log.exception("the checkpoint of iteration %d could not be written", moment.done)

    def resume(
        self, peer: int, point: ResumePoint, start: Callable[[], State], objective: Objective
    ) -> tuple[State, int]:
        """Take up what ``peer`` goes on from: its data order, its log, and what is returned.

        Parameters
        ----------
        peer : int
            One of the host's.
        point : ResumePoint
            Names the checkpoint.
        start : callable
            Returns a state as the method starts with; only its kind is used.
        objective : Objective
            The peer's, at the start of its data order.

        Returns
        -------
        tuple of State and int
            The method's state, and payload bytes sent so far.

        Raises
        ------
        DataError
            When the file is not what the coordinator was told of, or of another model.
        """
        folder = checkpoint_folder(Path(point.folder), peer)
        path = folder / f"iteration-{point.iterations[peer]}.safetensors"
        checkpoint, digest = read_checkpoint(path, point.run)
        if digest != point.digests[peer]:
            raise DataError(f"{path}: it was changed since the run was started; start it again")
        kept = checkpoint.about["model_digest"]
        if kept != self._model_digest:
            raise DataError(
                f"run {point.run} cannot be resumed: peer {peer}'s model digest is {kept} in the checkpoint, "
                f"{self._model_digest} now; give it the same weights"
            )
        state: State = restore_state(start, checkpoint, self._algorithm)
        log_file = folder.parent / f"peer-{peer}.jsonl"
        try:
            lives = _lives(log_file, point.run)
        except (OSError, ValueError, KeyError) as error:
            log.warning(
                "%s cannot be read (%s: %s): the results will not show the evaluations before iteration %d",
                log_file,
                type(error).__name__,
                error,
                checkpoint.iteration,
            )
            lives = []
        view = max((e["number"] for life in lives for e in life if e["event"] == "view"), default=0)
        objective.go_to(checkpoint.position, _lost(checkpoint, folder, view))
        # The iteration itself is evaluated again where that is due: the log may end just before.
        earlier = [e for e in _history(lives, checkpoint.iteration) if e["event"] == "evaluation"]
        self._recorder.go_on(
            peer, [e for e in earlier if self._plan.evaluates_after(e["iteration"])], checkpoint.seconds
        )
        return state, checkpoint.bytes_sent

    def come_back(self, peer: int, objective: Objective, session: Session) -> int:
        """Take up what ``peer`` has kept of its earlier life in this run: its data order and its log.

        Where no checkpoint is left it begins its data order anew.

        Parameters
        ----------
        peer : int
            One of the host's.
        objective : Objective
            The peer's, at the start of its data order.
        session : Session
            The view that has let it in.

        Returns
        -------
        int
            Payload bytes it had sent when the checkpoint was written.
        """
        folder = self._folders[peer]
        # Each change of view costs two gradients at most: of the iteration given up, and of the new start.
        more, position, sent = 2 * session.number, objective.position()(), 0
        lost, seconds = session.first + more, None
        kept = look_through(Path(self._plan.output_dir), peer, self._plan.run)
        self._written_in[peer] = {k: v for v, one in kept.views.items() for k in one.digests}
        # A file of an earlier version does not tell; then older ones stay.
        told = {v: bool(one.about.get("whole", False)) for v, one in kept.views.items()}
        self._whole = told | self._whole
        if kept.digests:
            path = folder / f"iteration-{max(kept.digests)}.safetensors"
            checkpoint, _ = read_checkpoint(path, self._plan.run)
            if (kept_digest := checkpoint.about["model_digest"]) != self._model_digest:
                raise DataError(
                    f"peer {peer} cannot come back to run {self._plan.run}: its model digest is "
                    f"{kept_digest} in {path}, {self._model_digest} now; give it the same weights"
                )
            position, sent, seconds = checkpoint.position, checkpoint.bytes_sent, checkpoint.seconds
            lost = _lost(checkpoint, folder) + more
        objective.go_to(position, lost)
        try:
            lives = _lives(folder.parent / f"peer-{peer}.jsonl", self._plan.run)[:-1]  # the last is this one
        except (OSError, ValueError, KeyError) as error:
            log.warning("peer %d: its earlier log cannot be read (%s)", peer, error)
            lives = []
        self._recorder.go_on(peer, _history(lives, session.first), seconds)
        return sent

    def _checkpoints(self, moment: Moment, *, stopped: bool) -> list[Checkpoint]:
        # Peers that exchange nothing may begin at different iterations: each writes from there on.
        begins, first = self._plan.begins, self._written < 0
        return [
            Checkpoint(
                run=self._plan.run,
                peer=peer,
                iteration=max(moment.done, begins[peer]),
                about=self._about(peer, moment.session),
                position=moment.positions[peer](),
                bytes_sent=moment.bytes_sent[peer],
                seconds=self._recorder.seconds(peer, moment.exchange),
                state=state_fields(state, self._algorithm),
                stopped=stopped,
                view=moment.session.number,
                live=moment.session.peers,
            )
            for peer, state in sorted(moment.states.items())
            if first or begins[peer] <= moment.done
        ]

    def _note(self, session: Session) -> None:
        """Take in what a view asks for, where this is the first that is heard of it."""
        if session.view is None or session.number in self._whole:
            return
        self._begin = session.first
        self._whole[session.number] = self._is_whole(session.view)
        kept, every = int(self._plan.config["checkpoints-kept"]), self._plan.checkpoint_every
        # What a longer way between two peers asks for also holds where the way was shorter.
        self._files = max(self._files, files_kept(kept, every, session.view.graph.diameter))

    def _about(self, peer: int, session: Session) -> dict[str, Any]:
        """Return what must be alike where this peer goes on, and what tells the differences."""
        known = self._plan.peer_records.get(peer, {})
        return {
            "config": self._plan.config,
            "iterations": self._plan.iterations,
            "evaluate_every": self._plan.evaluate_every,
            "checkpoint_every": self._plan.checkpoint_every,
            "model_digest": self._model_digest,
            "graph": self._plan.record.get("graph", {}),
            "partition": self._plan.record.get("partition"),
            "versions": self._plan.record.get("versions", {}),
            "loss_weight": session.weights[peer],
            "images": known.get("images"),
            **{key: known[key] for key in KNOWN_BY if known.get(key)},
            "row": session.places[peer].row,
            "column": session.places[peer].column,
            "whole": self._whole[session.number],
        }

    def _is_whole(self, view: View) -> bool:
        """Tell whether ``view`` has the peers and the links that the run began with."""
        graph = Graph.from_dict(self._plan.graph)
        first = View.without(graph, set(range(graph.n)).difference(self._plan.live))
        return (view.peers, view.graph.digest) == (first.peers, first.graph.digest)

    def _wait(self, check: Callable[[], None], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self._thread is not None and self._thread.is_alive():
            check()
            if time.monotonic() >= deadline:
                raise CheckpointError(
                    min(self._folders),
                    f"the checkpoint of iteration {self._written} is still being written after {timeout:g} s "
                    f"(peer-timeout) to {self._folders[min(self._folders)]}: the disk hangs or is too slow; "
                    "choose another output-dir, or a greater checkpoint-every",
                )
            self._thread.join(_LOOK)
        self.raise_if_failed()

    def _forget(self, peer: int) -> None:
        """Remove the files of ``peer`` that are no longer needed."""
        folder, whole = self._folders[peer], dict(self._whole)  # training may come to another view meanwhile
        # What an earlier run, or nobody whom this one can read, has left there goes first.
        written_in = {k: self._written_in[peer].get(k, _UNKNOWN) for k in checkpoint_files(folder)}
        spared = spared_files(written_in, {v for v, is_whole in whole.items() if is_whole}, self._files)
        forget(folder, [k for k in written_in if k not in spared])

    def _write(self, checkpoints: list[Checkpoint]) -> None:
        try:
            for checkpoint in checkpoints:
                folder = self._folders[checkpoint.peer]
                self._recorder.sync(checkpoint.peer)
                write_checkpoint(checkpoint, folder)
                self._written_in[checkpoint.peer][checkpoint.iteration] = checkpoint.view
                if checkpoint.iteration < self._plan.iterations:
                    self._forget(checkpoint.peer)
        except CheckpointError as error:
            self._error = error
        except Exception as error:
            self._error = CheckpointError(
                checkpoint.peer,
                f"the checkpoint of iteration {checkpoint.iteration} cannot be written: "
                f"{type(error).__name__}: {error}",
            )


def _lives(log_file: Path, run: str) -> list[list[dict[str, Any]]]:
    """Return the lines of each life of a peer in ``run``; the log may begin with an earlier run's."""
    return [life for life in read_runs(log_file) if life[0]["run"] == run]


def _history(lives: Iterable[Iterable[dict[str, Any]]], before: int) -> list[dict[str, Any]]:
    """Return the evaluations and views of a peer's ``lives`` before an iteration, each once, by their time.

    A life repeats what the earlier ones have told once it was let in; one that ended sooner tells nothing, so
    all are looked at. What an earlier one did after a later one was let in is given up.
    """
    told: dict[tuple[str, int], dict[str, Any]] = {}
    for life in lives:
        kept = [e for e in life if e["event"] in KEPT_EVENTS]
        if kept and kept[0]["event"] == "view":  # it was let in; a first life begins with an evaluation
            told = {key: e for key, e in told.items() if e["iteration"] < kept[0]["iteration"]}
        told |= {(e["event"], e["number" if e["event"] == "view" else "iteration"]): e for e in kept}
    return sorted((e for e in told.values() if e["iteration"] < before), key=lambda e: e["time"])


def _lost(checkpoint: Checkpoint, folder: Path, view: int = 0) -> int:
    """Return how many gradients at most the interrupted run drew after ``checkpoint``, up to ``view``.

    The peer had done two intervals more than its newest file says at most, or one unfinished iteration where
    the run was stopped.
    """
    newest, path = max(checkpoint_files(folder).items())
    after = 2 * checkpoint.about["checkpoint_every"]
    try:
        after = 1 if read_checkpoint(path)[0].stopped else after
    except DataError:  # told when the files were looked through; the greater number holds
        log.debug("%s is torn", path)
    last: int = min(newest + after, checkpoint.about["iterations"])
    # Each change of view costs two more at most: of the iteration given up, and of the new start.
    return last - checkpoint.iteration + 2 * max(0, view - checkpoint.view)
