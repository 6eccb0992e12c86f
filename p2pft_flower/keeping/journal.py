"""A peer's files on its own disk: its journal, a JSON object a line, and its fine-tuned tail."""

from __future__ import annotations

import contextlib
import itertools
import logging
import mmap
import os
import resource
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from p2pft_flower.errors import Cause, DataError, P2PFTError
from p2pft_flower.keeping.folders import make_private, private, replacing
from p2pft_flower.keeping.lines import AnyLine, Run, read_line, written
from p2pft_flower.keeping.predictions import predictions_name, write_predictions

__all__ = [
    "Journal",
    "JournalError",
    "Life",
    "allow_journals",
    "by_run",
    "elapsed",
    "read_journal",
    "read_whole_lines",
]


_LONGEST = 2**28
"""Bytes of a line at most: in a run of 4096 peers with pooled data, a line has the whole graph."""

_OTHER_FILES = 512
"""Open files of a host at most, beside those of each peer."""

log = logging.getLogger("p2pft_flower")


class JournalError(P2PFTError):
    """A peer's journal or tail cannot be written; ``peer`` is the peer's number."""

    cause = Cause.OWN

    def __init__(self, peer: int, path: Path, error: Exception) -> None:
        self.peer = peer
        why = getattr(error, "strerror", None) or str(error)
        super().__init__(
            f"peer {peer}: {path} cannot be written: {why}: make room there, or set output-dir to a folder "
            "that can be written"
        )


class Journal:
    """One peer's ``peer-<i>.jsonl``: one JSON object a line (:mod:`p2pft_flower.keeping.lines`).

    Parameters
    ----------
    folder : Path
        The run's folder; made if need be.
    peer : int
        The peer.

    Raises
    ------
    JournalError
        If the folder cannot be made or the journal cannot be opened. Every method that writes raises it if
        the disk is full, read-only or broken.
    """

    def __init__(self, folder: Path, peer: int) -> None:
        self.peer = peer
        self.folder = folder / "peers"
        self.path = self.folder / f"peer-{peer}.jsonl"
        with self._on_disk(self.path):
            make_private(self.folder)
            _cut_torn_end(self.path)
            self._file: BinaryIO = open(self.path, "ab", opener=private)  # noqa: SIM115
        self._lock = threading.Lock()
        self._over = False

    def write(self, line: AnyLine) -> None:
        """Append a line and hand it to the operating system, so that a crash of this process keeps it.

        After :meth:`write_last`, lines are dropped: a gradient may still end after the host was stopped.
        """
        with self._lock:
            if not self._over:
                self._append(line)

    def write_last(self, line: AnyLine) -> bool:
        """Write the last line, from any thread; return False, and write none, if there is one already."""
        with self._lock:
            if self._over:
                return False
            self._over = True
            self._append(line)
            return True

    def _append(self, line: AnyLine) -> None:
        with self._on_disk(self.path):
            self._file.write(written(line))
            self._file.flush()

    @contextlib.contextmanager
    def _on_disk(self, path: Path) -> Iterator[None]:
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, SafetensorError) as error:
            raise JournalError(self.peer, path, error) from error

    def sync(self) -> None:
        """Bring all lines to disk, so that a crash of the machine keeps them."""
        with self._lock:
            if self._file.closed:
                return
            number = os.dup(self._file.fileno())
        try:  # a thread that writes meanwhile does not wait for the disk
            with self._on_disk(self.path):
                os.fsync(number)
        finally:
            os.close(number)

    def save_tail(
        self, tensors: Mapping[str, Any], metadata: Mapping[str, str], *, stopped: bool = False
    ) -> Path:
        """Write the peer's tail, ``peer-<i>.safetensors``, and return its path.

        Parameters
        ----------
        tensors : mapping of str to tensor
            The tensors by name: all of torch, or all of NumPy, for which torch is not imported.
        metadata : mapping of str to str
            The metadata of the file.
        stopped : bool
            Whether the peer did not come to its end; default False. Then the file is
            ``peer-<i>.stopped.safetensors``, and may not be on disk yet when this returns: the disk may be
            the reason why the peer stops.
        """
        if all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
            from safetensors import numpy as safetensors
        else:
            from safetensors import torch as safetensors  # type: ignore[no-redef]

        path = self.folder / f"peer-{self.peer}{'.stopped' if stopped else ''}.safetensors"
        with self._on_disk(path), replacing(path, on_disk=not stopped) as partial:
            safetensors.save_file(dict(tensors), partial, metadata=dict(metadata))
        return path

    def save_predictions(self, rows: Iterable[Sequence[str]]) -> Path:
        """Write the peer's ``peer-<i>.predictions.csv``, whose first row is the header; return its path."""
        path = self.folder / predictions_name(self.peer)
        with self._on_disk(path):
            return write_predictions(path, rows)

    def close(self) -> None:
        """Close the journal."""
        with self._lock:
            self._over = True
            try:
                self._file.close()
            except OSError as error:  # a line that the disk did not take: writing it has raised already
                log.warning("peer %d: the end of %s is not written: %s", self.peer, self.path, error)


