"""Codecs: sizes, errors, and bytes that no encoder writes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from p2pft_flower.algorithms import simulate
from p2pft_flower.algorithms.codecs import make_codec, relative_error
from p2pft_flower.algorithms.compression import safe_step
from p2pft_flower.errors import ConfigError
from p2pft_flower.topology import Graph
from tests.examples import write_example

from .conftest import quadratics

SPECS = ["float16", "bfloat16", "int8", "q4", "q3", "topk:0.1", "topk:1"]
ERRORS = {
    "float16": 1e-3,
    "bfloat16": 4e-3,
    "int8": 0.02,
    "q4": 0.25,
    "q3": 0.5,
    "topk:0.1": 0.95,
    "topk:1": 0.0,
}


def there_and_back(spec, vector):
    codec = make_codec(spec)
    payload = codec.encode(vector)
    assert len(payload) <= codec.most_bytes(vector.size, vector.dtype)
    assert codec.encode(vector.copy()) == payload
    back = codec.decode(payload, vector.size, vector.dtype)
    assert (back.shape, back.dtype) == (vector.shape, vector.dtype)
    return back


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spec", SPECS)
def test_each_codec_loses_no_more_than_it_may_at_any_scale(spec, dtype):
    for size, scale in itertools.product([1, 2, 255, 256, 257, 1000], [1e-30, 1e-9, 1.0, 1e20]):
        vector = (np.random.default_rng(size).standard_normal(size) * scale).astype(dtype)
        back = there_and_back(spec, vector)
        lost, whole = np.linalg.norm(back / scale - vector / scale), np.linalg.norm(vector / scale)
        assert lost <= ERRORS[spec] * whole, (size, scale)


@given(
    spec=st.sampled_from(SPECS),
    vector=npst.arrays(
        np.float32,
        st.integers(1, 300),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
)
def test_no_number_makes_a_codec_write_what_is_not_finite_or_grow_a_difference(spec, vector):
    back = there_and_back(spec, vector)
    assert np.isfinite(back).all()
    exact = vector.astype(float)
    assert (np.abs(back - exact) <= np.abs(exact).max() * 1.01 + 1e-37).all()


@pytest.mark.parametrize(
    ("spec", "fewer"), [("float16", 2.0), ("bfloat16", 2.0), ("int8", 3.96), ("q4", 7.87), ("q3", 10.4)]
)
def test_payloads_shrink_as_they_say(spec, fewer):
    q = 447_178  # ViT-Tiny's tail
    assert 4 * q / make_codec(spec).most_bytes(q, np.dtype("f4")) == pytest.approx(fewer, rel=0.01)


def test_bfloat16_rounds_as_torch_does():
    vector = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    vector[:4] = [0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8]  # ties
    expected = torch.from_numpy(vector).bfloat16().float().numpy()
    np.testing.assert_array_equal(there_and_back("bfloat16", vector), expected)


def test_four_bits_keep_zero_and_the_largest_of_each_block():
    vector = np.zeros(512, np.float32)
    vector[[3, 300]] = [7.0, -0.5]
    np.testing.assert_allclose(there_and_back("q4", vector), vector, rtol=2**-7)


def test_topk_sends_the_largest_and_nothing_else():
    vector = np.array([0.1, -5.0, 0.2, 4.0, 0.0], np.float32)
    np.testing.assert_array_equal(there_and_back("topk:0.4", vector), [0, -5, 0, 4, 0])


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""], ids=["cut", "long", "none"]
)
def test_payloads_of_another_length_are_refused(spec, change):
    codec, vector = make_codec(spec), np.ones(300, np.float32)
    with pytest.raises(ValueError, match="bytes, expected"):
        codec.decode(change(codec.encode(vector)), 300, vector.dtype)


def test_levels_and_places_that_no_encoder_writes_are_refused():
    q3, topk = make_codec("q3"), make_codec("topk:0.01")
    ones = np.ones(256, np.float32)
    with pytest.raises(ValueError, match="level 7 of 6"):
        q3.decode(q3.encode(ones)[:2] + b"\xff" * 96, 256, ones.dtype)
    for places in ([300, 1, 2], [1, 1, 2], [2, 1, 3]):
        payload = np.array(places, "<u4").tobytes() + np.ones(3, "<f4").tobytes()
        with pytest.raises(ValueError, match="do not ascend, or lie beyond 256 numbers"):
            topk.decode(payload, 256, ones.dtype)


def test_the_error_is_measured():
    errors = [relative_error(make_codec(spec)) for spec in ("float16", "int8", "q4", "q3", "topk:0.01")]
    assert errors == sorted(errors)
    assert 0 < errors[0] < 1e-3
    assert 0.9 < errors[-1] < 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("q5", r"codec = 'q5' is unknown; choose one of none, float16, bfloat16, int8, q4, q3, topk:F"),
        ("topk", r"give the share of the numbers that is sent"),
        ("topk:0", r"in \(0, 1\]"),
        ("topk:nan", r"in \(0, 1\]"),
        ("topk:2", r"in \(0, 1\]"),
        ("types:SimpleNamespace", r"has no most_bytes, encode, decode"),
    ],
)
def test_wrong_codecs_are_refused_by_name(spec, message):
    with pytest.raises(ConfigError, match=message):
        make_codec(spec)


def test_the_example_in_the_docs_reaches_the_optimum(tmp_path):
    file = write_example("my_codec", tmp_path)
    problem = quadratics(4, q=200)
    own = f"{file}:Powers"
    run = simulate(
        "p2pft",
        Graph.load("lopsided-4"),
        problem.gradients,
        np.zeros(200),
        alpha=0.02,
        iterations=2500,
        codec=own,
    )
    np.testing.assert_allclose(run.theta, np.tile(problem.optimum(), (4, 1)), rtol=0, atol=1e-8)
    assert make_codec(own).most_bytes(200, np.dtype("f4")) == 200


OWN = """
import numpy as np


