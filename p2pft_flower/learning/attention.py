"""Attention maps of whole timm models, which show where a fine-tuned transformer looks.

Kinds of map, for ViTs (DeiT, distilled DeiT) and Swin:

``mean``
    The last block's attention, mean of its heads. In a model that classifies from its class token: that
    token's row of the attention matrix, its attention to each patch. In a model that pools its patches: the
    attention that each patch receives, mean over the patches as queries. In Swin: the attention that each
    token receives within its window, mean over the window's queries, the windows put back into the feature
    map.
``head:H``
    As ``mean``, but of head H of the last block alone, counted from 0.
``rollout``
    Attention rollout (Abnar and Zuidema 2020): Â_L ⋯ Â_1 with Â = ½ A + ½ I over all blocks, heads averaged.
    For ViTs only: Swin's windows and merged patches give no one matrix.
``text``
    The cosine of each patch's token, led into the space of texts as the class token is, and the direction of
    a class: the image's own, or where that is not known, the one that the model answers. From −1 to 1. For
    image towers with ``head = text`` that do not pool by attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
    window_partition,
    window_reverse,
)
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import nn
from torch.func import functional_call

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.model.heads import TowerHead
from p2pft_flower.learning.model.models import data_config, preprocessing

__all__ = [
    "MAPS",
    "Maps",
    "Reading",
    "attention_maps",
    "changed_tensors",
    "check_map",
    "describe_map",
    "read_maps",
    "shown_image",
    "tail_maps",
]

MAPS = ("mean", "rollout", "head:H", "text")

BATCH = 32
"""Images in one forward pass."""

Array = npt.NDArray[np.float32]


class Maps(NamedTuple):
    """A model's answers to N images.

    Attributes
    ----------
    logits : (N, classes) float32 tensor
        The model's answer.
    maps : (N, H, W) float32 tensor
        The model's attention to each cell of its grid of patches, ≥ 0; of the kind ``text`` cosines. A class
        token's row sums to at most one: the rest belongs to the tokens that are no patches.
    """

    logits: torch.Tensor
    maps: torch.Tensor


@dataclass(frozen=True)
class Reading:
    """The answers of M tails to N images.

    Attributes
    ----------
    probabilities : (M, N, classes) float32 array
        Softmax of the logits.
    maps : (M, N, H, W) float32 array
        Attention maps.
    """

    probabilities: Array
    maps: Array


def check_map(model: nn.Module, kind: str) -> None:
    """Refuse a kind of map that ``model`` does not have.

    Raises
    ------
    ConfigError
        When the kind is unknown or not for this model, there is no such head, or the model has another kind
        of attention.
    """
    blocks = _blocks(model)
    if kind == "text":
        if not isinstance(getattr(model, "head", None), TowerHead) or _pools_by_attention(model):
            raise ConfigError(
                "map = 'text': not for this model; it is for image towers with head = text whose class token "
                "or mean of patches leads to the texts"
            )
        return
    if kind == "rollout":
        if isinstance(model, SwinTransformer):
            raise ConfigError(
                "map = 'rollout': not for Swin, whose windows give no one matrix; choose mean or head:H"
            )
        return
    if kind != "mean":
        head = kind.removeprefix("head:")
        if head == kind or not head.isdecimal():
            raise ConfigError(f"map = {kind!r} is unknown; choose one of {', '.join(MAPS)}")
        heads = blocks[-1].attn.num_heads
        if int(head) >= heads:
            raise ConfigError(f"map = {kind!r}: the last block has the heads 0 to {heads - 1}")


def describe_map(model: nn.Module, kind: str) -> str:
    """Return a description of the maps of ``model`` for a figure's title."""
    if kind == "text":
        return "cosine of each patch and the text of the image's class"
    heads = _blocks(model)[-1].attn.num_heads
    which = f"head {kind.removeprefix('head:')}" if kind.startswith("head:") else f"mean of {heads} heads"
    if isinstance(model, SwinTransformer):
        return f"attention that each token receives in its window of the last block, {which}"
    if kind == "rollout":
        which = "attention rollout over all blocks"
        return f"{which}, row of the class token" if _by_class_token(model) else f"{which}, mean over patches"
    if _by_class_token(model):
        return f"attention of the class token in the last block, {which}"
    return f"attention that each patch receives in the last block, mean over patches, {which}"


