"""The graph that peers exchange over, with its two mixing matrices.

Section 2.3 of the paper, with ``w_ij`` the weight that peer i gives to peer j's vector::

    a_ij = w_ij / Σ_j w_ij        row stochastic: the receiver's weights, for θ
    b_ij = w_ij / Σ_i w_ij        column stochastic: the sender's shares, for τ

The weights may change with the iteration: a graph may have *turns*, several W of which iteration k uses
number k modulo their number. Such a graph's own W is their mean, so its edges are those of any turn.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import TopologyError
from p2pft_flower.topology import checks, sources
from p2pft_flower.topology.turn import Turn, by_columns, by_rows, cycle, stationary

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Graph", "GraphParts"]

Matrix = npt.NDArray[np.float64]

MAX_TURNS = 256
"""More are a mistake: each is an (n, n) matrix in every host's plan."""


class GraphParts(TypedDict, total=False):
    """A graph as :meth:`Graph.to_dict` returns it, for JSON and for plans."""

    name: str
    weights: list[list[float]]
    peer_names: list[str]
    addresses: list[str | None]
    turns: list[list[list[float]]]


def _frozen(array: Matrix) -> Matrix:
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """A strongly connected directed graph with weights; checked when made, and unchangeable.

    Make one with :meth:`load`, :meth:`from_weights` or :meth:`from_dict`.

    Parameters
    ----------
    name : str
        A name for people.
    W : ndarray, shape (n, n), float64
        ``W[i, j] >= 0`` is the weight that peer i gives to peer j's vector; 0 without an edge j → i. The
        diagonal, the self-weights, is positive.
    peer_names : tuple of str, optional
        One name for each peer, all different; ``"0"`` to ``"n-1"`` by default.
    addresses : tuple of (str or None), optional
        The address of each peer in a deployment; None by default.
    description : str, default ""
        A sentence for people, which equality of graphs ignores.
    turns : tuple of ndarray, shape (n, n), float64
        The W of each iteration, in turn; ``W`` is their mean then. Empty, the default: always W.

    Raises
    ------
    TopologyError
        When the graph cannot be used; the message names the peer or edge and the remedy.
    """

    name: str
    W: Matrix
    peer_names: tuple[str, ...] = None  # type: ignore[assignment]  # __post_init__ fills the default in
    addresses: tuple[str | None, ...] = None  # type: ignore[assignment]
    description: str = ""
    turns: tuple[Matrix, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or not self.name.isprintable():
            raise TopologyError(f"the graph's name is {self.name!r}: give it printable text")
        W = checks.as_square(self.W)
        names = checks.checked_names(self.peer_names, len(W))
        checks.checked_weights(W, names)
        addresses = checks.checked_addresses(self.addresses, names)
        turns = tuple(_frozen(checks.checked_turn(turn, W, names, t)) for t, turn in enumerate(self.turns))
        if turns and not np.allclose(np.mean(turns, axis=0), W, rtol=1e-12, atol=0.0):
            raise TopologyError("the weights are not the mean of those of the turns: the graph was changed")
        fields = {"W": _frozen(W), "peer_names": names, "addresses": addresses, "turns": turns}
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    # Constructors

    @classmethod
    def load(cls, x: str | Path) -> Graph:
        """Load a graph by name, from a YAML file or from a generator's spec.

        Parameters
        ----------
        x : str or Path
            The name of a shipped graph (``"directed-ring-4"``), a path to YAML (``"my/graph.yaml"``; its
            schema is in topologies/README.md) or a spec (``"exponential:16"``). A shipped name goes before
            a file of that name in the working directory; write ``./name`` for the file.

        Returns
        -------
        Graph

        Raises
        ------
        TopologyError
            When there is no such graph, the file or spec is malformed, or the graph cannot be used.
        """
        source = sources.find(x)
        try:
            return cls(source.name, source.W, source.peer_names, source.addresses, source.description)
        except TopologyError as error:
            raise TopologyError(f"{source.origin}: {error}") from error

    @classmethod
    def from_weights(
        cls,
        W: npt.ArrayLike,
        *,
        name: str = "weights",
        peer_names: Sequence[str] | None = None,
        addresses: Sequence[str | None] | None = None,
        turns: Sequence[npt.ArrayLike] = (),
    ) -> Graph:
        """Make a graph of a matrix of weights; the class describes parameters and errors."""
        return cls(
            name,
            W,  # type: ignore[arg-type]  # anything array-like: __post_init__ converts and checks
            peer_names,  # type: ignore[arg-type]
            addresses,  # type: ignore[arg-type]
            turns=turns,  # type: ignore[arg-type]
        )

    def in_turn(self, turns: Sequence[npt.ArrayLike], name: str) -> Graph:
        """Return a graph of the same peers, whose iterations use the weights ``turns`` one after another.

        Parameters
        ----------
        turns : sequence of (n, n) array-likes
            The W of iteration 0, 1, …; after the last the first follows.
        name : str
            The new graph's name.

        Raises
        ------
        TopologyError
            When there is no turn or more than 256, when a turn cannot be used, or when all turns together do
            not connect everybody.
        """
        if not len(turns):
            raise TopologyError("there is no turn: give the weights of one iteration at least")
        if len(turns) > MAX_TURNS:
            raise TopologyError(f"there are {len(turns)} turns: at most {MAX_TURNS} are supported")
        checked = [checks.checked_turn(turn, self.W, self.peer_names, t) for t, turn in enumerate(turns)]
        own = tuple(checked) if len(checked) > 1 else ()  # a single one is always the same: no turns
        try:
            return Graph(name, np.mean(checked, axis=0), self.peer_names, self.addresses, turns=own)
        except TopologyError as error:
            raise TopologyError(f"all {len(checked)} turns together: {error}") from error

    @classmethod
    def from_dict(cls, d: Mapping[str, Any] | GraphParts) -> Graph:
        """Make a graph of a dictionary that :meth:`to_dict` returned, with all checks of the class.

        Raises
        ------
        TopologyError
            When an entry is missing, or the graph cannot be used.
        """
        try:
            name, weights, peer_names = d["name"], d["weights"], d["peer_names"]
            addresses = d["addresses"]
        except KeyError as error:
            raise TopologyError(
                f"a graph's dictionary has name, weights, peer_names and addresses; {error} is missing"
            ) from error
        return cls.from_weights(
            weights, name=name, peer_names=peer_names, addresses=addresses, turns=d.get("turns", ())
        )

    # Parts

    @property
    def n(self) -> int:
        """Number of peers."""
        return len(self.W)

    @cached_property
    def A(self) -> Matrix:  # noqa: N802 - the paper's name
        """The receivers' weights ``a_ij = w_ij / Σ_j w_ij``; shape (n, n), float64, rows sum to 1."""
        return by_rows(self.W)

    @cached_property
    def B(self) -> Matrix:  # noqa: N802 - the paper's name
        """The senders' shares ``b_ij = w_ij / Σ_i w_ij``; shape (n, n), float64, columns sum to 1."""
        return by_columns(self.W)

    @property
    def period(self) -> int:
        """Number of iterations after which the weights repeat; 1 if they do not change."""
        return max(1, len(self.turns))

    def turn(self, k: int, step: float = 1.0) -> Turn:
        """Return the weights of iteration ``k``; ``step`` is γ of a codec, 1 without one."""
        return _cycle(self, step)[k % self.period]

    @property
    def _rows(self) -> list[Matrix]:
        """A of each turn."""
        return [by_rows(W) for W in self.turns] or [self.A]

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """All (sender j, receiver i), ascending, without self-loops."""
        return tuple((int(j), int(i)) for j, i in np.argwhere(self.W.T > 0) if i != j)

    @cached_property
    def _neighbours(self) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
        into: list[list[int]] = [[] for _ in range(self.n)]
        out: list[list[int]] = [[] for _ in range(self.n)]
        for j, i in self.edges:  # ascending in j, then i, hence so are both lists
            into[i].append(j)
            out[j].append(i)
        return tuple(map(tuple, into)), tuple(map(tuple, out))

    def in_neighbours(self, i: int) -> tuple[int, ...]:
        """Return the peers that peer ``i`` receives from, ascending, without itself."""
        return self._neighbours[0][self._peer(i)]

    def out_neighbours(self, j: int) -> tuple[int, ...]:
        """Return the peers that peer ``j`` sends to, ascending, without itself."""
        return self._neighbours[1][self._peer(j)]

    def _peer(self, i: int) -> int:
        if not 0 <= i < self.n:  # a negative index would silently mean another peer
            raise TopologyError(f"there is no peer {i}: {self.name} has the peers 0 to {self.n - 1}")
        return i

    # Properties

    @cached_property
    def doubly_stochastic(self) -> bool:
        """Whether the columns of A sum to 1 as well (within 1e-9), so that plain averaging is unbiased.

        Of a graph with turns: in each of them.
        """
        return all(bool(np.all(np.abs(A.sum(axis=0) - 1.0) <= 1e-9)) for A in self._rows)

    @cached_property
    def undirected(self) -> bool:
        """Whether every edge has its reverse, with any weights."""
        return bool(np.array_equal(self.W > 0, self.W.T > 0))

    @cached_property
    def symmetric(self) -> bool:
        """Whether A is its own transpose (within 1e-9), in each turn: undirected, and doubly stochastic."""
        return all(bool(np.all(np.abs(A - A.T) <= 1e-9)) for A in self._rows)

    @cached_property
    def diameter(self) -> int:
        """The longest of the shortest directed paths between two peers, in edges."""
        from scipy.sparse.csgraph import shortest_path

        return int(shortest_path(np.ascontiguousarray(self.W.T > 0), unweighted=True).max())

    @property
    def lead(self) -> int:
        """Most iterations by which a peer can be ahead of another one, since it needs the vectors of others.

        Along an edge a receiver is at most one iteration ahead of its sender; at most one period if weights
        change.
        """
        return self.diameter * self.period

    @cached_property
    def second_modulus_A(self) -> float:  # noqa: N802 - the paper's name
        """Second largest modulus of an eigenvalue of A; 0 for a single peer."""
        return _second_modulus(self.A)

    @cached_property
    def second_modulus_B(self) -> float:  # noqa: N802 - the paper's name
        """Second largest modulus of an eigenvalue of B; 0 for a single peer."""
        return _second_modulus(self.B)

    @property
    def spectral_gap(self) -> float:
        """1 minus the larger second modulus of A and B: near 0 peers agree slowly, at 1 at once."""
        return 1.0 - max(self.second_modulus_A, self.second_modulus_B)

    @cached_property
    def averaging_weights(self) -> Matrix:
        """Each peer's share when θ ← A θ is repeated: π with πᵀ A = πᵀ and Σ π = 1; shape (n,).

        Plain averaging (equation 1 of the paper) with a small α minimises Σ_i π_i L_i, which is the global
        loss only if every π_i is 1 / n, that is, if A is doubly stochastic.
        """
        return _frozen(stationary(self.A.T))

    @cached_property
    def tracker_weights(self) -> Matrix:
        """The limit of each tracker in mean gradients: n π with B π = π and Σ π = 1; shape (n,).

        τ ← B τ shares Σ τ = Σ g out by π: peer i gets n π_i times the mean gradient. All are 1 if B is doubly
        stochastic. Of a graph with turns, these are the limits for its mean W; :meth:`turn` has those of each
        iteration.
        """
        return _frozen(self.n * stationary(self.B))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of n, W and the turns, little-endian: peers compare it before they start."""
        weights = b"".join(W.astype("<f8").tobytes() for W in (self.W, *self.turns))
        return hashlib.sha256(struct.pack("<Q", self.n) + weights).hexdigest()

    # Conversions

    def to_networkx(self) -> nx.DiGraph:
        """Return a networkx graph on 0 to n − 1; nodes carry name, address, self_weight; edges weight.

        Like :attr:`edges` it has no self-loops.
        """
        import networkx as nx

        graph = nx.DiGraph(name=self.name)
        for i, (name, address) in enumerate(zip(self.peer_names, self.addresses, strict=True)):
            graph.add_node(i, name=name, address=address, self_weight=float(self.W[i, i]))
        graph.add_edges_from((j, i, {"weight": float(self.W[i, j])}) for j, i in self.edges)
        return graph

    def to_dict(self) -> GraphParts:
        """Return the graph as values for JSON, which :meth:`from_dict` reads back exactly."""
        parts: GraphParts = {
            "name": self.name,
            "weights": self.W.tolist(),
            "peer_names": list(self.peer_names),
            "addresses": list(self.addresses),
        }
        if self.turns:
            parts["turns"] = [turn.tolist() for turn in self.turns]
        return parts

    def __repr__(self) -> str:
        return f"Graph({self.name!r}, n={self.n}, edges={len(self.edges)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        return self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[object, ...]:
        return self.name, self.digest, self.peer_names, self.addresses


@lru_cache(maxsize=16)
def _cycle(graph: Graph, step: float) -> tuple[Turn, ...]:
    if graph.turns:
        return cycle(graph.turns, step)
    return (Turn(graph.A, graph.B, graph.tracker_weights, graph.tracker_weights),)


def _second_modulus(matrix: Matrix) -> float:
    # A strongly connected graph with self-weights gives a primitive matrix: 1 is its only eigenvalue of
    # modulus 1, so disagreement shrinks by the second largest.
    if len(matrix) == 1:
        return 0.0
    moduli = np.sort(np.abs(np.linalg.eigvals(matrix)))
    return float(min(moduli[-2], 1.0))
