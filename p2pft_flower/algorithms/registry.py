"""Methods by name, and methods of your own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from p2pft_flower.algorithms.centralized import Centralized
from p2pft_flower.algorithms.dgd import DGD
from p2pft_flower.algorithms.exact_diffusion import ExactDiffusion
from p2pft_flower.algorithms.gt_adam import GTAdam
from p2pft_flower.algorithms.gt_dgd import GTDGD
from p2pft_flower.algorithms.local import Local
from p2pft_flower.algorithms.local_steps import LocalSteps
from p2pft_flower.algorithms.momentum_tracking import MomentumTracking
from p2pft_flower.algorithms.p2pft import P2PFT
from p2pft_flower.algorithms.pipelined import Pipelined
from p2pft_flower.algorithms.push_diging import PushDIGing
from p2pft_flower.algorithms.seam import Algorithm, Schedule
from p2pft_flower.algorithms.sgp import SGP
from p2pft_flower.errors import ConfigError, TopologyError
from p2pft_flower.plugins import call_reference, is_reference, load_reference
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import STATIC

__all__ = [
    "ALGORITHMS",
    "check_exchange",
    "check_graph",
    "gradients_per_step",
    "make_algorithm",
    "vectors_per_payload",
]


def _p2pft(
    alpha: Schedule, momentum: float = 0.0, local_steps: int = 1, pipelined: bool = False
) -> Algorithm[Any]:
    """Return P2P-FT, or its form with several local steps an iteration, or the form that is pipelined."""
    if pipelined:
        return Pipelined(alpha, momentum, local_steps)
    return P2PFT(alpha, momentum) if local_steps == 1 else LocalSteps(alpha, momentum, local_steps)


_GIVEN = ("alpha", "momentum", "tracker_weight", "next_weight")
"""Arguments that other keys, or the graph, give."""

ALGORITHMS: dict[str, Callable[..., Algorithm[Any]]] = {
    "p2pft": _p2pft,
    "dgd": DGD,
    "gt-dgd": GTDGD,
    "exact-diffusion": ExactDiffusion,
    "sgp": SGP,
    "push-diging": PushDIGing,
    "momentum-tracking": MomentumTracking,
    "gt-adam": GTAdam,
    "local": Local,
    "centralized": Centralized,
}


def make_algorithm(
    name: str, *, alpha: Schedule, momentum: float = 0.0, options: str = "", pipelined: bool = False
) -> Algorithm[Any]:
    """Build the method ``name``.

    Parameters
    ----------
    name : str
        A key of :data:`ALGORITHMS`, or ``"my_module:my_method"`` (or ``"/path/my_file.py:my_method"``): a
        callable that takes ``alpha`` and ``momentum`` and returns an
        :class:`~p2pft_flower.algorithms.seam.Algorithm`; a dataclass with these two fields will do.
    alpha : Schedule
        Learning rate of each iteration.
    momentum : float, default 0
        Heavy-ball β in [0, 1).
    options : str, default ""
        Further arguments of the method, separated by commas, as ``"local-steps=8"``; only arguments that have
        a number or a text as default may be given.
    pipelined : bool, default False
        Whether to build the form that computes while payloads travel, of a method with an argument
        ``pipelined``.

    Raises
    ------
    ConfigError
        When there is no such method, a value cannot be used, an option is unknown, or an object of a user's
        own lacks parts of an :class:`~p2pft_flower.algorithms.seam.Algorithm`.
    """
    if not 0.0 <= momentum < 1.0:
        raise ConfigError(f"momentum = {momentum}: must be in [0, 1)")
    if is_reference(name):
        chosen = _chosen(name, load_reference(name, key="algorithm"), options, pipelined=pipelined)
        method = call_reference(name, key="algorithm", alpha=alpha, momentum=momentum, **chosen)
        missing = [part for part in ("phases", "start", "step") if not hasattr(method, part)]
        if missing:
            raise ConfigError(
                f"algorithm = {name!r}: the object that it returns has no {', '.join(missing)}; "
                "see p2pft_flower.algorithms.seam.Algorithm"
            )
        _require_two_weights(name, method)
        return method  # type: ignore[no-any-return]  # checked just above, as far as Python can
    if name not in ALGORITHMS:
        raise ConfigError(
            f"algorithm = {name!r} is unknown; choose one of {', '.join(ALGORITHMS)}, or my_module:my_method"
        )
    chosen = _chosen(name, ALGORITHMS[name], options, pipelined=pipelined)
    try:
        return ALGORITHMS[name](alpha=alpha, momentum=momentum, **chosen)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"algorithm-options = {options!r}: {name} refuses: {error}") from error


def _require_two_weights(name: str, method: Any) -> None:
    """Refuse a method whose ``placed`` cannot be called with two weights."""
    if (place := getattr(method, "placed", None)) is None:
        return
    try:
        inspect.signature(place).bind(1.0, 1.0)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"algorithm = {name!r}: its placed() is called with two numbers, tracker_weight and next_weight "
            f"({error})"
        ) from error


def _chosen(name: str, method: Callable[..., Any], options: str, *, pipelined: bool) -> dict[str, Any]:
    """Return ``pipelined`` and the arguments in ``options``, each converted to the type of its default."""
    if not options and not pipelined:
        return {}
    parameters = inspect.signature(method).parameters
    if pipelined and "pipelined" not in parameters:
        raise ConfigError(
            f"pipelined = true: {name} has no form that computes while its payloads travel; p2pft has one"
        )
    defaults: Mapping[str, Any] = {
        p.name: p.default
        for p in parameters.values()
        if p.name not in _GIVEN and type(p.default) in (int, float, str)
    }
    chosen: dict[str, Any] = {"pipelined": True} if pipelined else {}
    for item in filter(None, (part.strip() for part in options.split(","))):
        key, _, value = item.partition("=")
        argument = key.strip().replace("-", "_")
        if argument not in defaults:
            known = ", ".join(option.replace("_", "-") for option in defaults) or "none"
            raise ConfigError(f"algorithm-options: {name} has no option {key!r}; it has: {known}")
        if argument in chosen:
            raise ConfigError(f"algorithm-options = {options!r}: {key.strip()} is given twice")
        try:
            chosen[argument] = type(defaults[argument])(value)
        except ValueError as error:
            kind = "whole number" if isinstance(defaults[argument], int) else "number"
            raise ConfigError(f"algorithm-options: {key} = {value!r} is no {kind}") from error
    return chosen


def gradients_per_step(method: Algorithm[Any]) -> int:
    """Return the number of gradients that an iteration of ``method`` draws, without the run's first one."""
    return int(getattr(method, "gradients_per_step", 1))


