"""Checks that every graph must pass; each refusal names the peer or edge and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import TopologyError
from p2pft_flower.typed import MAX_PEERS

__all__ = ["checked_addresses", "checked_names", "checked_turn", "checked_weights"]


def checked_names(names: Sequence[str] | None, n: int) -> tuple[str, ...]:
    """Return the n peer names, by default ``"0"`` to ``"n-1"``.

    Parameters
    ----------
    names : sequence of str or None
        One printable, non-empty name a peer.
    n : int
        Number of peers.

    Raises
    ------
    TopologyError
        When the number is wrong, a name is empty or unprintable or has blanks at its ends, or two peers share
        a name.
    """
    if names is None:
        return tuple(str(i) for i in range(n))
    if isinstance(names, str) or len(names) != n:
        raise TopologyError(f"the peer names {names!r} are not {n}: give one name a peer")
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name or not name.isprintable() or name != name.strip():
            raise TopologyError(
                f"peer {i} has the name {name!r}: use printable text without blanks at its ends"
            )
        if name in seen:
            raise TopologyError(
                f"duplicate peer: peers {seen[name]} and {i} are both called {name!r}; rename one of them"
            )
        seen[name] = i
    return tuple(names)


def checked_addresses(
    addresses: Sequence[str | None] | None, names: tuple[str, ...]
) -> tuple[str | None, ...]:
    """Return an address, or None, for each peer; only the transport interprets addresses.

    Raises
    ------
    TopologyError
        When the number is wrong, or an address is not printable text without blanks, or has neither a port at
        its end nor ``unix:`` at its beginning.
    """
    if addresses is None:
        return (None,) * len(names)
    if len(addresses) != len(names):
        raise TopologyError(
            f"{len(addresses)} addresses for {len(names)} peers: give one a peer, null for a peer without one"
        )
    for name, address in zip(names, addresses, strict=True):
        if address is None:
            continue
        if not isinstance(address, str) or not address.isprintable() or not address or " " in address:
            raise TopologyError(
                f"peer {name} has the address {address!r}: write it as text without blanks, "
                'for instance "10.0.0.7:9000"'
            )
        port = address.rpartition(":")[2]
        if not address.startswith("unix:") and not (
            port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 2**16
        ):
            raise TopologyError(
                f"peer {name} has the address {address!r}: end it with a port from 1 to 65535, for instance "
                '"10.0.0.7:9000"'
            )
    return tuple(addresses)


def as_square(W: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return W as a new (n, n) float64 array.

    Raises
    ------
    TopologyError
        When W is empty, not square, not of real numbers, or has too many rows.
    """
    try:
        array = np.asarray(W)
    except ValueError as error:  # rows of different lengths
        raise TopologyError(f"the weights are not an (n, n) matrix ({error}): give n rows of n") from error
    if array.size == 0:
        raise TopologyError("the graph has no peer: give a weight matrix with n >= 1 rows")
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise TopologyError(
            f"the weights have shape {array.shape}, not (n, n): give one row and one column a peer"
        )
    if array.dtype.kind not in "fiub":
        raise TopologyError(f"the weights have dtype {array.dtype}: give real numbers")
    if array.shape[0] > MAX_PEERS:
        raise TopologyError(f"the graph has {array.shape[0]} peers: at most {MAX_PEERS} are supported")
    # Adding 0.0 makes −0.0 into 0.0, so that equal weights have equal bytes and hence equal digests.
    return np.array(array, dtype=np.float64, order="C") + 0.0


def checked_weights(W: npt.NDArray[np.float64], names: tuple[str, ...]) -> None:
    """Refuse weights that no method can run on.

    Parameters
    ----------
    W : ndarray, shape (n, n), float64
        ``W[i, j]`` is the weight of edge j → i.
    names : tuple of str
        The n peer names, for errors.

    Raises
    ------
    TopologyError
        When a weight is negative or not finite, a row, a column or a self-weight is zero, a sum over- or
        underflows, or the graph is not strongly connected.
    """
    _refuse_values(W, names)
    _refuse_disconnected(W, names)


