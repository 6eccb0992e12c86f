"""A run's method, made of its settings and checked before anything starts."""

from __future__ import annotations

from typing import Any

from p2pft_flower.algorithms import check_exchange, make_algorithm
from p2pft_flower.algorithms.schedules import make_schedule
from p2pft_flower.algorithms.seam import Algorithm
from p2pft_flower.config import MethodConfig

__all__ = ["make_method"]


def make_method(config: MethodConfig) -> Algorithm[Any]:
    """Return the method that ``config`` chooses; no graph is checked, and Flower's strategies are unknown.

    Raises
    ------
    ConfigError
        When the method is unknown, or refuses its options or settings of the exchange.
    """
    method = make_algorithm(
        config.algorithm,
        alpha=make_schedule(config.schedule, config.learning_rate, 1),
        momentum=config.momentum,
        options=config.algorithm_options,
        pipelined=config.pipelined,
    )
    check_exchange(
        config.algorithm,
        method,
        codec=config.codec,
        step=config.codec_step,
        schedule_graph=config.schedule_graph,
    )
    return method
