"""The least and the largest of each number in the run-config, and the errors that name a wrong value."""

from __future__ import annotations

import dataclasses

from p2pft_flower.errors import ConfigError
from p2pft_flower.typed import MAX_PEERS

__all__ = ["BOUNDS", "require", "require_bounds"]

_PLENTY = 10**9
"""More iterations, images or other things than any run has."""

_YEAR = 31_536_000.0
"""Seconds of a year: the longest deadline."""

BOUNDS: dict[str, tuple[float, float]] = {
    "learning_rate": (1e-30, 1e6),
    "codec_step": (0.0, 1.0),
    "weight_decay": (0.0, 1e6),
    "local_epochs": (1, 10**6),
    "max_megapixels": (0.0, 1e6),
    "evaluate_on": (0, _PLENTY),
    "shots": (0, _PLENTY),
    "batch_size": (1, 10**6),
    "dp_clip": (0.0, 1e6),
    "dp_noise": (0.0, 1e6),
    "seed": (0, 2**63 - 1),
    "epochs": (0, 10**6),
    "iterations": (0, _PLENTY),
    "evaluate_every": (0, _PLENTY),
    "threads": (1, 1024),
    "checkpoint_every": (-1, _PLENTY),
    "checkpoints_kept": (1, 10**6),
    "min_peers": (0, MAX_PEERS),
    **dict.fromkeys(
        ("meet_timeout", "peer_timeout", "rejoin_deadline", "hang_timeout", "run_timeout"), (0.001, _YEAR)
    ),
}
"""Least and largest value of each numeric key that has no check of its own."""


def require(condition: bool, key: str, value: object, right: str) -> None:
    """Raise ConfigError, with ``key``, ``value`` and the ``right`` values in words, unless ``condition``."""
    if not condition:
        raise ConfigError(f"{key} = {value!r}: must be {right}")


def require_bounds(concern: object) -> None:
    """Raise ConfigError if a number among a concern's fields is outside its bounds, :data:`BOUNDS`."""
    for f in dataclasses.fields(concern):  # type: ignore[arg-type]  # each of the concerns is a dataclass
        if f.name not in BOUNDS:
            continue
        (least, most), value = BOUNDS[f.name], getattr(concern, f.name)
        kind = "whole number" if isinstance(value, int) else "number"
        kind += " of seconds" if f.name.endswith(("timeout", "deadline")) else ""
        right = f"a {kind} from {least:.15g} to {most:.15g}"
        require(least <= value <= most, f.name.replace("_", "-"), value, right)
