"""DP-SGD (Abadi et al., 2016): each image's gradient is clipped, Gaussian noise is added, ε is accounted for.

    g = (1/B) (Σ_{x in batch} ∇ℓ(θ; x) · min(1, C / ‖∇ℓ(θ; x)‖) + N(0, (σC)² I))

with C = ``dp-clip``, σ = ``dp-noise`` and B the batch size. Each image is in a batch with probability B / N,
independently of all others (Poisson sampling), as the accountant assumes. So B is the expected number of
images; the actual number differs in every batch and depends on the images, so the sum is not divided by it.

Everything that a peer sends afterwards (θ, trackers, momentum, mixtures with its neighbours' vectors) is
computed from such gradients and from nothing else of its training images: post-processing, which costs no ε.
Each iteration adds one new gradient, and every gradient counts, also the first.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.batches import PoissonBatches
from p2pft_flower.learning.draws import seeded
from p2pft_flower.learning.losses import image_loss
from p2pft_flower.learning.model.modes import training
from p2pft_flower.learning.settings import no_accountant
from p2pft_flower.learning.store.features import Features

__all__ = ["ClippedGradients", "Privacy", "Spent", "epsilon", "log_draws", "require_accountant"]

log = logging.getLogger(__name__)

Vector = npt.NDArray[np.float32]

_FLOATS = 2**24
"""Most numbers (float32) of single images' gradients in memory at once, unless one has more: 64 MiB."""

_ORDERS = [
    *(1 + x / 100 for x in range(1, 10)),
    *(1 + x / 10 for x in range(1, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 192, 256, 384, 512, 768, 1000),
]
"""Rényi orders to try; each gives a valid bound, and the best one counts."""

_NOISE = 2
"""Distinguishes the noise's draws from others of the same seed, peer and position."""


class Spent(NamedTuple):
    """Bound on what a peer's gradients so far reveal of any one of its images: (ε, δ)-differential privacy.

    Attributes
    ----------
    epsilon : float
        ε; infinite without noise.
    delta : float
        δ.
    """

    epsilon: float
    delta: float


def require_accountant() -> None:
    """Refuse to go on without Opacus, whose accountant computes ε.

    Raises
    ------
    ConfigError
        When Opacus cannot be imported; the message names the command that installs it.
    """
    try:
        from opacus.accountants import RDPAccountant  # noqa: F401 - seen to work now, not after training
    except ImportError as error:
        raise no_accountant(error) from error


def log_draws(noise: float, *, seeded: bool) -> None:
    """Log whether noise and batches follow from the seed (``seeded``); warn if ``noise`` is 0."""
    if noise == 0:
        log.warning("dp-noise = 0: gradients are clipped only, ε is infinite: nothing is private")
    elif seeded:
        log.info(
            "differential privacy: in simulation, noise and batches follow from the seed; ε is that of the "
            "same run in deployment, where they are drawn from each machine's entropy"
        )
    else:
        log.info(
            "differential privacy: noise and batches are drawn from this machine's entropy, not from the seed"
        )


def epsilon(*, noise: float, rate: float, releases: int, delta: float) -> float:
    """Return ε of ``releases`` noisy gradients, by Opacus' accountant of Rényi differential privacy.

    Parameters
    ----------
    noise : float
        σ ≥ 0, the noise's standard deviation divided by the clipping norm.
    rate : float
        Probability in (0, 1] with which an image is in a batch: batch size / images of the peer.
    releases : int
        Number of gradients, ≥ 0: iterations, and one at the start for methods that track gradients.
    delta : float
        δ in (0, 1).

    Returns
    -------
    float
        An upper bound; infinite without noise, zero without gradients.

    Raises
    ------
    ConfigError
        When Opacus is not installed.
    """
    require_accountant()
    if releases == 0:
        return 0.0
    if noise == 0:
        return math.inf
    from opacus.accountants.analysis import rdp

    with warnings.catch_warnings():
        # At either end of the orders the bound still holds, but could be a little tighter.
        warnings.filterwarnings("ignore", "Optimal order is the (smallest|largest) alpha")
        spent, _ = rdp.get_privacy_spent(orders=_ORDERS, rdp=releases * _of_one(noise, rate), delta=delta)
    return float(spent)


@lru_cache(maxsize=64)
def _of_one(noise: float, rate: float) -> Any:
    """Return the Rényi divergences of one gradient at `_ORDERS`; those of many are so many times as large.

    They take half a second, and a run asks for ε at each evaluation.
    """
    from opacus.accountants.analysis import rdp

    return rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=_ORDERS)


