"""Archives of NumPy arrays (``.npz``), as Google published its ViTs: every array is accounted for.

timm's reader looks up the arrays that it needs, and reports neither the other arrays nor the tensors that it
does not set. So the reader first reads dye: an archive of the same names and shapes, each array filled with a
number of its own, into a copy of the model that is filled with NaN. Tensors that are NaN afterwards were
never set, and the numbers that have arrived show which arrays were used, and how much of each.
"""

from __future__ import annotations

import copy
import math
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from p2pft_flower.errors import DataError
from p2pft_flower.learning.model.namings import is_training_state
from p2pft_flower.learning.model.weight_kinds import UnreadableError

__all__ = ["is_jax_archive", "load_archive"]

_HEAD = re.compile(r"(^|/)(head|pre_logits)/")
_ROOTS = tuple(f"{p}embedding/kernel" for p in ("", "opt/target/", "params/", "params/img/"))
"""Names by which timm finds the model in an archive."""

_RESAMPLED = re.compile(r"(^|/)pos_embedding$")

Arrays = Mapping[str, npt.NDArray[Any]]


def is_jax_archive(file: Path) -> bool:
    """Return whether a file is an archive of NumPy arrays, by its content."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def load_archive(name: str, model: Any, file: Path, label: str) -> str:
    """Load an archive of NumPy arrays (``.npz``, as Google published its ViTs) into a model of timm.

    Parameters
    ----------
    name : str
        The model's name, for messages.
    model : nn.Module
        The model without a head; its values are replaced.
    file : Path
        The archive.
    label : str
        Words that name the archive in messages.

    Returns
    -------
    str
        A line that says how many tensors were set, whether some were resampled, and which arrays were not
        used.

    Raises
    ------
    UnreadableError
        When the archive cannot be read, or timm cannot read archives for this model.
    DataError
        When a tensor of the model has no array, an array has no tensor or would be used in part only, an
        array has NaN or infinity, or the archive has two copies of the model.
    """
    if not hasattr(model, "load_pretrained") or not hasattr(model, "patch_embed"):
        raise UnreadableError("it is an archive of NumPy arrays, which timm reads into ViTs only")
    arrays = _read(file)
    faults = _differences(arrays, model)
    if not faults:
        dyed = copy.deepcopy(model)
        for tensor in dyed.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
        try:
            with tempfile.TemporaryDirectory() as folder:
                dye = Path(folder, "dye.npz")
                filled = {n: np.full(a.shape, i, np.float32) for i, (n, a) in enumerate(arrays.items())}
                np.savez_compressed(dye, **filled)  # type: ignore[arg-type]  # its stubs forbid any other key
                dyed.load_pretrained(str(dye))
        except KeyError as error:  # the message begins with the missing name
            wanted = str(error.args[0]).split(" ")[0]
            like = [n for n in arrays if n.rsplit("/", 1)[-1] == wanted.rsplit("/", 1)[-1]]
            found = f" (it has {like[0]!r})" if like else ""
            faults.append(f"an array is missing from it: {wanted!r}{found}")
        except Exception as error:  # timm's reader assumes that archive and model fit
            said = str(error).replace(str(dye), str(file))
            faults.append(f"timm's own reader of archives fails ({type(error).__name__}: {said})")
        else:
            faults, left = _account(arrays, dyed.state_dict())
    if faults:
        few = ", ".join(map(repr, list(arrays)[:3]))
        raise DataError(
            f"{label} do not fit model {name!r}: {'; '.join(faults)}. It has {len(arrays)} arrays (names as "
            f"a JAX ViT's): {few}, …"
        )
    model.load_pretrained(str(file))
    rest = f"; left: {', '.join(left)}" if left else ""
    return f"the model's {len(model.state_dict())} tensors are there{_resampling(arrays, model)}{rest}"


def _resampling(arrays: Arrays, model: Any) -> str:
    """Return words on position embeddings for another number of tokens than the model's, else ""."""
    grid = " × ".join(map(str, model.patch_embed.grid_size))
    own = model.pos_embed.shape[1]
    if any(_RESAMPLED.search(n) and a.shape[-2] != own for n, a in arrays.items()):
        return f", position embeddings resampled to {grid} patches"
    return ""


def _read(file: Path) -> Arrays:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise UnreadableError(
                "it is an archive of NumPy objects, which are pickles; only arrays of numbers are read"
            ) from error
        raise UnreadableError(f"it is a damaged archive of NumPy arrays ({error})") from error


