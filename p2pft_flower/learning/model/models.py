"""Vision transformers by name, with their weights and a new, seeded head."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg
from torch import nn

from p2pft_flower.config import CHOICES
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.image_settings import ImageKeys, image_settings, set_image_settings
from p2pft_flower.learning.draws import torch_seeded
from p2pft_flower.learning.model.embedded import MODEL_NAME, create_glyph_vit
from p2pft_flower.learning.model.embedded.glyph_clip import create_glyph_clip, glyph_clip_tower
from p2pft_flower.learning.model.image_size import options_for_size, resize_model
from p2pft_flower.learning.model.model_names import check_model_name, check_weights, weights_file
from p2pft_flower.learning.model.structure import check_structure, share_copy
from p2pft_flower.learning.model.tower_names import GLYPH_CLIP, no_tower
from p2pft_flower.learning.model.weight_files import number_fault
from p2pft_flower.learning.model.weights import FROM_HUB, load_weights
from p2pft_flower.plugins import call_reference, is_reference, telling_whose

__all__ = ["MODELS", "bare_model", "create_image_tower", "create_model", "data_config", "preprocessing"]

MODELS: dict[str, Callable[..., nn.Module]] = {MODEL_NAME: create_glyph_vit, GLYPH_CLIP: create_glyph_clip}
"""Functions ``(num_classes, pretrained) -> nn.Module`` that build this package's models, by name."""

log = logging.getLogger(__name__)


def create_model(
    name: str, weights: str, num_classes: int, seed: int, images: ImageKeys | None = None
) -> nn.Module:
    """Build a model with pre-trained weights and a head of ``num_classes`` drawn from ``seed``.

    Parameters
    ----------
    name : str
        A key of :data:`MODELS`, a transformer of timm such as ``vit_tiny_patch16_224``, perhaps with the tag
        of some of its weights (``vit_small_patch16_224.dino``), or ``"my_module:my_model"``: a callable
        ``(num_classes, pretrained) -> nn.Module`` whose model is built like timm's (``blocks``, or ``layers``
        with ``downsample`` and ``blocks``; ``norm``, ``forward_features``, ``forward_head``,
        ``reset_classifier``; each block takes the tokens of the block before and nothing else; ``forward`` is
        ``forward_head`` of ``forward_features``).
    weights : str
        ``"pretrained"``, ``"none"``, or the absolute path of a file
        (:func:`~p2pft_flower.learning.model.weights.load_weights`).
    num_classes : int
        Number of classes of the dataset.
    seed : int
        Number that decides the draw of the new head, and of all weights if ``weights = "none"``.
    images : ImageKeys, optional
        The run-config's settings of the images that the model sees; the model decides all others.

    Returns
    -------
    nn.Module
        The model, frozen, in eval mode; ``pretrained_cfg`` describes its images (:func:`data_config`).

    Raises
    ------
    ConfigError
        When the model is unknown, has a structure that is not supported, or cannot take images of this size
        or these channels.
    DataError
        When the weights are missing or do not fit, or timm cannot build the model.
    """
    check_model_name(name)
    check_weights(name, weights, here=True)
    pretrained, file = weights != "none", weights_file(weights)
    keys = images or ImageKeys()
    if _is_own(name):
        with torch_seeded(seed):
            model = _own_model(name, pretrained, num_classes)
            with telling_whose(name, key="model", doing=f"its reset_classifier({num_classes})"):
                _with_new_head(model, seed, num_classes)
        with telling_whose(name, key="model", doing="its set_input_size"):
            resize_model(name, model, keys.image_size)
        set_image_settings(name, model, keys, "the model's pretrained_cfg")
        _check_own(name, model, num_classes)
    else:
        plan, size = _outline(name, pretrained and file is None, keys.image_size)
        with torch_seeded(seed):
            if pretrained:
                model = load_weights(name, plan, file, **size)
            else:
                model = timm.create_model(name, pretrained=False, num_classes=num_classes, **size)
            _with_new_head(model, seed, num_classes)
        set_image_settings(name, model, keys, _origin(plan, name, file, pretrained))
    _warn_of_random(name, pretrained=pretrained)
    return model.eval().requires_grad_(False)


