"""What is said of each class to a text tower: the class's name, put into templates.

``class-names`` is the path of a JSON file with one object: each of the dataset's classes and the name that a
reader would use. ``prompts`` is one template, in which ``{}`` stands for the name; or ``imagenet80``,
OpenAI's 80 templates for ImageNet; or the path of a text file with a template a line.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from p2pft_flower.errors import ConfigError, DataError, did_you_mean
from p2pft_flower.learning.data.names import some_names
from p2pft_flower.learning.model.tower_names import require_open_clip

__all__ = [
    "IMAGENET",
    "PLACE",
    "ClassTexts",
    "check_prompts",
    "class_texts",
    "class_texts_here",
    "read_class_names",
    "read_prompts",
]

IMAGENET = "imagenet80"
"""The value of ``prompts`` that means OpenAI's templates."""

PLACE = "{}"
"""What stands in a template for the class's name."""

_MOST = 10_000
"""Most templates."""


@dataclass(frozen=True)
class ClassTexts:
    """The texts of C classes.

    Attributes
    ----------
    names : tuple of str
        The name of each class, as it is put into a template, (C).
    templates : tuple of str
        The templates, with :data:`PLACE` in each.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]

    def of(self, template: str) -> list[str]:
        """Return the classes' texts by one template, (C)."""
        return [template.replace(PLACE, name) for name in self.names]

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of names and templates."""
        return sha256(json.dumps([self.names, self.templates]).encode()).hexdigest()


def check_prompts(prompts: str) -> None:
    """Refuse a value of ``prompts`` that is neither a template, nor a path, nor a known word.

    Raises
    ------
    ConfigError
        When ``prompts`` is none of these.
    """
    if PLACE in prompts or prompts == IMAGENET or Path(prompts).expanduser().is_absolute():
        return
    raise ConfigError(
        f"prompts = {prompts!r}: must be a template with {{}} where the class's name stands, such as "
        f"'a photo of a {{}}.', or {IMAGENET}, or the absolute path of a text file with a template a line"
        f"{did_you_mean(prompts, [IMAGENET])}"
    )


def read_prompts(prompts: str) -> tuple[str, ...]:
    """Return the templates that the run-config's ``prompts`` means.

    Raises
    ------
    ConfigError
        When the value is wrong (:func:`check_prompts`), or open_clip is missing, which has ``imagenet80``.
    DataError
        When the file cannot be read, has no template, or a line without ``{}`` (the message gives the line's
        number).
    """
    check_prompts(prompts)
    if PLACE in prompts:
        return (prompts,)
    if prompts == IMAGENET:
        require_open_clip("prompts = imagenet80")
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template(PLACE) for template in OPENAI_IMAGENET_TEMPLATES)
    file = Path(prompts).expanduser()
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"prompts = {prompts!r}: cannot be read ({error}); give the file's place on this machine"
        ) from error
    kept = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not 1 <= len(kept) <= _MOST:
        raise DataError(
            f"prompts = {prompts!r}: the file has {len(kept)} templates; 1 to {_MOST} are possible"
        )
    for number, line in kept:
        if PLACE not in line:
            raise DataError(
                f"prompts = {prompts!r}: line {number}, {line[:80]!r}, has no {{}} where the class's name "
                "stands"
            )
    return tuple(line for _, line in kept)


def read_class_names(path: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a text tower is told, of each of ``classes``, (C).

    Parameters
    ----------
    path : str
        The run-config's ``class-names``; empty: the classes' own names, with spaces for underscores.
    classes : sequence of str
        The dataset's classes.

    Raises
    ------
    ConfigError
        When the path is not absolute.
    DataError
        When the file cannot be read, is no object of texts or has a class twice, lacks a class, or a name is
        blank or that of two classes (the message names them).
    """
    if not path:
        source = "class-names is not set, so the classes' own names count, with spaces for underscores"
        return _different(tuple(name.replace("_", " ") for name in classes), source)
    file = Path(path).expanduser()
    if not file.is_absolute():
        raise ConfigError(f"class-names = {path!r}: must be the absolute path of a JSON file")
    try:
        told = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_each_once)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"class-names = {path!r}: cannot be read as JSON ({error}); give the place of such a file on "
            "this machine"
        ) from error
    texts = isinstance(told, dict) and all(isinstance(name, str) and name.strip() for name in told.values())
    if not texts:
        raise DataError(
            f'class-names = {path!r}: must be one object such as {{"0": "zero", "1": "one"}}, a name for '
            "each class of the dataset"
        )
    if absent := [name for name in classes if name not in told]:
        raise DataError(
            f"class-names = {path!r}: no name for the classes {some_names(absent)}"
            f"{did_you_mean(absent[0], list(told))}; the dataset's own classes are the object's keys"
        )
    return _different(tuple(told[name].strip() for name in classes), f"class-names = {path!r}")


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the object of these keys and values; raise ValueError if a key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"more than once there: {some_names([k for k in found if keys.count(k) > 1])}")
    return found


def _different(names: tuple[str, ...], source: str) -> tuple[str, ...]:
    """Return ``names`` if none is blank or there twice; ``source`` says where they are from."""
    if not all(name.strip() for name in names):
        raise DataError(f"{source}: a class is called {' '!r}; give each a name that a text can have")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"{source}: more than one class is called {some_names(twice)}; texts cannot tell "
            "such classes apart: give each a name of its own"
        )
    return names


def class_texts(class_names: str, prompts: str, classes: Sequence[str]) -> ClassTexts:
    """Return the texts of ``classes``; see :func:`read_class_names` and :func:`read_prompts`."""
    return ClassTexts(read_class_names(class_names, classes), read_prompts(prompts))


def class_texts_here(class_names: str, prompts: str, classes: Sequence[str]) -> ClassTexts | None:
    """Return the texts of ``classes``; None where this machine lacks a file for them, or open_clip.

    Raises
    ------
    ConfigError, DataError
        As :func:`class_texts`.
    """
    template = PLACE in prompts or prompts == IMAGENET
    paths = [class_names, "" if template else prompts]
    if any(path and not Path(path).expanduser().is_file() for path in paths):
        return None
    if prompts == IMAGENET and importlib.util.find_spec("open_clip") is None:
        return None
    return class_texts(class_names, prompts, classes)
