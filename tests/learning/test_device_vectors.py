"""Vectors on a device are to a method what NumPy's arrays are: the same numbers, to the last bit."""

from __future__ import annotations

import re

import numpy as np
import pytest

from p2pft_flower.algorithms.seam import Both, Columns, Rows, combine, combine_all
from p2pft_flower.learning.device_vectors import BLOCK, DeviceVector, VectorDevice

Q = 1001
DEVICE = VectorDevice("cpu")
"""torch's CPU stands for an accelerator."""


def vectors(number, q=Q, dtype=np.float32):
    """Return vectors of all sizes that float32 has, zeros of both signs among them."""
    draws = np.random.default_rng(0)
    sizes = [10.0 ** draws.integers(-30, 30, q) for _ in range(number)]
    found = [(draws.standard_normal(q) * size).astype(dtype) for size in sizes]
    for vector in found:
        vector[:2] = 0.0, -0.0
    return found


def same_bits(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.asarray(found).tobytes() == expected.tobytes()


EXPRESSIONS = {
    "a step": lambda x, y: x - 0.01 * y,
    "heavy ball": lambda x, y: 0.9 * x + y,
    "a tracker": lambda x, y: x + y - 0.3 * x,
    "a number first": lambda x, y: 1.0 - x + 2 * y,
    "a quotient": lambda x, y: x / 0.3 - y / (1 - 0.9**3),
    "a quotient of vectors": lambda x, y: x / (abs(y) + 1e-8),
    "Adam's sizes": lambda x, y: 0.9 * np.absolute(x) + 0.1 * y**2,
    "a square": lambda x, y: np.square(x) - y,
    "a number of NumPy's": lambda x, y: np.float32(0.1) * x + y * np.float32(3),
    "a double of NumPy's": lambda x, y: np.float64(0.1) * x + y,
    "another sign": lambda x, y: -x + np.maximum(x, y) * np.minimum(x, y),
    "zeros": lambda x, y: np.zeros_like(x) + y,
    "one after the other": lambda x, y: np.concatenate([x, y]),
    "a half": lambda x, y: np.split(np.concatenate([x, y]), 2)[1],
    "finite": lambda x, y: np.isfinite(x * y),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("what", EXPRESSIONS)
def test_what_methods_compute_has_the_bits_of_numpy(what, dtype):
    x, y = vectors(2, dtype=dtype)
    with np.errstate(all="ignore"):
        expected = EXPRESSIONS[what](x, y)
    found = EXPRESSIONS[what](DEVICE.place(x), DEVICE.place(y))
    assert isinstance(found, DeviceVector)
    same_bits(found, expected)


def test_square_roots_have_the_bits_of_numpy_but_for_the_last_one():
    """On the CPU torch rounds them otherwise (findings/torch_sqrt_on_cpu_is_an_ulp_off.sh)."""
    x, y = (np.abs(v) for v in vectors(2))
    found = np.asarray(DEVICE.place(x) / (np.sqrt(DEVICE.place(y)) + 1e-8))
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(found, x / (np.sqrt(y) + 1e-8), rtol=3e-7)


def test_an_array_takes_part_in_what_is_computed():
    x, y = vectors(2)
    same_bits(y - DEVICE.place(x), y - x)
    same_bits(DEVICE.place(x) - y, x - y)


def test_a_vector_can_be_added_to_in_place():
    x, y = vectors(2)
    found = DEVICE.place(x)
    before, alias = found, found.tensor
    found += DEVICE.place(y)
    assert found is before
    assert found.tensor is alias
    same_bits(found, x + y)


def test_a_function_that_it_lacks_is_named_and_nothing_is_computed_elsewhere():
    x = DEVICE.place(vectors(1)[0])
    with pytest.raises(TypeError, match=re.escape("numpy.median")):
        np.median(x)
    with pytest.raises(TypeError, match="arctan"):
        np.arctan(x)
    with pytest.raises(TypeError, match="less"):
        _ = x < 0.0


def test_what_is_placed_and_what_comes_back_are_copies():
    (x,) = vectors(1)
    placed = DEVICE.place(x)
    assert DEVICE.place(placed) is placed
    back = np.asarray(placed)
    x[5] = back[6] = 7.0
    assert 7.0 not in np.asarray(placed)
    with pytest.raises(ValueError, match="another device"):
        np.asarray(placed, copy=False)


def test_it_has_the_sizes_of_an_array():
    (x,) = vectors(1)
    found = DEVICE.place(x)
    assert (found.shape, found.ndim, found.size, found.nbytes, len(found)) == ((Q,), 1, Q, 4 * Q, Q)
    assert found.tobytes() == x.tobytes()
    same_bits(found[3:7], x[3:7])
    copy = found.copy()
    copy.tensor[:] = 0
    assert found.tobytes() == x.tobytes()


GRAPH = {0: (0, 1, 2, 3), 1: (0, 1), 2: (2,), 3: (0, 2, 3), 7: (3, 7)}
"""Whom each peer mixes: no two numbers of terms are alike, as in lopsided graphs."""


@pytest.mark.parametrize("q", [Q, 2 * BLOCK // 5 + 3])
@pytest.mark.parametrize("kind", [Rows, Columns, Both])
def test_sums_of_all_peers_at_once_have_the_bits_of_each_ones_own(kind, q):
    q -= q % 2
    there = dict(zip((0, 1, 2, 3, 7), vectors(5, q), strict=True))
    weights = np.random.default_rng(1).random((8, 8, 2))
    terms = {i: [(*weights[i, j].tolist(), there[j]) for j in near] for i, near in GRAPH.items()}
    placed = {j: DEVICE.place(x) for j, x in there.items()}
    asked = {i: [(*weights[i, j].tolist(), placed[j]) for j in near] for i, near in GRAPH.items()}
    with np.errstate(over="ignore"):
        expected = {i: combine(kind, own) for i, own in terms.items()}
    found = combine_all(kind, asked, DEVICE.sums)
    assert found.keys() == expected.keys()
    for i, one in expected.items():
        same_bits(found[i], one)
    for j, x in there.items():
        assert placed[j].tobytes() == x.tobytes(), "what is mixed is not written to"


def test_who_is_not_finite_is_told_from_who_is():
    x, y, z = vectors(3)
    y[17], z[-1] = np.nan, np.inf
    assert DEVICE.finite([DEVICE.place(v) for v in (x, y, z)]) == [True, False, False]
