"""Small modules added to a frozen transformer: low-rank updates, bottleneck adapters, prompt tokens.

Adapters and prompts preserve the names of the model's own parameters, so that a state dict is timm's plus the
added parameters; a weight with a low-rank update has timm's name again once the update is merged. All start
as the identity except prompts, which change the input by their nature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from torch import nn
from torch.nn.utils import parametrize

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.model.model_sizes import MAX_PROMPTS, check_tune_number
from p2pft_flower.learning.model.structure import is_block, stages, takes_prompts

__all__ = ["PROMPTS", "add_adapters", "add_low_rank", "add_prompts", "merge_low_rank"]

PROMPTS = "prompts"
"""Name of the parameter that holds the prompt tokens of a block or of an attention."""


class LowRank(nn.Module):
    """W ↦ W + U V, V (R, in) drawn, U (out, R) zero: LoRA (Hu et al. 2022) with α = R, no drop-out.

    With ``first_frozen`` V is not trained (LoRA-FA, Zhang et al. 2023, arXiv 2308.03303). All peers draw the
    same V, so that the mean of their U is the mean of their updates U V; the mean of two factors, each
    averaged by itself, is not (FFA-LoRA, Sun et al., ICLR 2024).

    This is a parametrization of torch, so that the layer's class does not change, and merging is torch's own.
    """

    def __init__(self, rows: int, columns: int, rank: int, *, first_frozen: bool = False) -> None:
        super().__init__()
        down = torch.empty(rank, columns)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        if first_frozen:
            self.register_buffer("down", down, persistent=False)
        else:
            self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


def add_low_rank(model: nn.Module, rank: int, blocks: Sequence[str], *, first_frozen: bool = False) -> None:
    """Give the attention's projections of ``blocks`` an update of rank ``rank``.

    They are ``qkv``, or ``q``, ``k`` and ``v``, or ``q_proj``, ``k_proj`` and ``v_proj``; and ``proj``.

    Parameters
    ----------
    model : nn.Module
        The model.
    rank : int
        R.
    blocks : sequence of str
        Names of the blocks.
    first_frozen : bool
        Whether only the second factor of an update is trained.

    Raises
    ------
    ConfigError
        When the rank is larger than a projection, or a block has other parts.
    """
    for block in _blocks(model, blocks, "attn"):
        for projection in _projections(block.get_submodule("attn")):
            rows, columns = projection.get_parameter("weight").shape
            check_tune_number("lora:R", rank, min(rows, columns))
            update = LowRank(rows, columns, rank, first_frozen=first_frozen)
            parametrize.register_parametrization(projection, "weight", update)


def _projections(attention: nn.Module) -> list[nn.Module]:
    forms = (("qkv", "proj"), ("q", "k", "v", "proj"), ("q_proj", "k_proj", "v_proj", "proj"))
    names = next((f for f in forms if isinstance(getattr(attention, f[0], None), nn.Module)), forms[-1])
    missing = [name for name in names if not isinstance(getattr(attention, name, None), nn.Linear)]
    if missing:
        raise ConfigError(
            f"the attention of a block ({type(attention).__name__}) has no linear {', '.join(missing)}: "
            "choose another tune than lora:R"
        )
    return [attention.get_submodule(name) for name in names]


def merge_low_rank(model: nn.Module) -> None:
    """Merge every low-rank update into its weight; the model's names are timm's again."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


