"""Flower's simulation engine in small: nodes, so many ClientApps at once, replies in any order."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity  # Flower's engines set it before an app runs

from p2pft_flower.config import config_keys
from p2pft_flower.flower.client import make_client_app
from p2pft_flower.flower.server import make_server_app


class Engine(Grid):
    """A Grid whose nodes are threads.

    Parameters
    ----------
    nodes : int
        Virtual SuperNodes.
    slots : int
        ClientApps that run at once.
    node_configs : list, optional
        What ``--node-config`` says, for a deployment.
    """

    def __init__(self, nodes: int, slots: int, node_configs: list[dict[str, Any]] | None = None) -> None:
        self._app = make_client_app()
        self._configs = node_configs or [{"partition-id": i, "num-partitions": nodes} for i in range(nodes)]
        self._pool = ThreadPoolExecutor(slots)
        self._replies: dict[str, Any] = {}
        self._count = 0
        self.running, self.most = 0, 0
        self.crossed = 0
        self.texts: list[str] = []
        """What crossed, as texts."""
        self._lock = threading.Lock()

    def close(self) -> None:
        self._pool.shutdown(wait=True)

    def set_run(self, run: Any) -> None:
        """Nothing to do."""

    @property
    def run(self) -> Any:
        return None

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        return [1000 + i for i in range(len(self._configs))]

    def push_messages(self, messages) -> list[str]:
        ids = []
        for message in messages:
            self._count += 1
            message.metadata._message_id = str(self._count)
            ids.append(str(self._count))
            self._replies[ids[-1]] = self._pool.submit(self._execute, message)
        return ids

    def pull_messages(self, message_ids) -> list[Message]:
        done = [i for i in message_ids if self._replies[i].done()]
        random.shuffle(done)
        return [self._replies.pop(i).result() for i in done]

    def send_and_receive(self, messages, *, timeout=None) -> list[Message]:
        replies = [self._replies.pop(i).result() for i in self.push_messages(list(messages))]
        random.shuffle(replies)
        return replies

    def _execute(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.crossed += _size(message.content)
        context = Context(1, node, self._configs[node - 1000], RecordDict(), {})
        try:
            reply = self._app(message, context)
        except Exception as error:
            reply = Message(Error(2, str(error)), reply_to=message)
        finally:
            with self._lock:
                self.running -= 1
        if reply.has_content():
            with self._lock:
                self.crossed += _size(reply.content)
                self.texts += [str(record) for record in reply.content.values()]
        reply.metadata._src_node_id = node
        reply.metadata._reply_to_message_id = message.metadata.message_id
        return reply


def _size(content: RecordDict) -> int:
    total = 0
    for record in content.values():
        for value in record.values():
            total += len(value.data) if hasattr(value, "data") else len(str(value))
    return total


def run_app(output_dir, *, nodes=2, slots=1, node_configs=None, **settings) -> Engine:
    """Run the whole app on an engine of its own; return it."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    engine = Engine(nodes, slots, node_configs)
    values = {**config_keys(), "output-dir": str(output_dir), "meet-timeout": 20.0, "peer-timeout": 20.0}
    values |= {key.replace("_", "-"): value for key, value in settings.items()}
    context = Context(random.getrandbits(60), 0, {}, RecordDict(), values)
    try:
        make_server_app()(engine, context)
    finally:
        engine.close()
    return engine