def attention_maps(model: nn.Module, images: torch.Tensor, kind: str = "mean") -> Maps:
    """Return logits and attention maps of a whole model.

    Parameters
    ----------
    model : nn.Module
        A VisionTransformer or SwinTransformer of timm, in eval mode.
    images : (N, C, H, W) float32 tensor
        Preprocessed images.
    kind : str
        ``"mean"``, ``"rollout"`` or ``"head:H"``; this module's docstring defines them.

    Raises
    ------
    ConfigError
        When the model has no such map.
    """
    return next(tail_maps(model, [{}], images, kind))


def tail_maps(
    model: nn.Module,
    tails: Sequence[Mapping[str, torch.Tensor]],
    images: torch.Tensor,
    kind: str = "mean",
    labels: Sequence[int | None] = (),
) -> Iterator[Maps]:
    """Yield for each tail the logits and maps of ``model`` with the tail's tensors in it.

    If the tails differ from the model only in and after the last block, the earlier blocks run once for all
    tails.

    Parameters
    ----------
    model : nn.Module
        The whole model, in eval mode; not changed.
    tails : sequence of mappings
        Each tail's tensors by their names in ``model``.
    images : (N, C, H, W) float32 tensor
        Preprocessed images.
    kind : str
        As in :func:`attention_maps`.
    labels : sequence of int or None
        The class of each image, for the kind ``text``; None, or none at all: the one that the model answers.

    Raises
    ------
    ConfigError
        When the model has no such map.
    """
    check_map(model, kind)
    shared = all(name.startswith(_after_trunk(model)) for tensors in tails for name in tensors)
    rest = _AfterTrunk(model)
    with torch.inference_mode(), _record(model, kind) as seen:
        for number, tensors in enumerate(tails):
            if number == 0 or not shared:
                logits = functional_call(model, dict(tensors), (images,))
            else:
                named = {f"model.{name}": tensor for name, tensor in tensors.items()}
                logits = functional_call(rest, named, (seen.tokens,))
            if kind == "text":
                chosen = logits.argmax(dim=1)
                for place, label in enumerate(labels):
                    chosen[place] = chosen[place] if label is None else label
                yield Maps(logits.float(), _text_map(model, tensors, seen.normed, chosen))
            else:
                yield Maps(logits.float(), _map(model, seen, kind))


def changed_tensors(model: nn.Module, whole: nn.Module) -> dict[str, torch.Tensor]:
    """Return, by name, the tensors of the tuned ``whole`` that differ from those of the untuned ``model``.

    Raises
    ------
    ConfigError
        When ``whole`` has tensors that ``model`` lacks; the message names the first of them.
    """
    start = model.state_dict()
    added = sorted(whole.state_dict().keys() - start.keys())
    if added:
        raise ConfigError(
            f"{added[0]!r} was added by tuning (adapter, prompt), the plain model has no such tensor: maps "
            "are drawn of runs with tune = last-block, last-blocks:K, head, full, bias or lora:R"
        )
    return {name: t for name, t in whole.state_dict().items() if not torch.equal(t, start[name])}


def read_maps(
    model: nn.Module,
    tails: Sequence[Mapping[str, torch.Tensor]],
    images: Sequence[Callable[[], Image.Image]],
    kind: str = "mean",
    done: Callable[[int], None] = lambda _: None,
    labels: Sequence[int | None] = (),
) -> Reading:
    """Return predictions and maps of all tails for all images.

    Parameters
    ----------
    model, tails, kind
        As in :func:`tail_maps`.
    images : sequence of callables
        Functions, each of which returns one PIL image, or raises an error, which is passed on.
    done : callable
        Called after each batch with the batch's number of images.
    labels : sequence of int or None
        As in :func:`tail_maps`.

    Raises
    ------
    ConfigError
        When the model has no such map.
    """
    transform = preprocessing(model)
    answers: list[list[Array]] = [[] for _ in tails]
    maps: list[list[Array]] = [[] for _ in tails]
    for start in range(0, len(images), BATCH):
        batch = torch.stack([transform(read()) for read in images[start : start + BATCH]])
        known = labels[start : start + BATCH]
        for number, found in enumerate(tail_maps(model, tails, batch, kind, known)):
            answers[number].append(found.logits.softmax(dim=1).numpy())
            maps[number].append(found.maps.numpy())
        done(len(batch))
    return Reading(
        np.stack([np.concatenate(a) for a in answers]), np.stack([np.concatenate(m) for m in maps])
    )


