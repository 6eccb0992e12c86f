"""Graphs that other programs export, by the keys of a graph's YAML file.

GraphML, node-link JSON and adjacency JSON are read by networkx, lists of edges as CSV by Python. An edge
leads from the sender, ``source``, to the receiver, ``target``.
"""

from __future__ import annotations

import csv
import inspect
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

from p2pft_flower.errors import TopologyError

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["SUFFIXES", "parts_of_export"]

_HEADS = (("source", "target"), ("from", "to"), ("sender", "receiver"))
"""The names that the two columns of a list of edges may have, in small letters."""

_UNDIRECTED = "An undirected graph: each edge of the file is used in both directions."


def parts_of_export(text: bytes, suffix: str) -> dict[str, Any] | None:
    """Return a file's graph by the keys of a graph's YAML file; None for JSON without nodes.

    Parameters
    ----------
    text : bytes
        The file's content.
    suffix : str
        One of :data:`SUFFIXES`.

    Raises
    ------
    TopologyError
        When the file cannot be read or holds no graph; the message names the line, the key or the edge.
    """
    return _READERS[suffix](text)


def _graphml(text: bytes) -> dict[str, Any]:
    import networkx as nx

    ids: list[str] = []
    _scan(text, lambda name, given: ids.append(given.get("id", "")) if _local(name) == "node" else None)
    try:
        graph = nx.read_graphml(io.BytesIO(text))
    except Exception as error:  # networkx's reader raises many kinds of errors on odd content
        raise TopologyError(f"it is not GraphML that networkx reads: {_words(error)}") from error
    _require_nodes(graph, ids)
    return _parts(graph)


def _scan(text: bytes, start: Callable[[str, dict[str, str]], None]) -> None:
    """Call ``start`` with each element's name and attributes; refuse entities, which could be billions."""
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise TopologyError(
            f"line {parser.CurrentLineNumber}: a document type (<!DOCTYPE …>) is refused, since it may "
            "define entities: remove it"
        )

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise TopologyError(f"it is not XML: {error}") from error


def _local(name: str) -> str:
    return name.rpartition(":")[2]


