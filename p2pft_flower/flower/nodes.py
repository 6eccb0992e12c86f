"""The nodes of a run: their replies, and peers folded onto the hosts that really run at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pft_flower.errors import Cause, P2PFTError, printable, said_by
from p2pft_flower.flower import cluster, messages
from p2pft_flower.report.results import ViewRow
from p2pft_flower.topology import Graph
from p2pft_flower.transport import parse_address

if TYPE_CHECKING:  # the command line needs no Flower, which takes long to import
    from flwr.app import Message
    from flwr.serverapp import Grid

__all__ = [
    "HostAssignment",
    "Reminder",
    "RunFailedError",
    "assign_hosts",
    "collect",
    "overlap",
    "with_addresses",
]

log = logging.getLogger(__name__)

POLL = 0.2
"""Seconds between two looks for replies."""


REMIND = 10.0
"""Seconds after which people are told again what is waited for, and for how long at most."""

NEEDLESS = 3.0
"""Seconds that a node whose reply is not needed still has for it."""


class RunFailedError(P2PFTError):
    """The run failed; the message says which peer or node, and why.

    Attributes
    ----------
    ended_by : Cause or None
        The cause in the host's answer; None if no host has answered with a cause.
    views : list of ViewRow
        The changes of view in the hosts' answers.
    results : dict or None
        What is known of the run, as results.json has it; None if it ended before its peers trained.
    """

    def __init__(self, message: str, ended_by: Cause | None = None, views: Sequence[ViewRow] = ()) -> None:
        self.ended_by = ended_by
        self.views = list(views)
        self.results: dict[str, Any] | None = None
        super().__init__(message)

    @property
    def stopped(self) -> bool:
        """Whether somebody stopped the run, at one of its sites or at its coordinator: nothing went wrong."""
        return self.ended_by is Cause.STOPPED


@dataclass(frozen=True)
class HostAssignment:
    """One host of the run.

    Attributes
    ----------
    node : int
        Flower's node id.
    peers : tuple of int
        The peers that the host runs.
    address : str
        In a deployment, the address of its only peer. Empty in simulation, and if neither the node-config nor
        the graph has an address.
    """

    node: int
    peers: tuple[int, ...]
    address: str = ""


class Reminder:
    """Tells when to say again that something is waited for: :data:`REMIND` seconds after the last time."""

    def __init__(self) -> None:
        self._last: float | None = None

    def due(self, now: float) -> bool:
        """Return whether it is time at ``now``, in seconds; the first call counts as the first time."""
        if self._last is None or now - self._last < REMIND:
            self._last = now if self._last is None else self._last
            return False
        self._last = now
        return True


def is_failure(message: Message) -> bool:
    """Tell whether a reply says that something failed."""
    return message.has_error() or "error" in messages.unpack(message)


def collect(
    grid: Grid,
    sent: Sequence[Message],
    timeout: float,
    grace: float,
    ends: Callable[[Message], bool] = is_failure,
    needless: Callable[[Mapping[int, Message]], Collection[int]] = lambda _: (),
    tell: Callable[[int, float], None] = lambda *_: None,
) -> dict[int, Message]:
    """Send messages and gather the replies by node id.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    sent : sequence of Message
        One message for each node.
    timeout : float
        Seconds to wait for all replies.
    grace : float
        Seconds to wait for the other replies once ``ends`` is true of one.
    ends : callable
        Given a reply, returns whether the others must come within ``grace``. Default: if it is a failure.
    needless : callable
        Given the replies so far, returns the nodes without whose replies all is known: when only these are
        missing, they have :data:`NEEDLESS` seconds. Default: none.
    tell : callable
        Called now and then with the number of replies so far and the seconds that are left for the others.
        Default: nobody is told.

    Returns
    -------
    dict of node id to reply
        Has no entry for a node that did not reply in time.
    """
    ids = list(grid.push_messages(sent))
    nodes = {i: m.metadata.dst_node_id for i, m in zip(ids, sent, strict=True)}
    replies: dict[int, Message] = {}
    deadline = time.monotonic() + timeout
    while nodes and time.monotonic() < deadline:
        for message in grid.pull_messages(list(nodes)):
            node = nodes.pop(message.metadata.reply_to_message_id)
            replies[node] = message
            if ends(message):
                deadline = min(deadline, time.monotonic() + grace)
            if nodes and set(nodes.values()) <= set(needless(replies)):
                deadline = min(deadline, time.monotonic() + NEEDLESS)
        if nodes:
            tell(len(replies), deadline - time.monotonic())
            time.sleep(POLL)  # Flower's interface is a poll
    return replies


def machine_of(message: Message) -> str:
    """Return the machine of a reply's sender, if it says so; else an empty text."""
    return printable(str(messages.unpack(message).get("sender", {}).get("machine", "")))


