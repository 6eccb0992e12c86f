"""Messages between coordinator and hosts through Flower: small JSON, and arrays for strategies."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from p2pft_flower.host.hearsay import HeardOf
from p2pft_flower.keeping.lines import Failed, Report, ViewChange

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict

__all__ = [
    "CLIENTS_EVALUATE",
    "CLIENTS_TRAIN",
    "HELLO",
    "PREFLIGHT",
    "TRAIN_PEERS",
    "HostReport",
    "pack",
    "reply",
    "unpack",
]


@dataclass
class HostReport:
    """What a host tells the coordinator when it ends, in whatever way, beside its peers' outcomes.

    Attributes
    ----------
    views : list of ViewChange
        The host's changes of view.
    evaluations : list of Report
        Some of the peers' evaluations, of a deployed host.
    failures : list of Failed
        The last lines of its peers' journals if it has given up.
    seconds : float
        Seconds from its plan to its end.
    heard : list of HeardOf
        What it has heard of peers of other hosts that came back, whose new processes reply to nobody.
    """

    views: list[ViewChange] = field(default_factory=list)
    evaluations: list[Report] = field(default_factory=list)
    failures: list[Failed] = field(default_factory=list)
    seconds: float = 0.0
    heard: list[HeardOf] = field(default_factory=list)


HELLO = "query.hello"
PREFLIGHT = "query.preflight"
TRAIN_PEERS = "train.peers"
CLIENTS_TRAIN = "train.clients"
CLIENTS_EVALUATE = "evaluate.clients"

_RECORD, _KEY = "p2pft", "json"


def pack(body: dict[str, Any]) -> RecordDict:
    """Return a message's content that holds ``body`` as JSON."""
    from flwr.app import ConfigRecord, RecordDict

    return RecordDict({_RECORD: ConfigRecord({_KEY: json.dumps(body)})})


def unpack(message: Message) -> dict[str, Any]:
    """Return the body that :func:`pack` put into the content of ``message``."""
    return json.loads(str(message.content.config_records[_RECORD][_KEY]))  # type: ignore[no-any-return]


def reply(to: Message, body: dict[str, Any]) -> Message:
    """Return a reply to the message ``to`` that holds ``body``."""
    from flwr.app import Message

    return Message(pack(body), reply_to=to)
