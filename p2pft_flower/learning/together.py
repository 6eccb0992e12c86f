"""The gradients of a process's peers as one computation, instead of one after the other.

A step of a small tail is many small products, and takes as long as it takes to begin them. With the peers' θ
as rows of one matrix, and their mini-batches one above the other, ``torch.func.vmap`` makes one batched
product of each: benchmarks/many_peers.py measures what that gains.

A peer's gradient equals the one computed alone up to rounding, and to the last bit it does not depend on the
peers beside it, and so not on which host runs which peer (invariant 2 of docs/architecture.md). For that, a
mini-batch is padded to a size that depends on this mini-batch alone (the padding weighs nothing), and no
product is of one matrix, for which libraries have other kernels. So several threads may each compute some of
the peers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from math import ceil
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from p2pft_flower.learning.losses import image_loss
from p2pft_flower.learning.minibatches import MiniBatch
from p2pft_flower.learning.model.modes import training
from p2pft_flower.learning.model.structure import share_copy
from p2pft_flower.learning.objective import PeerObjective, gradient_of
from p2pft_flower.learning.theta import as_tensor, like, trained_parameters
from p2pft_flower.learning.threads import side_by_side

__all__ = ["Together", "padded_size", "room", "why_apart"]

Vector = npt.NDArray[np.float32]

MEMORY = 2**27
"""Numbers that are held at a time in the CPU's memory, roughly: more peers are computed in several chunks."""

_EQUAL = 1e-4
"""Largest distance, relative to the gradient's norm, at which two ways to compute it count as the same."""

_HOLDS = 12
"""Numbers that the computation holds for each number of the tail's inputs, roughly."""


class Together:
    """Draws the gradients of several peers at once.

    Parameters
    ----------
    tail : nn.Module
        The tail, for which :func:`why_apart` finds no reason.
    objectives : mapping of int to PeerObjective
        The peers' objectives, without privacy and pooled images.
    threads : int
        Number of threads that compute; the gradients do not depend on it. Default 1.
    """

    def __init__(self, tail: nn.Module, objectives: Mapping[int, PeerObjective], threads: int = 1) -> None:
        self._objectives, self._threads = objectives, threads
        self._shapes = {n: p.shape for n, p in tail.named_parameters() if p.requires_grad}
        self._tails = SimpleQueue[nn.Module]()
        """One for each thread: a computation puts its tensors in the place of the tail's parameters."""
        for _ in range(threads):
            self._tails.put(share_copy(tail))
        self._memory = room(next(tail.parameters()).device)

    def __call__(self, thetas: Mapping[int, Vector]) -> dict[int, Vector]:
        """Return ∇L_i(θ_i; next mini-batch), (q,) float32, of each peer i in ``thetas``, each (q,).

        Raises
        ------
        DataError
            When images of a mini-batch cannot be read: see :meth:`MiniBatches.read`. Then no peer has drawn.
        """
        batches = {peer: self._objectives[peer].read() for peer in thetas}
        drawn: dict[int, tuple[Vector, torch.Tensor]] = {}
        chunks = list(self._chunks(batches))
        with (
            _batched_attention(),  # for all threads: torch's choice is the process's
            side_by_side(self._threads) as threads,
        ):
            compute = partial(self._computed, thetas=thetas, batches=batches)
            found = threads.map(compute, *zip(*chunks, strict=True))
            for (peers, _), (rows, losses) in zip(chunks, found, strict=True):
                drawn |= zip(peers, zip(rows, losses, strict=True), strict=False)
        for peer in thetas:
            self._objectives[peer].drew(drawn[peer][1])
        return {peer: drawn[peer][0] for peer in thetas}

    def _chunks(self, batches: Mapping[int, MiniBatch]) -> Iterator[tuple[list[int], int]]:
        """Yield the peers that are computed together, and the size to which their mini-batches are padded."""
        of_size: dict[int, list[int]] = {}
        for peer, batch in batches.items():
            of_size.setdefault(padded_size(len(batch.labels)), []).append(peer)
        q = sum(shape.numel() for shape in self._shapes.values())
        for size, peers in sorted(of_size.items()):
            one = batches[peers[0]]
            inputs = sum(t[:1].numel() for t in one.inputs) * size
            room = self._memory // self._threads // (4 * q + _HOLDS * inputs)
            most = max(2, min(room, ceil(len(peers) / self._threads)))
            for begin in range(0, len(peers), most):
                yield peers[begin : begin + most], size

    def _computed(
        self,
        peers: Sequence[int],
        size: int,
        thetas: Mapping[int, Vector],
        batches: Mapping[int, MiniBatch],
    ) -> tuple[Iterable[Vector], torch.Tensor]:
        """Return the gradients of ``peers``, (m, q), and their losses, (m,); of a single peer twice."""
        rows = list(peers) if len(peers) > 1 else [*peers, *peers]
        chosen = [batches[peer] for peer in rows]
        device = chosen[0].labels.device
        # torch stacks in several threads.
        theta = torch.stack([as_tensor(thetas[peer]) for peer in rows]).to(device)
        inputs = tuple(
            torch.stack([_padded(t, size) for t in fields])
            for fields in zip(*(batch.inputs for batch in chosen), strict=True)
        )
        labels = torch.stack([_padded(batch.labels, size) for batch in chosen])
        shares = torch.stack([_shares(len(batch.labels), size) for batch in chosen]).to(device)
        known = [w for peer in rows if (w := self._objectives[peer].weights) is not None]
        weights = torch.stack(known) if known else None
        tail = self._tails.get()
        try:
            with training(tail):
                each = _gradients_of(tail)
                found, losses = each(_by_name(theta, self._shapes), inputs, labels, shares, weights)
        finally:
            self._tails.put(tail)
        flat = torch.cat([found[name].reshape(len(rows), -1) for name in self._shapes], dim=1)
        return like(flat, thetas[peers[0]]), losses


