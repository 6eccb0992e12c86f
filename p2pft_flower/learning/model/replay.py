"""Tails that are a model's own forward pass, begun in the middle, for models with more than a row of blocks.

Between the blocks, some of timm's models change the layout of the tokens, pool them in two streams, or add a
class token. The tail runs the model's own ``forward_features``, so all that follows the cut is timm's code.
The inputs of the first module behind the cut are stored. A module that ran before the cut is replaced by
one that does not compute. It returns what the module returned: the constants (a grid's height and width,
say), the stored inputs where the module made them, and zeros of the right shape for all else that depends on
the image, which nothing behind the cut reads. If something does read it, the tail's answer to a probe is not
the model's, and the model is refused (:mod:`own_forward`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.image_settings import image_settings
from p2pft_flower.learning.model.structure import set_submodule

__all__ = ["Given", "Recording", "enter", "record", "stop_at", "stopped"]


class Recording(NamedTuple):
    """The record of a forward pass until it reached a module, the cut.

    Attributes
    ----------
    cut : str
        Name of the module.
    inputs : list
        The cut's inputs, those by name behind the others: `_Stored` for a tensor with a row an image, else
        the value.
    names : tuple of str
        The names of the last inputs.
    past : dict of str to Any
        For the outermost modules that ran before the cut, their outputs: `_Stored` for one of the cut's
        inputs, `_Varying` for another tensor with a row an image, else the value.
    input_size : tuple of int
        (C, H, W) of an image.
    """

    cut: str
    inputs: list[Any]
    names: tuple[str, ...]
    past: dict[str, Any]
    input_size: tuple[int, int, int]


@dataclass(frozen=True)
class _Varying:
    """Stands for a tensor with a row an image; ``shape`` is a row's."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Stored:
    """Stands for one of the tail's inputs, by its number."""

    number: int


@dataclass
class _Entered:
    """The inputs with which the tail is entered, while it runs; each (N, …)."""

    tensors: tuple[torch.Tensor, ...] = field(default=())


