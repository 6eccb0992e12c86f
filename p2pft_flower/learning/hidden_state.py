"""Whether a model answers by its parameters alone, or keeps a state that training or answering changes.

θ is all that is trained, sent and saved. A buffer that a step of training changes (a memory bank, a moving
average, the vectors of spectral norm) would be shared by the peers of one process, and missing where the tail
is read back. Such a model is found out before the run, by a step on noise.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.draws import seeded
from p2pft_flower.learning.modes import training
from p2pft_flower.learning.names import some_names
from p2pft_flower.learning.split import Parts

__all__ = ["refuse_hidden_state"]

_REMEDY = (
    "answers would depend on more than θ, the only thing that is sent and saved; let the model compute it "
    "anew or leave it as it is, or choose a tune with which this part is frozen"
)


def refuse_hidden_state(parts: Parts, input_size: tuple[int, ...], what: str) -> None:
    """Try in a copy, with four images of noise, whether a step changes anything that is not trained.

    Parameters
    ----------
    parts : Parts
        The model cut in two.
    input_size : tuple of int
        (C, H, W) of an image.
    what : str
        The model, for the message.

    Raises
    ------
    ConfigError
        When a buffer or a frozen parameter has changed, naming it; when the same images have other answers
        afterwards; when an image's answer depends on the other images of its batch.
    """
    trunk, tail = copy.deepcopy((parts.trunk, parts.tail))
    trained = [p for p in tail.parameters() if p.requires_grad]
    noise = torch.randn(4, *input_size, generator=torch.Generator().manual_seed(0)).to(trained[0].device)
    labels = torch.zeros(4, dtype=torch.int64, device=noise.device)

    @torch.no_grad()
    def answer(images: torch.Tensor) -> torch.Tensor:
        return tail(*trunk(images))  # type: ignore[no-any-return]

    with seeded(0):
        first = answer(noise)  # what is computed once, at the first call, is there now
        before = _untrained(trunk, tail)
        with training(tail):
            loss = nn.functional.cross_entropy(tail(*trunk(noise)), labels)
            torch.autograd.grad(loss, trained, allow_unused=True)
        again = answer(noise)
        after = _untrained(trunk, tail)
        apart = torch.cat([answer(noise[:2]), answer(noise[2:])])
    changed = {name for key, name in before | after if not _same(before, after, (key, name))}
    if changed:
        names = some_names(sorted(changed))
        raise ConfigError(f"{what}: a step of training changes {names}, which is not trained: {_REMEDY}")
    if not _close(first, again):
        raise ConfigError(
            f"{what}: after a step of training the same images have other answers at the same parameters, "
            f"though no buffer has changed: {_REMEDY}"
        )
    if not _close(first, apart):
        raise ConfigError(
            f"{what}: the answer to an image depends on the other images of its batch, in eval mode too, as "
            "with batch norm that has track_running_stats = False: what is kept of an image, and its score, "
            "would depend on the images beside it; choose a normalisation that looks at each image alone"
        )


_Tensors = dict[tuple[int, str], torch.Tensor]


def _untrained(*modules: nn.Module) -> _Tensors:
    """Copy what must stay as it is, buffers and frozen parameters, by module and name in the whole model."""
    return {
        (key, name.removeprefix("model.")): tensor.detach().clone()
        for key, module in enumerate(modules)
        for name, tensor in (*module.named_buffers(), *module.named_parameters())
        if not tensor.requires_grad
    }


def _same(before: _Tensors, after: _Tensors, key: tuple[int, str]) -> bool:
    if key not in before or key not in after:
        return False
    one, other = before[key], after[key]
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Say whether two answers differ by rounding at most."""
    scale = float(one.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.allclose(one, other, rtol=0, atol=1e-3 * scale, equal_nan=True)
