"""The kind of a file of weights, recognised by its first bytes without importing torch.

A file's name says little: a safetensors file may be named ``.pth``, and a download may have left a web page.
"""

from __future__ import annotations

import re
from pathlib import Path

from p2pft_flower.errors import DataError

__all__ = ["HEADER", "REMEDY", "UnreadableError", "look_at_weights"]

_LOOK = 1024
"""Number of bytes at the beginning of a file that show its kind."""

HEADER = 8
"""Bytes of a safetensors file before its header: the header's length."""

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_OTHER_KINDS = {
    b"\x89HDF\r\n": "an HDF5 file, as Keras writes them",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a single NumPy array (.npy)",
}
_TORCH = rb"\x80.\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\."
"""The beginning of a checkpoint of torch that is no archive: its magic number, pickled."""

REMEDY = "save the tensors alone: torch.save(model.state_dict(), FILE), or as safetensors"


class UnreadableError(DataError):
    """A file has no weights, or is broken; the message describes the file as "it", without the name."""


def look_at_weights(file: Path) -> tuple[bytes, int]:
    """Return the first bytes of a file that may hold weights, and the file's size in bytes.

    Raises
    ------
    UnreadableError
        When the file is of another kind, a folder, empty, or cannot be read; the message says which.
    """
    if file.is_dir():
        inside = ", ".join(sorted(p.name for p in file.iterdir())[:8]) or "nothing"
        raise UnreadableError(f"it is a folder, with {inside} in it: give the file of weights itself")
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            begin = opened.read(_LOOK)
    except OSError as error:
        raise UnreadableError(f"it cannot be read ({error.strerror})") from error
    _refuse_other_kinds(begin, size)
    known = (
        begin[HEADER : HEADER + 1] == b"{" or begin.startswith(b"PK") or re.match(_TORCH, begin, re.DOTALL)
    )
    if not known:
        kind = "a pickle, but none of torch's" if begin[:1] == b"\x80" else "of no kind that is read"
        raise UnreadableError(f"it is {kind}: it begins with the bytes {begin[:8].hex(' ')}; {REMEDY}")
    return begin, size


def _refuse_other_kinds(begin: bytes, size: int) -> None:
    """Refuse a file whose first bytes, or size, show that it holds no tensors.

    Raises
    ------
    UnreadableError
        When they show that; the message says of which kind the file is.
    """
    if size == 0:
        raise UnreadableError("it is empty (0 bytes): was a download or a copy cut off?")
    if begin.startswith(b"version https://git-lfs.github.com"):
        raise UnreadableError("it is a Git-LFS pointer, not the weights that it stands for: run git lfs pull")
    text = begin.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"<":
        raise UnreadableError(
            "it is a web page (HTML or XML), not weights: a download that needs a login or another address "
            "leaves one; download the file itself"
        )
    for mark, kind in _COMPRESSED.items():
        if begin.startswith(mark):
            raise UnreadableError(f"it is compressed ({kind}): unpack it first")
    for mark, kind in _OTHER_KINDS.items():
        if begin.startswith(mark):
            raise UnreadableError(f"it is {kind}, which is not read; {REMEDY}")
    if begin[257:262] == b"ustar":
        raise UnreadableError("it is a tar archive: unpack it first")
    if text[:1] in (b"{", b"[") and _is_text(begin):
        index = " (the index of weights that lie in several files)" if b"weight_map" in begin else ""
        raise UnreadableError(f"it is JSON{index}, not weights")
    if _is_text(begin):
        raise UnreadableError(f"it is a text, not weights; it begins {begin[:40].decode(errors='replace')!r}")
    if begin.strip(b"\0") == b"":
        raise UnreadableError("it has only zeros at its beginning: was a download or a copy cut off?")


def _is_text(begin: bytes) -> bool:
    """Return whether bytes are UTF-8 (the last character may be cut) without control characters."""
    try:
        text = begin.decode()
    except UnicodeDecodeError as error:
        if error.start < len(begin) - 3:
            return False
        text = begin[: error.start].decode()
    return all(c.isprintable() or c in "\t\r\n" for c in text)
