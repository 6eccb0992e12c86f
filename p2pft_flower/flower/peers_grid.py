"""The Grid that shows the peers to Flower's strategies as clients."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from p2pft_flower.flower import messages
from p2pft_flower.flower.nodes import HostAssignment, RunFailedError

__all__ = ["PeersGrid"]

log = logging.getLogger(__name__)


class PeersGrid(Grid):
    """n clients for a strategy, on any number of SuperNodes.

    Messages for clients that share a node travel as one, and a model that goes to several of them travels
    once. Replies come in the order of the peers, so that sums do not depend on who was quickest.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    hosts : sequence of HostAssignment
        The peers that each node plays.
    task : mapping
        The content of every client's message besides the strategy's own settings.
    on_reply : callable
        Called after every exchange with the type of its messages and the facts that each client sent beside
        its reply.
    is_scored : callable
        Tells whether clients score the model after a round; else nobody is sent it, and the strategy gets no
        score of that round.
    """

    def __init__(
        self,
        grid: Grid,
        hosts: Sequence[HostAssignment],
        task: Mapping[str, Any],
        on_reply: Callable[[str, list[dict[str, Any]]], None],
        is_scored: Callable[[int], bool],
    ) -> None:
        self._grid, self._hosts, self._task, self._on_reply = grid, hosts, dict(task), on_reply
        self._is_scored = is_scored
        self._peers = sorted(p for host in hosts for p in host.peers)

    def set_run(self, run: Any) -> None:
        """Set the run of Flower's grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Flower's run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to the client ``dst_node_id``."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """Return the clients' ids: the peers' numbers plus one, for Flower keeps 0 to itself."""
        return [p + 1 for p in self._peers]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:  # noqa: ARG002
        """Raise RunFailedError: strategies use :meth:`send_and_receive`."""
        raise RunFailedError("this strategy pushes messages by itself, which PeersGrid does not offer")

    def pull_messages(self, *_: Any, **__: Any) -> Iterable[Message]:
        """Raise RunFailedError, with the parameters of any version of Flower: see :meth:`push_messages`."""
        raise RunFailedError("this strategy pulls messages by itself, which PeersGrid does not offer")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Carry a round's messages to the clients and return each client's reply, in the order of the peers.

        No reply comes to an evaluation that is not due.

        Raises
        ------
        RunFailedError
            When a client fails, or does not reply within ``timeout`` seconds.
        """
        wanted = {message.metadata.dst_node_id - 1: message for message in messages}
        if not wanted:
            return []
        first = next(iter(wanted.values()))
        kind = first.metadata.message_type
        if kind == MessageType.EVALUATE and not self._is_scored(_round_of(first)):
            return []
        bundles = [
            self._bundle(host, {p: wanted[p] for p in host.peers if p in wanted}, kind)
            for host in self._hosts
            if any(p in wanted for p in host.peers)
        ]
        came = {r.metadata.src_node_id: r for r in self._grid.send_and_receive(bundles, timeout=timeout)}
        owner = {p: host.node for host in self._hosts for p in host.peers}
        answers = [_unbundle(came.get(owner[peer]), peer, wanted[peer]) for peer in sorted(wanted)]
        self._on_reply(kind, [note for _, note in answers])
        return [reply for reply, _ in answers]

    def score(self, arrays: ArrayRecord, timeout: float) -> None:
        """Have all clients score the model ``arrays`` before the first round.

        Raises
        ------
        RunFailedError
            When :meth:`send_and_receive` raises it.
        """
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 0})})
        asked = [
            self.create_message(content, MessageType.EVALUATE, node, "0") for node in self.get_node_ids()
        ]
        self.send_and_receive(asked, timeout=timeout)

    def _bundle(self, host: HostAssignment, wanted: Mapping[int, Message], kind: str) -> Message:
        content, names = RecordDict(), {}
        models: dict[int, str] = {}
        for peer, message in wanted.items():
            for name, record in message.content.items():
                if isinstance(record, ArrayRecord):
                    names[peer] = models.setdefault(id(record), f"model-{len(models)}")
                    content[names[peer]] = record
                else:
                    content[f"{peer}/{name}"] = record
        task = {**self._task, "peers": sorted(wanted), "arrays": names}
        content.update(messages.pack(task))
        how = messages.CLIENTS_TRAIN if kind.startswith("train") else messages.CLIENTS_EVALUATE
        return Message(content, dst_node_id=host.node, message_type=how)


def _round_of(message: Message) -> int:
    """Return the round that a strategy's message to a client is of."""
    return int(cast(int, message.content.config_records["config"]["server-round"]))


def _unbundle(reply: Message | None, peer: int, asked: Message) -> tuple[Message, dict[str, Any]]:
    """Return a client's own reply, out of its node's, and the facts that the client sent beside its reply.

    Raises
    ------
    RunFailedError
        When the client failed or did not reply: most strategies would go on without it in silence.
    """
    if reply is None or reply.has_error():
        reason = "no reply in time" if reply is None else reply.error.reason
        raise RunFailedError(f"peer {peer}: {reason}")
    mine = {name.partition("/")[2]: r for name, r in reply.content.items() if name.startswith(f"{peer}/")}
    if "failure" in mine:
        failure = json.loads(str(mine["failure"]["json"]))
        log.error("%s", failure["traceback"])
        raise RunFailedError(failure["error"])
    note = {"peer": peer, **json.loads(str(mine.pop("peer")["json"]))}
    return Message(RecordDict(mine), reply_to=asked), note