def allow_journals(peers: int) -> None:
    """Raise this process's soft limit on open files if it is too low for the journals of ``peers`` peers.

    Systems often allow 1024 files, and the hard limit allows many more. Sockets of the peers count, too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OTHER_FILES + 4 * peers
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _cut_torn_end(path: Path) -> None:
    """Cut off a last line that a crash has torn, so that the next line begins a line of its own."""
    with (
        contextlib.suppress(FileNotFoundError),
        open(path, "rb+", opener=private) as file,
    ):
        if os.fstat(file.fileno()).st_size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                end = content.rfind(b"\n") + 1
            file.truncate(end)


def read_journal(path: Path) -> Iterator[AnyLine]:
    """Yield a journal's lines; a last line torn by a crash is left out.

    Raises
    ------
    DataError
        If the journal cannot be read, or a line is damaged or is no line of a journal; the message names file
        and line.
    """
    for line in _read(path):
        if isinstance(line, DataError):
            raise line
        yield line


def read_whole_lines(path: Path) -> tuple[list[AnyLine], int]:
    """Return the lines of a journal that can be read, and the number of the others, of which a warning tells.

    Raises
    ------
    DataError
        If the journal itself cannot be read.
    """
    told, odd = list[AnyLine](), list[DataError]()
    for line in _read(path):
        if isinstance(line, DataError):
            odd.append(line)
        else:
            told.append(line)
    if odd:
        more = f", and {len(odd) - 1} more lines of it" if odd[1:] else ""
        log.warning("left out of what is known of the past: %s%s", odd[0], more)
    return told, len(odd)


def _read(path: Path) -> Iterator[AnyLine | DataError]:
    """Yield a journal's lines, and in place of each damaged one the error."""
    try:
        with open(path, "rb", opener=private) as file:
            number = 0
            while text := file.readline(_LONGEST):
                number += 1
                where = f"{path}, line {number}"
                if not text.endswith(b"\n"):
                    if len(text) == _LONGEST:
                        yield DataError(f"{where}: longer than any line of a log")
                    return
                try:
                    yield read_line(text, where)
                except DataError as error:
                    yield error
    except OSError as error:
        raise DataError(f"{path}: the log cannot be read ({error.strerror or error})") from error


class Life(NamedTuple):
    """The lines of one life of a peer in its journal: of one start of the peer in a run.

    Attributes
    ----------
    run : Run
        The first line.
    lines : list of line
        The lines that follow it.
    """

    run: Run
    lines: list[AnyLine]


def by_run(lines: Iterable[AnyLine]) -> list[Life]:
    """Return a journal's lines, one :class:`Life` for each start of the peer; drop lines before the first."""
    lives: list[Life] = []
    for line in lines:
        if isinstance(line, Run):
            lives.append(Life(line, []))
        elif lives:
            lives[-1].lines.append(line)
    return lives


def elapsed(lines: Sequence[AnyLine]) -> list[float]:
    """Return the seconds from the first of some lines to each; a clock that was set back takes nothing away.

    What passed between two lines of which the second has the earlier time is not known, and counts as 0.
    """
    steps = (max(0.0, after.time - before.time) for before, after in itertools.pairwise(lines))
    return list(itertools.accumulate(steps, initial=0.0)) if lines else []
