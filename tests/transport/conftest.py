from __future__ import annotations

import threading

import pytest

from tests.transport.wire import no_threads_but


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: moves a payload of hundreds of megabytes")


@pytest.fixture(autouse=True)
def _no_threads_left():
    before = threading.enumerate()
    yield
    assert no_threads_but(before) == []
