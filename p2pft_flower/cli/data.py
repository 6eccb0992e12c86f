"""``p2pft data``: show the peers' shares of the images before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pft_flower.cli.completion import complete_settings
from p2pft_flower.cli.settings import check, parse_settings
from p2pft_flower.errors import P2PFTError, printable
from p2pft_flower.learning.data.by_column import require_named_order
from p2pft_flower.report.figures import draw_shares
from p2pft_flower.report.tables import samples_word

__all__ = ["app"]

app = typer.Typer(help="Show which peer holds which images.", no_args_is_help=True)

COLUMNS = 12
"""Up to this many peers the table has a column for each peer; with more peers, a row for each."""

SHOWN_CLASSES = 8
"""A peer's row lists this many classes; ``--json`` lists them all."""


@app.callback()
def _group() -> None:
    """Show which peer holds which images."""


def _fail(message: object) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


@app.command()
def show(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Run-config keys: dataset, data-dir, shots, partition, topology (for the peers), seed, …",
            autocompletion=complete_settings,
        ),
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw it into FILE.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Print how many training images of each class each peer would hold in a run with these settings.

    Lines below the table count the images that are turned, laid on white, or windowed.

    Exit codes: 0 the table was shown; 2 a setting is wrong or the data cannot be used.
    """
    try:
        shares = _shares(parse_settings(settings or []))
    except P2PFTError as error:
        _fail(error)
    names = [peer["name"] for peer in shares["peers"]]
    title = printable(f"{shares['dataset']}, partition {shares['partition']}")
    if shares["shots"]:
        title += f", {shares['shots']} shots"
    if shares["unreadable"]:
        title += f", {shares['unreadable']} unreadable images left out"
    if png is not None:
        try:
            counts = np.array([peer["images"] for peer in shares["peers"]])
            draw_shares(counts, names, title, png, samples_word(shares))
        except (OSError, ValueError) as error:  # ValueError: matplotlib cannot write such a file
            _fail(f"{png}: {error}")
    if as_json:
        typer.echo(json.dumps(shares, indent=2))
        return
    console = Console()
    console.print((_by_class if len(names) <= COLUMNS else _by_peer)(shares, title))
    for note in shares["notes"]:
        console.print(Text(printable(note)), soft_wrap=True)
    if not shares["decoded"]:
        typer.echo("looked at the files' heads; a run reads all of them and names those that are broken")
    if png is not None:
        console.print(Text(f"drawn into {png}"), soft_wrap=True)


def _shares(values: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the output of ``--json``; later versions only add keys."""
    from p2pft_flower.learning.data.holdings import Holdings

    config, graph = check(values, here=True)
    holdings = Holdings(config.learning, graph.n)
    data, size = holdings.dataset, len(holdings.dataset.classes)
    require_named_order(config.learning.partition, holdings.partition_spec, graph.peer_names)
    notes = [line if peer is None else f"{graph.peer_names[peer]}: {line}" for peer, line in holdings.notes]
    counts = [np.bincount(data.train.labels[positions], minlength=size) for positions in holdings.partition]
    unused = np.bincount(data.train.labels, minlength=size) - np.sum(counts, axis=0)
    test = np.bincount(data.test.labels[holdings.test_positions], minlength=size)
    return {
        "dataset": config.learning.dataset,
        "partition": holdings.partition_spec,
        "shots": config.learning.shots,
        "seed": config.learning.seed,
        "classes": list(data.classes),
        "peers": [
            {"peer": i, "name": graph.peer_names[i], "images": counts[i].tolist()} for i in range(graph.n)
        ],
        "unused": unused.tolist(),
        "test": test.tolist(),
        "unreadable": holdings.unreadable,
        "decoded": config.learning.bad_images == "skip" or data.train.look is None,
        "notes": notes,
    }


def _by_class(shares: dict[str, Any], title: str) -> Table:
    table = Table(title=Text(title), title_justify="left", show_footer=True)
    table.add_column("class", footer="all", overflow="fold")
    columns = [(peer["name"], peer["images"]) for peer in shares["peers"]]
    for name, images in [*columns, ("nobody", shares["unused"]), ("test", shares["test"])]:
        table.add_column(Text(name), footer=str(sum(images)), justify="right", overflow="fold")
    numbers = zip(*(images for _, images in columns), shares["unused"], shares["test"], strict=True)
    for label, (name, row) in enumerate(zip(shares["classes"], numbers, strict=True)):
        shown = name if name == str(label) else f"{label} {printable(name)}"
        table.add_row(Text(shown), *(str(number) if number else "·" for number in row))
    return table


def _by_peer(shares: dict[str, Any], title: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    table.add_column("peer", overflow="fold")
    what = samples_word(shares)
    table.add_column(what, justify="right")
    table.add_column("classes", justify="right")
    table.add_column(f"{what} by class", overflow="fold")
    rows = [*((peer["name"], peer["images"]) for peer in shares["peers"]), ("nobody", shares["unused"])]
    for name, images in [*rows, ("test", shares["test"])]:
        held = [
            f"{printable(c)}:{number}" for c, number in zip(shares["classes"], images, strict=True) if number
        ]
        more = f" … {len(held) - SHOWN_CLASSES} more" if len(held) > SHOWN_CLASSES else ""
        table.add_row(
            Text(name), str(sum(images)), str(len(held)), Text(", ".join(held[:SHOWN_CLASSES]) + more)
        )
    return table
