"""Proxies in the environment: this machine is reached without them, the rest of the world through them."""

from __future__ import annotations

import importlib.util
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from p2pft_flower.cli import proxies
from p2pft_flower.cli.flwr_run import flower_environment
from p2pft_flower.cli.proxies import answers, without_local_proxies

PROXY = "http://127.0.0.1:9"
"""Nobody listens there: whoever asks it fails at once."""


@pytest.fixture(autouse=True)
def _warned_anew():
    proxies._warn.cache_clear()


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy", "Http_Proxy", "ALL_PROXY"])
def test_a_proxy_stays_for_downloads_and_this_machine_is_excepted(name):
    found = without_local_proxies({name: PROXY, "PATH": "/bin"})
    assert found[name] == PROXY
    assert found["PATH"] == "/bin"
    assert found["no_proxy"] == found["NO_PROXY"] == "127.0.0.1,localhost,::1"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"no_proxy": ".example.org, 10.0.0.0/8"}, ".example.org,10.0.0.0/8,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "localhost,corp"}, "localhost,corp,127.0.0.1,::1"),
        ({"NO_PROXY": "a", "no_proxy": "b", "No_Proxy": "c,,"}, "a,b,c,127.0.0.1,localhost,::1"),
        ({"no_proxy": "a,*"}, "*"),
        ({"no_proxy": "::1,fe80::/10"}, "::1,fe80::/10,127.0.0.1,localhost"),
        ({"no_proxy": ""}, "127.0.0.1,localhost,::1"),
    ],
)
def test_the_users_own_exceptions_are_kept(own, expected):
    found = without_local_proxies({"http_proxy": PROXY, **own})
    assert {name: value for name, value in found.items() if name.lower() == "no_proxy"} == {
        "no_proxy": expected,
        "NO_PROXY": expected,
    }


@pytest.mark.parametrize(
    "given", [{}, {"no_proxy": "corp"}, {"http_proxy": "", "PATH": "/bin"}, {"ftp_proxy": "socks5://x:1"}]
)
def test_an_environment_without_a_proxy_stays_as_it_is(given):
    assert without_local_proxies(given) == given


@pytest.mark.parametrize(
    "proxy",
    [
        "socks5://127.0.0.1:9",
        "SOCKS5H://u:secret@host:1",
        "socks4://h:1",
        "socks://h:1/",
        "http://h:port",
        "http://h é:1",
        "http://h\x01:1",
        "[x",
    ],
)
def test_a_proxy_that_flowers_library_cannot_use_is_left_out_with_a_warning(proxy, caplog):
    """It raises as soon as it sees one; another proxy beside it is kept."""
    found = without_local_proxies({"ALL_PROXY": proxy, "https_proxy": PROXY})
    assert "ALL_PROXY" not in found
    assert found["https_proxy"] == PROXY
    without_local_proxies({"ALL_PROXY": proxy, "https_proxy": PROXY})
    (warning,) = caplog.messages  # once a process, however often it starts something
    assert warning.startswith("ALL_PROXY = ")
    assert "https_proxy" not in warning
    assert "secret" not in caplog.text


@pytest.mark.parametrize("entry", ["[::1]:80", "h é", "all://[::1]:x"])
def test_an_exception_that_flowers_library_cannot_use_is_left_out_with_a_warning(entry, monkeypatch, caplog):
    found = without_local_proxies({"http_proxy": PROXY, "no_proxy": f"corp,{entry}"})
    assert found["no_proxy"] == "corp,127.0.0.1,localhost,::1"
    (warning,) = caplog.messages
    assert warning.startswith(f"no_proxy = {entry} cannot be used")
    monkeypatch.setenv("http_proxy", PROXY)
    monkeypatch.setenv("no_proxy", f"corp,{entry}")
    with pytest.raises(httpx.InvalidURL):
        httpx.Client()
    monkeypatch.setenv("no_proxy", found["no_proxy"])
    httpx.Client().close()


def test_a_socks_proxy_is_kept_where_its_library_is_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert without_local_proxies({"all_proxy": "socks5://h:1"})["all_proxy"] == "socks5://h:1"
    assert "all_proxy" not in without_local_proxies({"all_proxy": "socks4://h:1"})


def test_what_flower_is_started_with_reaches_this_machine_without_a_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", PROXY)
    monkeypatch.delenv("no_proxy", raising=False)
    assert flower_environment()["http_proxy"] == PROXY
    assert flower_environment()["no_proxy"] == "127.0.0.1,localhost,::1"


def test_a_superlink_here_is_asked_without_a_proxy(monkeypatch):
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            """Nothing is printed."""

    monkeypatch.setenv("http_proxy", PROXY)
    monkeypatch.setenv("no_proxy", "example.org")
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        port = server.server_address[1]
        assert answers(f"127.0.0.1:{port}")
        server.shutdown()
        thread.join()
    assert not answers(f"127.0.0.1:{port}")
