"""Differential privacy of a peer's gradients: clipping, noise, batches, and what they cost."""

from __future__ import annotations

import importlib.util
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.learning import privacy as module
from p2pft_flower.learning.data.batches import Batches, PoissonBatches
from p2pft_flower.learning.minibatches import MiniBatches
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.privacy import ClippedGradients, Privacy, epsilon
from p2pft_flower.learning.theta import tail_vector, trained_parameters
from p2pft_flower.learning.workload import Workload
from tests.later import Later

from .conftest import DROPS, MemoryFeatures, small_swin, small_vit

optimize, stats = Later("scipy.optimize"), Later("scipy.stats")

accountant = pytest.mark.skipif(importlib.util.find_spec("opacus") is None, reason="Opacus is not installed")

MODELS = {
    "vit": (small_vit, 8),
    "vit-pooling-all-tokens": (lambda: small_vit(global_pool="avg", fc_norm=False), 8),
    "vit-with-qk-norm": (lambda: small_vit(qk_norm=True), 8),
    "swin": (small_swin, 32),
}
TUNES = [
    *("head", "last-block", "last-blocks:2", "full", "bias+norm"),
    *("lora:2", "lora-fa:2", "lora:2:last-block", "adapter:2", "prompt-deep:2"),
]


def inputs_of(name, tune, count=5):
    """A tail, what the trunk makes of ``count`` images, and their labels."""
    make, size = MODELS[name]
    parts = split_model(make(), tune)
    with torch.no_grad():
        images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
        return parts.tail, parts.trunk(images), torch.arange(count) % 5


def gradient_of(tail, inputs, labels):
    loss = nn.functional.cross_entropy(tail(*inputs), labels)
    gradients = torch.autograd.grad(loss, trained_parameters(tail))
    return torch.cat([g.reshape(-1) for g in gradients])


def one_by_one(tail, inputs, labels):
    """The gradient of each image, (B, q), by a plain loop."""
    return torch.stack(
        [
            gradient_of(tail, tuple(t[i : i + 1] for t in inputs), labels[i : i + 1])
            for i in range(len(labels))
        ]
    )


@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize("name", MODELS)
def test_the_clipped_sum_is_that_of_a_loop_over_images_whatever_the_path(name, tune):
    tail, inputs, labels = inputs_of(name, tune)
    each = one_by_one(tail, inputs, labels)
    norms = each.norm(dim=1)
    clip = float(norms.median())  # some are clipped, others are not
    expected = (each * (clip / norms).clamp(max=1)[:, None]).sum(dim=0)
    total, losses = ClippedGradients(tail, clip).total(inputs, labels)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        losses, nn.functional.cross_entropy(tail(*inputs), labels, reduction="none"), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", MODELS)
def test_without_a_limit_the_sum_is_the_plain_gradient_times_the_images(name):
    tail, inputs, labels = inputs_of(name, "last-block")
    total, _ = ClippedGradients(tail, math.inf).total(inputs, labels)
    torch.testing.assert_close(total / 5, gradient_of(tail, inputs, labels), rtol=1e-4, atol=1e-6)


def test_images_in_several_chunks_sum_up_to_the_same(monkeypatch):
    tail, inputs, labels = inputs_of("vit", "last-block")
    whole, _ = ClippedGradients(tail, 0.5).total(inputs, labels)
    monkeypatch.setattr(module, "_FLOATS", 2 * tail_vector(tail).size)  # two images at once
    parts, losses = ClippedGradients(tail, 0.5).total(inputs, labels)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-7)
    assert len(losses) == 5


def test_no_image_moves_the_sum_by_more_than_the_clipping_norm():
    tail, inputs, labels = inputs_of("vit", "last-block")
    inputs = tuple(100 * t for t in inputs)  # outliers
    assert one_by_one(tail, inputs, labels).norm(dim=1).min() > 0.3
    clipped = ClippedGradients(tail, 0.3)
    total, _ = clipped.total(inputs, labels)
    for i in range(5):
        rest = [j for j in range(5) if j != i]
        without, _ = clipped.total(tuple(t[rest] for t in inputs), labels[rest])
        assert float((total - without).norm()) <= 0.3 * (1 + 1e-5)


def test_an_image_without_a_gradient_is_no_division_by_zero():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * self.weight

    total, _ = ClippedGradients(Flat(), 1.0).total((torch.zeros(2, 3),), torch.tensor([0, 1]))
    assert torch.equal(total, torch.zeros(3))


