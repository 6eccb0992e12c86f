"""The last block run for the tokens that the head reads: one query a head, keys and values of all tokens.

In a model that answers from its class token nothing reads the last block's other outputs, so only the class
token's query, projection and MLP of that block need be computed. How a block puts attention, MLP and
normalisations together depends on timm's class of the block; how queries, keys and values are made, on the
class of its attention. Each has a function here that does what timm's ``forward`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models import beit, eva
from timm.models.deit import VisionTransformerDistilled
from timm.models.naflexvit import NaFlexVit
from timm.models.pit import PoolingVisionTransformer
from timm.models.vision_transformer import (
    Block,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from timm.models.vision_transformer_relpos import (
    RelPosAttention,
    RelPosBlock,
    ResPostRelPosBlock,
    VisionTransformerRelPos,
)
from torch import nn

from p2pft_flower.learning.model.block_arguments import given_arguments

__all__ = ["attend_query", "query_tokens", "why_not_query"]

Attend: TypeAlias = Callable[[Any, torch.Tensor, int, Mapping[str, Any]], torch.Tensor]
"""(attention, its input (N, T, D), P, what the block is given beside tokens) ↦ its first P outputs."""

_READERS = (
    VisionTransformer.forward_head,
    VisionTransformerDistilled.forward_head,
    VisionTransformerRelPos.forward_head,
    beit.Beit.forward_head,
    eva.Eva.forward_head,
    NaFlexVit.forward_head,
    PoolingVisionTransformer.forward_head,
)
"""timm's heads that read nothing but the class token where ``global_pool`` is ``"token"``."""


def query_tokens(model: nn.Module) -> int:
    """Return the number of leading tokens that the head reads: 1, or 2 with a distillation token."""
    if isinstance(model, PoolingVisionTransformer):
        return int(model.num_tokens)
    return 2 if isinstance(model, VisionTransformerDistilled) else 1


def why_not_query(model: nn.Module, block: Any) -> str | None:
    """Return the reason why the last block cannot run for the class token alone, or None if it can."""
    if getattr(type(model), "forward_head", None) not in _READERS:
        return f"{type(model).__name__} has no class token that its head alone reads"
    if getattr(model, "global_pool", None) != "token" or getattr(model, "attn_pool", None) is not None:
        return f"the head pools all tokens (global_pool = {getattr(model, 'global_pool', None)!r})"
    if type(block) not in _BLOCKS:
        return f"the last block is a {type(block).__name__}, not one of timm's whose attention is known"
    return _why_not_attention(block, query_tokens(model))


def _why_not_attention(block: Any, first: int) -> str | None:
    """Return the reason why a block of a known kind cannot run for its ``first`` tokens alone, or None."""
    attentions = _attentions(block)
    for attention in attentions:
        if type(attention) not in _ATTENTIONS or _projection_is_odd(attention):
            return (
                f"its attention is a {type(attention).__name__}, not one of timm's with linear projections "
                "of queries, keys and values"
            )
        if getattr(attention, "num_prefix_tokens", first) < first:
            return "its attention rotates the class token, too"
    parts = [block, *attentions, *(m for a in attentions for m in a.children())]
    parts += [getattr(block, name) for name in ("norm1", "in_norm", "in_proj") if hasattr(block, name)]
    hooked = [m for m in parts if m._forward_hooks or m._forward_pre_hooks]
    return f"its {type(hooked[0]).__name__} has hooks" if hooked else None


def attend_query(block: Any, tokens: torch.Tensor, first: int) -> torch.Tensor:
    """Run a block for its first tokens only, with keys and values of all tokens.

    Parameters
    ----------
    block : timm's block
        The block; `why_not_query` must find no reason against it.
    tokens : (N, T, D) tensor
        The block's input.
    first : int
        P, the number of leading tokens.

    Returns
    -------
    (N, P, D) tensor
        The first P tokens of the block's output.
    """
    return _BLOCKS[type(block)](block, tokens, first, given_arguments(block))


# --- blocks -----------------------------------------------------------------------------------------------


