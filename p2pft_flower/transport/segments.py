"""Memory that hosts of one machine share: a host lays its payloads in it, and the others copy them out.

A segment is a file in memory that never had a name (memfd_create), so no folder holds the file, and the
kernel frees it when the last process that has it open or mapped has ended, also by SIGKILL. Others open it by
its owner's process and descriptor, which the kernel allows to processes of the same user only.

Its size is sealed, so that no access to a mapping of it can fail. Its content is not: its owner could change
it at any time. So a receiver copies a payload first, and checks and uses the copy.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import xxhash

from p2pft_flower.transport.bodies import Body
from p2pft_flower.transport.closing import Closing
from p2pft_flower.transport.mailbox import Edge
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import Refused

__all__ = ["Segment", "Segments"]

_ALIGNED = 64
"""Each payload begins at a multiple of so many bytes."""

_PIECE = 2**18
"""Bytes that are copied and hashed at a time: they stay in the processor's cache."""

MOST_PLACES = 2**16
"""Places of a segment. To map many takes no memory."""

_MUCH = 2**17
"""Bytes from which on memory of a copy is used again: to get it from the system costs more than the copy."""


def _step(payload_bytes: int) -> int:
    """Return the bytes from one payload's beginning to the next one's."""
    return -(-payload_bytes // _ALIGNED) * _ALIGNED


class Segment(Closing):
    """A segment of this host, with places for its payloads.

    A place takes memory when it is first used.

    Parameters
    ----------
    places : iterable of (int, int)
        The edge, (sender, receiver), that names each place.
    payload_bytes : int
        Most bytes of a payload.

    Attributes
    ----------
    described : Segment
        The message with which others open the segment.

    Raises
    ------
    OSError
        When there is no memory or no descriptor left, or the system has no such files.
    """

    def __init__(self, places: Iterable[Edge], payload_bytes: int) -> None:
        self._step = _step(payload_bytes)
        self._begins = {place: k * self._step for k, place in enumerate(sorted(set(places)))}
        self._used: set[Edge] = set()
        size = self._step * len(self._begins)
        if sys.platform != "linux":
            raise OSError("this system has no memfd_create")
        if len(self._begins) > MOST_PLACES:
            raise OSError(f"{len(self._begins)} edges, more than the {MOST_PLACES} places of a segment")
        self._descriptor = os.memfd_create("p2pft", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(self._descriptor, 0o600)
            os.ftruncate(self._descriptor, size)
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._memory: mmap.mmap | None = mmap.mmap(self._descriptor, size)
        except BaseException:
            os.close(self._descriptor)
            raise
        inode = os.fstat(self._descriptor).st_ino
        self.described = pb.Segment(process=os.getpid(), descriptor=self._descriptor, inode=inode, size=size)

    def lay(self, place: Edge, payload: bytes | npt.NDArray[np.floating]) -> Body:
        """Copy a payload into a place, over the one that lay there, and return its bytes in the segment.

        Raises
        ------
        OSError
            When there is no memory for a place that was not used before.
        ValueError
            When the segment is closed.
        """
        if self._memory is None:
            raise ValueError("the segment is closed")
        begin = self._begins[place]
        if place not in self._used:
            # A write to memory that the system cannot give would end this process.
            os.posix_fallocate(self._descriptor, begin, self._step)
            self._used.add(place)
        source = (memoryview(payload) if isinstance(payload, bytes) else payload.data).cast("B")
        target = memoryview(self._memory)[begin : begin + len(source)]
        return Body(target, _copy(source, target), begin)

    def close(self) -> None:
        """Give the segment up: its memory is freed when nobody has it mapped, or has a payload in it."""
        if self._memory is not None:
            self._memory = None
            os.close(self._descriptor)


class Segments:
    """The segments of other hosts that this host has mapped for reading.

    ``_lock`` guards ``_mapped`` and ``_buffers``.

    Parameters
    ----------
    most : int
        Largest number of edges into this host in any view, and of segments that stay mapped. When one more is
        mapped, the least recently read one is unmapped.

    Attributes
    ----------
    most : int
        The parameter ``most``.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._mapped: OrderedDict[bytes, mmap.mmap] = OrderedDict()
        self._buffers: deque[npt.NDArray[np.uint8]] = deque()

    def open(self, segment: pb.Segment, payload_bytes: int) -> mmap.mmap:
        """Return a segment's memory for reading.

        Parameters
        ----------
        segment : Segment
            The owner's description of the segment; nothing in it is trusted.
        payload_bytes : int
            Most bytes of a payload of the run.

        Raises
        ------
        Refused
            With UNSHARED, when the segment is not that of a host of this user and run, or cannot be opened.
        """
        key = segment.SerializeToString(deterministic=True)
        with self._lock:
            memory = self._mapped.get(key)
            if memory is None:
                memory = _map(segment, payload_bytes)
                while self._mapped and len(self._mapped) >= self.most:
                    self._mapped.popitem(last=False)
                self._mapped[key] = memory
            self._mapped.move_to_end(key)
            return memory

    def copy(
        self, memory: mmap.mmap, begin: int, size: int, dtype: np.dtype[np.floating] | None = None
    ) -> Body:
        """Copy a payload out of a segment, into memory of this process; the bytes returned are read-only.

        Parameters
        ----------
        memory : mmap
            The segment.
        begin, size : int
            Offset and length of the payload in the segment, in bytes.
        dtype : numpy.dtype, optional
            The type of a payload of plain numbers: ``finite`` of the result then says whether all numbers are
            finite, if the payload has 128 KiB or more. Default: ``finite`` is False.
        """
        if size < _MUCH:
            return Body(memory[begin : begin + size])
        own = self._buffer(size).data
        source, finite = memoryview(memory)[begin : begin + size], [dtype is not None]

        def look(piece: npt.NDArray[np.uint8]) -> None:
            if dtype is not None and not np.isfinite(piece.view(dtype)).all():
                finite[0] = False

        body = Body(own.toreadonly(), _copy(source, own, look))
        (body.finite,) = finite
        return body

    def _buffer(self, size: int) -> npt.NDArray[np.uint8]:
        """Return memory of ``size`` bytes for a copy: that of a copy nobody has any more, if there is one."""
        with self._lock:
            for _ in range(len(self._buffers)):
                buffer, references = _oldest(self._buffers)
                unused = references == _UNUSED  # each view of it would be one more
                if unused and buffer.size != size:
                    continue
                self._buffers.append(buffer)
                if unused:
                    return buffer
            self._buffers.append(np.empty(size, np.uint8))
            return self._buffers[-1]

    def clear(self) -> None:
        """Forget all segments; a segment is unmapped when nothing is read from it any more."""
        with self._lock:
            self._mapped.clear()
            self._buffers.clear()


def _oldest(buffers: deque[npt.NDArray[np.uint8]]) -> tuple[npt.NDArray[np.uint8], int]:
    """Remove the buffer that was used longest ago, and return it with its number of references."""
    buffer = buffers.popleft()
    return buffer, sys.getrefcount(buffer)


_UNUSED = _oldest(deque([np.empty(1, np.uint8)]))[1]
"""References to a buffer that nobody has a view of; versions of Python differ in what they count."""


def _copy(
    source: memoryview, target: memoryview, look: Callable[[npt.NDArray[np.uint8]], None] | None = None
) -> int:
    """Copy bytes, and return their xxh3_64; ``look`` gets each piece of the copy.

    Piece by piece, so that each is read from memory once.
    """
    if len(source) <= _PIECE and look is None:
        target[:] = source
        return xxhash.xxh3_64_intdigest(target)
    array, digest = np.frombuffer(target, np.uint8), xxhash.xxh3_64()
    for k in range(0, len(source), _PIECE):
        piece = array[k : k + _PIECE]
        piece[:] = np.frombuffer(source[k : k + _PIECE], np.uint8)
        digest.update(piece.data)
        if look is not None:
            look(piece)
    return digest.intdigest()


if sys.platform == "linux":
    _SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def _map(segment: pb.Segment, payload_bytes: int) -> mmap.mmap:
    """Open, check and map a segment; raise `Refused` with UNSHARED if that fails."""
    if not 0 < segment.size <= MOST_PLACES * _step(payload_bytes):
        raise Refused(pb.UNSHARED, f"a segment of {segment.size} bytes, which is no host's of this run")
    if sys.platform != "linux":
        raise Refused(pb.UNSHARED, "this system shares no memory without a name")
    try:
        # A path only, so that whatever it is, nothing happens to it before it was looked at.
        path = os.open(f"/proc/{segment.process}/fd/{segment.descriptor}", os.O_PATH | os.O_CLOEXEC)
        try:
            _require_ours(os.fstat(path), segment)
            descriptor = os.open(f"/proc/self/fd/{path}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(path)
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise Refused(pb.UNSHARED, "a segment whose size is not sealed")
            return mmap.mmap(descriptor, segment.size, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
    except OSError as error:
        told = f"segment {segment.descriptor} of process {segment.process} cannot be had here"
        raise Refused(pb.UNSHARED, f"{told}: {error.strerror or error}") from error


def _require_ours(found: os.stat_result, segment: pb.Segment) -> None:
    """Refuse a file that is not the segment that its owner describes."""
    for what, is_so in (
        ("no file", stat.S_ISREG(found.st_mode)),
        ("another user's", found.st_uid == os.getuid()),
        ("open to others", not found.st_mode & 0o077),
        ("a file with a name", found.st_nlink == 0),
        ("another file than was told", found.st_ino == segment.inode),
        (f"{found.st_size} bytes long, not {segment.size}", found.st_size == segment.size),
    ):
        if not is_so:
            raise Refused(pb.UNSHARED, f"what should be a segment is {what}")