@pytest.mark.parametrize("make", [small_vit, small_swin], ids=["vit", "swin"])
def test_drop_out_draws_another_mask_for_each_image(make):
    parts = split_model(make(**DROPS), "last-block")
    size = 8 if make is small_vit else 32
    with torch.no_grad():
        image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
        inputs = parts.trunk(image.expand(8, -1, -1, -1))
    parts.tail.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, losses = ClippedGradients(parts.tail, 1.0).total(inputs, torch.zeros(8, dtype=torch.int64))
    assert len(losses.unique()) > 4


class PerBatch(nn.Module):
    """Mean and variance of a batch go into everybody's answer."""

    def __init__(self, norm_layer):
        super().__init__()
        self.norm, self.head = norm_layer, nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(x)
        return self.head(x.flatten(2).mean(dim=2) if x.ndim > 2 else x)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_a_tail_that_looks_at_a_whole_batch_is_refused_by_name(layer):
    shape = (2, 4) if layer is nn.BatchNorm1d else (2, 4, 5, 5)
    features = MemoryFeatures((torch.randn(shape),), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"dp-clip > 0 with model = 'mine'.*choose another model"):
        ClippedGradients(PerBatch(layer(4)), 1.0).check(features, "model = 'mine'")


# --- noise and batches ------------------------------------------------------------------------------------


def private(images=20, batch=4, clip=1.0, noise=1.0, key=(0, 0)):
    return Privacy(clip, noise, 1e-5, images, batch, key)


def test_the_noise_is_gaussian_with_the_promised_deviation():
    settings = private(clip=0.5, noise=3.0, batch=4)
    noise = settings.release(np.zeros(200_000, np.float32), 0)
    assert noise.dtype == np.float32
    assert stats.kstest(noise, stats.norm(0, 3.0 * 0.5 / 4).cdf).pvalue > 0.01
    other = settings.release(np.zeros(200_000, np.float32), 1)
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.01


def test_the_noise_of_a_key_is_the_same_and_that_of_the_machine_never():
    zeros = np.zeros(50, np.float32)
    seeded, secret = private(key=(3, 1)), private(key=None)
    np.testing.assert_array_equal(seeded.release(zeros, 4), private(key=(3, 1)).release(zeros, 4))
    draws = [seeded.release(zeros, 4), seeded.release(zeros, 5), private(key=(3, 2)).release(zeros, 4)]
    draws += [secret.release(zeros, 4), secret.release(zeros, 4)]
    assert len({draw.tobytes() for draw in draws}) == len(draws)


def test_each_image_is_in_a_batch_with_the_same_probability_independently():
    batches, draws = PoissonBatches(40, 0.2, key=(1, 2)), 4000
    held = np.zeros((draws, 40), dtype=bool)
    for t in range(draws):
        held[t, batches.batch(t)] = True
    deviation = math.sqrt(0.2 * 0.8 / draws)
    assert np.abs(held.mean(axis=0) - 0.2).max() < 4.5 * deviation
    sizes = held.sum(axis=1)
    assert sizes.var() == pytest.approx(40 * 0.2 * 0.8, rel=0.1)  # not of one size: nobody waits for others
    assert np.abs(np.corrcoef(held[:-1, 0], held[1:, 0])[0, 1]) < 0.05


def test_private_batches_come_from_key_and_position_or_from_nowhere_known():
    np.testing.assert_array_equal(
        PoissonBatches(99, 0.5, key=(1, 2)).batch(7), PoissonBatches(99, 0.5, key=(1, 2)).batch(7)
    )
    secret = PoissonBatches(99, 0.5, key=None)
    np.testing.assert_array_equal(secret.batch(7), secret.batch(7))
    drawn = [secret, PoissonBatches(99, 0.5, key=None), PoissonBatches(99, 0.5, key=(1, 2))]
    assert len({batches.batch(7).tobytes() for batches in drawn}) == 3


def test_with_as_many_images_as_a_batch_all_are_in_every_batch():
    settings = Privacy.of(LearningConfig(dp_clip=1.0, batch_size=64), 10, (0, 0))
    assert (settings.rate, settings.batch_size) == (1.0, 10)
    np.testing.assert_array_equal(settings.batches().batch(3), np.arange(10))


# --- a peer's gradients -----------------------------------------------------------------------------------


def objective_of(settings, tune="last-block", model=small_vit, batches=None, peer=0):
    parts = split_model(model(), tune)
    with torch.no_grad():
        images = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(2))
        features = MemoryFeatures(parts.trunk(images), torch.arange(20) % 5)
    batches = batches or settings.batches()
    images = MiniBatches(features, batches)
    objective = PeerObjective(parts.tail, images, features, seed=0, peer=peer, privacy=settings)
    return objective, tail_vector(parts.tail)