def create_image_tower(name: str, weights: str, seed: int, images: ImageKeys | None = None) -> nn.Module:
    """Build the image tower of a vision-language model, with its own head.

    Parameters
    ----------
    name : str
        A model of timm that is such a tower, such as ``vit_base_patch16_clip_224.laion2b``, or
        ``glyph_clip_8``.
    weights, seed, images
        As for :func:`create_model`.

    Returns
    -------
    nn.Module
        The model, frozen, in eval mode. ``head`` leads to the space of texts; it is the identity if pooled
        tokens are there already, as SigLIP's.

    Raises
    ------
    ConfigError
        When the model is no tower with texts, and in the cases of :func:`create_model`.
    DataError
        In the cases of :func:`create_model`.
    """
    check_model_name(name)
    check_weights(name, weights, here=True)
    pretrained, file = weights != "none", weights_file(weights)
    keys = images or ImageKeys()
    if name == GLYPH_CLIP:
        with torch_seeded(seed):
            model: nn.Module = glyph_clip_tower(pretrained)
        resize_model(name, model, keys.image_size)
        set_image_settings(name, model, keys, "the model's pretrained_cfg")
    else:
        entry = None if _is_own(name) else get_pretrained_cfg(name)
        if entry is None or (entry.num_classes or 0) in CLASSIFIERS:
            raise no_tower(name)
        _warn_of_other_activation(name, entry)
        outputs = entry.num_classes or 0
        plan, size = _outline(name, pretrained and file is None, keys.image_size, outputs)
        with torch_seeded(seed):
            if pretrained:
                model = load_weights(name, plan, file, outputs, **size)
            else:
                model = timm.create_model(name, pretrained=False, num_classes=outputs, **size)
        set_image_settings(name, model, keys, _origin(plan, name, file, pretrained))
    _warn_of_random(name, pretrained=pretrained)
    return model.eval().requires_grad_(False)


CLASSIFIERS = (1000, 11821, 21841, 21843)
"""Outputs of heads that classify ImageNet's images: such a head leads to no text."""


def _warn_of_other_activation(name: str, entry: Any) -> None:
    """Warn of weights that another activation made than that of the model, which timm's registry notes."""
    if any("QuickGELU" in note for note in entry.notes or ()) and "quickgelu" not in name:
        plain, dot, tag = name.partition(".")
        other = plain.replace("_clip_", "_clip_quickgelu_") + dot + tag
        log.warning(
            "model = %s: timm says that these weights were trained with QuickGELU, and the model has another "
            "activation, so its texts fit less well: choose %s",
            name,
            other,
        )


def _warn_of_random(name: str, *, pretrained: bool) -> None:
    if not pretrained:
        log.warning(
            "weights = none: %s starts from RANDOM weights; its figures say nothing about transfer", name
        )


def bare_model(name: str, num_classes: int, images: ImageKeys | None = None) -> nn.Module:
    """Build a model with random weights, into which a whole state dict is to be loaded.

    ``name``, ``num_classes`` and ``images`` are as in :func:`create_model`. The model is frozen, in eval
    mode.

    Raises
    ------
    ConfigError
        When the model is unknown, has a structure that is not supported, or cannot take images of this size
        or these channels.
    DataError
        When timm cannot build the model.
    """
    check_model_name(name)
    keys = images or ImageKeys()
    if _is_own(name):
        model = _own_model(name, False, num_classes)
        resize_model(name, model, keys.image_size)
        set_image_settings(name, model, keys, "the model's pretrained_cfg")
    else:
        plan, size = _outline(name, False, keys.image_size)
        model = timm.create_model(name, pretrained=False, num_classes=num_classes, **size)
        set_image_settings(name, model, keys, _origin(plan, name, None, False))
    return model.eval().requires_grad_(False)


def _is_own(name: str) -> bool:
    return is_reference(name) or name in MODELS


