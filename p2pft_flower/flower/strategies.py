"""Flower's own server-based strategies by name, and the Grid that shows them peers as clients."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import flwr.serverapp.strategy as flower_strategies
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from p2pft_flower.algorithms import ALGORITHMS
from p2pft_flower.config import LearningConfig, MethodConfig, RunConfig
from p2pft_flower.errors import ConfigError, did_you_mean
from p2pft_flower.flower import messages
from p2pft_flower.flower.nodes import HostAssignment, RunFailedError
from p2pft_flower.topology.schedule import STATIC

__all__ = [
    "PeersGrid",
    "is_strategy",
    "make_strategy",
    "plain_name",
    "refuse_own_problem",
    "strategy_names",
    "unknown_algorithm",
]

log = logging.getLogger(__name__)

_NOT_FOR_VECTORS = ("Strategy", "FedXgbBagging", "FedXgbCyclic")


def _strategies() -> dict[str, type[Strategy]]:
    return {
        name.lower(): kind
        for name, kind in vars(flower_strategies).items()
        if inspect.isclass(kind)
        and issubclass(kind, Strategy)
        and name not in _NOT_FOR_VECTORS
        and "strategy" not in inspect.signature(kind).parameters  # wrappers around another strategy
    }


def strategy_names() -> list[str]:
    """Return the names (``fedavg``, ``fedprox``, …) of Flower's strategies that aggregate model arrays."""
    return sorted(_strategies())


def is_strategy(name: str) -> bool:
    """Tell whether ``name`` is a strategy of Flower; ``FedProx`` and ``fed-prox`` are ``fedprox``."""
    return plain_name(name) in _strategies()


def unknown_algorithm(name: str) -> ConfigError:
    """Return the error of an ``algorithm`` that is neither a method nor a strategy."""
    known = [*ALGORITHMS, *strategy_names()]
    return ConfigError(
        f"algorithm = {name!r} is unknown; choose one of {', '.join(known)}, or "
        f"my_module:my_method{did_you_mean(name, known)}"
    )


def plain_name(name: str) -> str:
    """Return a strategy's name in the form of :func:`strategy_names`: ``fedprox`` for ``Fed-Prox``."""
    return name.lower().replace("-", "").replace("_", "")


def make_strategy(method: MethodConfig, n: int) -> Strategy:
    """Build Flower's strategy ``method.algorithm`` for ``n`` clients, all of which take part in every round.

    Parameters
    ----------
    method : MethodConfig
        Its ``algorithm`` is one of :func:`strategy_names`, its ``strategy_options`` a text such as
        ``"proximal-mu=0.1,eta=0.05"``.
    n : int
        Number of peers.

    Raises
    ------
    ConfigError
        When the strategy or an option is unknown, an option is no number, or the strategy refuses a value.
    """
    name, options, kinds = plain_name(method.algorithm), method.strategy_options, _strategies()
    if name not in kinds:
        raise ConfigError(
            f"algorithm = {name!r} is no strategy of Flower; choose one of {', '.join(sorted(kinds))}"
        )
    kind = kinds[name]
    fixed = {
        "min_train_nodes": n,
        "min_evaluate_nodes": n,
        "min_available_nodes": n,
        "fraction_train": 1.0,
        "fraction_evaluate": 1.0,
        "client_learning_rate": method.learning_rate,  # QFedAvg scales by it
    }
    numbers = {
        p.name: p
        for p in inspect.signature(kind).parameters.values()
        if p.name not in fixed and isinstance(p.default, (int, float)) and not isinstance(p.default, bool)
    }
    chosen: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in options.split(","))):
        key, _, value = item.partition("=")
        argument = key.strip().replace("-", "_")
        known = ", ".join(p.replace("_", "-") for p in numbers) or "none"
        if argument not in numbers:
            raise ConfigError(f"strategy-options: {name} has no option {key!r}; it has: {known}")
        try:
            chosen[argument] = type(numbers[argument].default)(value)
        except ValueError as error:
            raise ConfigError(f"strategy-options: {key} = {value!r} is not a number") from error
    accepted = inspect.signature(kind).parameters
    try:
        return kind(**{k: v for k, v in fixed.items() if k in accepted}, **chosen)
    except ValueError as error:
        raise ConfigError(f"strategy-options = {options!r}: {name} refuses: {error}") from error


def refuse_method_keys(method: MethodConfig, learning: LearningConfig) -> None:
    """Refuse keys that only methods without a server have.

    Raises
    ------
    ConfigError
        When such a key is set; the message names it.
    """
    for key, value, default in (
        ("algorithm-options", method.algorithm_options, ""),
        ("codec", method.codec, "none"),
        ("codec-step", method.codec_step, 0.0),
        ("schedule-graph", method.schedule_graph, STATIC),
        ("pipelined", method.pipelined, False),
    ):
        if value != default:
            raise ConfigError(
                f"{key} = {value!r} with algorithm = {method.algorithm!r}: it is for methods whose peers "
                "exchange their vectors; leave it out"
            )
    if learning.keeps_best:
        raise ConfigError(
            f"keep = {learning.keep!r} with algorithm = {method.algorithm!r}: the peers choose their best θ "
            "among themselves, and clients of Flower's strategies have no edges to each other; give "
            "keep = last, or a method of this package, as p2pft, local or centralized"
        )
    if learning.balances:
        raise ConfigError(
            f"class-weights = {learning.class_weights!r} with algorithm = {method.algorithm!r}: the peers "
            "sum up their numbers of images along their edges, and clients of Flower's strategies have none; "
            "give class-weights = none, or a method of this package, as p2pft, local or centralized"
        )


def refuse_own_problem(config: RunConfig) -> None:
    """Refuse one of Flower's strategies for a ``problem`` of the user's own.

    Raises
    ------
    ConfigError
        When ``problem`` is set; the message names methods that can train it.
    """
    if config.learning.problem:
        raise ConfigError(
            f"problem = {config.learning.problem!r} with algorithm = {config.method.algorithm!r}: Flower's "
            "strategies are run on vision transformers only; choose a method of this package, as p2pft or "
            "local, or my_module:my_method"
        )


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
