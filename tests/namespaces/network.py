"""Hosts with addresses of their own on one machine: network namespaces, joined by a bridge.

All of it lives in namespaces that a :class:`Network` makes and removes, the bridge too, so the machine's own
network is left alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from p2pft_flower.lab.supervisor import Programs

ROOT = Path(__file__).parents[2]
PREFIX = "10.77.0."

PRELOADED = ["tests.faults.peer", "tests.namespaces.peer", "tests.faults.ready"]
"""Of the process that all peers of tests are copies of."""


def missing() -> str:
    """Return why namespaces cannot be made here; empty where they can."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    if shutil.which("ip") is None:
        return "needs the program ip (iproute2) to make network namespaces"
    name = f"p2pft-{uuid.uuid4().hex[:6]}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"network namespaces cannot be made here: {tried.stderr.strip()}"
    _run("ip", "netns", "del", name)
    return ""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Network:
    """``n`` hosts on one bridge; a context manager.

    Parameters
    ----------
    n : int
        Hosts, with the addresses 10.77.0.1 to 10.77.0.n.
    """

    def __init__(self, n: int) -> None:
        token = uuid.uuid4().hex[:6]
        self._bridge = f"p2pft-{token}-b"
        self._names = [f"p2pft-{token}-{i}" for i in range(n)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._programs = Programs(environment)
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        try:
            for name in (self._bridge, *self._names):
                _run("ip", "netns", "add", name)
                _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", self._bridge, "link", "add", "br0", "type", "bridge")
            _run("ip", "-n", self._bridge, "link", "set", "br0", "up")
            _run("ip", "-n", self._bridge, "link", "add", "br1", "type", "bridge")
            _run("ip", "-n", self._bridge, "link", "set", "br1", "up")
            for i, name in enumerate(self._names):
                end = ["peer", "name", f"p{i}", "netns", self._bridge]
                _run("ip", "-n", name, "link", "add", "eth0", "type", "veth", *end)
                _run("ip", "-n", self._bridge, "link", "set", f"p{i}", "master", "br0", "up")
                _run("ip", "-n", name, "address", "add", f"{self.address(i)}/24", "dev", "eth0")
                _run("ip", "-n", name, "link", "set", "eth0", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def address(host: int) -> str:
        """Return a host's IP address."""
        return f"{PREFIX}{host + 1}"

    def name(self, host: int) -> str:
        """Return the name of a host's namespace."""
        return self._names[host]

    def start(self, host: int, *words: str) -> subprocess.Popen[str]:
        """Start this Python with ``words`` on a host."""
        command = [shutil.which("ip"), "netns", "exec", self._names[host], sys.executable, *words]
        self._started.append(self._programs.converse(command, ROOT))
        return self._started[-1]

    def shape(self, host: int, *netem: str) -> str:
        """Let what leaves a host be late or lost (``"delay", "20ms", "loss", "1%"``); return why not."""
        if shutil.which("tc") is None:
            return "needs the program tc (iproute2) to delay packets"
        command = ["tc", "-n", self._names[host], "qdisc", "add", "dev", "eth0", "root", "netem", *netem]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        return f"packets cannot be delayed here: {done.stderr.strip()}" if done.returncode else ""

    def cut(self, host: int) -> None:
        """Take a host off the network."""
        _run("ip", "-n", self._names[host], "link", "set", "eth0", "down")

    def restore(self, host: int) -> None:
        """Take a host back into the network."""
        _run("ip", "-n", self._names[host], "link", "set", "eth0", "up")

    def part(self, *hosts: int) -> None:
        """Join these hosts to a bridge of their own: they reach each other, and none of the others."""
        self._plug("br1", hosts)

    def heal(self, *hosts: int) -> None:
        """Undo `part`."""
        self._plug("br0", hosts)

    def _plug(self, bridge: str, hosts: Sequence[int]) -> None:
        for i in hosts:
            _run("ip", "-n", self._bridge, "link", "set", f"p{i}", "master", bridge)

    def cut_one_way(self, sender: int, receiver: int) -> None:
        """Lose whatever one host sends to another: it goes to an interface that nobody has."""
        self._neighbour("replace", sender, receiver, "lladdr", "02:00:00:00:00:01", "nud", "permanent")

    def restore_one_way(self, sender: int, receiver: int) -> None:
        """Undo `cut_one_way`."""
        self._neighbour("del", sender, receiver)

    def _neighbour(self, what: str, sender: int, receiver: int, *more: str) -> None:
        _run("ip", "-n", self._names[sender], "neigh", what, self.address(receiver), *more, "dev", "eth0")

    def finish(self, process: subprocess.Popen[str], timeout: float = 120.0) -> Sequence[str]:
        """Return what a process printed and complained of, once it has ended."""
        return process.communicate(timeout=timeout)

    def close(self) -> None:
        """End what was started here and remove every namespace."""
        self._programs.kill()
        for process in self._started:
            process.communicate()
        for name in (*self._names, self._bridge):
            with contextlib.suppress(RuntimeError):  # it was not made
                _run("ip", "netns", "del", name)
