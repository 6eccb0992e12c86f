"""A deployment rehearsed on one machine: a SuperLink and a SuperNode for each peer, started and ended."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import tomlkit

from p2pft_flower.cli.connections import (
    add_connection,
    connection_address,
    remove_connection,
    require_flower_home,
)
from p2pft_flower.cli.flwr_run import START_TIMEOUT, flower_environment, program
from p2pft_flower.cli.proxies import answers
from p2pft_flower.errors import ConfigError, DataError, P2PFTError
from p2pft_flower.keeping.folders import read_private, replacing, require_writable
from p2pft_flower.keeping.processes import is_alive, start_mark
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.lab.supervisor import MARK, Programs, marked, undisturbed
from p2pft_flower.resources import home, home_named
from p2pft_flower.topology import Graph
from p2pft_flower.transport import COORDINATOR_CERTIFICATES, parse_address
from p2pft_flower.transport.trust.authority import create_authority, issue
from p2pft_flower.transport.trust.tls import TLS13_ENVIRONMENT
from p2pft_flower.typed import PeerNumber, decoded, encoded, plain

__all__ = [
    "CONNECTION",
    "AlreadyUpError",
    "Peer",
    "Process",
    "Rehearsal",
    "check_rehearsed",
    "current",
    "end",
    "start",
]

CONNECTION = "rehearsal"
"""Name of the connection in Flower's config.toml."""

_LARGEST = 2**24
"""Most bytes of the file ``state.json``."""

PATIENCE = 15.0
"""Seconds that each SuperNode adds to ``START_TIMEOUT``: all share this machine's cores."""


class AlreadyUpError(P2PFTError):
    """A rehearsal is up on this machine, or is being started or ended."""


@dataclass(frozen=True)
class Process:
    """A process of a rehearsal.

    Attributes
    ----------
    name : str
        The process's name for people, as "the SuperNode of peer 2".
    pid : int
        The process's number.
    started : str
        The process's :func:`~p2pft_flower.keeping.processes.start_mark`: the system may later give its number
        to another process.
    log : str
        Path of the file with the process's output.
    """

    name: str
    pid: Annotated[int, msgspec.Meta(gt=0, lt=2**31)]
    started: str
    log: str

    @property
    def alive(self) -> bool:
        """Whether this very process is running."""
        return is_alive(self.pid, self.started)


@dataclass(frozen=True)
class Peer:
    """A peer of a rehearsal.

    Attributes
    ----------
    peer : int
        The peer's number.
    address : str
        The peer's address, ``host:port``.
    certificates : str
        Path of the folder with the peer's certificates.
    node_config : str
        Path of the file with the node-config of the peer's SuperNode.
    """

    peer: PeerNumber
    address: str
    certificates: str
    node_config: str


@dataclass(frozen=True)
class Rehearsal:
    """A rehearsal that is up, as in ``state.json``.

    Attributes
    ----------
    mark : str
        A text that all processes of the rehearsal, and their children, have in their environment
        (:mod:`p2pft_flower.lab.supervisor`).
    federation : str
        The federation's name in the certificates.
    superlink : str
        Address of the SuperLink, ``host:port``.
    peers : tuple of Peer
        The peers, ascending.
    processes : tuple of Process
        The processes of the SuperLink and the SuperNodes; the mark identifies their children.
    schema : str
        The file's schema.
    connection : str
        Name of the connection in Flower's config.toml.
    """

    mark: str
    federation: str
    superlink: str
    peers: tuple[Peer, ...]
    processes: tuple[Process, ...] = ()
    schema: Literal["p2pft.rehearsal/1"] = field(default="p2pft.rehearsal/1", kw_only=True)
    connection: str = field(default=CONNECTION, kw_only=True)

    @property
    def ended(self) -> tuple[Process, ...]:
        """The processes that should be running but are not."""
        return tuple(p for p in self.processes if not p.alive)

    def to_dict(self) -> dict[str, Any]:
        """Return the rehearsal as values for JSON."""
        told: dict[str, Any] = plain(self)
        return told


def folder() -> Path:
    """Return the folder ``$P2PFT_HOME/rehearsal``, which holds state, logs and certificates."""
    return home().absolute() / "rehearsal"


def current() -> Rehearsal | None:
    """Return the rehearsal in ``state.json``; None if none is up.

    Raises
    ------
    DataError
        When the file cannot be read, or is damaged or of another version; the message names the field.
    """
    file = folder() / "state.json"
    remedy = f"end the processes that have {MARK} in their environment, and remove the file"
    try:
        return decoded(read_private(file, _LARGEST), Rehearsal, file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error}): {remedy}") from error
    except DataError as error:
        raise DataError(f"{error}: {remedy}") from error


