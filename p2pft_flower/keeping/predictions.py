"""Tables of a peer's answers to test images as CSV (RFC 4180), for their owner only."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from p2pft_flower.keeping.folders import replacing

__all__ = ["predictions_name", "write_predictions"]


def predictions_name(peer: int) -> str:
    """Return the name of a peer's table, which lies beside the peer's tail."""
    return f"peer-{peer}.predictions.csv"


def write_predictions(path: Path, rows: Iterable[Sequence[str]]) -> Path:
    """Write ``rows``, the header first, to ``path`` in one piece, UTF-8, and return the path.

    In a name that is no valid text, the odd bytes are escaped.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with (
        replacing(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        csv.writer(file).writerows(rows)
    return path
