"""θ as tensors by name, as files of weights have them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from p2pft_flower.errors import DataError

__all__ = ["named_digest", "named_tensors", "vector_of", "weights_digest"]


def named_tensors(tail: nn.Module, theta: npt.NDArray[np.float32]) -> dict[str, torch.Tensor]:
    """Return the tensors in ``theta``, (q,) float32, by their names in the whole model."""
    trained = _trained(tail)
    pieces = torch.split(torch.from_numpy(theta.copy()), [p.numel() for p in trained.values()])
    return {name: piece.view_as(p).clone() for (name, p), piece in zip(trained.items(), pieces, strict=True)}


def vector_of(tail: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> npt.NDArray[np.float32]:
    """Return θ, (q,) float32, from tensors by name; the inverse of :func:`named_tensors`.

    Raises
    ------
    DataError
        When a tensor is missing, unknown, or has another shape; the message names the tensor and ``source``.
    """
    wanted = _trained(tail)
    odd = sorted(wanted.keys() ^ tensors.keys())
    if odd:
        where = "missing from" if odd[0] in wanted else "not trained here, but in"
        raise DataError(f"tensor {odd[0]!r} is {where} {source}: the model or tune setting differs")
    for name, p in wanted.items():
        found = tensors[name]
        if found.shape != p.shape:
            raise DataError(
                f"tensor {name!r} in {source} has shape {tuple(found.shape)}, not {tuple(p.shape)}"
            )
    return torch.cat([tensors[name].reshape(-1).float() for name in wanted]).numpy()


def _trained(tail: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by their names in the whole model, in the order of θ."""
    return {n.removeprefix("model."): p for n, p in tail.named_parameters() if p.requires_grad}


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256, hexadecimal, of the names and values of a module's tensors."""
    return named_digest(module.state_dict())


def named_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256, hexadecimal, of names and values of ``tensors``."""
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
