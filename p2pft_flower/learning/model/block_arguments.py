"""What a model's blocks are given beside tokens: rotary embeddings, shared position biases, masks.

The tail runs the last blocks without the model's own forward pass, so it must give them the same. For images
of one size these are constants: they are recorded while two images pass the model, and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.image_settings import image_settings

__all__ = ["Arguments", "block_arguments", "give_arguments", "given_arguments"]

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments behind the tokens, and keyword arguments."""


def block_arguments(model: nn.Module, names: Sequence[str]) -> dict[str, Arguments]:
    """Return the arguments of the blocks ``names``, by name, for images of the size that ``model`` sees.

    Raises
    ------
    ConfigError
        When an argument depends on the image.
    """
    size = image_settings(model).input_size
    first, second = (_recorded(model, names, torch.randn(1, *size, generator=_seeded(k))) for k in range(2))
    for name in names:
        if not _same(first[name], second[name]):
            raise ConfigError(
                f"a {type(model).__name__}'s block {name} is given something that depends on the image, so "
                "the model cannot be cut into trunk and tail"
            )
    return first


def give_arguments(block: nn.Module, arguments: Arguments) -> None:
    """Let ``block`` be called with tokens alone: it is given the recorded ``arguments`` at each call.

    Tensors become buffers of the block, so that they move to another device with it.
    """
    positional, named = arguments

    def kept(key: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        block.register_buffer(f"given_{key}", value, persistent=False)
        return _Buffer(f"given_{key}")

    row = tuple(kept(str(i), value) for i, value in enumerate(positional))
    by_name = {key: kept(key, value) for key, value in named.items()}
    vars(block)[_GIVEN] = (row, by_name)
    block.register_forward_pre_hook(_give, with_kwargs=True)


def given_arguments(block: nn.Module) -> dict[str, Any]:
    """Return the arguments that :func:`give_arguments` gives ``block`` by name; empty if there are none.

    timm's models give their blocks everything but the tokens by name.
    """
    _, by_name = vars(block).get(_GIVEN, ((), {}))
    return {key: _value(block, kept) for key, kept in by_name.items()}


_GIVEN = "arguments_given"
"""Name of the attribute of a block that holds what it is given."""


@dataclass(frozen=True)
class _Buffer:
    """Stands for the block's buffer of this name."""

    name: str


def _value(block: nn.Module, kept: Any) -> Any:
    return getattr(block, kept.name) if isinstance(kept, _Buffer) else kept


def _give(
    block: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    row, _ = vars(block)[_GIVEN]
    return (*args, *(_value(block, kept) for kept in row)), named | given_arguments(block)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _recorded(model: nn.Module, names: Sequence[str], image: torch.Tensor) -> dict[str, Arguments]:
    found: dict[str, Arguments] = {}

    def note(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], *, name: str) -> None:
        found[name] = args[1:], dict(named)

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(partial(note, name=name), with_kwargs=True)
        for name in names
    ]
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model.forward_features(image.to(device))  # type: ignore[operator]  # timm's method
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)
