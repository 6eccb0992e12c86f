"""The text tower of a vision-language model, through open_clip (the extra ``clip``)."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from p2pft_flower.errors import ConfigError, DataError, did_you_mean
from p2pft_flower.learning.model.class_texts import ClassTexts
from p2pft_flower.learning.model.tower_names import (
    HUB,
    LOCAL,
    check_tower_name,
    require_tower_here,
    tower_folder,
)
from p2pft_flower.learning.named_tensors import weights_digest

__all__ = ["TextTower", "load_tower"]

_BATCH = 256
"""Texts in one forward pass."""

log = logging.getLogger(__name__)


class TextTower(nn.Module):
    """The half of open_clip's model that embeds texts; frozen, in eval mode.

    Parameters
    ----------
    model : nn.Module
        open_clip's model; its image tower is dropped.
    tokenizer : callable
        open_clip's, texts ↦ (M, L) whole numbers.
    name : str
        The run-config's ``text-tower``, for messages.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        super().__init__()
        del model.visual
        self.model = model.eval().requires_grad_(False)
        self.name, self._tokenizer = name, tokenizer
        self.length = int(getattr(model, "context_length", None) or model.text.context_length)
        """Most tokens of a text."""

    def __deepcopy__(self, memo: dict[int, Any]) -> TextTower:
        """Return a copy with the same tokenizer, which never changes and whose vocabulary is large."""
        memo[id(self._tokenizer)] = self._tokenizer
        memo[id(self)] = copied = type(self).__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    @property
    def scale(self) -> float:
        """The factor of the cosine in the logits."""
        return float(self.model.logit_scale.detach().exp())

    @property
    def width(self) -> int:
        """D, the length of an embedding."""
        return int(self.embed([""]).shape[1])

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of the weights."""
        return weights_digest(self.model)

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the tokens of ``texts``, (M, L) int64.

        Raises
        ------
        DataError
            When a text has too many tokens: the tokenizer would cut it off without a word.
        """
        longer = self._tokenizer(["", *texts], context_length=self.length + 1)
        found: torch.Tensor = self._tokenizer(list(texts), context_length=self.length)
        # A tokenizer that pads with the token of a text's end is found out by what it cuts off.
        cut = (longer[1:, -1] != longer[0, -1]) | (longer[1:, :-1] != found).any(dim=1)
        if long := [text for text, is_cut in zip(texts, cut.tolist(), strict=True) if is_cut]:
            raise DataError(
                f"text-tower = {self.name!r}: {long[0][:80]!r} has more than {self.length} tokens; use a "
                f"shorter name or template ({len(long)} texts in all)"
            )
        return found

    def require_apart(self, texts: ClassTexts) -> None:
        """Refuse names that are the same to the tokenizer, which ignores case or repeated blanks.

        Raises
        ------
        DataError
            When there are such names; the message has two of them.
        """
        seen: dict[bytes, str] = {}
        rows = self.tokens(texts.of(texts.templates[0])).numpy()
        for name, row in zip(texts.names, rows, strict=True):
            other = seen.setdefault(row.tobytes(), name)
            if other is not name:
                raise DataError(
                    f"text-tower = {self.name!r}: {other!r} and {name!r} are the same to its tokenizer, so "
                    "it cannot tell these classes apart: give each a name of its own (class-names)"
                )

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, (M, D), of ``tokens``, (M, L), as the tower gives them."""
        embedded: torch.Tensor = self.model.encode_text(tokens)
        return embedded

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings of ``texts``, (M, D) float32, of length 1 each."""
        tokens = self.tokens(texts)
        with torch.inference_mode():
            parts = [self.encode(tokens[i : i + _BATCH]) for i in range(0, len(tokens), _BATCH)]
        return nn.functional.normalize(torch.cat(parts).float(), dim=1).clone()

    def rows(self, texts: ClassTexts) -> torch.Tensor:
        """Return each class's direction, (C, D) float32 of length 1: the mean over the templates.

        Raises
        ------
        DataError
            When a text is too long, or :meth:`require_apart` raises it.
        """
        self.require_apart(texts)
        total = sum(self.embed(texts.of(template)) for template in texts.templates)
        return nn.functional.normalize(torch.as_tensor(total), dim=1)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The layer that turns tokens into vectors, (M, L) ↦ (M, L, W).

        Raises
        ------
        ConfigError
            When the tower is not of open_clip's own kind.
        """
        found = getattr(self.model, "token_embedding", None)
        if found is None:
            found = getattr(getattr(self.model, "text", None), "token_embedding", None)
        if not isinstance(found, nn.Embedding):
            raise ConfigError(
                f"text-tower = {self.name!r}: tune = text-prompt needs a text tower of open_clip's own kind, "
                "whose tokens' embeddings can be replaced"
            )
        return found


@lru_cache(maxsize=1)
def load_tower(name: str) -> TextTower:
    """Load the text tower that ``text-tower`` names; the last one is kept, since it is only read.

    Raises
    ------
    ConfigError
        When the name is wrong, or open_clip is missing.
    DataError
        When open_clip cannot load it; the message gives open_clip's reason.
    """
    check_tower_name(name)
    require_tower_here(name)
    with _root_logger_untouched():
        import open_clip

        source, tag = _source(name, open_clip)
        try:
            model = open_clip.create_model(source, pretrained=tag, require_pretrained=True)
            tokenizer = open_clip.get_tokenizer(source)
        except Exception as error:  # open_clip, the hub's client and torch raise many kinds of errors
            raise DataError(f"text-tower = {name!r}: open_clip could not load it: {error}") from error
    if not hasattr(model, "encode_text"):
        raise ConfigError(f"text-tower = {name!r}: open_clip's {type(model).__name__} embeds no texts")
    tower = TextTower(model, tokenizer, name)
    log.info(
        "text-tower = %s: open_clip's, %d parameters, texts of at most %d tokens",
        name,
        sum(p.numel() for p in tower.parameters()),
        tower.length,
    )
    return tower


def _source(name: str, open_clip: Any) -> tuple[str, str | None]:
    """Return open_clip's name of the model, and the tag or file of its weights."""
    folder = tower_folder(name)
    if folder is not None:
        return f"{LOCAL}{folder}", None
    if name.startswith(HUB):
        return name, None
    plain, _, tag = name.partition(":")
    known = open_clip.list_models()
    if plain not in known:
        raise ConfigError(f"text-tower = {name!r}: open_clip has no {plain!r}{did_you_mean(plain, known)}")
    tags = open_clip.list_pretrained_tags_by_model(plain)
    if not Path(tag).expanduser().is_file() and tag not in tags:
        raise ConfigError(
            f"text-tower = {name!r}: open_clip has no weights {tag!r} of {plain}, and there is no such file; "
            f"tags are {', '.join(tags) or 'none'}{did_you_mean(tag, tags)}"
        )
    return plain, str(Path(tag).expanduser()) if tag not in tags else tag


@contextlib.contextmanager
def _root_logger_untouched() -> Iterator[None]:
    """Keep open_clip, which logs by ``logging.info``, from giving the root logger a handler of its own."""
    root, ours = logging.getLogger(), logging.NullHandler()
    root.addHandler(ours)
    try:
        yield
    finally:
        root.removeHandler(ours)