def check_rehearsed(connection: str, graph: Graph, min_peers: int = 0) -> None:
    """Refuse a graph whose number of peers is not that of the rehearsal that is up, if the run is to use it.

    Parameters
    ----------
    connection : str
        The connection's name in Flower's config.toml.
    graph : Graph
        The graph of the run.
    min_peers : int
        The run-config's ``min-peers``: so many peers may start without the others; 0: all must start.

    Raises
    ------
    ConfigError
        When the two numbers of peers differ (the message gives both); when Flower's config.toml cannot be
        read.
    DataError
        When ``state.json`` cannot be read.
    """
    state = current() if connection == CONNECTION else None
    if state is None or connection_address(CONNECTION) != state.superlink:
        return
    up = len(state.peers)
    if up > graph.n or up < (min_peers or graph.n):
        name = f"directed-ring:{up}" if up > 1 else "complete:1"
        raise ConfigError(
            f"the rehearsal that is up has {up} peer{'s' if up > 1 else ''}, and the graph {graph.name} has "
            f"{graph.n}: give a graph of as many (topology={name}), or p2pft down, and then p2pft up with "
            "--topology and this graph"
        )


def start(graph: Graph, federation: str, show: Callable[[str], None]) -> Rehearsal:
    """Start a SuperLink and a SuperNode for each peer of ``graph``; return when all have registered.

    Parameters
    ----------
    graph : Graph
        The graph, which gives the number of peers, and their addresses if it has any.
    federation : str
        Name of the federation in the certificates.
    show : callable
        Called with a line for each step.

    Raises
    ------
    AlreadyUpError
        When a rehearsal is up.
    ConfigError
        When the graph has an address that is not on this machine, Flower's config.toml has a connection
        :data:`CONNECTION` that another program wrote, or P2PFT_HOME or FLWR_HOME cannot be written to.
    DataError
        When ``state.json`` cannot be read.
    P2PFTError
        When a process ended, or a SuperNode did not register in time; nothing is left running then.
    """
    require_flower_home()
    with _alone():
        before = current()
        if before is not None:
            if marked(before.mark):
                raise AlreadyUpError(_told(before))
            _forget()  # the machine was restarted, or somebody ended the processes
        elif (address := connection_address(CONNECTION)) is not None:
            raise ConfigError(
                f"Flower's config.toml has a connection {CONNECTION!r}, to {address}, that p2pft up has not "
                "written: rename it there, or remove it"
            )
        ports = free_ports(2 * graph.n + 1)  # all at once, so that they differ
        addresses = _addresses(graph, ports[: graph.n])
        for name in ("authority", "coordinator", "peers", "logs"):
            shutil.rmtree(folder() / name, ignore_errors=True)
        (folder() / "logs").mkdir()
        show(f"certificates of {graph.n} peers of the federation {federation}: {folder() / 'peers'}")
        create_authority(folder() / "authority", federation)
        peers = [_prepare(peer, address) for peer, address in enumerate(addresses)]
        issue(folder() / "authority", _coordinators(), "coordinator")  # flwr stop needs it
        environment = flower_environment() | TLS13_ENVIRONMENT
        environment[COORDINATOR_CERTIFICATES] = str(_coordinators())
        programs = Programs(environment)
        state = Rehearsal(programs.mark, federation, f"127.0.0.1:{ports[-1]}", tuple(peers))
        try:
            return _start(state, programs, ports[graph.n :], show)
        except BaseException:
            with undisturbed():
                programs.end()
                _forget()
            raise


def _coordinators() -> Path:
    return folder() / "coordinator"


def _prepare(peer: int, address: str) -> Peer:
    """Issue a peer's certificates and write its SuperNode's node-config, as a site does."""
    own = folder() / "peers" / str(peer)
    host = parse_address(address).host
    issue(folder() / "authority", own, peer, [host] if host else [])
    file = own / "node.toml"
    site = {"peer-id": peer, "peer-address": address, "certificates": str(own)}
    file.write_text(tomlkit.dumps(site), encoding="utf-8")
    return Peer(peer, address, str(own), str(file))


def end(show: Callable[[str], None]) -> Rehearsal | None:
    """End exactly the processes of :func:`start` and their children; return the rehearsal that was up.

    None if no rehearsal was up. ``show`` is called with a line for each step.

    Raises
    ------
    AlreadyUpError
        When a rehearsal is being started or ended.
    ConfigError
        When the rehearsal's folder or Flower's config.toml cannot be read or written.
    DataError
        When ``state.json`` cannot be read.
    P2PFTError
        When a process does not end.
    """
    if not os.path.exists(folder()):  # noqa: PTH110 - Path's own raises where a folder may not be searched
        return None
    with _alone():
        state = current()
        if state is None:
            return None
        show(f"ending the SuperLink and {len(state.peers)} SuperNodes")
        with undisturbed():
            Programs({}, state.mark).end()
            if left := marked(state.mark):
                raise P2PFTError(f"these processes do not end: {', '.join(str(p.pid) for p in left)}")
            _forget()
        return state


