"""What is on while a tail is trained, and that nothing of it survives from one gradient to the next."""

from __future__ import annotations

import itertools
import logging
import math

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d, DropPath, EvoNorm2dB0
from torch import nn

from p2pft_flower.config import LearningConfig
from p2pft_flower.learning.data.batches import Batches
from p2pft_flower.learning.minibatches import MiniBatches
from p2pft_flower.learning.model.modes import has_statistics, switched_on, training
from p2pft_flower.learning.model.split import PATHS, split_model
from p2pft_flower.learning.model.tuning import tune_model
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.privacy import ClippedGradients, Privacy
from p2pft_flower.learning.theta import tail_vector, trained_parameters
from p2pft_flower.learning.workload import Workload
from tests.learning.conftest import (
    DROPS,
    MemoryFeatures,
    TokenBatchNorm,
    set_statistics,
    small_hybrid,
    small_swin,
    small_vit,
    write_images,
)

TUNES = [
    "last-block",
    "last-blocks:2",
    "head",
    "full",
    "bias",
    "bias+norm",
    "lora:2",
    "lora-fa:2:last-block",
    "adapter:3",
    "prompt:2",
    "prompt-deep:2",
]
IMAGES = 12

# --- path × drop-out × drop-path × batch norm × resume -----------------------------------------------------

TUNE_OF = {
    "pooled": "head",
    "class-token": "last-block",
    "query": "last-blocks:2",
    "tokens": "last-block",
    "full": "full",
}
DROP_OUT = {"drop_rate": 0.3, "proj_drop_rate": 0.3}
DROP_PATH = {"drop_path_rate": 0.4}
CASES = [
    (path, out, way, norm)
    for path, out, way, norm in itertools.product(PATHS, (False, True), (False, True), (False, True))
    if not (path == "pooled" and out)  # with drop-out before the head that path is refused
]
table = pytest.mark.parametrize(("path", "drop_out", "drop_path", "batch_norm"), CASES)


def build(path, drop_out, drop_path, batch_norm):
    """Trunk, tail and 12 images' features; as a process of its own builds them."""
    options = (DROP_OUT if drop_out else {}) | (DROP_PATH if drop_path else {})
    if path == "tokens":
        options |= {"global_pool": "avg", "class_token": False, "fc_norm": False}
    if batch_norm and path in ("full", "pooled"):
        model, size = small_hybrid(**options), 16
    else:
        model, size = small_vit(**options), 8
        if batch_norm:
            model.norm = TokenBatchNorm(16)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(5)
                set_statistics(model)
    parts = split_model(model.eval().requires_grad_(False), TUNE_OF[path])
    assert parts.path == path
    images = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, images, parts.tail, MemoryFeatures(parts.trunk(images), torch.arange(IMAGES) % 5)


def objective_of(tail, features, batches=None, **options):
    drawn = MiniBatches(features, batches or Batches(IMAGES, 5, seed=3, peer=1))
    return PeerObjective(tail, drawn, features, seed=3, peer=1, **options)


def descend(objective, theta, steps):
    """Gradients, and the θ they were taken at, of plain descent."""
    passed = []
    for _ in range(steps):
        gradient = objective.gradient(theta)
        passed.append((theta, gradient))
        theta = theta - np.float32(0.05) * gradient
    return passed


@table
def test_gradients_after_a_resume_are_those_of_the_uninterrupted_run_evaluated_or_not(
    path, drop_out, drop_path, batch_norm
):
    _, _, tail, features = build(path, drop_out, drop_path, batch_norm)
    whole = objective_of(tail, features)
    passed = descend(whole, tail_vector(tail), 3)
    position = whole.position()()
    rest = descend(whole, passed[-1][0] - np.float32(0.05) * passed[-1][1], 3)

    _, _, tail, features = build(path, drop_out, drop_path, batch_norm)
    for evaluated_before in ((), (1,), (0, 1, 2)):
        resumed = objective_of(tail, features)
        resumed.go_to(position)
        for k, (theta, gradient) in enumerate(rest):
            if k in evaluated_before:
                resumed.evaluate(theta + 1)
            np.testing.assert_array_equal(resumed.gradient(theta), gradient)


class AllInOrder:
    """Every batch is all images in the same order, so that only what is drawn can differ."""

    def batch(self, t):
        return np.arange(IMAGES)

    def position(self):
        return dict


@table
def test_drop_out_and_drop_path_are_on_in_training_and_off_in_evaluation(
    path, drop_out, drop_path, batch_norm
):
    model, images, tail, features = build(path, drop_out, drop_path, batch_norm)
    objective = objective_of(tail, features, AllInOrder())
    theta = tail_vector(tail)
    drawn = [objective.gradient(theta) for _ in range(3)]
    objective.evaluate(theta)
    drawn.append(objective.gradient(theta))
    dropped = path != "pooled" and (drop_out or drop_path)
    assert len({gradient.tobytes() for gradient in drawn}) == (4 if dropped else 1)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(images), features.labels)
    assert objective.evaluate(theta).loss == pytest.approx(float(loss), rel=1e-4)


