"""The trained part: a copy of a frozen model in which the trained parameters have ``requires_grad``.

`last-block` is the paper's choice (P2P-FT, section 3.3); the others are FedTune's families: modifying the
input (prompts), adding modules (adapters, low-rank updates), adjusting the backbone (biases).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.draws import torch_seeded
from p2pft_flower.learning.model.added import add_adapters, add_low_rank, add_prompts
from p2pft_flower.learning.model.heads import PROJECTION
from p2pft_flower.learning.model.model_sizes import check_blocks
from p2pft_flower.learning.model.structure import STEM, block_lists, heads, is_block, share_copy, stages
from p2pft_flower.learning.model.text_prompts import CONTEXT
from p2pft_flower.learning.model.tune_values import TUNE, read_tune

__all__ = ["TUNE", "tune_model"]


def tune_model(model: nn.Module, tune: str, seed: int = 0) -> nn.Module:
    """Return a copy of a model with the parameters that ``tune`` adds; those that are trained are marked.

    Parameters
    ----------
    model : nn.Module
        A model built like timm's VisionTransformer or SwinTransformer.
    tune : str
        ``"last-block"`` (last block, final norm, head), ``"last-blocks:K"``, ``"head"``, ``"full"``,
        ``"bias"`` (all biases), ``"bias+norm"`` (and the scales of all normalisations), ``"lora:R"`` (rank R
        on the attention projections), ``"adapter:R"`` (bottlenecks of width R), ``"prompt:N"``,
        ``"prompt-deep:N"`` (N tokens). The classifier is trained with each of these; the projection of an
        image tower's head only where blocks are. Of ``"text-prompt:N"`` and ``"text-prompt-class:N"`` only
        the context (:class:`~p2pft_flower.learning.model.text_prompts.PromptHead`) is trained.
    seed : int
        Number that decides the draw of the added parameters.

    Returns
    -------
    nn.Module
        The copy, in eval mode; frozen parameters share the memory of ``model``. Names of the model's own
        parameters do not change, except of weights with a low-rank update
        (``parametrizations.weight.original``).

    Raises
    ------
    ConfigError
        When ``tune`` is unknown, or its number or kind does not fit the model.
    """
    kind, number, last = read_tune(tune)
    if kind == "mlp":
        raise ConfigError(f"tune = {tune!r}: it is for features that were made elsewhere, not for a model")
    trains = _selector(model, kind, number)
    within = _last_blocks(model, last) if last else lambda _: True
    added = _addition(kind, number, _tuned_blocks(model, last))
    tuned = share_copy(model).requires_grad_(False)
    _keep_nothing(tuned)
    before = {id(p) for p in tuned.parameters()}
    if added is not None:
        with torch_seeded(seed):
            added(tuned)
    for name, parameter in tuned.named_parameters():
        if id(parameter) not in before or (trains(name) and within(name)):
            parameter.data = parameter.data.clone()  # the memory of frozen parameters remains the model's
            parameter.requires_grad_(True)
    return tuned.eval()


def _keep_nothing(model: nn.Module) -> None:
    """Have attentions of TinyViT make their biases anew in each forward pass.

    In eval mode they keep what they made of a table until timm's ``train`` is called, although the table may
    have changed.
    """
    for module in model.modules():
        if hasattr(module, "attention_bias_cache"):
            _forget(module)
            module.register_forward_hook(_forget)


def _forget(module: nn.Module, *_: Any) -> None:
    vars(module)["attention_bias_cache"] = {}


def _selector(model: nn.Module, kind: str, number: int) -> Callable[[str], bool]:
    """Return a function that tells, by its name, whether one of the model's own parameters is trained."""
    logits = heads(model)

    def classifies(name: str) -> bool:
        """Tell whether a parameter is a classifier's; an image tower's way to its texts is not."""
        return name.startswith(logits) and not name.startswith(PROJECTION)

    if kind == "full":
        return lambda _: True
    if kind in ("last-block", "last-blocks"):
        return _last_blocks(model, number or 1)
    if kind in ("text-prompt", "text-prompt-class"):
        return lambda name: name.endswith(f".{CONTEXT}")
    if kind == "bias":
        return lambda name: classifies(name) or name.endswith("bias")
    if kind == "bias+norm":
        norms = {
            f"{name}.{own}"
            for name, module in model.named_modules()
            if "norm" in type(module).__name__.lower()
            for own, _ in module.named_parameters(recurse=False)
        }
        return lambda name: classifies(name) or name.endswith("bias") or name in norms
    return classifies


def _last_blocks(model: nn.Module, number: int) -> Callable[[str], bool]:
    """Return a selector of the last blocks and of all that follows the first of them, patch merging included.

    Raises
    ------
    ConfigError
        When the model has fewer blocks.
    """
    names = stages(model)
    blocks = [i for i, name in enumerate(names) if is_block(name)]
    check_blocks(number, len(blocks))
    frozen = tuple(f"{name}." for name in names[: blocks[-number]])
    after = tuple(f"{name}." for name in names[blocks[-number] :])
    between = tuple(f"{part}." for part in block_lists(model))
    stem = {name for name, _ in model.named_parameters(recurse=False)}
    stem_modules = tuple(f"{name}." for name in STEM)

    def trains(name: str) -> bool:
        if name.startswith(after):
            return True
        return name not in stem and not name.startswith((*frozen, *between, *stem_modules))

    return trains


def _tuned_blocks(model: nn.Module, last: int) -> list[str]:
    """Return the names of the last blocks, of all blocks if ``last`` is 0."""
    blocks = [name for name in stages(model) if is_block(name)]
    return blocks[-last:]


def _addition(kind: str, number: int, blocks: list[str]) -> Callable[[nn.Module], None] | None:
    additions: dict[str, Callable[[nn.Module], None]] = {
        "lora": lambda m: add_low_rank(m, number, blocks),
        "lora-fa": lambda m: add_low_rank(m, number, blocks, first_frozen=True),
        "adapter": lambda m: add_adapters(m, number, blocks),
        "prompt": lambda m: add_prompts(m, number, deep=False),
        "prompt-deep": lambda m: add_prompts(m, number, deep=True),
    }
    return additions.get(kind)
