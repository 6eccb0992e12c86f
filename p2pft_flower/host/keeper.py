"""Keeps a host's checkpoints while its peers train, and reads those that they go on from."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from p2pft_flower.algorithms.compression import Memory
from p2pft_flower.algorithms.seam import State
from p2pft_flower.errors import DataError
from p2pft_flower.host.problem import Objective
from p2pft_flower.host.recorder import Recorder
from p2pft_flower.host.session import Session
from p2pft_flower.keeping.about import PeerAbout
from p2pft_flower.keeping.checkpoints import (
    Checkpoint,
    CheckpointError,
    checkpoint_file,
    checkpoint_files,
    checkpoint_folder,
    forget,
    forget_torn,
    read_checkpoint,
    restore_state,
    write_checkpoint,
)
from p2pft_flower.keeping.kept import Best
from p2pft_flower.keeping.lines import Evaluation
from p2pft_flower.keeping.past import drawn_since, read_past
from p2pft_flower.keeping.resuming import look_through
from p2pft_flower.keeping.retention import files_kept, spared_files
from p2pft_flower.keeping.running import running
from p2pft_flower.keeping.states import state_fields
from p2pft_flower.plan import Plan, ResumePoint
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View

__all__ = ["Keeper", "Moment"]

log = logging.getLogger("p2pft_flower")

_UNKNOWN = -1
"""Stands for a view's number that is not known."""

_LOOK = 0.1
"""Seconds between two checks for a stop, while a checkpoint waits for the one before."""


class Moment(NamedTuple):
    """A host's peers after an iteration: all that a checkpoint needs, in objects that training leaves alone.

    Attributes
    ----------
    done : int
        Number of iterations that are done.
    states : mapping of int to State
        The peers' states, by peer. Steps return new arrays and leave these as they are.
    positions : mapping of int to callable
        The result of each peer's :meth:`~p2pft_flower.host.problem.Objective.position`.
    memories : mapping of (int, int) to Memory
        The memories of the view's codec, by peer and number of the exchange in a period.
    bytes_sent : mapping of int to int
        Payload bytes that each peer has sent so far.
    exchange : float
        Seconds that the host has spent in exchanges.
    session : Session
        The session of the view in which the last iteration was done.
    best : mapping of int to Best
        The best θ of each peer by the evaluations before this one, if ``keep`` asks for it; else empty.
    counts : mapping of int to (n, 2 + C) array
        Each peer's table of all peers' numbers of images, if ``class-weights`` asks for it; else empty.
    """

    done: int
    states: Mapping[int, State]
    positions: Mapping[int, Callable[[], dict[str, Any]]]
    memories: Mapping[tuple[int, int], Memory]
    bytes_sent: Mapping[int, int]
    exchange: float
    session: Session
    best: Mapping[int, Best] = MappingProxyType({})
    counts: Mapping[int, npt.NDArray[np.float64]] = MappingProxyType({})


