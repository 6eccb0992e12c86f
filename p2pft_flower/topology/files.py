"""Read a graph's file, of YAML or of another program. The schema, with errors, is in topologies/README.md."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from p2pft_flower.errors import TopologyError
from p2pft_flower.topology import exports, schemes
from p2pft_flower.topology.checks import as_square, checked_addresses, checked_names
from p2pft_flower.typed import MAX_PEERS

__all__ = ["KEYS", "Source", "read"]

KEYS = ("name", "description", "peers", "edges", "undirected", "scheme", "self-weight", "weights")


@dataclass(frozen=True)
class Source:
    """A graph's parts as they were found, its weights not yet checked.

    Attributes
    ----------
    origin : str
        The file or spec from which the graph comes, for errors.
    name, W, peer_names, addresses, description
        As in :class:`p2pft_flower.topology.Graph`.
    """

    origin: str
    name: str
    W: npt.NDArray[np.float64]
    peer_names: tuple[str, ...] = None  # type: ignore[assignment]  # None: Graph fills the default in
    addresses: tuple[str | None, ...] = None  # type: ignore[assignment]
    description: str = ""


_LARGEST = 2**28
"""Largest size of a file, bytes: the whole matrix of 4096 peers takes about half of it."""

_DEEPEST = 16
"""Most levels of nested lists and mappings; a graph has four."""

_LEAST, _MOST = 1e-12, 1e12
"""Least and largest weight: of a row's or column's weights only the ratios count."""


class _Loader(yaml.SafeLoader):
    """Safe YAML of a bounded size.

    It refuses a key given twice (PyYAML would silently keep the last), lists and mappings nested too deep,
    whole numbers beyond 64 bits, and an alias of a list or mapping: a few lines of aliases may be
    billions of values.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        alias = self.check_event(yaml.AliasEvent)
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"more than {_DEEPEST} levels deep", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if alias and not isinstance(node, yaml.ScalarNode):
            raise yaml.composer.ComposerError(
                None, None, "an alias stands for a list or a mapping here: write it out", mark
            )
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number: int = super().construct_yaml_int(node)
        if abs(number) >= 2**63:
            raise yaml.constructor.ConstructorError(
                None, None, "a whole number of more than 64 bits", node.start_mark
            )
        return number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice; keep one", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read(path: Path) -> Source:
    """Read a graph's YAML file, or a file that another program exports.

    Parameters
    ----------
    path : Path
        An existing file; if its name ends as :data:`~p2pft_flower.topology.exports.SUFFIXES` have it, it is
        another program's.

    Returns
    -------
    Source

    Raises
    ------
    TopologyError
        When the file cannot be read, is not of its kind, or does not follow the schema; the message begins
        with the path and says what to write.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise TopologyError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(text) > _LARGEST:
        raise TopologyError(f"{path} cannot be read: it is larger than {_LARGEST} bytes")
    suffix = path.suffix.lower()
    try:
        exported = exports.parts_of_export(text, suffix) if suffix in exports.SUFFIXES else None
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from error
    data = _yaml(text, path) if exported is None else exported
    try:
        return _parse(data, path)
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from error


def _yaml(text: bytes, path: Path) -> Any:
    try:
        # S506: _Loader is a SafeLoader
        return yaml.load(text.decode(), Loader=_Loader)  # noqa: S506
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise TopologyError(f"{path} is not YAML that can be read: {error}") from error


def _parse(data: Any, path: Path) -> Source:
    if not isinstance(data, dict):
        raise TopologyError("this is not a graph: the file has no keys; it needs at least peers and edges")
    for key in data:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise TopologyError(f"unknown key {key!r}{hint} The keys are {', '.join(KEYS)}")
    for key in ("name", "description"):
        if not isinstance(data.get(key, ""), str):
            raise TopologyError(f"{key} is {data[key]!r}, not text: put it in quotes")
    matrix = _matrix(data) if "weights" in data else None
    peers, addresses, numbered = _peers(data.get("peers", None if matrix is None else len(matrix)))
    if matrix is not None and len(matrix) != len(peers):
        raise TopologyError(f"weights has {len(matrix)} rows for {len(peers)} peers: give one row a peer")
    lookup = _Lookup(peers, numbered)
    W = _weights(data, lookup) if matrix is None else matrix
    _refuse_extremes(W, peers)
    return Source(
        str(path), data.get("name", path.stem), W, peers, addresses, data.get("description", "").strip()
    )


def _refuse_extremes(W: npt.NDArray[np.float64], names: tuple[str, ...]) -> None:
    extreme = np.argwhere(np.isfinite(W) & (W > 0) & ((W < _LEAST) | (W > _MOST)))
    if len(extreme):
        i, j = extreme[0]
        what = f"self-weight of peer {names[i]}" if i == j else f"weight of edge {names[j]} -> {names[i]}"
        raise TopologyError(
            f"the {what} is {W[i, j]:g}: give a number from {_LEAST:g} to {_MOST:g}; only ratios count"
        )


@dataclass(frozen=True)
class _Lookup:
    """Finds the number of a peer that a file names, by its name or by its number."""

    names: tuple[str, ...]
    numbered: bool  # plain numbers are positions, because no peer is *called* a number of its own

    def __call__(self, ref: Any, where: str) -> int:
        if isinstance(ref, str | int) and not isinstance(ref, bool):
            if str(ref) in self.names:
                return self.names.index(str(ref))
            if self.numbered and isinstance(ref, int) and 0 <= ref < len(self.names):
                return ref
        shown = ", ".join(self.names[:16]) + (", …" if len(self.names) > 16 else "")
        raise TopologyError(f"{where} names peer {ref!r}, which is not among the peers: {shown}")


def _peers(peers: Any) -> tuple[tuple[str, ...], tuple[str | None, ...], bool]:
    if peers is None:
        raise TopologyError("peers is missing: give their number (peers: 4) or a list of names")
    if isinstance(peers, int) and not isinstance(peers, bool):
        if not 1 <= peers <= MAX_PEERS:
            raise TopologyError(f"peers is {peers}: a graph has between 1 and {MAX_PEERS} peers")
        return tuple(str(i) for i in range(peers)), (None,) * peers, True
    if not isinstance(peers, list):
        raise TopologyError(f"peers is {peers!r}: give their number (peers: 4) or a list of names")
    if not 1 <= len(peers) <= MAX_PEERS:
        raise TopologyError(f"peers lists {len(peers)}: a graph has between 1 and {MAX_PEERS} peers")
    names: list[str] = []
    addresses: list[str | None] = []
    numbered = True
    for i, entry in enumerate(peers):
        peer = entry if isinstance(entry, dict) else {"name": entry}
        if unknown := set(peer) - {"name", "address"}:
            raise TopologyError(
                f"peer {i} has the unknown key {min(map(str, unknown))!r}: use name and address"
            )
        name = peer.get("name", i)
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise TopologyError(f"peer {i} has the name {name!r}, which is not text: put it in quotes")
        numbered = numbered and (str(name) == str(i) or not str(name).lstrip("-").isdigit())
        names.append(str(name))
        addresses.append(peer.get("address"))
    checked = checked_names(names, len(names))
    return checked, checked_addresses(addresses, checked), numbered


def _number(value: Any, what: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    note = " (YAML reads 1e-3 as text: write 1.0e-3)" if isinstance(value, str) else ""
    raise TopologyError(f"the {what} is {value!r}, not a number{note}")


def _matrix(data: dict[str, Any]) -> npt.NDArray[np.float64]:
    for key in ("edges", "self-weight", "undirected"):
        if key in data:
            raise TopologyError(f"weights is the whole matrix and says it all: leave {key} out, or weights")
    if data.get("scheme", "explicit") != "explicit":
        raise TopologyError(f"weights and scheme: {data['scheme']} exclude each other: leave one out")
    rows = data["weights"]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise TopologyError("weights is not a matrix: give a list of n rows with n numbers each")
    return as_square(
        [[_number(w, f"weight W[{i}, {j}]") for j, w in enumerate(r)] for i, r in enumerate(rows)]
    )


def _entries(edges: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield sender, receiver and weight (None if not given) of ``edges`` in any of its forms."""
    if isinstance(edges, dict):  # adjacency: sender: [receivers] or sender: {receiver: weight}
        for sender, receivers in edges.items():
            if isinstance(receivers, dict):
                yield from ((sender, receiver, weight) for receiver, weight in receivers.items())
            elif isinstance(receivers, list):
                yield from ((sender, receiver, None) for receiver in receivers)
            else:
                raise TopologyError(
                    f"edges of peer {sender} are {receivers!r}: give a list of receivers, or receiver: weight"
                )
        return
    if not isinstance(edges, list):
        raise TopologyError(f"edges is {edges!r}: give a list of [from, to], or sender: [receivers]")
    for edge in edges:
        if not isinstance(edge, list) or len(edge) not in (2, 3):
            raise TopologyError(f"the edge {edge!r} is not a pair: write [from, to] or [from, to, weight]")
        yield (
            edge[0],
            edge[1],
            _number(edge[2], f"weight of edge {edge[0]} -> {edge[1]}") if edge[2:] else None,
        )


