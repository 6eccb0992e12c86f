"""``p2pft compare``: several methods on the same peers, one table."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pft_flower.algorithms import ALGORITHMS
from p2pft_flower.cli.completion import complete_connections, complete_settings
from p2pft_flower.cli.connections import check_connection
from p2pft_flower.cli.flwr_run import local_superlink
from p2pft_flower.cli.places import require_places
from p2pft_flower.cli.rehearsal import check_rehearsed
from p2pft_flower.cli.run import EXIT_FAILED, EXIT_USAGE, execute_or_record
from p2pft_flower.cli.settings import check, method_settings, parse_settings
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.flower.strategies import strategy_names
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.report.figures import draw_comparison
from p2pft_flower.report.results import holds_a_run
from p2pft_flower.report.tables import comparison_markdown, comparison_table, titled

__all__ = ["compare"]

SCHEMA = "p2pft.comparison/1"


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"{text!r}: give different methods, as p2pft,dgd,local,fedavg,centralized")
    return names


def _complete_names(incomplete: str) -> list[str]:
    *first, last = incomplete.split(",")
    every = [n for n in [*ALGORITHMS, *strategy_names()] if n not in first and n.startswith(last)]
    return [",".join([*first, name]) for name in every]


# Longer than 70 lines, since its parameters are the options that typer reads.
def compare(
    methods: Annotated[
        str,
        typer.Argument(
            help="Methods, as p2pft,dgd,gt-dgd,local,fedavg,centralized.", autocompletion=_complete_names
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Run-config keys for all of them.",
            autocompletion=complete_settings,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the table, a picture, and a folder for each method.")
    ] = Path("comparison"),
    connection: Annotated[
        str | None,
        typer.Option(help="A connection of Flower's config.toml.", autocompletion=complete_connections),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the comparison as JSON instead of the table.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Flower's own log as well.")] = False,
) -> None:
    """Run several methods one after the other on the same peers, data, model and seed, and write one table.

    A method that does not admit the graph (gt-dgd, exact-diffusion) gets a row with the reason.
    Exit codes: 0 every method completed; 1 one did not; 2 a setting is wrong and nothing was started.
    """
    folder = out.expanduser().absolute()
    try:
        names = _names(methods)
        require_writable(f"--out {out}", folder, "choose another folder")
        common = parse_settings(settings or [])
        for key in ("algorithm", "output-dir"):
            if key in common:
                raise ConfigError(
                    f"{key} is not for compare: the methods come first, --out names the folder of the results"
                )
        if connection is not None:
            check_connection(connection)
        for name in names:
            values = {**method_settings(common, name), "output-dir": str(folder / _folder(name))}
            # A method's refusal of the graph is a result.
            config, graph = check(values, here=connection is None, any_graph=True)
            if connection is None:
                require_places(config.learning)
            else:
                check_rehearsed(connection, graph, config.runtime.min_peers)
            if holds_a_run(folder / _folder(name)):
                raise ConfigError(f"{folder / _folder(name)} holds an earlier run; choose another --out")
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from None

    alone = contextlib.nullcontext(None) if connection is not None else local_superlink()
    try:
        with alone as environment:
            runs = [_one(name, common, folder, connection, environment, verbose) for name in names]
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None

    title = titled(f"{', '.join(names)} on {graph.name}", runs)
    (folder / "comparison.md").write_text(comparison_markdown(runs, title), encoding="utf-8")
    body = {"schema": SCHEMA, "title": title, "settings": common, "runs": runs}
    path = folder / "comparison.json"
    path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    completed = [r for r in runs if r["status"] == "completed"]
    if completed:
        draw_comparison(completed, title, folder / "comparison.png")
    typer.echo(json.dumps(body, indent=2) if as_json else comparison_table(runs, title))
    typer.echo(f"table: {folder / 'comparison.md'}", err=as_json)
    if len(completed) < len(runs):
        raise typer.Exit(EXIT_FAILED)


def _folder(name: str) -> str:
    """Return the name of a method's folder below --out: the method's name, without the path of its file."""
    return name.rpartition("/")[2].replace(":", "-")


def _one(
    name: str,
    common: Mapping[str, Any],
    folder: Path,
    connection: str | None,
    environment: Mapping[str, str] | None,
    verbose: bool,
) -> dict[str, Any]:
    values = {**method_settings(common, name), "output-dir": str(folder / _folder(name))}
    typer.echo(f"--- {name}", err=True)
    return execute_or_record(values, connection=connection, environment=environment, verbose=verbose)
