"""Whether anybody is left that could let a host in, looked at while the host asks and nobody answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from p2pft_flower.host.agreement import LostContactError
from p2pft_flower.transport import Loss, begin_attempt, knock

__all__ = ["Lookout"]

log = logging.getLogger("p2pft_flower")

_LONGEST = 10.0
"""The most seconds for which all other addresses must refuse connections until the run counts as over."""

_EVERY = 1.0
"""Seconds between two tries of all addresses."""


class Lookout:
    """Tries the addresses of all other members while a host asks to be let in and hears nothing of them.

    A process that takes part in the run listens until it ends. So the run is over if nothing listens at any
    of the addresses, or only another run's peer does. An address that takes connections, or that cannot be
    reached, proves nothing: then the host asks on, and the log says what was found.

    Parameters
    ----------
    addresses : mapping of int to str
        The address of each other member, by its lowest peer.
    patience : float
        Seconds for which this must hold, at most 10 (a run gives ``peer-timeout``).
    elsewhere : callable
        Given a member, returns whether its last answer to gossip was that it is of another run.
    attempt : callable
        As :func:`~p2pft_flower.transport.knock`, the default.
    clock : callable
        Returns the time in seconds; default time.monotonic.
    """

    def __init__(
        self,
        addresses: Mapping[int, str],
        patience: float,
        *,
        elsewhere: Callable[[int], bool],
        attempt: Callable[[str], tuple[Loss, str]] = knock,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._addresses, self._patience = dict(sorted(addresses.items())), min(patience, _LONGEST)
        self._elsewhere, self._attempt, self._clock = elsewhere, attempt, clock
        self._tries: dict[int, Future[tuple[Loss, str]]] = {}
        self._next = 0.0
        self._gone_since: float | None = None
        self._told = ""

    def raise_if_over(self, alone: float) -> None:
        """Look at the tries that are done, and begin new ones; never waits.

        Parameters
        ----------
        alone : float
            Seconds for which the host has asked, and no other member has spoken to it.

        Raises
        ------
        LostContactError
            If the run is over; names each address and what was found there.
        """
        if alone < self._patience / 2:
            self._gone_since = None
            return
        now = self._clock()
        if self._tries and all(one.done() for one in self._tries.values()):
            self._look({member: one.result() for member, one in self._tries.items()}, now)
            self._tries, self._next = {}, now + _EVERY
        if not self._tries and now >= self._next:
            self._tries = {
                member: begin_attempt(address, self._attempt, lambda: None)
                for member, address in self._addresses.items()
            }

    def _look(self, found: Mapping[int, tuple[Loss, str]], now: float) -> None:
        gone = {member: how is Loss.CRASHED for member, (how, _) in found.items()}
        words = {member: f"peer {member}: {told}" for member, (_, told) in found.items()}
        for member in found:
            if not gone[member] and self._elsewhere(member):
                gone[member] = True
                words[member] = f"peer {member}: {self._addresses[member]} is of another run by now"
        told = "; ".join(words.values())
        if told != self._told:
            self._told = told
            log.warning("no peer of the run has answered yet: %s", told)
        if not gone or not all(gone.values()):
            self._gone_since = None
            return
        since = self._gone_since = now if self._gone_since is None else self._gone_since
        if now - since >= self._patience:
            raise LostContactError(
                f"the run is over, or all of its other sites are down: {told}, for {now - since:.0f} s. "
                "p2pft collect joins the results that the peers have kept, and p2pft run --resume goes on "
                "with a run that did not come to its end"
            )
