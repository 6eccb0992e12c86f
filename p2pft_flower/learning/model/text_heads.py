"""The classifier of ``head = text``: the classes' text embeddings, or a learned prompt's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.draws import torch_seeded
from p2pft_flower.learning.model.class_texts import class_texts
from p2pft_flower.learning.model.heads import CosineHead
from p2pft_flower.learning.model.text_embeddings import TextRows, embeddings_for, origin
from p2pft_flower.learning.model.text_prompts import PromptHead
from p2pft_flower.learning.model.text_tower import load_tower
from p2pft_flower.learning.model.tune_values import read_tune

__all__ = ["fixed_head", "text_classifier", "text_rows"]


def text_rows(config: LearningConfig, classes: Sequence[str], width: int) -> TextRows:
    """Return the directions of ``classes``: from ``text-embeddings`` if that is set, else by ``text-tower``.

    Parameters
    ----------
    config : LearningConfig
        The settings.
    classes : sequence of str
        The C classes' names in the dataset.
    width : int
        D, the numbers of an image in the space of texts; 0: whatever the texts have.

    Raises
    ------
    ConfigError, DataError
        When file, tower or texts cannot be used.
    """
    if config.text_embeddings:
        return embeddings_for(config, classes, width)
    tower, texts = load_tower(config.text_tower), class_texts(config.class_names, config.prompts, classes)
    rows = tower.rows(texts)
    _require_width(config, rows.shape[1], width)
    return TextRows(rows.numpy(), tower.scale, origin(tower.digest, texts))


def text_classifier(
    config: LearningConfig, classes: Sequence[str], width: int
) -> tuple[nn.Module, dict[str, str]]:
    """Return the classifier, (N, D) ↦ (N, C), and the facts that decide its start.

    Raises
    ------
    ConfigError, DataError
        When :func:`text_rows` or :class:`PromptHead` raises it.
    """
    kind, number, _ = read_tune(config.tune)
    if not kind.startswith("text-prompt"):
        rows, scale, made = text_rows(config, classes, width)
        return CosineHead(torch.from_numpy(rows), scale), made
    tower, texts = load_tower(config.text_tower), class_texts(config.class_names, config.prompts, classes)
    _require_width(config, tower.width, width)
    with torch_seeded(config.seed):
        head = PromptHead(tower, texts, number, each=kind == "text-prompt-class")
    return head, origin(tower.digest, texts)


def _require_width(config: LearningConfig, found: int, width: int) -> None:
    if width not in (0, found):
        what = "the features have" if config.of_features else f"the images of {config.model!r} have"
        raise ConfigError(
            f"text-tower = {config.text_tower!r} with model = {config.model!r}: its texts have {found} "
            f"numbers each, {what} {width}: the towers are of different models"
        )


def fixed_head(head: nn.Module) -> nn.Module:
    """Return a head that needs no text tower, with the answers of ``head``: :meth:`PromptHead.fixed`."""
    return head.fixed() if isinstance(head, PromptHead) else head
