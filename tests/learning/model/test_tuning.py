"""Trunk and tail against the whole model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.batches import Batches
from p2pft_flower.learning.minibatches import MiniBatches
from p2pft_flower.learning.model.models import create_model
from p2pft_flower.learning.model.modes import switched_on
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.theta import tail_vector
from tests.learning.conftest import DROPS, MemoryFeatures, small_vit

EVERY_TUNE = ["head", "last-block", "last-blocks:1", "last-blocks:2", "last-blocks:3", "full"]
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])

MODELS = {
    "plain": small_vit,
    "drops": lambda: small_vit(**DROPS),
    "average": lambda: small_vit(class_token=False, global_pool="avg"),
    "registers": lambda: small_vit(reg_tokens=2, no_embed_class=True),
    "attention-pool": lambda: small_vit(class_token=False, global_pool="map"),
    "pre-norm": lambda: small_vit(pre_norm=True, init_values=0.3),
    "distilled": lambda: small_vit(cls=VisionTransformerDistilled),
}


def trained(tail):
    return [name.removeprefix("model.") for name, p in tail.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("tune", EVERY_TUNE)
@pytest.mark.parametrize("kind", MODELS)
def test_trunk_and_tail_answer_as_the_whole_model(kind, tune, images):
    model = MODELS[kind]()
    trunk, tail, *_ = split_model(model, tune)
    with torch.inference_mode():
        difference = tail.eval()(*trunk(images)) - model(images)
    assert difference.abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_vits_of_timm_answer_as_whole_models(name):
    model = create_model(name, "none", 7, seed=0)
    batch = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(batch)
        for tune in ("head", "last-block"):
            trunk, tail, *_ = split_model(model, tune)
            assert (tail(*trunk(batch)) - expected).abs().max() <= 1e-6


def test_the_trunk_gives_the_tokens_before_the_tail(images):
    model = small_vit()
    for tune, shapes in [
        ("last-block", [(6, 5, 16), (6, 1, 16)]),  # normalised tokens, and the class token as it is
        ("last-blocks:2", [(6, 5, 16)]),
        ("head", [(6, 16)]),
        ("full", [(6, 3, 8, 8)]),
    ]:
        trunk, *_ = split_model(model, tune)
        assert [tuple(t.shape) for t in trunk(images)] == shapes
    assert torch.equal(trunk(images)[0], images)


@pytest.mark.parametrize("kind", ["plain", "average", "registers", "distilled"])
@pytest.mark.parametrize(
    ("tune", "prefixes"),
    [
        ("head", ("head.", "head_dist.")),
        ("last-block", ("blocks.2.", "norm.", "fc_norm.", "head.", "head_dist.")),
        ("last-blocks:2", ("blocks.1.", "blocks.2.", "norm.", "fc_norm.", "head.", "head_dist.")),
        ("full", ("",)),
    ],
)
def test_exactly_the_named_part_is_trained_under_its_name_in_the_whole_model(kind, tune, prefixes):
    model = MODELS[kind]()
    _, tail, *_ = split_model(model, tune)
    expected = {n: p for n, p in model.named_parameters() if n.startswith(prefixes)}
    assert trained(tail) == list(expected)
    theta = tail_vector(tail)
    assert theta.shape == (sum(p.numel() for p in expected.values()),)
    assert theta.dtype == np.float32
    np.testing.assert_array_equal(theta, torch.cat([p.flatten() for p in expected.values()]).numpy())


def test_last_block_of_the_embedded_model_trains_as_many_parameters_as_a_block_has():
    _, tail, *_ = split_model(create_model("glyph_vit_8", "pretrained", 10, seed=0), "last-block")
    d = 64
    block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d)
    assert tail_vector(tail).size == block + 2 * d + (10 * d + 10)


def test_the_trunk_keeps_no_gradients_and_stays_in_eval_mode_when_the_tail_is_trained(images):
    model = small_vit(**DROPS)
    trunk, tail, *_ = split_model(model, "last-block")
    before = trunk(images)
    tail.train()
    tail(*before).sum().backward()
    assert not any(m.training for m in trunk.modules())
    assert not any(p.requires_grad for p in trunk.parameters())
    assert all(torch.equal(a, b) for a, b in zip(trunk(images), before, strict=True))
    assert not any(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def in_training(tail):
    return {name.removeprefix("model.") for name, m in tail.named_modules() if m.training}


def test_trained_blocks_train_with_all_their_drops():
    _, tail, *_ = split_model(small_vit(**DROPS), "last-block")
    tail.train()
    modes = in_training(tail)
    drops = {
        name.removeprefix("model.")
        for name, m in tail.named_modules()
        if isinstance(m, (nn.Dropout, DropPath))
    }
    assert drops == {
        "blocks.2.attn.attn_drop",
        "blocks.2.attn.proj_drop",
        "blocks.2.drop_path1",
        "blocks.2.mlp.drop1",
        "blocks.2.mlp.drop2",
        "blocks.2.drop_path2",
        "head_drop",
    }
    assert drops | {"blocks.2", "blocks.2.attn", "blocks.2.mlp", "norm", "head"} <= modes


def test_only_the_head_and_its_drop_out_train_where_the_head_alone_is_tuned():
    _, tail, *_ = split_model(small_vit(**DROPS), "head")
    tail.train()
    assert {"head", "head_drop"} <= in_training(tail)
    assert "norm" not in in_training(tail)
    assert not any(name.startswith("blocks.") for name, _ in tail.model.named_parameters())


def test_a_frozen_module_between_trained_ones_stays_in_eval_mode():
    model = small_vit(**DROPS).requires_grad_(True)
    model.blocks[1].requires_grad_(False)
    on = switched_on(model)
    assert not any(module in on for module in model.blocks[1].modules())
    for name in ("pos_drop", "blocks.0.drop_path1", "blocks.2.attn.proj_drop", "norm", "head", "head_drop"):
        assert model.get_submodule(name) in on, name


def test_drop_out_inside_a_container_trains_too():
    model = small_vit()
    model.head_drop = nn.Sequential(nn.Identity(), nn.Dropout(0.5))
    _, tail, *_ = split_model(model, "head")
    tail.train()
    assert "head_drop.1" in in_training(tail)


def test_eval_mode_after_train_mode_switches_every_drop_off(images):
    for tune in EVERY_TUNE:
        trunk, tail, *_ = split_model(small_vit(**DROPS), tune)
        tokens = trunk(images)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tail.train()
            assert not torch.equal(tail(*tokens), tail(*tokens))
        tail.eval()
        assert in_training(tail) == set()
        assert torch.equal(tail(*tokens), tail(*tokens))


@pytest.mark.parametrize("tune", EVERY_TUNE)
@pytest.mark.parametrize("kind", [k for k in MODELS if k != "drops"])
def test_the_gradient_on_cached_features_is_that_of_the_whole_model(kind, tune, images):
    model = MODELS[kind]()
    trunk, tail, *_ = split_model(model, tune)
    with torch.inference_mode():
        parts = zip(trunk(images[:4]), trunk(images[4:]), strict=True)
        cached = tuple(torch.cat(pair) for pair in parts)
    features = MemoryFeatures(tuple(t.clone() for t in cached), LABELS)
    drawn = MiniBatches(features, Batches(6, 6, seed=0, peer=0))
    objective = PeerObjective(tail, drawn, features, seed=0, peer=0)
    gradient = torch.from_numpy(objective.gradient(tail_vector(tail)))

    model.requires_grad_(True)
    nn.functional.cross_entropy(model(images), LABELS).backward()
    expected = [p.grad for n, p in model.named_parameters() if n in set(trained(tail))]
    pieces = gradient.split([p.numel() for p in expected])
    for name, ours, theirs in zip(trained(tail), pieces, expected, strict=True):
        gap = (ours.view_as(theirs) - theirs).norm()
        assert gap <= 1e-6 * theirs.norm() + 1e-8, name


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ("last", r"tune = 'last' is unknown; choose one of last-block, last-blocks:K, head, full, bias"),
        ("last-blocks", r"tune = 'last-blocks' is unknown"),
        ("last-blocks:", r"is unknown"),
        ("last-blocks:two", r"is unknown"),
        ("last-blocks:-1", r"is unknown"),
        ("last-block:2", r"is unknown"),
        ("last-blocks:0", r"tune = last-blocks:K: 0 is not a whole number >= 1"),
        ("last-blocks:4", r"the model has 3 blocks, K must be in 1..3"),
    ],
)
def test_a_part_that_cannot_be_tuned_is_refused(tune, message):
    with pytest.raises(ConfigError, match=message):
        split_model(small_vit(), tune)


@pytest.mark.parametrize("name", ["convit_tiny", "volo_d1_224", "mvitv2_tiny"])
def test_models_whose_blocks_need_more_than_tokens_are_refused_not_cut_wrongly(name):
    with pytest.raises(ConfigError, match=rf"model = '{name}': timm's \w+ does more than pass tokens"):
        create_model(name, "none", 10, seed=0)
