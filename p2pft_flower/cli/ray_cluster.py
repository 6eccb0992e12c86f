"""A Ray cluster that runs a simulation in place of this machine alone: is it there, and how much fits."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from p2pft_flower.cli.flwr_run import flower_environment
from p2pft_flower.errors import ConfigError
from p2pft_flower.transport import parse_address

__all__ = ["RayCluster", "look", "share_of_cpus"]

PATIENCE = 60
"""Seconds that Ray has to connect to the cluster."""

ANSWER = 5
"""Seconds that the cluster's head has to take a connection."""

ENGINE_MOST, ENGINE_MORE = 32, 4
"""Flower's engine runs as many ClientApps at once as this machine has cores and four more, at most 32."""

_LOOK = """
import json, sys
import ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps([node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]))
"""


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster.

    Attributes
    ----------
    address : str
        The address of its head, ``host:port``.
    cpus : tuple of int
        The CPUs of each node.
    """

    address: str
    cpus: tuple[int, ...]

    def federation(self, most: int) -> str:
        """Return the values of ``--federation-config`` for at most ``most`` hosts, spread over all nodes."""
        engine = min(ENGINE_MOST, (os.cpu_count() or 1) + ENGINE_MORE)
        hosts = min(most, sum(self.cpus), engine)
        return f"num-supernodes={hosts} client-resources-num-cpus={share_of_cpus(self.cpus, hosts)}"


def share_of_cpus(cpus: Sequence[int], hosts: int) -> int:
    """Return the most CPUs of a host with which ``hosts`` hosts still fit on nodes with these CPUs.

    Ray then makes hardly more processes than are needed, and those that are used lie on all nodes.
    """
    return max(c for c in range(1, max(cpus) + 1) if c == 1 or sum(n // c for n in cpus) >= hosts)


def look(address: str) -> RayCluster:
    """Connect to a Ray cluster, and return what it has.

    In a process of its own, since Ray takes over a process's signals.

    Raises
    ------
    ConfigError
        When there is no such cluster, this machine is none of its nodes, or it has no CPU.
    """
    named = f"--ray-address {address}"
    place = parse_address(address)
    if place.path is not None:
        raise ConfigError(f"{named}: a Ray cluster's address is host:port, as ray start --head prints it")
    try:
        socket.create_connection((place.host, place.port), ANSWER).close()
    except OSError as error:
        raise ConfigError(
            f"{named}: nobody answers there ({error}); does the cluster run (ray status)?"
        ) from None
    try:
        asked = subprocess.run(  # noqa: S603 - this Python
            [sys.executable, "-c", _LOOK, address],
            env=flower_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{named}: no Ray cluster answers there within {PATIENCE} s (ray status)") from None
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
        raise ConfigError(
            f"{named}: Ray cannot connect ({said}); is it the address that ray start --head has printed, "
            "and is this machine one of the cluster's nodes?"
        )
    cpus = tuple(int(n) for n in json.loads(asked.stdout.splitlines()[-1]))
    if not sum(cpus):
        raise ConfigError(f"{named}: no node of this cluster has a CPU (ray start --num-cpus)")
    return RayCluster(address, cpus)
