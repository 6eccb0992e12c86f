"""The flat vector θ: the trained parameters of a tail, in the order of ``named_parameters``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import vector_to_parameters

from p2pft_flower.learning.device_vectors import DeviceVector

__all__ = ["as_tensor", "flat", "like", "set_theta", "tail_vector", "trained_parameters"]

Vector = npt.NDArray[np.float32]


def trained_parameters(tail: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters of ``tail`` in θ's order, which is that of ``named_parameters``."""
    return [p for p in tail.parameters() if p.requires_grad]


def tail_vector(tail: nn.Module) -> Vector:
    """Return θ, (q,) float32: the trained parameters of ``tail`` as one vector."""
    return flat(trained_parameters(tail)).detach().cpu().numpy().copy()


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return all numbers of ``tensors`` as one vector, also of tensors whose memory has gaps."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def as_tensor(theta: Vector | DeviceVector) -> torch.Tensor:
    """Return ``theta``, (q,) float32, as a tensor on its memory, to which nobody may write.

    torch warns of read-only arrays, as θ^0 is: those are copied.
    """
    if isinstance(theta, DeviceVector):
        return theta.tensor
    return torch.from_numpy(theta if theta.flags.writeable else theta.copy())


def like(tensor: torch.Tensor, theta: Vector | DeviceVector) -> Vector:
    """Return a vector, (q,), where ``theta`` is: on its device, or as an array in the CPU's memory."""
    # A DeviceVector does what methods and hosts ask of an array.
    return cast("Vector", DeviceVector(tensor)) if isinstance(theta, DeviceVector) else tensor.cpu().numpy()


def set_theta(trained: Sequence[nn.Parameter], theta: Vector | DeviceVector) -> None:
    """Let ``trained`` have the numbers of ``theta``, (q,) float32, without a copy if that is possible."""
    # Views on theta, no copy: neither forward nor backward writes to parameters.
    vector_to_parameters(as_tensor(theta).to(trained[0].device), trained)