@table
def test_private_gradients_draw_and_resume_alike(path, drop_out, drop_path, batch_norm):
    privacy = Privacy(1.0, 0.0, 1e-5, IMAGES, IMAGES, (0, 0))

    def peer():
        _, _, tail, features = build(path, drop_out, drop_path, batch_norm)
        objective = objective_of(tail, features, AllInOrder(), privacy=privacy)
        return objective, tail_vector(tail)

    whole, theta = peer()
    passed = [whole.gradient(theta) for _ in range(4)]
    resumed, _ = peer()
    resumed.drawn = 2
    np.testing.assert_array_equal(resumed.gradient(theta), passed[2])
    resumed.evaluate(theta)
    np.testing.assert_array_equal(resumed.gradient(theta), passed[3])
    dropped = path != "pooled" and (drop_out or drop_path)
    assert len({gradient.tobytes() for gradient in passed}) == (4 if dropped else 1)


def test_a_tail_is_in_eval_mode_before_and_after_a_gradient_and_when_one_fails():
    for path in PATHS:
        _, _, tail, features = build(path, False, True, True)
        assert not any(module.training for module in tail.modules())
        objective = objective_of(tail, features)
        objective.gradient(tail_vector(tail))
        with pytest.raises((RuntimeError, ValueError)):
            objective.gradient(np.zeros(1, np.float32))
        own = objective.tail
        assert not any(module.training for module in own.modules())
        with training(own):
            assert own.training
        assert not any(module.training for module in own.modules())


# --- what is on -------------------------------------------------------------------------------------------


def drops_on(model, tune):
    """The kinds of drops that are on, each as stage.drop."""
    tuned = tune_model(model, tune)
    on = switched_on(tuned)
    return {
        name
        for name, module in tuned.named_modules()
        if isinstance(module, (nn.Dropout, DropPath)) and module in on
    }


def every_drop(model, *prefixes):
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Dropout, DropPath)) and name.startswith(prefixes)
    }


def test_with_biases_every_block_and_the_stem_is_trained_so_all_drops_are_on():
    model = small_vit(**DROPS, pos_drop_rate=0.1)
    for tune in ("bias", "bias+norm", "full"):
        assert drops_on(model, tune) == every_drop(model, "")


def test_a_low_rank_update_trains_attention_so_its_drops_are_on_and_those_of_the_frozen_mlp_off():
    model = small_vit(**DROPS, pos_drop_rate=0.1)
    on = {name for name in every_drop(model, "blocks") if ".mlp." not in name} | {"head_drop"}
    assert drops_on(model, "lora:2") == on


def test_an_adapter_trains_the_mlp_so_its_drops_are_on_and_those_of_the_frozen_attention_off():
    model = small_vit(**DROPS, pos_drop_rate=0.1)
    on = {name for name in every_drop(model, "blocks") if ".attn." not in name} | {"head_drop"}
    assert drops_on(model, "adapter:2") == on


@pytest.mark.parametrize("tune", ["prompt:2", "prompt-deep:2", "head"])
@pytest.mark.parametrize("make", [small_vit, small_swin])
def test_prompts_are_an_input_of_frozen_blocks_whose_drops_stay_off(make, tune):
    model = make(**DROPS)
    head = every_drop(model, "head")
    assert head
    assert drops_on(model, tune) == head


@pytest.mark.parametrize("path", ["class-token", "query", "tokens", "full"])
def test_every_path_has_the_same_drops_on(path):
    model = small_vit(**DROP_OUT, **DROP_PATH, pos_drop_rate=0.1)
    tail = split_model(model, "last-block", path=path).tail.train()
    on = {
        name.removeprefix("model.")
        for name, module in tail.named_modules()
        if module.training and isinstance(module, (nn.Dropout, DropPath))
    }
    assert on == every_drop(model, "blocks.2", "head_drop")


def test_in_a_swin_the_drops_of_frozen_blocks_and_stages_are_off():
    model = small_swin(**DROPS)
    assert drops_on(model, "last-block") == every_drop(model, "layers.1.blocks.1", "head")
    assert drops_on(model, "last-blocks:3") == every_drop(model, "layers.1", "layers.0.blocks.1", "head")


# --- statistics -------------------------------------------------------------------------------------------

MODELS = {"vit": (small_vit, 8), "swin": (small_swin, 32), "hybrid": (small_hybrid, 16)}


@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
def test_a_step_of_one_peer_changes_no_other_peers_loss_nor_any_buffer(kind, tune, private):
    make, size = MODELS[kind]
    model = make(drop_path_rate=0.2)
    parts = split_model(model, tune)
    images = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = MemoryFeatures(parts.trunk(images), torch.arange(IMAGES) % 5)
    settings = Privacy(math.inf, 0.0, 1e-5, IMAGES, 5, (0, 0)) if private else None
    one, other = (objective_of(parts.tail, features, privacy=settings) for _ in range(2))
    theta = tail_vector(parts.tail)
    buffers = {name: b.clone() for m in (model, parts.tail) for name, b in m.named_buffers()}
    before, expected = other.evaluate(theta), other.gradient(theta)
    again = objective_of(parts.tail, features, privacy=settings)
    for moved, _ in descend(one, theta, 3):
        one.evaluate(moved)
    assert other.evaluate(theta) == before
    np.testing.assert_array_equal(again.gradient(theta), expected)
    for m in (model, parts.tail):
        for name, buffer in m.named_buffers():
            assert torch.equal(buffer, buffers[name]), name


