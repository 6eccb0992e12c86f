"""``p2pft cache``: list the stores of trunk outputs on this machine, and make room."""

from __future__ import annotations

import json
import re
import time
from typing import Annotated, Any, NoReturn

import typer
from rich.filesize import decimal

from p2pft_flower.cli.exit_codes import EXIT_FAILED, EXIT_USAGE
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.learning.store.cache import StoreRecord, cache_folder, get_limit, remove, set_limit, stores

__all__ = ["app"]

app = typer.Typer(help="List and limit the stored outputs of frozen trunks.", no_args_is_help=True)

UNITS = {
    "": 1,
    "B": 1,
    **{f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)},
    **{f"{p}IB": 1024**i for i, p in enumerate("KMGT", 1)},
}
"""Bytes of each unit, by the unit's name in capitals."""


def _fail(message: object) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(EXIT_USAGE)


@app.command("list")
def list_stores(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """List the stores, the least recently used one first.

    When the cache reaches its limit, stores are removed in this order.

    Exit codes: 0 the stores were listed; 2 the cache cannot be read.
    """
    try:
        records, limit = stores(), get_limit()
    except P2PFTError as error:
        _fail(error)
    if as_json:
        typer.echo(json.dumps(as_dict(records, limit), indent=2))
        return
    cells = [(r.name, f"{r.rows} rows", decimal(r.bytes), _use(r)) for r in records]
    name, rows, size = (max((len(row[i]) for row in cells), default=0) for i in range(3))
    for record, row in zip(records, cells, strict=True):
        typer.echo(f"{row[0]:<{name}}  {row[1]:>{rows}}  {row[2]:>{size}}  {row[3]}")
        typer.echo(f"  {_about(record)}")  # on a line of its own: names of models have up to 50 characters
    total = decimal(sum(record.bytes for record in records))
    typer.echo(f"{total} of {decimal(limit)} in {cache_folder()}")


def _use(record: StoreRecord) -> str:
    if record.in_use:
        return "in use"
    return time.strftime("last used %Y-%m-%d %H:%M", time.localtime(record.last_used))


def _about(record: StoreRecord) -> str:
    if record.about is None:
        return "unreadable meta.json"
    stored, trunk = " and ".join(record.dtypes), record.about.get("trunk-dtype")
    if trunk and trunk != stored:
        stored = f"{stored or 'unknown type'} (its trunk was run in {trunk})"
    facts = (record.about.get("model"), record.about.get("path"), stored)
    return ", ".join(str(fact) for fact in facts if fact)


def as_dict(records: list[StoreRecord], limit: int) -> dict[str, Any]:
    """Return the content of the output of ``--json``: sizes in bytes, times in seconds since the epoch.

    Later versions only add keys.
    """
    return {
        "folder": str(cache_folder()),
        "limit": limit,
        "stores": [
            {
                "name": record.name,
                "about": record.about,
                "dtypes": list(record.dtypes),
                "rows": record.rows,
                "bytes": record.bytes,
                "last_used": record.last_used,
                "in_use": record.in_use,
            }
            for record in records
        ],
    }


@app.command()
def clear(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="A name from 'p2pft cache list', or its beginning."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove every store that is not in use.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before --all.")] = False,
) -> None:
    """Remove stores. A later run computes again the rows that it needs.

    Exit codes: 0 the stores are gone; 1 some are in use and were left, or the answer was no; 2 no store has
    the name, or its files cannot be removed.
    """
    if bool(names) == everything:
        _fail("give the names of stores, or --all")
    try:
        records = stores()
        chosen = records if everything else _named(names or [], records)
        if everything and chosen and not yes:
            size = decimal(sum(record.bytes for record in chosen))
            typer.confirm(f"Remove {len(chosen)} stores ({size})?", abort=True)
        freed, left = 0, []
        for record in chosen:
            if remove(record.folder):
                freed += record.bytes
                typer.echo(f"removed {record.name} ({decimal(record.bytes)})")
            else:
                left.append(record.name)
    except P2PFTError as error:
        _fail(error)
    typer.echo(f"freed {decimal(freed)}")
    if left:
        typer.echo(f"error: in use and left: {', '.join(left)}; end the runs that use them", err=True)
        raise typer.Exit(EXIT_FAILED)


def _named(names: list[str], records: list[StoreRecord]) -> list[StoreRecord]:
    chosen: dict[str, StoreRecord] = {}
    for name in names:
        found = [record for record in records if record.name.startswith(name)]
        if len(found) != 1:
            what = "no store has this name" if not found else f"{len(found)} stores begin like this"
            raise ConfigError(f"{name}: {what}; 'p2pft cache list' shows the names")
        chosen[found[0].name] = found[0]
    return list(chosen.values())


@app.command()
def limit(
    size: Annotated[
        str | None, typer.Argument(metavar="[SIZE]", help="Such as 20GB, 500MB or 16GiB; without it, print.")
    ] = None,
) -> None:
    """Print or set the limit of all stores together.

    When a run needs more, stores that are not in use are removed, the least recently used first.

    Exit codes: 0 the limit was printed or set; 2 the size is none, or the cache's folder cannot be used.
    """
    try:
        if size is not None:
            set_limit(parse_size(size))
        typer.echo(decimal(get_limit()))
    except P2PFTError as error:
        _fail(error)


def parse_size(text: str) -> int:
    """Return ``"20GB"`` as 20 000 000 000 bytes; units are decimal (kB … TB) or binary (KiB … TiB).

    Raises
    ------
    ConfigError
        When ``text`` does not give a size above zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise ConfigError(f"{text!r} is no size above zero, such as 20GB, 500MB or 16GiB")
    return size
