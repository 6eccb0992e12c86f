"""A check that training and answering change no state of a model but θ.

Only θ is trained, sent and saved. A buffer that a step of training changes (a memory bank, a moving average,
the vectors of spectral norm) would be shared by the peers of one process, and missing when the tail is read
back. The same holds of a counter of steps and of a random generator of the model's own: a resumed run would
differ from an uninterrupted one. Steps on noise detect such a model before the run.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.names import some_names
from p2pft_flower.learning.draws import seeded
from p2pft_flower.learning.model.modes import training
from p2pft_flower.learning.model.split import Parts
from p2pft_flower.learning.scoring import EVALUATION_BATCH
from p2pft_flower.learning.store.features import TRUNK_BATCH

__all__ = ["refuse_hidden_state"]

log = logging.getLogger(__name__)

_REMEDY = (
    "answers would depend on more than θ, the only thing that is sent and saved; let the model compute it "
    "anew or leave it as it is, or choose a tune with which this part is frozen"
)

_DRAWS = (
    "random draws must come from the global generators of torch, NumPy or Python, which are seeded for each "
    "step, and not from a generator of the model's own"
)

STEPS = 8
"""Number of times that a step of training is tried, since a state may change rarely."""

ROUNDING = 1e-5
"""Largest difference between a step's numbers and those of its repetition, as a share of the largest number.

Kernels that run in parallel may sum in another order.
"""


def refuse_hidden_state(parts: Parts, input_size: tuple[int, ...], what: str) -> None:
    """Refuse a model in which a step of training changes anything but θ; a copy of it is tried on noise.

    A number that a step changes and that is an attribute of a module gives a warning only.

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
        When a buffer or a frozen parameter has changed, or a random generator of a module was used (the
        message names the tensor or generator); when the same images have other answers after the steps; when
        a repeated step, with the same θ, images and seed, has another loss or gradient; when an image's
        answer depends on the other images of its batch.
    """
    trunk, tail = copy.deepcopy((parts.trunk, parts.tail))
    trained = [p for p in tail.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, *input_size, generator=generator).to(trained[0].device)
    labels = torch.zeros(4, dtype=torch.int64, device=noise.device)

    @torch.no_grad()
    def answer(images: torch.Tensor) -> torch.Tensor:
        return tail(*trunk(images))  # type: ignore[no-any-return]

    def step() -> list[torch.Tensor]:
        with training(tail), seeded(0):
            loss = nn.functional.cross_entropy(tail(*inputs), labels)
            return [loss.detach(), *torch.autograd.grad(loss, trained, materialize_grads=True)]

    with seeded(0):
        first = answer(noise)  # values that the first call computes exist now
        before, drawn, counted = _untrained(trunk, tail), _generators(trunk, tail), _numbers(trunk, tail)
        with torch.no_grad():
            inputs = trunk(noise)
        steps = [step() for _ in range(STEPS)]
        again = answer(noise)
        advanced = _changed(drawn, _generators(trunk, tail))
        moved = _changed(counted, _numbers(trunk, tail))
        after = _untrained(trunk, tail)
        apart = torch.cat([answer(noise[:2]), answer(noise[2:])])
        with torch.no_grad():  # the largest batches of the trunk, and then of the tail, in eval mode
            others = torch.randn(EVALUATION_BATCH, *input_size, generator=generator).to(noise.device)
            pieces = torch.chunk(torch.cat([noise, others[4:]]), EVALUATION_BATCH // TRUNK_BATCH)
            kept = [trunk(images) for images in pieces]
            among = tail(*(torch.cat(tensors) for tensors in zip(*kept, strict=True)))[:4]
    changed = {name for key, name in before | after if not _same(before, after, (key, name))}
    if changed:
        names = some_names(sorted(changed))
        raise ConfigError(f"{what}: a step of training changes {names}, which is not trained: {_REMEDY}")
    if advanced:
        raise ConfigError(
            f"{what}: a step of training draws from {some_names(advanced)}, whose state is saved "
            f"nowhere, so that a resumed run would draw others: {_DRAWS}"
        )
    if not _close(first, again):
        raise ConfigError(
            f"{what}: after a step of training the same images have other answers at the same parameters, "
            f"though no buffer has changed: {_REMEDY}"
        )
    if not all(_repeats(steps[0], other) for other in steps[1:]):
        raise ConfigError(
            f"{what}: a step of training that is repeated, with the same parameters, images and seed, has "
            "another loss or gradient, so that a resumed run would not go on as it was: it counts or "
            f"remembers its steps, or draws numbers by itself; {_DRAWS}, and θ is the only thing that a step "
            "may change"
        )
    if not _close(first, apart) or not _close(first, among):
        raise ConfigError(
            f"{what}: the answer to an image depends on the other images of its batch, in eval mode too, as "
            "with batch norm that has track_running_stats = False: its stored output and its score "
            "would depend on the images beside it; choose a normalisation that looks at each image alone"
        )
    if moved:
        log.warning(
            "%s: a step of training changes the number %s, which is not θ: a resumed run begins with it as "
            "the model is built, so the model may not depend on it, now or later",
            what,
            some_names(moved),
        )


_Tensors = dict[tuple[int, str], torch.Tensor]


def _untrained(*modules: nn.Module) -> _Tensors:
    """Return copies of buffers and frozen parameters by (number of the module, name in the whole model)."""
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
    """Return whether two answers differ by no more than rounding."""
    scale = float(one.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.allclose(one, other, rtol=0, atol=1e-3 * scale, equal_nan=True)


def _repeats(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Return whether loss and gradients of two steps differ by no more than rounding."""
    floor = ROUNDING / 10 * max(float(t.nan_to_num(0.0, 0.0, 0.0).abs().max()) for t in one)
    for before, now in zip(one, other, strict=True):
        largest = float(before.nan_to_num(0.0, 0.0, 0.0).abs().max())
        if not torch.allclose(before, now, rtol=0, atol=max(ROUNDING * largest, floor), equal_nan=True):
            return False
    return True


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return sorted(name for name, value in now.items() if name in before and value != before[name])


