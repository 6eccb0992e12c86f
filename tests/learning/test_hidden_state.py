"""Models that keep a state besides θ are refused before the run, by name."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.hidden_state import refuse_hidden_state
from p2pft_flower.learning.model.split import split_model
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


_OF_THE_MODULE = np.random.default_rng(1)

OWN_SOURCES = {
    "numpy": lambda: {"drop path": [np.random.default_rng(0)]},
    "numpy, old": lambda: [np.random.RandomState(0)],
    "python": lambda: random.Random(0),
    "a method": lambda: np.random.default_rng(0).random,
}
GLOBAL_SOURCES = {
    "numpy": lambda: np.random.random() + 0,
    "python": lambda: random.random() + 0,
    "torch": lambda: float(torch.rand(())),
}


def drawn_elsewhere():
    return _OF_THE_MODULE.random()


class Draws(nn.Module):
    """Draws whether training uses a part: from the generators that ``held`` has, or with a function."""

    def __init__(self, part, held, rate=0.3):
        super().__init__()
        self.part, self.held, self.rate = part, held, rate

    def draw(self):
        source = self.held["drop path"] if isinstance(self.held, dict) else self.held
        source = source[0] if isinstance(source, list) else source
        return source() if callable(source) else source.random()

    def forward(self, x):
        return self.part(x) * float(not self.training or self.draw() >= self.rate)


class OwnTorchDraws(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part, self.generator = part, torch.Generator().manual_seed(0)

    def forward(self, x):
        if self.training:
            x = x * (torch.rand(x.shape, generator=self.generator) > 1e-9)
        return self.part(x)


@pytest.mark.parametrize("rate", [0.3, 1e-9])
@pytest.mark.parametrize("source", OWN_SOURCES)
def test_a_generator_of_the_models_own_is_named_however_seldom_its_draws_matter(source, rate):
    model = small_vit()
    model.blocks[2].mlp = Draws(model.blocks[2].mlp, OWN_SOURCES[source](), rate)
    with pytest.raises(ConfigError, match=r"^model = 'm': a step .* draws from blocks\.2\.mlp\.held"):
        look(model)
    look(model, "head")  # frozen, it answers as in eval mode


def test_a_generator_of_torchs_that_a_module_holds_is_named():
    model = small_vit()
    model.blocks[2].mlp = OwnTorchDraws(model.blocks[2].mlp)
    with pytest.raises(ConfigError, match=r"draws from blocks\.2\.mlp\.generator"):
        look(model)


def test_a_generator_that_no_module_holds_is_found_by_steps_that_do_not_repeat():
    model = small_vit()
    model.blocks[2].mlp = Draws(model.blocks[2].mlp, drawn_elsewhere)
    with pytest.raises(
        ConfigError, match=r"a step of training that is repeated, .* another loss or gradient"
    ):
        look(model)


@pytest.mark.parametrize("source", GLOBAL_SOURCES)
def test_draws_from_the_global_generators_are_no_state(source):
    model = small_vit()
    model.blocks[2].mlp = Draws(model.blocks[2].mlp, GLOBAL_SOURCES[source])
    look(model)


class Schedule(nn.Module):
    """Scales a part by the number of steps so far, in training only."""

    def __init__(self, part, begins=0):
        super().__init__()
        self.part, self.begins, self.steps = part, begins, 0

    def forward(self, x):
        if not self.training:
            return self.part(x)
        self.steps += 1
        return self.part(x) * (1 - min(max(0, self.steps - self.begins) / 1000, 0.5))


class MovingAverage(nn.Module):
    """Subtracts an average that is a plain attribute, in training only."""

    def __init__(self, part):
        super().__init__()
        self.part, self.average = part, 0.0

    def forward(self, x):
        if not self.training:
            return self.part(x)
        self.average = 0.99 * self.average + 0.01 * x.detach().mean(dim=(0, 1))
        return self.part(x - self.average)


@pytest.mark.parametrize("kind", [Schedule, MovingAverage])
def test_a_state_that_only_training_reads_is_found_by_steps_that_do_not_repeat(kind):
    for tune in ("last-block", "full"):
        model = small_vit()
        model.blocks[2].mlp = kind(model.blocks[2].mlp)
        with pytest.raises(ConfigError, match=r"^model = 'm': a step of training that is repeated"):
            look(model, tune)


def test_a_number_that_training_changes_without_effect_so_far_is_named_in_a_warning(caplog):
    model = small_vit()
    model.blocks[2].mlp = Schedule(model.blocks[2].mlp, begins=1000)
    look(model)
    assert "changes the number blocks.2.mlp.steps, which is not θ" in caplog.text


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


class MixesLargeBatches(nn.Module):
    """Mixes the images of batches that are larger than ``most``."""

    def __init__(self, part, most):
        super().__init__()
        self.part, self.most = part, most

    def forward(self, x):
        return self.part(x) + x.mean(dim=0, keepdim=True) * (len(x) > self.most)


@pytest.mark.parametrize(("block", "most"), [(0, 8), (0, 63), (2, 8), (2, 127)])
def test_a_model_that_mixes_the_images_of_large_batches_only_is_refused(block, most):
    model = small_vit()
    model.blocks[block].mlp = MixesLargeBatches(model.blocks[block].mlp, most)
    with pytest.raises(ConfigError, match=r"depends on the other images of its batch"):
        look(model)


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
