"""Names of models and weights, checked as far as that is possible without torch and timm."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from p2pft_flower.errors import ConfigError, DataError, did_you_mean
from p2pft_flower.learning.model.timm_names import registered_here, timm_names
from p2pft_flower.learning.model.tower_names import GLYPH_CLIP
from p2pft_flower.learning.model.weight_kinds import UnreadableError, look_at_weights
from p2pft_flower.plugins import is_reference

__all__ = ["EMBEDDED", "SUPPORTED", "TIMM_MODULES", "check_model_name", "check_weights", "weights_file"]

EMBEDDED = ("glyph_vit_8", GLYPH_CLIP)
"""Names of this package's models, the keys of ``MODELS`` in ``models.py``; they bring their own weights."""

SUPPORTED = (
    "timm's VisionTransformer (ViT, DeiT, distilled DeiT), VisionTransformerRelPos, NaFlexVit, "
    "SwinTransformer (V1, V2, V2 CR), Beit, Eva (EVA-02, DINOv3, rope ViTs), Cait, Xcit, "
    "PoolingVisionTransformer (PiT), TinyVit, Hiera and MaxxVit (MaxViT, CoAtNet)"
)
"""Words for the models of timm that can be cut into trunk and tail."""

TIMM_MODULES = (
    *("beit", "deit", "eva", "swin_transformer", "swin_transformer_v2"),
    *("vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "vitamin"),
    *("cait", "hiera", "maxxvit", "naflexvit", "pit", "swin_transformer_v2_cr", "tiny_vit", "xcit"),
)
"""Modules of ``timm.models`` that use the classes of :data:`SUPPORTED`, or ones with their forward pass."""

_NEAREST = 3
"""Most names that are offered for an unknown name."""


def check_model_name(name: str) -> None:
    """Refuse an unknown model, and a model that is known to be impossible to cut into trunk and tail.

    Parameters
    ----------
    name : str
        The run-config's ``model``.

    Raises
    ------
    ConfigError
        When the model is unknown (the message gives the nearest names), cannot be cut, or has no weights of
        the tag.
    """
    if name in EMBEDDED or is_reference(name):
        return
    timm = timm_names()
    architecture, dot, tag = name.partition(".")
    module = timm.modules.get(architecture)
    if module is None:
        if registered_here(architecture):
            return
        usable = [*EMBEDDED, *(n for n, m in timm.modules.items() if m in TIMM_MODULES)]
        raise ConfigError(
            f"model = {name!r} is unknown; choose one of {', '.join(EMBEDDED)}, my_module:my_model, or by "
            f"name a model of {SUPPORTED}{_nearest(architecture, usable)}"
        )
    if module not in TIMM_MODULES:
        raise ConfigError(
            f"model = {name!r}: timm's {module} does more than pass tokens from block to block, so it cannot "
            f"be cut into trunk and tail; supported are {SUPPORTED}"
        )
    tags = timm.tags.get(architecture, ())
    if dot and tags and tag not in tags:
        raise ConfigError(
            f"model = {name!r}: timm has no weights tagged {tag!r} for {architecture}; choose one of "
            f"{', '.join(tags)}{did_you_mean(tag, tags)}"
        )


def _nearest(name: str, usable: Sequence[str]) -> str:
    """Return a hint at the models of nearest name, else at those whose name begins like ``name``; or ""."""
    if hint := did_you_mean(name, usable, _NEAREST):
        return hint
    words = name.count("_") + 1
    beginnings = {"_".join(other.split("_")[:words]) for other in usable}
    begun = difflib.get_close_matches(name, beginnings, n=1)
    fitting = sorted((other for other in usable if begun and other.startswith(begun[0])), key=len)
    return f"; did you mean {' or '.join(map(repr, fitting[:_NEAREST]))}?" if fitting else ""


def weights_file(weights: str) -> Path | None:
    """Return the absolute path that the run-config's ``weights`` means; None for ``pretrained`` and ``none``.

    Raises
    ------
    ConfigError
        When ``weights`` is neither of these, nor an absolute path, nor an existing file.
    """
    if weights in ("pretrained", "none"):
        return None
    file = Path(weights).expanduser()
    if not file.is_absolute() and not file.is_file():  # peers may run in another folder
        raise ConfigError(f"weights = {weights!r}: choose pretrained, none, or the absolute path of a file")
    return file.absolute()


def check_weights(model: str, weights: str, *, here: bool) -> None:
    """Refuse weights that cannot be loaded into the model, by the setting and by the file's first bytes.

    Parameters
    ----------
    model, weights : str
        The run-config's values.
    here : bool
        Whether the model runs on this machine, so that a file must exist here; else no file is looked at.

    Raises
    ------
    ConfigError
        When the setting is wrong.
    DataError
        When the file is missing, or its first bytes show that it holds no weights.
    """
    file = weights_file(weights)
    if file is None:
        return
    if model in EMBEDDED or is_reference(model):
        raise ConfigError(f"weights = {weights!r}: model {model!r} brings its own; choose pretrained or none")
    if not here:
        return
    if not file.exists():
        raise DataError(f"weights = {weights!r}: there is no such file on the peers' machine")
    try:
        look_at_weights(file)
    except UnreadableError as error:
        raise DataError(f"model = {model!r}: its weights could not be loaded from {file}: {error}") from error
