"""Files of features and of text embeddings for tests: three classes round three centres."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import save_file

NAMES = ("dog", "cat", "狐")
WIDTH = 6


def centres():
    """Return a direction a class, (3, 6)."""
    return np.random.default_rng(7).normal(size=(len(NAMES), WIDTH))


def arrays(dtype=np.float32, spread=0.6):
    """Return the arrays of a file: 10 training samples of each class, 20 test samples."""
    rng = np.random.default_rng(8)
    held = {}
    for part, count in (("train", 10), ("test", 20)):
        labels = np.tile(np.arange(len(NAMES)), count)
        noise = rng.normal(size=(len(labels), WIDTH))
        held[f"{part}.features"] = (centres()[labels] + spread * noise).astype(dtype)
        held[f"{part}.labels"] = labels.astype(np.int64)
    return held


def write_features(file, held=None, *, dtype=np.float32, classes=NAMES):
    """Write ``held``, by default :func:`arrays`, and return ``file``."""
    held = {name: np.ascontiguousarray(a) for name, a in (arrays(dtype) if held is None else held).items()}
    if file.suffix == ".npz":
        np.savez(file, **held, **({} if classes is None else {"classes": np.array(classes)}))
    else:
        save_file(held, file, None if classes is None else {"classes": json.dumps(classes)})
    return file


def write_text(file, names=NAMES, *, rows=None, scale=None):
    """Write embeddings: the classes' own centres in the order of ``names``, ones for other names."""
    known = dict(zip(NAMES, centres(), strict=True))
    rows = np.array([known.get(name, np.ones(WIDTH)) for name in names]) if rows is None else rows
    if file.suffix == ".npz":
        np.savez(
            file, embeddings=rows, names=np.array(names), **({} if scale is None else {"logit-scale": scale})
        )
    else:
        told = {"names": json.dumps(names)} | ({} if scale is None else {"logit-scale": str(scale)})
        save_file({"embeddings": rows}, file, told)
    return file