@dataclass(frozen=True)
class Privacy:
    """The settings that make one peer's gradients private.

    Attributes
    ----------
    clip : float
        C > 0, the largest L2 norm of an image's gradient.
    noise : float
        σ ≥ 0: the sum of a batch gets noise of standard deviation σ C.
    delta : float
        δ in (0, 1).
    images : int
        N ≥ 1, the peer's training images.
    batch_size : int
        Mean number of images in a batch, at most N.
    key : tuple of int or None
        Numbers that decide noise and batches, for simulations: with the key the noise can be subtracted.
        None: both are drawn from the operating system's entropy, and nobody can draw them again.
    """

    clip: float
    noise: float
    delta: float
    images: int
    batch_size: int
    key: tuple[int, ...] | None = None

    @classmethod
    def of(cls, config: LearningConfig, images: int, key: tuple[int, ...] | None) -> Privacy:
        """Return the settings of ``config``, whose ``dp_clip`` is > 0, for a peer of ``images`` images.

        A ``dp_delta`` of 0 means δ = 1 / (10 · images). A δ of 1 / images or more gives a warning.
        """
        delta = config.dp_delta or 1 / (10 * images)
        if delta * images >= 1:
            log.warning(
                "dp-delta = %g: a peer with %d images may reveal one of them whole and keep to it; choose "
                "less than 1 / %d",
                delta,
                images,
                images,
            )
        return cls(config.dp_clip, config.dp_noise, delta, images, min(config.batch_size, images), key)

    @property
    def rate(self) -> float:
        """Probability that a given image is in a given batch."""
        return self.batch_size / self.images

    def batches(self) -> PoissonBatches:
        """Return the peer's batches, from the start."""
        return PoissonBatches(self.images, self.rate, key=self.key)

    def release(self, total: Vector, t: int) -> Vector:
        """Return the private gradient of batch ``t``, (q,) float32, from the batch's clipped gradients.

        ``total``, (q,) float32, is their sum.
        """
        # Never twice the same noise: the difference of two gradients would be free of it.
        rng = np.random.default_rng() if self.key is None else np.random.default_rng((*self.key, t, _NOISE))
        noise = rng.standard_normal(total.size, dtype=np.float32)
        noise *= self.noise * self.clip
        noise += total
        noise /= self.batch_size
        return noise

    def spent(self, releases: int) -> Spent:
        """Return the privacy cost of ``releases`` gradients.

        Raises
        ------
        ConfigError
            When Opacus is not installed.
        """
        bound = epsilon(noise=self.noise, rate=self.rate, releases=releases, delta=self.delta)
        return Spent(bound, self.delta)


class ClippedGradients:
    """The sum of the clipped gradients of single images, computed by torch.func.

    Every image passes the tail alone, so that no other image affects its gradient.

    Parameters
    ----------
    tail : nn.Module
        The tail, whose parameters with ``requires_grad`` are trained.
    clip : float
        Largest L2 norm of an image's gradient; ``inf`` for no limit.
    """

    def __init__(self, tail: nn.Module, clip: float) -> None:
        self._tail, self._clip = tail, clip
        self._names = [name for name, p in tail.named_parameters() if p.requires_grad]
        q = sum(p.numel() for p in tail.parameters() if p.requires_grad)
        self._chunk = max(1, _FLOATS // q)
        single = torch.func.grad_and_value(self._loss)
        # Drop-out draws another mask for each image, as it does in a batch.
        self._each = torch.func.vmap(single, in_dims=(None, 0, 0), randomness="different")

    def _loss(
        self, trained: dict[str, torch.Tensor], inputs: tuple[torch.Tensor, ...], label: torch.Tensor
    ) -> torch.Tensor:
        alone = tuple(tensor.unsqueeze(0) for tensor in inputs)
        logits = torch.func.functional_call(self._tail, trained, alone)
        return image_loss(logits, label.unsqueeze(0))

    def total(
        self, inputs: Sequence[torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of the clipped gradients at the tail's present parameters, and the images' losses.

        Parameters
        ----------
        inputs : sequence of (B, …) float32 tensors
            The tail's inputs, B ≥ 1.
        labels : (B,) or (B, C) int64 tensor
            Classes; or 0 and 1, whether each image has each label.

        Returns
        -------
        total : (q,) float32 tensor
            The sum, in the order of ``named_parameters``.
        losses : (B,) float32 tensor
            The loss of each image (:func:`image_loss`).
        """
        parameters = dict(self._tail.named_parameters())
        trained = {name: parameters[name].detach() for name in self._names}
        sums = {name: torch.zeros_like(p) for name, p in trained.items()}
        losses = []
        for start in range(0, len(labels), self._chunk):
            part = slice(start, start + self._chunk)
            # Of attention's kernels, this one is vectorised over images; the others would run one by one.
            with sdpa_kernel(SDPBackend.MATH):
                gradients, loss = self._each(trained, tuple(t[part] for t in inputs), labels[part])
            flat = [gradients[name].flatten(1) for name in self._names]
            norms = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in flat]).norm(dim=0)
            scale = (self._clip / norms).clamp(max=1.0)  # a norm of 0 gives inf, which becomes 1
            for name, g in zip(self._names, flat, strict=True):
                sums[name] += (scale @ g).view_as(sums[name])
            losses.append(loss)
        return torch.cat([sums[name].reshape(-1) for name in self._names]), torch.cat(losses)

    def check(self, features: Features, what: str) -> None:
        """Refuse a tail that does not admit gradients of single images, tried with one image.

        Parameters
        ----------
        features : Features
            Any images, of which the first is read.
        what : str
            Words that name model and path in the message.

        Raises
        ------
        ConfigError
            When the tail does not admit such gradients; the message says ``what``.
        """
        inputs, labels = features.read(np.zeros(1, dtype=np.int64), 0)
        try:
            with training(self._tail), seeded(0):
                self.total(inputs, labels)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"dp-clip > 0 with {what}: torch cannot take the gradient of each image by itself, which "
                f"clipping needs ({first}); a model whose layers look at a whole batch is one such: "
                "choose another model or tune, or dp-clip = 0"
            ) from error
