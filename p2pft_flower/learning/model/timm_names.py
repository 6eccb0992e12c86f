"""The names of timm's models, read from timm's source files, since importing timm takes seconds."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["TimmNames", "registered_here", "timm_names"]

_MODEL = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)
_DEPRECATED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)^\}\)", re.MULTILINE | re.DOTALL)
_KEY = re.compile(r"['\"](\w+)['\"]\s*:")
_TAGGED = re.compile(r"['\"](\w+)\.([\w.]+)['\"]\s*:")

_SIZED = ("deit", "swin_transformer", "swin_transformer_v2", "vision_transformer")
"""Modules in which the function that builds a model has the model's size in ``model_args``."""

_ARGUMENTS = re.compile(r"\bmodel_args = dict\((.*?)\n    (?:model|return)\b", re.DOTALL)

_WELL_KNOWN = "vit_base_patch16_224"
"""A name that every version of timm has: if this name is not found, the files have another form."""


@dataclass(frozen=True)
class TimmNames:
    """Names that timm's ``create_model`` takes.

    Attributes
    ----------
    modules : dict of str to str
        Name of an architecture ↦ the last part of the module of ``timm.models`` that registers it. Deprecated
        names are among the names.
    tags : dict of str to tuple of str
        Name of an architecture ↦ the tags of its pre-trained weights, as ``augreg_in21k`` in
        ``vit_base_patch16_224.augreg_in21k``, as far as they were found.
    sizes : dict of str to tuple of int
        Name of an architecture ↦ pixels of a patch's side, length of a token in the first block, number of
        blocks; 0 for a size that was not found.
    """

    modules: dict[str, str]
    tags: dict[str, tuple[str, ...]]
    sizes: dict[str, tuple[int, int, int]]


@cache
def timm_names() -> TimmNames:
    """Return the names of the installed timm, which is imported only if its files do not show the names."""
    spec = importlib.util.find_spec("timm")
    if spec is not None and spec.origin is not None:
        found = _read(Path(spec.origin).parent / "models")
        if _WELL_KNOWN in found.modules:
            return found
    return _ask_timm()


def registered_here(name: str) -> bool:
    """Return whether timm, if imported, knows a model of this name, as the user's code may register it."""
    if "timm" not in sys.modules:
        return False
    import timm

    return bool(timm.is_model(name))


def _read(folder: Path) -> TimmNames:
    modules: dict[str, str] = {}
    tags: dict[str, list[str]] = {}
    sizes: dict[str, tuple[int, int, int]] = {}
    for file in sorted(folder.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        names = [
            *_MODEL.findall(text),
            *(n for block in _DEPRECATED.findall(text) for n in _KEY.findall(block)),
        ]
        modules |= dict.fromkeys(names, file.stem)
        for name, tag in _TAGGED.findall(text):
            tags.setdefault(name, []).append(tag)
        if file.stem in _SIZED:
            starts = list(_MODEL.finditer(text))
            ends = [*(start.start() for start in starts[1:]), len(text)]
            for start, end in zip(starts, ends, strict=True):
                sizes[start[1]] = _size(text[start.end() : end])
    return TimmNames(modules, {name: tuple(dict.fromkeys(found)) for name, found in tags.items()}, sizes)


def _size(body: str) -> tuple[int, int, int]:
    """Return patch, width and blocks, each 0 if not found, of the model that a function's body builds."""
    said = _ARGUMENTS.findall(body)
    if len(said) != 1:
        return 0, 0, 0

    def number(key: str) -> int:
        found = re.findall(rf"\b{key}=(\d+)\b", said[0])
        return int(found[0]) if len(found) == 1 else 0

    stages = re.findall(r"\bdepths=\(([\d, ]+)\)", said[0])
    blocks = sum(int(depth) for depth in stages[0].split(",") if depth.strip()) if stages else number("depth")
    return number("patch_size"), number("embed_dim"), blocks


def _ask_timm() -> TimmNames:
    import timm
    from timm.models import list_modules

    modules = {name: module for module in list_modules() for name in timm.list_models(module=module)}
    tags: dict[str, list[str]] = {}
    for full in timm.list_pretrained():
        name, _, tag = full.partition(".")
        tags.setdefault(name, []).append(tag)
    return TimmNames(modules, {name: tuple(found) for name, found in tags.items()}, {})
