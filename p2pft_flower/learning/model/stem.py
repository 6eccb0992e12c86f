"""The share of a model's work that is done before its first block, by which its output is worth storing.

Low-rank updates, adapters and prompts in all blocks leave the stem frozen. One convolution over patches is a
hundredth of a forward pass, and its output is as large as the image. A ResNet before the blocks is up to two
thirds, and its output is small.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from p2pft_flower.learning.data.image_settings import image_settings
from p2pft_flower.learning.model.structure import BEHIND, block_lists

__all__ = ["WORTH_STORING", "stem_share"]

WORTH_STORING = 0.1
"""Least share of the products at which the stem's output is stored.

Of timm's names, those with a ResNet before the blocks have 0.19 to 0.69, ViTamin 0.12 to 0.24, and all others
less than 0.1.
"""


def stem_share(model: nn.Module, first: str) -> float:
    """Return the share, 0 to 1, of a forward pass's products of weights that is done before a block.

    Products in layers with weights count, those of attention matrices do not. A stem of one such layer is not
    measured: its share is 0.

    Parameters
    ----------
    model : nn.Module
        The model.
    first : str
        Name of the block.
    """
    layers = {n: module for n, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    later = (*(f"{part}." for part in block_lists(model)), *BEHIND)
    if sum(not f"{name}.".startswith(later) for name in layers) < 2:
        return 0.0
    done: dict[str, int] = {}
    before: list[int] = []

    def count(layer: Any, _: Any, output: torch.Tensor, *, name: str) -> None:
        done[name] = done.get(name, 0) + output.numel() * layer.weight[0].numel()

    def note(*_: Any) -> None:
        before.append(sum(done.values()))

    hooks = [layer.register_forward_hook(partial(count, name=name)) for name, layer in layers.items()]
    hooks.append(model.get_submodule(first).register_forward_pre_hook(note))
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model(torch.zeros(1, *image_settings(model).input_size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return before[0] / sum(done.values())
