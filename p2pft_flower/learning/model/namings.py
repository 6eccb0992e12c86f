"""Other libraries' names for a vision transformer's tensors, and their translation to timm's names.

timm translates: the ``checkpoint_filter_fn`` of the model knows many published files (DINOv2, DeiT-III,
OpenAI's CLIP and open_clip, RADIO, Swin's originals, …). Tensors of files that timm does not know are renamed
before: Hugging Face transformers' ViT, DeiT, DINOv2, Swin and Swin V2, and CLIP's image tower without the
prefix ``visual.``.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from timm.models import model_entrypoint

__all__ = ["NAMINGS", "describe_names", "is_training_state", "original_name", "timm_filter"]

Tensors: TypeAlias = dict[str, torch.Tensor]
Filter: TypeAlias = Callable[[Tensors, Any], Tensors]

_VIT = (
    ("cls_token", "embeddings.cls_token"),
    ("dist_token", "embeddings.distillation_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("mask_token", "embeddings.mask_token"),
    ("register_tokens", "embeddings.register_tokens"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("blocks.#.norm1.", "encoder.layer.#.layernorm_before."),
    ("blocks.#.norm2.", "encoder.layer.#.layernorm_after."),
    ("blocks.#.attn.q.", "encoder.layer.#.attention.attention.query."),
    ("blocks.#.attn.k.", "encoder.layer.#.attention.attention.key."),
    ("blocks.#.attn.v.", "encoder.layer.#.attention.attention.value."),
    ("blocks.#.attn.proj.", "encoder.layer.#.attention.output.dense."),
    ("blocks.#.mlp.fc1.", "encoder.layer.#.intermediate.dense."),
    ("blocks.#.mlp.fc2.", "encoder.layer.#.output.dense."),
    ("norm.", "layernorm."),
    ("pre_logits.fc.", "pooler.dense."),
    ("blocks.#.norm1.", "encoder.layer.#.norm1."),  # from here on DINOv2's
    ("blocks.#.norm2.", "encoder.layer.#.norm2."),
    ("blocks.#.mlp.fc1.", "encoder.layer.#.mlp.fc1."),
    ("blocks.#.mlp.fc2.", "encoder.layer.#.mlp.fc2."),
    ("blocks.#.mlp.fc1.", "encoder.layer.#.mlp.weights_in."),
    ("blocks.#.mlp.fc2.", "encoder.layer.#.mlp.weights_out."),
    ("blocks.#.ls1.gamma", "encoder.layer.#.layer_scale1.lambda1"),
    ("blocks.#.ls2.gamma", "encoder.layer.#.layer_scale2.lambda1"),
)
"""Beginnings of names, timm's and Hugging Face's; ``#`` is a number; ``q``, ``k``, ``v`` are joined later."""

_SWIN = (
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("patch_embed.norm.", "embeddings.norm."),
    ("mask_token", "embeddings.mask_token"),
    ("layers.#.blocks.#.norm1.", "encoder.layers.#.blocks.#.layernorm_before."),
    ("layers.#.blocks.#.norm2.", "encoder.layers.#.blocks.#.layernorm_after."),
    ("layers.#.blocks.#.attn.q.", "encoder.layers.#.blocks.#.attention.self.query."),
    ("layers.#.blocks.#.attn.k.", "encoder.layers.#.blocks.#.attention.self.key."),
    ("layers.#.blocks.#.attn.v.", "encoder.layers.#.blocks.#.attention.self.value."),
    ("layers.#.blocks.#.attn.proj.", "encoder.layers.#.blocks.#.attention.output.dense."),
    (
        "layers.#.blocks.#.attn.cpb_mlp.",
        "encoder.layers.#.blocks.#.attention.self.continuous_position_bias_mlp.",
    ),
    ("layers.#.blocks.#.attn.", "encoder.layers.#.blocks.#.attention.self."),
    ("layers.#.blocks.#.mlp.fc1.", "encoder.layers.#.blocks.#.intermediate.dense."),
    ("layers.#.blocks.#.mlp.fc2.", "encoder.layers.#.blocks.#.output.dense."),
    ("layers.#.downsample.", "encoder.layers.#.downsample."),  # of the stage before, as in Swin's original
    ("norm.", "layernorm."),
)
"""Beginnings of names of Swin, the original's and Hugging Face's; timm's filter translates the original's."""

_KINDS = (
    (
        r"(^|\.)visual\.(transformer\.resblocks|trunk)\.",
        "CLIP's or open_clip's, with an image tower in visual.",
    ),
    (r"(^|\.)vision_model\.encoder\.layers\.", "Hugging Face transformers' CLIP or SigLIP"),
    (r"(^|\.)encoder\.layer\.\d+\.attention\.", "Hugging Face transformers' ViT, DeiT or DINOv2"),
    (r"(^|\.)encoder\.layers\.\d+\.blocks\.\d+\.", "Hugging Face transformers' Swin"),
    (r"(^|\.)encoder\.layers\.encoder_layer_\d+\.", "torchvision's ViT"),
    (r"^(student|teacher)\.", "DINO's or iBOT's, with a student and a teacher"),
    (r"(^|\.)decoder_blocks\.", "MAE's, from pre-training with a decoder"),
    (r"(^|\.)layer1\.0\.conv1\.", "a ResNet's"),
    (r"(^|\.)layers\.\d+\.blocks\.\d+\.attn\.", "a Swin's"),
    (r"(^|\.)Transformer/encoderblock", "a JAX ViT's"),
    (r"^state_dict\.(model|net|module|backbone|encoder)\.", "Lightning's"),
    (r"(^|\.)blocks\.\d+\.attn\.qkv\.", "timm's ViT or DeiT"),
)


