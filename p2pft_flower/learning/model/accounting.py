"""Finding a model's weights in a source, and the tensors that are missing, extra, or left.

The place is found by trial: each prefix with tensors enough, under each known naming, is compared with the
model's body. Traced tensors go through timm's own translation and remember the tensors of the source from
which they were made.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from p2pft_flower.errors import DataError
from p2pft_flower.learning.model.account import (
    Account,
    Tensors,
    complaint,
    how_many,
    kind_of,
    listed,
    patches_of,
)
from p2pft_flower.learning.model.image_size import quiet_timm
from p2pft_flower.learning.model.namings import (
    NAMINGS,
    Filter,
    is_training_state,
    original_name,
    timm_filter,
)
from p2pft_flower.learning.model.weight_files import number_fault

__all__ = ["account_for"]

_NEVER_NEEDED = re.compile(
    r"(head|head_dist|heads|fc|classifier|cls_classifier|distillation_classifier|pre_logits|pooler)\."
    r"|proj$|decoder|mask_token|.*(relative_position_index|relative_coords_table|attn_mask)$"
)
"""Names, from the model's root on, that a file may have although the model lacks them: heads, a decoder, …"""

_COUNTER = re.compile(r"\.num_batches_tracked$")
"""A batch norm's counter of training batches, which is never used while its statistics are frozen."""

_BLOCK = re.compile(r"(blocks\.\d+|(layers|stages|transformers)\.\d+\.blocks\.\d+)\.")
"""Beginning of the name of a tensor of a block."""

_AVERAGED = {"ema", "teacher", "target"}
"""Words in the name of a copy of the model that is the average of another copy over the training."""

_PARTS = (
    ("dist_token", "it is of a distilled DeiT, the model is a plain one", "of a distilled DeiT"),
    ("cls_token", "it has a class token, the model none", "with a class token"),
    ("reg_token", "it has register tokens, the model none", "with register tokens"),
    (
        "norm_pre.",
        "it has a norm before the blocks (norm_pre), the model none",
        "with a norm before its blocks",
    ),
    ("attn_pool.", "it pools by attention (attn_pool), the model does not", "pooling by attention"),
    (
        "fc_norm.",
        "it was made with pooling over patches (fc_norm), the model pools otherwise",
        "with fc_norm",
    ),
    ("blocks.0.ls1.", "its blocks have layer scales, the model's none", "with layer scales in its blocks"),
    ("blocks.0.attn.q_norm.", "its queries and keys are normalised, the model's are not", "with q_norm"),
)
"""Beginnings of names; the sentence if only the file has such names; the model's kind if only that does."""


class _Traced(torch.Tensor):
    """A tensor that remembers the tensors of the file from which any operations made it."""

    sources: frozenset[str]

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> _Traced:
        traced = tensor.as_subclass(cls)
        traced.sources = frozenset({name})
        return traced

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        sources = frozenset(s for t in _tensors_in((args, kwargs or {})) for s in getattr(t, "sources", ()))
        made = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        for tensor in _tensors_in(made):
            tensor.sources = sources
        return made


def _tensors_in(value: Any) -> Iterator[_Traced]:
    if isinstance(value, _Traced):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors_in(inner)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))


def account_for(name: str, model: nn.Module, tensors: Tensors, label: str, *, of_timm: bool) -> Account:
    """Find a model's weights in a source.

    Parameters
    ----------
    name : str
        The model's name in timm.
    model : nn.Module
        The model without a head, with or without values.
    tensors : dict of str to tensor
        The source's tensors, by the source's own names.
    label : str
        Words that name the source in messages.
    of_timm : bool
        Whether timm's registry lists the source for this very name.

    Returns
    -------
    Account
        An account that fits.

    Raises
    ------
    DataError
        When the source does not hold the model as a whole, or holds it several times and none of them is
        the average of the others.
    """
    translate = timm_filter(name)
    weights = {n: t for n, t in tensors.items() if not is_training_state(n)}
    enough = len(model.state_dict()) // 2

    def read(place: str, here: Tensors) -> list[Account]:
        found = []
        for rename in NAMINGS:
            traced: Tensors = {n: _Traced.of(place + n, t) for n, t in here.items()}
            if (renamed := rename(traced)) is not None:
                found.append(_compare(place, renamed, tensors, model, translate, of_timm=of_timm))
        return found

    accounts = []
    for place in _places(weights, enough):
        accounts += read(place, _below(place, weights))
    inner = {a.beginning for a in accounts if a.is_copy}
    for place in _places(weights, enough):  # a nested copy is no part of the outer one
        own, here = _without(place, inner, weights), _below(place, weights)
        if enough <= len(own) < len(here):
            accounts += read(place, own)
    copies = _copies(accounts)
    if len(copies) > 1:
        return _choose(copies, name, label)
    fitting = [a for a in copies if a.fits]
    if fitting:
        return fitting[0]
    rooted = [a for a in accounts if "patch_embed.proj.weight" in a.values] or accounts
    best = copies[0] if copies else min(rooted, key=_distance)
    raise DataError(f"{label} do not fit model {name!r}: {complaint(best, tensors)}")


