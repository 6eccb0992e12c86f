"""What a process asks Linux for directly: another network, a small disk."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_MOUNTS, _NETWORK = 0x00020000, 0x40000000  # CLONE_NEWNS, CLONE_NEWNET
_PRIVATE = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE


def enter_network(name: str) -> None:
    """Live in a network namespace from here on: this thread, and all that it starts."""
    with Path("/run/netns", name).open() as file:
        _call("setns", file.fileno(), _NETWORK)


def mount_disk(folder: Path, size: int) -> None:
    """Give ``folder`` a disk of ``size`` bytes that only this process sees, and that goes with it."""
    folder.mkdir(parents=True)
    _call("unshare", _MOUNTS)
    _call("mount", b"none", b"/", None, _PRIVATE, None)
    _call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=%d" % size)


def _call(name: str, *words: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*words) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
