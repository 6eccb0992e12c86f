"""A host: one process that runs one or more peers in lock-step, from the first gradient to the last score."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from p2pft_flower.algorithms.objective import local_objective
from p2pft_flower.algorithms.registry import make_algorithm
from p2pft_flower.algorithms.schedules import make_schedule
from p2pft_flower.algorithms.seam import Algorithm, Gradient, Mix, Step, Vector, lockstep
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import P2PFTError
from p2pft_flower.runtime.agreement import LostContactError, NewView
from p2pft_flower.runtime.checkpoints import CheckpointError
from p2pft_flower.runtime.exchange import DivergedError, HostExchange
from p2pft_flower.runtime.keeping import Keeper, Moment
from p2pft_flower.runtime.plan import Neighbourhood, Plan
from p2pft_flower.runtime.problem import Objective, Problem
from p2pft_flower.runtime.recorder import Outcome, Recorder
from p2pft_flower.runtime.wires import Access, Wires, remote_edges
from p2pft_flower.transport import (
    ExchangeStoppedError,
    Gossip,
    Hello,
    OwnPulse,
    Pulse,
    Reply,
    Status,
    Stop,
    Terms,
    ViewChangeError,
)

__all__ = ["Host", "PeerFailedError", "TooFewPeersError"]

log = logging.getLogger("p2pft_flower")

_MEET_REMEDY = (
    "is its host running? Peers that wait for each other must run at the same time: set transport = memory, "
    "or give the simulation more CPUs (client-resources-num-cpus, init-args-num-cpus); where preparing takes "
    "long, raise meet-timeout"
)

_KEPT = 1.0
"""Seconds that a hello is kept before it is answered PREPARING; less where meet-timeout is short."""


_PLAIN = Access()


class News(NamedTuple):
    """Who gave up first, where, and why."""

    origin: int
    iteration: int
    reason: str


class TooFewPeersError(P2PFTError):
    """Fewer peers are left than the run is to go on with."""


class PeerFailedError(Exception):
    """A peer of this host raised; carries which one and where.

    Not a subclass of the package's deliberate errors: the cause is whatever the peer's code raised.
    """

    def __init__(self, peer: int, iteration: int, what: str, cause: BaseException) -> None:
        self.peer, self.iteration = peer, iteration
        super().__init__(f"peer {peer}, iteration {iteration}: {what}: {type(cause).__name__}: {cause}")


class Host:
    """Runs the peers of ``plan``; :meth:`stop` may be called from any thread.

    Parameters
    ----------
    plan : Plan
        What the coordinator decided.
    problem : Problem
        What is learned.
    access : Access
        How this machine's peers listen and prove who they are; default: in plain text, on this machine only.
    """

    def __init__(self, plan: Plan, problem: Problem, access: Access = _PLAIN) -> None:
        self.plan, self.problem, self._access = plan, problem, access
        self._config = RunConfig.from_mapping(plan.config)
        self._peers = [p.peer for p in plan.peers]
        self._iteration = 0
        self._news: News | None = None
        self._wires: Wires | None = None
        self._lock = threading.Lock()
        self._stage = 0.0
        """Hellos of lower stages are agreed to: 0 while this host prepares."""
        self._staged = threading.Condition()
        self._progress = 0
        self._recorder: Recorder | None = None
        self._telling: threading.Thread | None = None
        self._told = False
        self._stopped_at: float | None = None
        self._keeper: Keeper | None = None
        self._pulse = OwnPulse()
        self._live: tuple[int, ...] = tuple(plan.loss_weights)
        """The peers in the view: their loss weights are scaled to a mean of one."""
        self._completed: Moment | None = None
        """The peers after the last iteration that all of this host have done; None before."""
        self._saving, self._saved = threading.Lock(), False

    def run(self) -> list[Outcome]:
        """Prepare, meet the neighbours, train, and return how each peer ended.

        Raises
        ------
        ExchangeError
            When a neighbour cannot be met, stays silent beyond the deadline, or has stopped.
        DivergedError
            When a peer's gradient, payload or loss is not finite.
        PeerFailedError
            When a peer's own code raised.
        P2PFTError
            When data or model cannot be used.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_wires)  # last, and whatever else fails
            stack.callback(self._wait_until_told)
            recorder = None
            try:
                recorder = self._recorder = Recorder(self.plan, self.problem)
                stack.callback(recorder.close)
                return self._train(recorder)
            except BaseException as error:
                # The neighbours are told first, so that they stop now and not at their deadline.
                if self._others_go_on(error):
                    self._leave(error)
                else:
                    self._hear(self._news_of(error), own=True)
                if recorder is not None:
                    recorder.failed(self._iteration, error)
                    self.save_stopped()
                raise

    def stop(self, reason: str) -> None:
        """Stop this host's peers and, through their neighbours, all others; returns once these were told.

        :meth:`run` raises ExchangeStoppedError: at the next iteration, or at once where it waits. The peers'
        logs have their last line when this returns, whatever :meth:`run` is busy with.
        """
        self._hear(News(self._peers[0], self._iteration, reason))
        self._wait_until_told()

    def save_stopped(self) -> None:
        """Save each peer's θ, and a checkpoint, after the last complete iteration, once; from any thread.

        :meth:`run` does so when it fails; who does not wait for it, since it is busy, does it instead. Where
        no training has begun there is nothing to save.
        """
        with self._saving:  # who comes second waits until the files are there
            completed = self._completed
            if self._recorder is None or completed is None or self._saved:
                return
            self._saved = True
            for peer, state in completed.states.items():
                done = max(completed.done, self.plan.begins[peer])
                self._recorder.save_stopped(peer, state.theta, done)
            if self._keeper is not None:
                self._keeper.keep_stopped(completed)

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The peers elsewhere that hear of a stop from this host, ascending; none in memory."""
        near = {p for place in self.plan.peers for p in (*place.in_neighbours, *place.out_neighbours)}
        return tuple(p for p in sorted(near) if p in self.plan.addresses and p not in self._peers)

    def raise_if_stopped(self, longer_than: float = 0.0) -> None:
        """Raise ExchangeStoppedError when the run was stopped, so many seconds ago or earlier."""
        if self._stopped_at is not None and time.monotonic() - self._stopped_at >= longer_than:
            raise self._stopped()

    def _train(self, recorder: Recorder) -> list[Outcome]:
        plan, settings, timeouts = self.plan, self._config.method, self._config.runtime
        schedule = make_schedule(settings.schedule, settings.learning_rate, plan.iterations)
        method = make_algorithm(settings.algorithm, alpha=schedule, momentum=settings.momentum)
        with recorder.telling():
            theta0 = self.problem.theta0
        self._wires = self._open_wires(method, theta0)
        self.raise_if_stopped()  # the server hears stops before self._wires can be told of them
        objectives: dict[int, Objective] = {}
        for p in self._peers:
            with self._naming(p, "its data could not be prepared"), recorder.telling():
                objectives |= self.problem.objectives([p], self._note_progress)
        exchange = HostExchange(plan.peers, self._wires, theta0.dtype.itemsize)
        keeper = self._keeper = Keeper(plan, self.problem.model_digest, recorder)
        begins, states = plan.begins, {}
        if plan.resume is not None:
            for p in self._peers:
                with self._naming(p, "its checkpoint could not be taken up"):
                    start = partial(method.start, theta0.copy(), np.zeros_like)
                    states[p], exchange.bytes_sent[p] = keeper.resume(p, plan.resume, start, objectives[p])
        self._meet(timeouts.meet_timeout)
        if self._wires is not None:
            self._wires.watch()
        recorder.started()

        gradients = {p: self._gradient(p, objectives[p], recorder) for p in self._peers}
        for p in self._peers:
            if plan.resume is None:
                with self._naming(p, "it could not start"):
                    states[p] = method.start(theta0.copy(), gradients[p])

        def complete(done: int) -> None:
            moment = self._completed = Moment(
                done,
                states,
                {p: objectives[p].position() for p in self._peers},
                dict(exchange.bytes_sent),
                exchange.seconds,
            )
            if plan.evaluates_after(done):
                for p in states:
                    if begins[p] <= done:
                        evaluate(p, done)
            keeper.raise_if_failed()
            if keeper.due(done):
                keeper.keep(moment, self.raise_if_stopped, timeouts.peer_timeout)

        def evaluate(p: int, done: int) -> None:
            self._pulse.enter(Pulse.EVALUATING)
            with self._naming(p, "its evaluation failed"):
                score = recorder.evaluate(p, objectives[p], states[p].theta, done, exchange.bytes_sent[p])
            if not math.isfinite(score.loss):
                raise DivergedError(p, f"iteration {done}", "loss")

        def iterate(k: int) -> None:
            nonlocal states
            self._iteration = k
            self.raise_if_stopped()
            self._pulse.enter(Pulse.COMPUTING)
            steps = {
                p: self._step(p, method.step(k, states[p], gradients[p])) for p in states if begins[p] <= k
            }
            after = states | lockstep(
                steps, lambda phase, outbox: self._mix(exchange, phase, outbox), len(method.phases)
            )
            if agreement is not None:
                agreement.complete(k + 1)
            states = after
            self._pulse.complete(k + 1, view)
            complete(k + 1)

        agreement = None if self._wires is None else self._wires.agreement
        view, done, changing = 0, min(begins.values()), False
        complete(done)
        while True:
            try:
                if changing:
                    new = self._next_view(exchange, recorder)
                    view, done, changing = new.number, max(done, new.iteration), False
                    # Algorithm 1 begins again where it stands: Σ τ = Σ g at once (DESIGN invariant 1).
                    for p in self._peers:
                        gradients[p] = self._gradient(p, objectives[p], recorder)
                        with self._naming(p, "it could not go on"):
                            states = states | {p: method.start(states[p].theta, gradients[p])}
                while done < plan.iterations:
                    iterate(done)
                    done += 1
                if self._wires is not None:
                    self._wires.links.flush(math.inf)
                self._pulse.enter(Pulse.FINISHED)
                if agreement is None or agreement.finish(timeouts.peer_timeout, self.raise_if_stopped):
                    break
                changing = True
            except ViewChangeError:
                changing = True
        keeper.finish(self.raise_if_stopped, timeouts.peer_timeout)
        ended = [
            recorder.finish(p, objectives[p], states[p].theta, exchange.bytes_sent[p], exchange.seconds)
            for p in self._peers
        ]
        if None in ended:
            raise self._stopped()
        self._saved = True  # as results
        return [outcome for outcome in ended if outcome is not None]

    def _next_view(self, exchange: HostExchange, recorder: Recorder) -> NewView:
        """Wait for the next view, and take everything that exchanges to it."""
        wires = self._wires
        if wires is None or wires.agreement is None:
            raise RuntimeError("the view changes where it never does")
        self._pulse.enter(Pulse.PAUSED)
        new = wires.agreement.settle(self.raise_if_stopped)
        recorder.view_changed(new)
        least = self._config.runtime.min_peers
        if len(new.view.peers) < least:
            raise TooFewPeersError(
                f"{len(new.view.peers)} peers are left after {new.iteration} iterations, {list(new.view.peers)}, "
                f"and min-peers is {least}: the run stops"
            )
        self._live = new.view.peers
        places = [Neighbourhood.of(new.view, p) for p in self._peers]
        always = self._config.runtime.transport == "grpc"
        wires.install(new.number, new.iteration, *remote_edges(tuple(places), always=always))
        exchange.install(places)
        wires.agreement.recheck()
        return new

    def _step(self, peer: int, step: Step[Any]) -> Step[Any]:
        with self._naming(peer, "its step failed"):
            return (yield from step)

    @contextlib.contextmanager
    def _naming(self, peer: int, what: str) -> Iterator[None]:
        """Turn whatever a peer's own code raises into an error that names the peer."""
        try:
            yield
        except (P2PFTError, PeerFailedError):
            raise
        except Exception as error:
            raise PeerFailedError(peer, self._iteration, what, error) from error

    def _close_wires(self) -> None:
        if self._wires is not None:
            self._wires.close()

    def _mix(self, exchange: HostExchange, phase: int, outbox: Mapping[int, Mix]) -> dict[int, Vector]:
        self._pulse.enter(Pulse.WAITING)
        mixed = exchange.mix(self._iteration, phase, outbox)
        self._pulse.enter(Pulse.COMPUTING)
        return mixed

    def _open_wires(self, method: Algorithm[Any], theta0: Vector) -> Wires | None:
        always = self._config.runtime.transport == "grpc"
        leaving, entering = remote_edges(self.plan.peers, always=always) if method.phases else (set(), set())
        alone = not (leaving or entering)
        if alone and not self.plan.listens_for_stops:
            return None
        terms = Terms(
            run=self.plan.run,
            length=theta0.size,
            dtype=theta0.dtype,
            phases=max(1, len(method.phases)),  # without edges no payload is taken in at all
            config=f"{self.plan.terms}:{self.problem.model_digest}",
        )
        try:
            return Wires(
                self.plan,
                terms,
                leaving,
                entering,
                self._access,
                config=self._config.runtime,
                on_hello=self._on_hello,
                on_stop=self._on_stop,
                pulse=self._pulse,
            )
        except P2PFTError as error:
            if not alone:
                raise
            # It needs no other peer, so nothing is lost but this one way to stop it.
            log.warning("flwr stop will not reach peers %s, which train alone: %s", self._peers, error)
            return None

    def _gradient(self, peer: int, objective: Objective, recorder: Recorder) -> Gradient:
        """∇ of the peer's objective: its loss's weight, weight decay, its time, and who raised."""

        def gradient(theta: Vector) -> Vector:
            with recorder.timed(peer, "gradient"), self._naming(peer, "its gradient failed"):
                g = objective.gradient(theta)
            if not np.isfinite(g).all():
                raise DivergedError(peer, f"iteration {self._iteration}", "gradient")
            return g

        weights, decay = self.plan.loss_weights, self._config.method.weight_decay
        weight = weights[peer]
        if len(self._live) < len(weights):  # else it is one up to rounding, and bits shall not change
            weight /= sum(weights[p] for p in self._live) / len(self._live)
        return local_objective(gradient, weight=weight, weight_decay=decay)

    def _meet(self, timeout: float) -> None:
        """Wait until all peers of the run are prepared: no peer-timeout may run meanwhile.

        At stage s a neighbour agrees when its own neighbours have agreed to stage s - 1, so whoever has gone
        through as many stages as there are other hosts knows of all that edges lead to, in either direction.
        """
        for stage in range(max(1, self.plan.hosts - 1)):
            self._reach(stage + 1)
            if self._wires is not None:
                self._wires.links.meet(timeout, _MEET_REMEDY, stage=stage)
        self._reach(math.inf)

    def _reach(self, stage: float) -> None:
        with self._staged:
            self._stage = max(self._stage, stage)
            self._staged.notify_all()

    def _note_progress(self) -> None:
        self._progress += 1

    def _on_hello(self, hello: Hello) -> Reply | None:
        """Agree when this host has reached the stage; else say after a moment how far it has come."""
        kept = min(_KEPT, self._config.runtime.meet_timeout / 4)
        with self._staged:
            if self._staged.wait_for(lambda: self._stage > hello.stage, kept):
                return None
            reason = "model, data or trunk take longer"
            if self._stage > 0:
                reason = "prepared, and waiting for neighbours of its own"
                self._progress += 1  # its own waiting has deadlines
        return Reply(status=Status.PREPARING, reason=reason, progress=self._progress)

    def _on_stop(self, stop: Stop) -> None:
        if stop.sender in self._peers:  # the coordinator's: it speaks to a peer, and is none itself
            self._hear(News(stop.sender, self._iteration, stop.reason))
        else:
            self._hear(News(stop.origin, stop.iteration, stop.reason))

    def _hear(self, news: News, *, own: bool = False) -> None:
        """Take in that the run stops, and pass it on; ``own``: :meth:`run` notes itself what went wrong."""
        with self._lock:
            if self._news is None:
                self._news, self._stopped_at = news, time.monotonic()
                # A thread of its own: neither a long gradient nor a slow neighbour may hold the news up.
                self._telling = threading.Thread(
                    target=self._tell, args=(own,), name="p2pft-stop", daemon=True
                )
                self._telling.start()
        self._reach(math.inf)  # whoever waits for this host shall hear the news
        if self._wires is not None:
            self._wires.fail(self._stopped())

    def _tell(self, own: bool) -> None:
        """Note the news in the peers' logs, and pass it on along every edge."""
        if self._recorder is not None and not own:
            self._recorder.failed(self._iteration, self._stopped())
        if self._wires is not None and self._news is not None:
            self._told = True
            self._wires.links.stop(*self._news)

    def _wait_until_told(self) -> None:
        """Return once the neighbours have heard the news, if there is any; each is given 2 s."""
        if self._telling is not None:
            self._telling.join(5.0)
            if not self._told:  # the news came before there were links
                self._tell(own=True)

    def _stopped(self) -> ExchangeStoppedError:
        origin, iteration, reason = self._news or News(self._peers[0], self._iteration, "unknown")
        return ExchangeStoppedError(f"peer {origin} stopped in iteration {iteration}: {reason}")

    def _others_go_on(self, error: BaseException) -> bool:
        """Tell whether what went wrong here is this host's own affair, and the others agree on a view without it.

        What is wrong with the run itself (it diverges, it was stopped) is not.
        """
        training = self._completed is not None and self._news is None
        agreeing = self._wires is not None and self._wires.agreement is not None
        return (
            training and agreeing and isinstance(error, (PeerFailedError, LostContactError, CheckpointError))
        )

    def _leave(self, error: BaseException) -> None:
        """Tell all contacts that this host goes, so that they need not wait for its silence."""
        if self._wires is None or (agreement := self._wires.agreement) is None:
            return
        agreement.leave(str(error))
        gossip = {
            remote: Gossip(run=self.plan.run, sender=local, receiver=remote, records=agreement.tell())
            for remote, local in agreement.contacts().items()
        }
        self._wires.links.gossip_all(gossip, 2.0)

    def _news_of(self, error: BaseException) -> News:
        """Return what the neighbours are told: the first cause where this host knows one, else its own."""
        if self._news is not None:
            return self._news
        peer = getattr(error, "peer", None)
        reason = str(error) or type(error).__name__
        return News(self._peers[0] if peer is None else peer, self._iteration, reason)
