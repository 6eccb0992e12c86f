"""One reading of a source of weights: the tensors that the model takes from the source, and a description."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from p2pft_flower.learning.model.namings import describe_names, is_training_state

__all__ = [
    "Account",
    "Tensors",
    "common_beginning",
    "complaint",
    "how_many",
    "kind_of",
    "listed",
    "patches_of",
]

Tensors: TypeAlias = dict[str, torch.Tensor]

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
"""Kinds of tensors that are left, by the beginning of their names beside or below the model's root."""

_NEARLY = 0.9
"""Share of the model's tensors that a place in a source must have to count as a copy of the model."""


@dataclass
class Account:
    """One way to read the source: the model at one place in the source, under one naming.

    Attributes
    ----------
    place : str
        The beginning of the names at which the model is looked for; empty: the source's root.
    handed : dict of str to tensor
        The tensors for timm's own loader.
    values : dict of str to tensor
        The tensors found, by the model's own names.
    sources : dict of str to frozenset of str
        For each tensor, by the model's own name, the names of the source's tensors of which it is made.
    missing, extra, left : list of str
        Names in the source: tensors that the model needs and the source lacks; tensors that the model does
        not know; tensors that the model need not take.
    faults : list of str
        All other faults, in words.
    facts : list of str
        The differences of source and model as a whole, in words.
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
    """Number of tensors of another shape than the model's."""
    note: str = ""
    """Words on the choice of this reading among several; empty if there was no choice."""

    @property
    def fits(self) -> bool:
        """Whether every tensor of model and source has its place."""
        return not (self.missing or self.extra or self.faults)

    @property
    def is_copy(self) -> bool:
        """Whether the place holds the model, perhaps with a few tensors missing, added or unlike."""
        total = len(self.values) + len(self.missing)
        return (len(self.values) - self.unlike) >= _NEARLY * total

    @property
    def beginning(self) -> str:
        """The beginning, up to a dot, that the source's names of all used tensors share."""
        used = sorted({s for names in self.sources.values() for s in names})
        if not used:
            return self.place
        common = common_beginning(used[0], used[-1])
        return common[: common.rfind(".") + 1]

    @property
    def wrong(self) -> str:
        """The tensors that are missing or extra and the other faults, in words; empty if the account fits."""
        parts = []
        for names, what in ((self.missing, "missing from it"), (self.extra, "extra in it")):
            if names:
                are = "are" if len(names) > 1 else "is"
                parts.append(f"{how_many(len(names))}, as {names[0]!r}, {are} {what}")
        return "; ".join(parts + self.faults)

    def is_resampled(self, name: str) -> bool:
        """Return whether the model's tensor ``name`` has positions, and was resampled or made of several."""
        handed = self.handed.get(name)
        return name.endswith(("pos_embed", _TABLE)) and (
            handed is None or handed.shape != self.values[name].shape
        )

    def describe(self, model: Any) -> str:
        """Return one line on the tensors that were used and those that were left."""
        where = f" under {self.beginning!r}" if self.beginning else ""
        groups = Counter(kind_of(name, self.beginning) for name in self.left)
        left = f"; left: {', '.join(f'{group} ({n})' for group, n in groups.items())}" if groups else ""
        resampled = _resampling(self, model)
        return f"the model's {len(self.values)} tensors are there{where}{self.note}{resampled}{left}"


def common_beginning(one: str, two: str) -> str:
    """Return the longest beginning that both texts have."""
    length = next(
        (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
    )
    return one[:length]


def how_many(number: int) -> str:
    """Return ``"1 tensor"``, ``"2 tensors"`` and so on."""
    return f"{number} tensors" if number != 1 else "1 tensor"


def listed(words: Iterable[str], most: int) -> str:
    """Join at most ``most`` words by commas, with an ellipsis for the others."""
    words = list(words)
    return ", ".join(words[:most]) + (", …" if len(words) > most else "")


def kind_of(name: str, beginning: str) -> str:
    """Return the kind of a tensor that is left: a head, optimiser state, …, or the beginning of its name."""
    shared = common_beginning(name, beginning)
    inner = name[shared.rfind(".") + 1 :]
    for pattern, group in _GROUPS:
        if re.match(pattern, inner):
            return group
    return repr(name[: len(name) - len(inner)] + inner.partition(".")[0])


def patches_of(renamed: Tensors, model: Any) -> tuple[int, int] | None:
    """Return the numbers of patches, and of tokens before them, that the source's position embeddings cover.

    None if the source or the model has no position embeddings one a token, or if both cover the same number
    of tokens.
    """
    found, own = renamed.get("pos_embed"), getattr(model, "pos_embed", None)
    if found is None or not isinstance(own, torch.Tensor) or not hasattr(model.patch_embed, "num_patches"):
        return None
    if found.ndim != 3 or own.ndim != 3 or found.shape[1] == own.shape[1]:
        return None
    # For DINOv2 with registers, timm removes the class token's position.
    prefix = 1 if "register_tokens" in renamed else own.shape[1] - model.patch_embed.num_patches
    return found.shape[1] - prefix, prefix


def _resampling(account: Account, model: Any) -> str:
    """Return words on the tensors that were resampled to the model's number of patches; empty if none was."""
    grid = " × ".join(map(str, getattr(getattr(model, "patch_embed", None), "grid_size", ())))
    found = patches_of(account.handed, model)
    if found is not None and found[0] != model.patch_embed.num_patches:
        side = math.isqrt(found[0])
        return f", position embeddings resampled from {side} × {side} to {grid} patches"
    if any(account.is_resampled(n) for n in account.values if n.endswith(_TABLE)):
        return f", tables of relative positions resampled for {grid} patches"
    return ""


def complaint(account: Account, tensors: Tensors) -> str:
    """Return a description of a source that does not hold the model: its faults, and the tensors in it."""
    known = describe_names(tensors)
    facts = "".join(f"; {fact}" for fact in dict.fromkeys(account.facts))
    names = sorted(tensors)
    alike = common_beginning(names[0], names[-1])
    alike = alike[: alike.rfind(".") + 1]
    said = (f" (names as {known})" if known else "") + (f", all under {alike!r}" if alike else "")
    few = listed([repr(n) for n in tensors], 3)
    state = [n for n in tensors if is_training_state(n)]
    if state:
        said += f", {len(state)} of them of an optimiser or gradients ({state[0]!r}), which are never taken"
    return f"{account.wrong}{facts}. It has {how_many(len(tensors))}{said}: {few}"
