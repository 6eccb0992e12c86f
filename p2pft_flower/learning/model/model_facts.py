"""Facts that decide a model, read in a moment: without torch or timm, and without building the model.

Two peers with the same facts train the same model. Two peers whose facts differ may still do so: a file of
weights may hold the same numbers in another format, and a module may have another comment. Then the models
themselves are compared (``Workload.frozen_facts``), which takes seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.model.class_texts import class_texts, read_prompts
from p2pft_flower.learning.model.devices import GPUS, check_device
from p2pft_flower.learning.model.model_names import EMBEDDED, check_model_name, check_weights, weights_file
from p2pft_flower.learning.model.text_embeddings import embeddings_for, require_embeddings_file
from p2pft_flower.learning.model.tower_names import (
    GLYPH_CLIP,
    GLYPH_CLIP_FOLDER,
    require_tower_here,
    tower_file,
    tower_folder,
)
from p2pft_flower.plugins import is_reference, source_file

__all__ = ["feature_facts", "light_digest", "model_facts", "require_class_texts", "text_facts"]

_DECIDE = (
    "model",
    "image_size",
    "crop_pct",
    "interpolation",
    "mean",
    "std",
    "tune",
    "head",
    "trunk_dtype",
    "seed",
)
"""Settings that decide the model, but for ``weights``: if that is a path, the file's content counts."""

_MULTIPLIES = ("amx_bf16", "avx512_bf16", "bf16")
"""Flags of processors that multiply in bfloat16; ``trunk-dtype = auto`` then means bfloat16."""


def model_facts(config: LearningConfig) -> dict[str, str]:
    """Return the facts that decide the model's numbers and its frozen part's outputs.

    Parameters
    ----------
    config : LearningConfig
        The settings.

    Returns
    -------
    dict of str to str
        By name: the settings, the weights, the code, and with ``trunk-dtype = auto`` the processor and GPUs.

    Raises
    ------
    ConfigError, DataError
        When model, weights or device are known to be wrong here, with the error of building the model.
    """
    check_model_name(config.model)
    check_weights(config.model, config.weights, here=True)
    check_device(config.device)
    facts = {name.replace("_", "-"): str(getattr(config, name)) for name in _DECIDE}
    facts["weights"] = _weights(config)
    facts |= text_facts(config)
    facts["code"] = f"timm {importlib.metadata.version('timm')}"
    if is_reference(config.model):
        facts["code"] += f", {_source(config.model)}"
    if config.trunk_dtype == "auto":
        facts["machine"] = _machine(config.device)
    return facts


def feature_facts(config: LearningConfig, classes: Sequence[str], width: int) -> dict[str, str]:
    """Return the facts that decide a head on features of ``width`` numbers, as :func:`model_facts`.

    Raises
    ------
    ConfigError, DataError
        When the file of text embeddings cannot be used for these ``classes``.
    """
    facts = {name: str(getattr(config, name)) for name in ("tune", "head", "seed")}
    require_class_texts(config, classes, width)
    return (
        facts
        | text_facts(config)
        | {"features": f"{width} numbers", "code": f"torch {importlib.metadata.version('torch')}"}
    )


def text_facts(config: LearningConfig) -> dict[str, str]:
    """Return the facts that decide a text head: the files' contents, not their places.

    Raises
    ------
    ConfigError, DataError
        When the text tower is missing, or a file cannot be used.
    """
    if config.head != "text":
        return {}
    if config.text_embeddings:
        return {"text-embeddings": _sha256(require_embeddings_file(config.text_embeddings))}
    require_tower_here(config.text_tower)
    folder = tower_folder(config.text_tower)
    tower = config.text_tower
    if folder is not None:
        tower = light_digest({f.name: _sha256(f) for f in sorted(folder.iterdir()) if f.is_file()})
    elif (file := tower_file(tower)) is not None:
        tower = f"{tower.partition(':')[0]}:{_sha256(file)}"
    names = config.class_names and _sha256(Path(config.class_names).expanduser())
    prompts = json.dumps(read_prompts(config.prompts))
    return {
        "text-tower": tower,
        "class-names": names,
        "prompts": prompts,
        "open_clip": importlib.metadata.version("open_clip_torch"),
    }


def require_class_texts(config: LearningConfig, classes: Sequence[str], width: int = 0) -> None:
    """Refuse names, templates or embeddings that do not fit ``classes``, without a text tower.

    Parameters
    ----------
    config : LearningConfig
        The settings.
    classes : sequence of str
        The dataset's classes.
    width : int
        Numbers of a feature; 0 of images, whose tower is not built here.

    Raises
    ------
    ConfigError, DataError
        When a class has no name or no embedding, or a file cannot be used; the message names it.
    """
    if config.text_embeddings:
        embeddings_for(config, classes, width)
    elif config.text_tower:
        class_texts(config.class_names, config.prompts, classes)


def light_digest(facts: dict[str, str]) -> str:
    """Return the SHA-256, hexadecimal, of ``facts``."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _weights(config: LearningConfig) -> str:
    if (file := weights_file(config.weights)) is not None:
        return _sha256(file)
    if config.weights == "pretrained" and config.model == GLYPH_CLIP:
        return _sha256(GLYPH_CLIP_FOLDER / "open_clip_model.safetensors")
    if config.weights == "pretrained" and config.model in EMBEDDED:
        held = files("p2pft_flower.learning.model") / "embedded" / f"{config.model}.safetensors"
        with as_file(held) as path:
            return _sha256(path)
    return config.weights


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _source(model: str) -> str:
    """Return a digest of the module of a model of the user's own; empty if the module is not found."""
    with contextlib.suppress(ConfigError, OSError):  # building the model will raise the error
        file = source_file(model, key="model")
        return "" if file is None else _sha256(file)
    return ""


def _machine(device: str) -> str:
    """Return, as text, the facts of this machine that decide the trunk's precision if that is ``auto``."""
    gpus: list[str] = []
    if device in ("auto", "cuda"):
        told = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        gpus = [found[1] for file in told if (found := re.search(r"Model:\s*(.*)", file.read_text()))]
        gpus = gpus or sorted({path.name for name in GPUS for path in Path("/dev").glob(name)})
    flags = ""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    multiplies = sorted(set(_MULTIPLIES).intersection(flags.split()))
    return ", ".join([platform.system(), platform.machine(), *multiplies, *gpus])
