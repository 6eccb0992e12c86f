"""A host's peers from iteration to iteration: states, scores, checkpoints, and other views."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from p2pft_flower.algorithms.objective import local_objective
from p2pft_flower.algorithms.seam import Algorithm, Gradient, Mix, State, Step, Vector, lockstep
from p2pft_flower.errors import P2PFTError
from p2pft_flower.host.agreement import Agreement, NewView
from p2pft_flower.host.exchange import DivergedError, HostExchange
from p2pft_flower.host.keeper import Keeper, Moment
from p2pft_flower.host.problem import Objective
from p2pft_flower.host.recorder import Recorder
from p2pft_flower.plan import Plan
from p2pft_flower.transport import OwnPulse, Pulse

__all__ = ["TRACE", "PeerFailedError", "Training", "naming"]

TRACE = "P2PFT_TRACE_TRACKER"
"""Environment variable: not empty, each peer's log tells its τ_i − g_i after each iteration, as a sketch.
Sketches are linear: summed over the peers of a view they show whether Σ τ = Σ g (invariant 1 of
docs/architecture.md)."""


class PeerFailedError(Exception):
    """A peer of this host raised; carries which one and where.

    Not a subclass of the package's deliberate errors: the cause is whatever the peer's code raised.
    """

    def __init__(self, peer: int, iteration: int, what: str, cause: BaseException) -> None:
        self.peer, self.iteration = peer, iteration
        super().__init__(f"peer {peer}, iteration {iteration}: {what}: {type(cause).__name__}: {cause}")


@contextlib.contextmanager
def naming(peer: int, iteration: int, what: str) -> Iterator[None]:
    """Turn whatever a peer's own code raises into an error that names the peer."""
    try:
        yield
    except (P2PFTError, PeerFailedError):
        raise
    except Exception as error:
        raise PeerFailedError(peer, iteration, what, error) from error


