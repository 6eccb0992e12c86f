"""The machine's cache: the folders of its stores of trunk outputs, their locks, and their limit.

`trunk_store.py` describes a store; here a store is a folder below ``home()/"cache"`` with a file ``in-use``,
on which every process that has the store open holds a shared lock, and whose mtime is the time of the last
use. Locks are ``flock``: the system frees them when their process ends in any way.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from p2pft_flower.errors import DataError
from p2pft_flower.resources import home

__all__ = [
    "DEFAULT_LIMIT",
    "StoreRecord",
    "cache_folder",
    "get_limit",
    "remove",
    "set_limit",
    "store_folder",
    "stores",
]

DEFAULT_LIMIT = 50_000_000_000
"""Bytes of all stores together if `set_limit` was never called."""

PATIENCE = 300.0
"""Longest wait for another process that makes no progress, in seconds."""
POLL = 0.01
"""Seconds between two checks of a lock that another process holds."""

INDEX, META, IN_USE = "index", "meta.json", "in-use"
INDEX_RECORD = 24
"""Bytes of a record in a store's index."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreRecord:
    """A store as ``p2pft cache list`` shows it.

    Attributes
    ----------
    folder : Path
        The store's folder; the last part is the store's name.
    about : mapping of str to str, or None
        The facts with which the store was made; None if ``meta.json`` cannot be read.
    rows : int
        Number of records in the store's index.
    bytes : int
        Size of all files of the store.
    last_used : float
        Time of the last use, in seconds since the epoch.
    in_use : bool
        Whether a process has the store open.
    dtypes : tuple of str
        The types of the numbers in a row, each once; empty if ``meta.json`` cannot be read. The trunk may
        have been run in another type (``about["trunk-dtype"]``).
    """

    folder: Path
    about: Mapping[str, str] | None
    rows: int
    bytes: int
    last_used: float
    in_use: bool
    dtypes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name


def cache_folder() -> Path:
    """Return the folder of this machine's stores."""
    return home() / "cache"


def store_folder(digest_parts: Mapping[str, str]) -> Path:
    """Return the folder of a store, named by a digest of all ``digest_parts`` (weights, path, dtypes, …)."""
    text = json.dumps(dict(digest_parts), sort_keys=True)
    return cache_folder() / hashlib.sha256(text.encode()).hexdigest()[:16]


def stores() -> list[StoreRecord]:
    """Return the machine's stores, the least recently used first.

    Raises
    ------
    DataError
        When the cache's folder cannot be read.
    """
    found = []
    with telling(cache_folder()):
        for in_use in cache_folder().glob(f"*/{IN_USE}"):
            try:
                if not in_use.is_symlink():  # a folder with a link there is no store, and none is made in it
                    found.append(_record(in_use))
            except FileNotFoundError:  # another process has removed it since
                continue
    return sorted(found, key=lambda record: (record.last_used, record.name))


def _record(in_use: Path) -> StoreRecord:
    folder = in_use.parent
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    meta = read_meta(folder / META) or {}
    about, fields = meta.get("about"), meta.get("fields")
    rows = [field for field in fields if isinstance(field, dict)] if isinstance(fields, list) else []
    descriptor = os.open(in_use, os.O_RDONLY | os.O_NONBLOCK)
    try:
        free = try_lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)
    return StoreRecord(
        folder=folder,
        about=about if isinstance(about, dict) else None,
        rows=sizes.get(INDEX, 0) // INDEX_RECORD,
        bytes=sum(sizes.values()),
        last_used=in_use.stat().st_mtime,
        in_use=not free,
        dtypes=tuple(dict.fromkeys(str(field.get("dtype")) for field in rows)),
    )


