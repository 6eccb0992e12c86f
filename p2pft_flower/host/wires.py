"""One host's connections: mailbox, server, links, heartbeats; opened, changed and closed together."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from p2pft_flower.agreement.rules import Rules
from p2pft_flower.agreement.state import begin, join
from p2pft_flower.algorithms.seam import Vector
from p2pft_flower.errors import ConfigError
from p2pft_flower.host.agreement import Agreement, LostContactError
from p2pft_flower.host.lookout import Lookout
from p2pft_flower.host.notary import Notary
from p2pft_flower.host.session import Session
from p2pft_flower.host.standings import Standings
from p2pft_flower.keeping.lives import next_incarnation
from p2pft_flower.plan import Plan
from p2pft_flower.topology import Graph
from p2pft_flower.transport import (
    Credentials,
    EdgeBrokenError,
    ExchangeError,
    Gossip,
    Heartbeats,
    Hello,
    Links,
    OwnPulse,
    PeerServer,
    Received,
    Reply,
    Stop,
    ViewChangeError,
    parse_address,
)

__all__ = ["Access", "Wires"]

log = logging.getLogger("p2pft_flower")

_DEPART = 2.0
"""Seconds that the others have to hear that this host leaves."""

_AGAIN = 0.1
"""Seconds to wait before all donors are asked again."""


@dataclass(frozen=True)
class Access:
    """Address to bind and certificates of this machine's peers: the site decides these, no plan does.

    Attributes
    ----------
    credentials : Credentials or None
        The certificates of the host's one peer; None for plain text.
    insecure : bool
        Whether plain text may leave this machine.
    bind_address : str
        The address that the host's one peer listens on, if its neighbours connect to another one; else empty.
    also : str
        A further address that the host's peers listen on, for hosts of other machines; empty: there is none.

    Raises
    ------
    ConfigError
        If certificates are given and plain text is allowed as well.
    """

    credentials: Credentials | None = None
    insecure: bool = False
    bind_address: str = ""
    also: str = ""

    def __post_init__(self) -> None:
        if self.credentials is not None and self.insecure:
            raise ConfigError("certificates and insecure = true exclude each other")


class Wires:
    """The connections of a host to others; opened before training, closed after it.

    Parameters
    ----------
    plan : Plan
        The host's part of the run; the plan's ``addresses`` cover the local peers and their neighbours.
    session : Session
        The session of the view that the run begins with.
    access : Access
        The host's address to bind, and its certificates.
    on_hello : callable
        Called with a neighbour's Hello; returns None to agree, or the Reply (:class:`PeerServer`).
    on_stop : callable
        Called with a neighbour's Stop, or the coordinator's.
    pulse : OwnPulse
        The host's activity and progress, for the heartbeats.
    standings : Standings
        The standings of all members, which travel with the gossip.
    joining : bool
        Whether this host joins others that train already, and must ask to be let in; default False.

    Attributes
    ----------
    agreement : Agreement or None
        The host's part in agreeing on the next view; None if the view never changes.

    Raises
    ------
    BindError
        If the server cannot listen on an address.
    ExchangeError
        If the plan lacks the address of a local peer or of a neighbour.
    ConfigError
        If plain text would leave this machine; if certificates or a bind address are given to a host that
        does not run exactly their one peer; or if the host's peers are no member of the plan.
    """

    def __init__(
        self,
        plan: Plan,
        session: Session,
        access: Access,
        *,
        on_hello: Callable[[Hello], Reply | None],
        on_stop: Callable[[Stop], None],
        pulse: OwnPulse,
        standings: Standings,
        joining: bool = False,
    ) -> None:
        local, config = _checked(plan, session, access), plan.config.runtime
        self._session, self._standings = session, standings
        self._taking: tuple[int, float] | None = None
        self._peer_timeout = config.peer_timeout
        self._others = {m: a for m in sorted(plan.members) if (a := plan.addresses.get(m)) and m not in local}
        if joining:
            # Payloads that neighbours still send to this host's former life are no fault of theirs: they are
            # answered with WRONG_VIEW.
            session.inbox.fail(ViewChangeError("this host was started again and is in no view yet"))
        remotes = {p for edge in session.leaving | session.entering for p in edge}
        # Before anything is opened: it refuses a plan that does not fit.
        self.agreement = self._agree(plan, access.credentials, joining) if plan.members else None
        self.links = Links(
            session.inbox.terms,
            {p: address for p, address in plan.addresses.items() if p not in local or p in remotes},
            session.leaving,
            session.entering,
            timeout=config.peer_timeout,
            credentials=access.credentials,
            insecure=access.insecure,
            on_failure=self._payload_failed,
            patience=self._patience,
            longest=config.hang_timeout,
            speaks=self._speaks,
            views_change=bool(plan.members),
        )
        self.heartbeats = self._beat(plan, pulse)
        try:
            self.server = PeerServer(
                session.inbox,
                {peer: access.bind_address or plan.addresses[peer] for peer in sorted(local)},
                also=access.also,
                out_edges=session.leaving,
                on_hello=on_hello,
                on_stop=on_stop,
                on_gossip=self.heartbeats.answer,
                on_failure=self.fail,
                members=frozenset(p for peers in plan.members.values() for p in peers),
                on_look=self._standings.answer,
                stop_digest=plan.stop_digest,
                look_digest=plan.look_digest,
                timeout=config.peer_timeout,
                longest=config.hang_timeout,
                credentials=access.credentials,
                insecure=access.insecure,
            )
        except BaseException:
            self.links.close()
            raise

    def _beat(self, plan: Plan, pulse: OwnPulse) -> Heartbeats:
        agreement, config = self.agreement, plan.config.runtime
        host_of = {p: m for m, peers in plan.members.items() for p in peers}
        return Heartbeats(
            self.links,
            config.peer_timeout,
            config.hang_timeout,
            pulse=pulse.read,
            tell=self._tell,
            hear=self._hear,
            contacts=None if agreement is None else agreement.contacts,
            on_failure=self.fail,
            host_of=lambda remote: host_of.get(remote, remote),
        )

    def _tell(self, remote: int) -> Gossip:
        gossip = Gossip() if self.agreement is None else self.agreement.tell(remote)
        self._standings.tell(remote, gossip)
        return gossip

    def _hear(self, gossip: Gossip) -> None:
        if self.agreement is not None:
            self.agreement.hear(gossip)
        self._standings.hear(gossip)

    def _agree(self, plan: Plan, credentials: Credentials | None, joining: bool) -> Agreement:
        config = plan.config.runtime
        # A peer that a simulation loses does not come back.
        sockets = all(parse_address(plan.addresses[p]).path is not None for p in plan.loss_weights)
        local = sockets or bool(plan.register)
        patience = min(config.rejoin_deadline, 4 * config.peer_timeout) if local else config.rejoin_deadline
        waits = config.on_failure == "wait"
        own = tuple(p.peer for p in plan.peers)
        me = next((m for m, peers in plan.members.items() if set(peers) == set(own)), None)
        if me is None:
            raise ConfigError(
                f"peers {list(own)} are no member of run {plan.run}, whose members are "
                f"{[list(peers) for peers in plan.members.values()]}: the plan was changed"
            )
        rules = Rules(
            Graph.from_dict(plan.graph),
            plan.members,
            round_time=config.peer_timeout / 4,
            patience=2 * patience if waits else patience,  # the first half is to wait for a lost member
            wait=waits,
        )
        state = join(rules, me, next_incarnation(Path(plan.output_dir), me)) if joining else begin(rules, me)
        signatures = None if credentials is None else credentials.signatures()
        return Agreement(
            state,
            Notary(plan.run, me, plan.members, plan.iterations, signatures),
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

    def lookout(self) -> Lookout:
        """Return the lookout for this host's time outside of every view."""
        return Lookout(self._others, self._peer_timeout, elsewhere=self.heartbeats.elsewhere)

    def _patience(self, remote: int) -> Exception | None:
        # If views change, the agreement looks after all neighbours, and wakes all that wait.
        return self.heartbeats.absence(remote) if self.agreement is None else None

    def _speaks(self, remote: int) -> bool:
        return self.heartbeats.speaks(remote)  # the heartbeats are made after the links

    def install(self, session: Session) -> None:
        """Go on to another view, with new connections to the peers that have come back in this view.

        Raises
        ------
        Exception
            The error with which :meth:`fail` was called, unless it was a ViewChangeError.
        """
        # First, so that a failure from now on wakes all that wait in this session: see `fail`.
        self._session = session
        self.links.install(session.inbox.terms, session.leaving, session.entering, session.returned)
        self.server.install(session.inbox, session.leaving)

    def fetch(self, timeout: float, check: Callable[[], None]) -> Vector:
        """Return θ, (q,), of the first of the session's donors that has one; ask all of them again and again.

        Parameters
        ----------
        timeout : float
            Seconds after which the search is given up.
        check : callable
            Called several times a second; may raise.

        Raises
        ------
        LostContactError
            If no donor has given θ in time; the text has the answer of each donor.
        ViewChangeError
            If the view changes meanwhile.
        Exception
            The error with which :meth:`fail` was called, or that ``check`` raised.
        """
        session = self._session
        peer, donors = min(session.places), session.donors
        end, answers = time.monotonic() + timeout, dict[int, str]()
        while donors and time.monotonic() < end:
            for donor in donors:
                check()
                try:
                    theta = self.links.fetch(peer, donor, check)
                except ExchangeError as error:
                    if error is self.links.error:  # not the donor's answer, but this host's own affair
                        raise
                    log.info("peer %d has no vector from peer %d yet: %s", peer, donor, error)
                    answers[donor] = str(error)
                else:
                    names, view = sorted(session.places), session.number
                    log.info("peers %s go on from the vector of another peer of view %d", names, view)
                    return theta
            time.sleep(_AGAIN)
        told = "; ".join(f"peer {p}: {what}" for p, what in answers.items()) or "there is no other"
        raise LostContactError(
            f"it was let in again, but no other peer of view {session.number} has given it a vector "
            f"to go on from within {timeout:g} s ({told}); the checkpoints are kept"
        )

    @property
    def awaited(self) -> tuple[int, float] | None:
        """The peer that is waited for, to send its payload or to take one in, and since when, if any."""
        return self._taking or self.links.awaited

    def take(self, session: Session, receiver: int, sender: int, iteration: int, phase: int) -> Received:
        """Wait for one payload and return it; see :meth:`Mailbox.take`."""
        self._taking = sender, time.monotonic()
        try:
            received = session.inbox.take(receiver, sender, iteration, phase, math.inf, self._patience)
        finally:
            self._taking = None
        self.heartbeats.heard(sender)
        return received

    def _payload_failed(self, error: Exception) -> None:
        if self.agreement is not None and isinstance(error, EdgeBrokenError):
            self.agreement.do_without(error)  # this wakes all that wait here
        else:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Raise ``error`` in all threads that wait for payloads or neighbours; stops can still be sent."""
        # In this order: `install` replaces the session first, and the links raise there an error that came
        # before. So an error that comes after finds the new session.
        self.links.fail(error)
        self._session.inbox.fail(error)

    def depart(self, reason: str) -> None:
        """Report to all contacts, within 2 s, that this host leaves, so that none waits for it any longer."""
        if self.agreement is None:
            return
        self.agreement.leave(reason)
        self._tell_now(self.agreement, self.agreement.contacts())

    def farewell(self) -> None:
        """Report to neighbours and contacts, within 2 s, that this host has finished, so that none waits."""
        if self.agreement is not None:
            self._tell_now(self.agreement, {**self.links.neighbours, **self.agreement.contacts()})

    def _tell_now(self, agreement: Agreement, members: Mapping[int, int]) -> None:
        """Gossip with ``members``, by the local peer that speaks to each; who is gone already is none."""
        gossip = {}
        for remote, local in members.items():
            gossip[remote] = agreement.tell(remote)
            gossip[remote].sender = local
        self.links.gossip_all(gossip, _DEPART)

    def close(self) -> None:
        """Close all connections; their sockets and threads are gone afterwards."""
        if self.agreement is not None:
            self.agreement.close()
        self.heartbeats.close()
        self.server.close()
        self.links.close()


def _checked(plan: Plan, session: Session, access: Access) -> set[int]:
    """Return the local peers, if plan and access have all that is needed to connect them.

    Raises
    ------
    ExchangeError
        If the address of a local peer or of a neighbour is missing.
    ConfigError
        If certificates or a bind address are given to a host that does not run exactly their one peer.
    """
    local = set(session.places)
    remotes = {p for edge in session.leaving | session.entering for p in edge}
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
        raise ConfigError(f"bind-address = {access.bind_address!r} is for one peer, not for {sorted(local)}")
    return local
