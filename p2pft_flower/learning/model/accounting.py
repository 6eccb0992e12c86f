"""The account of weights: which tensors of a source a model's are made of, what is missing, extra, or left.

Where in a source the model lies is found by trying: at each place that has tensors enough, under each naming
that is known, whether all of the model's body is there. What a tensor of the model is made of is found by
handing tensors to timm's own translation that remember of which tensors of the source they were made.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from p2pft_flower.errors import DataError
from p2pft_flower.learning.model.image_size import quiet_timm
from p2pft_flower.learning.model.namings import (
    NAMINGS,
    Filter,
    describe_names,
    is_training_state,
    original_name,
    timm_filter,
)
from p2pft_flower.learning.model.weight_files import number_fault

__all__ = ["Account", "account_for"]

Tensors: TypeAlias = dict[str, torch.Tensor]

_NEVER_NEEDED = re.compile(
    r"(head|head_dist|heads|fc|classifier|cls_classifier|distillation_classifier|pre_logits|pooler)\."
    r"|proj$|decoder|mask_token|.*(relative_position_index|relative_coords_table|attn_mask)$"
)
"""Names, from the model's root on, that a file may have and the model not: heads, a decoder, tables."""

_COUNTER = re.compile(r"\.num_batches_tracked$")
"""What a batch norm counts while it is trained, and never uses with its statistics frozen."""

_TABLE = "relative_position_bias_table"

_GROUPS = (
    (
        r"(optim\w*|exp_avg\w*|momentum_buffer|lr_sched\w*|scheduler|scaler|\w+_scaler|amp\w*)(\.|$)",
        "optimiser state",
    ),
    (r"(head|head_dist|heads|fc|\w*classifier|pre_logits|pooler)\.|proj$", "head"),
    (r"decoder", "decoder"),
    (r"(embeddings\.)?mask_token", "mask token"),
    (r"attn_pool\.", "attention pool"),
    (r".*(relative_position_index|relative_coords_table|attn_mask)$", "tables that the model makes"),
    (
        r"(text|token_embedding|ln_final|logit_scale|logit_bias|transformer\.resblocks|positional_embedding)",
        "text tower",
    ),
)
"""What tensors are that are left, by how their names begin beside or below the model's root in the file."""

_NEARLY = 0.9
"""Share of the model's tensors from which on a place in a source has a copy of it."""

_AVERAGED = {"ema", "teacher", "target"}
"""Words in the name of a copy of the model that is the average of another over the training."""

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
"""How names begin; what it means that only the file has them; what the model is, where only it has them."""


class _Traced(torch.Tensor):
    """A tensor that knows of which tensors of the file it was made, whatever was done with them."""

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


