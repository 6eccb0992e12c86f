"""The processor's cores: for work whose result does not depend on how many threads share it."""

from __future__ import annotations

import os

__all__ = ["cores"]


def cores() -> int:
    """Return the number of cores that this process may run on."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS
    return (os.cpu_count() or 1) if allowed is None else len(allowed(0))
