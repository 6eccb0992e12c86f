"""Codecs: a vector in fewer bytes, with an error.

``float16`` and ``bfloat16`` round each number. ``int8``, ``q4`` and ``q3`` cut the vector into blocks of 256
numbers, of which each has one scale, and round to 255, 15 or 7 levels. ``topk:F`` sends the share F of the
numbers that are largest in size, with their places. Every codec is deterministic: the same numbers give the
same bytes. :mod:`~p2pft_flower.algorithms.compression` limits the effect of errors on a method: it encodes
differences and remembers the lost parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from p2pft_flower.algorithms.seam import Vector
from p2pft_flower.errors import ConfigError
from p2pft_flower.plugins import call_reference, is_reference, source_file, telling_whose

__all__ = [
    "CODECS",
    "BFloat16",
    "Blocks",
    "Codec",
    "Float16",
    "Joined",
    "TopK",
    "for_vectors",
    "is_own_codec",
    "make_codec",
    "relative_error",
    "source_digest",
]

CODECS = ("none", "float16", "bfloat16", "int8", "q4", "q3", "topk:F")

_BLOCK = 256
"""Numbers that share one scale."""

_LARGEST = float(np.finfo(np.float32).max)

_SAMPLE = 2**16
"""Numbers of the vectors on which a codec's error is measured."""


_TRIED = 2**12
"""Numbers of the vectors with which a user's own codec is tried out."""

_SIZES = (1.0, 2.0**-40, 2.0**20)
"""Sizes of the numbers in these vectors."""


class Codec(Protocol):
    """A translation of vectors into bytes and back; the same on every peer."""

    def most_bytes(self, q: int, dtype: np.dtype[Any]) -> int:
        """Return the most bytes that :meth:`encode` returns for a (q,) vector of ``dtype``."""
        ...

    def encode(self, vector: Vector) -> bytes:
        """Return the bytes of ``vector``, (q,), finite; the same bytes for the same numbers."""
        ...

    def decode(self, payload: bytes, q: int, dtype: np.dtype[Any]) -> Vector:
        """Return the (q,) vector of ``dtype`` that the bytes ``payload`` encode.

        Raises
        ------
        ValueError
            When :meth:`encode` never returns such bytes for a (q,) vector.
        """
        ...


@dataclass(frozen=True)
class Float16:
    """Each number in the float16 of IEEE 754: 11 bits of precision, but sizes from 6e-8 to 65,504 only.

    So the vector is first divided by the largest size in it, which is sent as a bfloat16 scale.
    """

    def most_bytes(self, q: int, dtype: np.dtype[Any]) -> int:  # noqa: ARG002 - the codec's signature
        """Return the bytes of the scale and of all numbers."""
        return 2 + 2 * q

    def encode(self, vector: Vector) -> bytes:
        """Return the scale and the numbers, rounded to the nearest, ties to even."""
        scale, step = _scales(np.abs(vector).max(keepdims=True), vector.dtype)
        return scale.tobytes() + (vector / step).astype("<f2").tobytes()

    def decode(self, payload: bytes, q: int, dtype: np.dtype[Any]) -> Vector:
        """Return scale × float16 of each number."""
        _require_size(payload, self.most_bytes(q, dtype))
        scale = _from_bfloat16(np.frombuffer(payload, "<u2", 1), dtype)
        return np.frombuffer(payload, "<f2", offset=2).astype(dtype) * scale


@dataclass(frozen=True)
class BFloat16:
    """Each number as the upper half of a float32: 8 bits of precision, and its range."""

    def most_bytes(self, q: int, dtype: np.dtype[Any]) -> int:  # noqa: ARG002 - the codec's signature
        """Return 2 q."""
        return 2 * q

    def encode(self, vector: Vector) -> bytes:
        """Return the numbers, rounded to the nearest, ties to even."""
        return _as_bfloat16(vector).tobytes()

    def decode(self, payload: bytes, q: int, dtype: np.dtype[Any]) -> Vector:
        """Return the rounded numbers."""
        _require_size(payload, 2 * q)
        return _from_bfloat16(np.frombuffer(payload, "<u2"), dtype)


