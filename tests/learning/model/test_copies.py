"""Copies of a module share what nobody writes to, and nothing else."""

from __future__ import annotations

import torch
from torch import nn

from p2pft_flower.learning.model.structure import share_copy
from p2pft_flower.learning.model.text_tower import TextTower


class Tower(nn.Module):
    context_length = 4

    def __init__(self):
        super().__init__()
        self.visual, self.text = nn.Identity(), nn.Linear(2, 2)


class Tokenizer:
    def __deepcopy__(self, memo):
        raise AssertionError("the vocabulary was copied")

    def __call__(self, texts, context_length):
        return torch.zeros(len(texts), context_length, dtype=torch.int64)


def test_hooks_and_buffers_that_a_copy_is_given_are_its_own():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    copy = share_copy(module)
    copy[0].register_forward_hook(lambda *_: torch.ones(1))
    copy[0].register_buffer("more", torch.zeros(1))
    copy[0].weight.requires_grad_(False)
    assert not module[0]._forward_hooks
    assert not module[0]._buffers
    assert module[0].weight.requires_grad
    assert copy[0].weight.data_ptr() == module[0].weight.data_ptr()
    assert copy[1].running_mean is module[1].running_mean


def test_a_copy_of_a_text_tower_shares_its_vocabulary():
    """It has some 50,000 words in CLIP, and is copied for each peer and each score."""
    copy = share_copy(TextTower(Tower(), Tokenizer(), "made"))
    assert copy.tokens(["a"]).shape == (1, 4)
