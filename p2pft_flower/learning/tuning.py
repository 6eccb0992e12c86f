"""Trunk and tail: which part of the model is trained, and where the frozen part ends.

The trunk is everything before the first trained block; its output for an image never changes during a
run. The tail is the rest, and the trained parameters lie in it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

from p2pft_flower.errors import ConfigError

__all__ = ["TUNE", "split_model"]

HEADS = ("head.", "head_dist.")
"""Prefixes of the heads' parameters; distilled ViTs answer with the mean of two heads."""

TUNE = ("last-block", "last-blocks:K", "head", "full")


def split_model(model: nn.Module, tune: str) -> tuple[nn.Module, nn.Module]:
    """Cut a ViT into trunk and tail.

    Parameters
    ----------
    model : nn.Module
        Built like timm's VisionTransformer.
    tune : str
        ``"last-block"`` (the paper: last block, final norm, head), ``"last-blocks:K"``, ``"head"``, or
        ``"full"``.

    Returns
    -------
    trunk : nn.Module
        (N, C, H, W) images ↦ (N, T, D) tokens before the tail; frozen, in eval mode. For ``"full"`` the
        identity: the tail takes the images.
    tail : nn.Module
        The trunk's output ↦ (N, classes) logits. Its trained parameters have ``requires_grad`` and the
        names they have in ``model``.

    Raises
    ------
    ConfigError
        When ``tune`` is unknown or asks for more blocks than there are.
    """
    depth = len(model.blocks)  # type: ignore[arg-type]  # a Sequential
    kind, _, argument = tune.partition(":")
    if tune == "full":
        return nn.Identity().eval(), _FullTail(model)
    if tune == "head":
        return _trunk(model, depth), _BlocksTail(model, depth, lambda name: name.startswith(HEADS))
    if tune == "last-block":
        blocks = 1
    elif kind == "last-blocks" and argument.isdecimal():
        blocks = int(argument)
    else:
        raise ConfigError(f"tune = {tune!r} is unknown; choose one of {', '.join(TUNE)}")
    if not 1 <= blocks <= depth:
        raise ConfigError(f"tune = {tune!r}: the model has {depth} blocks, K must be in 1..{depth}")
    return _trunk(model, depth - blocks), _BlocksTail(model, depth - blocks, lambda _: True)


def _trunk(model: nn.Module, depth: int) -> nn.Module:
    trunk = copy.deepcopy(model)
    trunk.blocks = trunk.blocks[:depth]  # type: ignore[index]  # a Sequential
    trunk.norm = nn.Identity()
    trunk.head = nn.Identity()
    trunk.forward = trunk.forward_features  # type: ignore[assignment]  # tokens, not logits
    return trunk.eval().requires_grad_(False)


class _Tail(nn.Module):
    """Keeps frozen modules in eval mode when the tail is trained (the trunk never changes)."""

    def train(self, mode: bool = True) -> _Tail:
        super().train(False)
        if mode:
            for module in self.modules():
                if any(p.requires_grad for p in module.parameters()):
                    # Drop-out layers have no parameters: they follow the trained module that holds them.
                    module.training = True
                    for child in module.children():
                        if next(child.parameters(), None) is None:
                            child.train(True)
        return self


class _BlocksTail(_Tail):
    def __init__(self, model: nn.Module, first: int, trained: Callable[[str], bool]) -> None:
        super().__init__()
        part = copy.deepcopy(model)
        kept = list(part.get_submodule("blocks").named_children())[first:]
        # A Sequential of named children keeps the blocks' numbers, so names stay those of the whole model.
        part.blocks = nn.Sequential(OrderedDict(kept))
        dropped = ("patch_embed", "pos_drop", "patch_drop", "norm_pre")
        for name in (n for n in dropped if hasattr(part, n)):
            setattr(part, name, nn.Identity())
        for name in [n for n, _ in part.named_parameters(recurse=False)]:  # cls_token, pos_embed, …
            setattr(part, name, None)
        for name, parameter in part.named_parameters():
            parameter.requires_grad_(trained(name))
        self.model = part

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.model.norm(self.model.blocks(tokens))  # type: ignore[operator]  # timm's modules
        return self.model.forward_head(tokens)  # type: ignore[operator, no-any-return]


class _FullTail(_Tail):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)  # type: ignore[no-any-return]