def _own_model(name: str, pretrained: bool, num_classes: int) -> nn.Module:
    options: dict[str, Any] = {"num_classes": num_classes, "pretrained": pretrained}
    model: nn.Module = (
        MODELS[name](**options) if name in MODELS else call_reference(name, key="model", **options)
    )
    check_structure(name, model)
    if name not in MODELS:
        _check_input_size(name, model)
    return model


def _check_input_size(name: str, model: nn.Module) -> None:
    """Refuse an ``input_size`` that fits no pictures, in the ``pretrained_cfg`` of a model of the user's own.

    Raises
    ------
    ConfigError
        When ``input_size`` fits no pictures (the message gives the value), or ``pretrained_cfg`` is no
        dictionary.
    """
    given = getattr(model, "pretrained_cfg", None) or {}
    try:
        size = dict(given).get("input_size", (3, 224, 224))
    except (TypeError, ValueError):
        raise ConfigError(
            f"model = {name!r}: its pretrained_cfg is a {type(given).__name__}, not a dict"
        ) from None
    whole = isinstance(size, (tuple, list)) and all(type(number) is int and number > 0 for number in size)
    if not whole or len(size) != 3:
        raise ConfigError(
            f"model = {name!r}: input_size in its pretrained_cfg is {size!r}; it must be three whole "
            "numbers: channels, height, width"
        )
    if size[0] not in (1, 3):
        raise ConfigError(
            f"model = {name!r}: input_size in its pretrained_cfg says {size[0]} channels; pictures have 1 "
            "(grey) or 3 (RGB)"
        )


def _with_new_head(model: nn.Module, seed: int, num_classes: int) -> None:
    torch.manual_seed(seed)  # the head must not depend on earlier draws
    model.reset_classifier(num_classes)  # type: ignore[operator]  # timm's method, looked for before