def _json(text: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TopologyError(f"it is not JSON that can be read: {_words(error)}") from error
    if not isinstance(data, dict) or "nodes" not in data:
        return None
    import networkx as nx

    nodes = data["nodes"]
    if not isinstance(nodes, list) or not all(isinstance(n, dict) and _is_name(n.get("id")) for n in nodes):
        raise TopologyError('nodes: give a list of objects with an "id" that is text or a whole number')
    there = [key for key in ("edges", "links", "adjacency") if key in data]
    held = there[0] if there else ""
    if len(there) > 1:
        raise TopologyError(f"it has {' and '.join(there)}: keep the one that has the graph's edges")
    if not held:
        raise TopologyError(
            'it has nodes, and no "edges" or "links" (node-link JSON) or "adjacency" (adjacency JSON)'
        )
    if not isinstance(data[held], list) or (held == "adjacency" and len(data[held]) != len(nodes)):
        raise TopologyError(f"{held}: give a list{', one for each node' if held == 'adjacency' else ''}")
    try:
        data["graph"] = dict(data.get("graph") or {})  # adjacency JSON has a list of pairs
        if held == "adjacency":
            graph = nx.adjacency_graph(data)
        else:
            key = "edges" if "edges" in inspect.signature(nx.node_link_graph).parameters else "link"
            graph = nx.node_link_graph(data, **{key: held})
    except Exception as error:  # networkx's readers do not check what they read
        missing = f"an entry lacks {error}" if isinstance(error, KeyError) else _words(error)
        raise TopologyError(f"{held}: {missing}") from error
    _require_nodes(graph, [node["id"] for node in nodes])
    if not graph.is_multigraph():
        _refuse_repeated(data, held, directed=graph.is_directed())
    return _parts(graph)


def _refuse_repeated(data: dict[str, Any], held: str, *, directed: bool) -> None:
    """Refuse an edge that JSON lists twice: networkx would keep what the last one says, in silence.

    Adjacency JSON lists each edge of an undirected graph at both ends, with the same weight.
    """
    if held == "adjacency":
        ids = [node["id"] for node in data["nodes"]]
        edges = [(j, to["id"], _given(to)) for j, row in zip(ids, data[held], strict=True) for to in row]
    else:
        edges = [(edge["source"], edge["target"], _given(edge)) for edge in data[held]]
    both = held == "adjacency" and not directed
    weights: dict[Any, Any] = {}
    for j, i, weight in edges:
        pair = (j, i) if directed or both else frozenset((j, i))
        if pair in weights:
            raise TopologyError(f"{held}: edge {j} -> {i} is listed twice: list each edge once")
        weights[pair] = weight
        if both and weights.get((i, j), weight) != weight:
            raise TopologyError(
                f"{held}: edge {j} -> {i} has another weight than {i} -> {j}, in a graph of undirected edges"
            )


def _is_name(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _require_nodes(graph: nx.Graph, ids: Iterable[str | int]) -> None:
    """Refuse a node that is listed twice, and one that only edges name, which networkx adds in silence."""
    counts = Counter(ids)
    if twice := [name for name, number in counts.items() if number > 1]:
        raise TopologyError(f"the node {twice[0]!r} is listed {counts[twice[0]]} times: keep one")
    if extra := [name for name in graph if name not in counts]:
        raise TopologyError(f"an edge names the node {extra[0]!r}, which is not among the nodes")


def _parts(graph: nx.Graph) -> dict[str, Any]:
    """Return a graph of networkx by the keys of a YAML file."""
    names = _names(graph)
    if graph.is_multigraph():
        pairs = Counter(graph.edges())
        if twice := [pair for pair, number in pairs.items() if number > 1]:
            j, i = twice[0]
            raise TopologyError(f"there are several edges {names[j]} -> {names[i]}: join them into one")
    edges = [
        (names[j], names[i], _weight(_given(data), f"edge {names[j]} -> {names[i]}"))
        for j, i, data in graph.edges(data=True)
    ]
    peers = [
        {"name": names[node], **({"address": data["address"]} if data.get("address") else {})}
        for node, data in graph.nodes(data=True)
    ]
    name = str(graph.graph.get("name") or "")
    return _yaml(name, peers, edges, undirected=not graph.is_directed())


def _names(graph: nx.Graph) -> dict[Any, str]:
    """Return each node's name: its attribute ``name`` or ``label`` if all nodes have one, else its id."""
    for key in ("name", "label"):
        given = {node: str(data[key]) for node, data in graph.nodes(data=True) if data.get(key)}
        if given and len(set(given.values())) == len(graph):
            return given
    return {node: str(node) for node in graph}


def _given(attributes: Mapping[Any, Any]) -> Any:
    """Return the weight among an edge's attributes, in capitals or not; None: it has none.

    Raises
    ------
    TopologyError
        When it has several, as ``weight`` and ``Weight``, that differ.
    """
    found = {name: value for name, value in attributes.items() if str(name).lower() == "weight"}
    if len({repr(value) for value in found.values()}) > 1:
        told = " and ".join(f"{name} {value!r}" for name, value in found.items())
        raise TopologyError(f"an edge has {told}: keep one of them")
    return next(iter(found.values()), None)


def _weight(value: Any, what: str) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TopologyError(f"the weight of {what} is {value!r}, not a number") from error


def _yaml(
    name: str, peers: list[Any], edges: Iterable[tuple[str, str, float | None]], *, undirected: bool
) -> dict[str, Any]:
    """Return the keys of a YAML file; an edge from a peer to itself is its self-weight."""
    parts: dict[str, Any] = {"peers": peers, "edges": [], "self-weight": {}, "undirected": undirected}
    for sender, receiver, weight in edges:
        if sender != receiver:
            parts["edges"].append([sender, receiver, *([] if weight is None else [weight])])
        elif sender in parts["self-weight"]:
            raise TopologyError(f"edge {sender} -> {sender} is given twice: list each edge once")
        else:
            parts["self-weight"][sender] = 1.0 if weight is None else weight
    if name:
        parts["name"] = name
    if undirected:
        parts["description"] = _UNDIRECTED
    return parts


def _csv(text: bytes) -> dict[str, Any]:
    rows = _rows(text)
    head = [cell.lower() for cell in rows[0][1]] if rows else []
    columns = next((pair for pair in _HEADS if set(pair) <= set(head)), None)
    if columns is not None:
        rows, most = rows[1:], len(head)
        places = {name: head.index(name) for name in (*columns, "weight", "type") if name in head}
    else:
        columns, most = _HEADS[0], 3
        places = {"source": 0, "target": 1, "weight": 2}
    edges: list[tuple[str, str, float | None]] = []
    kinds: dict[str, int] = {}
    for line, row in rows:
        cells = {name: row[place] for name, place in places.items() if place < len(row)}
        sender, receiver = (cells.get(column, "") for column in columns)
        if not sender or not receiver or len(row) > most:
            raise TopologyError(
                f"line {line}: {','.join(row)!r} is no edge: write source,target or source,target,weight, "
                "with commas between"
            )
        edges.append((sender, receiver, _weight(cells.get("weight") or None, f"line {line}")))
        kinds.setdefault(cells.get("type", "").lower() or "directed", line)
    if not edges:
        raise TopologyError("it has no edge: write source,target or source,target,weight in each line")
    if len(kinds) > 1 or not set(kinds) <= {"directed", "undirected"}:
        kind = next((kind for kind in kinds if kind not in ("directed", "undirected")), [*kinds][-1])
        raise TopologyError(
            f"line {kinds[kind]}: the type is {kind!r}: write Directed or Undirected, the same in all lines"
        )
    names = list(dict.fromkeys(name for sender, receiver, _ in edges for name in (sender, receiver)))
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    return _yaml("", names, edges, undirected="undirected" in kinds)


def _rows(text: bytes) -> list[tuple[int, list[str]]]:
    """Return the rows of a CSV that are neither empty nor a comment, with the numbers of their lines."""
    try:
        # utf-8-sig: spreadsheets write a mark before the first column
        lines = io.StringIO(text.decode("utf-8-sig"), newline="")
        reader = csv.reader(lines, strict=True, skipinitialspace=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise TopologyError(f"it is not CSV that can be read: {error}") from error
    return [(line, row) for line, row in rows if any(row) and not row[0].startswith("#")]


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


_READERS: dict[str, Callable[[bytes], dict[str, Any] | None]] = {
    ".graphml": _graphml,
    ".json": _json,
    ".csv": _csv,
}

SUFFIXES = tuple(_READERS)
"""The endings of files that other programs export."""
