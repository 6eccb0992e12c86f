"""A browser and the page of ``p2pft dashboard`` for tests, in this process."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time

import pytest
import uvicorn

from p2pft_flower.cli.dashboard_server import Board, make_app
from p2pft_flower.cli.dashboard_watch import Watch

PATIENCE = 60.0
"""Seconds; only a broken test waits that long."""

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no browser: install chromium (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def served(watch: Watch, port: int = 0):
    """Serve the page from a thread; yields its address."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
        board = Board(watch.look, lambda: server.should_exit)
        server = uvicorn.Server(
            uvicorn.Config(make_app(board), log_level="error", ws="none", timeout_graceful_shutdown=3)
        )
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        end = time.monotonic() + PATIENCE
        while not server.started and time.monotonic() < end:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


@contextlib.contextmanager
def opened(browser, address, **settings):
    """Open the page in a browser of its own; afterwards it has asked nobody else, and had no error."""
    context = browser.new_context(viewport={"width": 1440, "height": 1200}, **settings)
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    faults, asked = [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda told: faults.append(told.text) if told.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(address)
        yield page
        assert [url for url in asked if not url.startswith(address)] == []
        # The stream may be cut by the test itself.
        assert [f for f in faults if "ERR_CONNECTION" not in f and "ERR_INCOMPLETE" not in f] == []
    finally:
        context.close()
