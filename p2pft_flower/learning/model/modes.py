"""Training mode while a gradient is computed: drop-out and drop-path of trained modules are on, nothing else.

PyTorch's training mode means two things: random draws, and statistics that batch normalisation gathers. Draws
are a function of seed, peer and mini-batch. Statistics would be a state outside θ that training changes: a
tail's file would lack it, and the peers of one process would share it. So layers with running statistics are
always in eval mode. Their scales and shifts are parameters like others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from p2pft_flower.learning.model.added import PROMPTS
from p2pft_flower.learning.model.structure import STEM

__all__ = ["has_statistics", "switched_on", "training"]


@contextmanager
def training(tail: nn.Module) -> Iterator[None]:
    """Put ``tail`` into training mode for the ``with`` block, and into eval mode afterwards."""
    tail.train()
    try:
        yield
    finally:
        tail.eval()


def has_statistics(module: nn.Module) -> bool:
    """Return whether a module itself has running statistics, as batch norm of every kind has.

    A buffer counts if its name begins with ``running_``, as torch's ``running_mean`` and ``running_var`` do;
    timm's and others' layers use these names too. With ``track_running_stats = False`` a layer has none.
    """
    return any(name.startswith("running_") for name, _ in module.named_buffers(recurse=False))


def switched_on(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a tuned model that are in training mode while its tail is trained.

    - Modules that hold a trained parameter, themselves or in a part. Prompts do not count: they are another
      input of a block whose own weights stay frozen.
    - Drop-out, drop-path and other modules without parameters, directly below such a module.
    - Not the stem before the first block, unless the stem or a parameter directly in the model (class token,
      position embedding) is trained: a frozen stem answers as the trunk does.
    - Never a layer with running statistics (:func:`has_statistics`).

    Parameters
    ----------
    model : nn.Module
        The model, whose trained parameters have ``requires_grad``.
    """
    trained = {
        id(p)
        for name, p in model.named_parameters()
        if p.requires_grad and name.rpartition(".")[2] != PROMPTS
    }

    def trains(module: nn.Module) -> bool:
        return any(id(p) in trained for p in module.parameters())

    on: dict[int, nn.Module] = {}
    for module in filter(trains, model.modules()):
        on[id(module)] = module
        for child in module.children():
            if next(child.parameters(), None) is None:
                on |= {id(part): part for part in child.modules()}
    stem = [module for name, module in model.named_modules() if name.partition(".")[0] in STEM]
    tokens = any(id(p) in trained for p in model.parameters(recurse=False))
    off = {id(module) for module in stem} if not tokens and not any(map(trains, stem)) else set()
    return [module for key, module in on.items() if key not in off and not has_statistics(module)]
