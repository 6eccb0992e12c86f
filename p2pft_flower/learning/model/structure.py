"""The structure of a vision transformer: its blocks in order, and what stands before and behind them.

timm keeps blocks in a list (``blocks``), or in stages (``layers``, ``stages``, ``transformers``) of blocks,
with a change of resolution before them (``downsample``, ``pool``); class-attention has a list of its own. A
table says which lists a class has, and whether its ``forward_features`` does anything between the blocks.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.eva import Eva
from timm.models.hiera import Hiera
from timm.models.maxxvit import MaxxVit
from timm.models.naflexvit import NaFlexVit
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from timm.models.tiny_vit import TinyVit
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from timm.models.xcit import Xcit
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.model.model_names import SUPPORTED

__all__ = [
    "BEHIND",
    "CLASSES",
    "STEM",
    "block_lists",
    "check_structure",
    "gives_positions",
    "heads",
    "is_block",
    "is_replayed",
    "is_resized",
    "set_classifier",
    "set_submodule",
    "share_copy",
    "stages",
    "takes_prompts",
]

HEADS = ("head.", "head_dist.")
"""Prefixes of the heads' parameters; distilled ViTs answer with the mean of two heads."""

BEHIND = ("norm.", "fc_norm.", "attn_pool.", *HEADS)
"""Prefixes of the parameters behind the last block."""

STEM = (
    *("patch_embed", "pos_embed", "pos_drop", "patch_drop", "norm_pre", "stem", "embeds"),
    *("rope", "rel_pos_bias", "shared_rel_pos"),
)
"""Modules before the first block, and those that make what all blocks are given beside tokens."""

_PARTS = ("forward_features", "forward_head", "reset_classifier")

_PLAIN: dict[type, tuple[str, ...]] = {
    VisionTransformer: ("blocks",),
    SwinTransformer: ("layers",),
    SwinTransformerV2: ("layers",),
    Hiera: ("blocks",),
    MaxxVit: ("stages",),
}
"""timm's classes whose blocks are given tokens and nothing else, one by one; their lists of blocks."""

_WITH_POSITIONS: dict[type, tuple[str, ...]] = {
    Beit: ("blocks",),
    Eva: ("blocks",),
    NaFlexVit: ("blocks",),
    VisionTransformerRelPos: ("blocks",),
}
"""timm's classes whose blocks are given positions, too (:mod:`block_arguments`)."""

_REPLAYED: dict[type, tuple[str, ...]] = {
    Cait: ("blocks", "blocks_token_only"),
    PoolingVisionTransformer: ("transformers",),
    SwinTransformerV2Cr: ("stages",),
    TinyVit: ("stages",),
    Xcit: ("blocks", "cls_attn_blocks"),
}
"""timm's classes that do more between the blocks (:mod:`replay`)."""

CLASSES = (*_PLAIN, *_WITH_POSITIONS, *_REPLAYED)
"""timm's classes that can be cut into trunk and tail."""

_BETWEEN = ("downsample", "pool")
"""Names of a stage's part before its blocks."""


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
        When parts are missing, or it is not known what timm's class does between its blocks.
    """
    # Of others nobody knows what they do between the blocks: the tail would answer wrongly.
    if _kind(model) is None and type(model).__module__.startswith("timm."):
        raise ConfigError(
            f"model = {name!r}: timm's {type(model).__name__} does more than pass tokens from block to "
            f"block, so it cannot be cut into trunk and tail; supported are {SUPPORTED}"
        )
    parts = _PARTS if _kind(model) else ("norm", *_PARTS)
    missing = [part for part in parts if not hasattr(model, part)]
    if not any(hasattr(model, part) for part in block_lists(model)):
        missing.insert(0, "blocks (or layers of blocks)")
    if missing:
        raise ConfigError(f"model = {name!r} has no {', '.join(missing)}: supported are {SUPPORTED}")


def _kind(model: nn.Module) -> type | None:
    """Return timm's class whose forward pass the model has, of those that can be cut."""
    own = getattr(type(model), "forward_features", None)
    return next((k for k in CLASSES if own is k.forward_features), None)  # type: ignore[attr-defined]


