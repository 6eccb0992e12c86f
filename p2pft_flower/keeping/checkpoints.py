"""A checkpoint: all that a peer needs to go on from an iteration, in one file; a torn one is recognised.

``<output_dir>/peers/peer-<i>.checkpoints/iteration-<k>.safetensors`` holds the vectors of the method's state
as tensors, and in its metadata one JSON document with the rest. A digest in the document covers document and
tensors. It tells damage, not malice: whoever can write to the folder can also write another digest.

Files are written beside their place, brought to disk and renamed: a crash leaves the earlier ones whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from p2pft_flower.errors import Cause, ConfigError, DataError, P2PFTError
from p2pft_flower.keeping.folders import make_private, new_private, require_regular, sync

__all__ = [
    "SCHEMA",
    "SERVER",
    "Checkpoint",
    "CheckpointError",
    "checkpoint_files",
    "checkpoint_folder",
    "forget",
    "forget_torn",
    "read_checkpoint",
    "restore_state",
    "state_fields",
    "write_checkpoint",
]

SCHEMA = "p2pft.checkpoint/1"

SERVER = -1
"""In a peer's place: the server of one of Flower's strategies."""

_DOCUMENT = "p2pft"
"""The one key of the file's metadata."""

_NAME = re.compile(r"iteration-(\d+)\.safetensors")

log = logging.getLogger("p2pft_flower")


class CheckpointError(P2PFTError):
    """A checkpoint cannot be written; carries whose."""

    cause = Cause.OWN

    def __init__(self, peer: int, message: str) -> None:
        self.peer = peer
        super().__init__(f"{_who(peer)}: {message}")


def _who(peer: int) -> str:
    return "the server" if peer == SERVER else f"peer {peer}"


@dataclass(frozen=True)
class Checkpoint:
    """What one peer's file holds.

    Attributes
    ----------
    run : str
        The run that wrote it.
    peer : int
        The peer, or :data:`SERVER`.
    iteration : int
        Iterations done.
    about : dict
        What a run that goes on from here must have alike, JSON-able; its keys are those that
        :class:`~p2pft_flower.host.keeper.Keeper` writes.
    position : dict
        Of the peer's data order, as its objective gave it; JSON-able.
    bytes_sent : int
        Payload bytes along its out-edges so far.
    seconds : dict of str to float
        Where its time went so far: ``gradient``, ``exchange``, ``evaluation``.
    state : dict
        The method's state by field: arrays, numbers, None (:func:`state_fields`).
    stopped : bool
        Whether the run was stopped or failed after this iteration: only an unfinished one followed.
    view : int
        Number of the view that the peer was in.
    live : tuple of int
        The peers of that view, ascending.
    """

    run: str
    peer: int
    iteration: int
    about: dict[str, Any]
    position: dict[str, Any]
    bytes_sent: int
    seconds: dict[str, float]
    state: dict[str, Any]
    stopped: bool = False
    view: int = 0
    live: tuple[int, ...] = ()


def state_fields(state: Any, algorithm: str) -> dict[str, Any]:
    """Return a method's state by field: NumPy arrays, whole numbers, numbers, truth values and None.

    Parameters
    ----------
    state : NamedTuple or dataclass
        What the method's ``start`` or ``step`` returned.
    algorithm : str
        The run-config's ``algorithm``, for the error message.

    Raises
    ------
    ConfigError
        When it is of another kind, or a field holds something else.
    """
    remedy = (
        "so it cannot be kept in a checkpoint: make it a NamedTuple or a dataclass of NumPy arrays, numbers "
        "and None, or set checkpoint-every = -1, with which nothing is kept and the run cannot be resumed"
    )
    fields: dict[str, Any]
    if isinstance(state, tuple) and hasattr(state, "_asdict"):
        fields = state._asdict()
    elif dataclasses.is_dataclass(state) and not isinstance(state, type):
        fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
        if late := [f.name for f in dataclasses.fields(state) if not f.init]:
            raise ConfigError(
                f"algorithm = {algorithm!r}: its state takes no {late[0]!r} when built, {remedy}"
            )
    else:
        raise ConfigError(f"algorithm = {algorithm!r}: its state is a {type(state).__name__}, {remedy}")
    for name, value in fields.items():
        numeric = (
            isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fiub" and value.itemsize <= 8
        )
        if not numeric and not isinstance(value, (bool, int, float, type(None))):
            raise ConfigError(
                f"algorithm = {algorithm!r}: {name!r} of its state is a {type(value).__name__}, {remedy}"
            )
    return fields


def restore_state(start: Callable[[], Any], checkpoint: Checkpoint, algorithm: str) -> Any:
    """Return the method's state that ``checkpoint`` holds.

    Parameters
    ----------
    start : callable
        Returns a state as the method starts with; only its kind is used.
    checkpoint : Checkpoint
        Written by the same method.
    algorithm : str
        The run-config's ``algorithm``, for the error message.

    Raises
    ------
    DataError
        When the method's state has other fields, or θ another length or dtype.
    """
    template = start()
    expected = state_fields(template, algorithm)
    if expected.keys() != checkpoint.state.keys():
        raise DataError(
            f"peer {checkpoint.peer}: the state of {algorithm!r} has {', '.join(expected)}, its checkpoint "
            f"of iteration {checkpoint.iteration} has {', '.join(checkpoint.state)}: the method was changed; "
            "resume with the version that wrote it"
        )
    theta, kept = template.theta, checkpoint.state["theta"]
    if (theta.shape, theta.dtype) != (kept.shape, kept.dtype):
        raise DataError(
            f"peer {checkpoint.peer}: θ is {theta.shape} {theta.dtype} here, {kept.shape} {kept.dtype} in "
            f"its checkpoint of iteration {checkpoint.iteration}: model or tune differs"
        )
    return type(template)(**checkpoint.state)


def checkpoint_folder(output_dir: Path, peer: int) -> Path:
    """Return where a run in ``output_dir`` keeps the checkpoints of ``peer``, or of :data:`SERVER`."""
    if peer == SERVER:
        return output_dir / "server.checkpoints"
    return output_dir / "peers" / f"peer-{peer}.checkpoints"


def checkpoint_files(folder: Path) -> dict[int, Path]:
    """Return the files of a peer's :func:`checkpoint_folder` by iteration, ascending; unread.

    Raises
    ------
    DataError
        When the folder cannot be read. One that is not there has none.
    """
    try:
        found = {int(m[1]): p for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)) is not None}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{folder}: the checkpoints cannot be read ({error.strerror})") from error
    return dict(sorted(found.items()))


