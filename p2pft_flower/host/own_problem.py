"""``problem = my_module:my_problem``: a learning problem of the user's own, checked as it comes in.

:class:`~p2pft_flower.host.problem.OwnProblem` describes its methods. Nothing here imports torch: the user's
module decides whether a run does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.host.problem import Objective, OwnProblem, Score
from p2pft_flower.plugins import call_reference, telling_whose

__all__ = ["PROBLEM_TAIL", "Plugged"]

PROBLEM_TAIL = "p2pft.problem-tail/1"
"""Value of ``schema`` in the metadata of such a problem's tails; a vision transformer's have another."""

Vector = npt.NDArray[Any]

_ASKED = ("theta0", "model_digest", "model_parameters", "samples", "objectives", "named_tail", "metadata")
_OBJECTIVE = ("gradient", "evaluate", "position", "go_to", "privacy_spent")


class Plugged:
    """A :class:`~p2pft_flower.host.problem.Problem` around the object that the user's own function returns.

    Parameters
    ----------
    config : LearningConfig
        The settings: ``problem`` names the function, to which ``batch_size``, ``seed`` and ``data_dir`` are
        handed.
    n : int
        Number of peers.
    peers : sequence of int, optional
        The peers whose data is on this machine; default all n.

    Attributes
    ----------
    theta0 : (q,) float32 or float64 array
        θ^0; cannot be written to.
    model_digest : str
        The digest that the problem itself gives.
    model_parameters : int
        Number of parameters of the whole model.

    Raises
    ------
    ConfigError
        If the function cannot be found, raises, or returns something else than such a problem; the message
        names key, value, and the fault.
    """

    def __init__(self, config: LearningConfig, n: int, peers: Sequence[int] | None = None) -> None:
        self.config, self.n = config, n
        self.here = tuple(range(n)) if peers is None else tuple(peers)
        self._own: OwnProblem = call_reference(
            config.problem,
            key="problem",
            n=n,
            peers=self.here,
            batch_size=config.batch_size,
            seed=config.seed,
            data_dir=config.data_dir,
        )
        self._require(self._own, _ASKED, "what it returned")
        with self._naming("asking it for theta0, model_digest and model_parameters"):
            theta0, digest, size = self._own.theta0, self._own.model_digest, self._own.model_parameters
        kind = getattr(theta0, "dtype", None)
        if not isinstance(theta0, np.ndarray) or theta0.ndim != 1 or not theta0.size:
            raise self._fault("its theta0", theta0, "a NumPy array (q,)")
        if kind not in (np.float32, np.float64) or not np.isfinite(theta0).all():
            raise self._fault("its theta0", theta0, "finite numbers of float32 or float64")
        if not isinstance(digest, str) or not digest:
            raise self._fault("its model_digest", digest, "a text that is the same on all peers")
        if not isinstance(size, Integral) or size < 0:
            raise self._fault("its model_parameters", size, "a whole number >= 0")
        self.theta0: Vector = theta0.copy()
        self.theta0.flags.writeable = False
        self.model_digest, self.model_parameters = digest, int(size)

    def samples(self, peer: int) -> int:
        """Return the number of samples that ``peer`` trains on, at least one.

        Raises
        ------
        ConfigError
            If the problem raises, or returns anything but a whole number of at least 1.
        """
        with self._naming(f"samples({peer})"):
            count: Any = self._own.samples(peer)
        if not isinstance(count, Integral) or count < 1:
            raise self._fault(f"samples({peer})", count, "a whole number >= 1")
        return int(count)

    def data_digest(self, peer: int) -> str:
        """Return a text that recognises the peer's samples; empty if the problem has no ``data_digest``."""
        ask = getattr(self._own, "data_digest", None)
        if ask is None:
            return ""
        with self._naming(f"data_digest({peer})"):
            return str(ask(peer))

    def objectives(
        self, peers: Sequence[int], progress: Callable[[], None] = lambda: None
    ) -> dict[int, Objective]:
        """Build the objectives of ``peers``; their gradients and scores are checked before use.

        Raises
        ------
        ConfigError
            If an objective is missing, or lacks a method.
        """
        with self._naming("objectives"):
            built = self._own.objectives(peers, progress)
        for peer in peers:
            if not isinstance(built, Mapping) or peer not in built:
                raise self._fault("objectives", built, f"a mapping with the objective of peer {peer}")
            self._require(built[peer], _OBJECTIVE, f"the objective of peer {peer}")
        return {peer: _Checked(self, peer, built[peer]) for peer in peers}

    def named_tail(self, theta: Vector) -> Mapping[str, Any]:
        """Return θ as arrays, by name."""
        with self._naming("named_tail"):
            return self._own.named_tail(theta)

    def metadata(self) -> dict[str, str]:
        """Return the problem's own metadata, and the settings to build it again for ``p2pft evaluate``."""
        with self._naming("metadata"):
            own = {str(key): str(value) for key, value in self._own.metadata().items()}
        return {
            **own,
            "schema": PROBLEM_TAIL,
            "problem": self.config.problem,
            "model-digest": self.model_digest,
            "n": str(self.n),
            "batch-size": str(self.config.batch_size),
            "seed": str(self.config.seed),
            "data-dir": self.config.data_dir,
        }

    def theta_from(self, tensors: Mapping[str, Any], source: str) -> Vector:
        """Return θ, (q,), from the arrays of :meth:`named_tail`, which were read from the file ``source``.

        Raises
        ------
        ConfigError
            If the problem has no ``theta_from``, or returns a vector of another shape or dtype than θ^0.
        """
        back = getattr(self._own, "theta_from", None)
        if back is None:
            raise ConfigError(
                f"problem = {self.config.problem!r} has no theta_from(tensors), which makes θ of the arrays "
                f"in {source} again: give it one, and its tails can be scored"
            )
        with self._naming("theta_from"):
            theta = back(tensors)
        return self.vector(theta, f"what theta_from made of {source}")

    def vector(self, found: Any, what: str) -> Vector:
        """Return ``found`` if it is an array of θ^0's shape and dtype.

        Raises
        ------
        ConfigError
            If ``found`` is not such an array; the message calls it ``what``.
        """
        wanted = self.theta0
        if (
            not isinstance(found, np.ndarray)
            or found.shape != wanted.shape
            or found.dtype.newbyteorder("=") != wanted.dtype.newbyteorder("=")
        ):
            raise self._fault(what, found, f"{wanted.shape} {wanted.dtype}, as theta0 is")
        return found

    def _require(self, found: object, names: Sequence[str], what: str) -> None:
        missing = [name for name in names if not hasattr(found, name)]
        if missing:
            raise ConfigError(
                f"problem = {self.config.problem!r}: {what} is a {type(found).__name__} without "
                f"{', '.join(missing)}; it must have {', '.join(names)}"
            )

    def _naming(self, doing: str) -> Any:
        return telling_whose(self.config.problem, key="problem", doing=doing)

    def _fault(self, what: str, found: object, right: str) -> ConfigError:
        said = f"{found.shape} {found.dtype}" if isinstance(found, np.ndarray) else repr(found)[:80]
        return ConfigError(f"problem = {self.config.problem!r}: {what} is {said}; it must be {right}")


