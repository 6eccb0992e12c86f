"""Trunk and tail: the end of the frozen part, the part of its output that is stored, and the tail's input.

The trunk is everything before the first trained parameter; its output for an image never changes during a
run. The tail is the rest. Of several ways to run the tail, all with the same gradients, the cheapest that
the model allows is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from p2pft_flower.learning.model.block_arguments import Arguments, block_arguments, give_arguments
from p2pft_flower.learning.model.class_token import attend_normalised, why_not_normalised
from p2pft_flower.learning.model.heads import TowerHead
from p2pft_flower.learning.model.modes import switched_on
from p2pft_flower.learning.model.one_query import attend_query, query_tokens, why_not_query
from p2pft_flower.learning.model.replay import Recording, enter, record, stop_at, stopped
from p2pft_flower.learning.model.stem import WORTH_STORING, stem_share
from p2pft_flower.learning.model.structure import (
    BEHIND,
    STEM,
    gives_positions,
    heads,
    is_block,
    is_replayed,
    set_submodule,
    share_copy,
    stages,
)
from p2pft_flower.learning.model.tuning import tune_model

__all__ = ["PATHS", "Parts", "split_model", "split_tuned"]

PATHS = {
    "pooled": "the pooled feature stored, or one a head, only the head runs",
    "class-token": "normalised tokens stored, the last block runs for the class token without keys, values",
    "query": "tokens stored, the last block runs for the class token with all keys and values",
    "tokens": "tokens stored, the trained blocks run for all of them",
    "full": "nothing stored, the whole model runs",
}
"""The paths (ways to run the tail), each with a description, the cheapest first."""


class Parts(NamedTuple):
    """A model, cut into trunk and tail.

    Attributes
    ----------
    trunk : nn.Module
        (N, C, H, W) images ↦ tuple of tensors, the tail's inputs; frozen, in eval mode. On path ``full`` the
        tail's input is the images themselves.
    tail : nn.Module
        The trunk's tensors ↦ (N, classes) logits. The trained parameters have ``requires_grad`` and, behind
        the prefix ``model.``, their names in the tuned model.
    path : str
        The path that the tail takes, a key of `PATHS`.
    why : str
        The reason why no cheaper path was taken; empty if there is no reason to tell.
    """

    trunk: nn.Module
    tail: nn.Module
    path: str
    why: str


def split_model(model: nn.Module, tune: str, seed: int = 0, *, path: str = "") -> Parts:
    """Cut a model into trunk and tail.

    Parameters
    ----------
    model : nn.Module
        A model built like timm's VisionTransformer or SwinTransformer.
    tune : str
        The trained part: see :func:`~p2pft_flower.learning.model.tuning.tune_model`.
    seed : int
        Number that decides the draw of the parameters that ``tune`` adds.
    path : str
        The path to take, a key of `PATHS`, for comparisons; empty: the cheapest that the model allows.

    Raises
    ------
    ConfigError
        When ``tune`` is unknown or does not fit the model.
    ValueError
        When the model does not allow ``path``.
    """
    return split_tuned(tune_model(model, tune, seed), path=path)


def split_tuned(tuned: nn.Module, *, path: str = "") -> Parts:
    """Cut a tuned model, whose trained parameters have ``requires_grad``, into trunk and tail.

    Trunk and tail share the memory of the model's parameters.

    Parameters
    ----------
    tuned : nn.Module
        The model.
    path : str
        As for :func:`split_model`.

    Raises
    ------
    ValueError
        When the model does not allow ``path``.
    """
    refused = _refusals(tuned)
    allowed = [name for name in PATHS if name not in refused]
    if path and path not in allowed:
        raise ValueError(
            f"path {path!r} is not for this model: {refused.get(path) or 'it trains other parts'}"
        )
    chosen = path or allowed[0]
    why = "" if path else "; ".join(dict.fromkeys(reason for reason in refused.values() if reason))
    if chosen == "full":
        return Parts(_Images().eval(), _FullTail(tuned), chosen, why)
    first = _first_trained(tuned)
    names = stages(tuned)[first:]
    seen = record(tuned, names[0]) if is_replayed(tuned) and names and chosen != "pooled" else None
    trunk = _Trunk(tuned, first, chosen, seen)
    if seen is not None and chosen == "tokens":
        return Parts(trunk, _ReplayTail(tuned, seen), chosen, why)
    arguments = block_arguments(tuned, names) if gives_positions(tuned) and names else {}
    tail = {"pooled": _PooledTail, "class-token": _ClassTokenTail, "query": _QueryTail, "tokens": _TokensTail}
    return Parts(trunk, tail[chosen](tuned, first, arguments), chosen, why)


def _first_trained(tuned: nn.Module) -> int:
    """Return the index in `stages` of the first with a trained parameter.

    −1 if the stem has one; the number of stages if only norm, pooling or heads have some.
    """
    names = stages(tuned)
    later = (*(f"{name}." for name in names), *BEHIND)
    trained = [name for name, p in tuned.named_parameters() if p.requires_grad]
    if any(not name.startswith(later) for name in trained):
        return -1
    for i, stage in enumerate(names):
        if any(name.startswith(f"{stage}.") for name in trained):
            return i
    return len(names)


def _refusals(tuned: nn.Module) -> dict[str, str]:
    """Return the paths that this model does not allow, with reasons; "" if ``tune`` excludes the path."""
    names, first = stages(tuned), _first_trained(tuned)
    if (reason := _why_nothing_stays(tuned, names, first)) is not None:
        return dict.fromkeys(("pooled", "class-token", "query", "tokens"), reason)
    refused: dict[str, str] = {}
    trained = [name for name, p in tuned.named_parameters() if p.requires_grad]
    if not all(name.startswith(heads(tuned)) for name in trained):
        refused["pooled"] = ""
    elif (drawback := _why_not_pooled(tuned)) is not None:
        refused["pooled"] = drawback
    if first == len(names):
        return refused | {"class-token": "", "query": ""}
    last = tuned.get_submodule(names[-1])
    if not _in_one_list(names[first:]) and is_replayed(tuned):
        reason = f"{type(tuned).__name__} does more between the trained blocks"
        refused |= {"class-token": reason, "query": reason}
    elif (drawback := why_not_query(tuned, last)) is not None:
        refused |= {"class-token": drawback, "query": drawback}
    elif first < len(names) - 1:
        refused["class-token"] = f"{len(names) - first} blocks are trained, so the last one's input changes"
    elif (drawback := why_not_normalised(tuned, last)) is not None:
        refused["class-token"] = drawback
    return refused


def _in_one_list(names: list[str]) -> bool:
    return len({name.rpartition(".")[0] for name in names}) == 1


def _why_nothing_stays(tuned: nn.Module, names: list[str], first: int) -> str | None:
    """Return the reason why no output before the first trained parameter is worth storing, or None."""
    if first < 0:
        return "the stem has trained parameters, so no block's output stays the same"
    if first == len(names) or any(is_block(name) for name in names[:first]):
        return None
    share = stem_share(tuned, names[first])
    if share >= WORTH_STORING:
        return None
    little = f", {share:.0%} of the work," if share else ""
    return (
        f"the first block ({names[first]}) has trained parameters, and what is before it{little} costs less "
        "than it would take to store"
    )


def _why_not_pooled(model: nn.Module) -> str | None:
    classifiers = _classifiers(model)
    if not all(isinstance(c, (nn.Linear, TowerHead)) for c in classifiers):
        return "its head is no linear layer"
    if len(classifiers) > 1 and query_tokens(model) != len(classifiers):
        return "it has more than one head"
    before = [m for n, m in model.named_modules() if n.startswith("head")]
    if any(isinstance(m, nn.Dropout) and m.p > 0 for m in before):
        return "features are dropped out before the head"
    return None


def _classifiers(model: nn.Module) -> tuple[Any, ...]:
    """Return what makes the logits: one layer, or one a leading token in a distilled model."""
    found = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    return found if isinstance(found, tuple) else (found,)


class _Pass(nn.Module):
    """Stands where a block of the tail was: hands the tokens on, whatever it is given beside them."""

    def forward(self, tokens: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return tokens

    def _get_name(self) -> str:
        return "Identity"  # the trunk's text is part of the store's name, and stores that are there have this


class _Images(nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (images,)


class _Trunk(nn.Module):
    """The model up to the first trained block, and the path's selection from the tokens there."""

    def __init__(self, tuned: nn.Module, first: int, path: str, seen: Recording | None) -> None:
        super().__init__()
        model, names = share_copy(tuned), stages(tuned)
        self.path, self.queries, self.eps = path, query_tokens(tuned), 0.0
        self.seen: Recording | None = seen
        if path == "class-token":
            self.eps = float(model.get_submodule(f"{names[-1]}.norm1").eps)  # type: ignore[arg-type]
        if seen is not None:
            stop_at(model, seen, names[first + 1 :])
        else:
            for name in names[first:]:
                set_submodule(model, name, _Pass())
        if path == "pooled":  # the head's frozen part belongs to the trunk too, but not the new classifier
            classifiers = _classifiers(model)
            for name in [n for n, m in model.named_modules() if any(m is c for c in classifiers)]:
                set_submodule(model, name, nn.Identity())
        else:
            for part in ("norm", "head", "head_dist", "fc_norm", "attn_pool"):
                if getattr(model, part, None) is not None:
                    setattr(model, part, nn.Identity())
        self.model = model
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.seen is not None:
            inputs = stopped(self.model, self.seen, images)
        else:
            inputs = (self.model.forward_features(images),)  # type: ignore[operator]  # timm's method
        tokens = inputs[0]
        if self.path == "pooled" and self.queries > 1:  # two heads read a token each
            return (tokens[:, : self.queries],)
        if self.path == "pooled":
            return (self.model.forward_head(tokens, pre_logits=True),)  # type: ignore[operator]
        if self.path == "class-token":
            normed = nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=self.eps)
            return normed, tokens[:, : self.queries]
        return inputs


