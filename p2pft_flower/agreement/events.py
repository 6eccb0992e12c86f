"""What a member's state machine is told, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from p2pft_flower.agreement.record import Age, Composition, Edge, Record, Step

__all__ = [
    "Adopt",
    "AskAgain",
    "Completed",
    "Effect",
    "Event",
    "Finished",
    "GiveUp",
    "Heard",
    "Left",
    "Missed",
    "Pause",
    "Reached",
    "Rejoining",
    "Spoke",
    "Tell",
    "TimePassed",
    "Useless",
]


class Completed(NamedTuple):
    """The member has completed so many iterations."""

    iteration: int


class Finished(NamedTuple):
    """The member has completed all iterations."""


class Left(NamedTuple):
    """The member goes; the others need not wait for its silence."""

    reason: str


class Missed(NamedTuple):
    """The member has not heard another one for too long, or the other speaks but hangs."""

    member: int
    hanging: bool = False


class Spoke(NamedTuple):
    """A member has spoken; if it was suspected, it is still in the view."""

    member: int


class Useless(NamedTuple):
    """An edge of the member's carries no payloads, though both of its ends speak.

    Unlike what :class:`Missed` says, this stands until the view has changed.
    """

    edge: Edge


class Rejoining(NamedTuple):
    """The member asks to be let in again, after the others have gone on without it."""

    iteration: int = 0


class Reached(NamedTuple):
    """The member, while it joins, has just spoken with these directly."""

    members: tuple[int, ...]


class Heard(NamedTuple):
    """Another member's gossip has come.

    Attributes
    ----------
    records : tuple of Record
        The records in it, of any members.
    steps : tuple of Step
        The decided views in it, ascending.
    speaker : int or None
        The member that speaks; None if that is unknown.
    known : mapping of int to (int, int)
        The age of each record that the speaker has; empty while it trains.
    """

    records: tuple[Record, ...]
    steps: tuple[Step, ...] = ()
    speaker: int | None = None
    known: Mapping[int, Age] = {}


class TimePassed(NamedTuple):
    """The member looks at its clock, as it does at regular intervals."""


Event = Completed | Finished | Left | Missed | Spoke | Useless | Rejoining | Reached | Heard | TimePassed


class Tell(NamedTuple):
    """Gossip now: there is news."""


class Pause(NamedTuple):
    """Stop iterating: the view changes."""


class Adopt(NamedTuple):
    """Go on in this view."""

    view: Composition


class AskAgain(NamedTuple):
    """The others have gone on without this member, which may ask to be let in (:class:`Rejoining`)."""


class GiveUp(NamedTuple):
    """End: there will be no view with this member."""

    reason: str


Effect = Tell | Pause | Adopt | AskAgain | GiveUp