@dataclass(frozen=True)
class Blocks:
    """Blocks of 256 numbers with a bfloat16 scale each; a number is a level of ``bits`` bits times the scale.

    With L = 2^(bits − 1) − 1 and m the largest size in a block: scale m / L, rounded up; levels −L … L.

    Attributes
    ----------
    bits : int
        Bits of each number, 2 to 8.
    """

    bits: int

    @property
    def _levels(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    def most_bytes(self, q: int, dtype: np.dtype[Any]) -> int:  # noqa: ARG002 - the codec's signature
        """Return the bytes of all scales and of all levels."""
        return 2 * math.ceil(q / _BLOCK) + math.ceil(q * self.bits / 8)

    def encode(self, vector: Vector) -> bytes:
        """Return all scales, then all levels; each number is rounded to the nearest level of its block."""
        blocks = _in_blocks(vector)
        # Rounded up, a scale times the highest level is to stay a float32.
        sizes = (np.abs(blocks).max(axis=1) / self._levels).clip(max=_LARGEST / 1.01 / self._levels)
        scales, steps = _scales(sizes, vector.dtype)
        levels = np.rint(blocks / steps[:, None]).clip(-self._levels, self._levels) + self._levels
        return scales.tobytes() + _packed(levels.astype(np.uint8).ravel()[: vector.size], self.bits)

    def decode(self, payload: bytes, q: int, dtype: np.dtype[Any]) -> Vector:
        """Return scale × level of each number."""
        _require_size(payload, self.most_bytes(q, dtype))
        count = math.ceil(q / _BLOCK)
        scales = _from_bfloat16(np.frombuffer(payload, "<u2", count), dtype)
        levels = _unpacked(np.frombuffer(payload, np.uint8, offset=2 * count), q, self.bits)
        if levels.max(initial=0) > 2 * self._levels:
            raise ValueError(f"level {levels.max()} of {2 * self._levels}")
        vector: Vector = _in_blocks(levels.astype(dtype) - self._levels)
        vector *= scales[:, None]
        return vector.ravel()[:q]


@dataclass(frozen=True)
class TopK:
    """The numbers that are largest in size, with their places; the others count as zero.

    Attributes
    ----------
    share : float
        The share of the numbers that is sent, in (0, 1]; at least one number is sent.
    """

    share: float

    def _count(self, q: int) -> int:
        return max(1, math.ceil(self.share * q))

    def most_bytes(self, q: int, dtype: np.dtype[Any]) -> int:
        """Return the bytes of all places (4 each) and of all numbers."""
        return self._count(q) * (4 + dtype.itemsize)

    def encode(self, vector: Vector) -> bytes:
        """Return the places of the largest numbers, and these numbers; among equal ones NumPy chooses."""
        count = self._count(vector.size)
        places = np.sort(np.argpartition(np.abs(vector), vector.size - count)[-count:]).astype("<u4")
        numbers: Vector = vector[places].astype(vector.dtype.newbyteorder("<"))
        return places.tobytes() + numbers.tobytes()

    def decode(self, payload: bytes, q: int, dtype: np.dtype[Any]) -> Vector:
        """Return the numbers that were sent, zero elsewhere."""
        _require_size(payload, self.most_bytes(q, dtype))
        places = np.frombuffer(payload, "<u4", self._count(q)).astype(np.int64)
        if places[-1] >= q or (np.diff(places) <= 0).any():
            raise ValueError(f"places that do not ascend, or lie beyond {q} numbers")
        vector = np.zeros(q, dtype)
        vector[places] = np.frombuffer(payload, dtype.newbyteorder("<"), offset=4 * places.size)
        return vector


@dataclass(frozen=True)
class Joined:
    """A payload of several vectors of one length, each encoded by itself: their scales may differ by far.

    Attributes
    ----------
    codec : Codec
        The codec of each vector.
    parts : int
        The number of vectors, at least two.
    """

    codec: Codec
    parts: int

    def most_bytes(self, q: int, dtype: np.dtype[Any]) -> int:
        """Return the bytes of all parts and of the lengths of all but the last; ``q`` counts all numbers."""
        return self.parts * self.codec.most_bytes(q // self.parts, dtype) + 4 * (self.parts - 1)

    def encode(self, vector: Vector) -> bytes:
        """Return the encoded parts, each but the last one after its length in bytes (4 bytes)."""
        *first, last = (self.codec.encode(part) for part in np.split(vector, self.parts))
        return b"".join(len(part).to_bytes(4, "little") + part for part in first) + last

    def decode(self, payload: bytes, q: int, dtype: np.dtype[Any]) -> Vector:
        """Return the parts as one vector, (q,)."""
        each, left, vectors = q // self.parts, payload, []
        for _ in range(self.parts - 1):
            end = 4 + int.from_bytes(left[:4], "little")
            if end > len(left):
                raise ValueError(f"a part of {end - 4} bytes in a payload of {len(payload)}")
            vectors.append(self.codec.decode(left[4:end], each, dtype))
            left = left[end:]
        vectors.append(self.codec.decode(left, each, dtype))
        return np.concatenate(vectors)


def for_vectors(codec: Codec, vectors: int) -> Codec:
    """Return the codec of payloads that have ``vectors`` vectors, each encoded by ``codec``."""
    return codec if vectors == 1 else Joined(codec, vectors)


@dataclass(frozen=True)
class Checked:
    """A user's own codec, whose answers are checked, since NumPy would broadcast or promote wrong ones.

    Its methods raise ConfigError if an answer of the user's object is wrong.

    Attributes
    ----------
    spec : str
        The value of ``codec``, for errors.
    own : Codec
        The user's object.
    """

    spec: str
    own: Codec

    def try_out(self) -> None:
        """Refuse a codec that changes its answers, or that loses very small or very large numbers.

        A codec must return the same bytes each time for a vector, and the same vector each time for these
        bytes. The encoded differences shrink as the peers agree, so it must keep small numbers too.

        Raises
        ------
        ConfigError
            When the codec is refused.
        """
        drawn = np.random.default_rng(1).standard_normal(_TRIED).astype(np.float32)
        errors = []
        for size in _SIZES:  # powers of two: without under- and overflow the errors are the same
            vector = drawn * np.float32(size)
            payload = self.encode(vector)
            if self.encode(vector) != payload:
                raise self._wrong("encode", "other bytes for the same vector, expected the same")
            decoded = self.decode(payload, vector.size, vector.dtype)
            if not np.array_equal(self.decode(payload, vector.size, vector.dtype), decoded):
                raise self._wrong("decode", "another vector for the same bytes, expected the same")
            lost = (decoded - vector) / np.float32(size)
            errors.append(float(np.linalg.norm(lost) / np.linalg.norm(drawn)))
        for size, error in zip(_SIZES, errors, strict=True):
            if errors[0] < 1 <= error:
                raise ConfigError(
                    f"codec = {self.spec!r}: it loses {error:.2g} of a vector whose numbers are about "
                    f"{size:.0e}, and {errors[0]:.2g} if they are about 1: differences vanish as peers "
                    "agree, so it must lose less than 1 of a vector of any size; give scales the range of "
                    "float32 or bfloat16, not of float16"
                )

    def most_bytes(self, q: int, dtype: np.dtype[Any]) -> int:
        """Return the codec's answer, a whole number of at least 1."""
        with self._calling("most_bytes"):
            most = self.own.most_bytes(q, dtype)
        if isinstance(most, bool) or not isinstance(most, (int, np.integer)) or most < 1:
            raise self._wrong("most_bytes", f"{most!r}, expected a whole number of bytes")
        return int(most)

    def encode(self, vector: Vector) -> bytes:
        """Return the codec's bytes, no more than its ``most_bytes`` says."""
        most = self.most_bytes(vector.size, vector.dtype)
        shown = vector.view()
        shown.flags.writeable = False  # a codec that changes it would change the peer's own vector
        with self._calling("encode"):
            payload = self.own.encode(shown)
        if not isinstance(payload, bytes):
            raise self._wrong("encode", f"{type(payload).__name__}, expected bytes")
        if len(payload) > most:
            raise self._wrong("encode", f"{len(payload)} bytes, more than its most_bytes, {most}")
        return payload

    def decode(self, payload: bytes, q: int, dtype: np.dtype[Any]) -> Vector:
        """Return the codec's vector: finite, (q,), of ``dtype``; a copy, if the codec could change it."""
        with self._calling("decode"):
            vector = self.own.decode(payload, q, dtype)
        if not isinstance(vector, np.ndarray):
            raise self._wrong("decode", f"{type(vector).__name__}, expected a NumPy array")
        if vector.shape != (q,) or vector.dtype != dtype:
            raise self._wrong("decode", f"{vector.shape} {vector.dtype}, expected ({q},) {dtype}")
        if not np.isfinite(vector).all():
            raise self._wrong("decode", "NaN or infinity")
        return vector.copy() if vector.flags.writeable else vector

    def _calling(self, method: str) -> AbstractContextManager[None]:
        return telling_whose(self.spec, key="codec", doing=f"its {method}")

    def _wrong(self, method: str, what: str) -> ConfigError:
        return ConfigError(f"codec = {self.spec!r}: its {method} returned {what}")


def is_own_codec(spec: str) -> bool:
    """Tell whether ``spec`` names a user's own codec."""
    return is_reference(spec) and not spec.startswith("topk:")


def make_codec(spec: str) -> Codec | None:
    """Build the codec ``spec``.

    Parameters
    ----------
    spec : str
        One of :data:`CODECS`, or ``"my_module:my_codec"`` (or ``"/path/my_file.py:my_codec"``): a callable
        without arguments that returns a :class:`Codec`.

    Returns
    -------
    Codec or None
        The codec; None for ``"none"``: vectors are exchanged as they are.

    Raises
    ------
    ConfigError
        When there is no such codec, the share cannot be used, or a user's codec lacks methods.
    """
    if is_own_codec(spec):
        own = call_reference(spec, key="codec")
        missing = [part for part in ("most_bytes", "encode", "decode") if not hasattr(own, part)]
        if missing:
            raise ConfigError(
                f"codec = {spec!r}: the object that it returns has no {', '.join(missing)}; "
                "see p2pft_flower.algorithms.codecs.Codec"
            )
        codec = Checked(spec, own)
        codec.try_out()
        return codec
    if spec == "none":
        return None
    if spec in _NAMED:
        return _NAMED[spec]()
    kind, _, share = spec.partition(":")
    if kind != "topk":
        raise ConfigError(
            f"codec = {spec!r} is unknown; choose one of {', '.join(CODECS)}, or my_module:my_codec"
        )
    try:
        wanted = float(share)
    except ValueError:
        wanted = math.nan
    if not 0.0 < wanted <= 1.0:
        raise ConfigError(
            f"codec = {spec!r}: give the share of the numbers that is sent, in (0, 1], as topk:0.01"
        )
    return TopK(wanted)


_NAMED: dict[str, Callable[[], Codec]] = {
    "float16": Float16,
    "bfloat16": BFloat16,
    "int8": lambda: Blocks(8),
    "q4": lambda: Blocks(4),
    "q3": lambda: Blocks(3),
}


def relative_error(codec: Codec) -> float:
    """Return ‖C(x) − x‖ / ‖x‖, the larger one of a Gaussian and of a Laplacian vector x; the seed is fixed.

    Differences of θ and of τ are between the two. With an error below 1, the lost part of a difference is
    smaller than the difference.
    """
    draws = np.random.default_rng(0)
    errors = []
    for x in (draws.standard_normal(_SAMPLE), draws.laplace(size=_SAMPLE)):
        vector = x.astype(np.float32)
        error = codec.decode(codec.encode(vector), vector.size, vector.dtype) - vector
        errors.append(float(np.linalg.norm(error) / np.linalg.norm(vector)))
    return max(errors)


def source_digest(spec: str) -> str:
    """Return a digest (16 hex digits) of the file of a user's own codec; empty if there is no such file.

    A peer with another file would decode another vector than was encoded, and nothing but the digest shows
    that.
    """
    file = source_file(spec, key="codec") if is_own_codec(spec) else None
    return "" if file is None else sha256(file.read_bytes()).hexdigest()[:16]


def _require_size(payload: bytes, size: int) -> None:
    if len(payload) != size:
        raise ValueError(f"{len(payload)} bytes, expected {size}")


def _in_blocks(vector: Vector) -> Vector:
    """Return the numbers in blocks, (blocks, 256), the last one filled up with zeros."""
    blocks: Vector = np.zeros((-(-vector.size // _BLOCK), _BLOCK), vector.dtype)
    blocks.ravel()[: vector.size] = vector
    return blocks


def _scales(sizes: Vector, dtype: np.dtype[Any]) -> tuple[npt.NDArray[np.uint16], Vector]:
    """Return bfloat16 scales, each at least the size given, and the divisors: the scales, but 1 for 0."""
    scales = _as_bfloat16(sizes.clip(max=_LARGEST), up=True)
    steps = _from_bfloat16(scales, dtype)
    return scales, np.where(steps == 0, np.ones_like(steps), steps)


def _as_bfloat16(vector: Vector, *, up: bool = False) -> npt.NDArray[np.uint16]:
    """Return the upper halves of float32 numbers: rounded to the nearest, ties to even, or away from zero."""
    bits = vector.astype("<f4").view("<u4")
    lower = 0xFFFF if up else 0x7FFF + ((bits >> 16) & 1)
    # Beyond the largest, a carry would make infinity of it.
    sizes = (np.minimum(bits & 0x7FFFFFFF, 0x7F7F0000 - lower) + lower) >> 16
    halves: npt.NDArray[np.uint16] = (sizes | (bits >> 31 << 15)).astype("<u2")
    return halves


def _from_bfloat16(halves: npt.NDArray[np.uint16], dtype: np.dtype[Any]) -> Vector:
    return (halves.astype("<u4") << 16).view("<f4").astype(dtype)


def _packed(levels: npt.NDArray[np.uint8], bits: int) -> bytes:
    return np.packbits(np.unpackbits(levels[:, None], axis=1)[:, 8 - bits :]).tobytes()


def _unpacked(payload: npt.NDArray[np.uint8], count: int, bits: int) -> npt.NDArray[np.uint8]:
    each = np.unpackbits(payload, count=count * bits).reshape(count, bits)
    return np.right_shift(np.packbits(each, axis=1).ravel(), np.uint8(8 - bits))