@dataclass
class Account:
    """One way to read the source: the model at one place in it, under one naming.

    Attributes
    ----------
    handed : dict
        What timm's own loader is handed.
    values : dict
        The model's tensors by its own names, as far as they are there.
    sources : dict
        Names in the source, by the model's names: what each is made of.
    missing, extra, left : list of str
        Names in the source: what the model needs and it has not; what it has and the model not; what it has
        and nobody needs.
    faults : list of str
        What else is wrong, in words.
    facts : list of str
        How source and model differ as a whole, in words.
    """

    place: str
    handed: Tensors
    values: Tensors = field(default_factory=dict)
    sources: dict[str, frozenset[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    unlike: int = 0
    """Tensors of another shape."""
    note: str = ""
    """Why this way of several was taken."""

    @property
    def fits(self) -> bool:
        """Whether every tensor of model and source has its place."""
        return not (self.missing or self.extra or self.faults)

    @property
    def is_copy(self) -> bool:
        """Whether this is the model, though a few tensors may lack, or some be added."""
        total = len(self.values) + len(self.missing)
        return (len(self.values) - self.unlike) >= _NEARLY * total

    @property
    def beginning(self) -> str:
        """What the names of all used tensors begin with, up to a dot."""
        used = sorted({s for names in self.sources.values() for s in names})
        if not used:
            return self.place
        common = _common(used[0], used[-1])
        return common[: common.rfind(".") + 1]

    def is_resampled(self, name: str) -> bool:
        """Tell whether the model's tensor of that name was interpolated, or made of several."""
        handed = self.handed.get(name)
        return name.endswith(("pos_embed", _TABLE)) and (
            handed is None or handed.shape != self.values[name].shape
        )

    def describe(self, model: Any) -> str:
        """Say in one line what was used, and what was left."""
        where = f" under {self.beginning!r}" if self.beginning else ""
        groups = Counter(_group(name, self.beginning) for name in self.left)
        left = f"; left: {', '.join(f'{group} ({n})' for group, n in groups.items())}" if groups else ""
        told = f"{where}{self.note}{_resampling(self, model)}{left}"
        return f"the model's {len(self.values)} tensors are there{told}"


def _common(one: str, two: str) -> str:
    """Return what both begin with."""
    length = next(
        (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
    )
    return one[:length]


def account_for(name: str, model: nn.Module, tensors: Tensors, label: str, *, of_timm: bool) -> Account:
    """Find a model in a source.

    Parameters
    ----------
    name : str
        The model's name in timm.
    model : nn.Module
        The model without a head, with or without values.
    tensors : dict of str to tensor
        What the source holds, by its own names.
    label : str
        What messages call the source.
    of_timm : bool
        Whether timm's registry has the source for this very name.

    Returns
    -------
    Account
        One that fits.

    Raises
    ------
    DataError
        When it is not there as a whole, or is there twice.
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
    for place in _places(weights, enough):  # a copy in a copy is not of the outer one
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
    raise DataError(f"{label} do not fit model {name!r}: {_complaint(best, tensors)}")


def _below(place: str, tensors: Tensors) -> Tensors:
    """Return the tensors whose names begin with ``place``, by the rest of their names."""
    return {n.removeprefix(place): t for n, t in tensors.items() if n.startswith(place)}


def _without(place: str, inner: Collection[str], tensors: Tensors) -> Tensors:
    """Return what :func:`_below` does, without the copies of the model that lie deeper."""
    deeper = tuple(other for other in inner if other != place and other.startswith(place))
    return _below(
        place, {n: t for n, t in tensors.items() if not n.startswith(deeper)} if deeper else tensors
    )


def _distance(account: Account) -> tuple[int, int]:
    return len(account.missing) + account.unlike, len(account.extra) + len(account.faults)


def _copies(accounts: list[Account]) -> list[Account]:
    """Return the copies of the model in the source, each in the reading that fits it best.

    Two readings are of the same copy when they share a tensor. A copy need not fit: a model to which
    something was added, or of which a tensor lacks, is still the one that may be meant.
    """
    copies: list[tuple[frozenset[str], Account]] = []
    for account in sorted((a for a in accounts if a.is_copy), key=lambda a: (not a.fits, _distance(a))):
        used = frozenset(s for names in account.sources.values() for s in names)
        if not any(used & others for others, _ in copies):
            copies.append((used, account))
    return sorted((account for _, account in copies), key=lambda a: a.beginning)


def _choose(copies: list[Account], name: str, label: str) -> Account:
    """Return the one that is to be loaded of several copies of the model.

    Raises
    ------
    DataError
        When none of them is the average of the others, or that one does not fit.
    """
    averaged = [a for a in copies if _AVERAGED & set(re.split(r"[._]", a.beginning.lower()))]
    if len(averaged) != 1 or not averaged[0].fits:
        places = [_named(a) + ("" if a.fits else f" (where {_faults(a)})") for a in copies]
        raise DataError(
            f"{label} hold model {name!r} {len(copies)} times, under {_list(places, 6)}: save the one that "
            "is meant alone"
        )
    (chosen,) = averaged
    others = [_named(a) for a in copies if a is not chosen]
    chosen.note = f", the averaged copy, rather than {_list(others, 6)}"
    return chosen


def _named(account: Account) -> str:
    return repr(account.beginning) if account.beginning else "no prefix"


def _places(tensors: Collection[str], enough: int) -> list[str]:
    """Return the beginnings of names, up to a dot, that ``enough`` tensors have; the empty one first."""
    counts: Counter[str] = Counter()
    for name in tensors:
        counts.update({name[: dot.end()] for dot in re.finditer(r"\.", name)})
    return ["", *sorted(place for place, count in counts.items() if count >= max(1, enough))]


def _compare(
    place: str, renamed: Tensors, tensors: Tensors, model: nn.Module, translate: Filter, *, of_timm: bool
) -> Account:
    """Account for every tensor of model and source, where the model is taken to lie at ``place``."""
    account = Account(place, {n: t.as_subclass(torch.Tensor) for n, t in renamed.items()})
    body = model.state_dict()
    patches = _patch_fault(renamed, model)
    if patches:
        account.faults.append(patches)  # timm would resample them, without a word
    positions, failure = _position_fault(renamed, model), ""
    try:
        with quiet_timm():
            made = {} if patches or positions else translate(dict(renamed), model)
    except Exception as error:  # timm's filters take for granted that the file is one that they know
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
    if failure and account.fits:  # else it failed for what is said already
        account.faults.append(failure)
    return account


def _patch_fault(renamed: Tensors, model: Any) -> str:
    """Say whether the source's patches have another size than the model's."""
    own = getattr(model.patch_embed.proj, "weight", None)  # some hybrids' backbones make the tokens
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


def _positions(renamed: Tensors, model: Any) -> tuple[int, int] | None:
    """Return for how many patches the source's position embeddings are, and for how many tokens before them.

    None where source or model has none, or they are for as many tokens as the model has.
    """
    found, own = renamed.get("pos_embed"), getattr(model, "pos_embed", None)
    if found is None or own is None or found.ndim != 3 or found.shape[1] == own.shape[1]:
        return None
    # Of DINOv2 with registers, timm takes the class token's position away.
    prefix = 1 if "register_tokens" in renamed else own.shape[1] - model.patch_embed.num_patches
    return found.shape[1] - prefix, prefix


def _position_fault(renamed: Tensors, model: Any) -> str:
    """Say whether the source's position embeddings are for no grid of patches that the model could have."""
    given, own = renamed.get("pos_embed"), getattr(model, "pos_embed", None)
    if given is not None and own is not None and (given.ndim != 3 or len(given) != 1):
        return f"its position embeddings are {tuple(given.shape)}, the model's {tuple(own.shape)}"
    found = _positions(renamed, model)
    if found is None or (found[0] > 0 and math.isqrt(found[0]) ** 2 == found[0]):
        return ""
    patches, prefix = found
    return (
        f"its position embeddings are for {patches + prefix} tokens: without the {prefix} that the model has "
        f"before its patches, {patches} are left, which is no square grid"
    )


def _value_faults(account: Account, tensors: Tensors, body: Tensors) -> list[str]:
    """Say which of the tensors that have a counterpart cannot be loaded into it."""
    unlike, odd = [], []
    for name, value in account.values.items():
        if value.shape != body[name].shape:
            named = _list(map(repr, sorted(account.sources[name])), 1)
            unlike.append(f"{named} is {tuple(value.shape)}, in the model {tuple(body[name].shape)}")
        if body[name].dtype.is_floating_point:
            odd += [(s, fault) for s in sorted(account.sources[name]) if (fault := number_fault(tensors[s]))]
    for name in account.left:  # a head that diverged has not done so alone
        if _group(name, account.beginning) == "head" and tensors[name].is_floating_point():
            odd += [(name, fault)] if (fault := number_fault(tensors[name])) in ("NaN", "infinity") else []
    account.unlike = len(unlike)
    faults = []
    if unlike:
        its = "its" if len(unlike) == 1 else "their"
        faults.append(f"{_tensors(len(unlike))} could not be loaded for {its} size mismatch: {unlike[0]}")
    if odd:
        faults.append(f"{_count(odd)} no weights: {odd[0][0]!r} has {odd[0][1]}")
    return faults


def _tensors(number: int) -> str:
    return f"{number} tensors" if number != 1 else "1 tensor"


def _count(found: Collection[Any]) -> str:
    return f"{_tensors(len(found))} {'are' if len(found) > 1 else 'is'}"


def _facts(made: Collection[str] | Tensors, model: Any) -> list[str]:
    """Say how source and model differ as a whole: blocks, width, tokens, norms."""
    body = model.state_dict()
    facts = []
    if isinstance(made, dict) and "patch_embed.proj.weight" in made:
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
    """Count the blocks: ``"12"``, or by stage ``"2 + 2 + 6 + 2"``."""
    found = {m[1] for name in names if (m := re.match(r"(blocks\.\d+|layers\.\d+\.blocks\.\d+)\.", name))}
    stages = Counter(name.rsplit(".", 1)[0] for name in found)
    return " + ".join(str(stages[stage]) for stage in sorted(stages))


def _faults(account: Account) -> str:
    """Say what is missing, what is extra, and what else is wrong."""
    parts = []
    for names, what in ((account.missing, "missing from it"), (account.extra, "extra in it")):
        if names:
            are = "are" if len(names) > 1 else "is"
            parts.append(f"{_tensors(len(names))}, as {names[0]!r}, {are} {what}")
    return "; ".join(parts + account.faults)


def _complaint(account: Account, tensors: Tensors) -> str:
    """Say what is wrong with a source in which the model is not, as well as it can be known."""
    known = describe_names(tensors)
    facts = "".join(f"; {fact}" for fact in dict.fromkeys(account.facts))
    names = sorted(tensors)
    alike = _common(names[0], names[-1])
    alike = alike[: alike.rfind(".") + 1]
    said = (f" (names as {known})" if known else "") + (f", all under {alike!r}" if alike else "")
    few = _list([repr(n) for n in tensors], 3)
    state = [n for n in tensors if is_training_state(n)]
    if state:
        said += f", {len(state)} of them of an optimiser or gradients ({state[0]!r}), which are never taken"
    return f"{_faults(account)}{facts}. It has {_tensors(len(tensors))}{said}: {few}"


def _list(words: Any, most: int) -> str:
    words = list(words)
    return ", ".join(words[:most]) + (", …" if len(words) > most else "")


def _resampling(account: Account, model: Any) -> str:
    """Say which tensors were made for another number of patches than the source has them for."""
    grid = " × ".join(map(str, getattr(model.patch_embed, "grid_size", ())))
    found = _positions(account.handed, model)
    if found is not None and found[0] != model.patch_embed.num_patches:
        side = math.isqrt(found[0])
        return f", position embeddings resampled from {side} × {side} to {grid} patches"
    if any(account.is_resampled(n) for n in account.values if n.endswith(_TABLE)):
        return f", tables of relative positions resampled for {grid} patches"
    return ""


def _group(name: str, beginning: str) -> str:
    shared = _common(name, beginning)
    inner = name[shared.rfind(".") + 1 :]
    for pattern, group in _GROUPS:
        if re.match(pattern, inner):
            return group
    return repr(name[: len(name) - len(inner)] + inner.partition(".")[0])
