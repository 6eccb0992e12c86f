"""Peer-to-peer fine-tuning of vision transformers, as an extension of Flower."""

from __future__ import annotations

from p2pft_flower.algorithms import Simulation, simulate
from p2pft_flower.topology import Graph

__version__ = "0.1.0"

__all__ = ["Graph", "Simulation", "__version__", "simulate"]
