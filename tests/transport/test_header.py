from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport import Terms
from p2pft_flower.transport.wire.header import MAX_PAYLOAD, all_finite, checksum, decode_header, encode_header
from tests.transport.wire import message

TERMS = Terms("run", 6, "float64", view=2)


def test_a_header_says_what_was_put_in():
    header = decode_header(encode_header(TERMS, (1, 2), 7, 1, share=0.25, payload_hash=99))
    assert (header.run, header.view, header.sender, header.receiver) == ("run", 2, 1, 2)
    assert (header.iteration, header.phase, header.length, header.share) == (7, 1, 6, 0.25)
    assert header.checksum == checksum(header, 99) != checksum(header, 98)


@settings(deadline=None)
@given(bit=st.integers(0, 8 * 6 * 8 - 1))
def test_any_flipped_bit_of_the_payload_changes_the_checksum(bit):
    header, payload = message(TERMS, (0, 1), 0, 0, np.arange(6.0))
    flipped = bytearray(payload)
    flipped[bit // 8] ^= 1 << bit % 8
    parsed = decode_header(header)
    assert parsed.checksum == checksum(parsed, xxhash.xxh3_64_intdigest(payload))
    assert parsed.checksum != checksum(parsed, xxhash.xxh3_64_intdigest(bytes(flipped)))


@settings(deadline=None)
@given(data=st.data())
def test_any_flipped_bit_of_the_header_is_seen(data):
    header, payload = message(TERMS, (3, 1), 5, 1, np.arange(6.0))
    bit = data.draw(st.integers(0, 8 * len(header) - 1))
    flipped = bytearray(header)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        parsed = decode_header(bytes(flipped))
    except ValueError:
        return
    assert parsed.checksum != checksum(parsed, xxhash.xxh3_64_intdigest(payload))


@pytest.mark.parametrize("dtype", ["<f4", "<f8", np.float32, ">f4", np.dtype("float64")])
def test_the_wire_is_little_endian_whatever_the_terms_were_given_as(dtype):
    terms = Terms("r", 3, dtype)
    assert terms.dtype in {"<f4", "<f8"}
    assert terms.nbytes == 3 * np.dtype(dtype).itemsize
    assert terms == Terms("r", 3, terms.numpy_dtype)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": "int32"}, "int32"),
        ({"dtype": "float16"}, "float16"),
        ({"length": 0}, "length = 0"),
        ({"phases": 0}, "phases = 0"),
        ({"view": -1}, "view = -1"),
        ({"length": MAX_PAYLOAD // 4 + 1}, "fewer parameters"),
    ],
)
def test_impossible_terms_are_refused_at_construction(change, says):
    with pytest.raises(ConfigError, match=says):
        Terms(**({"run": "r", "length": 4} | change))


@pytest.mark.parametrize("size", [1, 2**20, 2**20 + 1])
def test_one_number_that_is_not_finite_is_found_anywhere(size):
    big = np.full(size, 3e38, np.float32)  # the sum overflows, the numbers do not
    assert all_finite(big)
    for where in {0, size // 2, size - 1}:
        for bad in (np.nan, np.inf, -np.inf):
            vector = big.copy()
            vector[where] = bad
            assert not all_finite(vector)
