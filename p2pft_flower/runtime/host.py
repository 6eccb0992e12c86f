"""A host: one process that runs one or more peers in lock-step, from the first gradient to the last score."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from p2pft_flower.algorithms.objective import local_objective
from p2pft_flower.algorithms.registry import make_algorithm
from p2pft_flower.algorithms.schedules import make_schedule
from p2pft_flower.algorithms.seam import Algorithm, Gradient, Vector, lockstep
from p2pft_flower.config import RunConfig
from p2pft_flower.runtime import sketch
from p2pft_flower.runtime.exchange import HostExchange
from p2pft_flower.runtime.journal import Journal
from p2pft_flower.runtime.plan import Plan
from p2pft_flower.runtime.wires import Wires, remote_edges
from p2pft_flower.transport import ExchangeStoppedError, ObserverClient, PeerReport, Stop, Terms

__all__ = ["Host", "Outcome", "PeerFailedError", "Problem", "Score"]

log = logging.getLogger(__name__)


class Score(Protocol):
    """What an evaluation returns."""

    @property
    def loss(self) -> float: ...  # noqa: D102
    @property
    def accuracy(self) -> float: ...  # noqa: D102
    @property
    def accuracy_unseen(self) -> float | None: ...  # noqa: D102


class Objective(Protocol):
    """One peer's loss: fresh mini-batch gradients, and scores."""

    def gradient(self, theta: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a gradient on the next mini-batch, (q,)."""
        ...

    def evaluate(self, theta: npt.NDArray[Any]) -> Score:
        """Score ``theta``."""
        ...


class Problem(Protocol):
    """What the peers learn; :class:`~p2pft_flower.learning.workload.Workload` is one."""

    @property
    def theta0(self) -> npt.NDArray[Any]:
        """θ^0 (q,), the same on all peers."""
        ...

    @property
    def model_digest(self) -> str:
        """Digest of the frozen weights and θ^0; equal on all peers."""
        ...

    def objectives(self, peers: Sequence[int]) -> Mapping[int, Objective]:
        """Build the objectives of ``peers``."""
        ...

    def named_tail(self, theta: npt.NDArray[Any]) -> Mapping[str, Any]:
        """Return θ as named tensors."""
        ...

    def metadata(self) -> Mapping[str, str]:
        """Return what is needed to load a tail again."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How one peer ended; numbers only, the same size whatever q is.

    Attributes
    ----------
    peer : int
        The peer.
    loss, accuracy, accuracy_unseen : float (or None)
        Scores of its last θ on the test split.
    bytes_sent : int
        Payload bytes along its out-edges.
    seconds : dict
        ``gradient``, ``exchange``, ``evaluation``: where its time went.
    iterations : int
        Iterations done.
    parameters : int
        q.
    sketch : str
        Of its last θ (:mod:`p2pft_flower.runtime.sketch`).
    """

    peer: int
    loss: float
    accuracy: float
    accuracy_unseen: float | None
    bytes_sent: int
    seconds: dict[str, float]
    iterations: int
    parameters: int
    sketch: str


class News(NamedTuple):
    """Who gave up first, where, and why."""

    origin: int
    iteration: int
    reason: str


class PeerFailedError(Exception):
    """A peer of this host raised; carries which one and where.

    Not a subclass of the package's deliberate errors: the cause is whatever the peer's code raised.
    """

    def __init__(self, peer: int, iteration: int, cause: BaseException) -> None:
        self.peer, self.iteration = peer, iteration
        super().__init__(f"peer {peer}, iteration {iteration}: its gradient raised {type(cause).__name__}: {cause}")


class Host:
    """Runs the peers of ``plan``; :meth:`stop` may be called from any thread.

    Parameters
    ----------
    plan : Plan
        What the coordinator decided.
    problem : Problem
        What is learned.
    """

    def __init__(self, plan: Plan, problem: Problem) -> None:
        self.plan, self.problem = plan, problem
        self._config = RunConfig.from_mapping(plan.config)
        self._peers = [p.peer for p in plan.peers]
        self._iteration = 0
        self._news: News | None = None
        self._wires: Wires | None = None
        self._seconds = {p: {"gradient": 0.0, "evaluation": 0.0} for p in self._peers}
        self._lock = threading.Lock()

    def run(self) -> list[Outcome]:
        """Prepare, meet the neighbours, train, and return how each peer ended.

        Raises
        ------
        ExchangeError
            When a neighbour cannot be met, stays silent beyond the deadline, or has stopped.
        DivergedError
            When a payload is not finite.
        PeerFailedError
            When a peer's own gradient raised.
        P2PFTError
            When data or model cannot be used.
        """
        plan = self.plan
        journals = {p: Journal(Path(plan.output_dir), p) for p in self._peers}
        observer = ObserverClient(plan.observer) if plan.observer else None
        try:
            return self._train(journals, observer)
        except BaseException as error:
            for journal in journals.values():
                journal.write("failed", iteration=self._iteration, error=str(error), kind=type(error).__name__)
            if self._wires is not None:
                # Tell the neighbours, so that they stop now and not at their deadline.
                self._wires.links.stop(*self._news_of(error))
            raise
        finally:
            if observer is not None:
                observer.close(timeout=1.0)
            if self._wires is not None:
                self._wires.close()
            for journal in journals.values():
                journal.close()

    def stop(self, reason: str) -> None:
        """Make :meth:`run` raise :class:`ExchangeStoppedError` soon: at the next iteration, or at once where it waits."""
        self._hear(News(self._peers[0], self._iteration, reason))

    def _train(self, journals: Mapping[int, Journal], observer: ObserverClient | None) -> list[Outcome]:
        plan, method_config, runtime = self.plan, self._config.method, self._config.runtime
        begin = time.monotonic()
        schedule = make_schedule(method_config.schedule, method_config.learning_rate, plan.iterations)
        method = make_algorithm(method_config.algorithm, alpha=schedule, momentum=method_config.momentum)
        theta0 = self.problem.theta0
        self._wires = self._open_wires(method, theta0)
        objectives = self.problem.objectives(self._peers)
        if self._wires is not None:
            self._wires.links.meet(
                runtime.meet_timeout,
                "is its host running? Peers that wait for each other must run at the same time: set "
                "transport = memory, or give the simulation more CPUs (client-resources-num-cpus, "
                "init-args-num-cpus); where preparing takes long, raise meet-timeout",
            )
        for p, journal in journals.items():
            journal.write("start", run=plan.run, parameters=theta0.size, config=plan.config, prepared=time.monotonic() - begin)

        exchange = HostExchange(plan.peers, self._wires, theta0.dtype.itemsize)
        gradients = {p: self._gradient(p, objectives[p]) for p in self._peers}
        sketcher = sketch.Sketcher(theta0.size)

        def evaluate(done: int, states: Mapping[int, Any]) -> dict[int, Score]:
            scores = {p: self._evaluate(p, objectives[p], states[p].theta) for p in self._peers}
            for p, score in scores.items():
                report = PeerReport(
                    run=plan.run,
                    peer=p,
                    iteration=done,
                    loss=score.loss,
                    accuracy=score.accuracy,
                    accuracy_unseen=score.accuracy_unseen,
                    sketch=sketcher(states[p].theta),
                    bytes_sent=exchange.bytes_sent[p],
                    seconds=time.monotonic() - begin,
                )
                journals[p].write(
                    "evaluation",
                    iteration=done,
                    loss=score.loss,
                    accuracy=score.accuracy,
                    accuracy_unseen=score.accuracy_unseen,
                    sketch=sketch.encode(report.sketch),
                    bytes_sent=report.bytes_sent,
                    seconds=report.seconds,
                )
                if observer is not None:
                    observer.report(report)
            return scores

        states = {p: method.start(theta0.copy(), gradients[p]) for p in self._peers}
        scores = evaluate(0, states)
        for k in range(plan.iterations):
            self._iteration = k
            if self._news is not None:
                raise self._stopped()
            steps = {p: method.step(k, states[p], gradients[p]) for p in self._peers}
            states = lockstep(steps, lambda phase, outbox, k=k: exchange.mix(k, phase, outbox))  # type: ignore[misc]
            if (k + 1) % plan.evaluate_every == 0 or k + 1 == plan.iterations:
                scores = evaluate(k + 1, states)
        if self._wires is not None:
            self._wires.links.flush(runtime.peer_timeout)
        return [self._finish(p, states[p].theta, scores[p], exchange, sketcher, journals[p]) for p in self._peers]

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
        return Wires(
            self.plan, terms, leaving, entering, timeout=self._config.runtime.peer_timeout, on_stop=self._on_stop
        )

    def _on_stop(self, stop: Stop) -> None:
        self._hear(News(stop.origin, stop.iteration, stop.reason))

    def _hear(self, news: News) -> None:
        with self._lock:
            if self._news is None:
                self._news = news
        if self._wires is not None:
            self._wires.fail(self._stopped())

    def _stopped(self) -> ExchangeStoppedError:
        origin, iteration, reason = self._news or News(self._peers[0], self._iteration, "unknown")
        return ExchangeStoppedError(f"peer {origin} stopped in iteration {iteration}: {reason}")

    def _news_of(self, error: BaseException) -> News:
        """What the neighbours are told: the first cause, where this host was told one, else its own."""
        if self._news is not None:
            return self._news
        peer = getattr(error, "peer", None)
        reason = str(error) or type(error).__name__
        return News(self._peers[0] if peer is None else peer, self._iteration, reason)

    def _gradient(self, peer: int, objective: Objective) -> Gradient:
        """∇ of the peer's objective: its loss's weight, weight decay, its time, and who raised."""
        seconds = self._seconds[peer]

        def timed(theta: Vector) -> Vector:
            begin = time.perf_counter()
            try:
                return objective.gradient(theta)
            except Exception as error:
                raise PeerFailedError(peer, self._iteration, error) from error
            finally:
                seconds["gradient"] += time.perf_counter() - begin

        return local_objective(
            timed, weight=self.plan.loss_weights[peer], weight_decay=self._config.method.weight_decay
        )

    def _evaluate(self, peer: int, objective: Objective, theta: Vector) -> Score:
        begin = time.perf_counter()
        score = objective.evaluate(theta)
        self._seconds[peer]["evaluation"] += time.perf_counter() - begin
        return score

    def _finish(
        self, peer: int, theta: Vector, score: Score, exchange: HostExchange, sketcher: sketch.Sketcher, journal: Journal
    ) -> Outcome:
        outcome = Outcome(
            peer=peer,
            loss=score.loss,
            accuracy=score.accuracy,
            accuracy_unseen=score.accuracy_unseen,
            bytes_sent=exchange.bytes_sent[peer],
            seconds={**self._seconds[peer], "exchange": exchange.seconds},
            iterations=self.plan.iterations,
            parameters=theta.size,
            sketch=sketch.encode(sketcher(theta)),
        )
        journal.save_tail(
            self.problem.named_tail(theta),
            {**self.problem.metadata(), "run": self.plan.run, "peer": str(peer), "iterations": str(self.plan.iterations)},
        )
        journal.write("end", **{k: v for k, v in asdict(outcome).items() if k != "peer"})
        return outcome