def test_with_a_limit_that_none_reaches_and_no_noise_a_peers_gradient_is_the_plain_one():
    batches = Batches(20, 4, seed=0, peer=0)
    large, theta = objective_of(private(clip=1e30, noise=0.0), batches=batches)
    plain, _ = objective_of(None, batches=batches)
    for _ in range(3):
        np.testing.assert_allclose(large.gradient(theta), plain.gradient(theta), rtol=1e-4, atol=1e-6)
        assert large.train_loss == pytest.approx(plain.train_loss, rel=1e-5)


def test_the_expected_batch_size_divides_and_an_empty_batch_is_noise_alone():
    class Given:
        def batch(self, t):
            return np.arange([0, 8, 0][t], dtype=np.int64)

    settings = private(batch=4, clip=0.01, noise=0.0)
    objective, theta = objective_of(settings, batches=Given())
    assert not objective.gradient(theta).any()
    assert math.isnan(objective.train_loss)
    assert np.linalg.norm(objective.gradient(theta)) <= 8 * 0.01 / 4 * (1 + 1e-5)


@pytest.mark.parametrize("drops", [{}, DROPS], ids=["plain", "with-drop-out"])
def test_private_gradients_are_those_of_seed_peer_and_position(drops):
    def model():
        return small_vit(**drops)

    first, theta = objective_of(private(), model=model)
    kept = theta.copy()
    whole = [first.gradient(theta) for _ in range(4)]
    np.testing.assert_array_equal(theta, kept)
    resumed, _ = objective_of(private(), model=model)
    resumed.drawn = 2
    np.testing.assert_array_equal([resumed.gradient(theta) for _ in range(2)], whole[2:])
    other, _ = objective_of(private(key=(0, 1)), model=model)
    assert not np.array_equal(other.gradient(theta), whole[0])
    assert len({g.tobytes() for g in whole}) == 4


def test_gradients_that_are_not_private_cost_nothing():
    objective, theta = objective_of(None, batches=Batches(20, 4, seed=0, peer=0))
    objective.gradient(theta)
    assert objective.privacy_spent() is None


@accountant
def test_every_gradient_counts():
    objective, theta = objective_of(private(noise=2.0))
    assert objective.privacy_spent() == (0.0, 1e-5)
    spent = []
    for k in range(1, 4):
        objective.gradient(theta)
        assert objective.privacy_spent() == (epsilon(noise=2.0, rate=0.2, releases=k, delta=1e-5), 1e-5)
        spent.append(objective.privacy_spent().epsilon)
    assert 0 < spent[0] < spent[1] < spent[2]


# --- the accountant ---------------------------------------------------------------------------------------

PUBLISHED = [
    # Abadi et al. (2016), Deep Learning with Differential Privacy, section 3.2: q = 0.01, σ = 4, T = 10000
    (4.0, 0.01, 10_000, 1.26),
    # TensorFlow Privacy, tutorials/README.md: MNIST, 60 epochs of batches of 256, σ = 1.1
    (1.1, 256 / 60_000, 60 * 60_000 // 256, 3.01),
    # Bu et al. (2020), Deep Learning with Gaussian Differential Privacy, figure 4: σ = 0.7, 70 epochs
    (0.7, 256 / 60_000, 70 * 60_000 // 256, 8.68),
]


@accountant
@pytest.mark.parametrize(("noise", "rate", "steps", "published"), PUBLISHED)
def test_epsilon_is_the_published_one_or_what_a_later_theorem_makes_of_it(noise, rate, steps, published):
    from opacus.accountants.analysis.rdp import compute_rdp

    # They turned Rényi divergences into ε by Mironov's proposition 3, Opacus does by a tighter theorem.
    orders = [1 + x / 10 for x in range(1, 100)] + list(range(11, 64))
    divergences = compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders)
    older = min(d + math.log(1e5) / (a - 1) for a, d in zip(orders, divergences, strict=True))
    assert older == pytest.approx(published, abs=0.006)
    ours = epsilon(noise=noise, rate=rate, releases=steps, delta=1e-5)
    assert 0.8 * published < ours < published


@accountant
@pytest.mark.parametrize(("noise", "steps"), [(2.0, 1), (10.0, 10), (20.0, 100), (1.0, 1), (5.0, 300)])
def test_with_all_images_in_every_batch_epsilon_bounds_the_exact_one_closely(noise, steps):
    # Balle and Wang (2018), theorem 8: δ(ε) of Gaussian noise; T of them are as one of σ / √T.
    m = math.sqrt(steps) / noise
    norm = stats.norm
    exact = optimize.brentq(
        lambda e: norm.cdf(m / 2 - e / m) - math.exp(e) * norm.cdf(-m / 2 - e / m) - 1e-5, 0, 99
    )
    assert exact < epsilon(noise=noise, rate=1.0, releases=steps, delta=1e-5) < 1.12 * exact


@accountant
@pytest.mark.parametrize("noise", [0.05, 0.3, 300.0])
def test_extreme_noise_has_a_bound_too(noise):
    assert 0 < epsilon(noise=noise, rate=0.1, releases=300, delta=1e-4) < math.inf


@accountant
def test_without_noise_nothing_is_private_and_without_gradients_nothing_is_lost():
    assert epsilon(noise=0.0, rate=0.1, releases=1, delta=1e-4) == math.inf
    assert epsilon(noise=1.0, rate=0.1, releases=0, delta=1e-4) == 0.0


# --- the settings -----------------------------------------------------------------------------------------


def test_without_opacus_privacy_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)  # what an import of it then raises
    with pytest.raises(ConfigError, match=r"pip install 'opacus>=1.5,<2'"):
        Workload(LearningConfig(dp_clip=1.0), n=4).check_privacy()
    Workload(LearningConfig(), n=4).check_privacy()


