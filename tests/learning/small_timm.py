"""Small architectures in timm's registry, for tests of weights: built and filtered by timm's code."""

from __future__ import annotations

import itertools
from functools import partial

from timm.layers import HybridEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer import checkpoint_filter_fn as swin_filter
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2 import checkpoint_filter_fn as swinv2_filter
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter
from torch import nn

__all__ = ["SMALL", "checkpoint_filter_fn", "default_cfgs", "publish"]

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


SMALL = {
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
    if isinstance(model, SwinTransformer):
        return swin_filter(state_dict, model)
    if isinstance(model, SwinTransformerV2):
        return swinv2_filter(state_dict, model)
    return vit_filter(state_dict, model, adapt_layer_scale=adapt_layer_scale)


default_cfgs = {}
_published = itertools.count()


def publish(architecture, **entries):
    """Put an architecture into timm's registry; each entry is a tag with its ``pretrained_cfg``.

    Returns its new name: one is never registered twice.
    """
    name = architecture if architecture not in default_cfgs else f"{architecture}_{next(_published)}"
    cls, own = SMALL[architecture]
    is_swin = "swin" in name
    common = {"input_size": (3, 64, 64), "classifier": "head.fc"} if is_swin else {}
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
            **{**(_SWIN if is_swin else _VIT), **own, **options},
        )

    build.__name__ = name
    register_model(build)
    return name


for _name in SMALL:
    publish(_name, plain={}, dino={"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)})