class _Checked:
    """One peer's objective, whose gradients and scores are checked before they are used."""

    def __init__(self, plugged: Plugged, peer: int, own: Objective) -> None:
        self._plugged, self._peer, self._own = plugged, peer, own
        self.position, self.go_to, self.privacy_spent = own.position, own.go_to, own.privacy_spent

    def gradient(self, theta: Vector) -> Vector:
        return self._plugged.vector(self._own.gradient(theta), f"peer {self._peer}'s gradient")

    def evaluate(self, theta: Vector) -> Score:
        score = self._own.evaluate(theta)
        parts = [getattr(score, f"accuracy_{which}", None) for which in ("unseen", "seen")]
        numbers = [getattr(score, "loss", None), getattr(score, "accuracy", None)]
        if not all(isinstance(x, Real) for x in numbers) or not all(
            isinstance(x, (Real, type(None))) for x in parts
        ):
            raise ConfigError(
                f"problem = {self._plugged.config.problem!r}: peer {self._peer}'s score is {score!r}; it "
                "must have numbers loss and accuracy (math.nan where there is none), and may have "
                "accuracy_unseen and accuracy_seen, numbers or None"
            )
        unseen, seen = (None if x is None or math.isnan(x) else float(x) for x in parts)
        return _Score(float(score.loss), float(score.accuracy), unseen, seen)


class _Score(NamedTuple):
    """Scores as plain numbers, which go into JSON, from any kind of number that the problem returns."""

    loss: float
    accuracy: float
    accuracy_unseen: float | None
    accuracy_seen: float | None
