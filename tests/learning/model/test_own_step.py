"""Own models in training mode: parts of θ that a step does not use, and answers that are none."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.batches import Batches
from p2pft_flower.learning.minibatches import MiniBatches
from p2pft_flower.learning.model.own_step import check_own_step
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.privacy import Privacy
from p2pft_flower.learning.theta import tail_vector
from tests.learning.conftest import DROPS, MemoryFeatures, small_hybrid, small_swin, small_vit


def parts_of(model, tune, path=""):
    return split_model(model.eval().requires_grad_(False), tune, path=path)


def look(model, tune="last-block", size=8):
    check_own_step(parts_of(model, tune), (3, size, size), "model = 'm'")


def with_mask_token():
    model = small_vit()
    model.mask_token = nn.Parameter(torch.ones(1, 1, 16))
    return model


def with_unused_layer():
    model = small_vit()
    model.blocks[2].decoder = nn.Linear(16, 16)
    return model


class Skipped(nn.Module):
    """A block that training drops for the whole batch, and half of the time (LayerDrop)."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return x if self.training and random.random() < 0.5 else self.block(x)


def with_layer_drop():
    model = small_vit()
    model.blocks[2] = Skipped(model.blocks[2])
    return model


UNUSED = [
    (with_mask_token, "full", "mask_token"),
    (with_unused_layer, "last-block", "decoder"),
    (with_unused_layer, "bias", "decoder.bias"),
]


def objective_of(parts, privacy=None):
    """A peer's objective on 12 images of noise."""
    with torch.no_grad():
        values = parts.trunk(torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(2)))
    features = MemoryFeatures(values, torch.arange(12) % 5)
    batches = Batches(12, 4, seed=0, peer=0) if privacy is None else privacy.batches()
    return PeerObjective(
        parts.tail, MiniBatches(features, batches), features, seed=0, peer=0, privacy=privacy
    )


def gradient_by_name(parts, gradient):
    named = [(name, p.numel()) for name, p in parts.tail.named_parameters() if p.requires_grad]
    pieces = np.split(gradient, np.cumsum([size for _, size in named])[:-1])
    return {name: piece for (name, _), piece in zip(named, pieces, strict=True)}


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize(("make", "tune", "name"), UNUSED)
def test_the_gradient_of_what_a_step_does_not_use_is_zero(make, tune, name, private):
    parts = parts_of(make(), tune)
    privacy = Privacy(clip=1.0, noise=0.0, delta=0.1, images=12, batch_size=4, key=(0, 0))
    objective = objective_of(parts, privacy if private else None)
    found = gradient_by_name(parts, objective.gradient(tail_vector(parts.tail)))
    for parameter, gradient in found.items():
        assert gradient.any() == (name not in parameter), parameter


@pytest.mark.parametrize("path", ["class-token", "query", "tokens"])
def test_on_every_path_of_the_tail(path):
    model = small_vit()
    model.norm.spare = nn.Parameter(torch.ones(3))
    parts = parts_of(model, "last-block", path)
    found = gradient_by_name(parts, objective_of(parts).gradient(tail_vector(parts.tail)))
    assert [name for name, gradient in found.items() if not gradient.any()] == ["model.norm.spare"]


def test_a_dropped_layer_has_a_gradient_in_the_steps_that_use_it():
    parts = parts_of(with_layer_drop(), "last-block")
    objective = objective_of(parts)
    used = [
        bool(
            gradient_by_name(parts, objective.gradient(tail_vector(parts.tail)))[
                "model.blocks.2.block.mlp.fc1.weight"
            ].any()
        )
        for _ in range(12)
    ]
    assert set(used) == {True, False}


@pytest.mark.parametrize(("make", "tune", "name"), UNUSED)
def test_what_no_step_uses_is_named_in_the_log(make, tune, name, caplog):
    look(make(), tune)
    (line,) = caplog.messages
    assert line.startswith("model = 'm': no step uses the trained ")
    assert name in line
    assert "norm" not in line


DROPPING = [
    (make, size, tune)
    for make, size in ((small_vit, 8), (small_swin, 32), (small_hybrid, 16))
    for tune in ("last-block", "head", "full", "bias", "lora:2", "prompt:2")
]


@pytest.mark.parametrize(("make", "size", "tune"), DROPPING)
def test_nothing_is_said_of_what_all_steps_use(make, size, tune, caplog):
    look(make(**DROPS), tune, size)
    assert not caplog.messages


@pytest.mark.parametrize("tune", ["last-block", "full", "bias"])
def test_nothing_is_said_of_what_some_steps_use(tune, caplog):
    look(with_layer_drop(), tune)
    assert not caplog.messages


class WithAuxiliary(type(small_vit())):
    """Answers with two heads while it is trained."""

    def forward_head(self, x, pre_logits=False):
        answer = super().forward_head(x, pre_logits)
        return (answer, answer) if self.training else answer


class WithSums(type(small_vit())):
    def forward_head(self, x, pre_logits=False):
        answer = super().forward_head(x, pre_logits)
        return answer.sum(dim=1) if self.training else answer


@pytest.mark.parametrize(("kind", "found"), [(WithAuxiliary, "a tuple"), (WithSums, r"\(2,\)")])
def test_another_answer_in_training_mode_is_refused(kind, found):
    with pytest.raises(
        ConfigError, match=rf"^model = 'm': in training mode it answers two images with {found}"
    ):
        look(small_vit(cls=kind), "full")


class Louder(type(small_vit())):
    """Answers with larger numbers while it is trained."""

    def forward_head(self, x, pre_logits=False):
        return super().forward_head(x, pre_logits) * (100 if self.training else 1)


def test_a_model_that_answers_otherwise_in_training_mode_is_warned_of(caplog):
    look(small_vit(cls=Louder, **DROPS), "full")
    (line,) = caplog.messages
    assert line.startswith("model = 'm': in training mode it answers the same images with other numbers")


class Detached(type(small_vit())):
    def forward_head(self, x, pre_logits=False):
        return super().forward_head(x, pre_logits).detach()


def test_an_answer_without_a_gradient_is_refused():
    with pytest.raises(ConfigError, match="its answer depends on no trained parameter"):
        look(small_vit(cls=Detached), "full")
