"""Embeddings of classes' names, which a vision-language model's text tower made, from a file.

A file is a ``.safetensors`` or an ``.npz`` with the array ``embeddings`` (M, D), and ``names``: the M names,
a JSON list in a safetensors file's metadata, an array of texts in an npz. ``logit-scale`` may stand there
too (safetensors: metadata; npz: a number); else it is 100, as in CLIP's models.

``p2pft text-embeddings`` writes such a file with its origin in the metadata: the digest of the text tower,
the names that the tower was told, and the templates. Two machines whose rows have the same origin have the
same rows but for roundings, as processors differ; so the origin is what peers compare.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError, did_you_mean
from p2pft_flower.learning.data.array_files import SCALE, SUFFIXES, ArrayFile, read_arrays
from p2pft_flower.learning.data.names import differing_unseen, some_names
from p2pft_flower.learning.model.class_texts import ClassTexts, class_texts_here

__all__ = [
    "CLIP_SCALE",
    "TextRows",
    "embeddings_for",
    "origin",
    "read_text_embeddings",
    "require_embeddings_file",
    "write_text_embeddings",
]

log = logging.getLogger(__name__)

LOGARITHM = "logit_scale"
"""The name, in CLIP's models, of the parameter whose exponential is the factor of the cosine."""

LEAST_USUAL = 10.0
"""A factor of the cosine below this one is told of."""

CLIP_SCALE = 100.0
"""exp of CLIP's learned temperature, at which its training clips it."""


class TextRows(NamedTuple):
    """The classes' directions.

    Attributes
    ----------
    rows : (C, D) float32 array
        A row a class, of length 1 each.
    scale : float
        The factor of the cosine in the logits.
    origin : dict of str to str
        The facts that decide the rows (:func:`origin`), or if these are not known a digest of the rows.
    """

    rows: npt.NDArray[np.float32]
    scale: float
    origin: dict[str, str]


def origin(tower: str, texts: ClassTexts) -> dict[str, str]:
    """Return the facts that decide rows: the ``tower``'s digest, and that of the classes' texts."""
    return {"text tower": tower, "class texts": texts.digest}