class Training:
    """Steps the peers of one host in lock-step.

    Parameters
    ----------
    plan : Plan
        The host's part of the run.
    method : Algorithm
        What is iterated.
    objectives : mapping of int to Objective
        Of each peer.
    exchange : HostExchange
        Mixes what the peers yield.
    recorder : Recorder
        Scores and logs.
    keeper : Keeper
        Checkpoints.
    pulse : OwnPulse
        Is told what the host does.
    raise_if_stopped : callable
        Raises where the run was stopped.

    Attributes
    ----------
    iteration : int
        The one under way.
    done : int
        Iterations that are completed.
    states : dict of int to State
        Each peer's state after them.
    completed : Moment or None
        All that a checkpoint needs of it; None before training.
    """

    def __init__(
        self,
        plan: Plan,
        method: Algorithm[Any],
        objectives: Mapping[int, Objective],
        exchange: HostExchange,
        recorder: Recorder,
        keeper: Keeper,
        pulse: OwnPulse,
        raise_if_stopped: Callable[[], None],
    ) -> None:
        self._plan, self._method, self._objectives = plan, method, objectives
        self._exchange, self._recorder, self._keeper = exchange, recorder, keeper
        self._pulse, self._raise_if_stopped = pulse, raise_if_stopped
        config = plan.config
        self._decay, self._timeout = config.method.weight_decay, config.runtime.peer_timeout
        self._peers = [p.peer for p in plan.peers]
        self._view = 0
        self._gradients = self._weighed(tuple(plan.loss_weights))
        self._trace = bool(os.environ.get(TRACE))
        self.iteration = self.done = min(plan.begins.values())
        self.states: dict[int, State] = {}
        self.completed: Moment | None = None

    def take_up(self, theta0: Vector) -> None:
        """Take the states of the run that is resumed, if one is, from the peers' checkpoints."""
        if self._plan.resume is None:
            return
        for p in self._peers:
            with naming(p, self.iteration, "its checkpoint could not be taken up"):
                start = partial(self._method.start, theta0.copy(), np.zeros_like)
                self.states[p], self._exchange.bytes_sent[p] = self._keeper.resume(
                    p, self._plan.resume, start, self._objectives[p]
                )

    def begin(self, theta0: Vector) -> None:
        """Start each peer that has no state yet at ``theta0``, (q,), and score all."""
        for p in self._peers:
            if p not in self.states:
                self._start(p, theta0.copy())
        self._complete(self.done)

    def go_on(self, agreement: Agreement | None) -> None:
        """Iterate until all iterations are done.

        Raises
        ------
        ViewChangeError
            When the view changes: the iteration under way does not count, nothing of it is kept.
        """
        while self.done < self._plan.iterations:
            k = self.iteration = self.done
            self._raise_if_stopped()
            self._pulse.enter(Pulse.COMPUTING)
            begun = [p for p in self.states if self._plan.begins[p] <= k]
            steps = {
                p: self._step(p, self._method.step(k, self.states[p], self._gradients[p])) for p in begun
            }
            after = lockstep(steps, self._mix, len(self._method.phases))
            if agreement is not None:
                agreement.complete(k + 1)
            self.states = self.states | after
            self._complete(k + 1)

    def come_back(self, new: NewView) -> None:
        """Take up data order and log of the peers' earlier life, known by its files only."""
        for p in self._peers:
            with naming(p, new.iteration, "what it has kept could not be taken up"):
                self._exchange.bytes_sent[p] = self._keeper.come_back(p, self._objectives[p], new)

    def enter(self, new: NewView, theta: Vector | None = None) -> None:
        """Begin the method again, from each peer's θ, among the peers of another view.

        The tracker starts afresh, τ_i := ∇L_i(θ_i), so Σ τ = Σ g at once (invariant 1 of
        docs/architecture.md).

        Parameters
        ----------
        new : NewView
            That view.
        theta : numpy.ndarray, optional
            (q,), what the peers of this host, which was not in the last view, begin with; default: their own.
        """
        self._pulse.enter(Pulse.COMPUTING)
        self._view, behind = new.number, self.done < new.iteration
        self.iteration = new.iteration
        self._gradients = self._weighed(new.view.peers)
        self._keeper.enter(new)
        for p in self._peers:
            self._start(p, self.states[p].theta if theta is None else theta.copy())
        if (
            behind or theta is not None
        ):  # what is due after the iterations that the others had completed is due here too
            self._complete(new.iteration)

    def finish(self) -> None:
        """Have the last checkpoint on disk."""
        self._keeper.finish(self._raise_if_stopped, self._timeout)

    def _start(self, peer: int, theta: Vector) -> None:
        with naming(peer, self.iteration, "it could not start"):
            self.states = self.states | {peer: self._method.start(theta, self._gradients[peer])}

    def _step(self, peer: int, step: Step[Any]) -> Step[Any]:
        with naming(peer, self.iteration, "its step failed"):
            return (yield from step)

    def _mix(self, phase: int, outbox: Mapping[int, Mix]) -> dict[int, Vector]:
        self._pulse.enter(Pulse.WAITING)
        mixed = self._exchange.mix(self.iteration, phase, outbox)
        self._pulse.enter(Pulse.COMPUTING)
        return mixed

    def _complete(self, done: int) -> None:
        """Note that ``done`` iterations are completed; score and keep what is due."""
        self.done = done
        self._pulse.complete(done, self._view)
        moment = self.completed = Moment(
            done,
            self.states,
            {p: self._objectives[p].position() for p in self._peers},
            dict(self._exchange.bytes_sent),
            self._exchange.seconds,
            self._view,
        )
        if self._trace:
            for p, state in self.states.items():
                if (tau := getattr(state, "tau", None)) is not None:
                    self._recorder.trace(p, self._view, done, tau - state.grad)  # type: ignore[attr-defined]
        if self._plan.evaluates_after(done):
            for p in self.states:
                if self._plan.begins[p] <= done:
                    self._evaluate(p, done)
        self._keeper.raise_if_failed()
        if self._keeper.due(done):
            self._keeper.keep(moment, self._raise_if_stopped, self._timeout)

    def _evaluate(self, peer: int, done: int) -> None:
        self._pulse.enter(Pulse.EVALUATING)
        with naming(peer, self.iteration, "its evaluation failed"):
            score = self._recorder.evaluate(
                peer, self._objectives[peer], self.states[peer].theta, done, self._exchange.bytes_sent[peer]
            )
        if not math.isfinite(score.loss) and not math.isnan(score.accuracy):
            raise DivergedError(peer, f"iteration {done}", "loss")

    def _weighed(self, live: Sequence[int]) -> dict[int, Gradient]:
        """Return each peer's gradient of its objective among the peers ``live``."""
        weights = self._plan.weights_among(live)
        return {
            p: local_objective(self._checked(p), weight=weights[p], weight_decay=self._decay)
            for p in self._peers
        }

    def _checked(self, peer: int) -> Gradient:
        """∇L_i, timed, finite, with the peer's name on what its code raises."""

        def gradient(theta: Vector) -> Vector:
            with (
                self._recorder.timed(peer, "gradient"),
                naming(peer, self.iteration, "its gradient failed"),
            ):
                g = self._objectives[peer].gradient(theta)
            if not np.isfinite(g).all():
                raise DivergedError(peer, f"iteration {self.iteration}", "gradient")
            return g

        return gradient