class Whole:
    def most_bytes(self, q, dtype):
        return 8 * q

    def encode(self, vector):
        return vector.astype("<f8").tobytes()

    def decode(self, payload, q, dtype):
        return np.frombuffer(payload, "<f8").astype(dtype)


class Float64(Whole):
    def decode(self, payload, q, dtype):
        return np.frombuffer(payload, "<f8")


class One(Whole):
    def decode(self, payload, q, dtype):
        return super().decode(payload, q, dtype)[:1]


class Column(Whole):
    def decode(self, payload, q, dtype):
        return super().decode(payload, q, dtype)[:, None]


class Listed(Whole):
    def decode(self, payload, q, dtype):
        return list(super().decode(payload, q, dtype))


class NoNumber(Whole):
    def decode(self, payload, q, dtype):
        return super().decode(payload, q, dtype) * np.nan


class Failing(Whole):
    def decode(self, payload, q, dtype):
        raise IndexError("no such table")


class Long(Whole):
    def most_bytes(self, q, dtype):
        return q


class Fraction(Whole):
    def most_bytes(self, q, dtype):
        return 8.0 * q


class Array(Whole):
    def encode(self, vector):
        return bytearray(super().encode(vector))


class Threefold(Whole):
    def decode(self, payload, q, dtype):
        return 3 * super().decode(payload, q, dtype)


class OneBuffer(Whole):
    buffer = np.empty(0)

    def decode(self, payload, q, dtype):
        if (self.buffer.size, self.buffer.dtype) != (q, dtype):
            self.buffer = np.empty(q, dtype)
        self.buffer[:] = super().decode(payload, q, dtype)
        return self.buffer