def check_graph(method: Algorithm[Any], graph: Graph) -> None:
    """Refuse a graph on which ``method`` would silently converge to a wrong point, or not at all.

    Raises
    ------
    TopologyError
        When the method needs weights that do not change, or a symmetric or doubly stochastic A, and the graph
        has other ones.
    """
    if getattr(method, "static", False) and graph.period > 1:
        raise TopologyError(
            f"graph {graph.name!r} changes its weights from iteration to iteration, and "
            f"{type(method).__name__}'s correction holds for one W only: use algorithm = 'p2pft', or "
            "schedule-graph = 'static'"
        )
    if getattr(method, "symmetric", False) and not graph.symmetric:
        raise TopologyError(
            f"graph {graph.name!r} is not symmetric, and {type(method).__name__} is exact only if both peers "
            "of an edge give each other the same weight, so that A is doubly stochastic too: use "
            "algorithm = 'p2pft', which needs no such weights, or an undirected graph with them (ring-4, "
            "complete-4, a graph with scheme: metropolis)"
        )
    if getattr(method, "doubly_stochastic", False) and not graph.doubly_stochastic:
        raise TopologyError(
            f"graph {graph.name!r} is not doubly stochastic, and {type(method).__name__} tracks the wrong "
            "gradient on such a graph: use algorithm = 'p2pft', which needs no doubly stochastic weights, "
            "or a balanced graph (ring-4, complete-4, a graph with scheme: metropolis)"
        )


def vectors_per_payload(method: Algorithm[Any]) -> int:
    """Return the number of vectors of q numbers that one payload of ``method`` has."""
    return int(getattr(method, "vectors_per_payload", 1))


def check_exchange(
    name: str, method: Algorithm[Any], *, codec: str, step: float, schedule_graph: str
) -> None:
    """Refuse settings of the exchange for a method that exchanges nothing, and a codec-step without a codec.

    Raises
    ------
    ConfigError
        When a setting would have no effect; the message names its key.
    """
    for key, value, default in (("codec", codec, "none"), ("schedule-graph", schedule_graph, STATIC)):
        if value != default and not method.phases:
            raise ConfigError(f"{key} = {value!r}: algorithm {name!r} exchanges nothing; leave {key} out")
    if step and codec == "none":
        raise ConfigError(f"codec-step = {step}: without a codec it has no effect; leave it out")
