"""Simulations on a Ray cluster of several nodes: where each host runs, and how the hosts find each other.

Flower gives a message to any idle process of the cluster, so where a host runs is known when it has its plan,
not before. So each host then comes to the run's *register*, an actor of Ray's, with the addresses at which it
will listen, and waits there for all others. Hosts of one node reach each other over Unix sockets, as in a
simulation on one machine; those of different nodes over TCP, in plain text, as Ray itself sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from p2pft_flower.errors import Cause, ConfigError, P2PFTError
from p2pft_flower.host.wires import Access
from p2pft_flower.keeping.folders import look_at
from p2pft_flower.plan import Plan
from p2pft_flower.transport import ExchangeStoppedError, tcp_address, unix_address

__all__ = ["LONGER", "Place", "Register", "here", "met"]

log = logging.getLogger("p2pft_flower")

LONGER = 10
"""How many times as long a node holds its answer to a hello: Ray starts processes on many machines."""

_START = 60.0
"""Seconds that Ray has to start the register."""


@dataclass(frozen=True)
class Place:
    """A node of Ray's cluster.

    Attributes
    ----------
    node : str
        Ray's id of the node.
    address : str
        The node's IP address, by which Ray's nodes reach each other.
    machine : str
        The machine's name.
    """

    node: str
    address: str
    machine: str

    def __str__(self) -> str:
        return f"Ray's node {self.address} ({self.machine})"


@dataclass(frozen=True)
class Arrival:
    """What a host brings to the register.

    Attributes
    ----------
    peers : tuple of int
        The host's peers, ascending.
    place : Place
        Where it runs.
    near : dict of int to str
        The address of each of its peers for hosts of the same node.
    far : str
        Its address for hosts of other nodes.
    facts : dict of str to str
        What must be the same on all nodes, by name: versions, and digests of the data.
    fault : str
        Why the host cannot take part; empty if it can.
    """

    peers: tuple[int, ...]
    place: Place
    near: dict[int, str]
    far: str
    facts: dict[str, str]
    fault: str

    def __str__(self) -> str:
        return f"peers {list(self.peers)} on {self.place}"


def here() -> Place | None:
    """Return the node on which this process runs; None if Ray has no cluster of several nodes."""
    if "ray" not in sys.modules:
        return None
    import ray

    if not ray.is_initialized() or sum(bool(node["Alive"]) for node in ray.nodes()) < 2:
        return None
    node = ray.get_runtime_context().get_node_id()
    return Place(node, ray.util.get_node_ip_address(), platform.node())


class _Meeting:
    """The register's actor: holds each host's call until all hosts have come."""

    def __init__(self, hosts: int) -> None:
        self._hosts = hosts
        self._arrivals: list[Arrival] = []
        self._complete = asyncio.Event()

    async def come(self, arrival: Arrival) -> list[Arrival]:
        """Take a host's arrival in, and return those of all hosts once all are there."""
        self._arrivals.append(arrival)
        if len(self._arrivals) == self._hosts:
            self._complete.set()
        return await self.complete()

    async def complete(self) -> list[Arrival]:
        """Return the arrivals of all hosts once all are there, by their peers."""
        await self._complete.wait()
        return self.arrived()

    def arrived(self) -> list[Arrival]:
        """Return the arrivals so far, by their peers."""
        return sorted(self._arrivals, key=lambda arrival: arrival.peers)


class Register:
    """The coordinator's side of a run's register; a context manager.

    On one node there is none: ``name`` is empty, and the hosts have their addresses from the plan.

    Parameters
    ----------
    run : str
        The run's identifier.
    hosts : sequence of tuple of int
        The peers of each host.
    folder : Path
        The folder of the results, which all nodes must share: a file in it shows each host that they do.

    Attributes
    ----------
    name : str
        The actor's name, for the hosts' plans; empty if Ray has one node only.
    """

    def __init__(self, run: str, hosts: Sequence[tuple[int, ...]], folder: Path) -> None:
        self._place = here()
        self.name = "" if self._place is None else f"p2pft-{run}"
        self._hosts, self._mark = hosts, _mark(folder, self.name)
        self._actor: Any = None
        self._complete: Any = None

    def __enter__(self) -> Register:
        if self._place is None:
            return self
        import ray

        self._mark.touch()
        actor = ray.remote(num_cpus=0)(_Meeting).options(name=self.name)
        self._actor = actor.remote(len(self._hosts))
        try:
            ray.get(self._actor.arrived.remote(), timeout=_START)
        except ray.exceptions.RayError as error:
            self.__exit__()
            raise P2PFTError(
                f"Ray has not started the register of the run's hosts within {_START:g} s, an actor without "
                f"a CPU of its own ({type(error).__name__}: {error}); ray status shows how the cluster is"
            ) from error
        self._complete = self._actor.complete.remote()
        return self

    def __exit__(self, *_: object) -> None:
        if self._actor is None:
            return
        import ray

        self._mark.unlink(missing_ok=True)
        ray.kill(self._actor)

    @property
    def observer(self) -> str:
        """The address at which the coordinator can listen for hosts of other nodes; empty on one node."""
        return "" if self._place is None else tcp_address(self._place.address, 0)

    def tell(self, *_: object) -> None:
        """Log where the hosts run, once all have come to the register; returns at once."""
        if self._complete is None:
            return
        import ray

        if ray.wait([self._complete], timeout=0)[0]:
            for arrival in ray.get(self._complete):
                log.info("%s", arrival)
            self._complete = None