class _Reached(Exception):  # noqa: N818 - no error: it leaves the forward pass at the cut
    """Raised with the inputs of the cut."""

    def __init__(self, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        super().__init__()
        self.inputs, self.names = [*args, *named.values()], tuple(named)


class _Stop(nn.Module):
    """Stands where the cut was: the forward pass ends here."""

    def forward(self, *args: Any, **named: Any) -> None:
        raise _Reached(args, named)


def record(model: nn.Module, cut: str) -> Recording:
    """Return the record of the model's ``forward_features`` until it reaches the module ``cut``.

    One image and then two others pass the model: a value that differs between them depends on the image.

    Raises
    ------
    ConfigError
        When a part before the cut returns a value that depends on the image but has no row for each image, or
        returns such a value in a tuple, or when a part runs twice before the cut.
    """
    size = image_settings(model).input_size
    (inputs, names, past), (inputs2, _, past2) = (
        _seen(model, cut, torch.randn(n, *size, generator=torch.Generator().manual_seed(n))) for n in (1, 2)
    )

    def compared(what: str, one: Any, two: Any) -> Any:
        if isinstance(one, (tuple, list)) and isinstance(two, (tuple, list)) and len(one) == len(two):
            return tuple(compared(what, a, b) for a, b in zip(one, two, strict=True))
        if not isinstance(one, torch.Tensor):
            same = bool(one == two)
        elif one.ndim and one.shape[0] == 1 and two.shape == (2, *one.shape[1:]):
            return _Varying(tuple(one.shape[1:]))
        else:
            same = torch.equal(one, two)
        if not same:
            raise ConfigError(
                f"a {type(model).__name__} cannot be cut into trunk and tail at {cut}: {what} depends on the "
                "image and has no row an image"
            )
        return one

    given = [compared(f"input {i}", a, b) for i, (a, b) in enumerate(zip(inputs, inputs2, strict=True))]
    if any(isinstance(seen, tuple) and any(isinstance(v, _Varying) for v in seen) for seen in given):
        raise ConfigError(f"a {type(model).__name__} cannot be cut at {cut}: it is given tensors in a tuple")
    numbers = {id(value): n for n, value in enumerate(_varying(inputs, given))}

    def numbered(one: Any, seen: Any) -> Any:
        if isinstance(seen, tuple):
            return tuple(map(numbered, one, seen))
        return _Stored(numbers[id(one)]) if isinstance(seen, _Varying) and id(one) in numbers else seen

    outputs = {name: compared(f"the output of {name}", past[name], past2[name]) for name in past}
    return Recording(
        cut,
        [numbered(one, seen) for one, seen in zip(inputs, given, strict=True)],
        names,
        {name: numbered(past[name], seen) for name, seen in outputs.items()},
        size,
    )


def _varying(values: Sequence[Any], seen: Sequence[Any]) -> list[torch.Tensor]:
    """Return those of the cut's inputs ``values`` that were seen to have a row an image."""
    kinds = (_Varying, _Stored)
    return [value for value, kind in zip(values, seen, strict=True) if isinstance(kind, kinds)]


def _seen(
    model: nn.Module, cut: str, images: torch.Tensor
) -> tuple[list[Any], tuple[str, ...], dict[str, Any]]:
    """Return the inputs of ``cut``, the names of the last of them, and the outputs of modules before it."""
    past: dict[str, list[Any]] = {}
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        past.setdefault(names[module], []).append(output)

    def stop(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _Reached(args, named)

    hooks = [module.register_forward_hook(note) for module in names]
    hooks.append(model.get_submodule(cut).register_forward_pre_hook(stop, with_kwargs=True, prepend=True))
    try:
        with torch.no_grad():
            model.forward_features(images.to(next(model.parameters()).device))  # type: ignore[operator]
    except _Reached as reached:
        outermost = {
            name: outputs
            for name, outputs in past.items()
            if not any(name[:i] in past for i, letter in enumerate(name) if letter == ".")
        }
        twice = [name for name, outputs in outermost.items() if len(outputs) > 1]
        if twice:
            raise ConfigError(
                f"a {type(model).__name__} cannot be cut into trunk and tail at {cut}: {twice[0]} runs twice"
            ) from None
        return reached.inputs, reached.names, {name: outputs[0] for name, outputs in outermost.items()}
    finally:
        for hook in hooks:
            hook.remove()
    raise ConfigError(f"a {type(model).__name__} cannot be cut at {cut}: its forward_features never runs it")


def stop_at(model: nn.Module, recording: Recording, later: Sequence[str]) -> None:
    """Make a trunk of ``model``: it ends at the cut, and the modules ``later`` are left out."""
    for name in later:
        set_submodule(model, name, nn.Identity())
    set_submodule(model, recording.cut, _Stop())


def stopped(model: nn.Module, recording: Recording, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the inputs of the cut that have a row an image, from a model that :func:`stop_at` made."""
    try:
        model.forward_features(images)  # type: ignore[operator]  # timm's method
    except _Reached as reached:
        return tuple(_varying(reached.inputs, recording.inputs))
    raise RuntimeError(f"the forward pass did not reach {recording.cut}")


def enter(model: nn.Module, recording: Recording) -> Given:
    """Make a tail of ``model``, whose ``forward_features`` then begins at the cut.

    Returns
    -------
    Given
        Runs the tail on the cut's inputs. It must be part of the same module as ``model``.
    """
    entered = _Entered()
    for name, output in recording.past.items():
        set_submodule(model, name, _Past(output, entered))
    first = model.get_submodule(recording.cut)
    given = Given(recording, entered)
    vars(first)["given"] = given  # no child of it: a sequence would run the child
    first.register_forward_pre_hook(_give, with_kwargs=True, prepend=True)
    return given


def _give(first: nn.Module, _: tuple[Any, ...], __: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given: Given = vars(first)["given"]
    return given.values()


class _Constants(nn.Module):
    """Tensors that do not depend on the image, as buffers, so that they move to another device."""

    def __init__(self, entered: _Entered) -> None:
        super().__init__()
        self.entered = entered

    def kept(self, value: Any) -> Any:
        """Return ``value`` with a name of a buffer in the place of each tensor."""
        if isinstance(value, tuple):
            return tuple(map(self.kept, value))
        if not isinstance(value, torch.Tensor):
            return value
        name = f"constant_{len(self._buffers)}"
        self.register_buffer(name, value, persistent=False)
        return _Buffer(name)

    def value(self, kept: Any) -> Any:
        """Return the value for which `kept` stands; zeros for a tensor that depends on the image."""
        if isinstance(kept, tuple):
            return tuple(map(self.value, kept))
        if isinstance(kept, _Stored):
            return self.entered.tensors[kept.number]
        if isinstance(kept, _Varying):
            entering = self.entered.tensors[0]
            return entering.new_zeros((1, *kept.shape)).expand(len(entering), *kept.shape)
        return getattr(self, kept.name) if isinstance(kept, _Buffer) else kept


@dataclass(frozen=True)
class _Buffer:
    """Stands for the module's buffer of this name."""

    name: str


class _Past(_Constants):
    """Stands where a module before the cut was, without its work."""

    def __init__(self, output: Any, entered: _Entered) -> None:
        super().__init__(entered)
        self.output = self.kept(output)

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.value(self.output)


class Given(_Constants):
    """The inputs of the cut: those of the tail in their places, and the constants."""

    def __init__(self, recording: Recording, entered: _Entered) -> None:
        super().__init__(entered)
        self.inputs, self.names = [self.kept(value) for value in recording.inputs], recording.names
        self.input_size = recording.input_size

    def features(self, model: nn.Module, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the output of the model's ``forward_features`` for these inputs of the cut, each (N, …)."""
        first = tensors[0]
        images = first.new_zeros((1, *self.input_size)).expand(len(first), *self.input_size)
        self.entered.tensors = tensors
        try:
            return model.forward_features(images)  # type: ignore[operator, no-any-return]  # timm's method
        finally:
            self.entered.tensors = ()

    def values(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the inputs of the cut: those by place, and those by name."""
        row = list(map(self.value, self.inputs))
        cut = len(row) - len(self.names)
        return tuple(row[:cut]), dict(zip(self.names, row[cut:], strict=True))
