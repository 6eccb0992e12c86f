"""What is on while a gradient is taken: drop-out and drop-path beside what is trained, and no more.

PyTorch's training mode means two things: random draws, and statistics that batch normalisation gathers. Draws
are a function of seed, peer and mini-batch. Statistics would be a state that training changes and that θ does
not hold: a tail's file would lack it, and peers of one process would share it. So layers with running
statistics are in eval mode always. Their scales and shifts are parameters like others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from p2pft_flower.learning.model.added import PROMPTS
from p2pft_flower.learning.model.structure import STEM

__all__ = ["keeps_statistics", "switched_on", "training"]


@contextmanager
def training(tail: nn.Module) -> Iterator[None]:
    """Put ``tail`` into training mode for the ``with`` block; outside it, it is in eval mode."""
    tail.train()
    try:
        yield
    finally:
        tail.eval()


def keeps_statistics(module: nn.Module) -> bool:
    """Say whether a module itself has running statistics, as batch norm of every kind has.

    They are known by torch's names, which timm's layers and others' use too: buffers ``running_mean`` and
    ``running_var``. A layer that keeps none (``track_running_stats = False``) has no such buffer.
    """
    return any(name.startswith("running_") for name, _ in module.named_buffers(recurse=False))


def switched_on(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a tuned model that are in training mode while its tail is trained.

    - Modules that hold a trained parameter, themselves or in a part. Prompts do not count: they are another
      input of a block, whose own weights stay frozen.
    - Drop-out, drop-path and whatever else has no parameters: directly below such a module.
    - Not the stem before the first block, where neither it nor the position embedding is trained: what is
      frozen answers as the trunk does.
    - Never a layer with running statistics (:func:`keeps_statistics`).

    Parameters
    ----------
    model : nn.Module
        Its trained parameters have ``requires_grad``.
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
    return [module for key, module in on.items() if key not in off and not keeps_statistics(module)]
