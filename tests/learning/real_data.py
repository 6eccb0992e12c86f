"""Where the real images and weights lie that some tests read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("P2PFT_SHARED_DATA") or Path(__file__).resolve().parents[2] / "../shared/data")


def shared(name: str) -> Path:
    """Return the file or folder ``name`` of the real data; skip the test where it is not there."""
    path = SHARED.resolve() / name
    if not path.exists():
        pytest.skip(f"real data: no {path}; P2PFT_SHARED_DATA says where it lies")
    return path
