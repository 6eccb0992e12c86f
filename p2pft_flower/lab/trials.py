"""One run of a method in this process, without Flower's: for studies of hundreds of short runs.

The peers, mini-batches, model and mathematics are those of a run through Flower, and so are the scores and
the bytes (tests/lab/test_trials.py): the exchange is in memory, and FedAvg's server is a mean.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from p2pft_flower.algorithms import ALGORITHMS, simulate
from p2pft_flower.algorithms.objective import local_objective
from p2pft_flower.algorithms.schedules import make_schedule
from p2pft_flower.algorithms.seam import Gradient, heavy_ball
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.host.exchange import DivergedError
from p2pft_flower.learning.workload import Workload
from p2pft_flower.topology import Graph

__all__ = ["FEDAVG", "TrialOutcome", "run_trial"]

FEDAVG = "fedavg"

Vector: TypeAlias = npt.NDArray[np.float32]
_Watch: TypeAlias = Callable[[int, Sequence[Vector]], None]


@dataclass(frozen=True)
class TrialOutcome:
    """The outcome of :func:`run_trial`.

    Attributes
    ----------
    accuracy : list of float
        Each peer's accuracy on the test images after the last iteration, 0..1.
    own_accuracy : list of float
        Each peer's accuracy on its own training images after the last iteration, 0..1.
    curve : list of [int, float]
        Iteration, and the peers' mean accuracy on the test images after it.
    bytes_sent : int
        Payload bytes of all peers in the whole run; of FedAvg both ways.
    parameters, model_parameters : int
        q, and the number of parameters of the whole model.
    images, test_images : int
        Training images of all peers, and test images.
    seconds : float
        Seconds that the run took.
    """

    accuracy: list[float]
    own_accuracy: list[float]
    curve: list[list[float]]
    bytes_sent: int
    parameters: int
    model_parameters: int
    images: int
    test_images: int
    seconds: float


def run_trial(config: RunConfig, graph: Graph, workload: Workload) -> TrialOutcome:
    """Run the method that ``config`` describes on the peers of ``graph``.

    Parameters
    ----------
    config : RunConfig
        The settings; a method of :mod:`p2pft_flower.algorithms`, or ``fedavg``.
    graph : Graph
        The graph.
    workload : Workload
        The learning problem of ``config`` for the peers of ``graph``, not pooled.

    Raises
    ------
    ConfigError
        When a setting is for runs through Flower alone.
    DivergedError
        When a peer's parameters are not finite any more.
    TopologyError
        When the method cannot run on this graph.
    """
    _require_plain(config)
    if config.learning != workload.config or workload.n != graph.n or workload.pooled:
        raise ValueError("the workload is another one than that of the settings and the graph")
    begin = time.monotonic()
    method, theta0 = config.method, workload.theta0
    objectives = workload.objectives(range(graph.n))
    shares = [len(share) for share in workload.holdings.shares]
    # As flower/run.py has it: an epoch is as many gradients as a peer's mean share has batches.
    epoch = math.ceil(sum(shares) / graph.n / config.learning.batch_size)
    iterations = config.runtime.iterations or config.runtime.epochs * epoch
    watch = _Watcher(workload, iterations, config.runtime.evaluate_every or epoch)
    gradients = [objectives[peer].gradient for peer in range(graph.n)]
    if method.algorithm == FEDAVG:
        steps = method.local_epochs * epoch
        _fedavg(config, gradients, theta0, iterations, steps, watch)
        sent = math.ceil(iterations / steps) * 2 * graph.n * theta0.nbytes
    else:
        _in_lock_step(config, graph, gradients, theta0, iterations, watch)
        sent = iterations * _exchanges(method.algorithm) * len(graph.edges) * theta0.nbytes
    return TrialOutcome(
        accuracy=watch.accuracy,
        own_accuracy=watch.own_accuracy(),
        curve=watch.curve,
        bytes_sent=sent,
        parameters=theta0.size,
        model_parameters=workload.model_parameters,
        images=sum(shares),
        test_images=len(workload.holdings.test_positions),
        seconds=time.monotonic() - begin,
    )


def _require_plain(config: RunConfig) -> None:
    """Refuse settings that a run in one process does not follow.

    Raises
    ------
    ConfigError
        When there is one; the message names it.
    """
    plain = RunConfig()
    followed = {"algorithm", "learning_rate", "schedule", "momentum", "weight_decay", "local_epochs"}
    odd = {f.name for f in fields(config.method)} - followed
    given = [name for name in sorted(odd) if getattr(config.method, name) != getattr(plain.method, name)]
    given += [name for name in ("dp_clip", "stream") if getattr(config.learning, name)]
    given += ["class_weights"] if config.learning.balances else []
    if given:
        raise ConfigError(
            f"{', '.join(name.replace('_', '-') for name in given)}: a run in one process does not follow it"
        )


def _exchanges(algorithm: str) -> int:
    """Return the number of payloads that a peer sends along each edge in an iteration.

    Raises
    ------
    ConfigError
        When the method is not one of this package's.
    """
    if algorithm not in ALGORITHMS:
        raise ConfigError(
            f"algorithm = {algorithm!r}: runs in one process are of {', '.join(ALGORITHMS)} or {FEDAVG}"
        )
    return len(ALGORITHMS[algorithm](alpha=make_schedule("constant", 1.0, 1)).phases)


class _Watcher:
    """Scores the peers' parameters when an evaluation is due, and after the last iteration."""

    def __init__(self, workload: Workload, iterations: int, every: int) -> None:
        self._workload, self._iterations, self._every = workload, iterations, every
        self._last: list[Vector] = []
        self.curve: list[list[float]] = []
        self.accuracy: list[float] = []

    def __call__(self, k: int, thetas: Sequence[Vector]) -> None:
        """Take the parameters of all peers, or the one vector that all of them have, after ``k`` iterations.

        Raises
        ------
        DivergedError
            When some are not finite.
        """
        for peer, theta in enumerate(thetas):
            if not np.isfinite(theta).all():
                raise DivergedError.not_finite(peer, f"iteration {k}", "parameters")
        # FedAvg has a model after whole rounds only.
        due = not self.curve or k // self._every > self.curve[-1][0] // self._every
        if not due and k < self._iterations:
            return
        self._last = [np.ascontiguousarray(theta) for theta in thetas]
        accuracy = [self._workload.score(theta).accuracy for theta in self._last]
        self.accuracy = accuracy * (self._workload.n if len(accuracy) == 1 else 1)
        self.curve.append([k, float(np.mean(accuracy))])

    def own_accuracy(self) -> list[float]:
        """Return each peer's accuracy on its own training images, by the last parameters."""
        models = self._last * (self._workload.n if len(self._last) == 1 else 1)
        return [self._workload.score_on_own(theta, peer).accuracy for peer, theta in enumerate(models)]


