"""Methods as pure mathematics on vectors; one short file each."""

from __future__ import annotations

from p2pft_flower.algorithms.registry import (
    ALGORITHMS,
    check_exchange,
    check_graph,
    gradients_per_step,
    make_algorithm,
)
from p2pft_flower.algorithms.seam import Algorithm, Both, Columns, Draw, Gradient, Rows, Schedule, Vector
from p2pft_flower.algorithms.simulation import Simulation, simulate

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Both",
    "Columns",
    "Draw",
    "Gradient",
    "Rows",
    "Schedule",
    "Simulation",
    "Vector",
    "check_exchange",
    "check_graph",
    "gradients_per_step",
    "make_algorithm",
    "simulate",
]
