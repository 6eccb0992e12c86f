"""The store of trunk outputs: computed once an image, memory-mapped, shared by all processes of the machine.

A *store* is one folder and belongs to one frozen trunk (weights, preprocessing, dtypes, path). A *row* of a
store belongs to one image, and the row's key is a digest of the image's content. So partitions, seeds, runs
and peers share rows, and only images that no run has seen are computed.

==============  ========================================================================================
``values``      the rows one after the other, row i at byte i · (bytes of a row)
``index``       a record of 24 bytes a row: 16 of key, 8 of checksum; ``flock`` on it is the store's lock
``meta.json``   schema, fields of a row, and facts for people
``in-use``      see `p2pft_flower.learning.store.cache`
``claim-*``     the keys of a batch being computed; locked while the process that computes it lives
==============  ========================================================================================

A row is written before its record, at the place that the number of whole records gives. So the remains of a
process that dies (part of a batch, part of a record) are no row, and the next writer overwrites them. The
checksum detects a row that the disk damaged or never wrote; every process verifies a row before it first uses
the row. A row that does not match its checksum is computed again and appended, and of two records with one
key the later counts. So nothing needs an ``fsync``, and a mapped row never changes.
"""

from __future__ import annotations

import fcntl
import json
import logging
import mmap
import os
import struct
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from p2pft_flower.errors import DataError
from p2pft_flower.learning.store import cache
from p2pft_flower.learning.store.cache import INDEX, META

__all__ = ["SCHEMA", "Field", "Rows", "Store"]

SCHEMA = "p2pft.cache/1"
KEY_BYTES = 16
ALIGNMENT = 64
"""Fields start at multiples of this number of bytes, so that no two fields share a cache line."""

