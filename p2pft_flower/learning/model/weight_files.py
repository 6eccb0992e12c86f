"""The tensors in files of weights, by the files' own names.

Nothing of a pickle but tensors and plain containers is ever read (``weights_only``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from p2pft_flower.learning.model.weight_kinds import HEADER, REMEDY, UnreadableError, look_at_weights

__all__ = ["flatten", "number_fault", "read_tensors"]

_DEEPEST = 100
"""Largest depth of nested containers; a checkpoint has ten."""

_ADVICE = "weights_only"
"""A word in those errors of torch that advise to run a pickle's code."""


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file or a checkpoint of torch, with any file name.

    Returns
    -------
    dict of str to tensor
        The tensors by the file's own names; names of nested containers are joined by dots, as in
        ``state_dict.model.norm.weight``.

    Raises
    ------
    UnreadableError
        When the file is of another kind, damaged, or without usable tensors; the message says which.
    """
    begin, size = look_at_weights(file)
    if begin[HEADER : HEADER + 1] == b"{":
        return _read_safetensors(file, size)
    if begin.startswith(b"PK"):
        _refuse_other_archives(file)
    return flatten(_read_torch(file))


def flatten(checkpoint: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of nested containers by their dotted names.

    Raises
    ------
    UnreadableError
        When there are no tensors, a tensor has no name, or two tensors have the same name; when a tensor is
        sparse, quantised or has no values; when a container contains itself.
    """
    if isinstance(checkpoint, torch.Tensor):
        raise UnreadableError(
            f"it is a single tensor of shape {tuple(checkpoint.shape)}, without a name; {REMEDY}"
        )
    if not isinstance(checkpoint, Mapping):
        raise UnreadableError(f"it holds a {type(checkpoint).__name__}, not tensors by name; {REMEDY}")
    found: dict[str, torch.Tensor] = {}
    for name, tensor in _walk(checkpoint):
        if name in found:
            raise UnreadableError(f"it has two tensors named {name!r}")
        if tensor.is_quantized or tensor.layout is not torch.strided:
            kind = "quantised" if tensor.is_quantized else "sparse"
            raise UnreadableError(f"its tensor {name!r} is {kind}: give the weights as plain numbers")
        if tensor.is_meta:
            raise UnreadableError(f"it has a tensor without values, {name!r} (on the device meta); {REMEDY}")
        found[name] = tensor.detach()
    if not found:
        keys = ", ".join(repr(key) for key in list(checkpoint)[:8]) or "nothing"
        raise UnreadableError(f"it has no tensor, but {keys}")
    return found


def number_fault(tensor: torch.Tensor) -> str:
    """Return words for numbers in a tensor that are no weights; empty if all are weights.

    Weights are finite floating-point numbers of 16 bits or more: numbers of fewer bits, and whole numbers,
    are quantised, and their scale is elsewhere.
    """
    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
        kind = str(tensor.dtype).removeprefix("torch.")
        return f"{kind} numbers: was it quantised? Weights are floating-point numbers of 16 bits or more"
    if tensor.isfinite().all():
        return ""
    return "NaN" if tensor.isnan().any() else "infinity"


def _walk(checkpoint: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of nested containers in their order, each with its dotted name.

    Raises
    ------
    UnreadableError
        When a container is in itself, or too many containers are in one another.
    """
    around: list[tuple[Any, str, Iterator[tuple[Any, Any]]]] = [(checkpoint, "", _items(checkpoint))]
    while around:
        _, place, items = around[-1]
        item = next(items, None)
        if item is None:
            around.pop()
            continue
        key, value = item
        name = f"{place}.{key}" if place else str(key)
        if isinstance(value, torch.Tensor):
            yield name, value
        elif any(value is container for container, _, _ in around):
            raise UnreadableError(f"it has a container in itself, at {name!r}; {REMEDY}")
        elif len(around) >= _DEEPEST:
            raise UnreadableError(f"it has more than {_DEEPEST} containers in one another; {REMEDY}")
        else:
            around.append((value, name, _items(value)))


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return iter(value.items())
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return iter(enumerate(value))
    return iter(())  # epochs, learning rates and the like


def _read_safetensors(file: Path, size: int) -> dict[str, torch.Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        whole = _safetensors_size(file)
        if whole is not None and size < whole:
            raise UnreadableError(
                f"it is a truncated safetensors file, {size:,} bytes of at least {whole:,}: was a download "
                "or a copy cut off?"
            ) from error
        raise UnreadableError(f"it is a damaged safetensors file ({_first_line(error)})") from error
    return flatten(tensors)


def _safetensors_size(file: Path) -> int | None:
    """Return a safetensors file's size in bytes by its header; a lower bound if the header is cut off.

    None if the header is damaged.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(HEADER), "little")
        if length > 2**30:
            return None
        header = opened.read(length)
    if len(header) < length:
        return HEADER + length
    try:
        ends = [e["data_offsets"][1] for name, e in json.loads(header).items() if name != "__metadata__"]
        return HEADER + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _refuse_other_archives(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UnreadableError(
            "it is truncated or damaged: the end of the archive is missing; was a download or a copy cut off?"
        ) from error
    if not any(name.endswith("data.pkl") for name in names):
        inside = ", ".join(names[:4]) or "nothing"
        raise UnreadableError(
            f"it is a zip archive of other files ({inside}): unpack it, and give the weights"
        )
    if any(name.endswith("constants.pkl") for name in names):
        raise UnreadableError(f"it is a TorchScript module, that is code and not weights only; {REMEDY}")


def _read_torch(file: Path) -> Any:
    # Checkpoints of DeiT, MAE and DINO carry the arguments of their training script.
    safe = getattr(torch.serialization, "safe_globals", None)  # torch >= 2.5
    allowed = contextlib.nullcontext() if safe is None else safe([argparse.Namespace])
    try:
        with allowed, file.open("rb") as opened:  # by the file's name torch would assume another format
            return torch.serialization.load(opened, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers raise many kinds of errors
        needs = _code_in(file, error)
        if not needs:
            raise UnreadableError(
                f"it is a truncated or damaged file of torch ({type(error).__name__}: {_first_line(error)})"
            ) from error
        whole = "a whole pickled module" if any(_is_model(name) for name in needs) else "a pickle of objects"
        named = ", ".join(needs[:4]) + (", …" if len(needs) > 4 else "")
        raise UnreadableError(
            f"it is {whole} that needs code ({named}), and weights only, never code, are read from a file; "
            f"{REMEDY}"
        ) from error


def _code_in(file: Path, error: Exception) -> list[str]:
    """Return the classes and functions that a pickle asks for, as far as torch reports them."""
    if _ADVICE not in str(error):
        return []
    ask = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)  # torch >= 2.6
    named: list[str] = []
    if ask is not None:
        with contextlib.suppress(Exception), file.open("rb") as opened:  # the file may be damaged
            named = [name for name in ask(opened) if name != "argparse.Namespace"]
    asked_for = re.findall(r"(?:GLOBAL|global|type) ([\w.]+\.\w+)", str(error))[:1]
    return sorted(named or asked_for, key=lambda name: (".models." not in name, not _is_model(name), name))


def _is_model(name: str) -> bool:
    return name.startswith(
        ("timm.models.", "torch.nn.modules.", "torchvision.models.", "transformers.models.")
    )


def _first_line(error: BaseException) -> str:
    """Return the first line of an error without torch's advice to read code from files."""
    lines = str(error).strip().splitlines() or [""]
    return "it cannot be unpickled" if _ADVICE in lines[0] else lines[0][:200]
