"""Threads that compute side by side what does not depend on how many they are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["side_by_side"]


def side_by_side(threads: int) -> ThreadPoolExecutor:
    """Return so many threads, each of which has as many of torch's threads for an operation as the caller's.

    Sums inside an operation depend on the number of torch's threads (docs/architecture.md).
    """
    return ThreadPoolExecutor(threads, "p2pft-compute", torch.set_num_threads, (torch.get_num_threads(),))
