"""A SuperLink and SuperNodes on the loopback interface, for tests that kill single processes of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

import p2pft_flower
from p2pft_flower.report.results import log_name
from p2pft_flower.resources import resource_dir
from tests.journals import lines_of

MARK = "P2PFT_TEST_DEPLOYMENT"
"""Environment variable by which whatever a deployment started is known, in whichever session it lives."""

PATIENCE = 240.0
"""Seconds that a test waits for what must come; generous, since tests share their machine."""


def free_ports(n: int) -> list[int]:
    """Return ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


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


class Proxy:
    """Forwards TCP to ``port`` until :meth:`cut`: the network between a SuperNode and its SuperLink."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._open: list[socket.socket] = []
        self._cut = False
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection and take no new one."""
        with self._lock:
            self._cut = True
            sockets = [self._server, *self._open]
        for s in sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with self._lock:
                if self._cut:
                    near.close()
                    far.close()
                    return
                self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                sink.sendall(data)
        for s in (source, sink):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)


class Deployment:
    """One SuperLink and ``n`` SuperNodes, each with a peer and an output folder of its own.

    Attributes
    ----------
    superlink : subprocess.Popen
        The SuperLink.
    supernodes : list of subprocess.Popen
        By peer.
    superexecs : list of subprocess.Popen
        By peer, where ``isolation`` is ``process``: the sites' own executors, which no SuperNode starts.
    proxies : list of Proxy
        By peer; empty unless asked for.
    ports : list of int
        Where the peers listen.
    """

    def __init__(
        self,
        folder: Path,
        n: int = 2,
        *,
        proxied: bool = False,
        isolation: str = "subprocess",
        outputs: list[Path] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.outputs = outputs or [folder / f"site-{p}" for p in range(n)]
        self._mark = str(uuid.uuid4())
        home = folder / "flwr"
        home.mkdir(parents=True)
        root = str(Path(p2pft_flower.__file__).resolve().parent.parent)
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        self.environment = {
            **os.environ,
            MARK: self._mark,
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
        port, *ports = free_ports(1 + 2 * n)
        self.ports, self._runtime = ports[:n], ports[n:]
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "test"\n\n'
            f'[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        options = ["--insecure", "--host", "127.0.0.1"]
        self.superlink = self._start(
            "superlink",
            ["flower-superlink", *options, "--port", str(port), "--disable-runtime-dependency-installation"],
        )
        wait_until(lambda: _healthy(port), "the SuperLink answers")
        self.proxies = [Proxy(port) for _ in range(n)] if proxied else []
        self.supernodes: list[subprocess.Popen[bytes]] = []
        self.superexecs: list[subprocess.Popen[bytes]] = []
        for p in range(n):
            link = self.proxies[p].port if proxied else port
            config = f'peer-id={p} peer-address="127.0.0.1:{self.ports[p]}" output-dir="{self.outputs[p]}"'
            command = ["flower-supernode", *options, "--superlink", f"127.0.0.1:{link}"]
            command += ["--port", str(self._runtime[p]), "--node-config", config, "--isolation", isolation]
            self.supernodes.append(self._start(f"supernode-{p}", command))
            if isolation == "process":
                self.start_superexec(p)

    def start_superexec(self, peer: int) -> None:
        """Start an executor for the SuperNode of ``peer``; it is the last of ``superexecs``."""
        address = f"127.0.0.1:{self._runtime[peer]}"
        command = ["flower-superexec", "--insecure", "--runtime-api-address", address]
        self.superexecs.append(self._start(f"superexec-{len(self.superexecs)}", command))

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        program = shutil.which(command[0], path=self.environment["PATH"])
        assert program is not None, f"{command[0]} is not installed"
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [program, *command[1:]],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

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

    def trains(self, run: str) -> None:
        """Wait until every peer of ``run`` has trained for a while, and is not near its end."""
        peers = range(len(self.outputs))
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
        named = (
            p for p in psutil.process_iter() if any(Path(word).name == program for word in _command(p)[:2])
        )
        return list(self._mine(named))

    def started(self) -> Iterator[psutil.Process]:
        """Yield every process of this deployment that is alive."""
        return self._mine(psutil.process_iter())

    def _mine(self, processes: Iterable[psutil.Process]) -> Iterator[psutil.Process]:
        for process in processes:
            with contextlib.suppress(psutil.Error):  # gone meanwhile, or somebody else's
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def said(self) -> str:
        """Return the ends of all logs, for a failing test."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in logs)

    def kill(self) -> None:
        """Kill whatever this deployment started, all at once, as a power cut would."""
        while left := list(self.started()):  # also what was being started meanwhile
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            for mine in (self.superlink, *self.supernodes):
                mine.wait(20)
            psutil.wait_procs(left, timeout=20)

    def close(self) -> None:
        """End whatever this deployment started, and nothing else."""
        for proxy in self.proxies:
            proxy.cut()
        for number in (signal.SIGTERM, signal.SIGKILL):
            left = list(self.started())
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            for mine in (self.superlink, *self.supernodes, *self.superexecs):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    mine.wait(10)  # reaped, so that those who watch it see that it is gone
            psutil.wait_procs(left, timeout=10)

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
