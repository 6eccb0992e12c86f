"""The terms two peers share, and the header that describes a payload: encode, decode, checksum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from google.protobuf.message import DecodeError

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport.wire import p2pft_pb2 as pb

__all__ = [
    "HEADER_KEY",
    "MAX_PAYLOAD",
    "Terms",
    "all_finite",
    "checksum",
    "decode_header",
    "encode_header",
    "encode_headers",
    "fetched",
    "wrong_vector",
]

HEADER_KEY = "p2pft-header-bin"
"""The metadata key of the header; gRPC carries the values of keys ending in ``-bin`` as bytes."""

MAX_PAYLOAD = 2**31 - 1 - 2**16
"""Largest payload in bytes: gRPC's message limit is an int32; the rest is room for framing."""

_PIECE = 2**16

_DTYPES = {"<f4": pb.FLOAT32, "<f8": pb.FLOAT64}


@dataclass(frozen=True)
class Terms:
    """The terms on which both ends of every edge must agree.

    Attributes
    ----------
    run : str
        The run's identifier.
    length : int
        The number of numbers of a vector (q).
    dtype : str or numpy.dtype
        float32 or float64; kept as the little-endian dtype's string, ``"<f4"`` or ``"<f8"``.
    phases : int
        Exchanges an iteration; default 2 (theta, tau).
    view : int
        The number of the view (set of live peers and its graph); default 0.
    config : str
        Digest, as text, of all that must be equal on all peers; default empty.
    phase_names : tuple of str
        The names of an iteration's exchanges, for errors; default empty: errors have their numbers.
    codec : str
        The encoding of payloads, as the run-config names it; default empty: plain numbers of ``dtype``.
    vectors : int
        Number of vectors in a payload; default 1.
    most_bytes : int
        Most bytes of an encoded payload; default 0, without a codec.
    step : float
        The codec's step γ in the view; default 0, without a codec.
    rounds : int
        Number of exchanges, the first ones of an iteration, whose payloads are tables of scores and no
        vectors; ``phases`` counts them. Default 0.
    table : int
        The number of numbers of a table, which are float64, without a codec; the same in each view of a run.
        Default 0.

    Raises
    ------
    ConfigError
        When a value is impossible or a payload would be larger than gRPC can carry.
    """

    run: str
    length: int
    dtype: npt.DTypeLike = "<f4"
    phases: int = 2
    view: int = 0
    config: str = ""
    phase_names: tuple[str, ...] = ()
    codec: str = ""
    vectors: int = 1
    most_bytes: int = 0
    step: float = 0.0
    rounds: int = 0
    table: int = 0

    def __post_init__(self) -> None:
        dtype = np.dtype(self.dtype).newbyteorder("<").str
        if dtype not in _DTYPES:
            raise ConfigError(
                f"payload dtype {np.dtype(self.dtype)} cannot be exchanged: use float32 or float64"
            )
        object.__setattr__(self, "dtype", dtype)
        for name, least in (("length", 1), ("phases", 1), ("view", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least {least}")
        if self.rounds and not self.table:
            raise ConfigError(f"{self.rounds} exchanges of tables without a number in them")
        if max(self.nbytes, self.largest) > MAX_PAYLOAD:
            raise ConfigError(
                f"a payload of {self.numbers} numbers of {np.dtype(dtype)} has {self.payload_bytes} bytes, "
                f"more than the {MAX_PAYLOAD} one message can carry: train fewer parameters, or in float32"
            )

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The payload's little-endian dtype."""
        return np.dtype(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of one vector."""
        return self.length * self.numpy_dtype.itemsize

    @property
    def numbers(self) -> int:
        """Numbers of one payload, decoded."""
        return self.vectors * self.length

    @property
    def payload_bytes(self) -> int:
        """Most bytes of one payload; without a codec every payload has as many."""
        return self.most_bytes if self.codec else self.vectors * self.nbytes

    @property
    def largest(self) -> int:
        """Most bytes of any payload of the run, be it vectors or a table."""
        return max(self.payload_bytes, 8 * self.table)

    @cached_property
    def tables(self) -> Terms:
        """The terms as payloads with a table have them."""
        return replace(self, length=self.table, dtype="<f8", codec="", vectors=1, most_bytes=0, step=0.0)

    def at(self, phase: int) -> Terms:
        """Return the terms as the payloads of an exchange have them: length, dtype and codec are theirs."""
        return self.tables if phase < self.rounds else self

    def fits(self, size: int) -> bool:
        """Tell whether a payload of vectors may have ``size`` bytes."""
        return size <= self.payload_bytes if self.codec else size == self.payload_bytes

    def phase_name(self, phase: int) -> str:
        """Return an exchange's name in errors, or its number if it has none."""
        return self.phase_names[phase] if 0 <= phase < len(self.phase_names) else str(phase)

    @property
    def wire_dtype(self) -> pb.Dtype:
        """The payload's dtype as the wire names it."""
        return _DTYPES[str(self.dtype)]


def all_finite(vector: npt.NDArray[np.floating]) -> bool:
    """Return whether ``vector`` (q,) holds neither a NaN nor an infinity."""
    if vector.size <= _PIECE:
        return bool(np.isfinite(vector).all())
    # Piece by piece, so that the temporary array does not grow with q.
    return all(bool(np.isfinite(vector[k : k + _PIECE]).all()) for k in range(0, vector.size, _PIECE))


def checksum(header: pb.PayloadHeader, payload_hash: int) -> int:
    """Return the xxh3_64 over header and payload: of the header, with the payload's hash as the seed.

    So the payload is read once for all receivers, and a bit flipped in either part is seen.

    Parameters
    ----------
    header : PayloadHeader
        The header, whose field ``checksum`` does not count.
    payload_hash : int
        xxh3_64 of the payload's bytes.
    """
    blank = pb.PayloadHeader()
    blank.CopyFrom(header)
    blank.checksum = 0
    return _checksum(blank, payload_hash)


def _checksum(blank: pb.PayloadHeader, payload_hash: int) -> int:
    """Return the checksum of a header that has none yet."""
    return xxhash.xxh3_64_intdigest(blank.SerializeToString(deterministic=True), seed=payload_hash)


def encode_header(
    terms: Terms, edge: tuple[int, int], iteration: int, phase: int, *, share: float, payload_hash: int
) -> bytes:
    """Return the header of one payload along ``edge`` = (sender, receiver); see `encode_headers`."""
    sender, receiver = edge
    (header,) = encode_headers(terms, sender, iteration, phase, {receiver: share}, payload_hash)
    return header


def encode_headers(
    terms: Terms, sender: int, iteration: int, phase: int, shares: Mapping[int, float], payload_hash: int
) -> Iterator[bytes]:
    """Yield the header, with its checksum, of one payload to each of several receivers, in their order.

    Parameters
    ----------
    terms : Terms
        The terms of the view.
    sender : int
        The peer that sends.
    iteration, phase : int
        The place in the run.
    shares : mapping of int to float
        Receiver to the sender's share b_ij for that receiver, which multiplies by the share in an exchange by
        B; 1 in an exchange by A.
    payload_hash : int
        The xxh3_64 of the payload's bytes (:func:`checksum`).
    """
    terms = terms.at(phase)
    header = pb.PayloadHeader(
        run=terms.run,
        view=terms.view,
        sender=sender,
        iteration=iteration,
        phase=phase,
        length=terms.numbers,
        dtype=terms.wire_dtype,
        codec=terms.codec,
        step=terms.step,
    )
    for receiver, share in shares.items():
        header.receiver, header.share, header.checksum = receiver, share, 0
        header.checksum = _checksum(header, payload_hash)
        yield header.SerializeToString(deterministic=True)


def decode_header(raw: bytes) -> pb.PayloadHeader:
    """Parse a header; nothing in it is checked yet.

    Raises
    ------
    ValueError
        When the bytes are no header.
    """
    try:
        return pb.PayloadHeader.FromString(raw)
    except DecodeError as error:
        raise ValueError(f"{len(raw)} bytes that are no header") from error


def fetched(
    terms: Terms, edge: tuple[int, int], iteration: int, vector: npt.NDArray[np.floating]
) -> pb.Fetched:
    """Return the answer that carries the donor's ``vector``, (q,), along ``edge`` = (donor, asking peer)."""
    raw = vector.astype(terms.numpy_dtype, copy=False).tobytes()
    plain = replace(terms, codec="", vectors=1, step=0.0, rounds=0)
    header = encode_header(plain, edge, iteration, 0, share=1.0, payload_hash=xxhash.xxh3_64_intdigest(raw))
    return pb.Fetched(status=pb.ACCEPTED, header=decode_header(header), vector=raw)


def wrong_vector(terms: Terms, edge: tuple[int, int], answer: pb.Fetched) -> str | None:
    """Return the reason why a vector fetched along ``edge`` = (donor, asking peer) is wrong, or None."""
    header, raw = answer.header, answer.vector
    for what, theirs, ours in (
        ("run", header.run[:64], terms.run),
        ("view", header.view, terms.view),
        ("edge", (header.sender, header.receiver), edge),
        ("number of trainable parameters", header.length, terms.length),
        ("dtype number", header.dtype, terms.wire_dtype),
        ("number of bytes", len(raw), terms.nbytes),
    ):
        if theirs != ours:
            return f"its {what} is {theirs!r}, and {ours!r} was asked for"
    if checksum(header, xxhash.xxh3_64_intdigest(raw)) != header.checksum:
        return "its checksum does not fit: bits changed on the way"
    if not all_finite(np.frombuffer(raw, dtype=terms.numpy_dtype)):
        return "it holds a NaN or an infinity"
    return None
