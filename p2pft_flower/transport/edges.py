"""The edges of this host in one view, and the local peer in whose name each neighbour is sent messages."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from p2pft_flower.transport.mailbox import Edge
from p2pft_flower.transport.wire.header import Terms

__all__ = ["Edges"]


@dataclass(frozen=True)
class Edges:
    """The edges of a view, as `Links` knows them; replaced as a whole.

    Attributes
    ----------
    terms : Terms
        The view's terms.
    pairs : mapping of (int, int) to (int, int)
        (local, remote) of each pair of neighbours to the edge that names the pair in messages.
    receivers : mapping of int to tuple of int
        Local sender to its remote out-neighbours, ascending.
    """

    terms: Terms
    pairs: Mapping[Edge, Edge]
    receivers: Mapping[int, tuple[int, ...]]

    @classmethod
    def of(cls, terms: Terms, out: Iterable[Edge], into: Iterable[Edge], known: Container[int]) -> Self:
        """Return the edges of a view with these terms.

        Parameters
        ----------
        terms : Terms
            The view's terms.
        out, into : iterable of (int, int)
            (sender, receiver) of the edges that leave this host and that enter it.
        known : container of int
            The remote peers whose address is known.

        Raises
        ------
        ValueError
            When the address of a remote neighbour is not ``known``.
        """
        out, into = sorted(set(out)), sorted(set(into))
        pairs: dict[Edge, Edge] = {edge: edge for edge in out}
        pairs |= {(receiver, sender): (sender, receiver) for sender, receiver in into}
        if missing := sorted({remote for _, remote in pairs if remote not in known}):
            raise ValueError(f"no address for the neighbours {missing}")
        receivers = {sender: tuple(i for j, i in out if j == sender) for sender, _ in out}
        return cls(terms, pairs, receivers)

    @property
    def neighbours(self) -> dict[int, int]:
        """Each remote neighbour, ascending, to the local peer in whose name this host sends it messages."""
        # A host sends a message once to each remote peer, even if several of its own peers have edges with
        # it.
        speakers = {remote: local for local, remote in sorted(self.pairs, reverse=True)}
        return dict(sorted(speakers.items()))

    def edge_with(self, remote: int) -> Edge:
        """Return the edge that messages between this host and ``remote`` name.

        It is the edge between ``remote`` and the local peer in whose name this host sends it messages.

        Raises
        ------
        ValueError
            When ``remote`` is no neighbour in this view.
        """
        if (local := self.neighbours.get(remote)) is None:
            raise ValueError(f"peer {remote} shares no edge with this host in view {self.terms.view}")
        return self.pairs[local, remote]
