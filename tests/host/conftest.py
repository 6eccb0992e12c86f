"""Where hosts of these tests listen, and hosts that may come and go."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from .hosts import Federation


@pytest.fixture
def short():
    """A folder whose path is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


@pytest.fixture
def federation(tmp_path, monkeypatch):
    """Make hosts whose threads have ended when the test has."""
    made = []

    def make(addresses, **settings):
        made.append(Federation(tmp_path, addresses, monkeypatch, **settings))
        return made[-1]

    yield make
    for one in made:
        one.all_there.set()
        one.pool.shutdown()
