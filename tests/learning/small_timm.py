"""Small architectures in timm's registry, for tests of weights: built and filtered by timm's code."""

from __future__ import annotations

import itertools
import sys
from functools import partial

from timm.layers import HybridEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.cait import Cait
from timm.models.deit import VisionTransformerDistilled
from timm.models.hiera import Hiera
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from timm.models.tiny_vit import TinyVit
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter
from timm.models.xcit import Xcit
from torch import nn

__all__ = ["MORE", "SMALL", "checkpoint_filter_fn", "default_cfgs", "publish"]

_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
_SWIN = {
    "img_size": 64, "patch_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4,
}  # fmt: skip


class _Backbone(nn.Sequential):
    """A convolution and a batch norm, as a hybrid's backbone has many."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4))


def _hybrid(**options):
    return VisionTransformer(
        **options | {"patch_size": 1}, embed_layer=partial(HybridEmbed, backbone=_Backbone())
    )


def _maxvit(blocks, partition):
    """A MaxViT or CoAtNet of one convolution stage or M stage and one of ``blocks``, for 32 × 32 images."""

    def build(**options):
        cfg = MaxxVitCfg(
            embed_dim=(16, 32), depths=(1, 2), block_type=blocks, stem_width=(8, 16),
            transformer_cfg=MaxxVitTransformerCfg(dim_head=16, window_size=partition, grid_size=partition),
        )  # fmt: skip
        return MaxxVit(cfg, **options)

    return build


def _naflex(**options):
    cfg = NaFlexVitCfg(patch_size=8, embed_dim=16, depth=3, num_heads=2, **options.pop("cfg", {}))
    return NaFlexVit(cfg, **options)


_STAGES = {"img_size": 32, "depths": (2, 2), "num_heads": (2, 4)}

MORE = {
    "small_cait": (Cait, {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}),
    "small_xcit": (Xcit, {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}),
    "small_pit": (
        PoolingVisionTransformer,
        {"img_size": 32, "patch_size": 8, "stride": 4, "base_dims": (8, 8), "depth": (2, 2), "heads": (2, 4)},
    ),
    "small_pit_distilled": (
        PoolingVisionTransformer,
        {
            "img_size": 32, "patch_size": 8, "stride": 4, "base_dims": (8, 8), "depth": (2, 2),
            "heads": (2, 4), "distilled": True,
        },
    ),
    "small_swinv2_cr": (SwinTransformerV2Cr, {**_STAGES, "patch_size": 4, "window_size": 2, "embed_dim": 8}),
    "small_tiny_vit": (
        TinyVit,
        {"embed_dims": (8, 16), "depths": (1, 2), "num_heads": (2, 2), "window_sizes": (4, 2)},
    ),
    "small_hiera": (
        Hiera,
        {
            "img_size": (32, 32), "embed_dim": 8, "stages": (1, 2), "q_pool": 1, "mask_unit_size": (2, 2),
            "mask_unit_attn": (True, False),
        },
    ),
    "small_maxvit": (_maxvit(("M", "M"), (2, 2)), {}),
    "small_coatnet": (_maxvit(("C", "T"), (2, 2)), {}),
    "small_naflexvit": (_naflex, {"cfg": {"global_pool": "avg"}}),
    "small_naflexvit_rope": (
        _naflex,
        {"cfg": {"class_token": True, "global_pool": "token", "rope_type": "axial", "pos_embed": "none"}},
    ),
}  # fmt: skip
"""Families whose models do more between their blocks, or keep them in other lists."""

SMALL = {
    **MORE,
    "small_vit": (VisionTransformer, {}),
    "small_vit_deep": (VisionTransformer, {"depth": 4}),
    "small_vit_wide": (VisionTransformer, {"embed_dim": 24}),
    "small_vit_heads": (VisionTransformer, {"num_heads": 4}),
    "small_vit_patch4": (VisionTransformer, {"patch_size": 4}),
    "small_vit_gap": (VisionTransformer, {"global_pool": "avg"}),
    "small_vit_clip": (VisionTransformer, {"pre_norm": True}),
    "small_vit_scaled": (VisionTransformer, {"init_values": 1e-5}),
    "small_vit_reg": (VisionTransformer, {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True}),
    "small_vit_map": (VisionTransformer, {"global_pool": "map", "class_token": False}),
    "small_siglip_gap": (VisionTransformer, {"global_pool": "avg", "class_token": False, "fc_norm": False}),
    "small_deit_distilled": (VisionTransformerDistilled, {}),
    "small_hybrid": (_hybrid, {}),
    "small_swin": (SwinTransformer, {}),
    "small_swin_deep": (SwinTransformer, {"depths": (2, 4)}),
    "small_swin_s3": (
        SwinTransformer,
        {"depths": (1, 1, 1), "num_heads": (1, 1, 1), "window_size": (2, 4, 2)},
    ),
    "small_swinv2": (SwinTransformerV2, {}),
}
"""Class and arguments of each."""


def _cfg(**changed):
    return {
        "num_classes": 1000,
        "input_size": (3, 32, 32),
        "fixed_input_size": True,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **changed,
    }


def checkpoint_filter_fn(state_dict, model, adapt_layer_scale=False):
    """Translate as timm does for the architecture: each of its modules has a function of this name."""
    own = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", vit_filter)
    if own is vit_filter or type(model) is VisionTransformerDistilled:
        return vit_filter(state_dict, model, adapt_layer_scale=adapt_layer_scale)
    return own(state_dict, model)


_LAST_LINEAR = ("small_vit", "small_siglip", "small_deit", "small_hybrid", "small_cait", "small_xcit")
_LAST_LINEAR += ("small_pit", "small_naflexvit")
"""Beginnings of the names of architectures whose ``head`` is a linear layer."""

default_cfgs = {}
_published = itertools.count()


def publish(architecture, **entries):
    """Put an architecture into timm's registry; each entry is a tag with its ``pretrained_cfg``.

    Returns its new name: one is never registered twice.
    """
    name = architecture if architecture not in default_cfgs else f"{architecture}_{next(_published)}"
    cls, own = SMALL[architecture]
    is_swin = cls in (SwinTransformer, SwinTransformerV2)
    common = {"input_size": (3, 64, 64)} if is_swin else {}
    if "distilled" not in name and not name.startswith(_LAST_LINEAR):
        common["classifier"] = "head.fc"
    if cls is TinyVit:
        common["fixed_input_size"] = False
    if "distilled" in name:
        common = {"classifier": ("head", "head_dist")}
    default_cfgs.update(
        generate_default_cfgs({f"{name}.{tag}": _cfg(**{**common, **cfg}) for tag, cfg in entries.items()})
    )

    def build(pretrained=False, **options):
        return build_model_with_cfg(
            cls,
            name,
            pretrained,
            pretrained_filter_fn=partial(checkpoint_filter_fn, adapt_layer_scale=not is_swin),
            **{**({} if architecture in MORE else _SWIN if is_swin else _VIT), **own, **options},
        )

    build.__name__ = name
    register_model(build)
    return name


for _name in SMALL:
    publish(_name, plain={}, dino={"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)})
