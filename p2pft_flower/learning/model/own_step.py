"""A check that a model of the user's own can be trained: its answer in training mode, and its use of θ.

Some parameters in θ may be used in some steps only (layers dropped at random), some in none (a token for
masks that only pre-training has). If a step does not use a parameter, its gradient is 0. The log names
parameters that no step uses: they are sent and saved, but never change.
"""

from __future__ import annotations

import copy
import logging

import torch
from timm.layers import DropPath, PatchDropout, PatchDropoutWithIndices
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.names import some_names
from p2pft_flower.learning.draws import seeded
from p2pft_flower.learning.model.modes import training
from p2pft_flower.learning.model.own_forward import TOLERANCE
from p2pft_flower.learning.model.split import Parts

__all__ = ["check_own_step"]

STEPS = 4
"""Number of steps in training mode, each with other draws, after which a parameter may count as unused."""

log = logging.getLogger(__name__)


def check_own_step(parts: Parts, input_size: tuple[int, ...], what: str) -> None:
    """Refuse a model that cannot be trained, tried in a copy with two images of noise.

    A warning names trained parameters without a gradient; another tells of a model that answers differently
    in training mode even without drop-out.

    Parameters
    ----------
    parts : Parts
        The model, cut into trunk and tail.
    input_size : tuple of int
        (C, H, W) of an image.
    what : str
        Words that name the model in messages.

    Raises
    ------
    ConfigError
        When the answer in training mode has another form than in eval mode (one number a class), or has no
        gradient by any trained parameter.
    """
    trunk, tail = copy.deepcopy((parts.trunk, parts.tail))
    named = {name: p for name, p in tail.named_parameters() if p.requires_grad}
    device = next(iter(named.values())).device
    noise = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    with seeded(0), torch.no_grad():
        inputs = trunk(noise)
        shape = tail(*inputs).shape
    unused = set(named)

    def step() -> None:
        answer = tail(*inputs)
        if not isinstance(answer, torch.Tensor) or answer.shape != shape or not answer.is_floating_point():
            found = tuple(answer.shape) if isinstance(answer, torch.Tensor) else f"a {type(answer).__name__}"
            raise ConfigError(
                f"{what}: in training mode it answers two images with {found}, not with {tuple(shape)} "
                "floating-point numbers as in eval mode; anything else that it computes for training (other "
                "heads, features, a loss) must not be in its answer"
            )
        loss = nn.functional.cross_entropy(answer, labels)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            unused.difference_update(n for n, g in zip(named, gradients, strict=True) if g is not None)

    for number in range(STEPS):
        with training(tail), seeded(number):
            step()
    with seeded(0):
        step()  # in eval mode nothing is dropped
    _warn_of_training_mode(tail, inputs, what)
    if len(unused) == len(named):
        raise ConfigError(
            f"{what}: its answer depends on no trained parameter in a way that autograd follows, as in "
            "torch.no_grad() or after detach(): nothing could be learned"
        )
    if unused:
        names = some_names(sorted(name.removeprefix("model.") for name in unused))
        log.warning(
            "%s: no step uses the trained %s: sent and saved, never changed by a gradient", what, names
        )


@torch.no_grad()
def _warn_of_training_mode(tail: nn.Module, inputs: tuple[torch.Tensor, ...], what: str) -> None:
    """Warn of a model that answers differently in training mode, even without drop-out or other draws."""
    for module in tail.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, (PatchDropout, PatchDropoutWithIndices)):
            module.prob = 0.0
    with seeded(0):
        scored = tail(*inputs)
    trained = []
    for number in range(STEPS):
        with training(tail), seeded(number):
            trained.append(tail(*inputs))
    largest = float(scored.abs().max())
    drawn = any(float((other - trained[0]).abs().max()) > TOLERANCE * largest for other in trained[1:])
    apart = float((trained[0] - scored).abs().max())
    if not drawn and not apart <= TOLERANCE * largest:
        log.warning(
            "%s: in training mode it answers the same images with other numbers than in eval mode, without "
            "drop-out too (up to %.3g in eval mode, and apart by up to %.3g): it is trained as one model and "
            "scored as another",
            what,
            largest,
            apart,
        )
