"""Models for images of another size than their own: position embeddings and windows that fit that size."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from timm.models.naflexvit import NaFlexVit
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.image_settings import image_settings
from p2pft_flower.learning.model.model_sizes import check_patches
from p2pft_flower.learning.model.structure import is_resized

__all__ = ["options_for_size", "quiet_timm", "resize_model"]

log = logging.getLogger(__name__)


def options_for_size(name: str, model: Any, size: int) -> dict[str, Any]:
    """Return timm's options to build the model for images of ``size`` × ``size`` pixels.

    Parameters
    ----------
    name : str
        The model's name, for messages.
    model : nn.Module
        The model as timm builds it without options.
    size : int
        Pixels of a side; 0: the model's own size, which needs no options.

    Raises
    ------
    ConfigError
        When the patches, or a Swin's windows, do not divide the size, or the family has one size.
    """
    if not size:
        return {}
    if isinstance(model, NaFlexVit):  # it fits its positions to each image itself
        check_patches(name, size, model.get_patch_size())
        return {}
    own = model.patch_embed.img_size if is_resized(model) else image_settings(model).input_size[-2:]
    if (size, size) == tuple(own):
        return {}
    if not is_resized(model):
        raise ConfigError(
            f"image-size = {size}: {name}, a {type(model).__name__}, is used at its own size alone, "
            f"{own[0]} × {own[1]} pixels; leave image-size at 0, or choose another name"
        )
    grid = model.patch_embed.grid_size
    check_patches(name, size, tuple(s // g for s, g in zip(own, grid, strict=True)))
    if not hasattr(model, "layers"):
        return {"img_size": size}
    windows = _windows(name, model, size)
    named = ", ".join(dict.fromkeys(f"{w} × {w}" for w in windows))
    log.info("image-size = %d: %s has windows of %s tokens, as many as before", size, name, named)
    same = len(set(windows)) == 1 or isinstance(model, SwinTransformerV2)  # V2: a small stage is one window
    return {"img_size": size, "window_size": windows[0] if same else windows}


def _windows(name: str, model: Any, size: int) -> tuple[int, ...]:
    """Return the side of each stage's windows for another image size; the number of windows does not change.

    Swin's own fine-tuning at larger sizes does the same; tables of relative positions are resampled.

    Raises
    ------
    ConfigError
        When the windows do not divide the size; the message gives sizes that fit.
    """
    grid = model.patch_embed.grid_size[0]
    patch = model.patch_embed.img_size[0] // grid
    windows = [int(stage.blocks[0].window_size[0]) for stage in model.layers]
    merges = 2 ** (len(windows) - 1)

    def divides(new_grid: int) -> bool:
        return new_grid % merges == 0 and all(window * new_grid % grid == 0 for window in windows)

    if not divides(size // patch):
        step = patch * next(n for n in range(1, grid + 1) if divides(n))
        near = max(step, size // step * step)
        raise ConfigError(
            f"image-size = {size}: the windows of {name} do not divide it; it must be a multiple of {step}, "
            f"such as {near} or {near + step}"
        )
    return tuple(window * (size // patch) // grid for window in windows)


@contextlib.contextmanager
def quiet_timm() -> Iterator[None]:
    """Suppress torch's warnings while timm resamples tables: they concern timm's code, not its result."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"torch\.searchsorted|Using a non-tuple sequence", UserWarning)
        yield


def resize_model(name: str, model: nn.Module, size: int) -> None:
    """Resize a model that timm has not built to images of ``size`` × ``size`` pixels; 0 leaves it unchanged.

    Raises
    ------
    ConfigError
        When the model cannot be resized, or its patches or windows do not divide the size.
    """
    embed = getattr(model, "patch_embed", None)
    own = getattr(embed, "img_size", None)
    if not size or (own is not None and (size, size) == tuple(own)):
        return
    resize = getattr(model, "set_input_size", None)
    if resize is None or own is None:
        raise ConfigError(
            f"image-size = {size}: model {name!r} cannot be resized, for it has no set_input_size as timm's "
            "models have; build it for that size, or leave image-size at 0"
        )
    options: dict[str, Any] = options_for_size(name, model, size)
    with torch.no_grad(), quiet_timm():
        resize(**(options | {"img_size": (size, size)}))
    log.info("image-size = %d: position embeddings of %s resampled from %s pixels", size, name, own)
