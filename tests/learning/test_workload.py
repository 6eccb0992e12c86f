"""The learning problem as a whole."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from p2pft_flower.cli.settings import read_value
from p2pft_flower.config import LearningConfig, RunConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.model.models import create_model
from p2pft_flower.learning.store.features import StoredFeatures
from p2pft_flower.learning.workload import TAIL_SCHEMA, Workload

from .conftest import write_images


@pytest.fixture(scope="module")
def digits():
    return Workload(LearningConfig(), n=4)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes of four pictures: fast to prepare."""
    return f"folder:{write_images(tmp_path_factory.mktemp('pictures'), {'train': 4, 'test': 2})}"


def workload(dataset, n=3, *, pooled="", **settings):
    return Workload(LearningConfig(dataset=dataset, batch_size=2, **settings), n=n, pooled=pooled)


def test_theta0_is_the_same_wherever_it_is_built_and_another_for_another_seed(digits):
    assert digits.theta0.dtype == np.float32
    np.testing.assert_array_equal(digits.theta0, Workload(LearningConfig(batch_size=5), n=2).theta0)
    assert not np.array_equal(digits.theta0, Workload(LearningConfig(seed=1), n=4).theta0)


def test_theta0_cannot_be_written_to(digits):
    with pytest.raises(ValueError, match="read-only"):
        digits.theta0[0] = 1


def test_the_digest_is_of_all_weights_frozen_or_trained(digits):
    digest = digits.model_digest
    assert len(digest) == 64
    assert Workload(LearningConfig(partition="iid"), n=9).model_digest == digest
    assert Workload(LearningConfig(seed=1), n=4).model_digest != digest
    assert Workload(LearningConfig(weights="none"), n=4).model_digest != digest
    for name in ("patch_embed.proj.bias", "blocks.0.norm1.weight", "head.bias"):
        other = Workload(LearningConfig(), n=4)
        other.model.get_parameter(name).data[0] += 1e-3
        assert other.model_digest != digest, name


def test_training_a_peer_changes_neither_digest_nor_theta0(pictures):
    problem = workload(pictures)
    digest, theta = problem.model_digest, problem.theta0.copy()
    objective = problem.objectives([0])[0]
    objective.gradient(theta + 1)
    objective.evaluate(theta + 2)
    problem.score(theta + 3)
    del problem.__dict__["model_digest"], problem.__dict__["theta0"]
    assert problem.model_digest == digest
    np.testing.assert_array_equal(problem.theta0, theta)


def test_a_peers_data_is_told_in_numbers_only(digits):
    data = [digits.holdings.data(p) for p in range(4)]
    assert [d.classes for d in data] == [("0", "1"), ("2", "3"), ("4", "5", "6"), ("7", "8", "9")]
    assert sum(d.images for d in data) == 1437
    np.testing.assert_array_equal([d.images for d in data], [len(p) for p in digits.holdings.partition])


def test_the_partition_is_known_without_the_model(pictures):
    problem = workload(pictures)
    problem.holdings.data(0)
    assert "model" not in vars(problem)


def test_the_test_split_has_all_classes_whatever_a_peer_holds(digits):
    features = digits.test_features
    assert len(features) == 360
    assert np.unique(features.labels.numpy()).tolist() == list(range(10))
    train = digits.features(1)
    assert np.unique(train.labels.numpy()).tolist() == [2, 3]
    np.testing.assert_array_equal(
        train.labels, digits.holdings.dataset.train.labels[digits.holdings.partition[1]]
    )


def test_features_are_computed_once_and_are_those_of_each_image_alone(pictures, monkeypatch, tmp_path):
    problem = workload(pictures)
    features = problem.features(2)
    assert problem.features(2) is features
    monkeypatch.setattr("p2pft_flower.learning.store.features.TRUNK_BATCH", 1)
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path))  # another store
    alone = workload(pictures).features(2)
    every = np.arange(len(features))
    torch.testing.assert_close(features.read(every), alone.read(every), rtol=1e-3, atol=1e-5)


def test_objectives_of_the_same_peer_start_anew_and_agree_whoever_else_is_built(pictures):
    problem, other = workload(pictures), workload(pictures)
    together, alone = problem.objectives([0, 1, 2]), other.objectives([1])
    together[0].gradient(problem.theta0)
    again = problem.objectives([1])[1]
    first = [o.gradient(problem.theta0) for o in (together[1], alone[1], again)]
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[0], first[2])


def test_a_peer_holding_some_classes_is_scored_on_the_others_too(pictures):
    problem = workload(pictures)
    theta = problem.theta0
    every = problem.score(theta)
    one = problem.objectives([0])[0].evaluate(theta)
    assert (one.loss, one.accuracy) == (every.loss, every.accuracy)
    assert one.accuracy_unseen is not None
    assert every.accuracy_unseen is None


def test_the_pooled_peer_holds_all_images_and_draws_n_batches_at_once(pictures, monkeypatch):
    drawn = []
    original = StoredFeatures.read

    def watch(self, positions, draw=None):
        drawn.append(len(positions))
        return original(self, positions, draw)

    problem = workload(pictures, n=3, pooled="examples")
    assert problem.holdings.data(0).images == 12
    assert problem.holdings.data(0).classes == ("blue", "green", "red")
    assert [len(p) for p in problem.holdings.partition] == [12]
    objective = problem.objectives([0])[0]
    monkeypatch.setattr(StoredFeatures, "read", watch)
    objective.gradient(problem.theta0)
    assert drawn == [3 * 2]
    assert objective.evaluate(problem.theta0).accuracy_unseen is None