def _start(
    state: Rehearsal,
    programs: Programs,
    ports: Sequence[int],
    show: Callable[[str], None],
) -> Rehearsal:
    # The state first: from here on, p2pft down finds the running processes by their mark.
    _save(state)
    here = ["--insecure", "--host", "127.0.0.1", "--port"]  # Flower's own links stay on this machine
    superlink = ["flower-superlink", *here, str(ports[-1]), "--disable-runtime-dependency-installation"]
    commands = {"the SuperLink": superlink}
    for peer, port in zip(state.peers, ports[:-1], strict=True):
        commands[f"the SuperNode of peer {peer.peer}"] = [
            *("flower-supernode", *here, str(port), "--superlink", state.superlink),
            *("--node-config", peer.node_config),
        ]
    show(f"starting the SuperLink on {state.superlink} and {len(state.peers)} SuperNodes")
    started = []
    for name, (executable, *options) in commands.items():
        log = folder() / "logs" / f"{name.removeprefix('the ').replace(' ', '-')}.log"
        process = programs.start(name, [program(executable), *options], log, cwd=folder())
        started.append(process)
        known = Process(name, process.pid, start_mark(process.pid), str(log))
        state = replace(state, processes=(*state.processes, known))
        _save(state)
    add_connection(CONNECTION, state.superlink)
    _wait_for_registration(state, started, programs.environment, show)
    return state


def _wait_for_registration(
    state: Rehearsal,
    started: Sequence[subprocess.Popen[bytes]],
    environment: Mapping[str, str],
    show: Callable[[str], None],
) -> None:
    patience = START_TIMEOUT + PATIENCE * len(state.peers)
    deadline = time.monotonic() + patience
    told, seen, there = -1, 0, False
    while seen < len(state.peers):
        for known, process in zip(state.processes, started, strict=True):
            if process.poll() is not None:
                raise P2PFTError(
                    f"{known.name} ended with code {process.returncode} before all had registered; "
                    f"{_last_lines(known)}"
                )
        if time.monotonic() > deadline:
            raise P2PFTError(
                f"after {patience:g} s {seen} of {len(state.peers)} SuperNodes have registered; "
                + "; ".join(_last_lines(known, 3) for known in state.processes)
            )
        there = there or answers(state.superlink)
        if not there:
            time.sleep(0.1)  # the SuperLink's interface is a poll
            continue
        seen = _registered(environment)
        if seen != told:
            show(f"{seen} of {len(state.peers)} SuperNodes have registered")
            told = seen


def _registered(environment: Mapping[str, str]) -> int:
    """Return the number of SuperNodes online; 0 if Flower answers with an error.

    Raises
    ------
    P2PFTError
        When Flower does not answer in time, or its answer cannot be read.
    """
    command = [program("flwr"), "supernode", "list", CONNECTION, "--format", "json"]
    try:
        asked = subprocess.run(  # noqa: S603 - a program of this environment
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise P2PFTError(f"flwr supernode list did not answer within {START_TIMEOUT:g} s") from error
    try:
        answer = json.loads(asked.stdout)
        return sum(node["status"] == "online" for node in answer.get("nodes", ()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise P2PFTError(
            f"flwr supernode list says nothing that can be read: {asked.stdout}{asked.stderr}"
        ) from error


def _last_lines(process: Process, count: int = 20) -> str:
    lines = Path(process.log).read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
    return f"the last lines of {process.log}:\n" + "\n".join(lines)


def _told(state: Rehearsal) -> str:
    gone = state.ended
    if gone:
        return (
            f"a rehearsal is up, but {', '.join(p.name for p in gone)} has ended (its log: {gone[0].log}): "
            "end the rest with 'p2pft down'"
        )
    return (
        f"a rehearsal with {len(state.peers)} peers is up already (SuperLink on {state.superlink}): use it "
        f"with 'p2pft run --connection {CONNECTION}', or end it with 'p2pft down'"
    )


def _addresses(graph: Graph, ports: Sequence[int]) -> list[str]:
    """Return an address on this machine for each peer: the graph's own, or 127.0.0.1 and one of ``ports``.

    Raises
    ------
    ConfigError
        When the graph has an address that is not on this machine.
    """
    for name, address in zip(graph.peer_names, graph.addresses, strict=True):
        if address is not None and not parse_address(address).is_local:
            raise ConfigError(
                f"the topology {graph.name} gives peer {name} the address {address}, which is not on this "
                "machine's loopback: rehearse with a copy of it without addresses"
            )
    return [address or f"127.0.0.1:{port}" for address, port in zip(graph.addresses, ports, strict=True)]


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Lock the folder for a ``with`` block: one command at a time may start or end a rehearsal.

    Raises
    ------
    AlreadyUpError
        When another command has locked it.
    ConfigError
        When nothing can be written to it.
    """
    require_writable(home_named(), folder(), "set P2PFT_HOME to a folder that can be written")
    folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyUpError("another p2pft up or p2pft down is at work here: wait for it") from None
        yield


def _save(state: Rehearsal) -> None:
    with replacing(folder() / "state.json", on_disk=False) as partial:
        partial.write_bytes(msgspec.json.format(encoded(state)) + b"\n")


def _forget() -> None:
    """Remove the connection, then ``state.json``, which shows that it is ours; logs and certificates stay."""
    remove_connection(CONNECTION)
    (folder() / "state.json").unlink(missing_ok=True)
