"""The embedded model: a small vision transformer for 8 × 8 images whose weights ship with the package.

It was pre-trained on letters without digits (README.md beside this file describes how), so fine-tuning it on
scikit-learn's digits is a transfer task.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Any

from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from p2pft_flower.errors import DataError

__all__ = ["MEAN", "MODEL_NAME", "STD", "WEIGHTS_FILE", "build", "create_glyph_vit"]

MODEL_NAME = "glyph_vit_8"
WEIGHTS_FILE = f"{MODEL_NAME}.safetensors"

MEAN = 0.29
"""Mean grey value, 0..1 (ink is 1), of the glyphs of the pre-training, not of the digits."""
STD = 0.35
"""Standard deviation of the grey values of the glyphs of the pre-training."""


def build(num_classes: int) -> VisionTransformer:
    """Build the model with random weights, drawn from torch's global generator.

    Parameters
    ----------
    num_classes : int
        Number of the head's outputs, at least 1.

    Returns
    -------
    VisionTransformer
        (N, 1, 8, 8) images ↦ (N, ``num_classes``) logits; 16 patches of 2 × 2 and a class token.
    """
    return VisionTransformer(
        img_size=8,
        patch_size=2,
        in_chans=1,
        num_classes=num_classes,
        embed_dim=64,
        depth=4,
        num_heads=4,
        mlp_ratio=4.0,
    )


def create_glyph_vit(num_classes: int, pretrained: bool = True) -> VisionTransformer:
    """Create the embedded model with a new head; the network is never touched.

    Parameters
    ----------
    num_classes : int
        Number of classes of the task. The head is always new, drawn from torch's global generator: seed that
        generator to get the same head again. The letters' head in the file is left out.
    pretrained : bool, default True
        Whether the packaged weights are loaded; else all weights are drawn at random.

    Returns
    -------
    VisionTransformer
        The model, float32, in eval mode. ``pretrained_cfg`` is set, so ``timm.data.resolve_data_config``
        knows the model's images: (1, 8, 8), ink bright on dark.

    Raises
    ------
    DataError
        When the packaged weights do not fit the model: the installation is damaged.
    """
    model = build(num_classes)
    model.pretrained_cfg = model.default_cfg = _config()
    if pretrained:
        with as_file(files(__package__) / WEIGHTS_FILE) as path:
            state = load_file(path)
        state = {key: value for key, value in state.items() if not key.startswith("head.")}
        wanted = {
            key: value.shape for key, value in model.state_dict().items() if not key.startswith("head.")
        }
        found = {key: value.shape for key, value in state.items()}
        if found != wanted:
            differing = sorted(key for key in wanted | found if wanted.get(key) != found.get(key))
            raise DataError(
                f"{WEIGHTS_FILE}: {', '.join(differing)} do not fit the model; install the package again"
            )
        model.load_state_dict(state, strict=False)  # the keys were compared above; only the head is new
    return model.eval()


def _config() -> dict[str, Any]:
    """Return timm's description of the weights, a new object each time, as callers may change it."""
    return {
        "architecture": MODEL_NAME,
        "input_size": (1, 8, 8),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": (MEAN,),
        "std": (STD,),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }
