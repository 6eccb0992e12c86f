"""A checkpoint: all that a peer needs to go on from an iteration, in one file; a torn one is recognised.

``<output_dir>/peers/peer-<i>.checkpoints/iteration-<k>.safetensors`` holds the vectors of the method's state
as tensors, and in its metadata one JSON document with the rest, and a digest of document and tensors. The
digest shows damage, not malice: a process that can write to the folder can also write another digest.

Files are written beside their place, brought to disk and renamed: a crash leaves the earlier files whole.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import xxhash

from p2pft_flower.algorithms.compression import Memory
from p2pft_flower.errors import Cause, DataError, P2PFTError
from p2pft_flower.keeping.about import PeerAbout, ServerAbout
from p2pft_flower.keeping.folders import replacing, require_regular
from p2pft_flower.keeping.kept import Best, BestFacts
from p2pft_flower.keeping.states import as_number, as_text, most_bytes, state_fields
from p2pft_flower.typed import MAX_PEERS, Count, PeerNumber, decoded, encoded

__all__ = [
    "SCHEMA",
    "SERVER",
    "Checkpoint",
    "CheckpointError",
    "checkpoint_file",
    "checkpoint_files",
    "checkpoint_folder",
    "forget",
    "forget_torn",
    "read_checkpoint",
    "restore_state",
    "write_checkpoint",
]

SCHEMA = "p2pft.checkpoint/2"

SERVER = -1
"""Stands for a peer's number: the server of one of Flower's strategies."""

_DOCUMENT, _DIGEST = "p2pft", "digest"
"""The keys of the file's metadata."""

_NAME = re.compile(r"iteration-(0|[1-9][0-9]*)\.safetensors")

log = logging.getLogger("p2pft_flower")


class CheckpointError(P2PFTError):
    """A checkpoint cannot be written; ``peer`` is the peer's number, or :data:`SERVER`."""

    cause = Cause.OWN

    def __init__(self, peer: int, message: str) -> None:
        self.peer = peer
        super().__init__(f"{_who(peer)}: {message}")


def _who(peer: int) -> str:
    return "the server" if peer == SERVER else f"peer {peer}"


class _Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of a :class:`Checkpoint` but its arrays."""

    run: str
    peer: Annotated[int, msgspec.Meta(ge=SERVER, lt=MAX_PEERS)]
    iteration: Count
    about: PeerAbout | ServerAbout
    position: dict[str, Any]
    bytes_sent: Count
    seconds: dict[str, float]
    stopped: bool
    view: Count
    live: tuple[PeerNumber, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """All fields of a :class:`Checkpoint` but its arrays, by name."""
        return {name: getattr(self, name) for name in _Facts.__struct_fields__}


class Checkpoint(_Facts, frozen=True, kw_only=True):
    """The content of one peer's file.

    Attributes
    ----------
    run : str
        The id of the run that wrote the checkpoint.
    peer : int
        The peer, or :data:`SERVER`.
    iteration : int
        Number of iterations that are done.
    about : PeerAbout or ServerAbout
        Facts that must be alike in a run that goes on from here.
    position : dict
        Position in the peer's data order, as its objective gave it; values for JSON.
    bytes_sent : int
        Payload bytes that the peer has sent along its out-edges so far.
    seconds : dict of str to float
        The peer's seconds so far by activity: ``gradient``, ``exchange``, ``evaluation``.
    state : dict
        The method's state by field: arrays, numbers, None (:mod:`p2pft_flower.keeping.states`).
    memories : dict of int to Memory
        The memories of the payloads' codec, by number of the exchange in a period; empty without a codec.
    stopped : bool
        Whether the run was stopped or failed after this iteration: only an unfinished iteration followed.
    view : int
        Number of the view that the peer was in.
    live : tuple of int
        The peers of the view, ascending.
    best : Best or None
        The best θ by the evaluations that were decided on; None without ``keep = best:…``.
    counts : (n, 2 + C) array or None
        The table of all peers' numbers of images by class; None without ``class-weights``.
    """

    state: dict[str, Any]
    memories: dict[int, Memory] = {}
    stopped: bool = False
    view: Count = 0
    live: tuple[PeerNumber, ...] = ()
    best: Best | None = None
    counts: Any = None


_MEMORY = "memory."
"""Beginning of the keys of a codec's tensors; a field of a state has no dot."""

_BEST = "best.theta"
"""The key of the best θ."""

