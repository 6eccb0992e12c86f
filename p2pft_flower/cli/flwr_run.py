"""Start Flower's programs and watch them: a private SuperLink for simulations, and ``flwr run``."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pft_flower.cli.proxies import answers, without_local_proxies
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.flower.logs import LINE
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.lab.supervisor import PATIENCE, Programs, undisturbed
from p2pft_flower.resources import resource_dir

__all__ = [
    "FLOWER_STOPPED",
    "Ended",
    "FlowerError",
    "flower_environment",
    "local_superlink",
    "program",
    "run_app",
    "temporary_folder",
]

START_TIMEOUT = 60.0
"""Seconds that a SuperLink may take to answer."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_STARTED = re.compile(r"Successfully started run (\d+)")

SHORT = 24
"""Longest path of a folder for temporary files, in characters, that leaves room for Ray's sockets."""

FLOWER_STOPPED = "finished:stopped"
"""Flower's status of a run that ``flwr stop`` stopped."""

_OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class FlowerError(P2PFTError):
    """Flower's own command line failed; the message holds its output."""


@dataclass(frozen=True)
class Ended:
    """The end of a run.

    Attributes
    ----------
    run_id : str
        Flower's number of the run.
    completed : bool
        Whether the run finished without an error, by Flower's status.
    status : str
        Flower's status of the run, e.g. ``finished:completed``.
    output : str
        The whole output of ``flwr run``.
    """

    run_id: str
    completed: bool
    status: str
    output: str


def flower_environment() -> dict[str, str]:
    """Return this process's environment, changed for Flower's programs.

    The programs beside this Python are found first, Flower sends no telemetry and looks for no updates, and
    programs on this machine reach each other without the proxies that the environment names.
    """
    # The environment's own programs come first, even if its bin is not on PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**without_local_proxies(os.environ), **_OFFLINE, "PATH": path, "PYTHONUNBUFFERED": "1"}


def program(name: str) -> str:
    """Return the path of a program of this environment.

    Raises
    ------
    FlowerError
        When the program is not installed.
    """
    found = shutil.which(name, path=flower_environment()["PATH"])
    if found is None:
        raise FlowerError(f"{name} is not installed in this environment: pip install 'flwr[simulation]'")
    return found


@contextlib.contextmanager
def local_superlink(ray_address: str = "") -> Iterator[dict[str, str]]:
    """Run a SuperLink of our own for simulations during a ``with`` block, and end it with all its children.

    The SuperLink that Flower manages keeps the working directory and environment of its first start, and
    outlives the command; this one has ours, on free ports, and leaves nothing behind.

    Parameters
    ----------
    ray_address : str
        Address of a Ray cluster that runs the simulations; default empty: Flower starts Ray on this machine.

    Yields
    ------
    dict of str to str
        The environment for ``flwr``.

    Raises
    ------
    ConfigError
        When no folder for temporary files can be written to.
    FlowerError
        When the SuperLink is not installed, ends, or does not answer in time.
    """
    base = temporary_folder()
    with tempfile.TemporaryDirectory(prefix="p2pft-", dir=base, ignore_cleanup_errors=True) as scratch:
        yield from _superlink(Path(scratch), ray_address)


def temporary_folder() -> Path:
    """Return the folder for a run's temporary files.

    Raises
    ------
    ConfigError
        When there is no such folder, or nothing can be written to it.
    """
    remedy = f"set TMPDIR to a folder that can be written, with a path of at most {SHORT} characters"
    named = f"TMPDIR = {os.environ.get('TMPDIR', '')!r}"
    try:
        chosen = tempfile.gettempdir()
    except OSError as error:
        raise ConfigError(f"{named}: there is no folder for temporary files ({error}); {remedy}") from error
    # The paths of Ray's sockets have room for a short folder only.
    base = Path(chosen if len(chosen) <= SHORT else "/tmp")  # noqa: S108 - a folder of mode 0700 is made in it
    require_writable(named, base, remedy)
    return base


