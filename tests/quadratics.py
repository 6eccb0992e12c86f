"""A problem for deployments of tests: noisy quadratics, one minimiser a peer, in NumPy alone.

``problem = QUADRATICS`` names it (this file's path, and the function's name), so a ClientApp that trains it
imports no torch. It needs no other module of the tests: a peer's process has only this file. `LARGE` is the
same with many more numbers; `SLOW` takes its time for a gradient, so that a run lasts as long on any machine.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

QUADRATICS, LARGE, SLOW = (f"{Path(__file__).resolve()}:{name}" for name in ("quadratics", "large", "slow"))

Q = 300
LARGE_Q = 100_000
SAMPLES = 64
TAKES = 0.2
"""Seconds of a slow gradient; iterations cost processor time, waiting does not."""

HOLD = "P2PFT_TESTS_HOLD"
"""Environment variable with a file; while that is there, peers wait before they draw gradient `HELD`."""

HELD = 22


class Score(NamedTuple):
    loss: float
    accuracy: float
    accuracy_unseen: float | None


class Peer:
    """L_i(θ) = ½‖θ − c_i‖²; the noise of its gradient follows from seed, peer and how many were drawn."""

    def __init__(self, peer, seed, scale, q=Q, takes=0.0):
        self.peer, self.seed, self.scale, self.takes, self.drawn = peer, seed, scale, takes, 0
        self.minimiser = minimiser(peer, seed, q)

    def gradient(self, theta):
        time.sleep(self.takes)
        while self.drawn >= HELD and Path(os.environ.get(HOLD, "")).is_file():
            time.sleep(0.1)  # processes of a run that a test kills
        noise = np.random.default_rng([self.seed, self.peer, self.drawn]).normal(size=self.minimiser.size)
        self.drawn += 1
        return theta - (self.minimiser + self.scale * noise).astype(np.float32)

    def evaluate(self, theta):
        loss = float(((theta - self.minimiser) ** 2).mean()) / 2
        return Score(loss, float(np.exp(-loss)), None)

    def position(self):
        return lambda drawn=self.drawn: {"drawn": drawn}

    def go_to(self, position, lost):
        self.drawn = position["drawn"]  # what was drawn in vain is drawn again: a run is resumed bit for bit

    def privacy_spent(self):
        return None


class Quadratics:
    """What a host asks of a problem."""

    def __init__(self, batch_size, seed, q=Q, takes=0.0):
        self.theta0 = np.zeros(q, dtype=np.float32)
        self.model_digest = f"quadratics of {q} numbers"
        self.model_parameters = q
        self._scale, self._seed, self._more = 0.1 / batch_size**0.5, seed, (q, takes)

    def samples(self, peer):
        return SAMPLES + peer

    def data_digest(self, peer):
        return f"peer {peer} of seed {self._seed}"

    def objectives(self, peers, progress):
        progress()
        return {peer: Peer(peer, self._seed, self._scale, *self._more) for peer in peers}

    def named_tail(self, theta):
        return {"theta": theta}

    def theta_from(self, tensors):
        return tensors["theta"]

    def metadata(self):
        return {}


def minimiser(peer, seed=0, q=Q):
    return np.random.default_rng([seed, peer]).normal(size=q).astype(np.float32)


def quadratics(n, peers, batch_size, seed, data_dir):
    return Quadratics(batch_size, seed)


def large(n, peers, batch_size, seed, data_dir):
    return Quadratics(batch_size, seed, LARGE_Q)


def slow(n, peers, batch_size, seed, data_dir):
    return Quadratics(batch_size, seed, takes=TAKES)
