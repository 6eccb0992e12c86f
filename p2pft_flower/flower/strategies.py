"""Flower's own server-based strategies by name.

Flower is imported only if a strategy may be meant: the command line starts sooner without it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from p2pft_flower.algorithms import ALGORITHMS
from p2pft_flower.config import LearningConfig, MethodConfig, RunConfig
from p2pft_flower.errors import ConfigError, did_you_mean
from p2pft_flower.topology.schedule import STATIC

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

__all__ = [
    "is_strategy",
    "make_strategy",
    "plain_name",
    "refuse_own_problem",
    "strategy_names",
    "unknown_algorithm",
]

_NOT_FOR_VECTORS = ("Strategy", "FedXgbBagging", "FedXgbCyclic")


def _strategies() -> dict[str, type[Strategy]]:
    import flwr.serverapp.strategy as flower
    from flwr.serverapp.strategy import Strategy

    return {
        name.lower(): kind
        for name, kind in vars(flower).items()
        if inspect.isclass(kind)
        and issubclass(kind, Strategy)
        and name not in _NOT_FOR_VECTORS
        and "strategy" not in inspect.signature(kind).parameters  # wrappers around another strategy
    }


def strategy_names() -> list[str]:
    """Return the names (``fedavg``, ``fedprox``, …) of Flower's strategies that aggregate model arrays."""
    return sorted(_strategies())


def is_strategy(name: str) -> bool:
    """Tell whether ``name`` is a strategy of Flower; ``FedProx`` and ``fed-prox`` are ``fedprox``."""
    return name not in ALGORITHMS and plain_name(name) in _strategies()


def unknown_algorithm(name: str) -> ConfigError:
    """Return the error of an ``algorithm`` that is neither a method nor a strategy."""
    known = [*ALGORITHMS, *strategy_names()]
    return ConfigError(
        f"algorithm = {name!r} is unknown; choose one of {', '.join(known)}, or "
        f"my_module:my_method{did_you_mean(name, known)}"
    )


def plain_name(name: str) -> str:
    """Return a strategy's name in the form of :func:`strategy_names`: ``fedprox`` for ``Fed-Prox``."""
    return name.lower().replace("-", "").replace("_", "")


def make_strategy(method: MethodConfig, n: int) -> Strategy:
    """Build Flower's strategy ``method.algorithm`` for ``n`` clients, all of which take part in every round.

    Parameters
    ----------
    method : MethodConfig
        Its ``algorithm`` is one of :func:`strategy_names`, its ``strategy_options`` a text such as
        ``"proximal-mu=0.1,eta=0.05"``.
    n : int
        Number of peers.

    Raises
    ------
    ConfigError
        When the strategy or an option is unknown, an option is no number, or the strategy refuses a value.
    """
    name, options, kinds = plain_name(method.algorithm), method.strategy_options, _strategies()
    if name not in kinds:
        raise ConfigError(
            f"algorithm = {name!r} is no strategy of Flower; choose one of {', '.join(sorted(kinds))}"
        )
    kind = kinds[name]
    fixed = {
        "min_train_nodes": n,
        "min_evaluate_nodes": n,
        "min_available_nodes": n,
        "fraction_train": 1.0,
        "fraction_evaluate": 1.0,
        "client_learning_rate": method.learning_rate,  # QFedAvg scales by it
    }
    numbers = {
        p.name: p
        for p in inspect.signature(kind).parameters.values()
        if p.name not in fixed and isinstance(p.default, (int, float)) and not isinstance(p.default, bool)
    }
    chosen: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in options.split(","))):
        key, _, value = item.partition("=")
        argument = key.strip().replace("-", "_")
        known = ", ".join(p.replace("_", "-") for p in numbers) or "none"
        if argument not in numbers:
            raise ConfigError(f"strategy-options: {name} has no option {key!r}; it has: {known}")
        try:
            chosen[argument] = type(numbers[argument].default)(value)
        except ValueError as error:
            raise ConfigError(f"strategy-options: {key} = {value!r} is not a number") from error
    accepted = inspect.signature(kind).parameters
    try:
        return kind(**{k: v for k, v in fixed.items() if k in accepted}, **chosen)
    except ValueError as error:
        raise ConfigError(f"strategy-options = {options!r}: {name} refuses: {error}") from error


def refuse_method_keys(method: MethodConfig, learning: LearningConfig) -> None:
    """Refuse keys that only methods without a server have.

    Raises
    ------
    ConfigError
        When such a key is set; the message names it.
    """
    for key, value, default in (
        ("algorithm-options", method.algorithm_options, ""),
        ("codec", method.codec, "none"),
        ("codec-step", method.codec_step, 0.0),
        ("schedule-graph", method.schedule_graph, STATIC),
        ("pipelined", method.pipelined, False),
    ):
        if value != default:
            raise ConfigError(
                f"{key} = {value!r} with algorithm = {method.algorithm!r}: it is for methods whose peers "
                "exchange their vectors; leave it out"
            )
    if learning.keeps_best:
        raise ConfigError(
            f"keep = {learning.keep!r} with algorithm = {method.algorithm!r}: the peers choose their best θ "
            "among themselves, and clients of Flower's strategies have no edges to each other; give "
            "keep = last, or a method of this package, as p2pft, local or centralized"
        )
    if learning.balances:
        raise ConfigError(
            f"class-weights = {learning.class_weights!r} with algorithm = {method.algorithm!r}: the peers "
            "sum up their numbers of images along their edges, and clients of Flower's strategies have none; "
            "give class-weights = none, or a method of this package, as p2pft, local or centralized"
        )


def refuse_own_problem(config: RunConfig) -> None:
    """Refuse one of Flower's strategies for a ``problem`` of the user's own.

    Raises
    ------
    ConfigError
        When ``problem`` is set; the message names methods that can train it.
    """
    if config.learning.problem:
        raise ConfigError(
            f"problem = {config.learning.problem!r} with algorithm = {config.method.algorithm!r}: Flower's "
            "strategies are run on vision transformers only; choose a method of this package, as p2pft or "
            "local, or my_module:my_method"
        )