def _in_lock_step(
    config: RunConfig,
    graph: Graph,
    gradients: Sequence[Gradient],
    theta0: Vector,
    iterations: int,
    watch: _Watch,
) -> None:
    """Run a method of this package, whose peers exchange in memory."""
    method = config.method

    def callback(k: int, states: Sequence[Any]) -> None:
        watch(k, [state.theta for state in states])

    simulate(
        method.algorithm,
        graph,
        gradients,
        theta0,
        alpha=method.learning_rate,
        iterations=iterations,
        schedule=method.schedule,
        momentum=method.momentum,
        weight_decay=method.weight_decay,
        errors=False,
        callback=callback,
    )


def _fedavg(
    config: RunConfig,
    gradients: Sequence[Gradient],
    theta0: Vector,
    iterations: int,
    steps: int,
    watch: _Watch,
) -> None:
    """Run FedAvg as flower/clients.py does with Flower's strategy: local steps, then a mean over the peers.

    θ_i ← θ,  ``steps`` times { v ← β v + ∇L_i(θ_i),  θ_i ← θ_i − α_k v },  θ ← (1/n) Σ_i θ_i
    """
    method = config.method
    schedule = make_schedule(method.schedule, method.learning_rate, iterations)
    objectives = [local_objective(gradient, weight_decay=method.weight_decay) for gradient in gradients]
    server = theta0
    watch(0, [server])
    for first in range(0, iterations, steps):
        last = min(first + steps, iterations)
        models = []
        for gradient in objectives:
            theta: Vector = server
            velocity: Vector | None = None
            for k in range(first, last):
                velocity = heavy_ball(method.momentum, velocity, gradient(theta))
                theta = np.asarray(theta - schedule(k) * velocity, dtype=np.float32)
            models.append(theta)
        server = np.stack(models).mean(axis=0, dtype=np.float64).astype(np.float32)
        watch(last, [server])
