"""``p2pft data``: show the peers' shares of the images before training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pft_flower.cli.completion import complete_settings
from p2pft_flower.cli.settings import check, parse_settings
from p2pft_flower.errors import P2PFTError, printable
from p2pft_flower.learning.data.by_column import by_names, names_by
from p2pft_flower.learning.data.label_arrays import has_several, images_by_class
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
    if shares["several_labels"]:
        without = ", ".join(f"{peer['name']} {peer['unlabelled']}" for peer in shares["peers"])
        console.print(
            Text(
                printable(f"images may have several labels, and count for each; without a label: {without}")
            ),
            soft_wrap=True,
        )
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
    named = by_names(config.learning.partition, holdings.partition_spec, graph.peer_names)
    if named != holdings.partition_spec:
        holdings = Holdings(replace(config.learning, partition=named), graph.n)
    drawn = any(name != str(peer) for peer, name in enumerate(graph.peer_names))
    of_column = {} if drawn else names_by(holdings.partition_spec)
    names = [of_column.get(peer, name) for peer, name in enumerate(graph.peer_names)]
    notes = [line if peer is None else f"{names[peer]}: {line}" for peer, line in holdings.notes]
    train, mine = data.train.labels, holdings.partition
    counts = [images_by_class(train[positions], size) for positions in mine]
    unused = images_by_class(train, size) - np.sum(counts, axis=0)
    test = images_by_class(data.test.labels[holdings.test_positions], size)
    return {
        "dataset": config.learning.dataset,
        "partition": holdings.partition_spec,
        "shots": config.learning.shots,
        "seed": config.learning.seed,
        "classes": list(data.classes),
        "peers": [
            {
                "peer": i,
                "name": names[i],
                "images": counts[i].tolist(),
                "total": len(mine[i]),
                "unlabelled": _unlabelled(train[mine[i]]),
            }
            for i in range(graph.n)
        ],
        "unused": unused.tolist(),
        "unused_total": len(train) - sum(map(len, mine)),
        "test": test.tolist(),
        "test_total": len(holdings.test_positions),
        "several_labels": data.several_labels,
        "unreadable": holdings.unreadable,
        "decoded": config.learning.bad_images == "skip" or data.train.look is None,
        "notes": notes,
    }


def _unlabelled(labels: npt.NDArray[np.int64]) -> int:
    """Return the number of images without a label."""
    return int((~labels.any(axis=1)).sum()) if has_several(labels) else 0


def _by_class(shares: dict[str, Any], title: str) -> Table:
    table = Table(title=Text(title), title_justify="left", show_footer=True)
    table.add_column("class", footer="all", overflow="fold")
    columns = _columns(shares)
    for name, total, _ in columns:
        table.add_column(Text(name), footer=str(total), justify="right", overflow="fold")
    numbers = zip(*(images for *_, images in columns), strict=True)
    for label, (name, row) in enumerate(zip(shares["classes"], numbers, strict=True)):
        shown = name if name == str(label) else f"{label} {printable(name)}"
        table.add_row(Text(shown), *(str(number) if number else "·" for number in row))
    return table


def _columns(shares: dict[str, Any]) -> list[tuple[str, int, list[int]]]:
    """Return name, images in all, and images by class of each peer, of nobody and of the test."""
    peers = [(peer["name"], peer["total"], peer["images"]) for peer in shares["peers"]]
    return [
        *peers,
        ("nobody", shares["unused_total"], shares["unused"]),
        ("test", shares["test_total"], shares["test"]),
    ]


def _by_peer(shares: dict[str, Any], title: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    table.add_column("peer", overflow="fold")
    what = samples_word(shares)
    table.add_column(what, justify="right")
    table.add_column("classes", justify="right")
    table.add_column(f"{what} by class", overflow="fold")
    for name, total, images in _columns(shares):
        held = [
            f"{printable(c)}:{number}" for c, number in zip(shares["classes"], images, strict=True) if number
        ]
        more = f" … {len(held) - SHOWN_CLASSES} more" if len(held) > SHOWN_CLASSES else ""
        table.add_row(Text(name), str(total), str(len(held)), Text(", ".join(held[:SHOWN_CLASSES]) + more))
    return table