def _outline(name: str, of_hub: bool, image_size: int, outputs: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    """Build a timm model without values, to be checked before any weight is read or downloaded.

    Returns
    -------
    model : nn.Module
        The model with a head of so many ``outputs``, 0: without a head, on torch's device ``meta``.
    options : dict
        timm's options to build a model for images of this size.

    Raises
    ------
    ConfigError
        When timm has no such weights, or the model cannot be cut or see such images.
    DataError
        When timm cannot build the model.
    """
    plain, _, tag = name.partition(".")
    try:
        entry = get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ConfigError(
            f"model = {name!r}: timm has no weights tagged {tag!r} for {plain}; choose one of "
            f"{', '.join(_tags(plain)) or 'none, without a tag'}"
        ) from error
    if of_hub and not (entry and entry.has_weights):
        raise ConfigError(
            f"model = {name!r}: timm has no pre-trained weights of that name; give weights = "
            "/path/file.safetensors, or choose a tag that has some"
            + (f": {', '.join(_tags(plain))}" if _tags(plain) else "")
        )

    def outline(**size: Any) -> nn.Module:
        try:
            with torch.device("meta"):
                return timm.create_model(name, pretrained=False, num_classes=outputs, **size)  # type: ignore[no-any-return]
        except Exception as error:  # timm's builders raise many kinds of errors
            hub = f", nor its weights loaded {FROM_HUB}" if of_hub else ""
            raise DataError(f"model = {name!r}: it could not be built{hub}: {error}") from error

    plan = outline()
    check_structure(name, plan)
    size = options_for_size(name, plan, image_size)
    return (outline(**size) if size else plan), size


def _tags(plain: str) -> list[str]:
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{plain}.*")]


def _origin(model: Any, name: str, file: Path | None, pretrained: bool) -> str:
    """Return the origin, in words, of the image settings of a timm model."""
    plain, _, chosen = name.partition(".")
    tag = model.pretrained_cfg.get("tag") or chosen
    entry = f"{plain}.{tag}" if tag else plain
    if pretrained and file is None:
        return f"timm's hub entry of the weights, {entry}"
    if chosen:
        return f"timm's {entry}, by the tag in model"
    said = "; the file may have been made with others: a tag in model, or mean and std, choose them"
    return f"timm's default for the name ({entry}{said if file is not None else ''})"


def _check_own(name: str, model: nn.Module, num_classes: int) -> None:
    """Refuse a model of the user's own whose weights, image settings or answer cannot be used.

    Raises
    ------
    ConfigError
        When a parameter is not float32, a setting of the images is wrong, the model cannot be copied, or the
        answer has not one finite number a class.
    DataError
        When a weight or a buffer has NaN, or a weight is infinite.
    """
    _check_settings(name, model)
    for tensor_name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"model = {name!r}: its parameter {tensor_name!r} is {parameter.dtype}; all must be "
                "torch.float32, in which θ is trained and sent: let the model be built with float()"
            )
        if fault := number_fault(parameter):
            raise DataError(f"model = {name!r}: its own weights cannot be used: {tensor_name!r} has {fault}")
    for tensor_name, buffer in model.named_buffers():
        if buffer.is_floating_point() and buffer.isnan().any():  # masks may have infinities
            raise DataError(f"model = {name!r}: its buffer {tensor_name!r} has NaN")
    with telling_whose(name, key="model", doing="copying it, as each peer needs its own,"):
        share_copy(model)
    settings = image_settings(model)
    shape = " × ".join(map(str, settings.input_size))
    said = f"images of {shape} (channels, height, width), from {settings.origins['input_size']}"
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():  # not inference_mode: tensors that the model caches may need gradients later
            answer = model.eval()(torch.randn(2, *settings.input_size, generator=generator))
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(
            f"model = {name!r} does not take {said}: {type(error).__name__}: {error}; correct input_size in "
            "its pretrained_cfg, or set the key image-size"
        ) from error
    found = (
        f"{tuple(answer.shape)} of {answer.dtype}"
        if isinstance(answer, torch.Tensor)
        else f"a {type(answer).__name__}"
    )
    fits = isinstance(answer, torch.Tensor) and tuple(answer.shape) == (2, num_classes)
    if fits and answer.is_floating_point() and not answer.isfinite().all():
        fits, found = False, "NaN or infinity"
    if not fits or not answer.is_floating_point():
        raise ConfigError(
            f"model = {name!r} answers two {said} with {found}; it must answer with (2, {num_classes}) "
            "floating-point numbers, one a class"
        )


_CROP_MODES = ("center", "squash", "border")
"""Modes of cropping that timm knows."""


def _check_settings(name: str, model: nn.Module) -> None:
    """Refuse settings of images in a model's ``pretrained_cfg`` that the run-config's keys would refuse too.

    Raises
    ------
    ConfigError
        When a setting is wrong; the message names the setting, its value, and the right values.
    """
    cfg = resolve_data_config({}, model=model)
    kinds = [kind for kind in CHOICES["interpolation"] if kind]
    share = cfg["crop_pct"]
    right = {
        "interpolation": (cfg["interpolation"] in kinds, f"one of {', '.join(kinds)}"),
        "crop_mode": (cfg["crop_mode"] in _CROP_MODES, f"one of {', '.join(_CROP_MODES)}"),
        "crop_pct": (type(share) in (int, float) and 0 < share <= 1, "in (0, 1]"),
    }
    for setting, (good, what) in right.items():
        if not good:
            raise ConfigError(
                f"model = {name!r}: {setting} in its pretrained_cfg is {cfg[setting]!r}; it must be {what}"
            )


def data_config(model: nn.Module) -> dict[str, Any]:
    """Return the settings of a model's images: input size, interpolation, mean, std, crop.

    :func:`~p2pft_flower.learning.data.image_settings.image_settings` also gives the origin of each setting.
    """
    return image_settings(model).data_config


def preprocessing(model: nn.Module) -> Callable[[Any], torch.Tensor]:
    """Return the function PIL image ↦ the model's input, (C, H, W) float32, by size, crop, mean and std."""
    config = data_config(model)
    transform = create_transform(**config, is_training=False)
    mode = "L" if config["input_size"][0] == 1 else "RGB"
    return lambda image: transform(image.convert(mode))
