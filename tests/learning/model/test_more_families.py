"""Families that do more between blocks: training, resuming, scoring; forward passes begun in the middle."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models.cait import Cait
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.batches import Batches
from p2pft_flower.learning.data.image_settings import ImageKeys
from p2pft_flower.learning.minibatches import MiniBatches
from p2pft_flower.learning.model.models import create_model
from p2pft_flower.learning.model.modes import training
from p2pft_flower.learning.model.own_forward import check_own_forward
from p2pft_flower.learning.model.replay import record
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.model.structure import stages
from p2pft_flower.learning.model.tuning import tune_model
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.privacy import ClippedGradients
from p2pft_flower.learning.theta import tail_vector, trained_parameters
from tests.learning.conftest import MemoryFeatures, set_statistics
from tests.learning.small_timm import MORE

IMAGES = 8
OF_CONFIGS = ("small_maxvit", "small_coatnet", "small_naflexvit", "small_naflexvit_rope")
"""Families that are built without drop-path here."""

every_family = pytest.mark.parametrize("family", MORE)


def build(family, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(family, num_classes=5, **options)
        for p in model.parameters():
            p.data += 0.1 * torch.randn(p.shape)
        set_statistics(model)
    return model.eval().requires_grad_(False)


def images_for(model, seed=1):
    size = model.pretrained_cfg["input_size"]
    return torch.randn(IMAGES, *size, generator=torch.Generator().manual_seed(seed))


def parts_and_features(model, tune):
    parts = split_model(model, tune)
    with torch.no_grad():
        return parts, MemoryFeatures(parts.trunk(images_for(model)), torch.arange(IMAGES) % 5)


def objective_of(parts, features):
    drawn = MiniBatches(features, Batches(IMAGES, 3, seed=3, peer=1))
    return PeerObjective(parts.tail, drawn, features, seed=3, peer=1)


def descend(objective, theta, steps):
    for _ in range(steps):
        theta = theta - np.float32(0.05) * objective.gradient(theta)
    return theta


@every_family
@pytest.mark.parametrize("tune", ["last-block", "last-blocks:2"])
def test_a_run_that_is_resumed_ends_bit_for_bit_as_one_that_was_not(family, tune):
    """With drop-path on, in which every step draws; the resumed run was also scored in between."""
    dropping = (
        {} if "naflex" in family or "maxvit" in family or "coatnet" in family else {"drop_path_rate": 0.3}
    )
    parts, features = parts_and_features(build(family, **dropping), tune)
    theta = tail_vector(parts.tail)
    whole = descend(objective_of(parts, features), theta, 4)
    first = objective_of(parts, features)
    middle = descend(first, theta, 2)
    first.evaluate(middle)
    position = first.position()()
    again, same = parts_and_features(build(family, **dropping), tune)
    second = objective_of(again, same)
    second.evaluate(theta)
    second.go_to(position)
    assert not np.array_equal(whole, theta)
    np.testing.assert_array_equal(descend(second, middle, 2), whole)


@every_family
def test_a_score_is_that_of_the_plain_model_with_the_same_weights(family):
    """Whatever was scored before, and in timm's own names."""
    model = build(family)
    parts, features = parts_and_features(model, "last-block")
    objective = objective_of(parts, features)
    theta = tail_vector(parts.tail)
    before = objective.evaluate(theta)
    moved = descend(objective, theta, 3)
    score = objective.evaluate(moved)
    assert score != before
    plain = build(family)
    names = [n.removeprefix("model.") for n, p in parts.tail.named_parameters() if p.requires_grad]
    with torch.no_grad():
        nn.utils.vector_to_parameters(torch.from_numpy(moved), [plain.get_parameter(name) for name in names])
        loss = nn.functional.cross_entropy(plain(images_for(plain)), features.labels)
    assert score.loss == pytest.approx(float(loss), rel=1e-5)
    assert objective.evaluate(theta) == before


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's pooling of planes, in vmap
@every_family
@pytest.mark.parametrize("tune", ["head", "last-block"])
def test_gradients_of_single_images_sum_up_to_that_of_the_batch(family, tune):
    parts, features = parts_and_features(build(family), tune)
    for module in parts.tail.modules():
        if isinstance(module, nn.Dropout):  # Swin V2 CR drops in a table's MLP whatever one asks for
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
    with training(parts.tail):
        total, _ = ClippedGradients(parts.tail, math.inf).total(features.inputs, features.labels)
    loss = nn.functional.cross_entropy(parts.tail(*features.inputs), features.labels, reduction="sum")
    plain = torch.autograd.grad(loss, trained_parameters(parts.tail))
    torch.testing.assert_close(total, torch.cat([g.flatten() for g in plain]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["small_pit", "small_pit_distilled", "small_swinv2_cr", "small_tiny_vit"])
def test_trained_blocks_of_two_stages_train_what_is_between_the_stages(family):
    model = build(family)
    (between,) = (n for n in stages(model) if n.endswith((".pool", ".1.downsample")))
    parts, features = parts_and_features(model, "last-blocks:3")
    assert parts.path == "tokens"
    loss = nn.functional.cross_entropy(parts.tail(*features.inputs), features.labels)
    ours = {n.removeprefix("model."): p for n, p in parts.tail.named_parameters() if p.requires_grad}
    assert any(name.startswith(f"{between}.") for name in ours)
    gradients = torch.autograd.grad(loss, list(ours.values()))
    for name, p in model.named_parameters():
        p.requires_grad_(name in ours)
    nn.functional.cross_entropy(model(images_for(model)), features.labels).backward()
    for (name, _), gradient in zip(ours.items(), gradients, strict=True):
        theirs = model.get_parameter(name).grad
        assert (gradient - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7, name


@every_family
@pytest.mark.parametrize("tune", ["last-block", "last-blocks:2", "last-blocks:3", "head", "bias:last-block"])
def test_trunk_and_tail_pass_the_check_that_every_run_begins_with(family, tune):
    model = create_model(family, "none", 5, seed=0)
    check_own_forward(family, model, tune, 0)


@pytest.mark.parametrize("family", ["small_swinv2_cr", "small_tiny_vit", "small_hiera", "small_pit"])
def test_the_drops_of_the_last_block_are_on_and_all_others_off(family):
    model = build(family, drop_path_rate=0.3)
    tail = split_model(model, "last-block").tail.train()
    on = {
        name.removeprefix("model.")
        for name, module in tail.named_modules()
        if module.training and isinstance(module, DropPath)
    }
    drops = {name for name, module in model.named_modules() if isinstance(module, DropPath)}
    assert on == {name for name in drops if name.startswith(f"{stages(model)[-1]}.")}
    assert on
    assert on != drops


@every_family
def test_an_image_size_that_the_family_is_not_known_to_be_built_for_is_refused(family):
    size = timm.create_model(family).pretrained_cfg["input_size"][1]
    assert create_model(family, "none", 5, 0, ImageKeys(image_size=size))
    if "naflex" in family:
        model = create_model(family, "none", 5, 0, ImageKeys(image_size=2 * size))
        assert model.pretrained_cfg["input_size"] == (3, 2 * size, 2 * size)
        check_own_forward(family, model, "last-block", 0)
        return
    with pytest.raises(
        ConfigError, match=r"image-size = 64: small_\w+, a \w+, is used at its own size alone"
    ):
        create_model(family, "none", 5, 0, ImageKeys(image_size=64))


# --- forward passes that begin in the middle --------------------------------------------------------------


def test_what_came_before_the_cut_is_not_computed():
    model = build("small_swinv2_cr")
    parts, features = parts_and_features(model, "last-block")
    ran = []
    for name, module in parts.tail.model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    parts.tail(*features.inputs)
    assert ran
    assert all(name.startswith(("stages.1.blocks.1", "head")) for name in ran)
    kept = {name for name in parts.tail.state_dict() if "patch_embed" in name or "stages.0" in name}
    assert not kept


def test_a_tail_keeps_none_of_its_inputs_when_it_has_run():
    parts, features = parts_and_features(build("small_cait"), "last-block")
    parts.tail(*features.inputs)
    assert parts.tail.given.entered.tensors == ()
    with pytest.raises(IndexError):
        parts.tail(features.inputs[0])  # the class token is missing
    assert parts.tail.given.entered.tensors == ()
    assert parts.tail(*features.inputs).shape == (IMAGES, 5)


def test_tails_that_are_copies_of_one_do_not_share_their_inputs():
    parts, features = parts_and_features(build("small_xcit"), "last-block")
    other = copy.deepcopy(parts.tail)
    assert other.given.entered is not parts.tail.given.entered
    first = other.model.cls_attn_blocks[-1]
    assert vars(first)["given"] is other.given
    assert torch.equal(other(*features.inputs), parts.tail(*features.inputs))


class PastTheCut(Cait):
    """Adds the patches to the answer, past all blocks."""

    def forward_features(self, images):
        first = self.patch_embed(images)
        x = self.blocks(self.pos_drop(first + self.pos_embed))
        return self.norm(self.forward_cls(x) + first.mean(dim=1, keepdim=True))


class Twice(Cait):
    def forward_features(self, images):
        return self.norm(
            self.forward_cls(self.blocks(self.pos_drop(self.pos_drop(self.patch_embed(images)))))
        )


def of_own(cls):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(**MORE["small_cait"][1], num_classes=5, init_values=0.5).eval().requires_grad_(False)
    model.pretrained_cfg = {"input_size": (3, 32, 32)}
    return model


def test_what_passes_the_cut_unseen_is_found_by_the_check_that_every_run_begins_with(monkeypatch):
    monkeypatch.setattr(Cait, "forward_features", PastTheCut.forward_features)
    with pytest.raises(ConfigError, match=r"its own forward answers a probe with numbers up to .* differ by"):
        check_own_forward("my_cait", of_own(Cait), "last-block", 0)


def test_a_part_that_runs_twice_before_the_cut_is_refused():
    with pytest.raises(ConfigError, match=r"a Twice cannot be cut .* at blocks\.1: pos_drop runs twice"):
        record(of_own(Twice), "blocks.1")


def test_a_block_that_is_never_run_is_no_place_for_a_cut():
    model = of_own(Cait)
    model.unused = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="cannot be cut at unused: its forward_features never runs it"):
        record(model, "unused")


class Mixed(nn.Module):
    """A stem whose second output is of the whole batch."""

    def __init__(self, stem):
        super().__init__()
        self.stem = stem

    def forward(self, images):
        return self.stem(images), images.mean()


class MixesImages(Cait):
    def forward_features(self, images):
        x, mean = self.patch_embed(images)
        return self.norm(self.forward_cls(self.blocks(self.pos_drop(x)) + mean))


def test_what_depends_on_all_images_of_a_batch_is_refused():
    model = of_own(MixesImages)
    model.patch_embed = Mixed(model.patch_embed)
    with pytest.raises(ConfigError, match="the output of patch_embed depends on the image and has no row an"):
        record(model, "blocks.1")


def test_a_part_that_takes_its_streams_in_a_tuple_is_no_place_for_a_cut():
    with pytest.raises(ConfigError, match=r"cannot be cut at transformers\.1: it is given tensors in a t"):
        record(build("small_pit"), "transformers.1")


def test_biases_that_tiny_vit_keeps_between_scores_are_those_of_the_present_table():
    """In eval mode timm keeps what it made of a table, until ``train`` of the very module is called."""
    model = build("small_tiny_vit")
    tuned = tune_model(model, "last-block")
    image = images_for(model)[:1]
    with torch.no_grad():
        before = tuned(image)
        tuned.stages[1].blocks[1].attn.attention_biases.normal_()
        after = tuned(image)
    assert not torch.equal(before, after)
    fresh = build("small_tiny_vit")
    fresh.load_state_dict(tuned.state_dict())
    assert torch.equal(fresh(image), after)
