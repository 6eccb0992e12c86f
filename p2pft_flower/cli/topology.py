"""``p2pft topology``: show the graphs that peers exchange over."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pft_flower.cli.completion import complete_graphs
from p2pft_flower.cli.topology_audit import audit_graph
from p2pft_flower.errors import ConfigError, TopologyError
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import STATIC, scheduled
from p2pft_flower.topology.sources import shipped

__all__ = ["app"]

app = typer.Typer(
    help="Show the graphs that peers exchange over, and what peers can reconstruct.", no_args_is_help=True
)
app.command("audit")(audit_graph)

SHOWN_NEIGHBOURS = 8
"""Most neighbours that a cell of the table lists; ``--json`` lists them all."""


def _fail(message: object) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


@app.command()
def show(
    graph: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PATH|SPEC",
            help="A shipped graph, a file (YAML, GraphML, JSON, CSV), or a spec such as exponential:16.",
            autocompletion=complete_graphs,
        ),
    ],
    schedule_graph: Annotated[
        str,
        typer.Option(metavar="SPEC", help="Weights by iteration, such as base:1 (docs/performance.md)."),
    ] = STATIC,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw it into FILE.")] = None,
) -> None:
    """Print a graph: its size, what its weights imply for each method, and every peer's neighbours."""
    try:
        loaded = scheduled(Graph.load(graph), schedule_graph)
        if png is not None:
            from p2pft_flower.topology.draw import draw

            draw(loaded, png)
    except (TopologyError, ConfigError) as error:
        _fail(error)
    except OSError as error:
        _fail(f"{error.filename or png}: {error.strerror or error}")
    if as_json:
        typer.echo(json.dumps(as_dict(loaded), indent=2))
        return
    console = Console()
    console.print(_summary(loaded))
    console.print()
    means = Table.grid(padding=(0, 1))  # a table, so that a wrapped line stays indented
    for line in meaning(loaded):
        means.add_row("•", Text(line))
    console.print(means)
    console.print()
    console.print(_peer_table(loaded))
    for k in range(len(loaded.turns)):
        console.print()
        console.print(_turn_table(loaded, k))
    if png is not None:
        console.print(Text(f"drawn into {png}"), soft_wrap=True)


@app.command("list")
def list_graphs() -> None:
    """List the shipped graphs and the specs of the generators."""
    try:
        names = shipped()
    except OSError as error:
        _fail(error)
    console = Console()
    table = Table(title="Shipped graphs", title_justify="left")
    for header in ("name", "peers", "edges", "kind", "description"):
        table.add_column(header, overflow="fold")  # what is to be typed must not be cut
    for name in names:
        try:
            graph = Graph.load(name)
        except TopologyError as error:  # one bad file must not hide the others
            table.add_row(Text(name), "", "", "unusable", Text(str(error)))
            continue
        table.add_row(
            Text(name), str(graph.n), str(_links(graph)), Text(_kind(graph)), Text(graph.description or "")
        )
    console.print(table)
    console.print()
    from p2pft_flower.topology.generators import GENERATORS

    table = Table(title="Generators", title_justify="left")
    for header in ("spec", "example", "graph"):
        table.add_column(header, overflow="fold")
    for generator in GENERATORS.values():
        table.add_row(Text(generator.form), Text(generator.example), Text(generator.meaning))
    console.print(table)
    console.print(
        "Generated weights are all 1. An undirected spec takes a trailing :metropolis for doubly stochastic "
        "ones, as in star:8:metropolis.",
        highlight=False,
    )


def _kind(graph: Graph) -> str:
    return "undirected" if graph.undirected else "directed"


def _links(graph: Graph) -> int:
    """Return the number of edges; the two directions of an undirected edge count as one."""
    return len(graph.edges) // 2 if graph.undirected else len(graph.edges)


def _summary(graph: Graph) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()

    def row(label: str, value: str) -> None:
        table.add_row(label, Text(value))

    arrows = f" ({len(graph.edges)} arrows)" if graph.undirected else ""
    steps = "exchange" if graph.diameter == 1 else "exchanges"
    table.add_row("graph", Text(graph.name, style="bold"))
    if graph.description:
        row("", graph.description)
    row("peers", f"{graph.n}")
    row("edges", f"{_links(graph)}, {_kind(graph)}{arrows}")
    if graph.turns:
        row("turns", f"{graph.period}: the weights of iteration 0, 1, …; what follows is of their mean")
    row("diameter", f"{graph.diameter}: news reaches everyone within {graph.diameter} {steps}")
    row("doubly stochastic", "yes" if graph.doubly_stochastic else "no")
    row(
        "second modulus",
        f"{graph.second_modulus_A:.4f} of A (models), {graph.second_modulus_B:.4f} of B (trackers)",
    )
    row("spectral gap", f"{graph.spectral_gap:.4f}: {_pace(graph)}")
    edges = [int(np.count_nonzero(W)) - graph.n for W in graph.turns or (graph.W,)]
    each = " ".join(str(2 * count) for count in edges)
    row("traffic", f"{each} vectors an iteration over all edges{', in turn' if graph.turns else ''}")
    row("digest", graph.digest[:16])
    return table


def _pace(graph: Graph) -> str:
    modulus = 1.0 - graph.spectral_gap
    if modulus < 1e-6:
        return "peers agree after one exchange"
    if modulus >= 1.0:
        return "peers hardly ever agree"
    halves = math.log(2) / -math.log(modulus)
    return f"disagreement halves every {halves:.1f} exchanges in the long run"


