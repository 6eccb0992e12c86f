"""The embedded CLIP: two small towers that know letters and their names, in open_clip's folder.

They never saw a digit, nor a digit's name (README.md beside this file).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from p2pft_flower.learning.model.embedded import MEAN, STD
from p2pft_flower.learning.model.tower_names import GLYPH_CLIP, GLYPH_CLIP_FOLDER

__all__ = ["CONFIG_FILE", "MODEL_CONFIG", "WEIGHTS_FILE", "create_glyph_clip", "glyph_clip_tower"]

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"

MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 8, "layers": 3, "width": 64, "head_width": 16, "patch_size": 2},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
"""open_clip's sizes of both towers."""


def _build(num_classes: int) -> VisionTransformer:
    sizes = MODEL_CONFIG["vision_cfg"]
    model = VisionTransformer(
        img_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        embed_dim=sizes["width"],
        depth=sizes["layers"],
        num_heads=sizes["width"] // sizes["head_width"],
        num_classes=num_classes,
        pre_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )
    model.pretrained_cfg = model.default_cfg = {
        "architecture": GLYPH_CLIP,
        "input_size": (3, 8, 8),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": (MEAN,) * 3,
        "std": (STD,) * 3,
        "num_classes": MODEL_CONFIG["embed_dim"],
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }
    return model


def glyph_clip_tower(pretrained: bool = True) -> VisionTransformer:
    """Create the image tower; its head leads to the space of texts, (N, 3, 8, 8) ↦ (N, 32).

    Parameters
    ----------
    pretrained : bool, default True
        Whether the packaged weights are loaded; else all are drawn from torch's global generator.

    Returns
    -------
    VisionTransformer
        timm's model, float32, in eval mode.
    """
    model = _build(MODEL_CONFIG["embed_dim"])
    if pretrained:
        file = GLYPH_CLIP_FOLDER / WEIGHTS_FILE
        state: dict[str, torch.Tensor] = {key: t.float() for key, t in load_file(file).items()}
        model.load_state_dict(checkpoint_filter_fn(state, model), strict=True)
    return model.eval()


def create_glyph_clip(num_classes: int, pretrained: bool = True) -> VisionTransformer:
    """Create the image tower with a new head, drawn from torch's global generator.

    Parameters
    ----------
    num_classes : int
        Number of classes of the task.
    pretrained : bool, default True
        As for :func:`glyph_clip_tower`.
    """
    model = glyph_clip_tower(pretrained)
    model.reset_classifier(num_classes)
    return model.eval()
