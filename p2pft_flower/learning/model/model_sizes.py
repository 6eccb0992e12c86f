"""Sizes of models, as far as they are known without torch and timm, and checks of settings against them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.model.timm_names import timm_names
from p2pft_flower.learning.model.tune_values import read_tune

__all__ = [
    "EMBEDDED_SIZES",
    "MAX_PROMPTS",
    "MAX_TOKENS",
    "ModelSize",
    "check_blocks",
    "check_patches",
    "check_sizes",
    "check_tune_number",
]

MAX_TOKENS = 2**18
"""Largest number of patches of an image: 512 × 512."""

MAX_PROMPTS = 10_000
"""Largest number of prompt tokens."""


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model that settings must fit; a size that is not known is 0.

    Attributes
    ----------
    patch : int
        Pixels of a patch's side.
    width : int
        Length of a token, a vector, in the first block.
    blocks : int
        Number of blocks.
    """

    patch: int
    width: int
    blocks: int


EMBEDDED_SIZES = {
    "glyph_vit_8": ModelSize(patch=2, width=64, blocks=4),
    "glyph_clip_8": ModelSize(patch=2, width=64, blocks=3),
}
"""Sizes of this package's models."""


def check_sizes(model: str, tune: str, image_size: int) -> None:
    """Refuse a number in ``tune``, or an image size, that does not fit a model whose size is known.

    Parameters
    ----------
    model, tune : str
        The run-config's values.
    image_size : int
        The run-config's ``image-size``, in pixels; 0 is the model's own size.

    Raises
    ------
    ConfigError
        When a value does not fit; the message gives the values that do.
    """
    kind, number, blocks = read_tune(tune)
    if kind in ("prompt", "prompt-deep"):
        check_tune_number("prompt:N", number, MAX_PROMPTS)
    size = EMBEDDED_SIZES.get(model)
    if size is None:
        said = timm_names().sizes.get(model.partition(".")[0])
        if said is None:
            return
        size = ModelSize(*said)
    if kind in ("lora", "lora-fa", "adapter") and size.width:
        check_tune_number(f"{kind}:R", number, size.width)
    if last := number if kind == "last-blocks" else blocks:
        check_blocks(last, size.blocks or last)
    if image_size and size.patch:
        check_patches(model, image_size, (size.patch, size.patch))


def check_tune_number(what: str, value: int, most: int) -> None:
    """Refuse a number in ``tune`` (``what``, as ``"lora:R"``) that is too large for the model.

    Raises
    ------
    ConfigError
        When ``value`` is not in 1 to ``most``; the message gives both bounds.
    """
    if not 1 <= value <= most:
        raise ConfigError(f"tune = {what}: {value} is not in 1..{most}")


def check_blocks(number: int, blocks: int) -> None:
    """Refuse to train more blocks than the model has.

    Raises
    ------
    ConfigError
        When ``number`` is not in 1 to ``blocks``; the message gives both bounds.
    """
    if not 1 <= number <= blocks:
        raise ConfigError(
            f"tune = 'last-blocks:{number}': the model has {blocks} blocks, K must be in 1..{blocks}"
        )


def check_patches(name: str, size: int, patch: Sequence[int]) -> None:
    """Refuse an image size that the patches do not divide, or at which an image has too many patches.

    Parameters
    ----------
    name : str
        The model's name.
    size : int
        Pixels of a side of the images.
    patch : sequence of int
        Height and width of a patch, in pixels.

    Raises
    ------
    ConfigError
        When ``size`` is such a size; the message gives sizes that fit.
    """
    side = max(patch)
    begin = f"image-size = {size}: the patches of {name} are {' × '.join(map(str, patch))} pixels, so"
    if any(size % pixels for pixels in patch):
        near = max(side, size // side * side)
        raise ConfigError(f"{begin} it must be a multiple of {side}, such as {near} or {near + side}")
    if math.prod(size // pixels for pixels in patch) > MAX_TOKENS:
        most = math.isqrt(MAX_TOKENS) * side
        raise ConfigError(
            f"{begin} an image would have more than {MAX_TOKENS} of them; choose {most} at most"
        )
