from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport.wire import no_threads_but


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: moves a payload of hundreds of megabytes")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Instead of pytest's own, whose path holds the test's name: that of a Unix socket has little room."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _no_threads_left():
    before = threading.enumerate()
    yield
    assert no_threads_but(before) == []
