"""Names of text towers, checked as far as that is possible without open_clip and torch.

``text-tower`` is what open_clip calls the model: ``local-dir:/path`` (a folder with
``open_clip_config.json``, the weights and, if the model needs them, the tokenizer's files),
``hf-hub:owner/name``, or ``NAME:TAG`` with a name and a tag of ``open_clip.list_pretrained()``, or a file of
weights as the tag; or ``glyph_clip_8``, the embedded one.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from p2pft_flower.errors import ConfigError, DataError, did_you_mean
from p2pft_flower.learning.model.timm_names import registered_here, timm_names
from p2pft_flower.plugins import is_reference

__all__ = [
    "GLYPH_CLIP",
    "GLYPH_CLIP_FOLDER",
    "HUB",
    "LOCAL",
    "check_tower_model",
    "check_tower_name",
    "no_tower",
    "require_open_clip",
    "require_tower_here",
    "tower_file",
    "tower_folder",
]

GLYPH_CLIP = "glyph_clip_8"
"""The embedded CLIP, both as ``model`` and as ``text-tower``."""

GLYPH_CLIP_FOLDER = Path(__file__).parent / "embedded" / GLYPH_CLIP
"""Its folder, as open_clip's ``local-dir:`` reads it."""

TOWERS = ("clip", "siglip", "vitamin", "pe_core", "mci", "tips")
"""Words of which timm's image towers have one in their name or their tag."""

NO_TOWERS = "siglip_gap"
"""A word in the names of SigLIP's towers without their pooling, which leads to the texts."""

LOCAL, HUB = "local-dir:", "hf-hub:"
"""open_clip's beginnings of names."""


def require_open_clip(key: str) -> None:
    """Refuse a setting that needs open_clip on a machine without it; nothing is imported.

    Raises
    ------
    ConfigError
        When open_clip is not installed; the message says how to install it, and how to do without.
    """
    if importlib.util.find_spec("open_clip") is None:
        raise ConfigError(
            f"{key}: a text tower needs open_clip, which is not installed here: run pip install "
            "'open_clip_torch>=2.32' (in a clone of the repository: pip install -e '.[clip]'), or take a "
            "file that p2pft text-embeddings has made elsewhere (text-embeddings = /path)"
        )


def check_tower_name(name: str) -> None:
    """Refuse a ``text-tower`` that has none of the forms.

    Raises
    ------
    ConfigError
        When ``name`` has another form, or a folder's path is not absolute.
    """
    folder = tower_folder(name)
    if folder is not None:
        if not folder.is_absolute():
            raise ConfigError(f"text-tower = {name!r}: the folder's path must be absolute")
        return
    if name.startswith(HUB) and name != HUB:
        return
    plain, colon, tag = name.partition(":")
    if not (plain and colon and tag):
        raise ConfigError(
            f"text-tower = {name!r}: must be local-dir:/path (open_clip's folder), "
            "hf-hub:owner/name, NAME:TAG (open_clip's name and tag, such as ViT-B-32:openai; or NAME:/path, "
            "a file of weights), or "
            f"{GLYPH_CLIP}{did_you_mean(name, [GLYPH_CLIP])}"
        )


def check_tower_model(model: str) -> None:
    """Refuse a ``model`` for ``head = text`` that is known, by its name, to be no tower beside a text tower.

    Raises
    ------
    ConfigError
        When ``model`` is the embedded model without texts, a model of the user's own, or a model of timm
        without any of :data:`TOWERS` in its name, or with :data:`NO_TOWERS`.
    """
    own = model.partition(".")[0] not in timm_names().modules and registered_here(model.partition(".")[0])
    if model == GLYPH_CLIP or own:
        return
    if is_reference(model) or NO_TOWERS in model or not any(word in model for word in TOWERS):
        raise no_tower(model)


def no_tower(model: str) -> ConfigError:
    """Return the error that ``model`` is no image tower of a vision-language model."""
    return ConfigError(
        f"model = {model!r} with head = text: it is no image tower that was trained with texts; choose one "
        f"of timm's with clip or siglip (but not siglip_gap) in its name, such as "
        f"vit_base_patch16_clip_224.laion2b, or {GLYPH_CLIP}"
    )


def require_tower_here(name: str) -> None:
    """Refuse a text tower that cannot be loaded on this machine, as far as that is known without loading it.

    Raises
    ------
    ConfigError
        When open_clip is not installed.
    DataError
        When there is no such folder.
    """
    require_open_clip(f"text-tower = {name!r}")
    folder = tower_folder(name)
    if folder is not None and not folder.is_dir():
        raise DataError(f"text-tower = {name!r}: there is no such folder")


def tower_file(name: str) -> Path | None:
    """Return the file of weights in ``text-tower = NAME:/path``; None if there is none."""
    path = Path(name.partition(":")[2]).expanduser()
    return path if not name.startswith((LOCAL, HUB)) and path.is_file() else None


def tower_folder(name: str) -> Path | None:
    """Return the folder of the model that ``text-tower`` names; None if it is no folder's."""
    if name == GLYPH_CLIP:
        return GLYPH_CLIP_FOLDER
    return Path(name.removeprefix(LOCAL)).expanduser() if name.startswith(LOCAL) else None
