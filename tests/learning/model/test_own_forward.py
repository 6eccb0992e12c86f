"""Trunk and tail are held to the model's own forward before anything is trained."""

from __future__ import annotations

import sys

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.model.models import create_model
from p2pft_flower.learning.model.own_forward import check_own_forward
from p2pft_flower.learning.model.tuning import TUNE
from p2pft_flower.learning.workload import Workload
from tests.learning.conftest import small_swin, small_vit

CFG = {"input_size": (3, 8, 8), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


class Scaling(VisionTransformer):
    def forward(self, x):
        return super().forward(x * 2 - 1)


class Skipping(VisionTransformer):
    def forward(self, x):
        return self.head(self.forward_features(x).mean(dim=1))


class SecondNorm(VisionTransformer):
    def forward_features(self, x, **_):
        return nn.functional.layer_norm(super().forward_features(x).square(), (self.embed_dim,))


class OtherNorm(VisionTransformer):
    def __init__(self, **options):
        super().__init__(**options)
        self.last_norm = nn.LayerNorm(self.embed_dim, elementwise_affine=False)

    def forward_features(self, x, **_):
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        return self.last_norm(self.blocks(x))


class LongSkip(VisionTransformer):
    def forward_features(self, x, **_):
        first = self._pos_embed(self.patch_embed(x))
        return self.norm(self.blocks(first) + first)


class Zeroed(VisionTransformer):
    """Has a branch of its own that is zero at the start, and is trained with the head."""

    def forward(self, x):
        return super().forward(x) + self.head.bias * self.forward_features(x).square().mean()

    def reset_classifier(self, num_classes, global_pool=None):
        super().reset_classifier(num_classes, global_pool)
        nn.init.zeros_(self.head.bias)
        nn.init.zeros_(self.head.weight)


class Batched(VisionTransformer):
    """Measures images by the mean of their batch: one that is alone looks the same."""

    def forward(self, x):
        answer = super().forward(x)
        return 2 * answer - answer.mean(dim=0)


class ScalingSwin(SwinTransformer):
    def forward(self, x):
        return super().forward(x) * 2


def built(cls, num_classes=3):
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 2}
    if issubclass(cls, SwinTransformer):
        options = {
            "img_size": 32,
            "patch_size": 4,
            "embed_dim": 8,
            "depths": (2, 2),
            "num_heads": (2, 2),
            "window_size": 4,
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(**options, num_classes=num_classes)
    size = options["img_size"]
    model.pretrained_cfg = {**CFG, "input_size": (3, size, size)}
    return model


@pytest.fixture
def own(monkeypatch):
    module = type(sys)("own_net")
    monkeypatch.setitem(sys.modules, "own_net", module)

    def plug_in(build):
        module.net = build
        return "own_net:net"

    return plug_in


@pytest.mark.parametrize(
    ("cls", "tune"),
    [
        (Scaling, "last-block"),
        (Scaling, "head"),
        (Skipping, "last-block"),
        (SecondNorm, "last-block"),
        (OtherNorm, "last-block"),
        (LongSkip, "last-block"),
        (Zeroed, "last-block"),
        (Zeroed, "head"),
        (Batched, "last-block"),
        (Batched, "head"),
        (ScalingSwin, "last-block"),
        (ScalingSwin, "head"),
    ],
)
def test_a_model_whose_forward_does_something_else_is_refused(cls, tune, own):
    name = own(lambda num_classes, pretrained: built(cls, num_classes))
    problem = Workload(LearningConfig(model=name, weights="none", tune=tune), n=4)
    with pytest.raises(
        ConfigError,
        match=rf"model = 'own_net:net': its own forward answers .*tune = '{tune}', .* forward must be",
    ):
        _ = problem.theta0


@pytest.mark.parametrize("cls", [SecondNorm, OtherNorm, LongSkip])
def test_what_is_its_own_within_the_trunk_is_no_fault(cls, own):
    """Where the head alone is trained, the trunk is the model's own ``forward_features``."""
    name = own(lambda num_classes, pretrained: built(cls, num_classes))
    problem = Workload(LearningConfig(model=name, weights="none", tune="head"), n=4)
    assert problem.parts.path == "pooled"


def test_with_the_whole_model_as_the_tail_its_own_forward_is_run(own):
    name = own(lambda num_classes, pretrained: built(Scaling, num_classes))
    problem = Workload(LearningConfig(model=name, weights="none", tune="full"), n=4)
    assert problem.parts.path == "full"


@pytest.mark.parametrize(
    "tune", [t.replace(":K", ":2").replace(":R", ":2").replace(":N", ":2") for t in TUNE]
)
@pytest.mark.parametrize("model", ["vit", "vit, pooling", "swin"])
def test_timms_models_agree_with_their_parts_whatever_is_tuned(model, tune):
    plain = (
        small_swin()
        if model == "swin"
        else small_vit(**({"global_pool": "avg"} if "pooling" in model else {}))
    )
    size = 32 if model == "swin" else 8
    plain.pretrained_cfg = {**CFG, "input_size": (3, size, size)}
    before = {n: t.clone() for n, t in plain.state_dict().items()}
    check_own_forward(model, plain, tune, seed=0)
    assert all(torch.equal(t, before[n]) for n, t in plain.state_dict().items())


def test_torchs_global_generator_is_left_alone():
    plain = small_vit()
    plain.pretrained_cfg = CFG
    before = torch.get_rng_state()
    check_own_forward("vit", plain, "last-block", seed=0)
    assert torch.equal(torch.get_rng_state(), before)


class Answers(VisionTransformer):
    """Answers what it is told to."""

    made = staticmethod(lambda logits: logits)

    def forward(self, x):
        return self.made(super().forward(x))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            lambda y: y.argmax(1),
            r"answers two images of 3 × 8 × 8 .* with \(2,\) of torch\.int64; it must answer",
        ),
        (lambda y: (y * 10).long(), r"with \(2, 3\) of torch\.int64"),
        (lambda y: y[:, :2], r"with \(2, 2\) of torch\.float32; it must answer with \(2, 3\)"),
        (lambda y: (y, y), r"with a tuple"),
        (lambda y: {"logits": y}, r"with a dict"),
        (lambda y: y / 0, r"with NaN or infinity"),
        (lambda y: y.no_such, r"does not take .*: AttributeError"),
    ],
    ids=["classes", "whole numbers", "too few", "two answers", "a dict", "not finite", "an error"],
)
def test_an_own_model_that_does_not_answer_with_a_number_a_class_is_refused(made, words, own):
    def build(num_classes, pretrained):
        model = built(Answers, num_classes)
        model.made = made
        return model

    with pytest.raises(ConfigError, match=words):
        create_model(own(build), "none", 3, 0)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: m.norm.bias.data.fill_(torch.nan), r"'norm\.bias' has NaN"),
        (
            lambda m: m.blocks[0].attn.qkv.weight.data.fill_(torch.inf),
            r"'blocks\.0\.attn\.qkv\.weight' has infinity",
        ),
        (lambda m: m.register_buffer("mean", torch.tensor(torch.nan)), r"buffer 'mean' has NaN"),
    ],
)
def test_an_own_model_that_brings_nan_is_refused(spoil, words, own):
    def build(num_classes, pretrained):
        model = built(VisionTransformer, num_classes)
        spoil(model)
        return model

    with pytest.raises(DataError, match=words):
        create_model(own(build), "pretrained", 3, 0)


def test_a_mask_with_infinities_is_no_fault(own):
    def build(num_classes, pretrained):
        model = built(VisionTransformer, num_classes)
        model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        return model

    assert create_model(own(build), "none", 3, 0).num_classes == 3
