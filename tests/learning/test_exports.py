"""Every way of tuning trains real architectures, and what comes out is a model that timm reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import DataError
from p2pft_flower.learning.exports import SCHEMA, load_export, write_export
from p2pft_flower.learning.model.models import preprocessing
from p2pft_flower.learning.tails import load_tail
from p2pft_flower.learning.workload import Workload

from .conftest import write_images
from .small_timm import MORE

TUNES = [
    "last-block",
    "last-blocks:2",
    "head",
    "full",
    "bias",
    "bias+norm",
    "lora:2",
    "lora-fa:2",
    "lora:2:last-block",
    "adapter:3:last-blocks:2",
    "adapter:4",
    "prompt:2",
    "prompt-deep:2",
]
# Random weights: the architectures are real, what they know is not the point. Of ViTs and Swins few are in
# their full size, which takes ten times as long as a small one.
MODELS = [(model, tune) for model in ("small_vit", "small_swin") for tune in TUNES]
MODELS += [("vit_tiny_patch16_224", tune) for tune in ("last-block", "lora:2")]
MODELS += [("swin_tiny_patch4_window7_224", "last-block")]
MODELS += [("eva02_tiny_patch14_224", "lora:2:last-block"), ("small_deit_distilled", "head")]
MODELS += [(name, "last-block") for name in MORE]
MODELS += [("small_cait", "lora:2:last-blocks:2"), ("small_xcit", "lora:2"), ("small_pit_distilled", "head")]
MODELS += [("small_hiera", "adapter:2:last-block"), ("small_tiny_vit", "last-blocks:3")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return f"folder:{write_images(tmp_path_factory.mktemp('pictures'), {'train': 1, 'test': 1})}"


def trained_tail(folder, pictures, model, tune):
    """Take two steps and leave the tail in a file, as a run does."""
    config = LearningConfig(
        trunk_dtype="float32",  # as a model that is loaded elsewhere computes, whatever this machine can do
        dataset=pictures,
        model=model,
        weights="none",
        tune=tune,
        batch_size=2,
        cache_dtype="float32",
    )
    workload = Workload(config, n=1)
    objective = workload.objectives([0])[0]
    theta = workload.theta0
    for _ in range(2):
        gradient = objective.gradient(theta)
        assert np.isfinite(gradient).all()
        theta = theta - np.float32(1e-3) * gradient
    assert not np.array_equal(theta, workload.theta0)
    file = folder / "peer-0.safetensors"
    save_file(workload.named_tail(theta), file, {**workload.metadata(), "run": "7", "peer": "0"})
    return file, workload, theta


@pytest.mark.parametrize(("model", "tune"), MODELS)
def test_every_tune_trains_and_exports_a_model_that_scores_the_same(model, tune, pictures, tmp_path):
    file, workload, theta = trained_tail(tmp_path, pictures, model, tune)
    told = write_export(load_tail(file), tmp_path / "out" / "whole.safetensors")
    assert (told["model"], told["num_classes"]) == (model, 3)

    test = workload.holdings.dataset.test
    transform = preprocessing(workload.model)
    images = torch.stack([transform(test.read(i)) for i in range(len(test))])
    with torch.inference_mode():
        _, labels = workload.test_features.read(np.arange(len(test)))
        tail = workload.objectives([0])[0]
        score = tail.evaluate(theta)
        if tune.startswith(("adapter", "prompt")):
            assert told["added"] > 0
            plain, classes = load_export(tmp_path / "out" / "whole.safetensors")
            assert classes == ("blue", "green", "red")
        else:
            assert told["added"] == 0
            plain = timm.create_model(model, num_classes=3).eval()
            plain.load_state_dict(load_file(tmp_path / "out" / "whole.safetensors"), strict=True)
        logits = plain(images)
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    assert loss == pytest.approx(score.loss, rel=1e-4)
    assert float((logits.argmax(1) == labels).double().mean()) == score.accuracy


def test_timm_alone_loads_an_export_as_a_checkpoint(pictures, tmp_path):
    file, *_ = trained_tail(tmp_path, pictures, "small_vit", "lora:2")
    target = tmp_path / "whole.safetensors"
    write_export(load_tail(file), target)
    model = timm.create_model("small_vit", num_classes=3, checkpoint_path=str(target))
    for name, tensor in load_file(target).items():
        assert torch.equal(model.state_dict()[name], tensor), name
    with safe_open(target, framework="pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["classes"]) == ["blue", "green", "red"]
    assert (metadata["model"], metadata["peer"], metadata["run"]) == ("small_vit", "0", "7")


def test_an_export_needs_no_images(pictures, tmp_path):
    file, *_ = trained_tail(tmp_path, pictures, "small_vit", "head")
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = {**opened.metadata(), "dataset": "folder:/is/not/here"}
    earlier = {key: value for key, value in metadata.items() if key != "loss"}  # an earlier version's
    for told in (metadata, earlier):
        save_file(tensors, file, told)
        assert write_export(load_tail(file), tmp_path / "whole.safetensors")["num_classes"] == 3


def test_what_is_no_export_is_refused(tmp_path):
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(DataError, match=r"text\.safetensors: not a readable safetensors file"):
        load_export(tmp_path / "text.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"other\.safetensors: schema None"):
        load_export(tmp_path / "other.safetensors")
    no_settings = {"classes": "[]", "model": "vit_tiny_patch16_224", "preprocessing": "3"}
    for metadata in ({"classes": "3"}, no_settings):
        odd = {"schema": SCHEMA, "tune": "", **metadata}
        save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", odd)
        with pytest.raises(DataError, match=r"other\.safetensors: not the export that its metadata desc"):
            load_export(tmp_path / "other.safetensors")