class Adapter(nn.Module):
    """x ↦ x + U gelu(V x + b) + c, U zero at the start: the bottleneck adapter of Houlsby et al. (2019)."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(nn.functional.gelu(self.down(x)))  # type: ignore[no-any-return]


def add_adapters(model: nn.Module, bottleneck: int, blocks: Sequence[str]) -> None:
    """Put an adapter of width ``bottleneck`` behind the MLP of ``blocks`` (names), in the residual branch.

    Raises
    ------
    ConfigError
        When the bottleneck is wider than a token, or a block has other parts.
    """
    for block in _blocks(model, blocks, "mlp", "norm2"):
        mlp = block.get_submodule("mlp")
        if any(isinstance(layer, nn.Conv2d) for layer in mlp.modules()):
            raise ConfigError(
                f"the MLP of a block of {type(model).__name__} ({type(mlp).__name__}) has convolutions, and "
                "behind them no adapter is defined: choose another tune than adapter:R"
            )
        width = len(block.get_parameter("norm2.weight"))
        check_tune_number("adapter:R", bottleneck, width)
        mlp.adapter = Adapter(width, bottleneck)
        mlp.register_forward_hook(_through_adapter)


def _through_adapter(mlp: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
    return mlp.adapter(output)  # type: ignore[operator, no-any-return]


def add_prompts(model: nn.Module, number: int, *, deep: bool) -> None:
    """Add ``number`` learned tokens: visual prompt tuning (Jia et al. 2022).

    ViT: the prompts are put between the class token and the patches; shallow prompts enter the first block
    and pass through to the end, deep prompts are new in every block. Swin: the queries of every window also
    see the prompts as keys and values, in the first block only or, if deep, in every block; no block has
    outputs for the prompts, as patch merging has no place for them.

    Raises
    ------
    ConfigError
        When the number is too large, or the model is neither a ViT nor a Swin V1.
    """
    check_tune_number("prompt:N", number, MAX_PROMPTS)
    if not takes_prompts(model) and not isinstance(model, SwinTransformer):
        raise ConfigError(f"prompts are not defined for {type(model).__name__}; choose a ViT or Swin V1")
    blocks = _blocks(model, list(filter(is_block, stages(model))), "attn", "norm1")
    if isinstance(model, SwinTransformer):
        for block in blocks if deep else blocks[:1]:
            attention = block.get_submodule("attn")
            attention.__class__ = _PromptedWindows  # the same module, which now reads its prompts
            attention.prompts = _new_prompts(number, attention.dim)  # type: ignore[arg-type]
        return
    first = int(getattr(model, "num_prefix_tokens", 1))
    for entering in blocks if deep else blocks[:1]:
        width = len(entering.get_parameter("norm1.weight"))
        entering.prompts = _new_prompts(number, width)
        entering.register_forward_pre_hook(partial(_insert, first=first))
    for leaving in blocks if deep else blocks[-1:]:
        leaving.register_forward_hook(partial(_drop, first=first, number=number))


def _new_prompts(number: int, width: int) -> nn.Parameter:
    # The bound of Glorot and Bengio for vectors of this width, as in visual prompt tuning.
    bound = math.sqrt(6 / (2 * width))
    return nn.Parameter(torch.empty(number, width).uniform_(-bound, bound))


def _insert(block: nn.Module, args: tuple[Any, ...], *, first: int) -> tuple[Any, ...]:
    tokens, *rest = args
    prompts = block.prompts.expand(len(tokens), -1, -1)  # type: ignore[operator]
    return (torch.cat([tokens[:, :first], prompts, tokens[:, first:]], dim=1), *rest)


def _drop(_: nn.Module, __: Any, tokens: torch.Tensor, *, first: int, number: int) -> torch.Tensor:
    return torch.cat([tokens[:, :first], tokens[:, first + number :]], dim=1)


class _PromptedWindows(WindowAttention):  # type: ignore[misc]  # untyped library
    """Window attention whose queries also see ``prompts``, (P, C), without position bias or mask."""

    prompts: nn.Parameter

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        windows, area, _ = x.shape
        heads, number = self.num_heads, len(self.prompts)
        q, k, v = self.qkv(x).reshape(windows, area, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        own = self.qkv(self.prompts).reshape(number, 3, heads, -1).permute(1, 2, 0, 3)
        k = torch.cat([own[1].expand(windows, -1, -1, -1), k], dim=2)
        v = torch.cat([own[2].expand(windows, -1, -1, -1), v], dim=2)
        bias = self._get_rel_pos_bias()
        if mask is not None:
            bias = (bias + mask.unsqueeze(1)).repeat(windows // len(mask), 1, 1, 1)
        x = nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=nn.functional.pad(bias, (number, 0)),
            dropout_p=self.attn_drop.p if self.training else 0.0,
        )
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(windows, area, -1)))  # type: ignore[no-any-return]


def _blocks(model: nn.Module, names: Sequence[str], *parts: str) -> Sequence[nn.Module]:
    """Return the blocks ``names``, each of which must have ``parts``."""
    blocks = [model.get_submodule(name) for name in names]
    for block in blocks:
        if missing := [part for part in parts if not hasattr(block, part)]:
            raise ConfigError(
                f"a block of {type(model).__name__} is a {type(block).__name__} without "
                f"{' and '.join(missing)}: choose tune = last-block, last-blocks:K, head, bias or full"
            )
    return blocks
