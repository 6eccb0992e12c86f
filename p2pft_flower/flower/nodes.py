"""The nodes of a run: hello to every SuperNode, and peers folded onto the hosts that really run at once."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from p2pft_flower.config import RunConfig
from p2pft_flower.errors import Cause, P2PFTError, printable
from p2pft_flower.flower import messages
from p2pft_flower.report.results import ViewRow
from p2pft_flower.topology import Graph
from p2pft_flower.transport import parse_address

__all__ = [
    "HostAssignment",
    "RunFailedError",
    "assign_hosts",
    "collect",
    "compare_models",
    "greet",
    "overlap",
    "with_addresses",
]

log = logging.getLogger(__name__)

HOLD = 0.5
"""Seconds that a node holds its answer to a hello, so that the number of nodes that run at once is seen."""

POLL = 0.2
"""Seconds between two looks for replies."""

ANSWER = 60.0
"""Seconds beyond meet-timeout that a connected node has to answer: it may be reading its images."""

ASK_AGAIN = 5.0
"""Seconds after which a node that Flower did not reach is greeted again."""

_UNREACHED = (3, 4, 5)
"""Flower's error codes of a lost message, a lost reply and a node that has gone: the node may come back."""


class RunFailedError(P2PFTError):
    """The run failed; the message says which peer or node, and why.

    Attributes
    ----------
    ended_by : Cause or None
        The cause in the host's answer; None if no host has answered with a cause.
    views : list of ViewRow
        The changes of view in the hosts' answers.
    """

    def __init__(self, message: str, ended_by: Cause | None = None, views: Sequence[ViewRow] = ()) -> None:
        self.ended_by = ended_by
        self.views = list(views)
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


def is_failure(message: Message) -> bool:
    """Tell whether a reply says that something failed."""
    return message.has_error() or "error" in messages.unpack(message)