@pytest.mark.parametrize("tune", ["head", "last-block", "full"])
def test_a_tail_is_saved_under_timms_names_and_comes_back_as_it_was(tune, pictures, tmp_path):
    problem = workload(pictures, tune=tune)
    theta = problem.theta0 + np.float32(0.25)
    tensors = problem.named_tail(theta)
    save_file(tensors, tmp_path / "tail.safetensors")
    with safe_open(tmp_path / "tail.safetensors", framework="pt") as opened:
        loaded = {name: opened.get_tensor(name) for name in reversed(list(opened.keys()))}
    np.testing.assert_array_equal(workload(pictures, tune=tune).theta_from(loaded, "there"), theta)
    # In the whole timm model, they make it answer as θ does in the tail.
    model = create_model("glyph_vit_8", "pretrained", 3, seed=0)
    assert model.load_state_dict(tensors, strict=False).unexpected_keys == []
    fresh = workload(pictures, tune=tune)
    fresh.network.__dict__["_built"] = (model, {})
    np.testing.assert_array_equal(fresh.theta0, theta)


def test_a_saved_tail_does_not_look_at_theta_any_more(pictures):
    problem = workload(pictures, tune="head")
    theta = problem.theta0.copy()
    tensors = problem.named_tail(theta)
    theta += 1
    np.testing.assert_array_equal(problem.theta_from(tensors, "there"), problem.theta0)


def without_bias(tensors):
    return {k: v for k, v in tensors.items() if k != "head.bias"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_bias, r"'head\.bias' is missing from my\.file: the model or tune setting differs"),
        (
            lambda t: t | {"blocks.9.x": t["head.bias"]},
            r"'blocks\.9\.x' is not trained here, but in my\.file",
        ),
        (
            lambda t: t | {"head.bias": torch.zeros(7)},
            r"'head\.bias' in my\.file has shape \(7,\), not \(3,\)",
        ),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_a_tail_of_another_model_is_refused_by_name(change, message, pictures):
    problem = workload(pictures, tune="head")
    with pytest.raises(DataError, match=message):
        problem.theta_from(change(problem.named_tail(problem.theta0)), "my.file")


def test_the_metadata_say_all_that_is_needed_to_build_the_problem_again(pictures):
    problem = workload(pictures, tune="last-blocks:2", seed=5, partition="classes:0,1,2")
    metadata = problem.metadata()
    assert all(isinstance(v, str) for v in metadata.values())  # safetensors takes text only
    assert metadata.pop("schema") == TAIL_SCHEMA
    assert metadata.pop("model-digest") == problem.model_digest
    assert json.loads(metadata.pop("classes")) == ["blue", "green", "red"]
    values = {key: read_value(key, text) for key, text in metadata.items()}
    assert RunConfig.from_mapping(values).learning == replace(problem.config, loss="ce")  # of one class each


def test_random_weights_are_said_loudly(pictures, caplog):
    with caplog.at_level(logging.WARNING):
        assert workload(pictures, weights="none").model is not None
    assert "RANDOM weights" in caplog.text


def test_a_timm_model_starts_from_the_weights_of_a_file(pictures, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        source = timm.create_model("vit_tiny_patch16_224")
    save_file(source.state_dict(), tmp_path / "tiny.safetensors")
    settings = {
        "model": "vit_tiny_patch16_224",
        "weights": str(tmp_path / "tiny.safetensors"),
        "tune": "head",
    }
    problem = workload(pictures, **settings)
    assert torch.equal(problem.model.norm.weight, source.norm.weight)
    assert torch.equal(problem.model.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
    gradient = problem.objectives([0])[0].gradient(problem.theta0)
    assert gradient.shape == (192 * 3 + 3,)
    assert np.abs(gradient).max() > 0


def test_a_weights_file_that_is_not_there_is_refused(pictures):
    with pytest.raises(DataError, match=r"weights = '/no/such\.safetensors': there is no such file"):
        _ = workload(pictures, model="vit_tiny_patch16_224", weights="/no/such.safetensors").theta0


def test_a_wrong_tune_or_partition_is_refused_when_it_is_first_needed(pictures):
    with pytest.raises(ConfigError, match=r"tune = 'tail' is unknown"):
        _ = workload(pictures, tune="tail").theta0
    with pytest.raises(ConfigError, match=r"partition = 'even' is unknown"):
        workload(pictures, partition="even").holdings.data(0)


def test_one_peer_learns_the_digits_it_holds_and_those_alone():
    problem = Workload(LearningConfig(tune="head"), n=4)
    objective = problem.objectives([0])[0]
    theta = problem.theta0.copy()
    for _ in range(60):
        theta = theta - np.float32(0.1) * objective.gradient(theta)
    score = objective.evaluate(theta)
    assert 0.18 < score.accuracy < 0.32  # two digits of ten, and what the new head guesses right
    assert score.accuracy_unseen < 0.15
    assert objective.train_loss < 0.3
