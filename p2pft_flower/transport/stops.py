"""Calls from outside the graph: a stop or a look, by a caller that shows the run's key for it.

The coordinator has both keys, and the peers have the keys' digests in their plan. The key for a stop leaves
the coordinator when it is used, and then the run is over: an eavesdropper can use it for nothing but the stop
that has just been sent. The key for looks shows whoever has it how the run gets on, and no more.
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

__all__ = ["COORDINATOR_CERTIFICATES", "LOOK_KEY", "digest_of", "has_key", "new_key", "stop_run"]

COORDINATOR_CERTIFICATES = "P2PFT_CERTIFICATES"
"""Environment variable of the SuperLink: the folder that ``p2pft certs issue --coordinator`` made. The
coordinator needs it to stop peers that have certificates themselves, and for nothing else."""

_KEY = "p2pft-stop-key-bin"
"""Metadata key of a stop."""

LOOK_KEY = "p2pft-look-key-bin"
"""Metadata key of a look."""


def new_key() -> bytes:
    """Return a key that nobody can guess: 32 random bytes."""
    return secrets.token_bytes(32)


def digest_of(key: bytes) -> str:
    """Return the SHA-256 of ``key``, hexadecimal: the digest that the peers have."""
    return sha256(key).hexdigest()


def has_key(metadata: Mapping[str, Any], digest: str, *, look: bool = False) -> bool:
    """Tell whether a call's metadata show the key with this digest; False if ``digest`` is empty.

    The key is that for a stop, or, if ``look`` is true, that for looks.
    """
    key = metadata.get(LOOK_KEY if look else _KEY)
    return isinstance(key, bytes) and hmac.compare_digest(digest_of(key), digest)


def stop_run(
    run: str,
    key: bytes,
    addresses: Mapping[int, str],
    reason: str,
    credentials: Credentials | None = None,
    timeout: float = 2.0,
) -> dict[int, str]:
    """Send peers a stop of their run; a peer that has it passes it on to all others. Never raises.

    Parameters
    ----------
    run : str
        The run's identifier.
    key : bytes
        The run's key, from :func:`new_key`.
    addresses : mapping of int to str
        The peers' addresses.
    reason : str
        The reason, in words for a person.
    credentials : Credentials, optional
        The coordinator's certificates, if the peers have some; default: plain text, which reveals only the
        reason, and a key that is worth nothing once it was used.
    timeout : float
        Seconds that all calls together may take.

    Returns
    -------
    dict of int to str
        The reason why the stop did not reach a peer, by peer; empty if all have it.
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
