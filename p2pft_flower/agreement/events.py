"""The events that change a member's state machine, and its effects."""

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
    """The member has completed ``iterations`` iterations."""

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
    """The member has not heard another member for too long, or the other one speaks but hangs."""

    member: int
    hanging: bool = False


@dataclass(frozen=True)
class Useless:
    """An edge of the member's carries no payloads, though both of its ends speak.

    Unlike :class:`Missed`, this stands until the view has changed.
    """

    edge: Edge


@dataclass(frozen=True)
class Rejoining:
    """The member asks to be let in again, after the others have gone on without it."""

    iteration: int = 0


@dataclass(frozen=True)
class Reached:
    """The member, which joins, has just spoken with these members itself, and not through others."""

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
    """Actions to take at once; the state has the member's view, and whether it gives up."""

    TELL = "tell"
    """Gossip now: there is news."""
    PAUSE = "pause"
    """Stop iterating: the view changes, perhaps without this member."""
