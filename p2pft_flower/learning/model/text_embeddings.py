"""Embeddings of classes' names, which a vision-language model's text tower made, from a file.

A file is a ``.safetensors`` or an ``.npz`` with the array ``embeddings`` (M, D), and ``names``: the M names,
a JSON list in a safetensors file's metadata, an array of texts in an npz. ``logit-scale`` may stand there
too (safetensors: metadata; npz: a number); else it is 100, as in CLIP's models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import ConfigError, DataError, did_you_mean
from p2pft_flower.learning.data.array_files import SCALE, SUFFIXES, read_arrays
from p2pft_flower.learning.data.names import some_names

__all__ = ["CLIP_SCALE", "read_text_embeddings", "require_embeddings_file"]

CLIP_SCALE = 100.0
"""exp of CLIP's learned temperature, at which its training clips it."""


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


def read_text_embeddings(
    path: str, classes: Sequence[str], width: int
) -> tuple[npt.NDArray[np.float32], float]:
    """Return the classes' embeddings, (C, D) float32 of length 1 each, and the scale of the logits.

    Parameters
    ----------
    path : str
        The file.
    classes : sequence of str
        The C names that are looked up; the file may have more.
    width : int
        D, the numbers of a feature.

    Raises
    ------
    ConfigError, DataError
        When the file cannot be read, a class is missing there (names it), the embeddings have another length
        than the features, or a number is not finite, or a row is 0.
    """
    file = require_embeddings_file(path)
    held = read_arrays(file, ("embeddings", SCALE), "names", "file of text embeddings")
    if "embeddings" not in held.arrays or held.names is None:
        raise DataError(f"{file}: a file of text embeddings has an array embeddings, and a list names")
    embeddings, names = held.arrays["embeddings"], held.names
    scale = CLIP_SCALE if held.scale is None else held.scale
    if embeddings.ndim != 2 or len(names) != len(embeddings) or embeddings.dtype.kind != "f":
        raise DataError(
            f"{file}: embeddings is {embeddings.shape} of {embeddings.dtype} for {len(names)} names; it must "
            "be floating-point, a row a name"
        )
    if embeddings.shape[1] != width:
        raise DataError(
            f"{file}: its embeddings have {embeddings.shape[1]} numbers each, the features {width}: another "
            "model's tower made them"
        )
    row = {name: i for i, name in enumerate(names)}
    if absent := [name for name in classes if name not in row]:
        raise DataError(
            f"{file}: no embedding of the classes {some_names(absent)}{did_you_mean(absent[0], names)}; the "
            "names there must be the dataset's own"
        )
    found = embeddings[[row[name] for name in classes]].astype(np.float32)
    lengths = np.linalg.norm(found.astype(np.float64), axis=1)
    if not np.isfinite(lengths).all() or not lengths.all():
        wrong = [name for name, length in zip(classes, lengths, strict=True) if not 0 < length < math.inf]
        raise DataError(f"{file}: the embeddings of {some_names(wrong)} are not finite, or 0")
    with np.errstate(over="ignore", under="ignore"):
        if not 0 < float(np.float32(scale)) < math.inf:
            raise DataError(f"{file}: logit-scale = {scale}: must be a positive number of float32")
    return (found / lengths[:, None]).astype(np.float32), scale
