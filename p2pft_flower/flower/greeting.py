"""Hello to every SuperNode: who is there, which peer it has, and what each says of itself."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from p2pft_flower.config import RunConfig
from p2pft_flower.errors import printable
from p2pft_flower.flower import messages
from p2pft_flower.flower.nodes import POLL, Reminder, RunFailedError, body_of, collect
from p2pft_flower.learning.data.by_column import by_names
from p2pft_flower.topology import Graph

__all__ = ["compare_models", "greet", "greet_by_names"]

log = logging.getLogger(__name__)

HOLD = 0.5
"""Seconds that a node holds its answer to a hello, so that the number of nodes that run at once is seen."""

ANSWER = 60.0
"""Seconds beyond meet-timeout that a connected node has to answer: it may be reading its images."""

ASK_AGAIN = 5.0
"""Seconds after which a node that Flower did not reach is greeted again."""

FAULTS = 10.0
"""Seconds after an answer with an error that the others have for theirs: all errors are told at once."""

_UNREACHED = (3, 4, 5)
"""Flower's error codes of a lost message, a lost reply and a node that has gone: the node may come back."""


def _sender(reply: Mapping[str, Any]) -> dict[str, str]:
    """Return what a SuperNode says of itself beside its answer to a hello; empty in simulation."""
    return {key: printable(str(value)) for key, value in reply.get("sender", {}).items()}


def _named(sender: Mapping[str, str], node: int) -> str:
    """Return a name for people of a SuperNode, from :func:`_sender`; empty in simulation."""
    if not sender:
        return ""
    place = f"at {sender['address']} on {sender.get('machine')}" if "address" in sender else ""
    place = place or f"on {sender.get('machine')}"
    if "peer" in sender:
        site = f" ({sender['site']})" if sender.get("site") else ""
        return f"peer {sender['peer']}{site} {place}"
    return f"the SuperNode {place} (node {node})"


def greet(grid: Grid, config: RunConfig, n: int, *, pooled: bool) -> dict[int, dict[str, Any]]:
    """Say hello to the nodes that the run can use, and return their answers by node id.

    In simulation a node stands for a slot, not for a site, so no more nodes are asked than can run at once.
    In a deployment every node is asked as soon as it appears, until all ``n`` peers have answered or
    ``meet-timeout`` has passed; a connected node that has not answered by then has :data:`ANSWER` seconds
    more. After that, ``min-peers`` peers are enough, if that key is set. A node that disconnects meanwhile is
    forgotten.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    config : RunConfig
        The run's settings.
    n : int
        Peers of the graph.
    pooled : bool
        Whether one peer holds the data of all n.

    Raises
    ------
    RunFailedError
        When no node, or too few peers, answer in time; when nodes answer with errors, of which it has all
        that come within :data:`FAULTS`; when a node has a ``peer-id`` that is missing, none of the graph's,
        or another node's too.
    """
    greeting = _Greeting(grid, config, n, pooled=pooled)
    told, reminder = "", Reminder()
    while True:
        greeting.look()
        greeting.ask()
        greeting.hear()
        if (there := greeting.complete()) is not None:
            return there
        waiting = greeting.waiting
        if greeting.over:
            return greeting.those_there()
        if not greeting.simulated and (greeting.answers or not greeting.asked):
            if waiting != told:
                log.info("%s", waiting)
                told = waiting
            elif reminder.due(time.monotonic()):
                log.info("%s; %.0f s left", waiting, greeting.left)
        time.sleep(POLL if greeting.asked else 1.0)  # Flower's interface is a poll


def greet_by_names(
    grid: Grid, config: RunConfig, graph: Graph, *, pooled: bool
) -> tuple[RunConfig, dict[int, dict[str, Any]]]:
    """Say hello as :func:`greet` does, once more if a column's values are the peers' names in another order.

    A peer knows its own name at most, so the coordinator matches values and names, and greets the nodes with
    the partition that says whose each value is.

    Returns
    -------
    config : RunConfig
        The settings, perhaps with that partition.
    answers : dict of int to dict
        The nodes' answers by node id.
    """
    answers = greet(grid, config, graph.n, pooled=pooled)
    told, given = next(iter(answers.values()))["partition"], config.learning.partition
    sites = {answer["peer-id"]: answer["site"] for answer in answers.values() if answer["site"]}
    names = [sites.get(peer, name) for peer, name in enumerate(graph.peer_names)]
    there = {answer["peer-id"] for answer in answers.values()} | set(sites)
    gone = [p for p, name in enumerate(names) if sites and p not in there and name == str(p)]
    found = by_names(given, told, names, gone)
    if found == told:
        return config, answers
    log.info("partition = %s: the values are the peers' names, so each peer gets its own: %s", given, found)
    config = replace(config, learning=replace(config.learning, partition=found))
    return config, greet(grid, config, graph.n, pooled=pooled)


