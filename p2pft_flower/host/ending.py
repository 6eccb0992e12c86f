"""The end of a host: one state machine for all that can end it, with news from any thread.

A host that trains is RUNNING. It becomes STOPPED if the run ends for all: then it sends its neighbours a
stop. It becomes LEAVING if it ends alone: then it reports that to the others, and they go on without it. The
first event ends the host: :meth:`Host.run` raises its error, which the journals have, too. A later event is
passed on to others if they need it, and has no other effect. :data:`TABLE` has every case.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from p2pft_flower.errors import Cause, P2PFTError
from p2pft_flower.transport import ExchangeStoppedError

__all__ = [
    "TABLE",
    "Act",
    "DepartedError",
    "End",
    "Ending",
    "Event",
    "News",
    "State",
    "TooFewPeersError",
    "Transition",
    "others_go_on",
]

log = logging.getLogger("p2pft_flower")

_DONE = 5.0
"""Seconds for all acts of an end: 2 s until the others have heard of the end, the rest for the disk."""


def others_go_on(cause: Cause, *, views_change: bool, begun: bool = True, joining: bool = False) -> bool:
    """Tell whether the other hosts go on if one host ends; hosts and coordinator share this rule.

    Parameters
    ----------
    cause : Cause
        The cause for which the host ends.
    views_change : bool
        Whether peers go on without one another at all.
    begun : bool
        Whether the host's peers have begun to train, or have been let in; default True.
    joining : bool
        Whether the host was started again while the others train; default False. Before such a host is let
        in, no other needs it.
    """
    if not views_change:
        return False
    if not begun:
        return joining
    return cause in (Cause.OWN, Cause.LOST)


class TooFewPeersError(P2PFTError):
    """Fewer peers are left than ``min-peers``: the run ends for all of them."""

    cause = Cause.RUN


class DepartedError(ExchangeStoppedError):
    """Raised in a host that is ended from outside, if the others go on without it."""

    cause = Cause.OWN


@dataclass(frozen=True)
class News:
    """The peer that gave up first, its iteration, and the reason.

    Attributes
    ----------
    origin, iteration : int
        The number of the peer, and the iteration that it was in.
    reason : str
        The reason, in words for a person.
    cause : Cause
        The cause for which the peer gave up.
    """

    origin: int
    iteration: int
    reason: str
    cause: Cause

    @property
    def error(self) -> ExchangeStoppedError:
        """The error that a host raises on this news."""
        text = f"peer {self.origin} stopped in iteration {self.iteration}: {self.reason}"
        return ExchangeStoppedError.by(self.cause, text)


@dataclass(frozen=True)
class End:
    """The errors and the news of an event.

    Attributes
    ----------
    error : ExchangeStoppedError
        The error that wakes the threads that wait on this host.
    noted : BaseException
        The error for the journals, and for the others if this host leaves.
    news : News or None
        The news for the neighbours if the run ends for all.
    """

    error: ExchangeStoppedError
    noted: BaseException
    news: News | None = None

    @classmethod
    def by(cls, news: News) -> End:
        """Return the end of a host on ``news`` from another one."""
        error = news.error
        return cls(error, error, news)


class State(Enum):
    """States of a host, from training to its end."""

    RUNNING = "running"
    STOPPED = "stopped"
    LEAVING = "leaving"


class Event(Enum):
    """An event that can end a host."""

    STOP = "stop"
    """Somebody stops the run, or another host gives up for all."""
    LEAVE = "leave"
    """The host is ended from outside, and the others go on without it."""
    LOSE = "lose"
    """The host is too busy to be let in again; its own training does not notice."""
    FAIL = "fail"
    """The host's training has failed, and the others go on without it."""
    RUIN = "ruin"
    """The host's training has failed, and the run ends for all."""


class Act(Enum):
    """An act that an event asks for."""

    WAKE = "wake"
    """Wake the threads that wait on this host, and the neighbours that wait for its answer to a hello."""
    NOTE = "note"
    """Write the last line of each peer's journal."""
    SAVE = "save"
    """Save θ and a checkpoint of each peer."""
    PASS_ON = "pass on"  # noqa: S105 - no password
    """Send the neighbours a stop: the run ends."""
    DEPART = "depart"
    """Report to all others that this host leaves."""


class Transition(NamedTuple):
    """The consequences of an event in a state.

    Attributes
    ----------
    state : State
        The next state.
    here : tuple of Act
        Acts that are done before :meth:`Ending.take` returns.
    apart : tuple of Act
        Acts that another thread does meanwhile, so that neither a long gradient nor a slow neighbour or disk
        delays the news.
    """

    state: State
    here: tuple[Act, ...] = ()
    apart: tuple[Act, ...] = ()


_RUNNING, _STOPPED, _LEAVING = State
_FAILED = (Act.NOTE, Act.SAVE)

