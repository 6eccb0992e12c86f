"""Seeds for the process's global random generators, which libraries use: their draws follow from numbers."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seeded", "torch_seeded"]

_LOCK = threading.RLock()
"""The generators are the process's: one thread at a time may seed and use them."""


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Seed torch for the ``with`` block as ``torch.manual_seed`` does: a new layer equals timm's own draw.

    After the block torch's generator of the CPU is restored. Threads that call this or :func:`seeded` wait
    for each other.
    """
    with _LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global generators for the ``with`` block; then restore them.

    Of GPUs only the current one is seeded and restored, if torch has begun to use it. Threads that call this
    or :func:`torch_seeded` wait for each other.

    Parameters
    ----------
    *key : int
        Whole numbers >= 0 that decide every draw in the ``with`` block.
    """
    own, of_numpy, of_torch = np.random.SeedSequence(key).generate_state(3).tolist()
    with _LOCK:
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        try:
            random.seed(own)
            np.random.seed(of_numpy)
            # Not torch.manual_seed: that seeds the generators of all GPUs, which would not be restored.
            torch.default_generator.manual_seed(of_torch)
            if cuda is not None:
                torch.cuda.manual_seed(of_torch)
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])
            if cuda is not None:
                torch.cuda.set_rng_state(cuda)