def gives_positions(model: nn.Module) -> bool:
    """Tell whether the model's blocks are given more than tokens."""
    return _kind(model) in _WITH_POSITIONS


def takes_prompts(model: nn.Module) -> bool:
    """Tell whether learned tokens can stand beside the others in every block, as in a ViT."""
    return _kind(model) in (None, VisionTransformer) and hasattr(model, "blocks")


def is_resized(model: nn.Module) -> bool:
    """Tell whether it is known how the model is built for images of another size than its own."""
    known = (None, VisionTransformer, SwinTransformer, SwinTransformerV2, Beit, Eva, VisionTransformerRelPos)
    return _kind(model) in known


def is_replayed(model: nn.Module) -> bool:
    """Tell whether the model's ``forward_features`` does more than pass tokens from block to block."""
    return _kind(model) in _REPLAYED


def block_lists(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the model's lists of blocks, or of stages of blocks."""
    kind = _kind(model)
    if kind is None:
        return ("blocks",) if hasattr(model, "blocks") else ("layers",)
    return {**_PLAIN, **_WITH_POSITIONS, **_REPLAYED}[kind]


def stages(model: nn.Module) -> list[str]:
    """Return the dotted names of all modules that tokens pass one after the other between stem and norm.

    These are the blocks, and the change of resolution before the blocks of each of timm's stages.
    """
    names = []
    for part in block_lists(model):
        for i, stage in model.get_submodule(part).named_children():
            inner = None if part == "blocks" else getattr(stage, "blocks", None)
            if not isinstance(inner, nn.Module):
                names.append(f"{part}.{i}")
                continue
            names += [f"{part}.{i}.{n}" for n in _BETWEEN if isinstance(getattr(stage, n, None), nn.Module)]
            names += [f"{part}.{i}.blocks.{n}" for n, _ in inner.named_children()]
    return names


def is_block(name: str) -> bool:
    """Tell whether a name of :func:`stages` is a block's."""
    return name.rpartition(".")[2] not in _BETWEEN


def heads(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the names of the parameters that make the logits.

    Where timm's ``head`` also pools and normalises, they are those of its last layer alone.
    """
    classifier = model.get_classifier() if _kind(model) else None  # type: ignore[operator]  # timm's method
    layers = classifier if isinstance(classifier, tuple) else (classifier,)
    found = [f"{name}." for name, module in model.named_modules() if any(module is c for c in layers)]
    return tuple(found) or HEADS


def set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule ``name`` by ``module``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def set_classifier(model: Any, classifier: nn.Module) -> None:
    """Put ``classifier`` where the model has the one that timm's ``get_classifier`` returns."""
    former = model.get_classifier()
    set_submodule(model, next(name for name, module in model.named_modules() if module is former), classifier)


def share_copy(module: nn.Module) -> nn.Module:
    """Copy a module without copying the memory of its parameters and buffers, to which nobody may write.

    The copy's parameters are new objects: ``requires_grad`` and ``data`` may be set without an effect on
    ``module``. The buffers are the same objects.
    """
    memo = _empty_attributes(module) | {id(b): b for b in module.buffers()}
    memo |= {id(p): nn.Parameter(p.data, requires_grad=p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, memo)


def _empty_attributes(module: nn.Module) -> dict[int, Any]:
    """Return a new one, by id, for each empty dict or set among the attributes of all submodules.

    Every module has a dozen, for hooks; ``deepcopy`` would spend most of its time on them.
    """
    kinds = (dict, set, OrderedDict)
    return {
        id(value): type(value)()
        for one in module.modules()
        for value in vars(one).values()
        if type(value) in kinds and not value
    }
