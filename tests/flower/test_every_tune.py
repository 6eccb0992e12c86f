"""Each way of tuning × ViT, DeiT, Swin, hybrid ViT, and some of each family: files score as the run did."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from p2pft_flower.cli import app
from p2pft_flower.config import RunConfig
from p2pft_flower.flower import client
from p2pft_flower.learning import tails
from p2pft_flower.learning.workload import Workload
from p2pft_flower.report.results import read_results
from tests.commands import CliRunner

from .engine import run_app
from .sameness import same_run
from .test_resume import killed_after

MODELS = '''
"""All with drop-path, as timm's Swin has by default; the hybrid ViT with batch norm, as ResNets have it."""

from functools import partial

import timm
from timm.layers import BatchNormAct2d, HybridEmbed
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.resnetv2 import ResNetV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos

from tests.learning import small_timm
from tests.learning.conftest import set_statistics

SIZES = {"img_size": 16, "embed_dim": 12, "num_heads": 2, "depth": 3}


def wanting(model):
    model.pretrained_cfg = {
        "input_size": (3, 16, 16), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3,
        "crop_pct": 1.0, "crop_mode": "center",
    }
    return model


def vit(num_classes, pretrained):
    drops = {"drop_path_rate": 0.2, "proj_drop_rate": 0.1}
    return wanting(VisionTransformer(**SIZES, patch_size=4, num_classes=num_classes, **drops))


def deit(num_classes, pretrained):
    return wanting(
        VisionTransformerDistilled(**SIZES, patch_size=4, num_classes=num_classes, drop_path_rate=0.2)
    )


def swin(num_classes, pretrained):
    sizes = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 2}
    return wanting(SwinTransformer(img_size=16, patch_size=2, num_classes=num_classes, **sizes))


def eva(num_classes, pretrained):
    sizes = SIZES | {"embed_dim": 16}
    rope = {"use_rot_pos_emb": True, "qkv_fused": False, "swiglu_mlp": True}
    return wanting(Eva(**sizes, patch_size=4, num_classes=num_classes, **rope, drop_path_rate=0.2))


def beit(num_classes, pretrained):
    bias = {"use_shared_rel_pos_bias": True, "init_values": 0.1}
    return wanting(Beit(**SIZES, patch_size=4, num_classes=num_classes, **bias, drop_path_rate=0.2))


def relative(num_classes, pretrained):
    drops = {"drop_path_rate": 0.2}
    return wanting(VisionTransformerRelPos(**SIZES, patch_size=4, num_classes=num_classes, **drops))


def hybrid(num_classes, pretrained):
    backbone = ResNetV2(
        layers=(1,), channels=(8,), stem_chs=8, num_classes=0, global_pool="", preact=False,
        stem_type="same", norm_layer=BatchNormAct2d,
    )
    embed = partial(HybridEmbed, backbone=backbone)
    model = VisionTransformer(
        **SIZES, patch_size=1, num_classes=num_classes, embed_layer=embed, drop_path_rate=0.2
    )
    set_statistics(model)
    return wanting(model)


def small(name):
    def build(num_classes, pretrained):
        model = timm.create_model(name, num_classes=num_classes)
        set_statistics(model)
        return model

    return build


