"""Vision transformers by name, with their weights and a new, seeded head."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_data_config
from timm.models import load_checkpoint
from torch import nn

from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.draws import torch_seeded
from p2pft_flower.learning.embedded import MODEL_NAME, create_glyph_vit
from p2pft_flower.learning.structure import SUPPORTED, check_structure
from p2pft_flower.plugins import is_reference, load_reference

__all__ = ["MODELS", "bare_model", "create_model", "data_config", "preprocessing"]

MODELS: dict[str, Callable[..., nn.Module]] = {MODEL_NAME: create_glyph_vit}

_PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")

log = logging.getLogger(__name__)


def create_model(name: str, weights: str, num_classes: int, seed: int) -> nn.Module:
    """Build a model with pre-trained weights and a head of ``num_classes`` drawn from ``seed``.

    Parameters
    ----------
    name : str
        A key of :data:`MODELS`, a timm ViT, DeiT or Swin such as ``vit_tiny_patch16_224``, or
        ``"my_module:my_model"``: a callable ``(num_classes, pretrained) -> nn.Module`` that is built like
        them (``blocks``, or ``layers`` with ``downsample`` and ``blocks``; ``norm``, ``forward_features``,
        ``forward_head``, ``reset_classifier``; each block takes the tokens of the one before and nothing
        else).
    weights : str
        ``"pretrained"``, ``"none"``, or the absolute path of a checkpoint that timm can read.
    num_classes : int
        Classes of the dataset.
    seed : int
        Draws the new head, and all weights where ``weights = "none"``.

    Raises
    ------
    ConfigError
        When there is no such model, or it is built otherwise.
    DataError
        When the weights are not there or do not fit.
    """
    pretrained, file = _wanted(weights)
    with torch_seeded(seed):
        model = _build(name, pretrained, file, num_classes)
        check_structure(name, model)
        torch.manual_seed(seed)  # the head must not depend on how many numbers the rest of the model drew
        model.reset_classifier(num_classes)  # type: ignore[operator]  # timm's method, looked for above
    if not pretrained:
        log.warning(
            "weights = none: %s starts from RANDOM weights; its figures say nothing about transfer", name
        )
    return model.eval().requires_grad_(False)


def bare_model(name: str, num_classes: int) -> nn.Module:
    """Build a model to load a whole state dict into; what it holds until then is random.

    Raises
    ------
    ConfigError
        When there is no such model, or it is built otherwise.
    """
    model = _build(name, False, None, num_classes)
    check_structure(name, model)
    return model.eval().requires_grad_(False)


def _wanted(weights: str) -> tuple[bool, Path | None]:
    if weights in ("pretrained", "none"):
        return weights == "pretrained", None
    file = Path(weights).expanduser()
    if not file.is_absolute():
        raise ConfigError(f"weights = {weights!r}: choose pretrained, none, or the absolute path of a file")
    if not file.is_file():
        raise DataError(f"weights = {weights!r}: there is no such file on the peers' machine")
    return True, file


def _build(name: str, pretrained: bool, file: Path | None, num_classes: int) -> nn.Module:
    options: dict[str, Any] = {"num_classes": num_classes, "pretrained": pretrained}
    if is_reference(name) or name in MODELS:
        if file is not None:
            raise ConfigError(
                f"weights = {str(file)!r}: model {name!r} brings its own; choose pretrained or none"
            )
        factory = MODELS[name] if name in MODELS else load_reference(name, key="model")
        return factory(**options)
    if not timm.is_model(name):
        raise ConfigError(
            f"model = {name!r} is unknown; choose one of {', '.join(MODELS)}, my_module:my_model, or by name "
            f"a model of {SUPPORTED}"
        )
    try:
        if file is None:
            return timm.create_model(name, **options)  # type: ignore[no-any-return]  # untyped library
        model: nn.Module = timm.create_model(name, num_classes=0)  # the file's head is left out
        odd = _load(model, file)
    except Exception as error:  # the readers of timm, torch and safetensors raise what they like
        source = file or "timm's hub (offline? give weights = /path/file.safetensors)"
        raise DataError(
            f"model = {name!r}: its weights could not be loaded from {source}: {error}"
        ) from error
    if odd:
        raise DataError(
            f"weights = {str(file)!r} do not fit model {name!r}: {len(odd)} tensors, as {odd[0]!r}"
        )
    return model


def _load(model: nn.Module, file: Path) -> list[str]:
    """Load a checkpoint; return the names of what it lacks, or has in blocks that the model has not.

    timm's own ``pretrained`` fills in what it finds and leaves the rest random without a word.
    """
    other_names = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    keys = load_checkpoint(model, str(file), strict=False, filter_fn=other_names, weights_only=True)
    if keys is None:  # .npz: timm's reader looks every tensor up by name
        return []
    return [
        *keys.missing_keys,
        *(key for key in keys.unexpected_keys if key.startswith(("blocks.", "layers."))),
    ]


def data_config(model: nn.Module) -> dict[str, Any]:
    """Return how the very weights want images: input size, interpolation, mean, std, crop."""
    config = resolve_data_config({}, model=model)
    return {key: config[key] for key in _PREPROCESSING}


def preprocessing(model: nn.Module) -> Callable[[Any], torch.Tensor]:
    """Return PIL image ↦ (C, H, W) float32, as the model's own data config says (size, crop, mean, std)."""
    config = data_config(model)
    transform = create_transform(**config, is_training=False)
    mode = "L" if config["input_size"][0] == 1 else "RGB"
    return lambda image: transform(image.convert(mode))