def write_checkpoint(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write ``checkpoint`` into ``folder`` and return its path; it is on disk then.

    Parameters
    ----------
    checkpoint : Checkpoint
        Its state as :func:`state_fields` admits it.
    folder : Path
        Made if need be.

    Raises
    ------
    CheckpointError
        When it cannot be written: a full disk, a folder that is read-only or none. Files of other iterations
        stay. It may be there itself, whole, where the disk fails only when asked to keep its name.
    """
    path = folder / f"iteration-{checkpoint.iteration}.safetensors"
    partial = path.with_suffix(".partial")
    try:
        tensors, document = _packed(checkpoint)
        make_private(folder)
        new_private(partial)
        with partial.open("wb") as file:
            file.write(_header(document, tensors))
            for tensor in tensors.values():
                file.write(tensor.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)  # noqa: PTH105 - a reader sees the whole file or none
        sync(folder)
    except OSError as error:
        with contextlib.suppress(OSError):  # the folder may be what is wrong
            partial.unlink(missing_ok=True)
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


def _header(document: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Return what a safetensors file begins with: the library's own writer copies all tensors twice."""
    entries: dict[str, Any] = {"__metadata__": {_DOCUMENT: json.dumps(document)}}
    end = 0
    for name, tensor in tensors.items():
        kind = tensor.dtype.kind
        dtype = "BOOL" if kind == "b" else f"{_DTYPES[kind]}{8 * tensor.itemsize}"
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _packed(checkpoint: Checkpoint) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Return tensors and document, the digest of both in the latter."""
    document = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint)} | {
        "schema": SCHEMA
    }
    state = document.pop("state")
    arrays = {k: v for k, v in state.items() if isinstance(v, (np.ndarray, np.generic))}
    document["fields"] = list(state)
    document["scalars"] = [k for k, v in arrays.items() if isinstance(v, np.generic)]
    document["values"] = {k: v for k, v in state.items() if k not in arrays}
    # Little-endian, as the format wants it; the largest items first, so that all of them are aligned.
    tensors = {
        k: np.ascontiguousarray(v, v.dtype.newbyteorder("<")).reshape(np.shape(v))
        for k, v in sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    }
    document = json.loads(json.dumps(document))  # as it is read again: texts for keys, lists for tuples
    return tensors, document | {"digest": _digest(document, tensors)}


def _digest(document: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]) -> str:
    digest = xxhash.xxh3_128(json.dumps(document, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape} ".encode())
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_checkpoint(path: Path, run: str | None = None) -> tuple[Checkpoint, str]:
    """Read a checkpoint and its digest.

    Parameters
    ----------
    path : Path
        The file, in a peer's :func:`checkpoint_folder`.
    run : str, optional
        The run that must have written it.

    Raises
    ------
    DataError
        When it cannot be read, is torn or altered, or is another peer's, iteration's or run's than its place
        says; names the file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        require_regular(path)
        data = path.read_bytes()
        tensors = {name: tensor.copy() for name, tensor in load(data).items()}
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        document = json.loads(header["__metadata__"][_DOCUMENT])
        if (schema := document["schema"]) != SCHEMA:
            raise DataError(f"{path}: schema {schema!r}, this version reads {SCHEMA!r}")
        digest = document.pop("digest")
        whole = digest == _digest(document, tensors)
        place = (document["peer"], document["iteration"])
    except OSError as error:
        raise DataError(f"{path}: the checkpoint cannot be read ({error.strerror})") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: torn or altered, no checkpoint ({type(error).__name__}: {error})"
        ) from error
    if not whole:
        raise DataError(f"{path}: torn or altered, its digest is not that of its content")
    named = _NAME.fullmatch(path.name)
    if named is None or place != (_peer_of(path), int(named[1])):
        raise DataError(
            f"{path}: it is {_who(place[0])}'s checkpoint of iteration {place[1]}, out of its place"
        )
    if run is not None and document["run"] != run:
        raise DataError(f"{path}: it is of run {document['run']}, not of run {run}")
    return _unpacked(document, tensors), digest


def _peer_of(path: Path) -> int | None:
    if path.parent.name == "server.checkpoints":
        return SERVER
    found = re.fullmatch(r"peer-(\d+)\.checkpoints", path.parent.name)
    return int(found[1]) if found is not None else None


def _unpacked(document: dict[str, Any], tensors: dict[str, np.ndarray[Any, Any]]) -> Checkpoint:
    values = {k: (tensors[k][()] if k in document["scalars"] else tensors[k]) for k in tensors}
    values |= document["values"]
    plain = {f.name: document[f.name] for f in dataclasses.fields(Checkpoint) if f.name != "state"}
    plain["live"] = tuple(plain["live"])
    return Checkpoint(**plain, state={k: values[k] for k in document["fields"]})


def forget(folder: Path, iterations: Sequence[int]) -> None:
    """Remove a peer's checkpoints of ``iterations``; what cannot be removed stays, with a warning."""
    for iteration in iterations:
        path = folder / f"iteration-{iteration}.safetensors"
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: a checkpoint that is no longer needed stays (%s)", path, error.strerror)


def forget_torn(folder: Path) -> None:
    """Remove what a killed process had begun to write; what cannot be removed stays, with a warning."""
    for path in sorted(folder.glob("iteration-*.partial")):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: a torn checkpoint stays (%s)", path, error.strerror)