_ALIGNED = ("base_patch16_radio_v3", "huge_patch16_radio_v3")
"""Parts of the names of RADIO's models whose position embeddings timm resamples with corners aligned."""


def timm_filter(name: str) -> Filter:
    """Return timm's own translation of published files for the model of that name.

    The options are those that timm's builders of DeiT, FlexiViT and RADIO pass. If timm has no translation
    for the model, the function that is returned changes nothing.
    """
    module = sys.modules[model_entrypoint(name).__module__]
    own: Filter | None = getattr(module, "checkpoint_filter_fn", None)
    if own is None:
        return lambda tensors, _: tensors
    known = inspect.signature(own).parameters
    options: dict[str, Any] = {"adapt_layer_scale": True}  # without effect unless a name has gamma_
    if "flexi" in name or "radio" in name:
        options |= {"interpolation": "bilinear", "antialias": False}
    if "radio" in name:  # older versions of timm have no such option
        options["align_corners"] = any(aligned in name for aligned in _ALIGNED)
    return partial(own, **{key: value for key, value in options.items() if key in known})


def _unchanged(tensors: Tensors) -> Tensors | None:
    return tensors


def _image_tower(tensors: Tensors) -> Tensors | None:
    if not {"class_embedding", "conv1.weight", "transformer.resblocks.0.ln_1.weight"} <= tensors.keys():
        return None
    return {f"visual.{name}": tensor for name, tensor in tensors.items()}


def _hugging_face(tensors: Tensors) -> Tensors | None:
    table = _table(tensors)
    if table is None:
        return None
    renamed = {_renamed(name, table): tensor for name, tensor in tensors.items()}
    return _joined(renamed)


NAMINGS: tuple[Callable[[Tensors], Tensors | None], ...] = (_unchanged, _image_tower, _hugging_face)
"""Functions that rename tensors so that timm's filter knows them, or return None if the names are of
another kind."""

_Table: TypeAlias = tuple[tuple[str, str], ...]


def _table(names: Collection[str]) -> _Table | None:
    layers = [name for name in names if name.startswith("encoder.layer")]  # sooner than a pattern finds them
    if any(re.match(r"encoder\.layer\.\d+\.", name) for name in layers):
        return _VIT
    if any(re.match(r"encoder\.layers\.\d+\.blocks\.\d+\.", name) for name in layers):
        return _SWIN
    return None


def _pattern(beginning: str) -> str:
    return re.escape(beginning).replace(r"\#", r"(\d+)") + ("$" if beginning[-1] != "." else "")


def _rewrite(name: str, old: str, new: str) -> str | None:
    """Return ``name`` with ``new`` for the beginning ``old``, numbers unchanged; None if it has no such."""
    found = re.match(_pattern(old), name)
    if found is None:
        return None
    numbers = iter(found.groups())
    return re.sub("#", lambda _: next(numbers), new) + name[found.end() :]


def _renamed(name: str, table: _Table) -> str:
    rewritten = (_rewrite(name, theirs, ours) for ours, theirs in table)
    return next((new for new in rewritten if new is not None), name)


def _joined(tensors: Tensors) -> Tensors:
    """Return the tensors with queries, keys and values joined, as in timm; Swin V2's keys have no bias."""
    made: Tensors = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(.*\.attn\.)([qkv])\.(weight|bias)", name)
        if found is None:
            made[name] = tensor
            continue
        before, which, kind = found.groups()
        parts = [tensors.get(f"{before}{part}.{kind}") for part in "qkv"]
        there = [part for part in parts if part is not None]
        if len(there) == 3:
            if which == "q":
                made[f"{before}qkv.{kind}"] = torch.cat(there)
        elif parts[1] is None and len(there) == 2 and kind == "bias":
            made[f"{before}{which}_bias"] = tensor
        else:
            made[name] = tensor
    return made


def original_name(name: str, names: Collection[str]) -> str:
    """Return the name that timm's tensor ``name`` has, or would have, in a file with ``names``.

    Parameters
    ----------
    name : str
        timm's name.
    names : collection of str
        The file's names, from the model's root on.
    """
    table = _table(names)
    if table is None:
        return name
    if ".attn.qkv." in name:
        parts = [original_name(name.replace(".attn.qkv.", f".attn.{part}."), names) for part in "qkv"]
        return next((part for part in parts if part not in names), parts[0])
    name = re.sub(r"\.attn\.([qv])_bias$", r".attn.\1.bias", name)
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", name)
    fitting = [(theirs, new) for ours, theirs in table if (new := _rewrite(name, ours, theirs)) is not None]
    used = [new for theirs, new in fitting if any(re.match(_pattern(theirs), other) for other in names)]
    return next(iter([*used, *(new for _, new in fitting)]), name)


_TRAINING_STATE = re.compile(
    r"(^|[._/])(optim|optimi[sz]ers?|(max_)?exp_avg|exp_inf|momentum_buffers?|moments?|grads?|gradients?)([._/]|$)"
)


def is_training_state(name: str) -> bool:
    """Return whether a name is of an optimiser's state or of gradients, whose tensors resemble a model's."""
    return _TRAINING_STATE.search(name.lower()) is not None


def describe_names(names: Collection[str]) -> str:
    """Return words for the library or model that uses such names; empty if that is unknown."""
    kinds: Mapping[str, str] = dict(_KINDS)
    return next((kind for pattern, kind in kinds.items() if any(re.search(pattern, n) for n in names)), "")