def collect(
    grid: Grid,
    sent: Sequence[Message],
    timeout: float,
    grace: float,
    ends: Callable[[Message], bool] = is_failure,
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
        if nodes:
            time.sleep(POLL)  # Flower's interface is a poll
    return replies


def body_of(message: Message, who: str) -> dict[str, Any]:
    """Return the ``ok`` of a reply.

    Parameters
    ----------
    message : Message
        The reply.
    who : str
        The sender's name for people, such as ``"peer 3"``.

    Raises
    ------
    RunFailedError
        When the reply reports an error; the message names ``who`` and the error.
    """
    if message.has_error():
        raise RunFailedError(f"{who}: Flower reports error {message.error.code}: {message.error.reason}")
    body = messages.unpack(message)
    if "error" in body:
        if "traceback" in body:
            log.error("%s", body["traceback"])
        raise RunFailedError(f"{who}: {printable(body['error'])}", Cause[body["cause"]])
    return body["ok"]  # type: ignore[no-any-return]  # JSON


def greet(grid: Grid, config: RunConfig, n: int, *, pooled: bool) -> dict[int, dict[str, Any]]:
    """Say hello to the nodes that the run can use, and return their answers by node id.

    In simulation a node is a place where Flower can run a host, not a site, so no more nodes are asked than
    can run at once. In a deployment every node is asked as soon as it appears, until all ``n`` peers have
    answered or ``meet-timeout`` has passed; a connected node that has not answered by then has :data:`ANSWER`
    seconds more. After that, ``min-peers`` peers are enough, if that key is set. An answer is no longer
    waited for from a node that disconnects, and its answer does not count.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    config : RunConfig
        The run's settings.
    n : int
        Number of peers of the graph.
    pooled : bool
        Whether one peer holds the data of all n.

    Raises
    ------
    RunFailedError
        When no node, or too few peers, answer in time; when a node answers with an error; when a node's
        ``peer-id`` is missing though others have one, is not in the graph, or is also the ``peer-id`` of
        another node.
    """
    deadline = time.monotonic() + config.runtime.meet_timeout
    # More than Flower's engine can run at once (CPUs + 4) would only wait for each other.
    most = min(n, (os.cpu_count() or 1) + 4)
    body = {
        "config": config.to_mapping(),
        "n": n,
        "pooled": config.method.objective if pooled else "",
    }
    asked: dict[str, int] = {}  # node that has not answered, by its hello's id
    answers: dict[int, dict[str, Any]] = {}
    unreached: dict[int, str] = {}
    again: dict[int, float] = {}  # time at which a node that Flower did not reach is asked again
    told = ""
    while True:
        there = set(grid.get_node_ids())
        asked = {i: node for i, node in asked.items() if node in there}
        answers = {node: a for node, a in answers.items() if node in there}
        unreached = {node: why for node, why in unreached.items() if node in there}
        now = time.monotonic()
        away = {node for node, when in again.items() if now < when}
        some = sorted(there - answers.keys() - set(asked.values()) - away)
        if not answers:
            some = some[: max(0, most - len(asked))]
        if some and not _simulated(answers):
            hold = HOLD if config.runtime.transport != "memory" and len(some) + len(asked) > 1 else 0.0
            # No node shall be busy with a greeting whose answer nobody waits for any more.
            ttl = max(1.0, deadline + ANSWER - now)
            hello = {**body, "hold": 0.0 if answers else hold}
            sent = [Message(messages.pack(hello), i, messages.HELLO, ttl=ttl) for i in some]
            asked |= dict(zip(grid.push_messages(sent), some, strict=True))
        for message in grid.pull_messages(list(asked)) if asked else ():
            node = asked.pop(message.metadata.reply_to_message_id)
            if message.has_error() and message.error.code in _UNREACHED:
                unreached[node] = str(message.error.reason)
                again[node] = time.monotonic() + ASK_AGAIN
                log.warning("node %d is not there: %s", node, unreached[node])
            else:
                answers[node] = body_of(message, f"node {node}")
                unreached.pop(node, None)

        simulated = _simulated(answers)
        missing = sorted(set(range(n)) - {a["peer-id"] for a in answers.values()})
        late = time.monotonic() - deadline
        over = late > ANSWER or (late > 0 and (not asked or not (missing or simulated)))
        # In a deployment all nodes that are there are asked before an error names the wrong ones.
        if over or not (asked if simulated else there - answers.keys() - unreached.keys()):
            _check_claims(answers, n)
            if answers and (simulated or not missing):
                return answers
        waiting = f"waiting for peers {missing}" if answers else "waiting for a SuperNode"
        if over:
            return _those_there(answers, config, waiting, sorted(asked.values()), unreached)
        if waiting != told and not simulated and (answers or not asked):
            log.info("%s", waiting)
            told = waiting
        time.sleep(POLL if asked else 1.0)  # Flower's interface is a poll


def compare_models(
    grid: Grid, config: RunConfig, n: int, answers: dict[int, dict[str, Any]], *, meet: bool
) -> dict[int, dict[str, Any]]:
    """Return the answers from :func:`greet`, with facts of the built models if these must be compared.

    The answer to a first hello has a digest of what decides a site's model; the site does not build the model
    for it, which takes seconds. If the digests differ, a second hello has each site build its model and
    answer with the model's digest. The same happens if the run is a preflight only (``preflight-only``), or
    if ``meet`` is false: peers that meet compare their models when they greet each other.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    config : RunConfig
        The run's settings.
    n : int
        Number of peers of the graph.
    answers : dict
        The answers, by node id, from :func:`greet`.
    meet : bool
        Whether the peers exchange vectors with each other.

    Raises
    ------
    RunFailedError
        When a node does not answer in time, or cannot build its model.
    """
    told = {answer["model"] for answer in answers.values()}
    if told == {""} or (len(told) == 1 and meet and not config.runtime.preflight_only):
        return answers
    why = "" if len(told) == 1 else ": files of weights, code or processors are not the same at all of them"
    log.info("the sites build their models, which are compared%s", why)
    body = {"config": config.to_mapping(), "n": n, "pooled": "", "hold": 0.0, "build": True}
    sent = [Message(messages.pack(body), node, messages.HELLO) for node in answers]
    patience = config.runtime.meet_timeout
    replies = collect(grid, sent, timeout=patience + ANSWER, grace=ANSWER)
    whose = {node: f"peer {answer['peer-id']}" for node, answer in answers.items()}
    if silent := [whose[node] for node in answers if node not in replies]:
        raise RunFailedError(
            f"after {patience + ANSWER:g} s (meet-timeout and a minute) {', '.join(silent)} had not built "
            "the model, which is compared with the others'; does the SuperNode still run? Else raise "
            "meet-timeout"
        )
    return {node: body_of(replies[node], whose[node]) for node in answers}


def _simulated(answers: dict[int, dict[str, Any]]) -> bool:
    return any(a["peer-id"] is None for a in answers.values())


def _those_there(
    answers: dict[int, dict[str, Any]],
    config: RunConfig,
    waiting: str,
    silent: list[int],
    unreached: dict[int, str],
) -> dict[int, dict[str, Any]]:
    """Return the answers, when time is over, if they are of ``min-peers`` peers at least.

    Raises
    ------
    RunFailedError
        When they are of fewer, or ``min-peers`` is not set.
    """
    there = sorted(a["peer-id"] for a in answers.values())
    if 0 < config.runtime.min_peers <= len(there):
        log.warning(
            "after %g s (meet-timeout) still %s: the run starts without them (min-peers = %d)",
            config.runtime.meet_timeout,
            waiting,
            config.runtime.min_peers,
        )
        return answers
    held = (
        f"The nodes {silent} are there and did not answer: a SuperNode does one thing at a time, so "
        "another run may be holding them (flwr ls). "
        if silent
        else ""
    )
    lost = "".join(f"Node {node}: {why}. " for node, why in sorted(unreached.items()))
    raise RunFailedError(
        f"after {config.runtime.meet_timeout:g} s (meet-timeout) still {waiting}; "
        f"there are the peers {there}. {held}{lost}"
        "Start the SuperNodes of the others with --node-config 'peer-id=… peer-address=\"host:port\"'"
    )


def overlap(answers: Sequence[dict[str, Any]]) -> int:
    """Return the largest number of hellos that were being answered at the same moment."""
    events = sorted([(a["begin"], 1) for a in answers] + [(a["end"], -1) for a in answers])
    running = np.cumsum([change for _, change in events])
    return int(running.max())


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
        The run-config's ``transport``; ``"memory"`` puts all peers on one host.
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
        slots = 1 if transport == "memory" else overlap(list(answers.values()))
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


def _check_claims(answers: dict[int, dict[str, Any]], n: int) -> None:
    """Refuse nodes that do not fit the graph, in one error that lists the peers there and the missing ones.

    Raises
    ------
    RunFailedError
        When some nodes have a ``peer-id`` and others have none, a ``peer-id`` is not in the graph, or two
        nodes have the same one.
    """
    silent = [node for node, a in sorted(answers.items()) if a["peer-id"] is None]
    if not answers or len(silent) == len(answers):
        return
    claims: dict[int, list[int]] = {}
    for node, answer in sorted(answers.items()):
        if answer["peer-id"] is not None:
            claims.setdefault(answer["peer-id"], []).append(node)
    wrong = [f"node {node} has no peer-id, others have" for node in silent]
    for peer, claiming in sorted(claims.items()):
        if not 0 <= peer < n:
            wrong += [
                f"node {node} says peer-id={peer}, but the graph has the peers 0..{n - 1}"
                for node in claiming
            ]
        elif len(claiming) > 1:
            named = f"{', '.join(map(str, claiming[:-1]))} and {claiming[-1]}"
            wrong.append(f"peer {peer} is claimed by nodes {named}")
    if wrong:
        there = [peer for peer in sorted(claims) if 0 <= peer < n]
        missing = [peer for peer in range(n) if peer not in claims] or "none"
        raise RunFailedError(
            f"the SuperNodes do not fit the graph: {'; '.join(wrong)}. "
            f"Peers there: {there}, missing: {missing}. Give each SuperNode one peer-id of its own in "
            "--node-config, and connect to this SuperLink no SuperNode that is none of the graph's"
        )
