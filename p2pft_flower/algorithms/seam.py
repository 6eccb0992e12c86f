"""The seam between an algorithm and the exchange: the requests that an algorithm may make.

An algorithm is mathematics on vectors. It has its own vector and its own gradient, and yields a vector to
be mixed with its neighbours': :class:`Rows` to be averaged by the receivers' weights A, :class:`Columns` to
be shared out by the senders' weights B, or :class:`Both` of two vectors at once. With :class:`Send` and
:class:`Take` it computes while they travel. Whether the neighbours are in this process or on another
continent is the exchange's business. With :class:`Draw` it asks for a gradient.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import ConfigError

__all__ = [
    "Algorithm",
    "Both",
    "Columns",
    "Draw",
    "Gradient",
    "Mix",
    "Request",
    "Rows",
    "Schedule",
    "Send",
    "State",
    "Step",
    "Take",
    "Vector",
    "combine",
    "draw_each",
    "heavy_ball",
    "lockstep",
    "placed",
    "refuse_heavy_ball",
    "require_share",
    "weighted_sum",
]

Vector: TypeAlias = npt.NDArray[Any]
"""A (q,) floating-point array: θ_i, τ_i, a gradient or a payload."""

Gradient: TypeAlias = Callable[[Vector], Vector]
"""θ (q,) ↦ a fresh (mini-batch) gradient of the peer's own loss at θ, (q,), same dtype."""

Schedule: TypeAlias = Callable[[int], float]
"""Iteration k ↦ learning rate α_k; the same on every peer."""

_BLOCK = 2**16
"""Numbers of a longer vector that a sum takes at a time."""

_OF_THREAD = threading.local()


class State(Protocol):
    """A peer's state between two iterations: a named tuple of vectors, θ at least."""

    @property
    def theta(self) -> Vector:
        """The peer's parameters θ_i, (q,)."""
        ...


S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Rows:
    """Ask for Σ_j a_ij x_j: the receiver i weighs the vectors of its in-neighbours and its own."""

    vector: Vector


@dataclass(frozen=True, slots=True)
class Columns:
    """Ask for Σ_j b_ij x_j: the weights that a sender j gives add up to one, so Σ_j x_j is preserved."""

    vector: Vector


@dataclass(frozen=True, slots=True)
class Both:
    """Ask for Σ_j a_ij x_j and Σ_j b_ij y_j at once: one payload, and one latency, instead of two."""

    rows: Vector
    columns: Vector

    @property
    def vector(self) -> Vector:
        """The two vectors as one, (2 q,): the payload's numbers."""
        return np.concatenate([self.rows, self.columns])


Mix: TypeAlias = Rows | Columns | Both


@dataclass(frozen=True, slots=True)
class Send:
    """Begin an exchange and go on at once: the payloads are under way when the step is resumed.

    :class:`Take` ends the exchange, before another one begins. ``yield Rows(x)`` is ``yield Send(Rows(x))``
    followed by ``yield Take()``.
    """

    mix: Mix


@dataclass(frozen=True, slots=True)
class Take:
    """Wait for the neighbours' vectors of the exchange that was begun, and be sent the mixed one."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Ask for ``gradient(theta)``, drawn together with the gradients of all peers that run in this process.

    So ``yield Draw(gradient, theta)`` has the answer of ``gradient(theta)``, up to rounding, and with many
    peers sooner.
    """

    gradient: Gradient
    theta: Vector


Request: TypeAlias = Mix | Send | Take | Draw
Step: TypeAlias = Generator[Request, Any, S]
"""One iteration: a generator that yields requests and returns the next state.

After a Send it is sent None, after a Draw the gradient, after any other request the mixed vector, of Both a
pair of vectors.
"""


class Algorithm(Protocol[S]):
    """A method: how a peer's state begins, and one iteration of it.

    Attributes
    ----------
    phases : tuple of str
        The names of the exchanges of one iteration, in order; every step yields exactly as many.
    alpha : Schedule
        The learning rate of each iteration.
    momentum : float
        Heavy-ball coefficient in [0, 1).

    Notes
    -----
    Optional attributes: ``doubly_stochastic = True`` refuses graphs whose A is not doubly stochastic, and
    ``symmetric = True`` those whose A is not symmetric; ``pooled = True`` runs one model on the data of all
    peers; ``gradients_per_step`` says how many gradients an iteration draws, if it is not one: epochs,
    resuming and the privacy accountant count them;
    ``vectors_per_payload = 2`` is needed by a method that asks for :class:`Both`;
    ``placed(tracker_weight, next_weight)`` returns the method for a peer at a place in the graph, given the
    limits of the peer's tracker, in mean gradients, in this iteration and in the next one
    (:class:`~p2pft_flower.topology.turn.Turn`);
    ``static = True`` refuses graphs whose weights change with the iteration.
    """

    phases: ClassVar[tuple[str, ...]]

    def start(self, theta: Vector, gradient: Gradient) -> S:
        """Return the state before the first iteration (and after every change of view)."""
        ...

    def step(self, k: int, state: S, gradient: Gradient) -> Step[S]:
        """Run iteration ``k`` from ``state``; a generator (see :data:`Step`)."""
        ...