TABLE: Mapping[tuple[State, Event], Transition] = {
    (_RUNNING, Event.STOP): Transition(_STOPPED, (Act.WAKE,), (Act.NOTE, Act.PASS_ON)),
    (_RUNNING, Event.LEAVE): Transition(_LEAVING, (Act.DEPART, Act.WAKE, Act.NOTE)),
    (_RUNNING, Event.LOSE): Transition(_LEAVING, (Act.DEPART, Act.WAKE, Act.NOTE, Act.SAVE)),
    (_RUNNING, Event.FAIL): Transition(_LEAVING, (Act.DEPART, *_FAILED)),
    (_RUNNING, Event.RUIN): Transition(_STOPPED, (Act.WAKE, *_FAILED), (Act.PASS_ON,)),
    # The run ends for all already: the host's training notices, and saves its results so far.
    (_STOPPED, Event.STOP): Transition(_STOPPED),
    (_STOPPED, Event.LEAVE): Transition(_STOPPED),
    (_STOPPED, Event.LOSE): Transition(_STOPPED),
    (_STOPPED, Event.FAIL): Transition(_STOPPED, _FAILED),
    (_STOPPED, Event.RUIN): Transition(_STOPPED, _FAILED),
    # The way of the news to others may lead through a host that leaves.
    (_LEAVING, Event.STOP): Transition(_STOPPED, (Act.WAKE,), (Act.PASS_ON,)),
    (_LEAVING, Event.LEAVE): Transition(_LEAVING),
    (_LEAVING, Event.LOSE): Transition(_LEAVING),
    (_LEAVING, Event.FAIL): Transition(_LEAVING, _FAILED),
    (_LEAVING, Event.RUIN): Transition(_LEAVING, _FAILED),
}


class Ending:
    """A host's state machine; all methods may be called from any thread, and from a signal's handler.

    Parameters
    ----------
    acts : mapping of Act to callable
        Functions that do the acts, given the :class:`End`. That of PASS_ON returns False if there is no way
        to the neighbours yet.
    """

    def __init__(self, acts: Mapping[Act, Callable[[End], bool | None]]) -> None:
        self._acts = acts
        self._changed = threading.Condition()  # re-entrant: a signal's handler may interrupt its owner
        self._state = State.RUNNING
        self._end: End | None = None
        self._since = 0.0
        self._doing = 0
        self._thread: threading.Thread | None = None
        self._unsaid: End | None = None
        """The end that could not be passed on yet, as there was no way to the neighbours."""

    def take(self, event: Event, end: End) -> bool:
        """Take an event, do the acts of :data:`TABLE`, and return whether this event is the first.

        Raises
        ------
        Exception
            The first error of an act that is done here; the other acts are done nevertheless.
        """
        with self._changed:
            first = self._end is None
            if first:
                self._end, self._since = end, time.monotonic()
            self._state, here, apart = TABLE[self._state, event]
            self._doing += 1 + bool(apart)
            if apart:  # once at most: the news ends the run for all, and nothing comes after that
                self._thread = threading.Thread(
                    target=self._do_apart, args=(apart, end), name="p2pft-stop", daemon=True
                )
                self._thread.start()
        self._do(here, end)
        return first

    def raise_if_ending(self, longer_than: float = 0.0) -> None:
        """Raise the error that ends this host, if that was set ``longer_than`` seconds ago or more."""
        with self._changed:
            end, since = self._end, self._since
        if end is not None and time.monotonic() - since >= longer_than:
            raise end.error

    def wait(self) -> None:
        """Wait until all acts are done, 5 s at most; then pass on the news that had no way before."""
        with self._changed:
            if not (done := self._changed.wait_for(lambda: not self._doing, _DONE)):
                log.warning("what is to be done when a host ends takes longer than %g s", _DONE)
            thread, unsaid, self._unsaid = self._thread, self._unsaid, None
            self._doing += unsaid is not None
        if unsaid is not None:
            self._do((Act.PASS_ON,), unsaid)
        if thread is not None:
            thread.join(_DONE if done else 0.0)

    def _do(self, acts: tuple[Act, ...], end: End) -> None:
        """Do all of ``acts``, even if one fails; then raise the first error."""
        failure: Exception | None = None
        try:
            for act in acts:
                try:
                    said = self._acts[act](end)
                except Exception as error:
                    failure = failure or error
                    continue
                if said is False:
                    with self._changed:
                        self._unsaid = end
        finally:
            with self._changed:
                self._doing -= 1
                self._changed.notify_all()
        if failure is not None:
            raise failure

    def _do_apart(self, acts: tuple[Act, ...], end: End) -> None:
        try:
            self._do(acts, end)
        except Exception:  # the host ends in any case, with its own error
            log.exception("telling others that the run ends has failed")