class Keeper:
    """Writes the checkpoints of one host, in a thread of its own, and reads those that it goes on from.

    Parameters
    ----------
    plan : Plan
        The host's part of the run.
    model_digest : str
        Digest of the frozen weights and θ^0.
    recorder : Recorder
        The recorder, which counts the peers' seconds. A peer's journal is brought to disk before each of its
        checkpoints.
    gradients : int
        The most gradients that a peer draws in one iteration.
    """

    def __init__(self, plan: Plan, model_digest: str, recorder: Recorder, gradients: int) -> None:
        self._plan, self._model_digest, self._recorder = plan, model_digest, recorder
        self._gradients = gradients
        self._algorithm = plan.config.method.algorithm
        self._folders = {p.peer: checkpoint_folder(Path(plan.output_dir), p.peer) for p in plan.peers}
        busy = {p for there in running(plan.run) if there.pid != os.getpid() for p in there.peers}
        for peer, folder in self._folders.items():
            if peer not in busy:  # else another process may be writing there
                forget_torn(folder)
        self._whole = {0: True}
        """By a view's number, whether it has all peers and links that the run began with."""
        self._files = plan.checkpoint_files
        self._written_in: dict[int, dict[int, int]] = {p.peer: {} for p in plan.peers}
        """By peer and iteration, the view of the file."""
        self._begin = min(plan.begins.values())
        """Iterations with which the present view began."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        self._written = -1
        """Iteration of the last :class:`Moment` that was handed over."""

    def due(self, done: int) -> bool:
        """Tell whether to keep a checkpoint after ``done`` iterations.

        Without a positive ``checkpoint-every`` never; else also at the beginning and at the end.
        """
        every = self._plan.checkpoint_every
        return every > 0 and (done % every == 0 or self._written < 0 or done == self._plan.iterations)

    def keep(self, moment: Moment, check: Callable[[], None], timeout: float) -> None:
        """Start to write a checkpoint of ``moment`` in a background thread, while training goes on.

        If the previous checkpoint is still being written, wait for it first.

        Parameters
        ----------
        moment : Moment
            The moment, with all peers of the host.
        check : callable
            Called during that wait; raises if the run was stopped.
        timeout : float
            Seconds to wait for the previous checkpoint.

        Raises
        ------
        CheckpointError
            If the previous checkpoint could not be written, or is not on disk in time.
        ConfigError
            If the method's state cannot be kept.
        """
        self.finish(check, timeout)
        with self._lock:
            self._note(moment.session)
        # A peer that comes back to the iteration at which it left keeps its file of it: the others have one,
        # too. Iterations beyond it are done again by all, and kept again.
        checkpoints = [
            checkpoint
            for checkpoint in self._checkpoints(moment, stopped=False)
            if checkpoint.iteration != self._begin
            or checkpoint.iteration not in self._written_in[checkpoint.peer]
        ]
        with self._lock:
            self._written = moment.done
            self._thread = threading.Thread(
                target=self._write_all, args=(checkpoints,), name="p2pft-checkpoint", daemon=True
            )
            self._thread.start()

    def raise_if_failed(self) -> None:
        """Raise CheckpointError if a checkpoint could not be written."""
        if self._error is not None:
            raise self._error

    def finish(self, check: Callable[[], None], timeout: float) -> None:
        """Wait until the last checkpoint is on disk.

        Parameters
        ----------
        check : callable
            Called during the wait; raises if the run was stopped.
        timeout : float
            Seconds to wait.

        Raises
        ------
        CheckpointError
            If a checkpoint could not be written, or the last one is not on disk in time.
        """
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

    def keep_stopped(self, moment: Moment) -> None:
        """Write ``moment``, the last of a run that was stopped or failed, if need be; from any thread.

        Never raises: an error of writing must not hide the reason why the run stopped.
        """
        if self._plan.checkpoint_every < 0:
            return
        try:
            with self._lock:
                if self._thread is not None:
                    self._thread.join(2.0)  # Flower leaves little more
                    if self._thread.is_alive():
                        what = "no checkpoint of iteration %d: that of %d is still being written"
                        log.error(what, moment.done, self._written)
                        return
                self._note(moment.session)
                if self._written != moment.done or self._error is not None:
                    for checkpoint in self._checkpoints(moment, stopped=True):
                        peer, iteration, path = checkpoint.peer, checkpoint.iteration, self._write(checkpoint)
                        log.info("peer %d: its checkpoint of iteration %d is %s", peer, iteration, path)
        except Exception:
            log.exception("the checkpoint of iteration %d could not be written", moment.done)

    def resume(
        self, peer: int, point: ResumePoint, start: Callable[[], State], objective: Objective
    ) -> tuple[State, Checkpoint]:
        """Put the data order and the journal of ``peer`` back to its resume point, and return its state.

        Parameters
        ----------
        peer : int
            A peer of the host.
        point : ResumePoint
            The point, which names the checkpoint.
        start : callable
            Returns a fresh state of the method, with which type, fields and θ's shape and dtype are compared.
        objective : Objective
            The peer's objective, at the start of its data order.

        Returns
        -------
        tuple of State and Checkpoint
            The method's state, and the checkpoint with all else.

        Raises
        ------
        DataError
            If the file cannot be read, has another digest than in the plan, or is of another model.
        """
        folder = checkpoint_folder(Path(point.folder), peer)
        cannot = f"run {point.run} cannot be resumed: peer {peer}'s"
        checkpoint, about, digest = self._read(folder, point.iterations[peer], point.run, cannot)
        if digest != point.digests[peer]:
            path = checkpoint_file(folder, checkpoint.iteration)
            raise DataError(f"{path}: it was changed since the run was started; start it again")
        state: State = restore_state(start, checkpoint, self._algorithm)
        past = read_past(folder.parent / f"peer-{peer}.jsonl", point.run)
        lost = self._gradients * drawn_since(checkpoint, about, folder, past.view)
        objective.go_to(checkpoint.position, lost)
        # The iteration itself is evaluated again if that is due: the journal may end just before.
        earlier = [e for e in past.before(checkpoint.iteration) if isinstance(e, Evaluation)]
        self._recorder.continue_journal(
            peer, [e for e in earlier if self._plan.evaluates_after(e.iteration)], checkpoint.seconds
        )
        return state, checkpoint

    def restore_past(self, peer: int, objective: Objective, session: Session) -> Checkpoint | None:
        """Restore the data order and the journal that ``peer`` has kept of its earlier life in this run.

        If no checkpoint is left, the peer begins its data order anew.

        Parameters
        ----------
        peer : int
            A peer of the host.
        objective : Objective
            The peer's objective, at the start of its data order.
        session : Session
            The session of the view that has let the peer in.

        Returns
        -------
        Checkpoint or None
            The peer's newest checkpoint; None if it has none.

        Raises
        ------
        DataError
            If the last checkpoint cannot be read, or is of another model.
        """
        folder = self._folders[peer]
        # Each change of view costs no more than two iterations: the one given up, and the new start.
        more, position, checkpoint = 2 * session.number, objective.position()(), None
        lost, seconds = session.first + more, None
        kept = look_through(Path(self._plan.output_dir), peer, self._plan.run, self._recorder.q)
        self._written_in[peer] = {k: v for v, one in kept.views.items() for k in one.digests}
        self._whole = {v: one.of_peer.whole for v, one in kept.views.items()} | self._whole
        if kept.digests:
            cannot = f"peer {peer} cannot come back to run {self._plan.run}: its"
            checkpoint, about, _ = self._read(folder, max(kept.digests), self._plan.run, cannot)
            position, seconds = checkpoint.position, checkpoint.seconds
            lost = drawn_since(checkpoint, about, folder) + more
        objective.go_to(position, self._gradients * lost)
        past = read_past(folder.parent / f"peer-{peer}.jsonl", self._plan.run)
        past = past._replace(lives=past.lives[:-1])  # the last is this one
        self._recorder.continue_journal(peer, past.before(session.first), seconds)
        return checkpoint

    def _read(self, folder: Path, iteration: int, run: str, cannot: str) -> tuple[Checkpoint, PeerAbout, str]:
        """Return a peer's checkpoint of this model, the facts of its run in it, and its digest.

        ``cannot`` is the beginning of the error's text if the checkpoint is of another model.
        """
        path = checkpoint_file(folder, iteration)
        checkpoint, digest = read_checkpoint(path, run, self._recorder.q)
        about = checkpoint.about
        if not isinstance(about, PeerAbout):
            raise DataError(f"{path}: it is of the server of a strategy, none of a peer")
        if about.model_digest != self._model_digest:
            raise DataError(
                f"{cannot} model digest is {about.model_digest} in the checkpoint, {self._model_digest} now "
                f"({path}); give it the same weights, and with head = text the same texts"
            )
        return checkpoint, about, digest

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
                memories={phase: one for (p, phase), one in moment.memories.items() if p == peer},
                best=moment.best.get(peer),
                counts=moment.counts.get(peer),
                stopped=stopped,
                view=moment.session.number,
                live=moment.session.peers,
            )
            for peer, state in sorted(moment.states.items())
            if first or begins[peer] <= moment.done
        ]

    def _note(self, session: Session) -> None:
        """Note a new view: its first iteration, whether it is whole, and how many files it needs."""
        if session.view is None or session.number in self._whole:
            return
        self._begin = session.first
        self._whole[session.number] = self._is_whole(session.view)
        kept, every = self._plan.config.runtime.checkpoints_kept, self._plan.checkpoint_every
        # As many files as the longest way between two peers needs also do if the way was shorter.
        self._files = max(self._files, files_kept(kept, every, session.view.graph.lead))

    def _about(self, peer: int, session: Session) -> PeerAbout:
        """Return the facts that must be alike if the peer goes on, and the facts that errors name."""
        plan, facts, own = self._plan, self._plan.facts, self._plan.peer_facts.get(peer)
        return PeerAbout(
            config=plan.config.to_mapping(),
            iterations=plan.iterations,
            evaluate_every=plan.evaluate_every,
            checkpoint_every=plan.checkpoint_every,
            model_digest=self._model_digest,
            graph=None if facts is None else facts.graph,
            partition="" if facts is None else facts.partition,
            versions={} if facts is None else facts.versions,
            loss_weight=session.weights[peer],
            known=None if own is None else own.known,
            row=session.places[peer].row,
            column=session.places[peer].column,
            whole=self._whole[session.number],
        )

    def _is_whole(self, view: View) -> bool:
        """Tell whether ``view`` has the peers and the links that the run began with."""
        graph = Graph.from_dict(self._plan.graph)
        first = View.without(graph, set(range(graph.n)).difference(self._plan.live))
        return (view.peers, view.graph.digest) == (first.peers, first.graph.digest)

    def _forget(self, peer: int) -> None:
        """Remove the files of ``peer`` that are no longer needed."""
        folder, noted = self._folders[peer], dict(self._whole)  # training may come to another view meanwhile
        # Files of an earlier run, or that this one cannot read, go first.
        written_in = {k: self._written_in[peer].get(k, _UNKNOWN) for k in checkpoint_files(folder)}
        whole = {v for v, is_whole in noted.items() if is_whole}
        spared = spared_files(written_in, whole, self._files)
        forget(folder, [k for k in written_in if k not in spared])

    def _write(self, checkpoint: Checkpoint) -> Path:
        self._recorder.sync(checkpoint.peer)
        path = write_checkpoint(checkpoint, self._folders[checkpoint.peer])
        self._written_in[checkpoint.peer][checkpoint.iteration] = checkpoint.view
        return path

    def _write_all(self, checkpoints: list[Checkpoint]) -> None:
        try:
            for checkpoint in checkpoints:
                self._write(checkpoint)
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