def meaning(graph: Graph) -> list[str]:
    """Return sentences that tell which methods suit the graph, and which do not."""
    if graph.n == 1:
        return ["A single peer: every method is plain gradient descent."]
    if graph.doubly_stochastic:
        return [
            "p2pft is exact with full gradients; with mini-batches it ends near the optimum.",
            "gt-dgd runs: its one matrix W must be doubly stochastic, and A is.",
            "exact-diffusion refuses weights that change with the iteration."
            if graph.turns
            else "exact-diffusion runs: its W must be symmetric as well, and A is."
            if graph.symmetric
            else "exact-diffusion refuses this graph: its W must be symmetric as well, and A is not.",
            "dgd counts every peer the same, but with a constant step it stops near the optimum, not at it.",
        ]
    if graph.turns:
        return [
            "p2pft is exact with full gradients: A weighs models, B carries trackers, and no W need be "
            "doubly stochastic. With mini-batches it ends near the optimum.",
            "gt-dgd and exact-diffusion refuse this schedule: some W is not doubly stochastic.",
            "dgd is biased: it does not count every peer the same.",
        ]
    heaviest, lightest = int(graph.averaging_weights.argmax()), int(graph.averaging_weights.argmin())
    lines = [
        "p2pft is exact with full gradients: A weighs models, B carries trackers, and W need not be doubly "
        "stochastic. With mini-batches it ends near the optimum.",
        "gt-dgd and exact-diffusion refuse this graph: their one matrix W must be doubly stochastic.",
        f"dgd is biased: it counts peer {graph.peer_names[heaviest]} as "
        f"{graph.averaging_weights[heaviest]:.1%} and peer {graph.peer_names[lightest]} as "
        f"{graph.averaging_weights[lightest]:.1%}, where each should be {1 / graph.n:.1%}.",
    ]
    if graph.undirected:
        lines.append(
            "Metropolis weights would make it doubly stochastic: scheme: metropolis in YAML, "
            ":metropolis in a spec."
        )
    return lines


def _cell(peers: tuple[int, ...], values: list[float], names: tuple[str, ...]) -> Text:
    # No blank inside, at which rich would break the line.
    parts = [f"{names[p]}:{value:.3g}" for p, value in zip(peers, values, strict=True)]
    more = f" … {len(parts) - SHOWN_NEIGHBOURS} more" if len(parts) > SHOWN_NEIGHBOURS else ""
    return Text((", ".join(parts[:SHOWN_NEIGHBOURS]) or "nobody") + more)


def _peer_table(graph: Graph) -> Table:
    table = Table(
        title="Peers, with the weights A of their in-neighbours and their shares B to out-neighbours"
    )
    table.title_justify = "left"
    with_addresses = any(graph.addresses)
    for header in ("peer", *(["address"] if with_addresses else []), "receives from:A", "sends to:B"):
        table.add_column(header, overflow="fold")
    for header in ("own A", "own B", *([] if graph.turns else ["counts in dgd"])):
        table.add_column(header, justify="right")
    for i, name in enumerate(graph.peer_names):
        into, out = graph.in_neighbours(i), graph.out_neighbours(i)
        table.add_row(
            Text(name),
            *([Text(graph.addresses[i] or "")] if with_addresses else []),
            _cell(into, [graph.A[i, j] for j in into], graph.peer_names),
            _cell(out, [graph.B[k, i] for k in out], graph.peer_names),
            f"{graph.A[i, i]:.3g}",
            f"{graph.B[i, i]:.3g}",
            *([] if graph.turns else [f"{graph.averaging_weights[i]:.1%}"]),
        )
    return table


def _turn_table(graph: Graph, k: int) -> Table:
    turn, names = graph.turn(k), graph.peer_names
    table = Table(title=f"Iteration {k}, {k + graph.period}, …", title_justify="left")
    for header in ("peer", "receives from:A", "sends to:B"):
        table.add_column(header, overflow="fold")
    for i, name in enumerate(names):
        into = tuple(j for j in turn.senders(i) if j != i)
        out = tuple(j for j in turn.receivers(i) if j != i)
        table.add_row(
            Text(name),
            _cell(into, [turn.A[i, j] for j in into], names),
            _cell(out, [turn.B[j, i] for j in out], names),
        )
    return table


def as_dict(graph: Graph) -> dict[str, Any]:
    """Return the content of the output of ``--json``; later versions only add keys."""
    return {
        "name": graph.name,
        "description": graph.description,
        "n": graph.n,
        "edges": [list(edge) for edge in graph.edges],
        "undirected": graph.undirected,
        "doubly_stochastic": graph.doubly_stochastic,
        "diameter": graph.diameter,
        "second_modulus_A": graph.second_modulus_A,
        "second_modulus_B": graph.second_modulus_B,
        "spectral_gap": graph.spectral_gap,
        "digest": graph.digest,
        "W": graph.W.tolist(),
        "turns": [turn.tolist() for turn in graph.turns],
        "A": graph.A.tolist(),
        "B": graph.B.tolist(),
        "peers": [
            {
                "peer": i,
                "name": graph.peer_names[i],
                "address": graph.addresses[i],
                "in_neighbours": list(graph.in_neighbours(i)),
                "out_neighbours": list(graph.out_neighbours(i)),
                "averaging_weight": float(graph.averaging_weights[i]),
            }
            for i in range(graph.n)
        ],
    }
