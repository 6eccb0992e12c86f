"""Whether deployed peers can trust each other and the coordinator, found out before anything trains."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from p2pft_flower.config import RunConfig
from p2pft_flower.errors import P2PFTError, printable
from p2pft_flower.flower.nodes import HostAssignment, RunFailedError
from p2pft_flower.host.wires import Access
from p2pft_flower.topology.views import View
from p2pft_flower.transport import COORDINATOR_CERTIFICATES, Credentials, parse_address

__all__ = [
    "Distrust",
    "coordinator_credentials",
    "find_coordinators",
    "find_distrust",
    "observer_access",
    "require_usable",
]

log = logging.getLogger("p2pft_flower")


class Distrust(NamedTuple):
    """The reasons why peers cannot trust each other.

    Attributes
    ----------
    faults : list of str
        Each names peers and remedy; empty if there are none.
    peers : frozenset of int
        The peers whose links need not be looked at: they would fail for these reasons.
    """

    faults: list[str]
    peers: frozenset[int]


def require_usable(hosts: Sequence[HostAssignment], answers: Mapping[int, Mapping[str, Any]]) -> Distrust:
    """Return no distrust, of a run without a preflight.

    Raises
    ------
    RunFailedError
        When certificates cannot be used; has the faults of all sites.
    """
    if faults := list(_unusable(hosts, answers).values()):
        raise RunFailedError("\n  ".join(faults))
    return Distrust([], frozenset())


def _unusable(hosts: Sequence[HostAssignment], answers: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """Return the faults of certificates that cannot be used, by peer."""
    faults = {host.peers[0]: answers[host.node].get("fault") for host in hosts}
    return {peer: f"peer {peer}: {printable(fault)}" for peer, fault in faults.items() if fault}


def find_distrust(
    view: View, hosts: Sequence[HostAssignment], answers: Mapping[int, Mapping[str, Any]]
) -> Distrust:
    """Find certificates that cannot be used or are of several federations, and plain text between machines.

    Parameters
    ----------
    view : View
        The peers that are there, and their graph.
    hosts : sequence of HostAssignment
        One host for each peer, with the peer's address.
    answers : mapping of int to mapping
        Each node's answer to hello: ``federation``, ``insecure``, and ``fault``, the reason why its
        certificates cannot be used, or empty.
    """
    unusable = _unusable(hosts, answers)
    faults = list(unusable.values())
    distrusted = set(unusable)
    members: dict[str, list[int]] = {}
    for host in hosts:
        if host.peers[0] not in unusable:
            members.setdefault(answers[host.node]["federation"], []).append(host.peers[0])
    strangers = members.pop("", [])
    if len(members) > 1:
        listed = "; ".join(f"{name!r}: peers {peers}" for name, peers in sorted(members.items()))
        faults.append(
            f"the peers are of different federations, {listed}: give all of them certificates of one"
        )
        distrusted.update(view.peers)
    if members and strangers:
        names, peers = sorted(members), sorted(p for some in members.values() for p in some)
        faults.append(
            f"peers {strangers} have no certificates, peers {peers} have those of federation "
            f"{', '.join(map(repr, names))}: set certificates in every --node-config, or in none"
        )
        distrusted.update(strangers)
        return Distrust(faults, frozenset(distrusted))
    for host in hosts:
        if host.peers[0] not in strangers or answers[host.node]["insecure"]:
            continue
        peer = host.peers[0]
        reached = sorted(view.row(peer).keys() | view.column(peer).keys())
        given = {h.peers[0]: h.address for h in hosts}
        for other in reached if len(reached) > 1 else ():
            address = given[other]
            if address and not parse_address(address).is_local:
                faults.append(
                    f"peer {peer} has no certificates, and peer {other} at {address} is on another machine: "
                    "set certificates in --node-config ('p2pft certs issue' makes them), or insecure = true "
                    "to send in plain text"
                )
                distrusted.add(peer)
                break
    return Distrust(faults, frozenset(distrusted))


def coordinator_credentials(answers: Mapping[int, Mapping[str, Any]]) -> Credentials | None:
    """Return the certificates with which the coordinator stops peers; None if the peers have none.

    If the peers have some and the coordinator has none, the value is None too, after a warning.

    Parameters
    ----------
    answers : mapping of int to mapping
        Each node's answer to hello: ``federation``.

    Raises
    ------
    ConfigError
        When the folder that the environment variable ``COORDINATOR_CERTIFICATES`` names cannot be used.
    RunFailedError
        When the coordinator's certificate is of another federation than the peers'.
    """
    federations = sorted({answer["federation"] for answer in answers.values()} - {""})
    if not federations:
        return None
    folder = os.environ.get(COORDINATOR_CERTIFICATES)
    if not folder:
        log.warning(
            "the peers have certificates and the coordinator has none: flwr stop and Ctrl-C will not reach "
            "the peers, which then train on until p2pft stop at any one site. Set %s in the SuperLink's "
            "environment to a folder that 'p2pft certs issue --coordinator' made",
            COORDINATOR_CERTIFICATES,
        )
        return None
    own = Credentials.load(Path(folder).expanduser(), "coordinator")
    for warning in own.warnings:
        log.warning("%s", warning)
    if own.federation not in federations:
        raise RunFailedError(
            f"{COORDINATOR_CERTIFICATES} = {folder} is for {own.facts.identity}, but the peers are of "
            f"{', '.join(map(repr, federations))}: set it to a folder that the peers' own authority issued"
        )
    return own


def find_coordinators(
    answers: Mapping[int, Mapping[str, Any]], distrust: Distrust, *, preflight: bool
) -> tuple[Credentials | None, Distrust]:
    """Return :func:`coordinator_credentials`, and ``distrust`` with the reason if they cannot be used.

    Raises
    ------
    ConfigError, RunFailedError
        When they cannot be used and no ``preflight`` follows, which would tell that with all other faults.
    """
    try:
        return coordinator_credentials(answers), distrust
    except P2PFTError as error:
        if not preflight:
            raise
        return None, distrust._replace(faults=[*distrust.faults, f"coordinator: {error}"])


def observer_access(
    config: RunConfig, answers: Mapping[int, Mapping[str, Any]], own: Credentials | None
) -> Access | None:
    """Return the access with which the coordinator listens to the progress of deployed peers.

    None if it does not listen: without ``observer-address``, or, after a warning, if the peers have
    certificates and the coordinator has none. It listens with its certificate if it has one, else in plain
    text; beyond this machine it does so only if all peers say ``insecure``.

    Parameters
    ----------
    config : RunConfig
        The run's settings, ``observer-address`` among them.
    answers : mapping of int to mapping
        Each node's answer to hello: ``federation``, ``insecure``.
    own : Credentials or None
        The coordinator's certificates, from :func:`coordinator_credentials`.
    """
    address = config.runtime.observer_address
    if not address:
        return None
    if own is None and any(answer["federation"] for answer in answers.values()):
        log.warning(
            "observer-address = %s: nobody listens there, as the peers have certificates and the coordinator "
            "has none; set %s in the SuperLink's environment, or leave observer-address out",
            address,
            COORDINATOR_CERTIFICATES,
        )
        return None
    return Access(own, own is None and all(answer["insecure"] for answer in answers.values()))
