"""Errors between peers; they name peer, edge, iteration, phase and deadline as far as known."""

from __future__ import annotations

from enum import Enum
from typing import Self, TypedDict, Unpack

from p2pft_flower.errors import Cause, P2PFTError
from p2pft_flower.transport.wire import p2pft_pb2 as pb

__all__ = [
    "BindError",
    "CorruptedError",
    "EdgeBrokenError",
    "ExchangeError",
    "ExchangeRefusedError",
    "ExchangeStoppedError",
    "ExchangeTimeoutError",
    "Loss",
    "OtherRunError",
    "OtherViewError",
    "PeerLostError",
    "PeerPreparingError",
    "PeerUnreachableError",
    "Place",
    "Refused",
    "RevokedError",
    "UnansweredError",
    "UnsharedError",
    "ViewChangeError",
    "cause_from",
]


def cause_from(number: int) -> Cause | None:
    """Return the cause that a message names; None if it names none, or one of another version."""
    names = {value: name for name, value in pb.Stop.Cause.items()}
    return Cause.__members__.get(names.get(number, ""))


class Place(TypedDict, total=False):
    """The place of an exchange that failed, as far as known; see `ExchangeError`."""

    peer: int | None
    edge: tuple[int, int] | None
    iteration: int | None
    phase: str | None
    deadline: float | None


class ExchangeError(P2PFTError):
    """An exchange with a neighbour failed.

    Parameters
    ----------
    problem : str
        The fault and, if there is one, the remedy; a sentence without the place, which is put first.
    peer : int or None
        The local peer concerned.
    edge : (int, int) or None
        Sender and receiver.
    iteration : int or None
        The iteration in which it happened.
    phase : str or None
        The exchange of that iteration: its name (`Terms.phase_name`).
    deadline : float or None
        The deadline that passed or that was in force, in seconds.

    Attributes
    ----------
    problem, peer, edge, iteration, phase, deadline
        The parameters of these names.
    """

    peer: int | None = None
    edge: tuple[int, int] | None = None
    iteration: int | None = None
    phase: str | None = None
    deadline: float | None = None

    def __init__(self, problem: str, **place: Unpack[Place]) -> None:
        self.problem = problem
        self.at(**place)
        super().__init__(problem)

    def __str__(self) -> str:
        parts = {
            "peer": self.peer,
            "edge": None if self.edge is None else f"{self.edge[0]} -> {self.edge[1]}",
            "iteration": self.iteration,
            "phase": self.phase,
            "deadline": None if self.deadline is None else f"{self.deadline:g} s",
        }
        place = ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)
        return f"{place}: {self.problem}" if place else self.problem

    def at(self, **place: Unpack[Place]) -> Self:
        """Set parts of the place, in place of any that were set before, and return this error."""
        vars(self).update(place)
        return self


class ExchangeTimeoutError(ExchangeError):
    """Nothing arrived, or nothing was taken in, before the deadline."""

    cause = Cause.LOST


class UnansweredError(ExchangeTimeoutError):
    """A call's deadline passed before any answer came: its content may not have got through."""


class ExchangeRefusedError(ExchangeError):
    """The neighbour looked at a message and refused it; the reason is the neighbour's."""


class CorruptedError(ExchangeRefusedError):
    """A message arrived altered at the neighbour: its checksum does not fit."""


class RevokedError(ExchangeRefusedError):
    """The neighbour refuses this host's certificate, which was revoked: the others go on without it."""

    cause = Cause.OWN


class UnsharedError(ExchangeRefusedError):
    """The neighbour cannot have the memory in which this host lays payloads for it."""


class PeerPreparingError(ExchangeError):
    """The neighbour is there, not yet ready to train, and asks to be asked again.

    Attributes
    ----------
    progress : int
        A number; it differs from that of the neighbour's last answer if the neighbour has come further.
    """

    progress: int = 0


class PeerUnreachableError(ExchangeError):
    """There is no connection to the neighbour's address."""

    cause = Cause.LOST


class OtherRunError(ExchangeRefusedError):
    """The peer at that address takes part in another run."""


class OtherViewError(ExchangeRefusedError):
    """The neighbour is in another view: it has not come to this one yet, or has left it."""


class ViewChangeError(ExchangeError):
    """Exchanging in this view has ended, which need not end the run: another view may follow."""


class EdgeBrokenError(ViewChangeError):
    """Payloads do not get through along an edge, though its receiver speaks; raised at the sender."""

    cause = Cause.LOST


class Loss(Enum):
    """Ways in which a peer is lost."""

    CRASHED = "crashed"
    """Nothing listens at the peer's address any more."""
    SILENT = "silent"
    """The peer's machine takes connections, but the process says nothing."""
    CUT_OFF = "cut off"
    """The peer's address cannot be reached."""
    HANGING = "hanging"
    """The peer speaks, but gets no further in its own computation."""
    REVOKED = "revoked"
    """The peer's certificate was revoked: nothing is taken from it, or sent to it."""


class PeerLostError(ViewChangeError):
    """A neighbour is not slow but lost; raised by the code that waits for it.

    Parameters
    ----------
    observation : str
        What was observed, in words.
    lost : int
        The remote peer.
    how : Loss
        The way in which it is lost, as seen from here.
    **place
        As for :class:`ExchangeError`.

    Attributes
    ----------
    lost, how
        The parameters of these names.
    reason : str
        How it is lost and what was observed, without the place: for whoever reads of it elsewhere.
    """

    cause = Cause.LOST

    def __init__(self, observation: str, *, lost: int, how: Loss, **place: Unpack[Place]) -> None:
        self.lost = lost
        self.how = how
        self.reason = f"{how.value}: {observation}"
        super().__init__(f"peer {lost} is lost ({how.value}): {observation}", **place)


class ExchangeStoppedError(ExchangeError):
    """Exchanging has ended, on this host or at the neighbour.

    Attributes
    ----------
    cause : Cause
        STOPPED, or HEARSAY if another host's failure has ended it.
    """

    cause = Cause.STOPPED

    @classmethod
    def by(cls, cause: Cause, problem: str) -> Self:
        """Return the error of a host that ends because another one ends for ``cause``."""
        error = cls(problem)
        error.cause = cause.told
        return error


class BindError(ExchangeError):
    """An address cannot be served on; the message names the peer, the address and the remedy."""


class Refused(Exception):  # noqa: N818 - an answer, not a failure of this host
    """A message is not taken in; ``status`` and ``reason``, in words, are the answer.

    ``counts`` says whether the refusal is held against the caller (`Throttle`); default True.
    """

    def __init__(self, status: pb.Status, reason: str, *, counts: bool = True) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.counts = counts
