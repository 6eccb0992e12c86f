"""One host's connections: mailbox, server and links to peers elsewhere, opened and closed together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from p2pft_flower.errors import ConfigError
from p2pft_flower.runtime.plan import Neighbourhood, Plan
from p2pft_flower.transport import (
    Credentials,
    ExchangeError,
    Hello,
    Links,
    Mailbox,
    PeerServer,
    Received,
    Reply,
    Stop,
    Terms,
)

__all__ = ["Access", "Wires", "remote_edges"]

Edge = tuple[int, int]


def remote_edges(peers: tuple[Neighbourhood, ...], *, always: bool) -> tuple[set[Edge], set[Edge]]:
    """Return the (sender, receiver) edges that leave and that enter by the transport.

    Parameters
    ----------
    peers : tuple of Neighbourhood
        The host's peers.
    always : bool
        Use the transport between peers of the host as well (``transport = "grpc"``).
    """
    here = set() if always else {p.peer for p in peers}
    leaving = {(p.peer, i) for p in peers for i in p.out_neighbours if i not in here}
    entering = {(j, p.peer) for p in peers for j in p.in_neighbours if j not in here}
    return leaving, entering


@dataclass(frozen=True)
class Access:
    """How this machine's peers listen and prove who they are: decided here, in no plan.

    Attributes
    ----------
    credentials : Credentials or None
        The certificates of the host's one peer; None for plain text.
    insecure : bool
        Whether plain text may leave this machine.
    bind_address : str
        What the host's one peer listens on, where that is not what its neighbours connect to; else empty.

    Raises
    ------
    ConfigError
        When certificates are given and plain text is allowed as well.
    """

    credentials: Credentials | None = None
    insecure: bool = False
    bind_address: str = ""

    def __post_init__(self) -> None:
        if self.credentials is not None and self.insecure:
            raise ConfigError("certificates and insecure = true exclude each other")


class Wires:
    """Opened before training, closed after it.

    Parameters
    ----------
    plan : Plan
        The host's part of the run; its ``addresses`` cover the local peers and their neighbours.
    terms : Terms
        What every payload must be like.
    leaving, entering : set of (int, int)
        From :func:`remote_edges`.
    access : Access
        How the host listens and proves who it is.
    timeout : float
        Deadline of every payload, in seconds.
    on_hello : callable
        Given a neighbour's Hello; see :class:`PeerServer`.
    on_stop : callable
        Given a neighbour's Stop, or the coordinator's.

    Raises
    ------
    BindError
        When an address cannot be listened on.
    ConfigError
        When plain text would leave this machine, or certificates or a bind address are given for a host of
        other peers.
    """

    def __init__(
        self,
        plan: Plan,
        terms: Terms,
        leaving: set[Edge],
        entering: set[Edge],
        access: Access,
        *,
        timeout: float,
        on_hello: Callable[[Hello], Reply | None],
        on_stop: Callable[[Stop], None],
    ) -> None:
        local = {p.peer for p in plan.peers}
        self.timeout = timeout
        self.edges = frozenset(entering)
        self._receivers: dict[int, tuple[int, ...]] = {
            j: tuple(sorted(i for s, i in leaving if s == j)) for j in sorted(local)
        }
        remotes = {i for _, i in leaving} | {j for j, _ in entering}
        # A host that stays silent in Stop would be waited for until the deadline: check before binding.
        unknown = sorted((local | remotes) - plan.addresses.keys())
        if unknown:
            raise ExchangeError(
                f"no address is known for peers {unknown}; set peer-address or the topology's addresses"
            )
        own = access.credentials
        if own is not None and local != {own.peer}:
            raise ConfigError(
                f"the certificates in {own.folder} are peer {own.peer}'s, but this host runs the peers "
                f"{sorted(local)}: each peer needs a host and certificates of its own"
            )
        if access.bind_address and len(local) > 1:
            raise ConfigError(
                f"bind-address = {access.bind_address!r} is for one peer, not for {sorted(local)}"
            )
        # Where anything is exchanged, all peers begin at the same iteration.
        self.mailbox = Mailbox(terms, entering, first_iteration=min(plan.begins.values()))
        self.links = Links(
            terms,
            {peer: plan.addresses[peer] for peer in remotes},
            leaving,
            entering,
            timeout=timeout,
            credentials=own,
            insecure=access.insecure,
            on_failure=self.fail,
        )
        try:
            self.server = PeerServer(
                self.mailbox,
                {peer: access.bind_address or plan.addresses[peer] for peer in sorted(local)},
                out_edges=leaving,
                on_hello=on_hello,
                on_stop=on_stop,
                stop_digest=plan.stop_digest,
                timeout=timeout,
                credentials=own,
                insecure=access.insecure,
            )
        except BaseException:
            self.links.close()
            raise

    def receivers(self, peer: int) -> tuple[int, ...]:
        """Return the out-neighbours that ``peer`` reaches by the transport, ascending."""
        return self._receivers[peer]

    def take(self, receiver: int, sender: int, iteration: int, phase: int) -> Received:
        """Wait for one payload; see :meth:`Mailbox.take`."""
        return self.mailbox.take(receiver, sender, iteration, phase, self.timeout)

    def fail(self, error: Exception) -> None:
        """Wake whoever waits here with ``error``; stops can still be sent."""
        self.mailbox.fail(error)
        self.links.fail(error)

    def close(self) -> None:
        """Close server and links; sockets and threads are gone afterwards."""
        self.server.close()
        self.links.close()
