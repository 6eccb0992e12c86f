"""A host's peers from iteration to iteration: states, scores, checkpoints, and other views."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from p2pft_flower.algorithms.registry import check_graph
from p2pft_flower.algorithms.seam import (
    Algorithm,
    Gradient,
    Mix,
    State,
    Step,
    Vector,
    lockstep,
    placed,
)
from p2pft_flower.errors import DataError, listed
from p2pft_flower.host.agreement import Agreement
from p2pft_flower.host.best import BestTheta
from p2pft_flower.host.class_counts import ClassCounts, weighted
from p2pft_flower.host.drawing import Drawing
from p2pft_flower.host.exchange import DivergedError, HostExchange
from p2pft_flower.host.keeper import Keeper, Moment
from p2pft_flower.host.peer_errors import naming
from p2pft_flower.host.problem import Device, Objective, Together, validated
from p2pft_flower.host.recorder import Outcome, Recorder
from p2pft_flower.host.session import Session
from p2pft_flower.keeping.absence import LastWord
from p2pft_flower.keeping.checkpoints import Checkpoint
from p2pft_flower.keeping.kept import Kept
from p2pft_flower.keeping.states import changed
from p2pft_flower.plan import Plan
from p2pft_flower.transport import OwnPulse, Pulse

log = logging.getLogger("p2pft_flower")

__all__ = ["TRACE", "Training"]

TRACE = "P2PFT_TRACE_TRACKER"
"""Environment variable: if it is not empty, each peer writes a trace, a sketch of τ_i − g_i, after each
iteration. Sketches are linear: summed over the peers of a view they show whether Σ τ = Σ g (invariant 1 of
docs/architecture.md)."""


class Training:
    """Steps the peers of one host in lock-step.

    Parameters
    ----------
    plan : Plan
        The host's part of the run.
    session : Session
        The session of the view that the run begins with.
    method : Algorithm
        The method.
    objectives : mapping of int to Objective
        Each peer's objective.
    together : callable or None
        Draws the gradients of several peers at once; None: each is drawn by itself.
    exchange : HostExchange
        The exchange, which mixes the vectors that the peers yield.
    recorder : Recorder
        The recorder, which scores the peers and writes their journals.
    keeper : Keeper
        The keeper, which writes the checkpoints.
    pulse : OwnPulse
        The place where the host's activity and progress are noted.
    raise_if_stopped : callable
        Raises if this host ends.
    device : Device, optional
        Where the peers' vectors are; default: in the CPU's memory.

    Attributes
    ----------
    session : Session
        The session of the view in which the peers train.
    iteration : int
        The iteration that is under way.
    done : int
        Number of iterations that are completed.
    states : dict of int to State
        Each peer's state after ``done`` iterations.
    completed : Moment or None
        All that a checkpoint after ``done`` iterations needs; None before training.
    """

    def __init__(
        self,
        plan: Plan,
        session: Session,
        method: Algorithm[Any],
        objectives: Mapping[int, Objective],
        together: Together | None,
        exchange: HostExchange,
        recorder: Recorder,
        keeper: Keeper,
        pulse: OwnPulse,
        raise_if_stopped: Callable[[], None],
        device: Device | None = None,
    ) -> None:
        self._device = device
        self._plan, self._method, self._objectives = plan, method, objectives
        self._exchange, self._recorder, self._keeper = exchange, recorder, keeper
        self._pulse, self._raise_if_stopped = pulse, raise_if_stopped
        config = plan.config
        self._timeout = config.runtime.peer_timeout
        self._peers = [p.peer for p in plan.peers]
        self._draw = Drawing(
            self._peers,
            objectives,
            together,
            recorder,
            config.method.weight_decay,
            lambda: (self.iteration, self.session.weights),
            exchange.finite,
        )
        self.session = session
        self._trace = bool(os.environ.get(TRACE))
        self._begins = plan.begins
        self.iteration = self.done = min(self._begins.values())
        self.states: dict[int, State] = {}
        self.completed: Moment | None = None
        self._saving, self._saved = threading.Lock(), False
        by = config.learning.chosen_by
        self._best = None if by is None else BestTheta(by, plan.n)
        self._counts = ClassCounts(plan.n) if config.learning.balances else None
        self._waiting, self._due = set[int](), False
        """With class weights, until these are there: the peers without a gradient, and whether scores and
        checkpoints are due then."""

    def restore(self, theta0: Vector) -> None:
        """If the plan resumes a run, restore the peers' states from that run's checkpoints.

        Raises
        ------
        DataError
            If a checkpoint cannot be taken up.
        PeerFailedError
            If any other error comes meanwhile.
        """
        if self._plan.resume is None:
            return
        for p in self._peers:
            with naming(p, self.iteration, "its checkpoint could not be taken up"):
                start = partial(self._method.start, theta0.copy(), np.zeros_like)
                state, kept = self._keeper.resume(p, self._plan.resume, start, self._objectives[p])
                self.states[p] = state if self._device is None else changed(state, self._device.place)
                memory, self._exchange.bytes_sent[p] = kept.memories, kept.bytes_sent
                self._restore_tables(p, kept)
                phases = len(self._method.phases)
                turns = {number // phases for number in memory} if phases else set()
                whole = {turn * phases + phase for turn in turns for phase in range(phases)}
                # Without any: nothing was exchanged in its view. Of some turns: not all came in its view.
                if memory.keys() != whole or not turns <= set(range(self.session.period)):
                    raise DataError(
                        f"peer {p}: its checkpoint has a codec's memory of the exchanges {list(memory)}, "
                        f"expected {phases} of them a turn, of {self.session.period} turns: method or "
                        "schedule-graph was changed; resume with the settings and version that wrote it"
                    )
                self._exchange.memories |= {(p, number): one for number, one in memory.items()}

    def begin(self, theta0: Vector) -> None:
        """Start each peer that has no state yet at ``theta0``, (q,); score and keep all if that is due."""
        self._start({p: self._placed(theta0) for p in self._peers if p not in self.states})
        self._complete_later(self.done)

    def iterate(self, agreement: Agreement | None) -> None:
        """Iterate until all iterations are done.

        Raises
        ------
        ViewChangeError
            If the view changes: the iteration under way does not count, and nothing of it is kept.
        """
        self._weigh_classes()
        while True:
            k = self.iteration = self.done
            self._raise_if_stopped()
            self._choose_best()
            if k == self._plan.iterations:
                return
            self._pulse.enter(Pulse.COMPUTING)
            if k == self.session.all_have_theta:
                self._exchange.withdraw()
            begun = [p for p in self.states if self._begins[p] <= k]
            steps = {
                p: self._step(p, self._of(p).step(k, self.states[p], self._draw.gradients[p])) for p in begun
            }
            after = lockstep(steps, self._send, self._take, len(self._method.phases), self._draw)
            if agreement is not None:
                agreement.complete(k + 1)
            self.states = self.states | after
            self._complete(k + 1)

    def restore_past(self, session: Session) -> None:
        """Restore the peers' data order and journals from the files of their earlier life in this run."""
        for p in self._peers:
            with naming(p, session.first, "what it has kept could not be taken up"):
                kept = self._keeper.restore_past(p, self._objectives[p], session)
                if kept is not None:
                    self._exchange.bytes_sent[p] = kept.bytes_sent
                    self._restore_tables(p, kept)

    def enter_view(self, session: Session, theta: Vector | None = None) -> None:
        """Begin the method again, from each peer's θ, among the peers of another view.

        The tracker starts afresh, τ_i := ∇L_i(θ_i), so Σ τ = Σ g at once (invariant 1 of
        docs/architecture.md).

        Parameters
        ----------
        session : Session
            The session of the next view.
        theta : numpy.ndarray, optional
            (q,), the θ with which the peers begin if this host was not in the last view; default each peer's
            own.

        Raises
        ------
        TopologyError
            If the method would end at a wrong point on the graph of the view.
        """
        if session.view is not None:
            check_graph(self._method, session.view.graph)
        self._pulse.enter(Pulse.COMPUTING)
        self.session, self.iteration = session, session.first
        self._exchange.memories.clear()
        behind = self.done < session.first
        if theta is not None and self._best is not None:
            self._best.come_back()
        if theta is not None and self._counts is not None:
            self._counts.come_back()
        self._start({p: self.states[p].theta if theta is None else self._placed(theta) for p in self._peers})
        # Scores and checkpoints due after the iterations that the others had completed are due here too.
        if behind or theta is not None:
            self._complete_later(session.first)

    def finish(self) -> list[Outcome]:
        """Bring the last checkpoint, the tails and the journals to disk, and return the peers' outcomes."""
        self._keeper.finish(self._raise_if_stopped, self._timeout)
        last = {p: self._kept(p) for p in self._peers}
        of = self._plan.iterations
        earlier = {p: theta for p, (theta, kept) in last.items() if kept and kept.is_earlier(of)}
        self._recorder.score_again(self._objectives, earlier, self._evaluating)
        ended = [
            self._recorder.finish(
                p, self._objectives[p], *last[p], self._exchange.bytes_sent[p], self._exchange.seconds
            )
            for p in self._peers
        ]
        outcomes = [outcome for outcome in ended if outcome is not None]
        if len(outcomes) < len(ended):  # another thread has written the last line, of a stop
            self._raise_if_stopped()
            raise RuntimeError(f"the logs of peers {listed(self._peers)} ended before their training did")
        self._saved = True  # as results
        return outcomes

    def keep_excluded(self) -> None:
        """Keep a checkpoint, since the others have gone on without this host, which asks to be let in."""
        log.warning(
            "peers %s: the others have gone on without them; asking to be let in again", listed(self._peers)
        )
        if self.completed is not None:
            self._keeper.keep_stopped(self.completed)

    def done_before(self, last_words: Mapping[int, LastWord]) -> dict[int, int]:
        """Return the iterations that each peer had completed before a view let it in, where that is known.

        ``last_words`` has the last word of a peer's earlier life, from before this process.
        """
        if self.states:
            return dict.fromkeys(self._peers, self.done)
        return {p: word.iteration for p, word in last_words.items()}

    @property
    def sent(self) -> tuple[dict[int, int], float]:
        """The bytes that each peer has sent, and the seconds that this host has spent in exchanges."""
        return dict(self._exchange.bytes_sent), self._exchange.seconds

    def save_stopped(self) -> None:
        """Save each peer's θ, and a checkpoint, after the last complete iteration, once; from any thread."""
        with self._saving:  # a second caller waits until the files are there
            completed = self.completed
            if completed is None or self._saved:
                return
            self._saved = True
            for peer, state in completed.states.items():
                done = max(completed.done, self._begins[peer])
                self._recorder.save_stopped(peer, state.theta, done)
            self._keeper.keep_stopped(completed)

    def _start(self, thetas: Mapping[int, Vector]) -> None:
        """Start each peer's method at its θ, (q,)."""
        if self._counts is None:
            self._start_with(thetas, self._draw.first(thetas))
        else:
            # Nothing is computed before the weights are known; θ is there for peers that come back.
            self._waiting.update(thetas)
            self._start_with(thetas, dict.fromkeys(thetas, np.zeros_like))

    def _start_with(self, thetas: Mapping[int, Vector], gradients: Mapping[int, Gradient]) -> None:
        started = {}
        for p, theta in thetas.items():
            with naming(p, self.iteration, "it could not start"):
                started[p] = self._of(p).start(theta, gradients[p])
        self.states = self.states | started

    def _placed(self, theta: Vector) -> Vector:
        """Return a copy of ``theta``, (q,), where the peers' vectors are."""
        return theta.copy() if self._device is None else self._device.place(theta)

    def _weigh_classes(self) -> None:
        """Agree with the others on the classes' weights as a view begins, and then start the peers.

        The rounds come in each view, as a peer that was let in may have no table.
        """
        if self._counts is None:
            return
        self._pulse.enter(Pulse.WAITING)
        objectives, own = {p: weighted(self._objectives[p]) for p in self._peers}, {}
        for p, objective in objectives.items():
            with naming(p, self.iteration, "its images of each class could not be counted"):
                own[p] = objective.class_counts()
        tables = self._counts.tables(own)
        self._counts.keep(self._exchange.share_counts(self.session, tables))
        self._pulse.enter(Pulse.COMPUTING)
        for p, objective in objectives.items():
            objective.weigh(self._counts.total(p))
        thetas = {p: self.states[p].theta for p in sorted(self._waiting)}
        self._start_with(thetas, self._draw.first(thetas))
        self._waiting.clear()
        if self._due:
            self._due = False
            self._complete(self.session.first)

    def _of(self, peer: int) -> Algorithm[Any]:
        """Return the method as ``peer`` runs it in the iteration that is under way."""
        place = self.session.places[peer].at(self.iteration)
        return placed(self._method, place.tracker_weight, place.next_weight)

    def _step(self, peer: int, step: Step[Any]) -> Step[Any]:
        with naming(peer, self.iteration, "its step failed"):
            return (yield from step)

    def _send(self, phase: int, outbox: Mapping[int, Mix]) -> None:
        self._pulse.enter(Pulse.WAITING)
        self._exchange.send(self.session, self.iteration, phase, outbox)
        self._pulse.enter(Pulse.COMPUTING)

    def _take(self, phase: int) -> dict[int, Vector]:
        self._pulse.enter(Pulse.WAITING)
        mixed = self._exchange.take(self.session, self.iteration, phase)
        self._pulse.enter(Pulse.COMPUTING)
        return mixed

    def _complete_later(self, done: int) -> None:
        """:meth:`_complete`, now or, with class weights, once they are known and the peers have started."""
        if self._counts is None:
            self._complete(done)
        else:
            self._due = True

    def _complete(self, done: int) -> None:
        """Note that ``done`` iterations are completed; score and write checkpoints if they are due."""
        self.done = done
        self._pulse.complete(done, self.session.number)
        moment = self.completed = Moment(
            done,
            self.states,
            {p: self._objectives[p].position() for p in self._peers},
            dict(self._exchange.memories),
            dict(self._exchange.bytes_sent),
            self._exchange.seconds,
            self.session,
            {} if self._best is None else self._best.so_far,
            {} if self._counts is None else self._counts.so_far,
        )
        if self._trace:
            for p, state in self.states.items():
                if (tau := getattr(state, "tau", None)) is not None:
                    surplus = np.asarray(tau - state.grad)  # type: ignore[attr-defined]
                    self._recorder.trace(p, self.session.number, done, surplus)
        if self._plan.evaluates_after(done):
            self._evaluate(done)
        self._keeper.raise_if_failed()
        if self._keeper.due(done):
            self._keeper.keep(moment, self._raise_if_stopped, self._timeout)

    def _evaluating(self) -> None:
        self._pulse.enter(Pulse.EVALUATING)

    def _evaluate(self, done: int) -> None:
        thetas = {p: state.theta for p, state in self.states.items() if self._begins[p] <= done}
        self._evaluating()
        best = self._best
        validation = {} if best is None else {p: self._validate(p, best.by) for p in thetas}
        told = {p: score for p, score in validation.items() if score is not None and math.isfinite(score)}
        scores = self._recorder.evaluate(
            self._objectives, thetas, done, self._exchange.bytes_sent, self._evaluating, told
        )
        for peer, theta in thetas.items():
            with naming(peer, self.iteration, "its evaluation failed"):
                score = next(scores)
            if not math.isfinite(score.loss) and not math.isnan(score.accuracy):
                raise DivergedError.not_finite(peer, f"iteration {done}", "loss")
            if told.get(peer) != validation.get(peer):
                raise DivergedError.not_finite(peer, f"iteration {done}", "validation loss")
            if best is not None:
                best.note(peer, done, validation[peer], np.asarray(theta))

    def _validate(self, peer: int, by: str) -> float | None:
        """Score the peer's θ on its own validation images, which are none of its test images."""
        theta = self.states[peer].theta
        with (
            self._recorder.timed(peer, "evaluation"),
            naming(peer, self.iteration, "its scores on validation images failed"),
        ):
            scores = validated(self._objectives[peer], theta)
            return None if scores is None else scores.loss if by == "loss" else scores.balanced_accuracy

    def _choose_best(self) -> None:
        """Agree with the others whether the best θ is that of the last evaluation, if that is due.

        A view also begins with that, since a peer may have decided before it what others had not yet.
        """
        done, session = self.done, self.session
        if self._best is None or not (done == session.first or self._plan.evaluates_after(done)):
            return
        self._pulse.enter(Pulse.WAITING)
        tables = self._best.tables(self._peers)
        self._best.decide(self._exchange.share(session, done, tables, self._plan.iterations))

    def _restore_tables(self, peer: int, kept: Checkpoint) -> None:
        self._restore_best(peer, kept)
        if self._counts is not None:
            self._counts.restore(peer, kept.counts)

    def _restore_best(self, peer: int, kept: Checkpoint) -> None:
        if self._best is not None:
            self._best.restore(peer, kept.best)

    def _kept(self, peer: int) -> tuple[Vector, Kept | None]:
        """Return the θ that the peer ends with, and what results tell of it."""
        last = self.states[peer].theta
        if self._best is None:
            return last, None
        theta = self._best.theta(peer)
        return last if theta is None else theta, self._best.kept(peer)
