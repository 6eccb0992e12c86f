"""``p2pft topology audit``: whose gradients peers can reconstruct, alone and in pairs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from p2pft_flower.cli.completion import complete_graphs
from p2pft_flower.errors import TopologyError
from p2pft_flower.topology import Graph
from p2pft_flower.topology.audit import Findings, audit, values_found

__all__ = ["as_dict", "audit_graph"]

PAIRS_UP_TO = 32
"""Peers up to which pairs are looked at unless --collude says otherwise."""

_READINGS = {
    "in any case": "each gradient counts as a secret of its own. One that is not listed cannot be computed "
    "from the messages of a run of any length; sums of several can.",
    "if steady": "a peer's gradient hardly changes from one iteration to the next. What is listed here only "
    "can be estimated, the better the less it changes.",
}


def audit_graph(
    graph: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PATH|SPEC",
            help="A shipped graph, a file (YAML, GraphML, JSON, CSV), or a spec such as exponential:16.",
            autocompletion=complete_graphs,
        ),
    ],
    collude: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2,
            help="1: each peer by itself; 2: pairs that join what they have, too. "
            f"[default: 2 up to {PAIRS_UP_TO} peers, else 1]",
        ),
    ] = None,
    iterations: Annotated[
        int, typer.Option(min=1, max=100, help="Look at the gradients of iterations 0 to this one.")
    ] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Print whose gradients each peer, and each pair of peers, can reconstruct from what it receives.

    It is about p2pft (without a codec, momentum or local steps) on a graph whose weights stay, and peers that
    are curious and honest. A neighbour's first two payloads are its first two gradients; what a peer finds
    beyond these depends on the graph.

    Exit codes: 0 the audit was printed, whatever it found; 2 the graph cannot be used.
    """
    try:
        loaded = Graph.load(graph)
    except TopologyError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    size = collude or (2 if loaded.n <= PAIRS_UP_TO else 1)
    sets = [s for k in range(1, min(size, loaded.n - 1) + 1) for s in combinations(range(loaded.n), k)]
    watched = track(sets, "auditing", console=Console(stderr=True), transient=True, disable=as_json)
    found = [audit(loaded, attackers, iterations) for attackers in watched]
    if as_json:
        typer.echo(json.dumps(as_dict(loaded, found, iterations), indent=2))
        return
    _print(loaded, found, iterations)


def _print(graph: Graph, found: Sequence[Findings], iterations: int) -> None:
    console, names = Console(), graph.peer_names
    console.print(Text(f"{graph.name}: what peers can work out of others' gradients from what they receive"))
    means = Table.grid(padding=(0, 1))  # a table, so that a wrapped line stays indented
    for reading, meaning in _READINGS.items():
        means.add_row("•", Text(f"{reading}: {meaning}"))
    console.print(means)
    console.print()
    alone = {f.attackers[0]: f for f in found if len(f.attackers) == 1}
    if not alone:
        console.print("A single peer receives nothing.")
        return
    table = Table(title="Alone", title_justify="left")
    for header in ("peer", "receives from", "in any case, of", "if steady, of"):
        table.add_column(header, overflow="fold")
    for a, one in alone.items():
        table.add_row(
            Text(names[a]),
            Text(_listed(graph.in_neighbours(a), names)),
            Text(_gradients(one, names, iterations)),
            Text("everybody" if 1 < len(one.steady) == graph.n - 1 else _listed(one.steady, names)),
        )
    console.print(table)
    console.print(Text(f"k: the iterations, of 0 to {iterations}, whose gradient is found; without k: all"))
    pairs = [f for f in found if len(f.attackers) == 2]
    if not pairs:
        return
    more = [(f, *_beyond(f, [alone[a] for a in f.attackers])) for f in pairs]
    more = [line for line in more if line[1].gradients or line[2]]
    if not more:
        console.print(f"None of the {len(pairs)} pairs finds more together than its two peers do alone.")
        return
    table = Table(title="Pairs that find more together than alone", title_justify="left")
    for header in ("peers", "in any case, also of", "if steady, also of"):
        table.add_column(header, overflow="fold")
    for pair, free, steady in more:
        table.add_row(
            Text(_listed(pair.attackers, names)),
            Text(_gradients(free, names, iterations)),
            Text(_listed(steady, names)),
        )
    console.print(table)
    console.print(f"{len(more)} of {len(pairs)} pairs")


def _beyond(pair: Findings, alone: Sequence[Findings]) -> tuple[Findings, tuple[int, ...]]:
    """Return what a pair finds that neither of the two finds: gradients, and peers if these are steady."""
    free = {}
    for u, when in pair.gradients.items():
        known = {k for one in alone for k in one.gradients.get(u, ())}
        if set(when) - known:
            free[u] = when
    steady = tuple(u for u in pair.steady if not any(u in one.steady for one in alone))
    return Findings(pair.attackers, free, steady), steady


def _listed(peers: Iterable[int], names: Sequence[str]) -> str:
    return ", ".join(names[p] for p in peers) or "nobody"


def _gradients(found: Findings, names: Sequence[str], iterations: int) -> str:
    """Return the peers of which gradients are found, with the iterations if it is not all of them."""
    parts: dict[tuple[int, ...], list[str]] = {}
    for u, when in found.gradients.items():
        parts.setdefault(when, []).append(names[u])
    told = []
    for when, peers in sorted(parts.items(), key=lambda part: -len(part[0])):
        every = len(when) == iterations + 1
        told.append(", ".join(peers) + ("" if every else f" (k {', '.join(map(str, when))})"))
    return "; ".join(told) or "nobody"


def as_dict(graph: Graph, found: Sequence[Findings], iterations: int) -> dict[str, Any]:
    """Return the content of the output of ``--json``; later versions only add keys."""
    return {
        "name": graph.name,
        "digest": graph.digest,
        "n": graph.n,
        "iterations": iterations,
        "sets": [
            {
                "attackers": list(one.attackers),
                "gradients": {str(u): list(when) for u, when in one.gradients.items()},
                "steady": list(one.steady),
                "averaging": list(values_found(graph, one.attackers)),
            }
            for one in found
        ],
    }
