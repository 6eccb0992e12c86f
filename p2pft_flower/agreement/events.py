"""What a member's state machine is told, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from p2pft_flower.agreement.record import Age, Edge, Record, Step

__all__ = [
    "Completed",
    "Effect",
    "Event",
    "Finished",
    "Heard",
    "Left",
    "Missed",
    "Reached",
    "Rejoining",
    "TimePassed",
    "Useless",
]


@dataclass(frozen=True)
class Completed:
    """The member has completed so many iterations."""

    iteration: int


@dataclass(frozen=True)
class Finished:
    """The member has completed all iterations."""


@dataclass(frozen=True)
class Left:
    """The member goes; the others need not wait for its silence."""

    reason: str


@dataclass(frozen=True)
class Missed:
    """The member has not heard another one for too long, or the other speaks but hangs."""

    member: int
    hanging: bool = False


@dataclass(frozen=True)
class Useless:
    """An edge of the member's carries no payloads, though both of its ends speak.

    Unlike what :class:`Missed` says, this stands until the view has changed.
    """

    edge: Edge


@dataclass(frozen=True)
class Rejoining:
    """The member asks to be let in again, after the others have gone on without it."""

    iteration: int = 0


@dataclass(frozen=True)
class Reached:
    """The member, while it joins, has just spoken with these directly."""

    members: tuple[int, ...]


@dataclass(frozen=True)
class Heard:
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
    known: Mapping[int, Age] = field(default_factory=dict)


@dataclass(frozen=True)
class TimePassed:
    """The member looks at its clock, as it does at regular intervals."""


Event = Completed | Finished | Left | Missed | Useless | Rejoining | Reached | Heard | TimePassed


class Effect(Enum):
    """What is to be done at once; in which view a member is, and whether it gives up, its state says."""

    TELL = "tell"
    """Gossip now: there is news."""
    PAUSE = "pause"
    """Stop iterating: the view changes, be it without this member."""