def _below(place: str, tensors: Tensors) -> Tensors:
    """Return the tensors whose names begin with ``place``, by the rest of their names."""
    return {n.removeprefix(place): t for n, t in tensors.items() if n.startswith(place)}


def _without(place: str, inner: Collection[str], tensors: Tensors) -> Tensors:
    """Return the tensors of :func:`_below` without the copies of the model that lie deeper."""
    deeper = tuple(other for other in inner if other != place and other.startswith(place))
    return _below(
        place, {n: t for n, t in tensors.items() if not n.startswith(deeper)} if deeper else tensors
    )


def _distance(account: Account) -> tuple[int, int]:
    return len(account.missing) + account.unlike, len(account.extra) + len(account.faults)


def _copies(accounts: list[Account]) -> list[Account]:
    """Return the copies of the model in the source, each in the reading that fits it best.

    Two readings are of the same copy if they share a tensor. A copy need not fit: a copy with an added or a
    missing tensor may still be the one that is meant.
    """
    copies: list[tuple[frozenset[str], Account]] = []
    for account in sorted((a for a in accounts if a.is_copy), key=lambda a: (not a.fits, _distance(a))):
        used = frozenset(s for names in account.sources.values() for s in names)
        if not any(used & others for others, _ in copies):
            copies.append((used, account))
    return sorted((account for _, account in copies), key=lambda a: a.beginning)


def _choose(copies: list[Account], name: str, label: str) -> Account:
    """Choose the copy to load among several copies of the model.

    Raises
    ------
    DataError
        When none of the copies is the average of the others, or that copy does not fit.
    """
    averaged = [a for a in copies if _AVERAGED & set(re.split(r"[._]", a.beginning.lower()))]
    if len(averaged) != 1 or not averaged[0].fits:
        places = [_named(a) + ("" if a.fits else f" (where {a.wrong})") for a in copies]
        raise DataError(
            f"{label} hold model {name!r} {len(copies)} times, under {listed(places, 6)}: save the one that "
            "is meant alone"
        )
    (chosen,) = averaged
    others = [_named(a) for a in copies if a is not chosen]
    chosen.note = f", the averaged copy, rather than {listed(others, 6)}"
    return chosen


def _named(account: Account) -> str:
    return repr(account.beginning) if account.beginning else "no prefix"


def _places(tensors: Collection[str], enough: int) -> list[str]:
    """Return the beginnings of names, up to a dot, that ``enough`` tensors have; "" comes first."""
    counts: Counter[str] = Counter()
    for name in tensors:
        counts.update({name[: dot.end()] for dot in re.finditer(r"\.", name)})
    return ["", *sorted(place for place, count in counts.items() if count >= max(1, enough))]


def _compare(
    place: str, renamed: Tensors, tensors: Tensors, model: nn.Module, translate: Filter, *, of_timm: bool
) -> Account:
    """Return an account of every tensor of model and source, as if the model were at ``place``."""
    account = Account(place, {n: t.as_subclass(torch.Tensor) for n, t in renamed.items()})
    body = model.state_dict()
    patches = _patch_fault(renamed, model)
    if patches:
        account.faults.append(patches)  # timm would resample them silently
    positions, failure = _position_fault(renamed, model), ""
    try:
        with quiet_timm():
            made = {} if patches or positions else translate(dict(renamed), model)
    except Exception as error:  # timm's filters assume that they know the file
        failure = f"timm's own reader of such files fails ({type(error).__name__}: {error})"
        made = {}
    made = made or renamed
    used: set[str] = set()
    for name, value in made.items():
        sources: frozenset[str] = getattr(value, "sources", frozenset())
        sources = sources or getattr(renamed.get(name), "sources", frozenset())
        used |= sources
        if name in body:
            account.values[name] = value.as_subclass(torch.Tensor)
            account.sources[name] = sources
        elif _NEVER_NEEDED.match(name) or (of_timm and name.startswith("attn_pool.")):
            account.left += sorted(sources)  # timm gives files with an attention pool to models without one
        else:
            account.extra += sorted(sources) or [place + name]
        if name not in body:
            account.handed.pop(name, None)  # timm's loader would warn of it
    theirs = [n.removeprefix(place) for n in tensors if n.startswith(place)]
    account.missing = [
        place + original_name(n, theirs) for n in body if n not in account.values and not _COUNTER.search(n)
    ]
    account.left += [n for n in tensors if n not in used]
    account.facts = _facts(made, model)
    if positions and not account.missing and not account.extra:
        account.faults.append(positions)
    account.faults += _value_faults(account, tensors, body)
    if failure and account.fits:  # else timm's reader failed for a reason that is reported already
        account.faults.append(failure)
    return account


