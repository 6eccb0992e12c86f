"""One host's connections: mailbox, server, links, heartbeats; opened, changed and closed together."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from p2pft_flower.agreement.membership import Membership
from p2pft_flower.algorithms.seam import Vector
from p2pft_flower.config import RuntimeConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.host.agreement import Agreement, LostContactError
from p2pft_flower.keeping.lives import next_incarnation
from p2pft_flower.plan import Neighbourhood, Plan
from p2pft_flower.topology import Graph
from p2pft_flower.transport import (
    Credentials,
    EdgeBrokenError,
    ExchangeError,
    Gossip,
    Heartbeats,
    Hello,
    Links,
    Mailbox,
    OwnPulse,
    PeerServer,
    Received,
    Reply,
    Stop,
    Terms,
    ViewChangeError,
    parse_address,
)

__all__ = ["Access", "Wires", "remote_edges"]

Edge = tuple[int, int]

log = logging.getLogger("p2pft_flower")

_AGAIN = 0.1
"""Seconds until donors are asked again."""


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
    config : RuntimeConfig
        Its deadlines.
    on_hello : callable
        Given a neighbour's Hello; see :class:`PeerServer`.
    on_stop : callable
        Given a neighbour's Stop, or the coordinator's.
    pulse : OwnPulse
        What the host does.
    joining : bool
        Whether the others train already, and this host is to ask to be let in; default False.

    Attributes
    ----------
    agreement : Agreement or None
        With the other hosts on who goes on; None where the view never changes.

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
        config: RuntimeConfig,
        on_hello: Callable[[Hello], Reply | None],
        on_stop: Callable[[Stop], None],
        pulse: OwnPulse,
        joining: bool = False,
    ) -> None:
        local = {p.peer for p in plan.peers}
        self._terms, self._offered_until = terms, math.inf
        self._go_to(local, leaving, entering)
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
        if joining:
            # What neighbours still send to its former life is no fault of theirs: they are told WRONG_VIEW.
            self.mailbox.fail(ViewChangeError("this host was started again and is in no view yet"))
        self.links = Links(
            terms,
            {
                peer: address
                for peer, address in plan.addresses.items()
                if peer not in local or peer in remotes
            },
            leaving,
            entering,
            timeout=config.peer_timeout,
            credentials=own,
            insecure=access.insecure,
            on_failure=self._payload_failed,
            patience=self._patience,
            longest=config.hang_timeout,
            speaks=self._speaks,
            views_change=bool(plan.members),
        )
        self.agreement = self._agree(plan, config, joining) if plan.members else None
        agreement = self.agreement
        self.heartbeats = Heartbeats(
            self.links,
            config.peer_timeout,
            config.hang_timeout,
            pulse=pulse.read,
            tell=(lambda _: Gossip()) if agreement is None else agreement.tell,
            hear=(lambda _: None) if agreement is None else agreement.hear,
            contacts=None if agreement is None else agreement.contacts,
            on_failure=self.fail,
        )
        try:
            self.server = PeerServer(
                self.mailbox,
                {peer: access.bind_address or plan.addresses[peer] for peer in sorted(local)},
                out_edges=leaving,
                on_hello=on_hello,
                on_stop=on_stop,
                on_gossip=self.heartbeats.answer,
                on_failure=self.fail,
                members=frozenset(p for peers in plan.members.values() for p in peers),
                stop_digest=plan.stop_digest,
                timeout=config.peer_timeout,
                longest=config.hang_timeout,
                credentials=own,
                insecure=access.insecure,
            )
        except BaseException:
            self.links.close()
            raise

    def _go_to(self, local: Iterable[int], leaving: set[Edge], entering: set[Edge]) -> None:
        self.edges = frozenset(entering)
        self._receivers: dict[int, tuple[int, ...]] = {
            j: tuple(sorted(i for s, i in leaving if s == j)) for j in sorted(local)
        }

    def _agree(self, plan: Plan, config: RuntimeConfig, joining: bool) -> Agreement:
        # Whom a simulation loses does not come back.
        local = all(parse_address(plan.addresses[p]).path is not None for p in plan.loss_weights)
        patience = min(config.rejoin_deadline, 4 * config.peer_timeout) if local else config.rejoin_deadline
        waits = config.on_failure == "wait"
        own = tuple(p.peer for p in plan.peers)
        me = next((m for m, peers in plan.members.items() if set(peers) == set(own)), None)
        if me is None:
            raise ConfigError(
                f"peers {list(own)} are no member of run {plan.run}, whose members are "
                f"{[list(peers) for peers in plan.members.values()]}: the plan was changed"
            )
        machine = Membership(
            me,
            Graph.from_dict(plan.graph),
            plan.members,
            round_time=config.peer_timeout / 4,
            patience=2 * patience if waits else patience,  # the first half is for who is waited for
            wait=waits,
            incarnation=next_incarnation(Path(plan.output_dir), me) if joining else 0,
            joining=joining,
        )
        return Agreement(
            machine,
            plan.iterations,
            on_change=self.fail,
            interval=min(1.0, config.peer_timeout / 8),
            direct=config.peer_timeout,
        )

    def watch(self) -> None:
        """Begin to look after the neighbours, all of which have been met."""
        if self.links.neighbours:
            self.heartbeats.start()
        if self.agreement is not None:
            self.agreement.start(self.heartbeats, lambda: self.links.neighbours)

    def _patience(self, remote: int) -> Exception | None:
        # Where views change, the agreement looks after all neighbours, and wakes whoever waits.
        return self.heartbeats.absence(remote) if self.agreement is None else None

    def _speaks(self, remote: int) -> bool:
        return self.heartbeats.speaks(remote)  # which are made after the links

    def install(
        self,
        number: int,
        first: int,
        leaving: set[Edge],
        entering: set[Edge],
        joined: Iterable[int] = (),
    ) -> None:
        """Go on to view ``number``, which begins with iteration ``first``, over its edges.

        To the peers ``joined``, which have come back, connections are made anew.

        Raises
        ------
        Exception
            What :meth:`fail` was called with, where that was no ViewChangeError.
        """
        terms = replace(self._terms, view=number)
        self.links.install(terms, leaving, entering, joined)
        mailbox = Mailbox(terms, entering, first)
        self.server.install(mailbox, leaving)
        self.mailbox = mailbox
        self._go_to(list(self._receivers), leaving, entering)

    def offer(self, first: int, thetas: Mapping[int, Vector], peers: Sequence[int]) -> None:
        """Let the peers of the view, which begins with iteration ``first``, fetch θ of this host's peers."""
        self.server.offer(first, thetas, peers)
        # Who still lacks θ has sent nothing, so no other peer gets further than its distance from it.
        self._offered_until = first + len(peers)

    def fetch(self, peer: int, donors: Sequence[int], timeout: float, check: Callable[[], None]) -> Vector:
        """Take θ from the first of ``donors`` that has one; ask all of them again and again.

        Parameters
        ----------
        peer : int
            The local peer that asks.
        donors : sequence of int
            Other peers of the view, in the order in which they are asked.
        timeout : float
            Seconds after which this is given up.
        check : callable
            Called several times a second; may raise.

        Raises
        ------
        LostContactError
            When nobody has given any; says what each one answered.
        ViewChangeError
            When the view changes meanwhile.
        Exception
            What :meth:`fail` was called with.
        """
        end, answers = time.monotonic() + timeout, dict[int, str]()
        while donors and time.monotonic() < end:
            for donor in donors:
                check()
                try:
                    return self.links.fetch(peer, donor, check)
                except ExchangeError as error:
                    if error is self.links.error:  # not the donor's answer, but this host's own affair
                        raise
                    log.info("peer %d has no vector from peer %d yet: %s", peer, donor, error)
                    answers[donor] = str(error)
            time.sleep(_AGAIN)
        told = "; ".join(f"peer {p}: {what}" for p, what in answers.items()) or "there is no other"
        raise LostContactError(
            f"it was let in again, but no other peer of view {self.links.terms.view} has given it a vector "
            f"to go on from within {timeout:g} s ({told}); the checkpoints are kept"
        )

    def receivers(self, peer: int) -> tuple[int, ...]:
        """Return the out-neighbours that ``peer`` reaches by the transport, ascending."""
        return self._receivers[peer]

    def take(self, receiver: int, sender: int, iteration: int, phase: int) -> Received:
        """Wait for one payload; see :meth:`Mailbox.take`."""
        if iteration >= self._offered_until:
            self.server.withdraw()
            self._offered_until = math.inf

        received = self.mailbox.take(receiver, sender, iteration, phase, math.inf, self._patience)
        self.heartbeats.heard(sender)
        return received

    def _payload_failed(self, error: Exception) -> None:
        if self.agreement is not None and isinstance(error, EdgeBrokenError):
            self.agreement.do_without(error)  # which wakes whoever waits here
        else:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Wake whoever waits here with ``error``; stops can still be sent."""
        self.mailbox.fail(error)
        self.links.fail(error)

    def close(self) -> None:
        """Close all of it; sockets and threads are gone afterwards."""
        if self.agreement is not None:
            self.agreement.close()
        self.heartbeats.close()
        self.server.close()
        self.links.close()
