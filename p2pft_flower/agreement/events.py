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
    """The member has completed ``iteration`` iterations."""

    iteration: int


@dataclass(frozen=True)
class Finished:
    """The member has completed all iterations."""


@dataclass(frozen=True)
class Left:
    """The member goes, for ``reason``; the others need not wait until it has been silent for too long."""

    reason: str


@dataclass(frozen=True)
class Missed:
    """The member has not heard ``member`` for too long or, if ``hanging``, hears it but sees no progress."""

    member: int
    hanging: bool = False


@dataclass(frozen=True)
class Useless:
    """An edge of the member's peers carries no payloads, though both of its ends speak.

    Unlike :class:`Missed`, which a word from the missed member undoes, this stands until the view changes.
    """

    edge: Edge


@dataclass(frozen=True)
class Rejoining:
    """The member, which has completed ``iteration`` iterations, asks to be let in again."""

    iteration: int = 0


@dataclass(frozen=True)
class Reached:
    """The member, which is joining, has just spoken with ``members`` directly, and not through others."""

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
        The age of each record that the speaker has, by author; empty while the speaker trains.
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
    """An action to take at once. The member's view, and whether it gives up, are in its state."""

    TELL = "tell"
    """Gossip now: there is news."""
    PAUSE = "pause"
    """Stop iterating: the view changes, perhaps without this member."""
