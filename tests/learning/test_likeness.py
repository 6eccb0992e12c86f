"""How alike maps are, and which images are looked at."""

from __future__ import annotations

import numpy as np
import pytest

from p2pft_flower.learning.likeness import choose_images, correlation, likeness, top_overlap


def test_correlation_is_pearsons_for_each_image():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 5, 4, 4)).astype(np.float32)
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(correlation(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(correlation(a, 3 * a + 1), 1, rtol=1e-6)
    np.testing.assert_allclose(correlation(a, -a), -1, rtol=1e-6)
    assert np.isnan(correlation(np.ones_like(a), b)).all()


def test_overlap_counts_the_strongest_fifth_in_common():
    reference = np.arange(20, dtype=np.float32).reshape(1, 4, 5)  # the strongest four are 16..19
    assert top_overlap(reference, reference) == 1
    assert top_overlap(-reference, reference) == 0
    half = reference.copy()
    half[0, 3, 1:3] = 0  # 16 and 17 give way to 14 and 13
    assert top_overlap(half, reference) == 0.5
    single = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    assert top_overlap(single, single) == 1  # never fewer than one patch


def test_unrelated_maps_overlap_by_chance():
    a, b = np.random.default_rng(0).random((2, 2000, 14, 14))
    assert top_overlap(a, b).mean() == pytest.approx(39 / 196, abs=0.005)
    assert abs(correlation(a, b).mean()) < 0.01


def test_only_the_chosen_images_are_summed_up():
    alike, overlap = np.array([0.5, 0.7, -1.0]), np.array([0.2, 0.4, 0.0])
    right, chosen = np.array([True, False, False]), np.array([True, True, False])
    found = likeness(alike, overlap, right, chosen)
    assert found == {
        "images": 2,
        "correlation": {"mean": pytest.approx(0.6), "std": pytest.approx(0.1)},
        "overlap": {"mean": pytest.approx(0.3), "std": pytest.approx(0.1)},
        "accuracy": 0.5,
    }
    assert likeness(alike, overlap, right, ~chosen & chosen) is None


def test_a_seed_chooses_the_same_images_of_as_many_classes_as_there_are():
    labels = np.repeat(np.arange(5), 8)
    candidates = labels < 3
    chosen = choose_images(labels, candidates, 5, seed=1)
    assert len(set(chosen.tolist())) == 5
    assert candidates[chosen].all()
    assert sorted(labels[chosen[:3]]) == [0, 1, 2]
    assert len(set(labels[chosen[3:]].tolist())) == 2
    np.testing.assert_array_equal(chosen, choose_images(labels, candidates, 5, seed=1))
    assert chosen.tolist() != choose_images(labels, candidates, 5, seed=2).tolist()
    assert len(choose_images(labels, candidates, 0, seed=1)) == 0