def checked_turn(
    turn: npt.ArrayLike, W: npt.NDArray[np.float64], names: tuple[str, ...], number: int
) -> npt.NDArray[np.float64]:
    """Return the weights of one turn as a new float64 array; a turn alone need not connect everybody.

    Parameters
    ----------
    turn : array-like, shape (n, n)
        The weights.
    W : ndarray, shape (n, n), float64
        The graph's weights, whose size the turn must have.
    names : tuple of str
        The n peer names, for errors.
    number : int
        The turn's number, for errors.

    Raises
    ------
    TopologyError
        When the size is not that of W, or :func:`checked_weights` would refuse the weights for any reason but
        missing connections.
    """
    try:
        weights = as_square(turn)
        _refuse_other_size(weights, len(W))
        _refuse_values(weights, names)
    except TopologyError as error:
        raise TopologyError(f"turn {number}: {error}") from error
    return weights


def _refuse_other_size(weights: npt.NDArray[np.float64], n: int) -> None:
    if len(weights) != n:
        raise TopologyError(f"the weights are those of {len(weights)} peers, not of {n}: give n rows of n")


def _refuse_values(W: npt.NDArray[np.float64], names: tuple[str, ...]) -> None:
    bad = np.argwhere(~np.isfinite(W) | (W < 0))
    if len(bad):
        i, j = bad[0]
        what = f"self-weight of peer {names[i]}" if i == j else f"weight of edge {names[j]} -> {names[i]}"
        raise TopologyError(
            f"the {what} (W[{i}, {j}]) is {W[i, j]}: weights are finite and not negative; "
            "give a positive number, or 0 for no edge"
        )
    for axis, (line, does) in enumerate((("column", "sends to"), ("row", "receives from"))):
        empty = np.flatnonzero(~W.any(axis=axis))
        if len(empty):
            raise TopologyError(
                f"peer {names[empty[0]]} {does} nobody, not even itself: {line} {empty[0]} of the weights is "
                f"zero; give it its self-weight W[{empty[0]}, {empty[0]}] (usually 1) and its edges"
            )
    missing = np.flatnonzero(W.diagonal() == 0)
    if len(missing):
        i = missing[0]
        raise TopologyError(
            f"the self-weight of peer {names[i]} is missing: W[{i}, {i}] is 0, so the peer would forget its "
            "own vector at every exchange; set it, usually to 1"
        )
    _refuse_range(W, names)


def _refuse_range(W: npt.NDArray[np.float64], names: tuple[str, ...]) -> None:
    # Sums that overflow, or quotients that underflow, would silently remove edges from A or B.
    with np.errstate(over="ignore", under="ignore"):
        rows, columns = W.sum(axis=1, keepdims=True), W.sum(axis=0, keepdims=True)
        lost = np.argwhere((W > 0) & ((W / rows == 0) | (W / columns == 0)))
    if len(lost):
        i, j = lost[0]
        raise TopologyError(
            f"the weight {W[i, j]:g} of edge {names[j]} -> {names[i]} vanishes when weights are normalised: "
            "they span too many orders of magnitude; scale them closer to 1"
        )


def _refuse_disconnected(W: npt.NDArray[np.float64], names: tuple[str, ...]) -> None:
    from scipy.sparse.csgraph import connected_components

    sends = np.ascontiguousarray(W.T > 0)  # sends[j, i]: edge j → i; scipy wants C order
    count, part = connected_components(sends, directed=True, connection="strong")
    if count == 1:
        return
    senders, receivers = np.nonzero(sends)
    crossing = part[senders] != part[receivers]
    leaves, enters = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    leaves[part[senders[crossing]]] = True
    enters[part[receivers[crossing]]] = True
    sinks, sources = np.flatnonzero(~leaves), np.flatnonzero(~enters)
    sink = sinks[0]
    source = next(s for s in sources if s != sink)  # nothing leaves `sink`, so no path leads to `source`
    start, end = names[int(np.argmax(part == sink))], names[int(np.argmax(part == source))]
    # Eswaran and Tarjan, 1976: as many edges make it strongly connected, and fewer never do.
    needed = max(len(sinks), len(sources))
    rest = "" if needed == 1 else f" (the first of at least {needed} missing edges)"
    raise TopologyError(
        f"the graph is not strongly connected: no path leads from peer {start} to peer {end}, so {end} would "
        f"never learn what {start} knows; add the edge {start} -> {end}{rest}"
    )