def _numbers(*modules: nn.Module) -> dict[str, float]:
    """Return the numbers that are attributes of modules, by name in the whole model."""
    return {
        f"{name}.{attribute}".removeprefix("model."): value
        for module in modules
        for name, part in module.named_modules()
        for attribute, value in vars(part).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _generators(*modules: nn.Module) -> dict[str, str]:
    """Return the states of the random generators that are attributes of modules, by name in the whole model.

    An attribute may be a generator, or a container or plain object that holds some.
    """
    states = {}
    for module in modules:
        for name, part in module.named_modules():
            for attribute, value in vars(part).items():
                found = [_state(held) for held in _held(value)]
                if any(found):
                    states[f"{name}.{attribute}".removeprefix("model.")] = "\n".join(found)
    return states


def _held(value: Any, depth: int = 3) -> Iterator[Any]:
    """Yield a value and its contents, through at most ``depth`` nested containers and plain objects."""
    if isinstance(value, (nn.Module, torch.Tensor, np.ndarray, str, bytes)):
        return
    yield value
    if not depth:
        return
    if isinstance(value, Mapping):
        held: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        held = value
    elif isinstance(value, partial):
        held = (*value.args, *value.keywords.values())
    elif not isinstance(getattr(value, "__self__", None), (type(None), type, ModuleType)):
        held = (value.__self__,)  # a method of an object
    else:
        held = getattr(value, "__dict__", {}).values() if not isinstance(value, (type, ModuleType)) else ()
    for one in list(held):
        yield from _held(one, depth - 1)


def _state(value: Any) -> str:
    """Return the state of a random generator as text; empty for other values."""
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, (np.random.RandomState, np.random.BitGenerator)):
        return repr(value.get_state() if isinstance(value, np.random.RandomState) else value.state)
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if isinstance(value, torch.Generator):
        return repr(value.get_state().tolist())
    return ""
