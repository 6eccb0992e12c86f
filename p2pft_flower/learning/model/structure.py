"""The structure of a vision transformer: its blocks in order, ViT-like (`blocks`) or Swin-like (`layers`)."""

from __future__ import annotations

import copy
from typing import Any

from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.model.model_names import SUPPORTED

__all__ = [
    "BEHIND",
    "HEADS",
    "STEM",
    "check_structure",
    "gives_positions",
    "set_submodule",
    "share_copy",
    "stages",
]

HEADS = ("head.", "head_dist.")
"""Prefixes of the heads' parameters; distilled ViTs answer with the mean of two heads."""

BEHIND = ("norm.", "fc_norm.", "attn_pool.", *HEADS)
"""Prefixes of the parameters behind the last block."""

STEM = ("patch_embed", "pos_drop", "patch_drop", "norm_pre", "rope", "rel_pos_bias", "shared_rel_pos")
"""Modules before the first block, and those that make what all blocks are given beside tokens."""

_PARTS = ("norm", "forward_features", "forward_head", "reset_classifier")


def check_structure(name: str, model: nn.Module) -> None:
    """Refuse a model that cannot be cut into trunk and tail.

    Parameters
    ----------
    name : str
        The run-config's ``model``, for the message.
    model : nn.Module
        The model of that name.

    Raises
    ------
    ConfigError
        When parts are missing, or timm's class does more than pass tokens from block to block.
    """
    missing = [part for part in _PARTS if not hasattr(model, part)]
    if not hasattr(model, "blocks") and not hasattr(model, "layers"):
        missing.insert(0, "blocks (or layers of blocks)")
    if missing:
        raise ConfigError(f"model = {name!r} has no {', '.join(missing)}: supported are {SUPPORTED}")
    # Of others nobody knows what they do between the blocks: the tail would answer wrongly.
    if type(model).__module__.startswith("timm."):
        known = (*_PLAIN, *_WITH_POSITIONS)
        if not any(type(model).forward_features is k.forward_features for k in known):  # type: ignore[attr-defined]
            raise ConfigError(
                f"model = {name!r}: timm's {type(model).__name__} does more than pass tokens from block to "
                f"block, so it cannot be cut into trunk and tail; supported are {SUPPORTED}"
            )


_PLAIN = (VisionTransformer, SwinTransformer, SwinTransformerV2)
"""timm's classes whose blocks are given tokens and nothing else."""

_WITH_POSITIONS = (Beit, Eva, VisionTransformerRelPos)
"""timm's classes whose blocks are given positions, too (:mod:`block_arguments`)."""


def gives_positions(model: nn.Module) -> bool:
    """Tell whether the model's blocks are given more than tokens."""
    return any(getattr(type(model), "forward_features", None) is k.forward_features for k in _WITH_POSITIONS)


def stages(model: nn.Module) -> list[str]:
    """Return the dotted names of all modules that tokens pass one after the other between stem and norm.

    These are the blocks, and for Swin also the patch merging before the blocks of each of timm's stages.
    """
    if hasattr(model, "blocks"):
        return [f"blocks.{n}" for n, _ in model.get_submodule("blocks").named_children()]
    names = []
    for i, stage in model.get_submodule("layers").named_children():
        names.append(f"layers.{i}.downsample")
        names += [f"layers.{i}.blocks.{n}" for n, _ in stage.get_submodule("blocks").named_children()]
    return names


def set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule ``name`` by ``module``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def share_copy(module: nn.Module) -> nn.Module:
    """Copy a module without copying the memory of its parameters and buffers, to which nobody may write.

    The copy's parameters are new objects: ``requires_grad`` and ``data`` may be set without an effect on
    ``module``. The buffers are the same objects.
    """
    memo: dict[int, Any] = {id(b): b for b in module.buffers()}
    memo |= {id(p): nn.Parameter(p.data, requires_grad=p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, memo)