@accountant
def test_a_delta_with_which_a_whole_image_may_be_revealed_is_warned_of(caplog):
    Privacy.of(LearningConfig(dp_clip=1.0, dp_noise=1.0, dp_delta=0.01), 100, None)
    assert "choose less than 1 / 100" in caplog.text


def test_pooled_images_are_not_private():
    with pytest.raises(ConfigError, match=r"dp-clip = 1.0 with algorithm = centralized: the peer that pools"):
        Workload(LearningConfig(dp_clip=1.0), n=4, pooled="uniform").check_privacy()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dp_noise": 1.0}, r"dp-noise = 1.0 with dp-clip = 0: nothing would be private"),
        ({"dp_delta": 1e-4}, r"dp-delta = 0.0001 with dp-clip = 0: nothing would be private"),
        ({"dp_clip": 1.0, "stream": True, "dataset": "folder:/x"}, r"stream = true with dp-clip = 1.0"),
    ],
    ids=["noise", "delta", "stream"],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LearningConfig(**settings).check_data()


@accountant
def test_in_simulation_gradients_follow_from_the_seed_and_in_deployment_they_do_not():
    config = LearningConfig(dp_clip=1.0, dp_noise=1.0)

    def gradient(seed=0, peers=None):
        problem = Workload(LearningConfig(dp_clip=1.0, dp_noise=1.0, seed=seed), n=4, peers=peers)
        return problem.objectives([1])[1].gradient(Workload(config, n=4).theta0)

    simulated = gradient()
    np.testing.assert_array_equal(simulated, gradient())
    assert not np.array_equal(simulated, gradient(seed=1))
    deployed = gradient(peers=(1,))
    assert not np.array_equal(deployed, simulated)
    assert not np.array_equal(deployed, gradient(peers=(1,)))


@accountant
def test_peers_with_fewer_images_spend_more():
    problem = Workload(LearningConfig(dp_clip=1.0, dp_noise=1.0), n=4)
    objectives = problem.objectives([0, 2])
    for objective in objectives.values():
        objective.drawn = 100
    few, many = (objectives[p].privacy_spent() for p in (0, 2))
    assert tuple(problem.holdings.data(p).images for p in (0, 2)) == (288, 435)
    assert (few.delta, many.delta) == (1 / 2880, 1 / 4350)
    assert few.epsilon > many.epsilon
    given = Workload(LearningConfig(dp_clip=1.0, dp_noise=1.0, dp_delta=1e-6), n=4).objectives([0])[0]
    assert given.privacy_spent().delta == 1e-6


@accountant
def test_the_log_says_from_where_the_noise_comes(caplog):
    caplog.set_level("INFO")
    for settings, peers in (({"dp_noise": 1.0}, None), ({"dp_noise": 1.0}, (0,)), ({}, None)):
        Workload(LearningConfig(dp_clip=1.0, **settings), n=4, peers=peers).objectives([0])
    told = [r.getMessage() for r in caplog.records if r.name == module.__name__]
    assert len(told) == 3
    assert "follow from the seed" in told[0]
    assert "this machine's entropy" in told[1]
    assert "ε is infinite" in told[2]
