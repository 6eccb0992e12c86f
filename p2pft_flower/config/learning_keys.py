"""What the keys on the learning problem may say, and beside which others they mean something."""

from __future__ import annotations

__all__ = ["CHOICES", "HANDED_ON", "NO_MODEL", "PROMPT", "WITH_FEATURES"]

CHOICES = {
    "device": ("auto", "cpu", "cuda", "mps"),
    "cache_dtype": ("float16", "float32"),
    "bad_images": ("refuse", "skip"),
    "trunk_dtype": ("auto", "float32", "bfloat16"),
    "interpolation": ("", "nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
    "head": ("random", "text"),
    "loss": ("auto", "ce", "bce"),
    "class_weights": ("none", "balanced"),
    "batched": ("auto", "true", "false"),
    "keep": ("last", "best:balanced-accuracy", "best:loss"),
}
"""All values of each learning key that has only a few."""

HANDED_ON = ("problem", "batch_size", "seed", "data_dir")
"""Learning keys that are handed on to a ``problem`` of the user's own; the others are for images."""

PROMPT = "a photo of a {}."
"""The default of ``prompts``."""

NO_MODEL = "none"
"""The ``model`` of a dataset of features, which a model made elsewhere."""

WITH_FEATURES = (
    *("problem", "model", "tune", "head", "text_embeddings", "text_tower", "prompts", "class_names"),
    *("device", "dataset", "shots", "partition", "validation", "keep", "loss"),
    *("evaluate_on", "class_weights", "batch_size", "batched"),
    *("dp_clip", "dp_noise", "dp_delta", "seed"),
)
"""Learning keys that mean something for a dataset of features; the others are for images."""