def _differences(arrays: Arrays, model: Any) -> list[str]:
    """Return the differences of archive and model as a whole, in words, before the model is loaded."""
    if not any(n in arrays for n in _ROOTS):
        looked = ", ".join(map(repr, _ROOTS))
        like = [repr(n) for n in arrays if n.endswith("embedding/kernel")]
        return [f"{looked} are all missing from it" + (f" (it has {', '.join(like[:3])})" if like else "")]
    blocks = {m[1] for n in arrays if (m := re.search(r"encoderblock_(\d+)/", n))}
    depth, faults = len(blocks), []
    for name, array in arrays.items():
        if name.endswith("Transformer/encoderblock/LayerNorm_0/scale"):
            depth = len(array)  # all blocks are stacked
        own = getattr(model.patch_embed.proj, "weight", None)  # some hybrids' backbones make the tokens
        if re.search(r"(^|/)embedding/kernel$", name) and array.ndim == 4 and own is not None:
            if array.shape[:2] != tuple(own.shape[-2:]):
                faults.append(_differ("its patches are {} × {} pixels", array.shape[:2], own.shape[-2:]))
            if array.shape[-1] != own.shape[0]:
                faults.append(f"it is {array.shape[-1]} wide, the model {own.shape[0]}")
        if _RESAMPLED.search(name):
            faults += _position_faults(array, model)
        heads = model.blocks[0].attn.num_heads
        if name.endswith("/query/kernel") and "encoderblock" in name and array.shape[-2] != heads:
            faults.append(f"it has {array.shape[-2]} attention heads, the model {heads}")
        if array.dtype.kind != "f":
            faults.append(f"{name!r} has no floating-point numbers, but {array.dtype}")
        elif not np.isfinite(array).all():
            faults.append(f"{name!r} has {'NaN' if np.isnan(array).any() else 'infinity'}")
    if depth and depth != len(model.blocks):
        faults.insert(0, f"it has {depth} blocks, the model {len(model.blocks)}")
    return list(dict.fromkeys(faults))


def _position_faults(array: npt.NDArray[Any], model: Any) -> list[str]:
    """Return the fault, in words, of position embeddings that fit no square grid of patches, if any."""
    own = tuple(model.pos_embed.shape)
    if array.shape == own:
        return []
    if array.ndim != 3 or len(array) != 1 or array.shape[-1] != own[-1]:
        return [f"its position embeddings are {array.shape}, the model's {own}"]
    prefix = own[1] - model.patch_embed.num_patches
    patches = array.shape[1] - prefix
    if patches > 0 and math.isqrt(patches) ** 2 == patches:
        return []
    return [
        f"its position embeddings are for {array.shape[1]} tokens: without the {prefix} that the model has "
        f"before its patches, {patches} are left, which is no square grid"
    ]


def _differ(words: str, theirs: Any, ours: Any) -> str:
    return f"{words.format(*theirs)}, the model's {ours[0]} × {ours[1]}"


def _account(arrays: Arrays, dyed: Mapping[str, torch.Tensor]) -> tuple[list[str], list[str]]:
    """Return faults (tensors not set, arrays not used) and groups of arrays left by intention, in words."""
    arrived = torch.zeros(len(arrays), dtype=torch.int64)
    unset = []
    for name, tensor in dyed.items():
        if tensor.isnan().any():
            unset.append(name)
        else:
            arrived += tensor.round().long().flatten().bincount(minlength=len(arrays))
    used = dict(zip(arrays, arrived.tolist(), strict=True))
    common = _beginning([name for name, count in used.items() if count])
    left: Counter[str] = Counter()
    extra, partly = [], []
    for name, count in used.items():
        if not count and _HEAD.search(name):
            left["head"] += 1
        elif not count and not name.startswith(common):
            left[repr(name.split("/")[0] + "/")] += 1
        elif not count:
            extra.append(name)
        elif count != arrays[name].size and not _RESAMPLED.search(name):
            partly.append(f"{name!r} ({count:,} of {arrays[name].size:,} numbers)")
    faults = _other_copies([name for name, count in used.items() if count], common, arrays)
    if unset:
        faults.append(f"{len(unset)} of the model's tensors, as {unset[0]!r}, are missing from it")
    if extra:
        faults.append(f"{len(extra)} arrays, as {extra[0]!r}, are extra in it")
    if partly:
        faults.append(f"{len(partly)} arrays would be used in part only, as {partly[0]}")
    return faults, [f"{group} ({n})" for group, n in left.items()]


def _other_copies(used: list[str], place: str, arrays: Arrays) -> list[str]:
    """Return a fault, in words, for each place other than ``place`` that holds the model, or nearly."""
    own = {name.removeprefix(place) for name in used}
    ends = dict.fromkeys(name[: -len(key)] for name in arrays for key in own if name.endswith(key))
    faults = []
    for other in ends:
        there = {name.removeprefix(other) for name in arrays if name.startswith(other)}
        if other != place and not is_training_state(other) and len(own & there) >= 0.9 * len(own):
            faults.append(
                f"it has another copy of the model under {other!r}, beside that under {place!r}: save the "
                "one that is meant alone"
            )
    return faults


def _beginning(names: list[str]) -> str:
    """Return the beginning that all names share, up to a slash."""
    if not names:
        return ""
    one, two = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), len(one))
    return one[: one[:same].rfind("/") + 1]