def _gradients_of(tail: nn.Module) -> Callable[..., tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Return the batched gradient: (tensors, inputs, labels, shares, class weights) ↦ (gradients, losses).

    All have the peers as their first dimension; the weights may be None.
    """

    def loss(
        trained: dict[str, torch.Tensor],
        inputs: tuple[torch.Tensor, ...],
        labels: torch.Tensor,
        shares: torch.Tensor,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        each = image_loss(functional_call(tail, trained, inputs), labels, "none", weights)
        return (shares * each).sum()

    def gradients(*given: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        dims = tuple(None if one is None else 0 for one in given)
        each = vmap(grad_and_value(loss), in_dims=dims, randomness="error")
        found: tuple[dict[str, torch.Tensor], torch.Tensor] = each(*given)
        return found

    return gradients


def _batched_attention() -> AbstractContextManager[None]:
    """Return a context in which torch computes attention in the one way that it batches."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context


def room(device: torch.device) -> int:
    """Return how many numbers are held at a time, roughly: on a GPU a quarter of its memory.

    By the size of the memory and not by what is free of it, so that chunks are the same in each run.
    """
    if device.type != "cuda":
        return MEMORY
    return max(MEMORY, int(torch.cuda.get_device_properties(device).total_memory) // 4 // 4)


def padded_size(number: int) -> int:
    """Return the size to which a mini-batch of ``number`` images is padded: at most a third is padding.

    The sizes are 1, 2, 3, 4, 6, 8, 12, 16, 24, …: powers of two, and what lies half-way between.
    """
    power = 1 << max(0, (number - 1).bit_length() - 1)
    return next(size for size in (power, power * 3 // 2, 2 * power) if size >= number)


def _padded(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """Return ``tensor``, (B, …), with its last row repeated up to ``size`` rows."""
    if len(tensor) == size:
        return tensor
    return torch.cat([tensor, tensor[-1:].expand(size - len(tensor), *tensor.shape[1:])])


def _shares(number: int, size: int) -> torch.Tensor:
    """Return the share of each image of a padded mini-batch in its mean loss, (size,); of padding 0."""
    shares = torch.zeros(size)
    shares[:number] = 1.0 / number
    return shares


def _by_name(theta: torch.Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Return the tensors in the rows of ``theta``, (m, q), by name, each with m as its first dimension."""
    parts = torch.split(theta, [shape.numel() for shape in shapes.values()], dim=1)
    return {
        name: part.reshape(len(theta), *shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def why_apart(tail: nn.Module, theta: Vector, probe: MiniBatch) -> str:
    """Return the reason why gradients of ``tail`` must be computed peer by peer; empty if there is none.

    The tail is tried, in training mode, on the images of ``probe``, and its gradient compared with the one
    that is computed alone.

    Parameters
    ----------
    tail : nn.Module
        The tail.
    theta : (q,) float32 array
        The trained parameters with which it is tried.
    probe : MiniBatch
        Some images.
    """
    alone = share_copy(tail)
    shapes = {n: p.shape for n, p in alone.named_parameters() if p.requires_grad}
    pair = tuple(torch.stack([t, t]) for t in (*probe.inputs, probe.labels))
    shares = torch.full(pair[-1].shape[:2], 1.0 / len(probe.labels), device=pair[-1].device)
    two = torch.from_numpy(np.stack([theta, theta])).to(shares.device)
    with training(alone):
        expected, _ = gradient_of(alone, trained_parameters(alone), theta, probe)
        try:
            with _batched_attention():
                found, _ = _gradients_of(alone)(_by_name(two, shapes), pair[:-1], pair[-1], shares, None)
        except (RuntimeError, ValueError) as error:
            return f"torch.func.vmap cannot run its tail: {str(error).strip().splitlines()[0]}"
    flat = torch.cat([found[name][1].reshape(-1) for name in shapes]).cpu().numpy()
    apart = float(np.linalg.norm(flat - expected))
    if not apart <= _EQUAL * float(np.linalg.norm(expected)):
        return f"its gradient by torch.func.vmap is {apart:.1e} off, of {np.linalg.norm(expected):.1e}"
    return ""
