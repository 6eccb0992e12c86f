"""Run a method in memory on n arbitrary gradient functions: for research, tests and proofs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from p2pft_flower.algorithms.codecs import for_vectors, make_codec
from p2pft_flower.algorithms.compression import Compression, Memory, safe_step
from p2pft_flower.algorithms.objective import local_objective
from p2pft_flower.algorithms.registry import check_exchange, check_graph, make_algorithm, vectors_per_payload
from p2pft_flower.algorithms.schedules import make_schedule
from p2pft_flower.algorithms.seam import (
    Algorithm,
    Gradient,
    Mix,
    Vector,
    combine,
    lockstep,
    placed,
    weighted_sum,
)
from p2pft_flower.errors import ConfigError
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import STATIC, scheduled
from p2pft_flower.topology.turn import Turn

__all__ = ["Simulation", "mix_in_memory", "simulate"]

_Mixer: TypeAlias = Callable[[Turn, int, Mapping[int, Mix]], dict[int, Vector]]
"""(weights, number of the exchange in a period, each peer's request) ↦ the mixed vector of each peer."""


@dataclass(frozen=True)
class Simulation:
    """The result of :func:`simulate`.

    Attributes
    ----------
    theta : (n, q) array
        The peers' parameters after the last iteration; for ``centralized`` n equal rows.
    tau : (n, q) array or None
        The trackers; None if the method has none.
    history : dict of str to (K + 1,) float64 arrays
        Before the first and after each iteration: ``consensus_error``, sqrt((1/n) Σ ‖θ_i − θ̄‖²); and
        ``tracker_error``, ‖Σ τ_i − Σ g_i‖_∞, if the method's state has ``tau`` and ``grad``. Empty without
        ``errors``.
    states : tuple
        The full state of each peer, ascending; of ``centralized`` one state only.
    """

    theta: npt.NDArray[Any]
    tau: npt.NDArray[Any] | None
    history: dict[str, npt.NDArray[np.float64]]
    states: tuple[Any, ...]


def mix_in_memory(turn: Turn, outbox: Mapping[int, Mix]) -> dict[int, Vector]:
    """Return each peer's mixed vector: Rows by A, Columns by B, each sum in ascending peer order."""
    return _mixed(turn, type(outbox[0]), {j: mix.vector for j, mix in outbox.items()})


def _mixed(turn: Turn, kind: type[Mix], vectors: Mapping[int, Vector]) -> dict[int, Vector]:
    return {i: combine(kind, [(a, b, vectors[j]) for j, a, b in turn.mixes[i]]) for i in vectors}


def simulate(
    algorithm: str | Algorithm[Any],
    graph: Graph,
    gradients: Sequence[Gradient],
    theta0: npt.NDArray[Any],
    *,
    alpha: float,
    iterations: int,
    schedule: str = "constant",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    weights: Sequence[float] | None = None,
    options: str = "",
    codec: str = "none",
    codec_step: float = 0.0,
    schedule_graph: str = STATIC,
    pipelined: bool = False,
    errors: bool = True,
    callback: Callable[[int, Sequence[Any]], None] | None = None,
) -> Simulation:
    """Run ``algorithm`` on n gradient functions over ``graph``, in this process.

    Parameters
    ----------
    algorithm : str or Algorithm
        A registered name, ``"my_module:my_method"``, or an instance (which then brings its own α,
        schedule, momentum and options).
    graph : Graph
        The graph of the n peers.
    gradients : sequence of n callables
        θ (q,) ↦ ∇L_i(θ) (q,). The dtype of ``theta0`` is used throughout.
    theta0 : (q,) or (n, q) floating-point array
        θ^0 of all peers, or of each.
    alpha : float
        Learning rate α.
    iterations : int
        Number of iterations, K ≥ 0.
    schedule : str, default "constant"
        See :func:`~p2pft_flower.algorithms.schedules.make_schedule`.
    momentum, weight_decay : float, default 0
        Heavy-ball β and L2 λ; each method's module gives their effect on its fixed point.
    weights : sequence of n floats, optional
        Factor of each peer's loss (:func:`~p2pft_flower.algorithms.objective.peer_weights`).
    options : str, default ""
        Further arguments of a method given by name, as ``"local-steps=8"``.
    codec : str, default "none"
        See :func:`~p2pft_flower.algorithms.codecs.make_codec`.
    codec_step : float, default 0
        γ of :mod:`~p2pft_flower.algorithms.compression`; 0: chosen from graph and codec.
    schedule_graph : str, default "static"
        The weights of each iteration, for the peers of ``graph``: see :mod:`p2pft_flower.topology.schedule`.
    pipelined : bool, default False
        Whether p2pft computes while payloads travel: :mod:`~p2pft_flower.algorithms.pipelined`.
    errors : bool, default True
        Whether the errors of each iteration are computed; of long vectors that takes a third of the time.
    callback : callable, optional
        Called as ``callback(k, states)`` before the first iteration (k = 0) and after each.

    Raises
    ------
    ConfigError
        When the number of gradients, shapes or dtypes do not fit, or a setting cannot be used.
    TopologyError
        When the method cannot run on this graph, or ``schedule_graph`` does not fit the graph.
    RuntimeError
        When a step does not yield the exchanges that the method's ``phases`` name.
    """
    if not isinstance(options, str):
        raise ConfigError(f"options = {options!r}: give a text, as 'local-steps=8'")
    graph = scheduled(graph, schedule_graph)
    starts = _starts(theta0, graph, gradients, weights)
    if isinstance(algorithm, str):
        method = make_algorithm(
            algorithm,
            alpha=make_schedule(schedule, alpha, iterations),
            momentum=momentum,
            options=options,
            pipelined=pipelined,
        )
        check_exchange(algorithm, method, codec=codec, step=codec_step, schedule_graph=schedule_graph)
    elif pipelined or options:
        raise ConfigError("pipelined and options are for a method by name: give the instance them itself")
    else:
        method = algorithm
    check_graph(method, graph)
    objectives = [
        local_objective(
            _checked(g, i), weight=1.0 if weights is None else float(weights[i]), weight_decay=weight_decay
        )
        for i, g in enumerate(gradients)
    ]
    if getattr(method, "pooled", False):
        # One model on all the data: its gradient is the mean of the peers'.
        objectives = [_mean(objectives)]
        starts = starts.mean(axis=0, keepdims=True, dtype=starts.dtype)

    mix, step = _mixer(graph, codec, codec_step, vectors_per_payload(method))
    methods = [_placed(method, graph.turn(k, step), len(objectives)) for k in range(graph.period)]
    states: dict[int, Any] = {i: methods[0][i].start(starts[i].copy(), g) for i, g in enumerate(objectives)}
    history = _History(errors)
    history.record(0, states, callback)
    for k in range(iterations):
        now = methods[k % graph.period]
        steps = {i: now[i].step(k, states[i], g) for i, g in enumerate(objectives)}
        exchange = _InMemory(mix, graph.turn(k), k % graph.period * len(method.phases))
        states = lockstep(steps, exchange.send, exchange.take, len(method.phases))
        history.record(k + 1, states, callback)
    rows = [states[i] for i in sorted(states)]
    theta = np.stack([s.theta for s in rows])
    return Simulation(
        theta=np.repeat(theta, graph.n, axis=0) if len(rows) < graph.n else theta,
        tau=np.stack([s.tau for s in rows]) if hasattr(rows[0], "tau") else None,
        history=history.arrays,
        states=tuple(rows),
    )


class _History:
    """The errors of each iteration, as :class:`Simulation` has them."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._consensus: list[float] = []
        self._tracker: list[float] = []

    def record(
        self, k: int, states: Mapping[int, Any], callback: Callable[[int, Sequence[Any]], None] | None
    ) -> None:
        """Note the errors after ``k`` iterations, and call ``callback`` with the states."""
        if self._wanted:
            self._note(states)
        if callback is not None:
            callback(k, tuple(states.values()))

    def _note(self, states: Mapping[int, Any]) -> None:
        theta = np.array([s.theta for s in states.values()], dtype=np.float64)
        self._consensus.append(float(np.sqrt(((theta - theta.mean(axis=0)) ** 2).sum(axis=1).mean())))
        if hasattr(states[0], "tau") and hasattr(states[0], "grad"):
            gap = sum(s.tau.astype(np.float64) - s.grad for s in states.values())
            self._tracker.append(float(np.abs(gap).max(initial=0.0)))

    @property
    def arrays(self) -> dict[str, npt.NDArray[np.float64]]:
        """The errors, each (K + 1,), as ``history`` of :class:`Simulation` has them."""
        found = {"consensus_error": np.array(self._consensus)} if self._wanted else {}
        return found | ({"tracker_error": np.array(self._tracker)} if self._tracker else {})


def _placed(method: Algorithm[Any], turn: Turn, peers: int) -> list[Algorithm[Any]]:
    """Return each peer's method for the iterations of one turn."""
    if peers == 1:  # one model on all the data has no neighbours, and its tracker is the mean gradient
        return [placed(method, 1.0, 1.0)]
    weights = zip(turn.tracker_weights, turn.next_weights, strict=True)
    return [placed(method, float(now), float(after)) for now, after in weights]


def _mixer(graph: Graph, codec: str, codec_step: float, vectors: int) -> tuple[_Mixer, float]:
    """Return the function that mixes, and γ; γ is 1 without a codec."""
    coder = make_codec(codec)
    if coder is None:
        return (lambda turn, _, outbox: mix_in_memory(turn, outbox)), 1.0
    compression = Compression(for_vectors(coder, vectors), codec_step or safe_step(graph, coder))
    return _Compressed(compression), compression.step


class _InMemory:
    """The exchanges of one iteration: vectors arrive as soon as they are sent, and are mixed when taken."""

    def __init__(self, mix: _Mixer, turn: Turn, before: int) -> None:
        self._mix, self._turn, self._before = mix, turn, before
        self._outbox: Mapping[int, Mix] = {}

    def send(self, phase: int, outbox: Mapping[int, Mix]) -> None:  # noqa: ARG002 - as lockstep calls it
        self._outbox = outbox

    def take(self, phase: int) -> dict[int, Vector]:
        return self._mix(self._turn, self._before + phase, self._outbox)


class _Compressed:
    """Mixes with a codec; holds the memory of each peer and exchange of a period."""

    def __init__(self, compression: Compression) -> None:
        self._compression = compression
        self._memories: dict[tuple[int, int], Memory] = {}

    def __call__(self, turn: Turn, number: int, outbox: Mapping[int, Mix]) -> dict[int, Vector]:
        vectors = {i: mix.vector for i, mix in outbox.items()}
        memories = {i: self._memories.get((i, number)) or Memory.blank(x) for i, x in vectors.items()}
        encoded = {i: self._compression.encode(x, memories[i].known) for i, x in vectors.items()}
        sums = _mixed(turn, type(outbox[0]), {i: one.vector for i, one in encoded.items()})
        mixed = {}
        for i, x in vectors.items():
            mixed[i], self._memories[i, number] = self._compression.mix(
                x, memories[i], encoded[i].vector, sums[i]
            )
        return mixed


def _starts(
    theta0: npt.NDArray[Any], graph: Graph, gradients: Sequence[Gradient], weights: Sequence[float] | None
) -> npt.NDArray[Any]:
    """Return θ^0 of all peers, (n, q); refuse arguments of :func:`simulate` that do not fit each other."""
    n = graph.n
    theta0 = np.asarray(theta0)
    if not np.issubdtype(theta0.dtype, np.floating):
        raise ConfigError(f"theta0 has dtype {theta0.dtype}: give a floating-point array")
    if len(gradients) != n:
        raise ConfigError(
            f"{len(gradients)} gradients for the {n} peers of graph {graph.name!r}: give one a peer"
        )
    if weights is not None and len(weights) != n:
        raise ConfigError(
            f"{len(weights)} weights for the {n} peers of graph {graph.name!r}: give one a peer"
        )
    if theta0.ndim not in (1, 2) or (theta0.ndim == 2 and theta0.shape[0] != n):
        raise ConfigError(f"theta0 has shape {theta0.shape}: give (q,) or (n, q) with n = {n}")
    return np.broadcast_to(theta0, (n, theta0.shape[-1]))


def _checked(gradient: Gradient, peer: int) -> Gradient:
    """Return ``gradient`` with a check: broadcasting or promotion would hide a wrong shape or dtype."""

    def checked(theta: Vector) -> Vector:
        g = np.asarray(gradient(theta))
        if g.shape != theta.shape or g.dtype != theta.dtype:
            raise ConfigError(
                f"peer {peer}: its gradient returned shape {g.shape} {g.dtype} at a theta of shape "
                f"{theta.shape} {theta.dtype}; both must be the same"
            )
        return g

    return checked


def _mean(gradients: Sequence[Gradient]) -> Gradient:
    def mean(theta: Vector) -> Vector:
        return weighted_sum((1.0 / len(gradients), g(theta)) for g in gradients)

    return mean
