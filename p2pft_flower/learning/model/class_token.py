"""The last block run for the class token alone, without keys and values.

Where one query a head is enough (:mod:`one_query`) and the block's inputs are frozen, keys and values need
not be formed either: scores and contexts are products with the normalised tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import nn

from p2pft_flower.learning.model.one_query import why_not_query

__all__ = ["attend_normalised", "why_not_normalised"]


def why_not_normalised(model: nn.Module, block: Any) -> str | None:
    """Return the reason why the last block's keys and values must be formed, or None if they need not be."""
    reason = why_not_query(model, block)
    if reason is not None:
        return reason
    if type(block) is not Block or type(block.attn) is not Attention:
        return f"its last block is a {type(block).__name__}, not timm's plain Block with plain Attention"
    attn, norm = block.attn, block.norm1
    if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
        return (
            f"its first normalisation is a {type(block.norm1).__name__}, not a LayerNorm with scale and shift"
        )
    if not isinstance(attn.q_norm, nn.Identity) or not isinstance(attn.k_norm, nn.Identity):
        return "its attention normalises queries and keys"
    if attn.attn_drop.p > 0:
        return "its attention drops probabilities, so they do not add up to one"
    return None


def attend_normalised(block: Any, normed: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Run a block for its first tokens, from normalised tokens, without forming keys and values.

    With γ, β of norm1 and head h: u_h = γ ⊙ W_k,hᵀ q_h; scores = x̂ u_h (terms that are constant over tokens,
    the key bias and u·β, cancel in the softmax); c_h = γ ⊙ Σ_t p_t x̂_t + β; o_h = W_v,h c_h + b_v,h.

    Parameters
    ----------
    block : timm's Block
        The block; `why_not_normalised` must find no reason against it.
    normed : (N, T, D) tensor
        x̂: the block's input, normalised without scale and shift.
    own : (N, P, D) tensor
        The first P tokens of the block's input.

    Returns
    -------
    (N, P, D) tensor
        The first P tokens of the block's output.
    """
    attn = block.attn
    gamma, beta = block.norm1.weight, block.norm1.bias
    number, tokens, width = own.shape
    heads, size = attn.num_heads, attn.head_dim
    w_q, w_k, w_v = attn.qkv.weight.view(
        3, heads * size, width
    )  # read once: with a low-rank update it is computed
    bias = attn.qkv.bias
    b_q, _, b_v = (None, None, None) if bias is None else bias.view(3, heads * size)

    entering = normed[:, :tokens] * gamma + beta
    q = (
        nn.functional.linear(entering, w_q, b_q).view(number * tokens, heads, size).transpose(0, 1)
        * attn.scale
    )
    u = torch.bmm(q, w_k.view(heads, size, width)) * gamma  # (H, N P, D)
    u = u.view(heads, number, tokens, width).transpose(0, 1).reshape(number, heads * tokens, width)
    p = torch.bmm(u, normed.transpose(1, 2)).softmax(dim=-1)
    context = torch.bmm(p, normed) * gamma + beta  # (N, H P, D)
    context = context.view(number, heads, tokens, width).transpose(0, 1).reshape(heads, -1, width)
    o = torch.bmm(context, w_v.view(heads, size, width).transpose(1, 2)).transpose(0, 1)
    o = o.reshape(number, tokens, heads * size)
    if b_v is not None:
        o = o + b_v
    return _leave(block, own, o, entering)


def _leave(block: Any, own: torch.Tensor, o: torch.Tensor, entering: torch.Tensor) -> torch.Tensor:
    """Return a block's outputs for its inputs ``own`` from the heads' outputs ``o``, as timm does."""
    attn = block.attn
    o = attn.norm(o)
    if attn.gate is not None:
        o = o * attn.gate(entering).sigmoid()
    x = own + block.drop_path1(block.ls1(attn.proj_drop(attn.proj(o))))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))  # type: ignore[no-any-return]
