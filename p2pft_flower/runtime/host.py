"""A host: one process that runs one or more peers in lock-step, from the first gradient to the last score."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from p2pft_flower.algorithms.objective import local_objective
from p2pft_flower.algorithms.registry import make_algorithm
from p2pft_flower.algorithms.schedules import make_schedule
from p2pft_flower.algorithms.seam import Algorithm, Gradient, Mix, Step, Vector, lockstep
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import P2PFTError
from p2pft_flower.runtime.exchange import DivergedError, HostExchange
from p2pft_flower.runtime.plan import Plan
from p2pft_flower.runtime.problem import Objective, Problem
from p2pft_flower.runtime.recorder import Outcome, Recorder
from p2pft_flower.runtime.wires import Access, Wires, remote_edges
from p2pft_flower.transport import ExchangeStoppedError, Hello, Stop, Terms

__all__ = ["Host", "PeerFailedError"]

_MEET_REMEDY = (
    "is its host running? Peers that wait for each other must run at the same time: set transport = memory, "
    "or give the simulation more CPUs (client-resources-num-cpus, init-args-num-cpus); where preparing takes "
    "long, raise meet-timeout"
)


_PLAIN = Access()


class News(NamedTuple):
    """Who gave up first, where, and why."""

    origin: int
    iteration: int
    reason: str


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
        self._prepared = threading.Event()

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
            recorder = None
            try:
                recorder = Recorder(self.plan, self.problem)
                stack.callback(recorder.close)
                return self._train(recorder)
            except BaseException as error:
                # The neighbours first, so that they stop now and not at their deadline.
                self._hear(self._news_of(error))
                if self._wires is not None and self._news is not None:
                    self._wires.links.stop(*self._news)
                if recorder is not None:
                    recorder.failed(self._iteration, error)
                raise

    def stop(self, reason: str) -> None:
        """Make :meth:`run` raise ExchangeStoppedError: at the next iteration, or at once where it waits."""
        self._hear(News(self._peers[0], self._iteration, reason))

    def _train(self, recorder: Recorder) -> list[Outcome]:
        plan, settings, timeouts = self.plan, self._config.method, self._config.runtime
        schedule = make_schedule(settings.schedule, settings.learning_rate, plan.iterations)
        method = make_algorithm(settings.algorithm, alpha=schedule, momentum=settings.momentum)
        with recorder.telling():
            theta0 = self.problem.theta0
        self._wires = self._open_wires(method, theta0)
        self._raise_if_stopped()  # the server hears stops before self._wires can be told of them
        objectives: dict[int, Objective] = {}
        for p in self._peers:
            with self._naming(p, "its data could not be prepared"), recorder.telling():
                objectives |= self.problem.objectives([p])
        self._prepared.set()
        if self._wires is not None:
            self._wires.links.meet(timeouts.meet_timeout, _MEET_REMEDY)
        recorder.started()

        exchange = HostExchange(plan.peers, self._wires, theta0.dtype.itemsize)
        gradients = {p: self._gradient(p, objectives[p], recorder) for p in self._peers}

        def evaluate(done: int) -> None:
            for p in self._peers:
                with self._naming(p, "its evaluation failed"):
                    score = recorder.evaluate(p, objectives[p], states[p].theta, done, exchange.bytes_sent[p])
                if not math.isfinite(score.loss):
                    raise DivergedError(p, f"iteration {done}", "loss")

        states = {}
        for p in self._peers:
            with self._naming(p, "it could not start"):
                states[p] = method.start(theta0.copy(), gradients[p])
        evaluate(0)
        for k in range(plan.iterations):
            self._iteration = k
            self._raise_if_stopped()
            steps = {p: self._step(p, method.step(k, states[p], gradients[p])) for p in self._peers}
            states = lockstep(
                steps, lambda phase, outbox: self._mix(exchange, phase, outbox), len(method.phases)
            )
            if (k + 1) % plan.evaluate_every == 0 or k + 1 == plan.iterations:
                evaluate(k + 1)
        if self._wires is not None:
            self._wires.links.flush(timeouts.peer_timeout)
        return [
            recorder.finish(p, states[p].theta, exchange.bytes_sent[p], exchange.seconds) for p in self._peers
        ]

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
        return exchange.mix(self._iteration, phase, outbox)

    def _open_wires(self, method: Algorithm[Any], theta0: Vector) -> Wires | None:
        always = self._config.runtime.transport == "grpc"
        leaving, entering = remote_edges(self.plan.peers, always=always)
        if not method.phases or not (leaving or entering):
            return None
        terms = Terms(
            run=self.plan.run,
            length=theta0.size,
            dtype=theta0.dtype,
            phases=len(method.phases),
            config=f"{self.plan.terms}:{self.problem.model_digest}",
        )
        timeout = self._config.runtime.peer_timeout
        return Wires(
            self.plan,
            terms,
            leaving,
            entering,
            self._access,
            timeout=timeout,
            on_hello=self._on_hello,
            on_stop=self._on_stop,
        )

    def _gradient(self, peer: int, objective: Objective, recorder: Recorder) -> Gradient:
        """∇ of the peer's objective: its loss's weight, weight decay, its time, and who raised."""

        def gradient(theta: Vector) -> Vector:
            with recorder.timed(peer, "gradient"), self._naming(peer, "its gradient failed"):
                g = objective.gradient(theta)
            if not np.isfinite(g).all():
                raise DivergedError(peer, f"iteration {self._iteration}", "gradient")
            return g

        weight, decay = self.plan.loss_weights[peer], self._config.method.weight_decay
        return local_objective(gradient, weight=weight, weight_decay=decay)

    def _on_hello(self, hello: Hello) -> str | None:  # noqa: ARG002 - the transport has checked it
        """Keep a neighbour waiting until this host can train: its peer-timeout must not run meanwhile."""
        timeout = self._config.runtime.meet_timeout
        if self._prepared.wait(timeout):
            return None
        return f"still preparing after {timeout:g} s (meet-timeout): model, data or trunk take longer"

    def _on_stop(self, stop: Stop) -> None:
        self._hear(News(stop.origin, stop.iteration, stop.reason))

    def _hear(self, news: News) -> None:
        with self._lock:
            if self._news is None:
                self._news = news
        self._prepared.set()  # whoever waits for this host shall hear the news
        if self._wires is not None:
            self._wires.fail(self._stopped())

    def _raise_if_stopped(self) -> None:
        if self._news is not None:
            raise self._stopped()

    def _stopped(self) -> ExchangeStoppedError:
        origin, iteration, reason = self._news or News(self._peers[0], self._iteration, "unknown")
        return ExchangeStoppedError(f"peer {origin} stopped in iteration {iteration}: {reason}")

    def _news_of(self, error: BaseException) -> News:
        """Return what the neighbours are told: the first cause where this host knows one, else its own."""
        if self._news is not None:
            return self._news
        peer = getattr(error, "peer", None)
        reason = str(error) or type(error).__name__
        return News(self._peers[0] if peer is None else peer, self._iteration, reason)
