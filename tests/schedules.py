"""How many random schedules of faults a test goes through."""

from __future__ import annotations

import os

BY_HAND = 67
"""Times as many under ``HYPOTHESIS_PROFILE=search``: some 20,000 instead of 300."""


def schedules(count: int) -> int:
    """Return how many examples to draw of the ``count`` that every run of the tests goes through."""
    return count * (BY_HAND if os.environ.get("HYPOTHESIS_PROFILE") == "search" else 1)