def normalised(norm):
    """A model whose final norm is ``norm``, over tokens that lie in a plane of 2 × 2."""

    class InPlane(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            plane = x.transpose(1, 2).unflatten(2, (-1, 1))
            return self.norm(plane).flatten(2).transpose(1, 2)

    model = small_vit()
    model.norm = InPlane()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        set_statistics(model)
    return model.eval().requires_grad_(False)


KINDS = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(16),
    "BatchNorm2d without scale and shift": lambda: nn.BatchNorm2d(16, affine=False),
    "BatchNorm2d, cumulative": lambda: nn.BatchNorm2d(16, momentum=None),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(16),
    "BatchNormAct2d": lambda: BatchNormAct2d(16),
    "EvoNorm2dB0": lambda: EvoNorm2dB0(16),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(16, affine=True, track_running_stats=True),
    "LazyBatchNorm2d": nn.LazyBatchNorm2d,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tune", ["head", "last-block", "bias+norm", "full"])
def test_every_norm_with_running_statistics_keeps_them_and_trains_scale_and_shift(kind, tune):
    norm = KINDS[kind]()
    if isinstance(norm, nn.LazyBatchNorm2d):
        norm(torch.zeros(2, 16, 2, 2))
    model = normalised(norm)
    assert has_statistics(norm)
    state = {name: b.clone() for name, b in model.named_buffers()}
    parts = split_model(model, tune)
    images = torch.randn(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = MemoryFeatures(parts.trunk(images), torch.arange(IMAGES) % 5)
    objective = objective_of(parts.tail, features)
    theta = tail_vector(parts.tail)
    own = {n for n, p in parts.tail.named_parameters() if p.requires_grad and n.startswith("model.norm.norm")}
    has_parameters = any(True for _ in norm.parameters())
    assert bool(own) == (has_parameters and tune != "head")
    (first, gradient), *_ = descend(objective, theta, 3)
    assert torch.equal(torch.from_numpy(first), torch.from_numpy(theta))
    for name, buffer in parts.tail.named_buffers():
        assert torch.equal(buffer, state[name.removeprefix("model.")]), name
    # The very gradient of the model in eval mode, as it is scored.
    batch = Batches(IMAGES, 5, seed=3, peer=1).batch(0)
    inputs, labels = features.read(batch)
    loss = nn.functional.cross_entropy(parts.tail(*inputs), labels)
    exact = torch.autograd.grad(loss, trained_parameters(parts.tail))
    np.testing.assert_allclose(
        gradient, torch.cat([g.flatten() for g in exact]).numpy(), rtol=1e-4, atol=1e-6
    )


def test_norms_that_keep_no_statistics_are_left_as_they_are():
    for norm in (
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.BatchNorm2d(4, track_running_stats=False),
    ):
        assert not has_statistics(norm)


@pytest.mark.parametrize("tune", TUNES)
def test_the_gradient_of_each_image_can_be_taken_through_batch_norm(tune):
    parts = split_model(small_hybrid(), tune)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(4)
    with torch.no_grad():
        inputs = parts.trunk(images)
    with training(parts.tail):
        total, losses = ClippedGradients(parts.tail, math.inf).total(inputs, labels)
    loss = nn.functional.cross_entropy(parts.tail(*inputs), labels, reduction="sum")
    plain = torch.autograd.grad(loss, trained_parameters(parts.tail))
    torch.testing.assert_close(total, torch.cat([g.flatten() for g in plain]), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(losses.sum(), loss.detach(), rtol=1e-4, atol=0)


HYBRID = """
from tests.learning.conftest import small_hybrid

def hybrid(num_classes, pretrained):
    model = small_hybrid()
    model.pretrained_cfg = {
        "input_size": (3, 16, 16), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3,
        "crop_pct": 1.0, "crop_mode": "center",
    }
    return model
"""


@pytest.mark.parametrize(("tune", "told"), [("bias+norm", True), ("lora:2", False), ("last-block", False)])
def test_the_log_says_where_batch_norm_keeps_its_statistics(tune, told, tmp_path, caplog):
    """Where the layers are in the tail: those of a trunk never train."""
    (tmp_path / "own.py").write_text(HYBRID)
    pictures = write_images(tmp_path / "pictures", {"train": 2, "test": 1})
    config = LearningConfig(
        model=f"{tmp_path}/own.py:hybrid", weights="none", dataset=f"folder:{pictures}", tune=tune
    )
    with caplog.at_level(logging.INFO):
        Workload(config, n=1).theta0  # noqa: B018 - builds the model
    said = "5 batch-norm layers (BatchNormAct2d) keep their statistics" in caplog.text
    assert said is told
