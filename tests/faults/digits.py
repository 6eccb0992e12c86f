"""What peers of these runs learn: the mean image of each digit, of which each peer holds some only.

A quadratic for which the survivors' optimum is known, and a classifier of real images whose accuracy can be
told: scikit-learn's digits, by the mean that is most like them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from p2pft_flower.algorithms import simulate
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View
from tests.host.quadratic import Peer, Quadratics, Score
from tests.later import Later

sklearn_datasets = Later("sklearn.datasets")

DIGITS, PIXELS = 10, 64
BATCH = 96
"""Images in a mini-batch."""


@lru_cache(maxsize=1)
def read_images():
    """Return images for training and testing, each (images, 64) float32 without what all have in common."""
    whole = sklearn_datasets.load_digits()
    images, labels = (whole.data / 16).astype(np.float32), whole.target
    test = np.arange(len(labels)) % 4 == 3
    common = images[~test].mean(axis=0)
    return (images[~test] - common, labels[~test]), (images[test] - common, labels[test])


def held(peer: int) -> list[int]:
    """Return the digits that one of six peers holds; nobody else has them."""
    return [d for d in range(DIGITS) if d % 6 == peer]


def means(images, labels, digits) -> np.ndarray:
    """Return the mean image of each of ``digits``, zero for the others; (640,) float32."""
    found = np.zeros((DIGITS, PIXELS), np.float32)
    for d in digits:
        found[d] = images[labels == d].mean(axis=0)
    return found.ravel()


class Holder(Peer):
    """∇L_i(θ) = θ − c_i on a mini-batch: c_i has the means of the digits that peer i holds."""

    def __init__(self, peer, fail_at=None, hook=None):
        super().__init__(peer, fail_at, hook)
        (images, labels), _ = read_images()
        own = np.isin(labels, held(peer))
        self.images, self.labels = images[own], labels[own]
        self.minimiser = means(self.images, self.labels, held(peer))

    def batch_minimiser(self):
        rng = np.random.default_rng([self.peer, self.drawn])
        share = BATCH // len(held(self.peer))
        drawn = [rng.choice(np.flatnonzero(self.labels == d), share) for d in held(self.peer)]
        chosen = np.concatenate(drawn)
        return means(self.images[chosen], self.labels[chosen], held(self.peer))

    def evaluate(self, theta):
        self.kept = theta.copy()
        loss = float(((theta - self.minimiser) ** 2).mean())
        return Score(loss, accuracy(theta, range(DIGITS)), None)


class Digits(Quadratics):
    """The peers' problem, as a host sees it."""

    theta0 = np.zeros(DIGITS * PIXELS, dtype=np.float32)
    model_digest = "means of digits"
    peer = Holder


def accuracy(theta, digits) -> float:
    """Return the share of test images of ``digits`` that are most like the mean of their own."""
    _, (images, labels) = read_images()
    digits = np.array(sorted(digits))
    asked = np.isin(labels, digits)
    prototypes = theta.reshape(DIGITS, PIXELS)[digits]
    lengths = np.maximum(np.linalg.norm(prototypes, axis=1), 1e-12)
    found = digits[(images[asked] @ (prototypes / lengths[:, None]).T).argmax(axis=1)]
    return float((found == labels[asked]).mean())


def optimum(peers: Sequence[int]) -> np.ndarray:
    """Return the θ that minimises the mean of the peers' objectives."""
    return np.mean([Holder(p).minimiser for p in peers], axis=0)


@lru_cache(maxsize=32)
def undisturbed(graph: str, peers: tuple[int, ...], rate: float, iterations: int) -> np.ndarray:
    """Return what ``peers`` end with on their part of the graph when nothing happens; (peers, 640)."""
    whole = Graph.load(graph)
    view = View.without(whole, set(range(whole.n)).difference(peers), ())
    gradients = [Holder(p).gradient for p in view.peers]
    return simulate("p2pft", view.graph, gradients, Digits.theta0, alpha=rate, iterations=iterations).theta
