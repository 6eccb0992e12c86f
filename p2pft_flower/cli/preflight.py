"""``p2pft preflight``: check every peer and link of a deployment without training."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from p2pft_flower.cli.completion import complete_connections, complete_settings
from p2pft_flower.cli.connections import check_connection
from p2pft_flower.cli.exit_codes import EXIT_FAILED, EXIT_USAGE
from p2pft_flower.cli.flwr_run import run_app
from p2pft_flower.cli.rehearsal import check_rehearsed
from p2pft_flower.cli.settings import check, parse_settings
from p2pft_flower.errors import DataError, P2PFTError
from p2pft_flower.typed import read_object

__all__ = ["preflight"]

_WRITTEN = re.compile(r"^\d\d:\d\d:\d\d preflight: (.+)$", re.MULTILINE)


def preflight(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="The run-config keys of the planned run; see apps/p2pft/pyproject.toml.",
            autocompletion=complete_settings,
        ),
    ] = None,
    connection: Annotated[
        str,
        typer.Option(
            help="The connection of Flower's config.toml whose SuperNodes are checked.",
            autocompletion=complete_connections,
        ),
    ] = "rehearsal",
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the findings as JSON; only if the SuperLink is on this machine."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Flower's own log as well.")] = False,
) -> None:
    """Check every peer and every link of a deployment before it trains.

    Versions, frozen weights, data, certificates, folders; TLS, round trip, bandwidth and clocks of each
    link, both ways. Every run makes the same checks before its first gradient.

    Exit codes: 0 all is well; 1 there are faults, each named with its remedy; 2 a setting is wrong and
    nothing was started.
    """
    try:
        values = {**parse_settings(settings or []), "preflight-only": True}
        config, graph = check(values, here=False)
        check_connection(connection)
        check_rehearsed(connection, graph, config.runtime.min_peers)
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    try:
        ended = run_app(
            values,
            connection=connection,
            environment=None,
            federation="",
            show=lambda line: typer.echo(line, err=as_json),
            verbose=verbose,
        )
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    if as_json:
        # Only the coordinator knows its folder, which may differ from the sites' own.
        written = _WRITTEN.findall(ended.output)
        if not written:
            typer.echo("error: the preflight ended before it could write its findings", err=True)
            raise typer.Exit(EXIT_FAILED)
        try:
            found = read_object(Path(written[-1]).read_bytes(), written[-1])
        except OSError as error:
            typer.echo(
                f"error: {written[-1]}: {error.strerror}; --json needs the SuperLink on this machine",
                err=True,
            )
            raise typer.Exit(EXIT_FAILED) from None
        except DataError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_FAILED) from None
        typer.echo(json.dumps(found, indent=2))
    if not ended.completed:
        raise typer.Exit(EXIT_FAILED)