def placed(method: Algorithm[S], tracker_weight: float, next_weight: float) -> Algorithm[S]:
    """Return ``method`` for a peer with these limits of its tracker.

    Parameters
    ----------
    method : Algorithm
        Returned as it is if it has no attribute ``placed``.
    tracker_weight, next_weight : float
        The limits, in mean gradients, in this iteration and in the next one.
    """
    place = getattr(method, "placed", None)
    return method if place is None else place(tracker_weight, next_weight)


def heavy_ball(momentum: float, velocity: Vector | None, direction: Vector) -> Vector:
    """Return v ← β v + d, the heavy-ball direction (Polyak, 1964), (q,); d itself if β = 0 or v is None.

    Parameters
    ----------
    momentum : float
        β in [0, 1).
    velocity : (q,) array or None
        v, the last heavy-ball direction; None before the first iteration.
    direction : (q,) array
        d, the gradient or tracker of this iteration.
    """
    if momentum == 0.0 or velocity is None:
        return direction
    return momentum * velocity + direction


def refuse_heavy_ball(momentum: float, name: str) -> None:
    """Refuse ``momentum`` for the method ``name``, which has a momentum of its own, its option ``beta1``.

    Raises
    ------
    ConfigError
        When ``momentum`` is not 0.
    """
    if momentum != 0.0:
        raise ConfigError(
            f"momentum = {momentum}: {name} has a momentum of its own, algorithm-options = 'beta1=…'; leave "
            "momentum out"
        )


def require_share(**shares: float) -> None:
    """Refuse an old average's share, given by name, that is not in [0, 1).

    Raises
    ------
    ValueError
        When a share is not in [0, 1); the message names the first such one.
    """
    for name, share in shares.items():
        if not 0.0 <= share < 1.0:
            raise ValueError(f"{name} = {share}: must be in [0, 1)")


def weighted_sum(terms: Iterable[tuple[float, Vector]]) -> Vector:
    """Return Σ w x over ``terms`` in the order given, in the vectors' own dtype.

    Callers pass the terms in ascending peer order: the order of floating-point additions is what makes
    a run bit-identical over every transport (invariant 2 of docs/architecture.md).

    Parameters
    ----------
    terms : iterable of (float, (q,) array)
        Weight w and vector x of each term; at least one term.
    """
    iterator = iter(terms)
    weight, vector = next(iterator)
    total = np.multiply(vector, float(weight))
    scratch = np.empty_like(total)
    for weight, vector in iterator:
        np.multiply(vector, float(weight), out=scratch)
        np.add(total, scratch, out=total)
    return total


def _scratch(dtype: np.dtype[Any]) -> Vector:
    """Return an array of this thread for products, (_BLOCK,); memory that is new each time costs more."""
    found: Vector | None = getattr(_OF_THREAD, "scratch", None)
    if found is None or found.dtype != dtype:
        found = _OF_THREAD.scratch = np.empty(_BLOCK, dtype)
    return found


def _in_cache(terms: Iterable[tuple[float, Vector]]) -> Vector:
    """Return :func:`weighted_sum` of ``terms``, computed in blocks whose sums and products fit the cache.

    All vectors must be there at once. The additions of each number, and their order, are those of
    :func:`weighted_sum`, so the result is bit-identical. From any thread.
    """
    (weight, vector), *rest = terms
    total, scratch = np.empty_like(vector), _scratch(vector.dtype)
    for begin in range(0, total.size, _BLOCK):
        block = slice(begin, begin + _BLOCK)
        part = total[block]
        product = scratch[: part.size]
        np.multiply(vector[block], float(weight), out=part)
        for w, x in rest:
            np.multiply(x[block], float(w), out=product)
            np.add(part, product, out=part)
    return total


def combine(kind: type[Mix], terms: Iterable[tuple[float, float, Vector]]) -> Vector:
    """Return the vector that a peer's request of this ``kind`` is answered with.

    Parameters
    ----------
    kind : type
        :class:`Rows`, :class:`Columns` or :class:`Both`.
    terms : iterable of (float, float, array)
        a_ij, b_ij and the vector of each j, ascending in j, i itself among them; vectors are (q,), of
        :class:`Both` (2 q,).
    """
    return combine_all(kind, {0: list(terms)}, lambda of: {p: _in_cache(own) for p, own in of.items()})[0]