def _normed_before(block: Any, x: torch.Tensor, first: int, given: Mapping[str, Any]) -> torch.Tensor:
    """Compute x ↦ x + s₁ attention(norm₁ x), then x ↦ x + s₂ mlp(norm₂ x)."""
    attended = _ATTENTIONS[type(block.attn)](block.attn, block.norm1(x), first, given)
    x = x[:, :first] + block.drop_path1(_scaled(block, 1, attended))
    return x + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(x))))  # type: ignore[no-any-return]


def _normed_behind(block: Any, x: torch.Tensor, first: int, given: Mapping[str, Any]) -> torch.Tensor:
    """Compute x ↦ x + norm₁ attention(x), then x ↦ x + norm₂ mlp(x)."""
    attended = _ATTENTIONS[type(block.attn)](block.attn, x, first, given)
    x = x[:, :first] + block.drop_path1(block.norm1(attended))
    return x + block.drop_path2(block.norm2(block.mlp(x)))  # type: ignore[no-any-return]


def _scaled(block: Any, which: int, x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` behind the layer scale of attention (1) or MLP (2): a module, a parameter, or none."""
    module, gamma = getattr(block, f"ls{which}", None), getattr(block, f"gamma_{which}", None)
    if module is not None:
        return module(x)  # type: ignore[no-any-return]
    return x if gamma is None else gamma * x


def _several_attentions(block: Any, x: torch.Tensor, first: int, given: Mapping[str, Any]) -> torch.Tensor:
    """Compute x ↦ x + Σ_j s_j attention_j(norm_j x), then x ↦ x + Σ_j of MLPs."""
    attended = [
        a.drop_path(a.ls(_ATTENTIONS[type(a.attn)](a.attn, a.norm(x), first, given))) for a in block.attns
    ]
    x = x[:, :first] + torch.stack(attended).sum(dim=0)
    return x + torch.stack([ffn(x) for ffn in block.ffns]).sum(dim=0)


def _attention_beside_mlp(block: Any, x: torch.Tensor, first: int, _: Mapping[str, Any]) -> torch.Tensor:
    """Compute x ↦ x + s (U attention(norm x) + V act(W norm x)); one layer has W, q, k and v."""
    hidden, width = block.in_split[0], block.in_split[1]
    normed, weight, bias = block.in_norm(x), block.in_proj.weight, block.in_proj.bias
    cut = hidden + width
    own = nn.functional.linear(normed[:, :first], weight[:cut], None if bias is None else bias[:cut])
    kv = nn.functional.linear(normed, weight[cut:], None if bias is None else bias[cut:])
    inner, q = own[..., :hidden], own[..., hidden:]
    if block.mlp_bias is not None:
        inner = inner + block.mlp_bias
    k, v = kv.chunk(2, dim=-1)
    heads = block.num_heads
    q, k, v = (_by_head(part, heads) for part in (q, k, v))
    attended = _weighted(block, block.q_norm(q), block.k_norm(k), v, None)
    inner = block.mlp_drop(block.mlp_act(inner))
    if block.out_proj is not None:
        y = block.out_proj(torch.cat((attended, inner), dim=-1))
    else:
        y = block.attn_out_proj(attended) + block.mlp_out_proj(inner)
    return x[:, :first] + block.drop_path(block.ls(y))  # type: ignore[no-any-return]


_BLOCKS: dict[type, Attend] = {
    Block: _normed_before,
    beit.Block: _normed_before,
    eva.EvaBlock: _normed_before,
    RelPosBlock: _normed_before,
    ResPostBlock: _normed_behind,
    ResPostRelPosBlock: _normed_behind,
    eva.EvaBlockPostNorm: _normed_behind,
    ParallelThingsBlock: _several_attentions,
    ParallelScalingBlock: _attention_beside_mlp,
}


def _attentions(block: Any) -> list[Any]:
    if isinstance(block, ParallelThingsBlock):
        return [part.attn for part in block.attns]
    return [] if isinstance(block, ParallelScalingBlock) else [block.attn]


# --- attentions -------------------------------------------------------------------------------------------


def _plain(attn: Any, x: torch.Tensor, first: int, _: Mapping[str, Any]) -> torch.Tensor:
    q, k, v = _fused(attn, x, first, attn.qkv.bias)
    return _leave(attn, _weighted(attn, attn.q_norm(q), attn.k_norm(k), v, None), x[:, :first])


def _relative(attn: Any, x: torch.Tensor, first: int, given: Mapping[str, Any]) -> torch.Tensor:
    q, k, v = _fused(attn, x, first, attn.qkv.bias)
    bias = given.get("shared_rel_pos") if attn.rel_pos is None else attn.rel_pos.get_bias()
    o = _weighted(attn, attn.q_norm(q), attn.k_norm(k), v, bias)
    return attn.proj_drop(attn.proj(o))  # type: ignore[no-any-return]


def _of_beit(attn: Any, x: torch.Tensor, first: int, given: Mapping[str, Any]) -> torch.Tensor:
    q, k, v = _fused(attn, x, first, _three_biases(attn))
    bias = given.get("shared_rel_pos_bias")
    if attn.relative_position_bias_table is not None:
        own = attn._get_rel_pos_bias()  # timm has no public name for it
        bias = own if bias is None else own + bias
    return attn.proj_drop(attn.proj(_weighted(attn, q, k, v, bias)))  # type: ignore[no-any-return]


def _rotary(attn: Any, x: torch.Tensor, first: int, given: Mapping[str, Any]) -> torch.Tensor:
    """Attend with rotated keys; the first tokens are before the patches, so their queries are not rotated."""
    if attn.qkv is not None:
        q, k, v = _fused(attn, x, first, _three_biases(attn))
    else:
        q = _by_head(attn.q_proj(x[:, :first]), attn.num_heads)
        groups = getattr(attn, "num_kv_heads", attn.num_heads)
        k, v = _by_head(attn.k_proj(x), groups), _by_head(attn.v_proj(x), groups)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if (rope := given.get("rope")) is not None:
        before = attn.num_prefix_tokens
        turned = apply_rot_embed_cat(k[:, :, before:], rope, half=attn.rotate_half)
        k = torch.cat([k[:, :, :before], turned], dim=2).type_as(v)
    if (times := getattr(attn, "num_kv_groups", 1)) > 1:
        k, v = k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)
    return _leave(attn, _weighted(attn, q, k, v, given.get("attn_mask")), x[:, :first])


_ATTENTIONS: dict[type, Attend] = {
    Attention: _plain,
    RelPosAttention: _relative,
    beit.Attention: _of_beit,
    eva.EvaAttention: _rotary,
    AttentionRope: _rotary,
}


def _projection_is_odd(attention: Any) -> bool:
    fused = getattr(attention, "qkv", None)
    names = ("qkv",) if fused is not None else ("q_proj", "k_proj", "v_proj")
    return not all(isinstance(getattr(attention, name, None), nn.Linear) for name in names)


def _three_biases(attn: Any) -> torch.Tensor | None:
    """Return the bias of queries, keys and values, which BEiT and EVA have in three tensors."""
    if getattr(attn, "q_bias", None) is None:
        return attn.qkv.bias  # type: ignore[no-any-return]
    return torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))


def _fused(
    attn: Any, x: torch.Tensor, first: int, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries of the first tokens, keys and values of all, (N, H, ·, D / H), of one projection."""
    weight = attn.qkv.weight  # read once: with a low-rank update it is computed
    cut = len(weight) // 3
    q = nn.functional.linear(x[:, :first], weight[:cut], None if bias is None else bias[:cut])
    kv = nn.functional.linear(x, weight[cut:], None if bias is None else bias[cut:])
    k, v = kv.chunk(2, dim=-1)
    return _by_head(q, attn.num_heads), _by_head(k, attn.num_heads), _by_head(v, attn.num_heads)


def _by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


def _weighted(
    attn: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return the heads' outputs side by side, (N, P, D); ``bias`` has a row for each of all tokens."""
    if bias is not None and bias.shape[-2] > 1:
        bias = bias[..., : q.shape[2], :]
    dropped = attn.attn_drop.p if attn.training else 0.0
    o = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropped)
    return o.transpose(1, 2).flatten(2)


def _leave(attn: Any, o: torch.Tensor, entering: torch.Tensor) -> torch.Tensor:
    """Return an attention's outputs for its inputs ``entering`` from the heads' outputs ``o``."""
    o = attn.norm(o)
    if attn.gate is not None:
        o = o * attn.gate(entering).sigmoid()
    return attn.proj_drop(attn.proj(o))  # type: ignore[no-any-return]