def _superlink(scratch: Path, ray_address: str) -> Iterator[dict[str, str]]:
    http, control = free_ports(2)
    environment = flower_environment() | {
        "RAY_ADDRESS": ray_address,  # which Ray reads; empty: as if it were not there
        # Sockets of the run and Ray's session: removed with this folder even if a process was killed.
        "TMPDIR": str(scratch),
        "RAY_TMPDIR": str(scratch),
        # Else Ray starts a process for each core that no actor uses: Flower gives these another environment.
        "RAY_prestart_worker_first_driver": "0",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
    }
    command = [
        program("flower-superlink"),
        "--insecure",
        "--simulation",
        "--isolation",
        "subprocess",
        "--control-api-address",
        f"127.0.0.1:{control}",
        "--host",
        "127.0.0.1",
        "--port",
        str(http),
    ]
    with Programs(environment) as programs:
        process = programs.start("superlink", command, scratch / "superlink.log")
        _wait_until_it_answers(process, http, programs)
        try:
            yield programs.environment
        finally:
            # The SuperLink ends all that it has started, in good order.
            with undisturbed(), contextlib.suppress(subprocess.TimeoutExpired):
                process.terminate()
                process.wait(PATIENCE)


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, programs: Programs) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        if answers(f"127.0.0.1:{port}"):
            return
        time.sleep(0.1)  # the SuperLink's interface is a poll
    raise FlowerError(
        f"flower-superlink did not answer on port {port} within {START_TIMEOUT:g} s; it said:\n"
        f"{programs.said('superlink', 2000)}"
    )


def run_app(
    values: Mapping[str, Any],
    *,
    connection: str | None,
    environment: Mapping[str, str] | None,
    federation: str,
    show: Callable[[str], None],
    verbose: bool = False,
) -> Ended:
    """Start a run with ``flwr run``, show its log as it comes, and return its end.

    Parameters
    ----------
    values : mapping
        Run-config keys and values.
    connection : str or None
        A connection of Flower's config.toml; None for Flower's default one.
    environment : mapping or None
        The environment for ``flwr``, from :func:`local_superlink`; None: :func:`flower_environment`.
    federation : str
        Keys and values for ``flwr run --federation-config``; empty: Flower's federation stays as it is.
    show : callable
        Called with each line that is shown.
    verbose : bool
        Whether Flower's own lines and tracebacks are shown, too.

    Raises
    ------
    FlowerError
        When ``flwr`` is not installed, does not start the run, or does not report its end.
    """
    env = dict(environment or flower_environment())
    flwr = program("flwr")
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as config:
        # TOML differs from JSON's text in one character only.
        written = (f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        config.write("".join(written).replace("\x7f", "\\u007f"))
        config.flush()
        command = [flwr, "run", str(resource_dir("apps") / "p2pft"), *([connection] if connection else [])]
        command += ["--stream", "--run-config", config.name]
        command += ["--federation-config", federation] if federation else []
        run_id, output = None, []
        show("asking Flower for a run …")
        with subprocess.Popen(  # noqa: S603 - a program of this environment
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process:
            try:
                for raw in process.stdout or ():
                    line = _ANSI.sub("", raw.rstrip("\n"))
                    output.append(line)
                    if (started := _STARTED.search(line)) is not None:
                        run_id = started[1]
                        show(f"run {run_id} has started; it looks for its peers …")
                    if verbose or LINE.match(line):
                        show(line)
            except BaseException:
                _stop(process, flwr, run_id, connection, env)
                raise
    text = "\n".join(output)
    if run_id is None:
        raise FlowerError(f"flwr run did not start the run:\n{text.strip()}")
    status = _status(flwr, run_id, connection, env)
    return Ended(run_id, status == "finished:completed", status, text)


def _stop(
    process: subprocess.Popen[str], flwr: str, run_id: str | None, connection: str | None, env: dict[str, str]
) -> None:
    """End ``flwr run``, and stop the run, if it has started, with ``flwr stop``: the user gave it up."""
    process.terminate()
    if run_id is not None:
        command = [flwr, "stop", run_id, *([connection] if connection else [])]
        with contextlib.suppress(subprocess.TimeoutExpired):  # the run is given up in any case
            subprocess.run(command, env=env, capture_output=True, timeout=30, check=False)  # noqa: S603


def _status(flwr: str, run_id: str, connection: str | None, env: dict[str, str]) -> str:
    command = [flwr, "ls", *([connection] if connection else []), "--run-id", run_id, "--format", "json"]
    said = ""
    try:
        asked = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
        said = asked.stdout + asked.stderr
        return str(json.loads(asked.stdout)["runs"][0]["status"])
    except (subprocess.TimeoutExpired, json.JSONDecodeError, KeyError, IndexError) as error:
        raise FlowerError(f"flwr ls does not report how run {run_id} ended: {said or error}") from error
