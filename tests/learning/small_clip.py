"""Image towers in timm's registry, built and filtered by timm: the embedded CLIP's, and one as SigLIP's."""

from __future__ import annotations

from functools import partial

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

__all__ = ["checkpoint_filter_fn", "default_cfgs", "register"]

_CFG = {
    **{"input_size": (3, 8, 8), "num_classes": 32, "mean": (0.29,) * 3, "std": (0.35,) * 3, "crop_pct": 1.0},
    **{"interpolation": "bicubic", "classifier": "head", "first_conv": "patch_embed.proj"},
}

_SIGLIP = {**_CFG, "num_classes": 0}
default_cfgs = generate_default_cfgs({"small_clip_tower.letters": _CFG, "small_siglip_tower.none": _SIGLIP})


def register():
    """Register the architectures, once."""
    if timm.is_model("small_clip_tower"):
        return

    def small_clip_tower(pretrained=False, **options):
        sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 64, "depth": 3, "num_heads": 4}
        return build_model_with_cfg(
            VisionTransformer,
            "small_clip_tower",
            pretrained,
            pretrained_filter_fn=partial(checkpoint_filter_fn),
            **{**sizes, "pre_norm": True, "norm_layer": partial(nn.LayerNorm, eps=1e-5), **options},
        )

    def small_siglip_tower(pretrained=False, **options):
        sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
        own = {"class_token": False, "global_pool": "map"}
        return build_model_with_cfg(
            VisionTransformer, "small_siglip_tower", pretrained, **{**sizes, **own, **options}
        )

    for architecture in (small_clip_tower, small_siglip_tower):
        architecture.__module__ = __name__
        register_model(architecture)
