"""Runs with their vectors on a device have the θ of those in the CPU's memory; torch's CPU stands for one.

An accelerator's gradients differ in their last bits, those of torch's CPU do not: so all that is done to
vectors is held to the bit, from the first θ to checkpoints and results.
"""

from __future__ import annotations

import pytest

from p2pft_flower.learning.device_vectors import DeviceVector, VectorDevice
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.together import Together
from p2pft_flower.learning.workload import Workload

from .engine import run_app
from .sameness import same_run, tails

SMALL = {"iterations": 4, "evaluate_every": 2}


@pytest.fixture
def device(monkeypatch):
    """A function that lets vectors be on a device from then on, and returns the kinds that gradients see."""
    seen = set()

    def use():
        monkeypatch.setattr(Workload, "vector_device", VectorDevice("cpu"))
        alone, at_once = PeerObjective.gradient, Together.__call__

        def gradient(self, theta):
            seen.add(type(theta))
            found = alone(self, theta)
            assert type(found) is type(theta)
            return found

        def together(self, thetas):
            seen.update(map(type, thetas.values()))
            found = at_once(self, thetas)
            assert {type(g) for g in found.values()} == {DeviceVector}
            return found

        monkeypatch.setattr(PeerObjective, "gradient", gradient)
        monkeypatch.setattr(Together, "__call__", together)
        return seen

    return use


RUNS = {
    "two hosts over sockets": {"topology": "lopsided-4", "transport": "grpc"},
    "drawn together": {"batched": "true", "momentum": 0.9, "weight_decay": 0.01},
    "the best one kept": {"keep": "best:loss", "validation": 0.2},
    "weights by class": {"class_weights": "balanced"},
    "all images in one place": {"algorithm": "centralized"},
    "noised": {"dp_clip": 1.0, "dp_noise": 1.0},
}


@pytest.mark.parametrize("what", RUNS)
def test_a_run_on_a_device_is_the_run_in_memory(what, device, tmp_path):
    settings = SMALL | RUNS[what]
    run_app(tmp_path / "memory", **settings)
    seen = device()
    run_app(tmp_path / "device", **settings)
    assert seen == {DeviceVector}
    n = 1 if settings.get("algorithm") == "centralized" else 4
    same_run(tmp_path / "memory", tmp_path / "device", n)


def test_a_run_goes_on_from_a_checkpoint_of_the_other_kind_to_the_same_bits(device, tmp_path):
    settings = {"momentum": 0.9, "learning_rate": 0.02, "checkpoint_every": 2}
    more = {"iterations": 4, "extend": True}
    run_app(tmp_path / "whole", iterations=4, **settings)
    run_app(tmp_path / "in memory", iterations=2, **settings)
    device()
    run_app(tmp_path / "device", resume=str(tmp_path / "in memory"), **settings | more)
    assert tails(tmp_path / "device") == tails(tmp_path / "whole")
    run_app(tmp_path / "on a device", iterations=2, **settings)
    run_app(tmp_path / "again", resume=str(tmp_path / "on a device"), **settings | more)
    assert tails(tmp_path / "again") == tails(tmp_path / "whole")


def test_drawn_together_nobody_waits_for_the_vectors_of_each_peer(device, tmp_path, monkeypatch):
    device()

    def alone(self):
        raise AssertionError("it waits for one vector alone")

    monkeypatch.setattr(DeviceVector, "all", alone)
    run_app(tmp_path / "device", batched="true", **SMALL)


def test_with_a_codec_vectors_stay_in_memory_and_theta_is_the_same(device, tmp_path):
    settings = SMALL | {"codec": "q4"}
    run_app(tmp_path / "memory", **settings)
    seen = device()
    run_app(tmp_path / "device", **settings)
    assert DeviceVector not in seen
    same_run(tmp_path / "memory", tmp_path / "device")
