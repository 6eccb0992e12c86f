"""Versions of all that must be the same on all hosts of a run."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cache

__all__ = ["versions"]


@cache
def versions() -> dict[str, str]:
    """Return the versions, by name, of all that must be the same on all hosts; looked up once a process.

    The names are those of this package, Flower, torch, timm, NumPy and Python.
    """
    packages = ("p2pft-flower", "torch", "timm", "numpy")
    found = {p: importlib.metadata.version(p) for p in packages}
    try:
        found["flwr"] = importlib.metadata.version("flwr")
    except importlib.metadata.PackageNotFoundError:
        found["flwr"] = importlib.metadata.version("flwr-nightly")  # the same package, by another name
    return found | {"python": platform.python_version()}
