"""Learned prompts: vectors before the classes' names, trained through a frozen text tower.

Source: Zhou et al., "Learning to prompt for vision-language models" (CoOp), IJCV 2022, section 3.2: with one
context for all classes ("unified"), or one a class ("class-specific").
"""

from __future__ import annotations

import torch
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.model.class_texts import PLACE, ClassTexts
from p2pft_flower.learning.model.heads import CosineHead
from p2pft_flower.learning.model.text_tower import TextTower

__all__ = ["CONTEXT", "PromptHead"]

CONTEXT = "context"
"""The name, in a :class:`PromptHead`, of what is trained."""

_HOLDER = "X"
"""The word whose tokens stand where the context goes."""

_SPREAD = 0.02
"""Standard deviation of vectors that begin at random, as in CoOp."""


class PromptHead(nn.Module):
    """A classifier by cosine whose rows a text tower makes of a learned context and the classes' names.

    The context begins with the template's words before the name, so that a template of N such tokens gives
    the same answers as the text head; if it has fewer, random vectors stand before them.

    Parameters
    ----------
    tower : TextTower
        The frozen text tower.
    texts : ClassTexts
        The C classes' names and one template.
    number : int
        N, the vectors of a context.
    each : bool
        Whether each class has a context of its own.

    Raises
    ------
    ConfigError
        When there is more than one template, or the tower's tokenizer does not keep the places apart.
    DataError
        When a text is too long for the tower, or two names are the same to its tokenizer.
    """

    scale: torch.Tensor
    tokens: torch.Tensor

    def __init__(self, tower: TextTower, texts: ClassTexts, number: int, *, each: bool) -> None:
        super().__init__()
        if len(texts.templates) != 1:
            raise ConfigError(
                f"tune = text-prompt:N with {len(texts.templates)} templates in prompts: a learned prompt "
                "begins with one template; give one"
            )
        before, _, after = texts.templates[0].partition(PLACE)
        held = " ".join([_HOLDER] * number)
        tower.require_apart(texts)
        tokens = tower.tokens([f"{held} {name}{after.replace(PLACE, name)}" for name in texts.names])
        self._first = _first_holder(tokens, held, tower)
        words = _vectors(tower, before, self._first)
        start = torch.randn(number, words.shape[1]) * _SPREAD
        taken = min(number, len(words))
        if taken:
            start[number - taken :] = words[len(words) - taken :]
        if each:
            start = start.expand(len(texts.names), -1, -1)
        self.tower = tower
        self.context = nn.Parameter(start.clone(), requires_grad=False)
        self.register_buffer("tokens", tokens)
        self.register_buffer("scale", torch.tensor(tower.scale))

    def rows(self) -> torch.Tensor:
        """Return the classes' directions, (C, D), as the tower makes them of the context; not normalised."""
        begin, end = self._first, self._first + self.context.shape[-2]

        def replaced(_: nn.Module, __: object, vectors: torch.Tensor) -> torch.Tensor:
            context = self.context.expand(len(vectors), -1, -1)
            return torch.cat([vectors[:, :begin], context, vectors[:, end:]], dim=1)

        hook = self.tower.token_embedding.register_forward_hook(replaced)
        try:
            return self.tower.encode(self.tokens)
        finally:
            hook.remove()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, C), of ``features``, (N, D)."""
        directions = nn.functional.normalize(self.rows(), dim=1)
        cosines = nn.functional.linear(nn.functional.normalize(features, dim=1), directions)
        return self.scale * cosines

    def fixed(self) -> CosineHead:
        """Return the head of text embeddings with the same answers, which needs no tower."""
        with torch.no_grad():
            rows = nn.functional.normalize(self.rows(), dim=1)
        return CosineHead(rows, float(self.scale))


def _first_holder(tokens: torch.Tensor, held: str, tower: TextTower) -> int:
    """Return the place of the first of the words ``held``, the same in all of ``tokens``, (C, L).

    Raises
    ------
    ConfigError
        When there is no such place.
    """
    number = len(held.split())
    empty, alone = tower.tokens(["", held])
    first = int((empty != alone).nonzero().min())
    places = tokens[:, first : first + number]
    if places.shape[1] < number or not bool((places == alone[first]).all()):
        raise ConfigError(
            f"text-tower = {tower.name!r}: its tokenizer does not keep {number} words apart; a learned "
            "prompt cannot take their places"
        )
    return first


def _vectors(tower: TextTower, words: str, first: int) -> torch.Tensor:
    """Return the vectors of the tokens of ``words``, (K, W), which begin at place ``first`` of a text."""
    longer, shorter = tower.tokens([f"{words.strip()} {_HOLDER}".strip(), _HOLDER])
    padding = shorter[-1]
    count = int((longer != padding).sum() - (shorter != padding).sum())
    with torch.no_grad():
        found: torch.Tensor = tower.token_embedding(longer[first : first + count]).float()
    return found
