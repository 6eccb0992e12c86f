"""Fetching: a peer that has come to a view without a vector of its own takes one from another peer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from p2pft_flower.transport.calls import Call, Channels
from p2pft_flower.transport.payloads import Deadlines
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import ExchangeRefusedError, UnansweredError
from p2pft_flower.transport.wire.header import Terms, wrong_vector

__all__ = ["fetch"]


async def fetch(
    terms: Terms,
    edge: tuple[int, int],
    address: str,
    deadlines: Deadlines,
    credentials: Credentials | None,
    insecure: bool,
) -> npt.NDArray[np.floating]:
    """Fetch θ from the donor of ``edge`` = (donor, local peer); see `Links.fetch`."""
    donor, local = edge
    call = Call(edge, donor, address, deadlines.most())
    message = pb.Fetch(run=terms.run, view=terms.view, sender=local, receiver=donor)
    # Channels of its own: only here an answer is as long as a vector.
    async with Channels({donor: address}, credentials, insecure, largest=terms.nbytes) as channels:
        try:
            answer = call.read(await channels.ask("Fetch", message, call, wait_for_ready=False), pb.Fetched)
        except UnansweredError:
            deadlines.lengthen(edge, call.deadline, terms.nbytes)
            raise
    if (wrong := wrong_vector(terms, edge, answer)) is not None:
        raise call.error(ExchangeRefusedError, f"the vector from peer {donor} is not used: {wrong}")
    return np.frombuffer(answer.vector, dtype=terms.numpy_dtype).copy()