"""


@pytest.mark.parametrize("step", [0.0, 0.5])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Float64", r"its decode returned \([0-9]+,\) float64, expected \([0-9]+,\) float32"),
        ("One", r"its decode returned \(1,\) float32, expected \([0-9]+,\)"),
        ("Column", r"its decode returned \([0-9]+, 1\) float32"),
        ("Listed", r"its decode returned list, expected a NumPy array"),
        ("NoNumber", r"its decode returned NaN or infinity"),
        ("Failing", r"its decode raised IndexError: no such table \(.*own_codec.py, line [0-9]+\)"),
        ("Long", r"its encode returned [0-9]+ bytes, more than its most_bytes, [0-9]+"),
        ("Fraction", r"its most_bytes returned [0-9.]+, expected a whole number"),
        ("Array", r"its encode returned bytearray, expected bytes"),
    ],
)
def test_what_an_own_codec_returns_is_refused_by_name_where_it_is_not_what_it_should_be(
    name, message, step, tmp_path
):
    (tmp_path / "own_codec.py").write_text(OWN)
    gradients = [lambda theta: theta] * 4
    with pytest.raises(ConfigError, match=rf"codec = '.*own_codec.py:{name}': {message}"):
        simulate(
            "p2pft",
            Graph.load("lopsided-4"),
            gradients,
            np.ones(40, np.float32),
            alpha=0.1,
            iterations=2,
            codec=f"{tmp_path / 'own_codec.py'}:{name}",
            codec_step=step,
        )


def test_no_step_is_chosen_for_a_codec_that_loses_more_than_there_is(tmp_path):
    (tmp_path / "own_codec.py").write_text(OWN)
    with pytest.raises(ConfigError, match=r"it loses 2 of a vector, and has to lose less than 1"):
        safe_step(Graph.load("lopsided-4"), make_codec(f"{tmp_path / 'own_codec.py'}:Threefold"))


def test_an_own_codec_may_use_one_buffer_for_all_that_it_decodes(tmp_path):
    (tmp_path / "own_codec.py").write_text(OWN)
    whole, buffer = (
        simulate(
            "p2pft",
            Graph.load("lopsided-4"),
            quadratics(4).gradients,
            np.zeros(5),
            alpha=0.02,
            iterations=50,
            codec=f"{tmp_path / 'own_codec.py'}:{name}",
        )
        for name in ("Whole", "OneBuffer")
    )
    np.testing.assert_array_equal(buffer.theta, whole.theta)


TRIED_OUT = """
import numpy as np


class Plain:
    calls = 0

    def most_bytes(self, q, dtype):
        return 8 * q

    def encode(self, vector):
        return vector.tobytes()

    def decode(self, payload, q, dtype):
        return np.frombuffer(payload, dtype)


class Halves(Plain):
    def encode(self, vector):
        return vector.clip(-6e4, 6e4).astype("<f2").tobytes()

    def decode(self, payload, q, dtype):
        return np.frombuffer(payload, "<f2").astype(dtype)


class OtherBytes(Plain):
    def encode(self, vector):
        Plain.calls += 1
        return (vector * Plain.calls).tobytes()


class OtherVectors(Plain):
    def decode(self, payload, q, dtype):
        Plain.calls += 1
        return (np.frombuffer(payload, dtype) * Plain.calls).astype(dtype)


class InPlace(Plain):
    def encode(self, vector):
        vector *= 2
        return vector.tobytes()
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Halves",
            r"Halves': it loses 1 of a vector whose numbers are about 9e-13, and 0\.\d+ if",
        ),
        ("OtherBytes", "its encode returned other bytes for the same vector"),
        ("OtherVectors", "its decode returned another vector for the same bytes"),
        ("InPlace", "its encode.*read-only"),
    ],
)
def test_an_own_codec_is_tried_out(name, message, tmp_path):
    file = tmp_path / "my_codec.py"
    file.write_text(TRIED_OUT)
    assert make_codec(f"{file}:Plain") is not None
    with pytest.raises(ConfigError, match=message):
        make_codec(f"{file}:{name}")
