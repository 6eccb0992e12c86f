"""The wire between peers: open to neighbours only, checked before use, every wait with a deadline.

A host has one `Mailbox` (payloads that have come in), one `PeerServer` (calls of neighbours) and one `Links`
(messages that go out). Only this subpackage knows gRPC.
"""

from __future__ import annotations

from p2pft_flower.transport.heartbeats import Heartbeats
from p2pft_flower.transport.knock import begin_attempt, knock
from p2pft_flower.transport.links import Links
from p2pft_flower.transport.looking import Looker
from p2pft_flower.transport.mailbox import Mailbox, Received
from p2pft_flower.transport.observer import ObserverClient, ObserverServer
from p2pft_flower.transport.probe import Prober
from p2pft_flower.transport.pulse import OwnPulse
from p2pft_flower.transport.refusals import Refusals
from p2pft_flower.transport.server import PeerServer
from p2pft_flower.transport.stops import COORDINATOR_CERTIFICATES, digest_of, new_key, stop_run
from p2pft_flower.transport.traffic import Carried
from p2pft_flower.transport.trust.signatures import MOST_CERTIFICATES, Signatures
from p2pft_flower.transport.trust.tls import TLS13_ENVIRONMENT, Credentials
from p2pft_flower.transport.wire.addresses import parse_address, tcp_address, unix_address
from p2pft_flower.transport.wire.errors import (
    BindError,
    EdgeBrokenError,
    ExchangeError,
    ExchangeRefusedError,
    ExchangeStoppedError,
    ExchangeTimeoutError,
    Loss,
    OtherViewError,
    PeerLostError,
    PeerUnreachableError,
    ViewChangeError,
    cause_from,
)
from p2pft_flower.transport.wire.header import Terms
from p2pft_flower.transport.wire.p2pft_pb2 import (
    EdgeTraffic,
    Gossip,
    Hello,
    PayloadHeader,
    PeerReport,
    PeerScores,
    Pulse,
    Reply,
    Scores,
    Signed,
    Standing,
    Status,
    Stop,
)

__all__ = [
    "COORDINATOR_CERTIFICATES",
    "MOST_CERTIFICATES",
    "TLS13_ENVIRONMENT",
    "BindError",
    "Carried",
    "Credentials",
    "EdgeBrokenError",
    "EdgeTraffic",
    "ExchangeError",
    "ExchangeRefusedError",
    "ExchangeStoppedError",
    "ExchangeTimeoutError",
    "Gossip",
    "Heartbeats",
    "Hello",
    "Links",
    "Looker",
    "Loss",
    "Mailbox",
    "ObserverClient",
    "ObserverServer",
    "OtherViewError",
    "OwnPulse",
    "PayloadHeader",
    "PeerLostError",
    "PeerReport",
    "PeerScores",
    "PeerServer",
    "PeerUnreachableError",
    "Prober",
    "Pulse",
    "Received",
    "Refusals",
    "Reply",
    "Scores",
    "Signatures",
    "Signed",
    "Standing",
    "Status",
    "Stop",
    "Terms",
    "ViewChangeError",
    "begin_attempt",
    "cause_from",
    "digest_of",
    "knock",
    "new_key",
    "parse_address",
    "stop_run",
    "tcp_address",
    "unix_address",
]
