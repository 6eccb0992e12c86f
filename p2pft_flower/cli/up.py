"""``p2pft up`` and ``p2pft down``: a deployment rehearsed on this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from p2pft_flower.cli.completion import complete_graphs
from p2pft_flower.cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from p2pft_flower.cli.rehearsal import CONNECTION, AlreadyUpError, end, start
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError, DataError, P2PFTError, TopologyError
from p2pft_flower.topology import Graph

__all__ = ["down", "up"]

EXIT_ALREADY = 3


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _graph(peers: int | None, topology: str | None) -> tuple[Graph, str]:
    """Return the graph, and the words with which ``p2pft run`` uses it; empty for the default graph."""
    default = RunConfig().runtime.topology
    graph = Graph.load(topology or default)
    if peers is None or peers == graph.n:
        return graph, f" topology={topology}" if topology else ""
    if topology:
        raise ConfigError(f"--peers {peers} and --topology {topology}, which has {graph.n} peers: drop one")
    name = f"directed-ring:{peers}" if peers > 1 else "complete:1"
    return Graph.load(name), f" topology={name}"


def up(
    peers: Annotated[
        int | None,
        typer.Option(min=1, help="Number of peers; default: that of the topology.", show_default=False),
    ] = None,
    topology: Annotated[
        str | None,
        typer.Option(
            help="A graph's name, path or generator; gives the number of peers and their addresses.",
            autocompletion=complete_graphs,
        ),
    ] = None,
    federation: Annotated[
        str, typer.Option(help="Name of the federation in the peers' certificates.")
    ] = "rehearsal",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Start a SuperLink and a SuperNode for each peer on this machine, as a rehearsal of a deployment.

    Each SuperNode has a peer's number, an address on 127.0.0.1 and certificates of its own. Flower finds the
    SuperLink by the connection 'rehearsal'; state, logs and certificates are in $P2PFT_HOME/rehearsal
    (~/.p2pft).

    Exit codes: 0 all SuperNodes have registered; 1 something failed, and nothing is left running; 2 an option
    is wrong; 3 a rehearsal is up already; 130 it was interrupted.
    """
    try:
        graph, setting = _graph(peers, topology)
        state = start(graph, federation, _say)
    except AlreadyUpError as error:
        _say(str(error))
        raise typer.Exit(EXIT_ALREADY) from None
    except (ConfigError, DataError, TopologyError) as error:
        _say(f"error: {error}")
        raise typer.Exit(EXIT_USAGE) from None
    except P2PFTError as error:
        _say(f"error: {error}")
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        _say("stopped: all started processes have ended")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(state.to_dict(), indent=2))
        return
    for peer in state.peers:
        typer.echo(f"peer {peer.peer}: {peer.address}, certificates in {peer.certificates}")
    typer.echo(f"run:  p2pft run --connection {CONNECTION}{setting}")
    typer.echo(f"back: p2pft rejoin --interrupted --node-config {state.peers[0].node_config}   (of peer 0)")
    typer.echo("end:  p2pft down")


def down() -> None:
    """End the processes of 'p2pft up' and no others; logs and certificates stay until the next 'p2pft up'.

    Exit codes: 0 none of them is running; 1 a process does not end; 2 its folder cannot be used; 3 another
    up or down is at work.
    """
    try:
        state = end(_say)
    except AlreadyUpError as error:
        _say(str(error))
        raise typer.Exit(EXIT_ALREADY) from None
    except (ConfigError, DataError) as error:
        _say(f"error: {error}")
        raise typer.Exit(EXIT_USAGE) from None
    except P2PFTError as error:
        _say(f"error: {error}")
        raise typer.Exit(EXIT_FAILED) from None
    typer.echo("nothing is up" if state is None else f"ended the rehearsal of {len(state.peers)} peers")