def write_text_embeddings(
    file: Path,
    classes: Sequence[str],
    rows: npt.NDArray[np.float32],
    scale: float,
    tower: str,
    texts: ClassTexts,
) -> None:
    """Write a file of text embeddings with its origin.

    Parameters
    ----------
    file : Path
        The file, which ends in ``.safetensors``; an earlier one is replaced at once or not at all.
    classes : sequence of str
        The C classes' names in the dataset.
    rows : (C, D) float32 array
        The embeddings.
    scale : float
        The factor of the cosine.
    tower : str
        The text tower's digest.
    texts : ClassTexts
        The texts that the tower has embedded.

    Raises
    ------
    DataError
        When the file cannot be written.
    """
    rows = np.ascontiguousarray(rows)
    metadata = {
        "names": json.dumps(list(classes)),
        SCALE: repr(scale),
        "tower": tower,
        "texts": json.dumps(list(texts.names)),
        "templates": json.dumps(list(texts.templates)),
        "digest": sha256(rows.tobytes()).hexdigest(),
    }
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"embeddings": rows}, partial, metadata)
        partial.replace(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: cannot be written ({error})") from error


def require_embeddings_file(path: str) -> Path:
    """Return the file of the run-config's ``text-embeddings``, after a check that it is there.

    Raises
    ------
    ConfigError
        When the path is not absolute, or has an unknown ending.
    DataError
        When there is no such file.
    """
    file = Path(path).expanduser()
    if not file.is_absolute() or file.suffix not in SUFFIXES:
        raise ConfigError(
            f"text-embeddings = {path!r}: must be the absolute path of a file that ends in "
            f"{' or '.join(SUFFIXES)}"
        )
    if not file.is_file():
        raise DataError(f"text-embeddings = {path!r}: there is no such file")
    return file


def embeddings_for(config: LearningConfig, classes: Sequence[str], width: int) -> TextRows:
    """Return the classes' embeddings in the file of ``text-embeddings``, which the settings fit.

    Parameters
    ----------
    config : LearningConfig
        The settings. With ``text-tower`` the file is a site's own, in place of the run's tower.
    classes, width
        As for :func:`read_text_embeddings`.

    Raises
    ------
    ConfigError, DataError
        When :func:`read_text_embeddings` raises it, or the file is of other texts than the run's names and
        templates, as far as these are on this machine.
    """
    found = read_text_embeddings(config.text_embeddings, classes, width)
    made = found.origin.get("class texts")
    if config.text_tower and made is not None:
        texts = class_texts_here(config.class_names, config.prompts, classes)
        if texts is not None and texts.digest != made:
            example = texts.of(texts.templates[0])[0] if texts.names else ""
            raise DataError(
                f"text-embeddings = {config.text_embeddings!r}: the file was made of other names or "
                f"templates than this run's, whose first text is {example!r}: make it anew with p2pft "
                "text-embeddings, or give the run the file's class-names and prompts"
            )
    return found


def read_text_embeddings(path: str, classes: Sequence[str], width: int) -> TextRows:
    """Return the classes' embeddings.

    Parameters
    ----------
    path : str
        The file.
    classes : sequence of str
        The C names that are looked up; the file may have more.
    width : int
        D, the numbers of a feature, or of an image in the space of texts; 0: not known yet.

    Raises
    ------
    ConfigError, DataError
        When the file cannot be read or was changed after it was made, a class is missing there (the message
        names it), the embeddings have another length than the features, or a number is not finite, or a row
        is 0.
    """
    file = require_embeddings_file(path)
    held = read_arrays(file, ("embeddings", SCALE, LOGARITHM), "names", "file of text embeddings")
    if LOGARITHM in {**held.arrays, **held.metadata}:
        raise DataError(
            f"{file}: it has {LOGARITHM}, which is a logarithm in CLIP's models: write its exponential, "
            f"about 100, as {SCALE}"
        )
    if "embeddings" not in held.arrays or held.names is None:
        raise DataError(f"{file}: a file of text embeddings has an array embeddings, and a list names")
    embeddings, names = held.arrays["embeddings"], held.names
    scale = CLIP_SCALE if held.scale is None else held.scale
    if embeddings.ndim != 2 or len(names) != len(embeddings) or embeddings.dtype.kind != "f":
        raise DataError(
            f"{file}: embeddings is {embeddings.shape} of {embeddings.dtype} for {len(names)} names; it must "
            "be floating-point, a row a name"
        )
    if width and embeddings.shape[1] != width:
        raise DataError(
            f"{file}: its embeddings have {embeddings.shape[1]} numbers each, the features {width}: another "
            "model's tower made them"
        )
    row = {name: i for i, name in enumerate(names)}
    if absent := [name for name in classes if name not in row]:
        raise DataError(
            f"{file}: no embedding of the classes {some_names(absent)}"
            f"{differing_unseen(absent[0], names) or did_you_mean(absent[0], names)}; the names there must "
            "be the dataset's own"
        )
    found = embeddings[[row[name] for name in classes]].astype(np.float32)
    lengths = np.linalg.norm(found.astype(np.float64), axis=1)
    if not np.isfinite(lengths).all() or not lengths.all():
        wrong = [name for name, length in zip(classes, lengths, strict=True) if not 0 < length < math.inf]
        raise DataError(f"{file}: the embeddings of {some_names(wrong)} are not finite, or 0")
    with np.errstate(over="ignore", under="ignore"):
        if not 0 < float(np.float32(scale)) < math.inf:
            raise DataError(f"{file}: logit-scale = {scale}: must be a positive number of float32")
    if scale < LEAST_USUAL:
        log.warning(
            "%s: logit-scale = %g, where CLIP's models have about 100: is it the logarithm?", file, scale
        )
    if (made := _origin_of(file, held, [row[name] for name in classes])) is not None:
        return TextRows(found, scale, made)  # of length 1, as the tower gave them
    found = (found / lengths[:, None]).astype(np.float32)
    digest = sha256(found.tobytes() + repr(scale).encode()).hexdigest()
    return TextRows(found, scale, {"text embeddings": digest})


def _origin_of(file: Path, held: ArrayFile, places: Sequence[int]) -> dict[str, str] | None:
    """Return the origin of the rows at ``places``; None if the file does not tell it.

    Raises
    ------
    DataError
        When what it tells cannot be read, or the embeddings were changed.
    """
    told = held.metadata
    if not {"tower", "texts", "templates", "digest"} <= told.keys():
        return None
    if sha256(np.ascontiguousarray(held.arrays["embeddings"]).tobytes()).hexdigest() != told["digest"]:
        raise DataError(f"{file}: its embeddings were changed after p2pft text-embeddings made them")
    try:
        names, templates = json.loads(told["texts"]), json.loads(told["templates"])
        texts = ClassTexts(tuple(str(names[i]) for i in places), tuple(map(str, templates)))
    except (ValueError, IndexError, TypeError, KeyError) as error:
        raise DataError(f"{file}: its metadata's texts or templates cannot be read ({error})") from error
    return origin(told["tower"], texts)
