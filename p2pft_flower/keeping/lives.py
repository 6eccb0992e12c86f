"""The number of times that a peer was started again while the others trained; a file, no clock, counts them.

Others distinguish a member's lives by their *incarnation*, a number that grows. Each process takes the next
number of starts from the file; within a process the member counts on when it is excluded and asks to be let
in again.
"""

from __future__ import annotations

from pathlib import Path

from p2pft_flower.errors import DataError
from p2pft_flower.keeping.folders import read_private, replacing

__all__ = ["next_incarnation"]

_WITHIN = 2**32
"""Number of lives that one process may have."""

_STARTS = 2**30


def next_incarnation(output_dir: Path, peer: int) -> int:
    """Return an incarnation greater than all that earlier processes of ``peer`` had, once it is on disk.

    Raises
    ------
    DataError
        If the count cannot be read or written; the message names the file and the remedy.
    """
    path = output_dir / "peers" / f"peer-{peer}.starts"
    starts = _read(path) + 1
    try:
        with replacing(path) as partial:
            partial.write_text(f"{starts}\n", encoding="ascii")
    except OSError as error:
        raise DataError(
            f"{path}: how often the peer was started cannot be written ({error.strerror}): make room there, "
            "or make the folder writable"
        ) from error
    return starts * _WITHIN


def _read(path: Path) -> int:
    try:
        starts = int(read_private(path, 64).decode("ascii"))
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it holds no number"
        raise DataError(
            f"{path}: how often the peer was started cannot be read ({why}): write a number there that is "
            "larger than it, such as 1000"
        ) from error
    if not 0 <= starts < _STARTS:
        raise DataError(f"{path}: {starts} starts of one peer: write a number there that is below {_STARTS}")
    return starts
