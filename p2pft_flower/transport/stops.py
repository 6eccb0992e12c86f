"""A stop from outside the graph: whoever shows the run's key, which only its coordinator has, may send one.

The peers are told the key's digest with their plan. The key itself leaves the coordinator when it is used,
and then the run is over: whoever overhears it can do no more with it than what has just been done.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from p2pft_flower.transport.calls import Channels
from p2pft_flower.transport.gossiping import stop_all
from p2pft_flower.transport.network import Tasks
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb

__all__ = ["COORDINATOR_CERTIFICATES", "digest_of", "has_key", "new_key", "stop_run"]

COORDINATOR_CERTIFICATES = "P2PFT_CERTIFICATES"
"""Environment variable of the SuperLink: the folder that ``p2pft certs issue --coordinator`` made. The
coordinator needs it to stop peers that have certificates themselves, and for nothing else."""

_KEY = "p2pft-stop-key-bin"
"""Metadata key of the call."""


def new_key() -> bytes:
    """Return a key that nobody can guess: 32 random bytes."""
    return secrets.token_bytes(32)


def digest_of(key: bytes) -> str:
    """Return what the peers are told of ``key``."""
    return sha256(key).hexdigest()


def has_key(metadata: Mapping[str, Any], digest: str) -> bool:
    """Tell whether a call's metadata show the key of ``digest``; nothing does where that is empty."""
    key = metadata.get(_KEY)
    return isinstance(key, bytes) and hmac.compare_digest(digest_of(key), digest)


def stop_run(
    run: str,
    key: bytes,
    addresses: Mapping[int, str],
    reason: str,
    credentials: Credentials | None = None,
    timeout: float = 2.0,
) -> dict[int, str]:
    """Tell peers that their run is stopped; one that hears it tells all others. Never raises.

    Parameters
    ----------
    run : str
        The run's identifier.
    key : bytes
        From :func:`new_key`.
    addresses : mapping of int to str
        Where peers listen.
    reason : str
        Why, in words for a person.
    credentials : Credentials, optional
        The coordinator's, where the peers have certificates; default: in plain text, which
        tells nothing but the reason, and a key that is worth nothing once it was used.
    timeout : float
        Seconds that all of it may take.

    Returns
    -------
    dict of int to str
        Peer to why it did not hear it; empty when all did.
    """
    stops = {
        peer: pb.Stop(run=run, sender=peer, origin=peer, reason=reason[:4096], cause=pb.Stop.STOPPED)
        for peer in sorted(addresses)
    }

    async def tell() -> dict[int, str]:
        async with Channels(addresses, credentials, credentials is None) as channels:
            return await stop_all(channels, stops, timeout, metadata=((_KEY, key),), wait_for_ready=True)

    with Tasks() as tasks:
        return tasks.run(tell)
