"""The gradients of many peers as one computation: those of each peer alone, whoever else is there."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.batches import Batches
from p2pft_flower.learning.minibatches import MiniBatch, MiniBatches
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.theta import tail_vector
from p2pft_flower.learning.together import Together, padded_size, room, why_apart
from p2pft_flower.learning.workload import MANY, Workload

from .conftest import DROPS, MemoryFeatures, small_swin, small_vit

SIZES = [1, 7, 3, 2, 5, 1, 4, 2]
"""Images of each peer; a mini-batch has 4 at most."""


class Peers:
    """The objectives of 8 peers with images of their own, and a θ of each."""

    def __init__(self, model, tune, side=8, labels=None, balanced=False):
        self.path, parts = "", split_model(model, tune)
        self.path, self.tail = parts.path, parts.tail
        generator = torch.Generator().manual_seed(3)
        q = tail_vector(self.tail).size
        noise = np.random.default_rng(0).standard_normal((len(SIZES), q), dtype=np.float32)
        self.thetas = dict(enumerate(tail_vector(self.tail) + np.float32(0.05) * noise))
        self.objectives = {}
        for peer, size in enumerate(SIZES):
            with torch.no_grad():
                values = parts.trunk(torch.randn(size, 3, side, side, generator=generator))
            known = torch.arange(size) % 5 if labels is None else labels(size, generator)
            features = MemoryFeatures(values, known)
            batches = MiniBatches(features, Batches(size, min(size, 4), seed=0, peer=peer))
            one = PeerObjective(self.tail, batches, features, seed=0, peer=peer, balanced=balanced)
            if balanced:
                one.weigh(np.array([25.0 + peer, 8 + peer, 7, 5, 3, 2]))
            self.objectives[peer] = one

    def alone(self, times=2):
        return [{p: o.gradient(self.thetas[p]) for p, o in self.objectives.items()} for _ in range(times)]

    def together(self, groups, times=2, memory=None, threads=1):
        """Draw the gradients of each group of peers at once."""
        draw = Together(self.tail, self.objectives, threads)
        draw._memory = memory or draw._memory
        return [
            {p: g for group in groups for p, g in draw({p: self.thetas[p] for p in group}).items()}
            for _ in range(times)
        ]


ALL = [range(len(SIZES))]


def several_labels(size, generator):
    return torch.randint(0, 2, (size, 5), generator=generator)


WAYS = {
    "last-block": lambda: Peers(small_vit(), "last-block"),
    "last-blocks:2": lambda: Peers(small_vit(), "last-blocks:2"),
    "head": lambda: Peers(small_vit(), "head"),
    "bias": lambda: Peers(small_vit(), "bias"),
    "lora:2": lambda: Peers(small_vit(), "lora:2"),
    "adapter:2": lambda: Peers(small_vit(), "adapter:2"),
    "prompt:2": lambda: Peers(small_vit(), "prompt:2"),
    "swin": lambda: Peers(small_swin(drop_path_rate=0.0), "last-block", side=32),
    "several labels": lambda: Peers(small_vit(), "last-block", labels=several_labels),
    "class weights": lambda: Peers(small_vit(), "last-block", balanced=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_gradients_drawn_together_are_those_drawn_alone_to_1e_6_with_their_losses(way):
    apart, one = WAYS[way](), WAYS[way]()
    expected, found = apart.alone(), one.together(ALL)
    for before, after in zip(expected, found, strict=True):
        assert list(after) == list(before)
        for p, g in before.items():
            assert (after[p].shape, after[p].dtype) == (g.shape, np.float32)
            assert np.linalg.norm(after[p] - g) <= 1e-6 * np.linalg.norm(g), p
    for p, objective in one.objectives.items():
        assert objective.drawn == 2
        assert objective.train_loss == pytest.approx(apart.objectives[p].train_loss, rel=1e-5)


@pytest.mark.parametrize("way", ["last-block", "head", "last-blocks:2"])
def test_a_gradient_is_the_same_to_the_last_bit_whoever_is_computed_beside_it(way):
    (whole, _) = WAYS[way]().together(ALL)
    groups = ([[p] for p in range(8)], [[0, 3, 4], [1, 2], [5, 6, 7]], [[7, 0], [1], [6, 5, 4, 3, 2]])
    for others in groups:
        (found, _) = WAYS[way]().together(others)
        for p, g in whole.items():
            np.testing.assert_array_equal(found[p], g, err_msg=f"peer {p} of {others}")


def test_a_gpu_holds_a_quarter_of_its_memory_at_a_time(monkeypatch):
    sizes = iter((80 * 2**30, 2**30))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=next(sizes))
    )
    assert room(torch.device("cuda")) == 5 * 2**30
    assert room(torch.device("cuda")) == room(torch.device("cpu")), "a small one as much as a CPU"


def test_little_memory_makes_several_chunks_and_no_other_gradient():
    (whole, _), peers = WAYS["last-block"]().together(ALL), WAYS["last-block"]()
    (found, _) = peers.together(ALL, memory=1)
    chunks = list(
        Together(peers.tail, peers.objectives)._chunks({p: o.read() for p, o in peers.objectives.items()})
    )
    assert sorted(p for members, _ in chunks for p in members) == list(range(8))
    for p, g in whole.items():
        np.testing.assert_array_equal(found[p], g)


@pytest.mark.parametrize("way", ["last-block", "bias", "lora:2", "swin", "class weights"])
@pytest.mark.parametrize("threads", [2, 3, 20])
def test_threads_share_the_peers_and_change_no_gradient(way, threads):
    whole, peers = WAYS[way]().together(ALL), WAYS[way]()
    assert peers.tail.training is False
    found = peers.together(ALL, threads=threads)
    for before, after in zip(whole, found, strict=True):
        assert list(after) == list(before)
        for p, g in before.items():
            np.testing.assert_array_equal(after[p], g)


def test_all_threads_compute_at_once_each_with_torchs_threads_as_here(monkeypatch):
    peers, met = WAYS["last-block"](), threading.Barrier(3)
    draw, told = Together(peers.tail, peers.objectives, 3), []

    def computed(self, *given, **named):
        met.wait(60)
        told.append((torch.get_num_threads(), torch.backends.cuda.flash_sdp_enabled()))
        return plain(self, *given, **named)

    plain, here = Together._computed, (torch.get_num_threads(), torch.backends.cuda.flash_sdp_enabled())
    monkeypatch.setattr(Together, "_computed", computed)
    draw({p: peers.thetas[p] for p in (0, 2, 3, 5, 7)})  # mini-batches of 1, 3, 2, 1 and 2 images
    assert len(told) == 3
    assert {flash for _, flash in told} == {False}, "torch batches one way of attention alone"
    assert {threads for threads, _ in told} == {here[0]}
    assert (torch.get_num_threads(), torch.backends.cuda.flash_sdp_enabled()) == here


def test_a_mini_batch_is_padded_by_a_third_at_most_to_a_size_of_its_own():
    sizes = {number: padded_size(number) for number in range(1, 200)}
    assert all(number <= size <= max(number, number * 3 / 2) for number, size in sizes.items())
    assert sorted(set(sizes.values())) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]


def test_a_tail_that_draws_or_that_vmap_cannot_run_is_computed_alone_and_the_reason_told():
    def reason(model, change=lambda tail: None):
        trunk, tail, *_ = split_model(model, "last-block")
        change(tail)
        with torch.no_grad():
            inputs = trunk(torch.randn(1, 3, 8, 8))
        return why_apart(tail, tail_vector(tail), MiniBatch(inputs, torch.tensor([1]), (1,)))

    def reads_its_tokens(tail):
        tail.register_forward_hook(lambda module, given, answer: answer * float(answer.sum() > -1e9))

    def cheats(tail):  # answers otherwise where it is batched
        tail.register_forward_hook(
            lambda module, given, answer: (
                answer * (3.0 if torch._C._functorch.peek_interpreter_stack() else 1.0)
            )
        )

    assert reason(small_vit()) == ""
    assert "random" in reason(small_vit(**DROPS))
    assert "vmap cannot run its tail" in reason(small_vit(), reads_its_tokens)
    assert "off, of" in reason(small_vit(), cheats)


def workload(peers=MANY, **settings):
    config = RunConfig.from_mapping({"partition": "iid", "shots": 8, "tune": "head", **settings})
    return Workload(config.learning, peers)


def test_a_run_of_many_peers_draws_together_if_that_is_left_to_it_and_one_of_few_does_not():
    many, few = workload(), workload(MANY - 1)
    assert many.together(many.objectives([4])) is not None  # whoever is here
    assert few.together(few.objectives(range(4))) is None
    told = workload(4, batched=True)
    assert told.together(told.objectives(range(4))) is not None
    told = workload(batched=False)
    assert told.together(told.objectives(range(4))) is None


def test_batched_true_is_refused_where_it_cannot_be_and_auto_says_why(caplog):
    private = {"dp-clip": 1.0, "dp-noise": 1.0}
    with pytest.raises(ConfigError, match=r"^batched = true: dp-clip clips the gradient of each image"):
        workload(batched=True, **private).together({})
    caplog.set_level("INFO")
    assert workload(**private).together({}) is None
    assert "one peer after the other, for dp-clip clips" in caplog.text