_VALUES, _CLAIM = "values", "claim-"
_RECORD = struct.Struct(f"<{KEY_BYTES}sQ")  # key, checksum

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Field:
    """One part of every row: an array.

    Attributes
    ----------
    name : str
        The field's name, e.g. ``"tokens"``.
    shape : tuple of int
        The array's shape for one image.
    dtype : str
        NumPy's name of the array's type, e.g. ``"float16"``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


class Store:
    """The rows of one trunk; open until `close`, or until the store and its `Rows` are garbage.

    Any number of processes, and of threads with a `Store` each, may fill one folder at the same time.

    Parameters
    ----------
    folder : Path
        The store's folder, from `cache.store_folder`; made if missing.
    fields : sequence of Field
        The parts of a row, in this order.
    about : mapping of str to str
        Facts for ``p2pft cache list``: the table shows ``model``, ``path`` and the dtypes, the JSON all
        facts. They are always the same for one folder: pass the argument of `cache.store_folder`.

    Raises
    ------
    DataError
        When the folder holds other fields or facts or another schema, or cannot be read or written.
    """

    def __init__(self, folder: Path, fields: Sequence[Field], about: Mapping[str, str]) -> None:
        self.folder, self.fields, self.about = folder, tuple(fields), dict(about)
        self._dtype = _row_dtype(self.fields)
        self._keys: list[bytes] = []  # row ↦ key, as far as the index was read
        self._checksums: list[int] = []
        self._latest: dict[bytes, int] = {}  # key ↦ its latest row
        self._verified: dict[bytes, int] = {}  # key ↦ a row whose checksum was right
        with cache.telling(folder):
            self._release = weakref.finalize(self, os.close, cache.hold(folder))
            try:
                self._agree_on_meta()
            except BaseException:
                self.close()
                raise

    @property
    def row_bytes(self) -> int:
        """Size of a row on the disk, in bytes."""
        return self._dtype.itemsize

    def close(self) -> None:
        """Allow other processes to remove the store; the rows that `fill` returned stay readable."""
        self._release()

    def fill(
        self,
        keys: Sequence[bytes],
        compute: Callable[[list[int]], Sequence[npt.NDArray[Any]]],
        *,
        batch: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> Rows:
        r"""Return the rows of ``keys``; compute missing rows, or wait for other processes to compute them.

        Parameters
        ----------
        keys : sequence of bytes
            Digests of the images' content, 16 bytes each; a key may occur several times.
        compute : callable
            Takes positions in ``keys`` and returns an array a field, each (len(positions), \*shape). Called
            with at most ``batch`` positions, in ascending order, and for each key at most once.
        batch : int
            Largest number of images in a call of ``compute``, ≥ 1.
        progress : callable, optional
            Called with (done, total) of the rows that were missing at the start, after each batch that this
            process or another one has computed.

        Raises
        ------
        DataError
            When the folder cannot be read or written, or a finite value is too large for its field's dtype.
        ValueError
            When ``compute`` returns another number of arrays or other shapes, a key is not 16 bytes long, or
            ``batch`` < 1.
        """
        missing: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            if len(key) != KEY_BYTES:
                raise ValueError(f"key {position} has {len(key)} bytes, not {KEY_BYTES}")
            missing.setdefault(key, position)
        if batch < 1:
            raise ValueError(f"batch = {batch}: must be at least 1")
        with cache.telling(self.folder):
            os.utime(self.folder / cache.IN_USE)
            with self._index() as index:
                self._read(index)
            seen = len(self._keys)
            self._strike_good(missing, missing)
            if missing:
                cache.make_room(len(missing) * self.row_bytes)
        total, alive = len(missing), time.monotonic()
        while missing:
            claim, reported = None, len(missing)
            with cache.telling(self.folder):
                with self._index() as index:
                    self._read(index)
                    published = [key for key in self._keys[seen:] if key in missing]
                    seen = len(self._keys)
                    if not published:
                        claim = self._claim(
                            missing, batch, ignore_others=time.monotonic() - alive > cache.PATIENCE
                        )
                self._strike_good(missing, published)
            if claim is not None:
                with claim:
                    self._publish(claim.keys, compute([missing[key] for key in claim.keys]))
                for key in claim.keys:
                    del missing[key]
            if len(missing) < reported:
                alive = time.monotonic()
                if progress is not None:
                    progress(total - len(missing), total)
            elif not published:
                time.sleep(cache.POLL)  # other processes compute all that is missing
        with cache.telling(self.folder):
            return Rows(self, [self._verified[key] for key in keys])

    def _agree_on_meta(self) -> None:
        """Write ``meta.json``, or compare an existing one with this store's fields and facts.

        Raises
        ------
        DataError
            When the file differs, cannot be read, or is missing although there are rows.
        """
        path = self.folder / META
        mine = {"schema": SCHEMA, "fields": [asdict(field) for field in self.fields], "about": self.about}
        mine = json.loads(json.dumps(mine))  # tuples become lists, as in the file
        remedy = f"remove it with 'p2pft cache clear {self.folder.name}'"
        with self._index() as index:
            if not path.exists():
                if os.fstat(index).st_size:
                    raise DataError(f"{path}: the file is missing, its rows have no meaning; {remedy}")
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(mine, indent=2), encoding="utf-8")
                partial.replace(path)
                return
        found = cache.read_meta(path)
        if found is None:
            raise DataError(f"{path}: no readable JSON; {remedy}")
        for name, wanted in mine.items():
            if found.get(name) != wanted:
                raise DataError(f"{path}: {name} is {found.get(name)}, expected {wanted}; {remedy}")

    @contextmanager
    def _index(self) -> Iterator[int]:
        """Open the index under an exclusive lock, and yield the descriptor."""
        path = self.folder / INDEX
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            cache.lock(descriptor, fcntl.LOCK_EX, path)
            yield descriptor
        finally:
            fcntl.flock(
                descriptor, fcntl.LOCK_UN
            )  # if the descriptor were only closed, a process forked meanwhile would keep the lock
            os.close(descriptor)

    def _read(self, index: int) -> None:
        """Read the whole records that were appended since the last reading.

        Raises
        ------
        DataError
            When the index has lost records.
        """
        have, there = len(self._keys), os.fstat(index).st_size // _RECORD.size
        if there < have:
            raise DataError(
                f"{self.folder / INDEX}: it had {have} records and now has {there}, though it is in use; "
                f"end the runs that use it, then 'p2pft cache clear {self.folder.name}'"
            )
        records = os.pread(index, (there - have) * _RECORD.size, have * _RECORD.size)
        for row, (key, checksum) in enumerate(_RECORD.iter_unpack(records), start=have):
            self._keys.append(key)
            self._checksums.append(checksum)
            self._latest[key] = row

    def _strike_good(self, missing: dict[bytes, int], candidates: Iterable[bytes]) -> None:
        """Remove from ``missing`` the candidates that have a row with the right checksum."""
        found = [key for key in candidates if key in self._latest]
        self._verify({key: self._latest[key] for key in found if key not in self._verified})
        for key in found:
            if key in self._verified:
                missing.pop(key, None)

    def _verify(self, rows: Mapping[bytes, int]) -> None:
        """Add to the verified rows those of ``rows`` (by key) that match their checksum; log the others."""
        if not rows:
            return
        values = _map(self.folder / _VALUES)
        if values is None:
            whole, size = np.empty((0, self.row_bytes), np.uint8), 0
        else:
            size = len(values) // self.row_bytes
            whole = np.frombuffer(values, np.uint8, size * self.row_bytes).reshape(size, self.row_bytes)
        damaged = []
        for key, row in rows.items():
            if row < size and _checksum(key, whole[row]) == self._checksums[row]:
                self._verified[key] = row
            else:
                damaged.append(row)
        if damaged:
            shown = ", ".join(map(str, damaged[:8])) + (", …" if len(damaged) > 8 else "")
            log.warning(
                "%s: %d damaged rows (%s) do not match their checksums; they are computed again",
                self.folder / _VALUES,
                len(damaged),
                shown,
            )

    def _claim(self, missing: Mapping[bytes, int], batch: int, *, ignore_others: bool) -> _Claim | None:
        """Claim the first ``batch`` missing keys that no living process computes; None if all are claimed.

        With ``ignore_others``, claims of other processes do not count. The index must be locked: claims are
        made one at a time.
        """
        taken: set[bytes] = set()
        for path in self.folder.glob(f"{_CLAIM}*"):
            taken.update(_keys_of_claim(path))
        if ignore_others and not taken.isdisjoint(missing):
            log.warning(
                "%s: other processes hold %d images for %.0f s without a result; computing them here",
                self.folder,
                len(taken.intersection(missing)),
                cache.PATIENCE,
            )
            taken = set()
        keys = list(islice((key for key in missing if key not in taken), batch))
        return _Claim(self.folder, keys) if keys else None

    def _publish(self, keys: Sequence[bytes], arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Append the rows of ``keys``, made of one array a field, and then their records."""
        rows = self._pack(arrays, len(keys))
        records = b"".join(
            _RECORD.pack(key, _checksum(key, row)) for key, row in zip(keys, rows, strict=True)
        )
        with cache.telling(self.folder), self._index() as index:
            self._read(index)
            first = len(self._keys)
            values = os.open(self.folder / _VALUES, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                _write(values, rows, first * self.row_bytes)
            finally:
                os.close(values)
            _write(index, np.frombuffer(records, np.uint8), first * _RECORD.size)
            self._read(index)
            self._verified.update(zip(keys, range(first, first + len(keys)), strict=True))

    def _pack(self, arrays: Sequence[npt.NDArray[Any]], count: int) -> npt.NDArray[np.uint8]:
        """Return the bytes of ``count`` rows, (count, row_bytes), made of one array a field.

        Raises
        ------
        ValueError
            When the number of arrays or a shape is wrong.
        DataError
            When a finite value is too large for its field's dtype.
        """
        if len(arrays) != len(self.fields):
            raise ValueError(f"{len(arrays)} arrays were computed for {len(self.fields)} fields")
        rows = np.zeros(count, self._dtype)  # zeros between the fields, too: rows are compared by their bytes
        for field, array in zip(self.fields, arrays, strict=True):
            stored = rows[field.name]
            if array.shape != stored.shape:
                raise ValueError(f"field {field.name!r} has shape {array.shape}, expected {stored.shape}")
            try:
                with np.errstate(over="raise"):  # a finite value became infinite; infinities may stay
                    np.copyto(stored, array, casting="same_kind")
            except FloatingPointError as error:
                largest = np.abs(array).max()
                raise DataError(
                    f"{self.folder}: field {field.name!r} has values up to {largest:.4g}, too large for "
                    f"{field.dtype}: set cache-dtype = float32"
                ) from error
        return rows.view(np.uint8).reshape(count, self.row_bytes)


class Rows:
    """Rows of a store, in the order of the keys that were asked for; read from the memory map.

    Parameters
    ----------
    store : Store
        The store of the rows, which stays open as long as this object lives.
    rows : sequence of int
        The rows' numbers in the store.
    """

    def __init__(self, store: Store, rows: Sequence[int]) -> None:
        self._store = store
        self._rows = np.array(rows, np.int64)
        self._dtype = store._dtype
        self._map = _map(store.folder / _VALUES) if rows else None
        if self._map is None:
            values = np.empty(0, self._dtype)
        else:
            values = np.frombuffer(self._map, self._dtype, len(self._map) // self._dtype.itemsize)
        self._fields = tuple(values[field.name] for field in store.fields)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Size of these rows in the store, in bytes; a row that occurs several times counts once."""
        return len(np.unique(self._rows)) * self._dtype.itemsize

    def gather(self, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], ...]:
        r"""Return the rows at (B,) ``positions``: an array (B, \*shape) a field, a contiguous copy."""
        rows = self._rows[positions]
        return tuple(field[rows] for field in self._fields)


class _Claim:
    """A batch that this process computes: a locked file with its keys, removed at the end of ``with``."""

    def __init__(self, folder: Path, keys: list[bytes]) -> None:
        self.keys = keys
        self._path = folder / f"{_CLAIM}{uuid.uuid4().hex}"
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fcntl.flock(
                self._descriptor, fcntl.LOCK_EX
            )  # no other process knows the file: the index is locked
            _write(self._descriptor, np.frombuffer(b"".join(keys), np.uint8), 0)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> _Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)


def _keys_of_claim(path: Path) -> list[bytes]:
    """Return the keys of a claim; if the claiming process has ended, remove the file and return no key."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # released since the folder was listed
        return []
    try:
        if cache.try_lock(descriptor, fcntl.LOCK_SH):
            path.unlink(missing_ok=True)
            return []
        keys = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        return [keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)]
    finally:
        os.close(descriptor)


def _row_dtype(fields: Sequence[Field]) -> np.dtype[np.void]:
    """Return the structured dtype of a row, with aligned fields."""
    offsets, end = [], 0
    for field in fields:
        offsets.append(end)
        size = np.dtype((field.dtype, field.shape)).itemsize
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return np.dtype(
        {
            "names": [field.name for field in fields],
            "formats": [(field.dtype, field.shape) for field in fields],
            "offsets": offsets,
            "itemsize": end,
        }
    )


def _checksum(key: bytes, row: npt.NDArray[np.uint8]) -> int:
    """Return the hash of a row's bytes, seeded with the row's key: it is right for this image's row alone."""
    return xxhash.xxh3_64_intdigest(row.data, seed=int.from_bytes(key[:8], "little"))


def _write(descriptor: int, data: npt.NDArray[np.uint8], offset: int) -> None:
    left = data.reshape(-1).data
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def _map(path: Path) -> mmap.mmap | None:
    """Return a file's memory map for reading; None if the file is missing or empty."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) if os.fstat(descriptor).st_size else None
    finally:
        os.close(descriptor)
