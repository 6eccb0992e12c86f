"""The gradients of a host's peers: drawn one by one or all at once, checked, and weighed as in the view."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from p2pft_flower.algorithms.objective import of_objective
from p2pft_flower.algorithms.seam import Draw, Gradient, Vector, draw_each
from p2pft_flower.host.exchange import DivergedError
from p2pft_flower.host.peer_errors import naming
from p2pft_flower.host.problem import Objective, Together
from p2pft_flower.host.recorder import Recorder

__all__ = ["Drawing"]


class Drawing:
    """Draws w_i ∇L_i(θ_i) + λ θ_i for the peers of a host.

    Parameters
    ----------
    peers : iterable of int
        The host's peers.
    objectives : mapping of int to Objective
        Each peer's objective.
    together : callable or None
        Draws ∇L_i of several peers at once; None: each is drawn by itself.
    recorder : Recorder
        The recorder, which is told the seconds that gradients take.
    weight_decay : float
        λ.
    place : callable
        Returns the iteration that is under way, and the w_i of each peer in the view.
    finite : callable
        Tells of each of several vectors whether all its numbers are finite.

    Attributes
    ----------
    gradients : dict of int to Gradient
        Each peer's gradient, as its method is given it.
    """

    def __init__(
        self,
        peers: Iterable[int],
        objectives: Mapping[int, Objective],
        together: Together | None,
        recorder: Recorder,
        weight_decay: float,
        place: Callable[[], tuple[int, Mapping[int, float]]],
        finite: Callable[[Sequence[Vector]], Sequence[bool]],
    ) -> None:
        self._objectives, self._together, self._recorder = objectives, together, recorder
        self._decay, self._place, self._finite = weight_decay, place, finite
        self.gradients = {peer: self._gradient(peer) for peer in peers}

    def __call__(self, asked: Mapping[int, Draw]) -> Mapping[int, Vector]:
        """Return the gradients that the peers ask for; all at once if that is possible.

        Raises
        ------
        PeerFailedError
            If the code of an objective raises.
        DivergedError
            If a gradient is not finite.
        """
        own = all(one.gradient is self.gradients[peer] for peer, one in asked.items())
        if self._together is None or not own:  # a method may ask for another function's gradient
            return draw_each(asked)
        begin, (iteration, _) = time.perf_counter(), self._place()
        with naming(min(asked), iteration, f"the gradients of {len(asked)} peers together failed"):
            drawn = self._together({peer: one.theta for peer, one in asked.items()})
        self._recorder.share_seconds(asked, "gradient", time.perf_counter() - begin)
        return self._of_objectives(drawn, {peer: one.theta for peer, one in asked.items()})

    def first(self, thetas: Mapping[int, Vector]) -> dict[int, Gradient]:
        """Return each peer's gradient for the start of its method at its θ in ``thetas``.

        The first call at such a θ draws for all these peers; nothing is drawn for a method that does not ask.
        """
        left, drawn = set(thetas), dict[int, Vector]()

        def gradient_of(peer: int) -> Gradient:
            def gradient(theta: Vector) -> Vector:
                if theta is not thetas[peer] or peer not in left:
                    return self.gradients[peer](theta)
                if not drawn:
                    drawn.update(self({p: Draw(self.gradients[p], x) for p, x in thetas.items()}))
                left.discard(peer)
                return drawn.pop(peer)

            return gradient

        return {peer: gradient_of(peer) for peer in thetas} if self._together else dict(self.gradients)

    def _gradient(self, peer: int) -> Gradient:
        def gradient(theta: Vector) -> Vector:
            iteration, _ = self._place()
            with self._recorder.timed(peer, "gradient"), naming(peer, iteration, "its gradient failed"):
                drawn = self._objectives[peer].gradient(theta)
            return self._of_objectives({peer: drawn}, {peer: theta})[peer]

        return gradient

    def _of_objectives(self, drawn: Mapping[int, Vector], thetas: Mapping[int, Vector]) -> dict[int, Vector]:
        iteration, weights = self._place()
        for peer, finite in zip(thetas, self._finite([drawn[peer] for peer in thetas]), strict=True):
            if not finite:
                raise DivergedError.not_finite(peer, f"iteration {iteration}", "gradient")
        return {
            peer: of_objective(drawn[peer], theta, weight=weights[peer], weight_decay=self._decay)
            for peer, theta in thetas.items()
        }