def combine_all(
    kind: type[Mix],
    terms: Mapping[int, Sequence[tuple[float, float, Vector]]],
    sums: Callable[[Mapping[int, Sequence[tuple[float, Vector]]]], Mapping[int, Vector]],
) -> Mapping[int, Vector]:
    """Return the vectors that the requests of several peers are answered with, as :func:`combine` does.

    Parameters
    ----------
    kind : type
        :class:`Rows`, :class:`Columns` or :class:`Both`.
    terms : mapping of int to sequence of (float, float, array)
        The terms of each peer, as of :func:`combine`.
    sums : callable
        Returns Σ w x of the terms (w, x) of each peer, in their order.
    """
    if kind is Rows:
        return sums({p: [(a, x) for a, _, x in own] for p, own in terms.items()})
    if kind is Columns:
        return sums({p: [(b, x) for _, b, x in own] for p, own in terms.items()})
    halves = {p: [(a, b, np.split(x, 2)) for a, b, x in own] for p, own in terms.items()}
    rows = sums({p: [(a, x) for a, _, (x, _) in own] for p, own in halves.items()})
    columns = sums({p: [(b, y) for _, b, (_, y) in own] for p, own in halves.items()})
    return {p: np.concatenate([rows[p], columns[p]]) for p in terms}


def draw_each(asked: Mapping[int, Draw]) -> dict[int, Vector]:
    """Return the gradient that each peer asks for, computed one after the other."""
    return {peer: one.gradient(one.theta) for peer, one in asked.items()}


def lockstep(
    steps: Mapping[int, Step[S]],
    send: Callable[[int, Mapping[int, Mix]], None],
    take: Callable[[int], Mapping[int, Vector]],
    phases: int,
    draw: Callable[[Mapping[int, Draw]], Mapping[int, Vector]] = draw_each,
) -> dict[int, S]:
    """Drive one iteration of several peers together and return their new states.

    Parameters
    ----------
    steps : mapping of peer to generator
        One iteration's :meth:`Algorithm.step` of each peer.
    send : callable
        Begins exchange number ``phase``: called with (phase, requests to mix by peer), before ``take``.
    take : callable
        phase ↦ the mixed vectors by peer, as of :func:`combine`.
    phases : int
        Number of exchanges that the method promises (its ``phases``).
    draw : callable
        Requests for gradients by peer ↦ the gradients; default: one after the other.

    Raises
    ------
    RuntimeError
        When the peers do not all make the same request, make another number of exchanges than ``phases``, or
        do not pair each :class:`Send` with a :class:`Take`.
    """
    answers: dict[int, Any] = dict.fromkeys(steps)
    phase, begun = 0, None
    while True:
        kind, asked, finished = _resumed(steps, answers, phase)
        if kind is Draw:
            answers = dict(draw(asked))
            continue
        if begun is not None and kind is not Take:
            raise RuntimeError(f"phase {phase}: a step goes on after Send without Take; every Send needs one")
        if begun is None and kind is Take:
            raise RuntimeError(f"phase {phase}: a step takes what it has not sent; Send comes before Take")
        if kind is None and phase == phases:
            return finished
        if begun is None and (kind is None or phase == phases):
            asks = f"{phase}" if kind is None else f"more than {phase}"
            raise RuntimeError(f"a step asks for {asks} exchanges, but the method's phases names {phases}")
        if kind is not Take:
            mixes = {p: one.mix if isinstance(one, Send) else one for p, one in asked.items()}
            begun = _only_kind(mixes, phase)
            send(phase, mixes)
        if kind is Send:
            answers = dict.fromkeys(steps)
            continue
        mixed = take(phase)
        answers = {p: tuple(np.split(x, 2)) if begun is Both else x for p, x in mixed.items()}
        phase, begun = phase + 1, None


def _resumed(
    steps: Mapping[int, Step[S]], answers: Mapping[int, Any], phase: int
) -> tuple[type | None, dict[int, Any], dict[int, S]]:
    """Resume every step; return the requests' kind (None at the end), the requests, and the final states."""
    asked: dict[int, Any] = {}
    finished: dict[int, S] = {}
    for peer, step in steps.items():
        try:
            asked[peer] = step.send(answers[peer])
        except StopIteration as stop:
            finished[peer] = stop.value
    return (_only_kind(asked, phase, finished) if asked else None), asked, finished


def _only_kind(asked: Mapping[int, Any], phase: int, finished: Collection[int] = ()) -> type:
    """Return the kind of the peers' requests; raise RuntimeError if kinds differ or a step has finished."""
    kinds = {type(one) for one in asked.values()}
    if finished or len(kinds) != 1:
        raise RuntimeError(
            f"phase {phase}: the peers do not ask for the same exchange "
            f"({ {p: type(one).__name__ for p, one in asked.items()} }, ended: {sorted(finished)}); "
            "every peer must yield the same sequence of Rows, Columns, Both, Send, Take and Draw in every "
            "iteration"
        )
    return kinds.pop()
