"""Weights of a file or of timm's hub, in a model of timm: each tensor is used, left by intention, or refused.

The tensors of all sources but JAX archives (`jax_archives.py`) take the same way: they are read
(`weight_files.py`), accounted for (`accounting.py`), loaded by timm, and compared with the loaded model. timm
alone would fill in the tensors that it finds and leave the rest random. Heads are left, as a new head is
drawn; but not those of image towers, which lead to the space of texts.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_pretrained
from torch import nn

from p2pft_flower.errors import DataError
from p2pft_flower.learning.model.account import Account
from p2pft_flower.learning.model.accounting import account_for
from p2pft_flower.learning.model.image_size import quiet_timm
from p2pft_flower.learning.model.jax_archives import is_jax_archive, load_archive
from p2pft_flower.learning.model.namings import timm_filter
from p2pft_flower.learning.model.weight_files import flatten, number_fault, read_tensors
from p2pft_flower.learning.model.weight_kinds import UnreadableError

__all__ = ["FROM_HUB", "load_weights"]

Tensors = dict[str, torch.Tensor]

FROM_HUB = "from timm's hub (offline? give weights = /path/file.safetensors)"

log = logging.getLogger(__name__)


def load_weights(name: str, model: Any, file: Path | None, outputs: int = 0, **size: Any) -> nn.Module:
    """Build a model of timm with the weights of a file or of timm's hub, without a head or with its own.

    Parameters
    ----------
    name : str
        The model's name in timm, perhaps with a tag.
    model : nn.Module
        The same model without values, on torch's device ``meta``.
    file : Path or None
        A checkpoint of torch, a safetensors file or a JAX archive (``.npz``), with any name; None: the
        weights that timm's registry lists for ``name``, from its hub.
    outputs : int
        Outputs of the head that is loaded too, as that of an image tower; 0: the model has no head.
    **size
        timm's options to build the model for another size of images.

    Returns
    -------
    nn.Module
        The model, whose tensors all come from the source. A line of the log counts the source's left tensors.

    Raises
    ------
    DataError
        When the source cannot be read, or a tensor of the model or of the source has no counterpart; the
        message describes the source and its missing and extra tensors.
    """
    if file is not None:
        label = f"weights = {str(file)!r}"
        unread = f"model = {name!r}: its weights could not be loaded from {file}"
        archive: Path | None = file if file.is_file() and is_jax_archive(file) else None
        try:
            tensors = {} if archive else read_tensors(file)
        except UnreadableError as error:
            raise DataError(f"{unread}: {error}") from error
    else:
        tag = model.pretrained_cfg.get("tag")
        label = f"the weights of timm's hub for {name}" + (f" (tag {tag})" if tag and "." not in name else "")
        unread = f"model = {name!r}: its weights could not be loaded {FROM_HUB}"
        try:
            tensors, archive = _from_hub(model.pretrained_cfg)
        except Exception as error:  # the hub's client raises many kinds of errors
            raise DataError(f"{unread}: {_cause(error)}") from error
    if archive is not None and outputs:
        raise DataError(f"{unread}: a JAX archive has no way to an image tower's texts that is known here")
    if archive is not None:
        loaded = timm.create_model(name, pretrained=False, num_classes=0, **size)
        try:
            summary = load_archive(name, loaded, archive, label)
        except UnreadableError as error:
            raise DataError(f"{unread}: {error}") from error
        _check_numbers(name, loaded, {}, label)
        log.info("%s: %s", label, summary)
        return loaded  # type: ignore[no-any-return]
    account = account_for(name, model, tensors, label, of_timm=file is None)
    loaded = _loaded_by_timm(name, model, account, outputs, size)
    _check_loaded(loaded, account, label)
    _check_numbers(name, loaded, account.sources, label)
    log.info("%s: %s", label, account.describe(model))
    return loaded


class _Located(Exception):  # noqa: N818 - no error: it leaves timm's loader at the right moment
    """Raised with the path of a file of weights that needs timm's own loader."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = Path(path)


class _Asking(nn.Module):
    """A stand-in for the model whose weights timm fetches."""

    def load_pretrained(self, path: str, *_: Any) -> None:
        raise _Located(path)


def _from_hub(cfg: Any) -> tuple[Tensors, Path | None]:
    """Have timm fetch the weights of a registry entry; return the tensors, or else the archive with them."""
    found: list[Any] = []

    def keep(state: Any, _: nn.Module) -> dict[str, Any]:
        found.append(state)
        return {}

    # timm only fetches by the entry; this package reads the result.
    entry = {**cfg, "first_conv": None, "classifier": None}
    try:
        load_pretrained(_Asking(), entry, filter_fn=keep, strict=False)
    except _Located as located:
        return {}, located.path
    return flatten(found[0]), None


def _cause(error: Exception) -> str:
    """Return the cause of an error of timm or torch, in words, without the advice to read code from files."""
    if "weights_only" in str(error):
        return "it is a pickle of more than tensors, which needs code, and weights only are read"
    return str(error)


def _loaded_by_timm(name: str, model: Any, account: Account, outputs: int, size: dict[str, Any]) -> nn.Module:
    cfg = model.pretrained_cfg
    entry = {
        **cfg,
        "state_dict": account.handed,
        "custom_load": False,
        # Another number than the model's: timm leaves the head out, and is not strict.
        "num_classes": outputs or -1,
        "classifier": cfg.get("classifier") or "head",
    }
    # Built with pretrained=True, a hybrid would let its backbone fetch weights of its own.
    loaded: nn.Module = timm.create_model(name, pretrained=False, num_classes=outputs, **size)
    with quiet_timm():
        load_pretrained(loaded, entry, num_classes=outputs, filter_fn=timm_filter(name), strict=False)
    return loaded


def _check_loaded(model: nn.Module, account: Account, label: str) -> None:
    """Compare the loaded model with the account; only resampled tensors may differ.

    Raises
    ------
    DataError
        When a tensor differs.
    """
    for name, tensor in model.state_dict().items():
        if account.is_resampled(name) or name not in account.values:  # an unused counter
            continue
        if not torch.equal(tensor, account.values[name].to(tensor.dtype)):
            raise DataError(
                f"{label}: timm {timm.__version__} loads the model's {name!r} otherwise than the file has it"
            )


def _check_numbers(
    model_name: str, model: nn.Module, sources: Mapping[str, Collection[str]], label: str
) -> None:
    """Check the numbers that have arrived in the model, in its own precision.

    Raises
    ------
    DataError
        When a number is NaN or infinite, as a large number of 64 bits becomes, or a variance is negative.
    """
    for name, tensor in model.state_dict().items():
        if tensor.isfinite().all() and not (name.endswith("running_var") and (tensor < 0).any()):
            continue
        what = "a negative variance" if tensor.isfinite().all() else number_fault(tensor)
        theirs = [repr(source) for source in sorted(sources.get(name, ())) if source != name]
        made = f", made of {', '.join(theirs)}," if theirs else ""
        kind = str(tensor.dtype).removeprefix("torch.")
        raise DataError(
            f"{label} do not fit model {model_name!r}: its {name!r}{made} has {what} once it is loaded, "
            f"as {kind}"
        )
