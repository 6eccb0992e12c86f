"""Models that keep a state besides θ are refused before the run, by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.hidden_state import refuse_hidden_state
from p2pft_flower.learning.split import split_model
from p2pft_flower.learning.workload import Workload

from .conftest import DROPS, TokenBatchNorm, small_hybrid, small_swin, small_vit, write_images

TUNES = ["last-block", "last-blocks:2", "head", "full", "bias", "lora:2", "adapter:2", "prompt:2"]


def look(model, tune="last-block", size=8):
    refuse_hidden_state(split_model(model.eval().requires_grad_(False), tune), (3, size, size), "model = 'm'")


@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize(("make", "size"), [(small_vit, 8), (small_swin, 32), (small_hybrid, 16)])
def test_timms_models_have_none_with_drop_out_batch_norm_and_windows(make, size, tune):
    look(make(**DROPS), tune, size)


class Memory(nn.Module):
    """Subtracts a moving average of what it saw; ``when`` says whether it moves: training, or always."""

    def __init__(self, when="training"):
        super().__init__()
        self.when, self.scale = when, nn.Parameter(torch.ones(16))
        self.register_buffer("average", torch.zeros(16))

    def forward(self, x):
        if self.training or self.when == "always":
            self.average += 0.1 * (x.detach().mean(dim=(0, 1)) - self.average)
        return self.scale * (x - self.average)


@pytest.mark.parametrize("when", ["training", "always"])
def test_a_buffer_that_a_step_of_training_changes_is_named(when):
    model = small_vit()
    model.norm = Memory(when)
    with pytest.raises(
        ConfigError, match=r"^model = 'm': a step of training changes norm\.average, which is not trained"
    ):
        look(model)


def test_a_buffer_that_changes_in_training_only_is_no_matter_where_it_is_frozen():
    model = small_vit()
    model.blocks[0].norm1 = Memory()
    look(model, "last-block")
    model.norm = Memory()
    look(model, "head")  # the norm is the trunk's
    with pytest.raises(ConfigError, match=r"blocks\.0\.norm1\.average"):
        look(model, "full")


def test_a_buffer_of_the_trunk_that_changes_whenever_it_runs_is_named():
    model = small_vit()
    model.blocks[0].norm1 = Memory("always")
    with pytest.raises(ConfigError, match=r"changes blocks\.0\.norm1\.average"):
        look(model)


def test_the_vectors_of_spectral_norm_are_named_where_its_weight_is_trained():
    model = small_vit()
    spectral_norm(model.blocks[2].mlp.fc1)
    with pytest.raises(ConfigError, match=r"blocks\.2\.mlp\.fc1\.parametrizations\.weight\.0\._u"):
        look(model)
    look(model, "head")


def test_a_buffer_that_is_made_in_training_is_named():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(16))

        def forward(self, x):
            if self.training:
                self.register_buffer("seen", torch.ones(1))
            return x * self.scale

    model = small_vit()
    model.norm = Late()
    with pytest.raises(ConfigError, match=r"changes norm\.seen"):
        look(model)


def test_a_frozen_parameter_that_is_written_to_is_named():
    class Drifting(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.bias = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))

        def forward(self, x):
            if self.training:
                self.scale.data += 0.1
            return x * self.scale + self.bias

    model = small_vit()
    model.norm = Drifting()
    with pytest.raises(ConfigError, match=r"changes norm\.scale"):
        look(model, "bias")  # trains norm.bias alone


def test_a_state_that_is_no_buffer_is_found_by_the_answers():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.steps = nn.Parameter(torch.ones(16)), 0

        def forward(self, x):
            self.steps += self.training
            return x * self.scale / (1 + self.steps)

    model = small_vit()
    model.norm = Counting()
    with pytest.raises(ConfigError, match=r"'m': after a step of training the same images have other"):
        look(model)


def test_what_is_computed_once_at_the_first_call_is_no_state():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(16))
            self.register_buffer("mask", torch.empty(0))

        def forward(self, x):
            if not len(self.mask):
                self.mask = torch.linspace(0, 1, x.shape[1])[:, None]
            return x * self.mask * self.scale

    model = small_vit()
    model.norm = Cached()
    look(model)


def test_a_normalisation_over_the_batch_at_hand_is_refused():
    for tune, name in (("last-block", "norm"), ("last-block", "blocks.0.norm1"), ("full", "norm")):
        model = small_vit()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, TokenBatchNorm(16, track_running_stats=False))
        with pytest.raises(ConfigError, match=r"depends on the other images of its batch"):
            look(model, tune)


def test_buffers_that_are_no_numbers_or_not_finite_may_stay_as_they_are():
    model = small_vit()
    model.blocks[2].register_buffer("mask", torch.tensor([float("nan"), float("-inf"), 1.0]))
    model.blocks[2].register_buffer("flags", torch.tensor([True, False]))
    look(model)


def test_the_step_leaves_the_model_and_the_generators_as_they_were():
    model = small_hybrid(**DROPS)
    parts = split_model(model, "full")
    state = {k: v.clone() for k, v in parts.tail.state_dict().items()}
    before = torch.get_rng_state()
    refuse_hidden_state(parts, (3, 16, 16), "m")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, state[k]) for k, v in parts.tail.state_dict().items())
    assert all(p.grad is None for p in parts.tail.parameters())


OWN = """
from tests.learning.conftest import small_vit
from tests.learning.test_hidden_state import Memory

def remembering(num_classes, pretrained):
    model = small_vit()
    model.norm = Memory()
    model.pretrained_cfg = {
        "input_size": (3, 8, 8), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3,
        "crop_pct": 1.0, "crop_mode": "center",
    }
    return model
"""


def test_an_own_model_is_looked_at_before_its_first_gradient(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    name = f"{tmp_path}/own.py:remembering"
    pictures = f"folder:{write_images(tmp_path / 'pictures', {'train': 1, 'test': 1})}"

    def workload(tune):
        return Workload(LearningConfig(model=name, weights="none", dataset=pictures, tune=tune), n=1)

    with pytest.raises(ConfigError, match=rf"^model = '{name}' with tune = 'last-block': .*norm\.average"):
        _ = workload("last-block").theta0
    assert workload("head").objectives([0])[0].gradient(workload("head").theta0).any()
