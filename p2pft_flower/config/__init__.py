"""The run-config: kebab-case keys become frozen dataclasses; unknown keys and wrong values are refused.

The Flower app's pyproject.toml carries every key with its default and its docstring as a comment:
``python -m tools.app_config`` writes it, and a test holds the two together.
"""

from __future__ import annotations

from p2pft_flower.config.learning import CHOICES, NO_MODEL, LearningConfig
from p2pft_flower.config.method import MethodConfig
from p2pft_flower.config.pixels import channel_fault, read_channels, read_range
from p2pft_flower.config.run import RunConfig, config_keys
from p2pft_flower.config.runtime import DATA_CHANGED, TRANSPORTS, RuntimeConfig

__all__ = [
    "CHOICES",
    "DATA_CHANGED",
    "NO_MODEL",
    "TRANSPORTS",
    "LearningConfig",
    "MethodConfig",
    "RunConfig",
    "RuntimeConfig",
    "channel_fault",
    "config_keys",
    "read_channels",
    "read_range",
]