def read_meta(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in ``meta.json``; None if the file is missing or holds no JSON object."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return meta if isinstance(meta, dict) else None


def remove(folder: Path) -> bool:
    """Remove a store unless a process has it open; return whether the store is gone.

    Raises
    ------
    DataError
        When the store's files cannot be removed.
    """
    path = folder / IN_USE
    with telling(folder):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return True
        try:
            if not try_lock(descriptor, fcntl.LOCK_EX):
                return False
            # The index first: without it the rest is no store. The lock last: until then it cannot be opened.
            others = [file for file in folder.iterdir() if file.name not in (INDEX, IN_USE)]
            for file in (folder / INDEX, *others, path):
                file.unlink(missing_ok=True)
            try:
                folder.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):  # a new store has begun there
                    raise
            return True
        finally:
            os.close(descriptor)


def get_limit() -> int:
    """Return the limit of all stores together, in bytes.

    Raises
    ------
    DataError
        When the file of the limit cannot be read, or holds no number of bytes.
    """
    path = cache_folder() / "limit"
    with telling(cache_folder()):
        try:
            text = path.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise DataError(f"{path}: {text[:40]!r} is no number of bytes; set it with 'p2pft cache limit 50GB'")
    return int(text)


def set_limit(limit: int) -> None:
    """Set the limit of all stores together, in bytes; it is applied when a store is next filled.

    Raises
    ------
    DataError
        When the limit cannot be written.
    """
    path = cache_folder() / "limit"
    with telling(cache_folder()):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(f"{limit}\n", encoding="utf-8")
        partial.replace(path)


def make_room(needed: int) -> None:
    """Remove stores that are not in use, least recently used first, until ``needed`` more bytes fit.

    If they still do not fit, a warning says so.

    Raises
    ------
    DataError
        When the cache's folder or the limit cannot be read, or a store cannot be removed.
    """
    limit, records = get_limit(), stores()
    total = sum(record.bytes for record in records) + needed
    for record in records:
        if total <= limit:
            return
        if remove(record.folder):
            total -= record.bytes
            log.info(
                "cache: removed the store %s (%s, %s), least recently used, to keep the limit of %s",
                record.name,
                (record.about or {}).get("model", "unreadable"),
                decimal(record.bytes),
                decimal(limit),
            )
    if total > limit:
        log.warning(
            "cache: %s more make %s, above the limit of %s (%s), and what else is there is in use; going on. "
            "'p2pft cache limit' sets another",
            decimal(needed),
            decimal(total),
            decimal(limit),
            cache_folder() / "limit",
        )


def try_lock(descriptor: int, mode: int) -> bool:
    """Lock a file in ``mode`` (``LOCK_SH``, ``LOCK_EX``); return False if another lock forbids it."""
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(descriptor: int, mode: int, path: Path) -> None:
    """Lock the file ``path`` in ``mode`` (``LOCK_SH`` or ``LOCK_EX``), after a wait if need be.

    Raises
    ------
    DataError
        When another process has held its lock for :data:`PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE
    while not try_lock(descriptor, mode):
        if time.monotonic() > deadline:
            raise DataError(
                f"{path}: another process has held its lock for {PATIENCE:.0f} s; is one suspended? "
                "Continue or end it"
            )
        time.sleep(POLL)


def hold(folder: Path) -> int:
    """Make a store's folder if it is missing; return a descriptor whose lock shows that the store is in use.

    Raises
    ------
    OSError
        When the file ``in-use`` cannot be opened or made.
    DataError
        When a link is in the file's place, or another process has locked the file for :data:`PATIENCE`.
    """
    path = folder / IN_USE
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # the folder was removed between the two lines
            continue
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise DataError(f"{path}: a link in the place of a file of the cache's own; remove it") from None
        try:
            lock(descriptor, fcntl.LOCK_SH, path)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:  # the store was removed while this process waited for the lock
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextmanager
def telling(folder: Path) -> Iterator[None]:
    """Turn an OSError in the ``with`` block into a DataError that names ``folder`` and the remedy."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder}: the cache cannot be used ({error.strerror or error}). Make room with "
            "'p2pft cache clear', bound it with 'p2pft cache limit', or let P2PFT_HOME name another"
        ) from error