def body_of(message: Message, who: str) -> dict[str, Any]:
    """Return the ``ok`` of a reply.

    Parameters
    ----------
    message : Message
        The reply.
    who : str
        The sender's name for people, such as ``"peer 3"``; empty if it does not matter who it is.

    Raises
    ------
    RunFailedError
        When the reply reports an error; the message names ``who`` and the error.
    """
    if message.has_error():
        told = f"Flower reports error {message.error.code}: {message.error.reason}"
        raise RunFailedError(f"{who}: {told}" if who else told)
    body = messages.unpack(message)
    if "error" in body:
        if "traceback" in body:
            log.error("%s", body["traceback"])
        text = printable(body["error"])
        raise RunFailedError(said_by(who, text) if who else text, Cause[body["cause"]])
    return body["ok"]  # type: ignore[no-any-return]  # JSON


def overlap(answers: Sequence[dict[str, Any]]) -> int:
    """Return the largest number of hellos that were being answered at the same moment."""
    events = sorted([(a["begin"], 1) for a in answers] + [(a["end"], -1) for a in answers])
    running = np.cumsum([change for _, change in events])
    return int(running.max())


ONE_HOST = 256
"""Number of peers from which all are on one host if they are on one machine (docs/performance.md)."""


def many_on_one_host(transport: str, n: int) -> bool:
    """Return whether the ``n`` peers of a machine share a host, as payloads between hosts would cost more."""
    return transport == "auto" and n >= ONE_HOST


def assign_hosts(
    answers: dict[int, dict[str, Any]], n: int, transport: str, *, pooled: bool
) -> list[HostAssignment]:
    """Return one host for each node that runs peers, with its peers.

    Parameters
    ----------
    answers : dict
        Each node's answer by node id, from :func:`greet`.
    n : int
        Number of peers of the graph.
    transport : str
        The run-config's ``transport``; ``"memory"`` puts all peers on one host, and so does ``"auto"`` with
        :data:`ONE_HOST` peers and more on one machine.
    pooled : bool
        Whether one peer holds the data of all n.

    Raises
    ------
    RunFailedError
        When the run is a deployment, but ``pooled`` or ``transport = "memory"`` needs all peers in one
        process.
    """
    total = 1 if pooled else n
    deployed = {node: a for node, a in answers.items() if a["peer-id"] is not None}
    if not deployed:
        together = transport == "memory" or (many_on_one_host(transport, n) and cluster.here() is None)
        slots = 1 if together else overlap(list(answers.values()))
        nodes = sorted(answers)[: min(slots, total)]
        # Contiguous stretches, so that most neighbours of rings and grids share a host.
        return [
            HostAssignment(node, tuple(int(p) for p in stretch))
            for node, stretch in zip(nodes, np.array_split(np.arange(total), len(nodes)), strict=True)
        ]
    if pooled or (transport == "memory" and total > 1):
        raise RunFailedError(
            "the peers run on separate SuperNodes, so their data cannot be pooled nor their payloads stay in "
            "memory: run algorithm = centralized and transport = memory in simulation"
        )
    owner = {answer["peer-id"]: node for node, answer in deployed.items()}
    return [HostAssignment(owner[p], (p,), deployed[owner[p]]["address"]) for p in sorted(owner)]


def with_addresses(hosts: Sequence[HostAssignment], graph: Graph) -> list[HostAssignment]:
    """Return the hosts of a deployment with the address at which each peer is reached.

    The address in the SuperNode's node-config counts; without one, the topology's. A peer for which neither
    has an address keeps an empty one.

    Raises
    ------
    RunFailedError
        When a peer's addresses in node-config and topology differ, or two peers have the same address; the
        message names both.
    """
    found = []
    owner: dict[str, int] = {}
    for host in hosts:
        (peer,) = host.peers
        told, drawn = host.address, graph.addresses[peer]
        if told and drawn and parse_address(told).target != parse_address(drawn).target:
            raise RunFailedError(
                f"peer {peer} is at {told} by its SuperNode's node-config (peer-address), and at {drawn} by "
                f"the topology {graph.name}: correct one, or leave it out in one of them"
            )
        address = told or drawn or ""
        other = owner.setdefault(parse_address(address).target, peer) if address else peer
        if other != peer:
            raise RunFailedError(
                f"peers {other} and {peer} both are at {address}: give each its own peer-address in "
                "--node-config"
            )
        found.append(HostAssignment(host.node, host.peers, address))
    return found