_COUNTS = "class.counts"
"""The key of the table of numbers of images."""

_MOST_COUNTS = 2**30
"""The most bytes of that table, which depends on peers and classes, and not on θ."""


def checkpoint_folder(output_dir: Path, peer: int) -> Path:
    """Return the folder of a peer's (or :data:`SERVER`'s) checkpoints, in the run's folder ``output_dir``."""
    if peer == SERVER:
        return output_dir / "server.checkpoints"
    return output_dir / "peers" / f"peer-{peer}.checkpoints"


def checkpoint_file(folder: Path, iteration: int) -> Path:
    """Return the path of the file of ``iteration`` in a :func:`checkpoint_folder`."""
    return folder / f"iteration-{iteration}.safetensors"


def checkpoint_files(folder: Path) -> dict[int, Path]:
    """Return the paths in a peer's :func:`checkpoint_folder` by iteration, ascending; no file is read.

    A folder that is not there has no files.

    Raises
    ------
    DataError
        If the folder cannot be read.
    """
    try:
        found = {int(m[1]): p for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)) is not None}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{folder}: the checkpoints cannot be read ({error.strerror})") from error
    return dict(sorted(found.items()))


def write_checkpoint(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write ``checkpoint`` into ``folder`` and return the file's path, once the file is on disk.

    Parameters
    ----------
    checkpoint : Checkpoint
        The checkpoint, with a state that :func:`~p2pft_flower.keeping.states.state_fields` has returned.
    folder : Path
        The peer's folder; made if need be.

    Raises
    ------
    CheckpointError
        If the file cannot be written, as on a full disk or into a read-only folder. Files of other iterations
        stay. If the disk failed only when it should keep the file's name, the new file may be there, whole.
    """
    path = checkpoint_file(folder, checkpoint.iteration)
    try:
        tensors, document = _packed(checkpoint)
        with replacing(path) as partial, partial.open("wb") as file:
            file.write(_header(document, tensors))
            for tensor in tensors.values():
                file.write(tensor.reshape(-1).view(np.uint8).data)
    except OSError as error:
        raise CheckpointError(
            checkpoint.peer,
            f"the checkpoint of iteration {checkpoint.iteration} cannot be written: "
            f"{error.strerror or error} ({path}). Those of other iterations are untouched. "
            "Make room there, or make the folder writable, and resume the run; or choose another output-dir; "
            "checkpoint-every = -1 does without checkpoints",
        ) from error
    return path


_DTYPES = {"f": "F", "i": "I", "u": "U"}
"""Letters of safetensors for NumPy's kinds of numbers; truth values are ``BOOL``."""


def _header(document: str, tensors: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Return the beginning of a safetensors file, since the library's own writer copies all tensors twice."""
    entries: dict[str, Any] = {
        "__metadata__": {_DOCUMENT: document, _DIGEST: _digest(document, tensors)},
    }
    end = 0
    for name, tensor in tensors.items():
        kind = tensor.dtype.kind
        dtype = "BOOL" if kind == "b" else f"{_DTYPES[kind]}{8 * tensor.itemsize}"
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = encoded(entries)
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


class _Document(_Facts, frozen=True, kw_only=True, omit_defaults=True):
    """The document in the metadata: all of a :class:`Checkpoint` but its arrays.

    Attributes
    ----------
    fields : tuple of str
        The names of the state's fields, in order.
    scalars : tuple of str
        The fields whose tensors are NumPy's scalars.
    values : dict
        The fields without a tensor: numbers as texts, so that reading gives the very same numbers.
    best : BestFacts or None
        All of the best θ but its tensor; None, and then not written, without ``keep = best:…``.
    """

    schema: str
    fields: tuple[str, ...]
    scalars: tuple[str, ...]
    values: dict[str, bool | str | None]
    best: BestFacts | None = None


class _Schema(msgspec.Struct, frozen=True):
    """The fields that a document of any version has."""

    schema: str


def _packed(checkpoint: Checkpoint) -> tuple[dict[str, np.ndarray[Any, Any]], str]:
    """Return the tensors and the document of a checkpoint's file."""
    arrays = {k: v for k, v in checkpoint.state.items() if isinstance(v, (np.ndarray, np.generic))}
    document = _Document(
        schema=SCHEMA,
        fields=tuple(checkpoint.state),
        scalars=tuple(k for k, v in arrays.items() if isinstance(v, np.generic)),
        values={k: as_text(v) for k, v in checkpoint.state.items() if k not in arrays},
        best=None if checkpoint.best is None else checkpoint.best.facts,
        **checkpoint.facts,
    )
    if checkpoint.best is not None and checkpoint.best.theta is not None:
        arrays[_BEST] = checkpoint.best.theta
    if checkpoint.counts is not None:
        arrays[_COUNTS] = checkpoint.counts
    for phase, memory in checkpoint.memories.items():
        arrays |= {f"{_MEMORY}{phase}.{part}": vector for part, vector in memory._asdict().items()}
    # Little-endian, as the format wants it; the largest items first, so that all of them are aligned.
    tensors = {
        k: np.ascontiguousarray(v, v.dtype.newbyteorder("<")).reshape(np.shape(v))
        for k, v in sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    }
    return tensors, encoded(document).decode()


def _digest(document: str, tensors: Mapping[str, np.ndarray[Any, Any]]) -> str:
    digest = xxhash.xxh3_128(document.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape} ".encode())
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_checkpoint(path: Path, run: str | None = None, q: int | None = None) -> tuple[Checkpoint, str]:
    """Return the checkpoint in a file, and its digest.

    The sizes in the file's header are compared with the file's size, and with ``q``, before memory is taken
    for the tensors.

    Parameters
    ----------
    path : Path
        The file, in a peer's :func:`checkpoint_folder`.
    run : str, optional
        The id of the run that must have written the file; default any run.
    q : int, optional
        The length that θ must have; default any length.

    Raises
    ------
    DataError
        If the file cannot be read, is torn, altered or of another version, is of another peer or iteration
        than its place says, or of another run or length of θ than asked for; the message names the file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        require_regular(path)
        with safe_open(path, framework="np") as file:  # compares the sizes of header, tensors and file
            told = file.metadata() or {}
            document = _document(told.get(_DOCUMENT, ""), path)
            if q is not None:
                _refuse_sizes({name: file.get_slice(name).get_shape() for name in file.keys()}, q, path)  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        digest = _digest(told[_DOCUMENT], tensors)
        state, memories, best = _state(document, tensors), _memories(tensors), _best(document, tensors)
        counts = _counts(tensors)
    except OSError as error:
        raise DataError(f"{path}: the checkpoint cannot be read ({error.strerror or error})") from error
    except DataError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise DataError(
            f"{path}: torn or altered, no checkpoint ({type(error).__name__}: {error})"
        ) from error
    if told.get(_DIGEST) != digest:
        raise DataError(f"{path}: torn or altered, its digest is not that of its content")
    named = _NAME.fullmatch(path.name)
    if named is None or (document.peer, document.iteration) != (_peer_of(path), int(named[1])):
        raise DataError(
            f"{path}: it is {_who(document.peer)}'s checkpoint of iteration {document.iteration}, out of its "
            "place"
        )
    if run is not None and document.run != run:
        raise DataError(f"{path}: it is of run {document.run}, not of run {run}")
    return Checkpoint(**document.facts, state=state, memories=memories, best=best, counts=counts), digest


def _document(text: str, path: Path) -> _Document:
    where = f"{path}: torn or altered, no checkpoint"
    schema = decoded(text, _Schema, where).schema
    if schema != SCHEMA:
        raise DataError(f"{path}: schema {schema!r}, this version reads {SCHEMA!r}")
    document = decoded(text, _Document, where)
    if (document.peer == SERVER) != isinstance(document.about, ServerAbout):
        raise DataError(f"{where}: it is {_who(document.peer)}'s - at `$.about.of`")
    return document


def _refuse_sizes(shapes: Mapping[str, Sequence[int]], q: int, path: Path) -> None:
    if (theta := shapes.get("theta")) is not None and list(theta) != [q]:
        raise DataError(f"{path}: θ is {tuple(theta)} in the checkpoint, ({q},) here: model or tune differs")
    table = 8 * math.prod(shapes.get(_COUNTS, ()))
    if table > _MOST_COUNTS:
        raise DataError(f"{path}: no table of images: it claims {table} bytes, of {_MOST_COUNTS} at most")
    sizes = {name: 8 * math.prod(shape) for name, shape in shapes.items() if name != _COUNTS}
    # A codec's memories may be as many as a period has exchanges.
    most = most_bytes(q)
    claimed = sum(n for name, n in sizes.items() if name != _BEST and not name.startswith(_MEMORY))
    claimed = max(claimed, *sizes.values())
    if claimed > most:
        raise DataError(f"{path}: no state of a method: it claims {claimed} bytes, of {most} at most")


def _state(document: _Document, tensors: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {k: (v[()] if k in document.scalars else v) for k, v in tensors.items()}
    values |= {k: as_number(v) for k, v in document.values.items()}
    return {k: values[k] for k in document.fields}


def _memories(tensors: Mapping[str, np.ndarray[Any, Any]]) -> dict[int, Memory]:
    names = [name.removeprefix(_MEMORY).split(".") for name in tensors if name.startswith(_MEMORY)]
    phases = sorted({int(phase) for phase, _ in names})
    memories = {
        phase: Memory(**{part: tensors[f"{_MEMORY}{phase}.{part}"] for part in Memory._fields})
        for phase in phases
    }
    for phase, memory in memories.items():
        # A payload may have several vectors of θ's length.
        numbers, q = memory.known.size, tensors["theta"].size
        if any(v.shape != (numbers,) or v.dtype != np.float64 for v in memory) or numbers % q or not numbers:
            raise ValueError(f"the memory of exchange {phase} is not of θ's length, in float64")
    return memories


def _best(document: _Document, tensors: Mapping[str, np.ndarray[Any, Any]]) -> Best | None:
    if (told := document.best) is None:
        return None
    theta, like = tensors.get(_BEST), tensors["theta"]
    if theta is not None and (theta.shape, theta.dtype, told.iteration >= 0) != (
        like.shape,
        like.dtype,
        True,
    ):
        raise ValueError("its best θ is not of θ's length and type, or of no iteration")
    if told.iteration > told.decided:
        raise ValueError(f"it keeps iteration {told.iteration}, and has decided up to {told.decided}")
    return Best(told.decided, told.iteration, told.score, theta)


def _counts(tensors: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any] | None:
    table = tensors.get(_COUNTS)
    if table is not None and (table.ndim != 2 or table.dtype != np.float64 or not np.isfinite(table).all()):
        raise ValueError("its table of numbers of images is no table of numbers")
    return table


def _peer_of(path: Path) -> int | None:
    if path.parent.name == "server.checkpoints":
        return SERVER
    found = re.fullmatch(r"peer-([0-9]+)\.checkpoints", path.parent.name)
    return int(found[1]) if found is not None else None


def forget(folder: Path, iterations: Sequence[int]) -> None:
    """Remove a peer's checkpoints of ``iterations``; a file that cannot be removed stays, with a warning."""
    _remove((checkpoint_file(folder, k) for k in iterations), "a checkpoint that is no longer needed")


def forget_torn(folder: Path) -> None:
    """Remove files that a killed process had begun; a file that cannot be removed stays, with a warning."""
    _remove(sorted(folder.glob("iteration-*.partial")), "a torn checkpoint")


def _remove(paths: Iterable[Path], what: str) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: %s stays (%s)", path, what, error.strerror)


def restore_state(start: Callable[[], Any], checkpoint: Checkpoint, algorithm: str) -> Any:
    """Return the method's state that ``checkpoint`` holds.

    Parameters
    ----------
    start : callable
        Returns a fresh state of the method, with which type, fields and θ's shape and dtype are compared.
    checkpoint : Checkpoint
        A checkpoint written by the same method.
    algorithm : str
        The run-config's ``algorithm``, for the error message.

    Raises
    ------
    DataError
        If the method's state has other fields, or θ another length or dtype.
    ConfigError
        If states of the method cannot be kept.
    """
    template = start()
    expected = state_fields(template, algorithm)
    if expected.keys() != checkpoint.state.keys():
        raise DataError(
            f"peer {checkpoint.peer}: the state of {algorithm!r} has {', '.join(expected)}, its checkpoint "
            f"of iteration {checkpoint.iteration} has {', '.join(checkpoint.state)}: the method was changed; "
            "resume with the version that wrote it"
        )
    theta, kept = template.theta, np.asarray(checkpoint.state["theta"])
    if (theta.shape, theta.dtype) != (kept.shape, kept.dtype):
        raise DataError(
            f"peer {checkpoint.peer}: θ is {theta.shape} {theta.dtype} here, {kept.shape} {kept.dtype} in "
            f"its checkpoint of iteration {checkpoint.iteration}: model or tune differs"
        )
    return type(template)(**checkpoint.state)