class _Tail(nn.Module):
    """The rest of the model behind the trunk; training mode is for modules with trained parameters alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        super().train(False)
        self._on = [self, *switched_on(model)]

    def train(self, mode: bool = True) -> _Tail:
        # The modules are found once, as every step needs them, and set without torch's slow setattr.
        for module in self._on:
            vars(module)["training"] = mode
        return self


class _FullTail(_Tail):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)  # type: ignore[no-any-return]


class _TokensTail(_Tail):
    def __init__(self, tuned: nn.Module, first: int, arguments: Mapping[str, Arguments]) -> None:
        model = share_copy(tuned)
        stem = [n for n in STEM if isinstance(getattr(model, n, None), nn.Module)]
        for name in (*stem, *stages(tuned)[:first]):
            set_submodule(model, name, nn.Identity())
        for name in [n for n, _ in model.named_parameters(recurse=False)]:  # cls_token, pos_embed, …
            setattr(model, name, None)
        super().__init__(model)
        self.stages = stages(tuned)[first:]
        for name, given in arguments.items():
            give_arguments(self.model.get_submodule(name), given)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        for name in self.stages:
            tokens = self.model.get_submodule(name)(tokens)
        return self._answer(tokens)

    def _answer(self, tokens: torch.Tensor) -> torch.Tensor:
        norm = getattr(self.model, "norm", None)  # some models have it in their head
        return self.model.forward_head(tokens if norm is None else norm(tokens))  # type: ignore[operator, no-any-return]


class _ReplayTail(_Tail):
    """The model's own ``forward_features``, begun at the first trained block."""

    def __init__(self, tuned: nn.Module, seen: Recording) -> None:
        model = share_copy(tuned)
        given = enter(model, seen)
        super().__init__(model)
        self.given = given

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        features = self.given.features(self.model, inputs)
        return self.model.forward_head(features)  # type: ignore[operator, no-any-return]


class _QueryTail(_TokensTail):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        for name in self.stages[:-1]:
            tokens = self.model.get_submodule(name)(tokens)
        last = self.model.get_submodule(self.stages[-1])
        return self._answer(attend_query(last, tokens, query_tokens(self.model)))


class _ClassTokenTail(_TokensTail):
    def forward(self, normed: torch.Tensor, own: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        last = self.model.get_submodule(self.stages[-1])
        return self._answer(attend_normalised(last, normed, own))


class _PooledTail(_TokensTail):
    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        if pooled.ndim > 2:  # a token for each of two heads
            return self.model.forward_head(pooled)  # type: ignore[operator, no-any-return]
        return self.model.get_classifier()(pooled)  # type: ignore[operator, no-any-return]
