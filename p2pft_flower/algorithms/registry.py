"""Methods by name, and methods of your own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2pft_flower.algorithms.centralized import Centralized
from p2pft_flower.algorithms.dgd import DGD
from p2pft_flower.algorithms.gt_dgd import GTDGD
from p2pft_flower.algorithms.local import Local
from p2pft_flower.algorithms.p2pft import P2PFT
from p2pft_flower.algorithms.seam import Algorithm, Schedule
from p2pft_flower.errors import ConfigError, TopologyError
from p2pft_flower.plugins import call_reference, is_reference
from p2pft_flower.topology import Graph

__all__ = ["ALGORITHMS", "check_graph", "make_algorithm"]

ALGORITHMS: dict[str, Callable[..., Algorithm[Any]]] = {
    "p2pft": P2PFT,
    "dgd": DGD,
    "gt-dgd": GTDGD,
    "local": Local,
    "centralized": Centralized,
}


def make_algorithm(name: str, *, alpha: Schedule, momentum: float = 0.0) -> Algorithm[Any]:
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

    Raises
    ------
    ConfigError
        When there is no such method or its pieces are missing.
    """
    if not 0.0 <= momentum < 1.0:
        raise ConfigError(f"momentum = {momentum}: must be in [0, 1)")
    if is_reference(name):
        method = call_reference(name, key="algorithm", alpha=alpha, momentum=momentum)
        missing = [part for part in ("phases", "start", "step") if not hasattr(method, part)]
        if missing:
            raise ConfigError(
                f"algorithm = {name!r}: the object that it returns has no {', '.join(missing)}; "
                "see p2pft_flower.algorithms.seam.Algorithm"
            )
        return method  # type: ignore[no-any-return]  # checked just above, as far as Python can
    if name not in ALGORITHMS:
        raise ConfigError(
            f"algorithm = {name!r} is unknown; choose one of {', '.join(ALGORITHMS)}, or my_module:my_method"
        )
    return ALGORITHMS[name](alpha=alpha, momentum=momentum)


def check_graph(method: Algorithm[Any], graph: Graph) -> None:
    """Refuse a graph on which ``method`` would silently converge to a wrong point.

    Raises
    ------
    TopologyError
        When the method needs a doubly stochastic W and the graph's A is not.
    """
    if getattr(method, "doubly_stochastic", False) and not graph.doubly_stochastic:
        raise TopologyError(
            f"graph {graph.name!r} is not doubly stochastic, and {type(method).__name__} tracks the wrong "
            "gradient on such a graph: use algorithm = 'p2pft', which needs no doubly stochastic weights, "
            "or a balanced graph (ring-4, complete-4, a graph with scheme: metropolis)"
        )
