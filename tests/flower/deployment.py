"""A SuperLink and SuperNodes on the loopback interface, for tests that kill single processes of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

import p2pft_flower
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.lab.relay import Relay, Relays
from p2pft_flower.lab.supervisor import Programs
from p2pft_flower.report.results import log_name
from p2pft_flower.resources import resource_dir
from tests.journals import lines_of

PATIENCE = 240.0
"""Seconds that a test waits for what must come; generous, since tests share their machine."""


def wait_until(
    true: Callable[[], Any], what: str, patience: float = PATIENCE, said: Callable[[], str] = str
) -> Any:
    """Return what ``true`` returns once that is true; fail naming ``what``, with what was ``said``."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.2)
    raise AssertionError(f"waited {patience:g} s in vain until {what}\n{said()}")


class Deployment:
    """One SuperLink and ``n`` SuperNodes, each with a peer and an output folder of its own.

    Attributes
    ----------
    superlink : subprocess.Popen
        The SuperLink.
    supernodes : list of subprocess.Popen
        By peer.
    superexecs : dict of int to subprocess.Popen
        By peer: the executors of the sites in ``own_executors``, whose SuperNodes start nothing themselves.
    network : list of Relay
        Between each peer's SuperNode and the SuperLink; empty unless it is to be ``proxied``. ``link`` has
        further arguments of :meth:`Relays.open`.
    ports : list of int
        Where the peers listen.
    """

    def __init__(
        self,
        folder: Path,
        n: int = 2,
        *,
        proxied: bool = False,
        link: Mapping[str, float] | None = None,
        own_executors: frozenset[int] = frozenset(),
        outputs: list[Path] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.outputs = outputs or [folder / f"site-{p}" for p in range(n)]
        home = folder / "flwr"
        home.mkdir(parents=True)
        root = str(Path(p2pft_flower.__file__).resolve().parent.parent)
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {
            **os.environ,
            "FLWR_HOME": str(home),
            "P2PFT_HOME": str(folder / "home"),
            "PATH": programs,
            "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **(environment or {}),
        }
        self._programs = Programs(environment)
        self.environment = self._programs.environment
        port, *ports = free_ports(1 + 2 * n)
        self.ports, self._runtime = ports[:n], ports[n:]
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "test"\n\n'
            f'[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        self._options, self._own_executors = ["--insecure", "--host", "127.0.0.1"], own_executors
        self.superlink = self._start(
            "superlink",
            [
                "flower-superlink",
                *self._options,
                "--port",
                str(port),
                "--disable-runtime-dependency-installation",
            ],
        )
        wait_until(lambda: _healthy(port), "the SuperLink answers")
        self._relays = Relays()
        self.network: list[Relay] = []
        if proxied:
            self._relays.__enter__()
            self.network = [self._relays.open(f"127.0.0.1:{port}", **(link or {})) for _ in range(n)]
        self._address = f"127.0.0.1:{port}"
        self.supernodes: list[subprocess.Popen[bytes]] = []
        self.superexecs: dict[int, subprocess.Popen[bytes]] = {}
        for p in range(n):
            self.supernodes.append(self._supernode(p))
            if p in own_executors:
                self.start_superexec(p)

    def node_config(self, peer: int) -> str:
        """Return what the SuperNode of ``peer`` is told."""
        address, folder = f"127.0.0.1:{self.ports[peer]}", self.outputs[peer]
        return f'peer-id={peer} peer-address="{address}" output-dir="{folder}"'

    def start_supernode(self, peer: int) -> None:
        """Start a SuperNode of ``peer`` anew, where the earlier one has ended."""
        if self.supernodes[peer].poll() is not None:
            self.supernodes[peer] = self._supernode(peer)

    def kill_superexec(self, peer: int) -> None:
        """Kill the executor of ``peer`` and nothing else, and return when it is gone."""
        self.superexecs[peer].kill()
        self.superexecs[peer].wait()

    def kill_supernode(self, peer: int) -> None:
        """Kill the SuperNode of ``peer`` and nothing else, and return when it is gone."""
        self.supernodes[peer].kill()
        self.supernodes[peer].wait()

    def _supernode(self, peer: int) -> subprocess.Popen[bytes]:
        superlink = self.network[peer].address if self.network else self._address
        command = ["flower-supernode", *self._options, "--superlink", superlink]
        isolation = "process" if peer in self._own_executors else "subprocess"
        command += ["--port", str(self._runtime[peer]), "--isolation", isolation]
        return self._start(f"supernode-{peer}", [*command, "--node-config", self.node_config(peer)])

    def start_superexec(self, peer: int) -> None:
        """Start an executor for the SuperNode of ``peer``."""
        address = f"127.0.0.1:{self._runtime[peer]}"
        command = ["flower-superexec", "--insecure", "--runtime-api-address", address]
        self.superexecs[peer] = self._start(f"superexec-{peer}", command)

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        program = shutil.which(command[0], path=self.environment["PATH"])
        assert program is not None, f"{command[0]} is not installed"
        return self._programs.start(name, [program, *command[1:]], self.folder / f"{name}.log")

    def flwr(self, *arguments: str) -> str:
        """Run Flower's command line and return what it prints."""
        return self._run("flwr", *arguments)

    def p2pft(self, *arguments: str) -> str:
        """Run this package's command line, with the P2PFT_HOME of the SuperNodes; return what it prints."""
        return self._run("p2pft", *arguments)

    def p2pft_fails(self, *arguments: str) -> str:
        """Run this package's command line, which is to exit with 2; return what it says of the error."""
        done = self._done("p2pft", *arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        return done.stderr

    def start_p2pft(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start this package's command line and go on; its output is among what was :meth:`said`."""
        return self._start(f"p2pft-{arguments[0]}", ["p2pft", *arguments])

    def _run(self, name: str, *arguments: str) -> str:
        done = self._done(name, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _done(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        program = shutil.which(name, path=self.environment["PATH"])
        assert program is not None
        return subprocess.run(
            [program, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def run(self, **settings: Any) -> str:
        """Start a run of the app and return its number; it goes on by itself.

        ``problem=QUADRATICS`` (:mod:`tests.quadratics`) has it train without torch.
        """
        values = {
            "topology": f"ring:{len(self.outputs)}",
            **({} if "problem" in settings else {"partition": "iid"}),
            "output-dir": str(self.folder / f"results-{uuid.uuid4()}"),
        }
        values |= {key.replace("_", "-"): value for key, value in settings.items()}
        config = self.folder / "run.toml"
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
        said = self.flwr("run", str(resource_dir("apps") / "p2pft"), "test", "--run-config", str(config))
        found = re.search(r"Successfully started run (\d+)", said)
        assert found is not None, said
        return found[1]

    def listed(self, run: str) -> dict[str, Any]:
        """Return what ``flwr ls`` says of a run."""
        said = self.flwr("ls", "test", "--run-id", run, "--format", "json")
        return json.loads(said)["runs"][0]  # type: ignore[no-any-return]

    def ended(self, run: str) -> dict[str, Any]:
        """Wait until Flower says that a run has finished, and return what it lists of it."""

        def finished() -> dict[str, Any] | None:
            if self.processes("flwr-serverapp"):  # cheaper to ask for than Flower's list
                return None
            row = self.listed(run)
            return row if row["status"].startswith("finished") else None

        return wait_until(finished, f"run {run} has finished", said=self.said)  # type: ignore[no-any-return]

    def lines(self, run: str, peer: int, event: str) -> list[dict[str, Any]]:
        """Return the lines of ``event`` in a peer's log; none while there is no log."""
        path = self.outputs[peer] / run / log_name(peer)
        return [e for e in lines_of(path) if e["event"] == event] if path.is_file() else []

    def trains(self, run: str, *peers: int) -> None:
        """Wait until these peers of ``run`` train, all where none is named, and are not near its end."""
        peers = peers or tuple(range(len(self.outputs)))
        for peer in peers:
            wait_until(
                lambda peer=peer: len(self.lines(run, peer, "evaluation")) > 1,
                f"peer {peer} trains",
                said=self.said,
            )
        assert not any(self.lines(run, peer, "end") for peer in peers)

    def peers_end(self, run: str, *peers: int) -> None:
        """Wait until these peers of ``run`` have trained to the end; all where none is named."""
        for peer in peers or range(len(self.outputs)):
            wait_until(
                lambda peer=peer: self.lines(run, peer, "end"),
                f"peer {peer} has ended",
                said=self.said,
            )

    def processes(self, program: str) -> list[psutil.Process]:
        """Return the processes of this deployment that run ``program``."""
        return [p for p in self.started() if any(Path(word).name == program for word in _command(p)[:2])]

    def started(self) -> list[psutil.Process]:
        """Return every process of this deployment that is alive."""
        return self._programs.running()

    def said(self) -> str:
        """Return the ends of all logs, for a failing test."""
        said = ""
        for log in sorted(self.folder.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()
            said += f"== {log.name}\n" + "\n".join(lines)[-4000:] + "\n"
        return said

    def kill(self) -> None:
        """Kill whatever this deployment started, all at once, as a power cut would."""
        self._programs.kill()

    def close(self) -> None:
        """End whatever this deployment started, and nothing else."""
        if self.network:
            self._relays.__exit__(None, None, None)
        self._programs.end(10.0)

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