def _mark(folder: Path, name: str) -> Path:
    return folder / f".{name}"


@contextlib.contextmanager
def met(plan: Plan, facts: Callable[[], Mapping[str, str]]) -> Iterator[tuple[Plan, Access]]:
    """Meet the other hosts at the plan's register, in a ``with`` block that lasts as long as the host runs.

    The register is an actor of Ray that the coordinator starts if the cluster has several nodes. Without one
    the plan is returned as it is.

    Parameters
    ----------
    plan : Plan
        The host's plan.
    facts : callable
        Returns what must be the same on all nodes, by name.

    Yields
    ------
    plan : Plan
        The plan with ``addresses`` filled in.
    access : Access
        A further address to listen on, if hosts run on other nodes, and whether plain text may leave this
        machine.

    Raises
    ------
    ConfigError
        When this node lacks the folder of the results, cannot write to it, or differs from the first host
        in a fact.
    DataError
        When ``facts`` raises it: the data cannot be read here.
    ExchangeStoppedError
        When another host has a fault of these two kinds.
    P2PFTError
        When not all hosts come within ``meet-timeout``, the register cannot be reached, or all other nodes
        have left the cluster.
    """
    place = here() if plan.register else None
    if place is None:
        if plan.register:
            raise P2PFTError("Ray's cluster has one node left: the others have gone since the run began")
        yield plan, Access()
        return
    with _reserved_port(place.address) as port:
        fault: P2PFTError | None = None
        found: Mapping[str, str] = {}
        try:
            _require_shared(plan, place)
            found = facts()
        except P2PFTError as error:
            fault = error
        own = [p.peer for p in plan.peers]
        near = {p: unix_address(plan.run, p) for p in own}
        told = "" if fault is None else str(fault)
        arrival = Arrival(tuple(own), place, near, tcp_address(place.address, port), dict(found), told)
        arrivals = _gathered(plan, arrival)
        if fault is not None:
            raise fault
        _require_alike(arrivals, arrival)
        access = Access(insecure=True, also=arrival.far if len({a.place for a in arrivals}) > 1 else "")
        yield replace(plan, addresses=addresses_at(place, arrivals, plan.addresses)), access


def addresses_at(place: Place, arrivals: Sequence[Arrival], known: Mapping[int, str]) -> dict[int, str]:
    """Return the addresses of the peers in ``known``, as a host at ``place`` reaches them."""
    found = {p: a.near[p] if a.place == place else a.far for a in arrivals for p in a.peers}
    return {p: found[p] for p in known}


@contextlib.contextmanager
def _reserved_port(address: str) -> Iterator[int]:
    """Keep a free port of ``address`` from others; a server of this process can listen on it meanwhile.

    Two sockets may be bound to one port if both say SO_REUSEADDR, as gRPC's do, and one of them listens.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((address, 0))
        yield held.getsockname()[1]


def _require_shared(plan: Plan, place: Place) -> None:
    """Refuse a node whose folder of the results is not the coordinator's, or cannot be written to."""
    folder = Path(plan.output_dir)
    remedy = "give --out, or P2PFT_HOME, a folder that all nodes share"
    if not _mark(folder, plan.register).exists():
        raise ConfigError(f"output-dir = {folder}: on {place} this is not the coordinator's folder; {remedy}")
    if error := look_at("output-dir", folder).error:
        raise ConfigError(f"output-dir = {folder}: nothing can be written to it on {place} ({error})")


def _gathered(plan: Plan, arrival: Arrival) -> list[Arrival]:
    """Return the arrivals of all hosts, once all have come."""
    import ray

    patience = plan.config.runtime.meet_timeout
    try:
        register = ray.get_actor(plan.register)
        try:
            arrivals: list[Arrival] = ray.get(register.come.remote(arrival), timeout=patience)
        except ray.exceptions.GetTimeoutError:
            there = [p for a in ray.get(register.arrived.remote(), timeout=_START) for p in a.peers]
            missing = sorted(set(plan.live) - set(there)) if not plan.pooled else []
            raise P2PFTError(
                f"after {patience:g} s (meet-timeout) the hosts of peers {missing} have not come: does the "
                "cluster still have a free CPU for each host (ray status)?"
            ) from None
    except (ray.exceptions.RayError, ValueError) as error:
        raise P2PFTError(
            f"the register of the run's hosts cannot be reached from {arrival.place}: {error}"
        ) from error
    return arrivals


def _require_alike(arrivals: Sequence[Arrival], own: Arrival) -> None:
    """Refuse to run if a host has a fault, or other facts than the first one."""
    first = arrivals[0]
    faults = {a.peers: a.fault for a in arrivals if a.fault}
    for arrival in () if faults else arrivals:
        odd = [what for what, value in first.facts.items() if arrival.facts.get(what) != value]
        if odd:
            values = (f"{w} is {arrival.facts.get(w)}, on {first.place} {first.facts[w]}" for w in odd)
            faults[arrival.peers] = (
                f"{'; '.join(values)}: all nodes need the same packages, and the same data at the same path"
            )
    if own.peers in faults:
        raise ConfigError(faults[own.peers])
    for arrival in arrivals:
        if arrival.peers in faults:
            raise ExchangeStoppedError.by(Cause.OWN, f"{arrival}: {faults[arrival.peers]}")