class _Greeting:
    """The state of :func:`greet`, whose parameters it has.

    Attributes
    ----------
    answers : dict
        The answers, by node id; each with ``sender``, what the node says of itself beside its answer.
    asked : dict of str to int
        The nodes that have not answered, by the id of the hello.
    """

    def __init__(self, grid: Grid, config: RunConfig, n: int, *, pooled: bool) -> None:
        self._grid, self._config, self._n = grid, config, n
        self._body = {
            "config": config.to_mapping(),
            "n": n,
            "pooled": config.method.objective if pooled else "",
        }
        self._deadline = time.monotonic() + config.runtime.meet_timeout
        self._there: set[int] = set()
        self._unreached: dict[int, str] = {}
        self._again: dict[int, float] = {}
        """Time at which a node that Flower did not reach is asked again."""
        self._faults: dict[int, RunFailedError] = {}
        """The errors with which nodes have answered."""
        self._told_by = math.inf
        """Time at which the errors are told, whoever has not answered by then."""
        self.answers: dict[int, dict[str, Any]] = {}
        self.asked: dict[str, int] = {}

    @property
    def simulated(self) -> bool:
        """Whether this is a simulation, by the answers."""
        return any(a["peer-id"] is None for a in self.answers.values())

    @property
    def missing(self) -> list[int]:
        """The peers that have not answered, ascending."""
        return sorted(set(range(self._n)) - {a["peer-id"] for a in self.answers.values()})

    @property
    def waiting(self) -> str:
        """What is waited for, in words."""
        return f"waiting for peers {self.missing}" if self.answers else "waiting for a SuperNode"

    @property
    def left(self) -> float:
        """Seconds until :attr:`over` at the latest, but for nodes that are there and do not answer."""
        return max(0.0, self._deadline - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        late = time.monotonic() - self._deadline
        nobody = not self.asked or not (self.missing or self.simulated)
        return late > ANSWER or (late > 0 and nobody)

    def look(self) -> None:
        """See which nodes are there, and forget all others."""
        there = self._there = set(self._grid.get_node_ids())
        self.asked = {i: node for i, node in self.asked.items() if node in there}
        self.answers = {node: a for node, a in self.answers.items() if node in there}
        self._unreached = {node: why for node, why in self._unreached.items() if node in there}
        self._faults = {node: error for node, error in self._faults.items() if node in there}

    def ask(self) -> None:
        """Say hello to nodes that were not asked yet."""
        now = time.monotonic()
        away = {node for node, when in self._again.items() if now < when}
        known = self.answers.keys() | self._faults.keys() | set(self.asked.values())
        some = sorted(self._there - known - away)
        if not self.answers:
            # More than Flower's engine can run at once (CPUs + 4) would only wait for each other.
            most = min(self._n, (os.cpu_count() or 1) + 4)
            some = some[: max(0, most - len(self.asked))]
        if not some or self.simulated:
            return
        held = self._config.runtime.transport != "memory" and len(some) + len(self.asked) > 1
        # No node shall be busy with a greeting whose answer nobody waits for any more.
        ttl = max(1.0, self._deadline + ANSWER - now)
        hello = {**self._body, "hold": HOLD if held and not self.answers else 0.0}
        sent = [Message(messages.pack(hello), i, messages.HELLO, ttl=ttl) for i in some]
        self.asked |= dict(zip(self._grid.push_messages(sent), some, strict=True))

    def hear(self) -> None:
        """Take answers in.

        Raises
        ------
        RunFailedError
            When there are errors among them, and the others have answered or had :data:`FAULTS` for it.
        """
        for message in self._grid.pull_messages(list(self.asked)) if self.asked else ():
            node = self.asked.pop(message.metadata.reply_to_message_id)
            if message.has_error() and message.error.code in _UNREACHED:
                self._unreached[node] = str(message.error.reason)
                self._again[node] = time.monotonic() + ASK_AGAIN
                log.warning("node %d is not there: %s", node, self._unreached[node])
                continue
            self._unreached.pop(node, None)
            self._take(node, message)
        if self._faults and (not self.asked or time.monotonic() >= self._told_by):
            raise _all_of(list(self._faults.values()))

    def _take(self, node: int, message: Message) -> None:
        sender = {} if message.has_error() else _sender(messages.unpack(message))
        who = _named(sender, node)
        if message.has_error():
            who = f"node {node}, one of the peers {self.missing}, which have not answered"
        try:
            self.answers[node] = {**body_of(message, who), "sender": sender}
        except RunFailedError as error:
            if not who:
                raise  # all nodes of a simulation would answer the same
            self._told_by = min(self._told_by, time.monotonic() + FAULTS)
            self._faults[node] = error

    def complete(self) -> dict[int, dict[str, Any]] | None:
        """Return the answers if nobody is missing; else None.

        Raises
        ------
        RunFailedError
            As :func:`_check_claims`, once all nodes that are there have answered, or the time is over.
        """
        # In a deployment all nodes that are there are asked before an error names the wrong ones.
        left = self.asked if self.simulated else self._there - self.answers.keys() - self._unreached.keys()
        if left and not self.over:
            return None
        _check_claims(self.answers, self._n)
        return self.answers if self.answers and (self.simulated or not self.missing) else None

    def those_there(self) -> dict[int, dict[str, Any]]:
        """Return the answers, when time is over, if they are of ``min-peers`` peers at least.

        Raises
        ------
        RunFailedError
            When they are of fewer, or ``min-peers`` is not set.
        """
        runtime, waiting = self._config.runtime, self.waiting
        there = sorted(a["peer-id"] for a in self.answers.values())
        if 0 < runtime.min_peers <= len(there):
            log.warning(
                "after %g s (meet-timeout) still %s: the run starts without them (min-peers = %d)",
                runtime.meet_timeout,
                waiting,
                runtime.min_peers,
            )
            return self.answers
        silent = sorted(self.asked.values())
        held = (
            f"The nodes {silent} are there and did not answer: a SuperNode does one thing at a time, so "
            "another run may be holding them (flwr ls). "
            if silent
            else ""
        )
        lost = "".join(f"Node {node}: {why}. " for node, why in sorted(self._unreached.items()))
        raise RunFailedError(
            f"after {runtime.meet_timeout:g} s (meet-timeout) still {waiting}; "
            f"there are the peers {there}. {held}{lost}"
            "Start the SuperNodes of the others with --node-config 'peer-id=… peer-address=\"host:port\"'"
        )


def _all_of(errors: Sequence[RunFailedError]) -> RunFailedError:
    """Return one error that has the text of all ``errors``, and the cause of the first."""
    if len(errors) == 1:
        return errors[0]
    told = "\n  ".join(sorted(map(str, errors)))
    return RunFailedError(f"{len(errors)} sites cannot take part:\n  {told}", errors[0].ended_by)


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
        Peers of the graph.
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
    whose = {
        node: _named(answer.get("sender", {}), node) or f"peer {answer['peer-id']}"
        for node, answer in answers.items()
    }
    if silent := [whose[node] for node in answers if node not in replies]:
        raise RunFailedError(
            f"after {patience + ANSWER:g} s (meet-timeout and a minute) {', '.join(silent)} had not built "
            "the model, which is compared with the others'; does the SuperNode still run? Else raise "
            "meet-timeout"
        )
    built, errors = {}, []
    for node, answer in answers.items():
        try:
            built[node] = {**body_of(replies[node], whose[node]), "sender": answer.get("sender", {})}
        except RunFailedError as error:
            errors.append(error)
    if errors:
        raise _all_of(errors)
    return built


def _check_claims(answers: dict[int, dict[str, Any]], n: int) -> None:
    """Refuse nodes that do not fit the graph, in one error that lists the peers there and the missing ones.

    Raises
    ------
    RunFailedError
        When some nodes have a ``peer-id`` and others none, a ``peer-id`` is none of the graph's, or two nodes
        have the same one.
    """
    silent = [node for node, a in sorted(answers.items()) if a["peer-id"] is None]
    if not answers or len(silent) == len(answers):
        return
    claims: dict[int, list[int]] = {}
    for node, answer in sorted(answers.items()):
        if answer["peer-id"] is not None:
            claims.setdefault(answer["peer-id"], []).append(node)
    wrong = [
        f"{_who(answers, node)} has no peer-id, others have (Flower leaves out what --node-config gives with "
        "spaces around =)"
        for node in silent
    ]
    for peer, claiming in sorted(claims.items()):
        if not 0 <= peer < n:
            wrong += [
                f"{_who(answers, node)} says peer-id={peer}, but the graph has the peers 0..{n - 1}"
                for node in claiming
            ]
        elif len(claiming) > 1:
            named = [_who(answers, node) for node in claiming]
            wrong.append(f"peer {peer} is claimed by {', by '.join(named)}")
    if wrong:
        there = [peer for peer in sorted(claims) if 0 <= peer < n]
        missing = [peer for peer in range(n) if peer not in claims] or "none"
        raise RunFailedError(
            f"the SuperNodes do not fit the graph: {'; '.join(wrong)}. "
            f"Peers there: {there}, missing: {missing}. Give each SuperNode one peer-id of its own in "
            "--node-config, and connect to this SuperLink no SuperNode that is none of the graph's"
        )


def _who(answers: Mapping[int, Mapping[str, Any]], node: int) -> str:
    """Return a name of a SuperNode that tells it from others that claim the same peer."""
    told = {key: value for key, value in answers[node].get("sender", {}).items() if key != "peer"}
    return _named(told, node) or f"node {node}"
