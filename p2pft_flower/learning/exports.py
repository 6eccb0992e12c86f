"""Files of whole models with a fine-tuned tail in them, which timm reads; of features, the head's tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from p2pft_flower.config import NO_MODEL
from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.image_settings import ImageKeys, ImageSettings
from p2pft_flower.learning.model.heads import TowerHead, head_of
from p2pft_flower.learning.model.models import bare_model
from p2pft_flower.learning.model.structure import set_classifier
from p2pft_flower.learning.model.tuning import tune_model
from p2pft_flower.learning.model.weight_files import number_fault
from p2pft_flower.learning.tails import Tail

__all__ = ["load_export", "write_export"]

SCHEMA = "p2pft.export/1"


def write_export(tail: Tail, file: Path) -> dict[str, Any]:
    """Write the whole model with the tail's θ in it; a text head as one linear layer (:class:`TowerHead`).

    Parameters
    ----------
    tail : Tail
        One peer's θ with the peer's learning problem.
    file : Path
        The file to write, named ….safetensors; its folder is made, and an earlier file is replaced at once or
        not at all.

    Returns
    -------
    dict
        ``file``, ``model``, ``num_classes``, ``tune``, ``bytes`` (the file's size), and ``added``: the number
        of tensors that the plain model lacks (adapters, prompts).

    Raises
    ------
    DataError
        When the file cannot be written.
    """
    workload = tail.workload
    whole: Any = workload.whole_model(tail.theta)
    if isinstance(head := _classifier(whole), TowerHead):
        set_classifier(whole, head.plain())
    state = {name: t.detach().clone().contiguous() for name, t in whole.state_dict().items()}
    plain = workload.model.state_dict().keys() | {"head.weight", "head.bias"}  # a text head is one layer now
    added = sorted(state.keys() - plain)
    config = workload.config
    metadata = {
        "format": "pt",
        "schema": SCHEMA,
        "model": config.model,
        "tune": config.tune if added else "",
        "classes": json.dumps(workload.holdings.classes),
        "run": tail.metadata.get("run", ""),
        "peer": tail.metadata.get("peer", ""),
        "image-size": str(config.image_size),
        **({"loss": workload.loss} if workload.holdings.several_labels else {}),
        **({} if workload.preprocessing is None else {"preprocessing": json.dumps(workload.preprocessing)}),
    }
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, partial, metadata)
        partial.replace(file)
        size = file.stat().st_size
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: cannot be written ({error})") from error
    return {
        "file": str(file),
        "model": config.model,
        "num_classes": len(workload.holdings.classes),
        "tune": config.tune,
        "bytes": size,
        "added": len(added),
    }


def _classifier(model: Any) -> Any:
    """Return what timm calls the classifier; None of a head on features."""
    return model.get_classifier() if hasattr(model, "get_classifier") else None


def load_export(file: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the model of an exported file, adapters and prompts included.

    Returns
    -------
    model : nn.Module
        The model, in eval mode; its ``pretrained_cfg`` describes the images on which it was trained.
    classes : tuple of str
        Names of the classes, in the order of the model's outputs.

    Raises
    ------
    DataError
        When the file cannot be read, is no export, or has a tensor with NaN or infinite numbers.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            state: dict[str, torch.Tensor] = {n: opened.get_tensor(n) for n in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: not a readable safetensors file ({error})") from error
    if metadata.get("schema") != SCHEMA:
        raise DataError(f"{file}: schema {metadata.get('schema')!r}, this version reads {SCHEMA!r}")
    try:
        classes = tuple(json.loads(metadata["classes"]))
        model = _bare(metadata, state, len(classes))
        if "preprocessing" in metadata:  # exports of earlier versions lack it
            ImageSettings.from_dict(json.loads(metadata["preprocessing"])).put_on(model)
        if metadata["tune"]:
            model = tune_model(model, metadata["tune"]).requires_grad_(False)
        model.load_state_dict(state, strict=True)
    except (
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # RuntimeError: torch's of names and shapes
        raise DataError(f"{file}: not the export that its metadata describes ({error})") from error
    for name, tensor in state.items():
        if fault := number_fault(tensor):
            raise DataError(f"{file}: its tensor {name!r} has {fault}")
    return model.eval(), classes


def _bare(metadata: dict[str, str], state: dict[str, torch.Tensor], classes: int) -> nn.Module:
    """Return the plain model of an export, before its tensors are loaded; of features the head."""
    if metadata["model"] == NO_MODEL:
        return head_of(state).requires_grad_(False)
    keys = ImageKeys(image_size=int(metadata.get("image-size", "0")))
    return bare_model(metadata["model"], classes, keys)