cait, xcit, pit, swin_cr, tiny, hiera, maxvit, naflex = (
    small(name)
    for name in (
        "small_cait", "small_xcit", "small_pit_distilled", "small_swinv2_cr", "small_tiny_vit", "small_hiera",
        "small_maxvit", "small_naflexvit_rope",
    )
)
'''

KINDS = ["vit", "deit", "swin", "hybrid"]
TUNES = [
    "last-block",
    "last-blocks:2",
    "head",
    "full",
    "bias",
    "bias+norm",
    "lora:4",
    "adapter:8",
    "prompt:4",
    "prompt-deep:4",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the models, and noise in three classes."""
    root = tmp_path_factory.mktemp("made")
    (root / "models.py").write_text(MODELS)
    rng = np.random.default_rng(0)
    for part, count in (("train", 5), ("test", 6)):
        for label in range(3):
            folder = root / "pictures" / part / f"class-{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 200, (16, 16, 3), dtype=np.uint8) + np.uint8(20 * label)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def run(made, folder, kind, tune, **more):
    """Run as a process of its own would: nothing is left of an earlier one."""
    client.workload.cache_clear()
    client._facts.cache_clear()
    run_app(
        folder,
        nodes=1,
        model=f"{made}/models.py:{kind}",
        weights="none",
        dataset=f"folder:{made}/pictures",
        tune=tune,
        topology="directed-ring:3",
        batch_size=3,
        learning_rate=0.5,
        iterations=5,
        evaluate_every=4,
        checkpoint_every=2,
        checkpoints_kept=9,
        **more,
    )
    return read_results(folder)


OTHERS = [("eva", "last-block"), ("eva", "lora-fa:4:last-blocks:2"), ("beit", "adapter:8:last-block")]
OTHERS += [
    ("relative", "head"),
    ("relative", "bias:last-block"),
    ("cait", "last-blocks:2"),
    ("xcit", "lora:4"),
]
OTHERS += [("pit", "last-block"), ("pit", "head"), ("swin_cr", "last-block"), ("tiny", "last-block")]
OTHERS += [("hiera", "adapter:4:last-block"), ("maxvit", "last-blocks:2"), ("naflex", "lora:4:last-block")]
RUN = [(KINDS[i % len(KINDS)], tune) for i, tune in enumerate(TUNES)] + OTHERS
"""Every way of tuning, and every architecture twice at least. That no gradient depends on what went before is
held for all pairs by `tests/learning/model/test_modes.py`."""


@pytest.mark.parametrize(("kind", "tune"), RUN)
def test_files_score_as_the_run_did_and_a_resumed_run_is_the_uninterrupted_one(kind, tune, made, tmp_path):
    results = run(made, tmp_path / "whole", kind, tune)
    killed = killed_after(2, tmp_path / "whole", tmp_path / "killed", n=3)
    again = run(made, tmp_path / "resumed", kind, tune, resume=str(killed))
    assert again["resumed_from"]["iteration"] == 2
    same_run(tmp_path / "resumed", tmp_path / "whole", n=3)

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)  # as in a process of its own on this machine; the run had one
        told = CliRunner().invoke(app, ["evaluate", "--json", str(tmp_path / "whole")])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert told.exit_code == 0, told.output
    for scored, peer in zip(json.loads(told.stdout), results["peers"], strict=True):
        assert (scored["accuracy"], scored["loss"]) == (peer["accuracy"], peer["loss"])
    assert results["history"][0]["loss"] != results["history"][-1]["loss"]


@pytest.mark.parametrize(("kind", "tune"), sorted({*product(KINDS, TUNES)} - {*RUN}))
def test_the_file_of_every_other_pair_scores_as_its_theta_does(kind, tune, made, tmp_path):
    config = RunConfig.from_mapping(
        {"model": f"{made}/models.py:{kind}", "weights": "none", "dataset": f"folder:{made}/pictures"}
        | {"tune": tune, "batch-size": 3}
    )
    before = Workload(config.learning, 3)
    theta = before.theta0 + np.random.default_rng(0).normal(0, 0.3, before.theta0.size).astype(np.float32)
    save_file(
        dict(before.named_tail(theta)), tmp_path / "peer-0.safetensors", before.metadata() | {"peer": "0"}
    )
    tail = tails.load_tail(tmp_path / "peer-0.safetensors")
    assert tail.workload is not before
    assert tail.score() == before.score(theta) != before.score(before.theta0)


def test_a_tails_model_is_built_with_as_many_threads_as_in_its_run(made, tmp_path, monkeypatch):
    run(made, tmp_path, "vit", "head")
    seen = []

    class Seen(Workload):
        @property
        def model_digest(self):
            seen.append(torch.get_num_threads())
            return super().model_digest

    monkeypatch.setattr(tails, "Workload", Seen)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        tails.load_tail(tmp_path / "peers" / "peer-0.safetensors")
    finally:
        torch.set_num_threads(threads)
    assert seen == [1]
