"""Every key of a run-config and of a node-config, with its default, values and meaning, as the code has them.

The meaning is the dataclass's docstring; what is generated of it is the settings' page of the documentation
(:mod:`tools.site_hooks`) and the app's section of keys (:mod:`tools.app_config`).
"""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from griffe import Docstring, DocstringNamedElement

from p2pft_flower.config import LearningConfig, MethodConfig, RuntimeConfig
from p2pft_flower.config.bounds import BOUNDS

__all__ = ["CONCERNS", "Key", "keys_of", "markdown", "plain", "summary"]

CONCERNS = (MethodConfig, LearningConfig, RuntimeConfig)
"""The dataclasses of the run-config, in its order."""

_CODE = re.compile(r"``(.+?)``")
_ROLE = re.compile(r":\w+:`~?([\w.]+)`")
_DOCUMENT = re.compile(r"\bdocs/([\w-]+)\.md\b")


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes
    ----------
    name : str
        The key, in kebab-case.
    type : type
        bool, int, float or str.
    default : object
        Its default; None if it must be given.
    choices : tuple of str
        All its values but the empty text, if it has only a few; else empty.
    bounds : tuple of (float, float), optional
        Its least and its largest value; None if its check is another.
    text : str
        Its meaning: one paragraph of reStructuredText.
    """

    name: str
    type: type
    default: object
    choices: tuple[str, ...]
    bounds: tuple[float, float] | None
    text: str


def summary(concern: type) -> str:
    """Return the first line of a dataclass's docstring, without its full stop."""
    return (concern.__doc__ or "").partition("\n")[0].rstrip(".")


def keys_of(concern: type) -> list[Key]:
    """Return the keys of a dataclass, in the order of its fields.

    Raises
    ------
    ValueError
        If its docstring has not the names of its fields, once each and in their order.
    """
    items: list[DocstringNamedElement] = [
        item
        for section in Docstring(concern.__doc__ or "", lineno=1).parse("numpy")
        if section.kind.value in ("attributes", "parameters")
        for item in section.value
    ]
    known = fields(concern)
    if [item.name for item in items] != [f.name for f in known]:
        raise ValueError(f"{concern.__name__}: its docstring has {[item.name for item in items]}")
    return [
        _key(f, str(item.annotation), " ".join(item.description.split()))
        for f, item in zip(known, items, strict=True)
    ]


def _key(f: Field[Any], annotation: str, text: str) -> Key:
    name = f.name.replace("_", "-")
    if text.startswith(f"``{name}``: "):  # a site's docstring has the key beside the field
        text = text.removeprefix(f"``{name}``: ")
        text = text[0].upper() + text[1:]
    choices = tuple(filter(None, re.findall(r'"([^"]*)"', annotation)))
    default = None if f.default is MISSING else f.default
    kind = {"bool": bool, "int": int, "float": float}.get(annotation, str)
    return Key(name, kind, default, choices, BOUNDS.get(f.name), text)


_FIELDS = sorted(
    (f.name for concern in CONCERNS for f in fields(concern) if "_" in f.name), key=len, reverse=True
)
_FIELD = re.compile(rf"\b({'|'.join(_FIELDS)})\b")


def _kebab(code: str) -> str:
    return _FIELD.sub(lambda m: m[0].replace("_", "-"), code)


def plain(text: str) -> str:
    """Return a key's meaning as plain text, in which keys have the names of the run-config."""
    return _ROLE.sub(r"\1", _CODE.sub(lambda m: _kebab(m[1]), text))


def markdown(text: str) -> str:
    """Return a key's meaning as Markdown for a page beside the documents' folder, with links to them."""
    linked = _DOCUMENT.sub(r"[\1](docs/\1.md)", text)
    return _ROLE.sub(r"`\1`", _CODE.sub(lambda m: f"`{_kebab(m[1])}`", linked))