def _patch_fault(renamed: Tensors, model: Any) -> str:
    """Return the fault, in words, of a source whose patches have another size than the model's, else ""."""
    projection = getattr(getattr(model, "patch_embed", None), "proj", None)
    own = getattr(projection, "weight", None)  # some hybrids' backbones make the tokens
    wanted = tuple(own.shape[-2:]) if own is not None else ()
    for name, tensor in renamed.items():
        kernel = re.search(r"(^|\.)(patch_embed\.proj|visual\.conv1|patchifier\.proj)\.weight$", name)
        found = tuple(tensor.shape[-2:])
        if kernel and wanted and tensor.ndim == 4 and found != wanted:
            return (
                f"its patches are {found[0]} × {found[1]} pixels, the model's {wanted[0]} × {wanted[1]}: "
                "choose the model with the file's patches"
            )
    return ""


def _position_fault(renamed: Tensors, model: Any) -> str:
    """Return the fault, in words, of position embeddings that fit no square grid of patches, else ""."""
    given, own = renamed.get("pos_embed"), getattr(model, "pos_embed", None)
    if not isinstance(own, torch.Tensor) or own.ndim != 3:
        return ""
    if given is not None and (given.ndim != 3 or len(given) != 1):
        return f"its position embeddings are {tuple(given.shape)}, the model's {tuple(own.shape)}"
    found = patches_of(renamed, model)
    if found is None or (found[0] > 0 and math.isqrt(found[0]) ** 2 == found[0]):
        return ""
    patches, prefix = found
    return (
        f"its position embeddings are for {patches + prefix} tokens: without the {prefix} that the model has "
        f"before its patches, {patches} are left, which is no square grid"
    )


def _value_faults(account: Account, tensors: Tensors, body: Tensors) -> list[str]:
    """Return faults, in words, for tensors that cannot be loaded; set the account's number of unlike ones."""
    unlike, odd = [], []
    for name, value in account.values.items():
        if value.shape != body[name].shape:
            named = listed(map(repr, sorted(account.sources[name])), 1)
            unlike.append(f"{named} is {tuple(value.shape)}, in the model {tuple(body[name].shape)}")
        if body[name].dtype.is_floating_point:
            odd += [(s, fault) for s in sorted(account.sources[name]) if (fault := number_fault(tensors[s]))]
    for name in account.left:  # if a head diverged, so did the rest
        if kind_of(name, account.beginning) == "head" and tensors[name].is_floating_point():
            odd += [(name, fault)] if (fault := number_fault(tensors[name])) in ("NaN", "infinity") else []
    account.unlike = len(unlike)
    faults = []
    if unlike:
        its = "its" if len(unlike) == 1 else "their"
        faults.append(f"{how_many(len(unlike))} could not be loaded for {its} size mismatch: {unlike[0]}")
    if odd:
        faults.append(f"{_count(odd)} no weights: {odd[0][0]!r} has {odd[0][1]}")
    return faults


def _count(found: Collection[Any]) -> str:
    return f"{how_many(len(found))} {'are' if len(found) > 1 else 'is'}"


def _facts(made: Collection[str] | Tensors, model: Any) -> list[str]:
    """Return the differences of source and model as a whole, in words: blocks, width, tokens, norms."""
    body = model.state_dict()
    facts = []
    if isinstance(made, dict) and "patch_embed.proj.weight" in made.keys() & body.keys():
        width, own = made["patch_embed.proj.weight"].shape[0], body["patch_embed.proj.weight"].shape[0]
        if width != own:
            facts.append(f"it is {width} wide, the model {own}")
    theirs, ours = _blocks(made), _blocks(body)
    if theirs and theirs != ours:
        facts.append(f"it has {theirs} blocks, the model {ours}")
    for beginning, only_file, only_model in _PARTS:
        there = any(name.startswith(beginning) for name in made)
        here = any(name.startswith(beginning) for name in body)
        if theirs and there != here:
            facts.append(only_file if there else f"the model is one {only_model}, the file is not")
    return facts


def _blocks(names: Collection[str]) -> str:
    """Return the number of blocks as text: ``"12"``, or by stage ``"2 + 2 + 6 + 2"``."""
    found = {m[1] for name in names if (m := _BLOCK.match(name))}
    stages = Counter(name.rsplit(".", 1)[0] for name in found)
    return " + ".join(str(stages[stage]) for stage in sorted(stages))