def _weights(data: dict[str, Any], lookup: _Lookup) -> npt.NDArray[np.float64]:
    names, n = lookup.names, len(lookup.names)
    undirected, scheme = data.get("undirected", False), data.get("scheme")
    if not isinstance(undirected, bool):
        raise TopologyError(f"undirected is {undirected!r}: write true or false")
    if scheme is not None and scheme not in schemes.SCHEMES:
        raise TopologyError(f"scheme is {scheme!r}: choose one of {', '.join(schemes.SCHEMES)}")
    W = np.zeros((n, n))
    for sender, receiver, given in _entries(data.get("edges", [])):
        text = f"edge {sender} -> {receiver}"
        j, i = lookup(sender, text), lookup(receiver, text)
        weight = 1.0 if given is None else _number(given, f"weight of {text}")
        if i == j:
            raise TopologyError(f"{text} leads from a peer to itself: set its self-weight instead")
        if given is None and scheme == "explicit":
            raise TopologyError(
                f"{text} has no weight, which scheme: explicit needs: write [from, to, weight]"
            )
        if given is not None and scheme in ("uniform", "metropolis"):
            raise TopologyError(f"{text} has a weight of its own: leave it out, or scheme: {scheme}")
        if not 0 < weight < np.inf:  # 0 would silently drop the edge
            raise TopologyError(
                f"{text} has the weight {weight:g}: give a positive number, or leave the edge out"
            )
        for receiving, sending in ((i, j), (j, i))[: 2 if undirected else 1]:
            if W[receiving, sending] != 0:
                both = " (undirected: true already gives every edge its reverse)" if undirected else ""
                raise TopologyError(f"{text} is given twice: list each edge once{both}")
            W[receiving, sending] = weight
    if scheme == "metropolis":
        if "self-weight" in data:
            raise TopologyError("scheme: metropolis sets the self-weights itself: leave self-weight out")
        return schemes.metropolis(W > 0, names)
    np.fill_diagonal(W, _self_weights(data.get("self-weight", 1), lookup))
    return W


def _self_weights(value: Any, lookup: _Lookup) -> list[float]:
    """Return each peer's self-weight, from a number for all, a list in peer order, or a mapping (else 1)."""
    n = len(lookup.names)
    if isinstance(value, dict):
        weights = [1.0] * n
        for ref, weight in value.items():
            weights[lookup(ref, "self-weight")] = _number(weight, f"self-weight of peer {ref}")
    elif isinstance(value, list):
        if len(value) != n:
            raise TopologyError(
                f"self-weight lists {len(value)} for {n} peers: give one a peer, or one number"
            )
        weights = [
            _number(weight, f"self-weight of peer {name}")
            for name, weight in zip(lookup.names, value, strict=True)
        ]
    else:
        weights = [_number(value, "self-weight")] * n
    return weights