def shown_image(model: nn.Module, image: Image.Image) -> Array:
    """Return the crop of an image that the model sees, at the model's size: (H, W, C) float32 in 0..1."""
    config = data_config(model)
    mean, std = (np.array(config[key], dtype=np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    seen = preprocessing(model)(image).numpy()
    return np.asarray(np.clip(np.moveaxis(seen * std + mean, 0, -1), 0, 1))


def _blocks(model: nn.Module) -> list[Any]:
    """Return the blocks whose attention the map uses, in order.

    Raises
    ------
    ConfigError
        When the model has another kind of attention.
    """
    if isinstance(model, SwinTransformer):
        blocks, make = list(model.layers[-1].blocks), WindowAttention
    elif isinstance(model, VisionTransformer):
        blocks, make = list(model.blocks), Attention
    else:
        raise ConfigError(
            f"attention maps are for timm's VisionTransformer and SwinTransformer, not {type(model).__name__}"
        )
    for block in blocks:
        found = getattr(block, "attn", None)
        if not isinstance(found, make):
            raise ConfigError(
                f"attention maps need blocks with timm's {make.__name__}; "
                f"{type(block).__name__} has {type(found).__name__}"
            )
    return blocks


def _by_class_token(model: nn.Module) -> bool:
    return model.global_pool == "token"


class _AfterTrunk(nn.Module):
    """The last block and all that follows it, as a module whose input is that block's input tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.model.norm(_blocks(self.model)[-1](tokens))  # type: ignore[operator]  # timm's modules
        return self.model.forward_head(tokens)  # type: ignore[operator, no-any-return]


def _after_trunk(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of all names in :class:`_AfterTrunk`."""
    last = _blocks(model)[-1]
    (block,) = [name for name, module in model.named_modules() if module is last]
    return tuple(f"{name}." for name in (block, "norm", "fc_norm", "attn_pool", "head", "head_dist"))


class _Seen:
    """The hooks' records of the latest forward pass.

    Attributes
    ----------
    tokens : tensor
        Input of the last block.
    attention : dict of int to tensor
        Attention probabilities by the block's number: of the last block those of each head, (B, heads, T, T);
        of other blocks, if needed, the mean of the heads, (B, T, T). In Swin, B is the number of windows.
    normed : tensor
        Output of the final norm, (B, T, D), of which the class's token or the patches' mean is the answer.
    """

    def __init__(self) -> None:
        self.tokens: torch.Tensor
        self.normed: torch.Tensor
        self.attention: dict[int, torch.Tensor] = {}


@contextmanager
def _record(model: nn.Module, kind: str) -> Iterator[_Seen]:
    seen, blocks = _Seen(), _blocks(model)
    last = len(blocks) - 1

    def reader(number: int) -> Callable[..., None]:
        def read(attention: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
            # Swin's blocks pass their mask as mask=; ViTs have none here.
            p = _probabilities(attention, args[0], kwargs.get("mask"))
            seen.attention[number] = p if number == last else p.mean(dim=1)

        return read

    def keep_tokens(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.tokens = args[0]

    def keep_normed(_: nn.Module, __: tuple[torch.Tensor, ...], normed: torch.Tensor) -> None:
        seen.normed = normed

    wanted = range(len(blocks)) if kind == "rollout" else [last]
    hooks = [blocks[i].attn.register_forward_pre_hook(reader(i), with_kwargs=True) for i in wanted]
    hooks.append(blocks[-1].register_forward_pre_hook(keep_tokens))
    hooks.append(model.norm.register_forward_hook(keep_normed))  # type: ignore[union-attr]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _probabilities(attention: Any, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return softmax(q kᵀ / √d + bias), (B, heads, T, T), of a layer's input ``x``, (B, T, D).

    The layer itself does not give it: fused kernels do not return it.
    """
    B, T, _ = x.shape
    qkv: torch.Tensor = attention.qkv(x).reshape(B, T, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = qkv[0], qkv[1]
    if isinstance(attention, WindowAttention):
        scores = attention.scale * q @ k.mT + attention._get_rel_pos_bias()
        if mask is not None:  # (windows, T, T); the windows of an image follow each other
            scores = (scores.view(-1, len(mask), *scores.shape[1:]) + mask[:, None]).view_as(scores)
    else:
        scores = attention.scale * attention.q_norm(q) @ attention.k_norm(k).mT
    return torch.softmax(scores.float(), dim=-1)


def _map(model: Any, seen: _Seen, kind: str) -> torch.Tensor:
    last = max(seen.attention)
    heads = seen.attention[last]
    p = heads[:, int(kind.removeprefix("head:"))] if kind.startswith("head:") else heads.mean(dim=1)
    if isinstance(model, SwinTransformer):
        return _put_together(_blocks(model)[-1], seen.tokens, p)
    patches, prefix = model.patch_embed.grid_size, model.num_prefix_tokens
    if p.shape[-1] != prefix + patches[0] * patches[1]:
        raise ConfigError(
            f"attention maps: the last block has {p.shape[-1]} tokens, not {prefix} and a grid of "
            f"{patches[0]} × {patches[1]} patches"
        )
    if kind == "rollout":
        p = (p + torch.eye(p.shape[-1])) / 2
    row = p[:, :1] if _by_class_token(model) else p[:, prefix:].mean(dim=1, keepdim=True)
    if kind == "rollout":
        # From the last block down, a row at a time: no product of T × T matrices.
        for number in reversed(range(last)):
            row = (row @ seen.attention[number] + row) / 2
    return row[:, 0, prefix:].reshape(-1, *patches)


def _pools_by_attention(model: nn.Module) -> bool:
    return getattr(model, "attn_pool", None) is not None


def _text_map(
    model: Any, tensors: Mapping[str, torch.Tensor], normed: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """Return the cosines, (N, H, W), of patches and the text of the class ``chosen``, (N,), of each image."""
    patches, prefix = model.patch_embed.grid_size, model.num_prefix_tokens
    head = {name.removeprefix("head."): t for name, t in tensors.items() if name.startswith("head.")}
    ways = {n.removeprefix("projection."): t for n, t in head.items() if n.startswith("projection.")}
    rows = head.get("classifier.weight", model.head.classifier.weight)
    led = functional_call(model.head.projection, ways, (model.fc_norm(normed[:, prefix:]),))
    directions = nn.functional.normalize(rows, dim=1)[chosen]
    cosines = torch.einsum("npd,nd->np", nn.functional.normalize(led, dim=2), directions)
    return cosines.reshape(-1, *patches)


def _put_together(block: SwinTransformerBlock, tokens: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return the attention that each token receives, (N, H, W), from that of its window, (N · windows, T, T).

    Windows, padding and cyclic shift are those of ``SwinTransformerBlock._attn``, undone.
    """
    _, H, W, _ = tokens.shape
    size = block.window_size
    pad = [-length % window for length, window in zip((H, W), size, strict=True)]
    # Tokens that only pad the last windows are no queries; timm rolls before it pads.
    real = nn.functional.pad(torch.ones(1, H, W, 1), (0, 0, 0, pad[1], 0, pad[0]))
    asks = window_partition(real, size).view(1, -1, block.window_area, 1)
    by_window = p.reshape(-1, asks.shape[1], *p.shape[1:])
    received = (by_window * asks).sum(dim=2) / asks.sum(dim=2)
    windows = received.reshape(-1, *size, 1)
    grid = window_reverse(windows, size, H + pad[0], W + pad[1])[:, :H, :W, 0]
    return torch.roll(grid, shifts=tuple(block.shift_size), dims=(1, 2))
