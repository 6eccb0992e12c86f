"""A ClientApp notices that its SuperNode is dead, though its parent process is not."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading

import pytest

from p2pft_flower.flower import supernode
from p2pft_flower.flower.supernode import runtime_address, watched

CLIENTAPP = """
import signal
import sys
from pathlib import Path
from p2pft_flower.flower import host_process, supernode
from p2pft_flower.host.host import Host
from tests.host.quadratic import GRAPH, Quadratics, plans

supernode.EVERY = 0.05
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have set it to be ignored
def hook(peer, drawn):
    if drawn == 3:
        print("training", flush=True)
(plan, *_) = plans(GRAPH, [[p] for p in range(4)], {}, Path(sys.argv[1]), iterations=10**7, algorithm="local")
host_process.run_host(Host(plan, Quadratics(hook=hook)), deployed=True)
"""


def test_the_address_is_the_one_that_flower_gives_the_clientapp():
    flowers = ["--insecure", "--runtime-api-address", "127.0.0.1:9094", "--token", "x", "--parent-pid", "7"]
    assert runtime_address(flowers) == "127.0.0.1:9094"
    assert runtime_address(["--runtime-api-address=[::1]:9094"]) == "[::1]:9094"
    assert runtime_address(["-q", "tests"]) is None
    assert runtime_address(["--runtime-api-address"]) is None


@pytest.mark.parametrize("answers", ["FFFTFFFF", "FFFF", "TTFFFF"])
def test_only_four_misses_in_a_row_are_a_death(answers, monkeypatch):
    looks, dead = iter(answers), threading.Event()
    monkeypatch.setattr(sys, "argv", ["flwr-clientapp", "--runtime-api-address", "127.0.0.1:9094"])
    monkeypatch.setattr(supernode, "EVERY", 0.0)
    monkeypatch.setattr(supernode, "_listens", lambda host, port: next(looks) == "T")
    with watched(dead.set):
        assert dead.wait(30)
    assert next(looks, None) is None


def test_a_port_is_looked_at_and_one_that_times_out_is_no_sign_of_death(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert supernode._listens("127.0.0.1", port)
    assert not supernode._listens("127.0.0.1", port)

    def slow(address, timeout):
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", slow)
    assert supernode._listens("127.0.0.1", port)


def test_a_supernode_that_listens_waits_for_an_answer_and_outside_a_clientapp_there_is_none(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "-q"])
    assert not supernode.answers()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(sys, "argv", ["flwr-clientapp", "--runtime-api-address", address])
        assert supernode.answers()
    assert not supernode.answers()


def test_an_orphan_stops_its_peer_and_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "-c", CLIENTAPP, str(tmp_path), "--runtime-api-address", address]
        orphan = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert orphan.stdout.readline() == "training\n"
    try:
        _, said = orphan.communicate(timeout=60)
    finally:
        orphan.kill()
    assert orphan.returncode in (1, -signal.SIGINT), said
    assert "KeyboardInterrupt" in said  # Python's handler here stands for Flower's
    assert (tmp_path / "peers" / "peer-0.stopped.safetensors").is_file()
    assert "was told to end (SIGINT)" in (tmp_path / "peers" / "peer-0.jsonl").read_text()
