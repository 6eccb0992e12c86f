"""``p2pft status``: the state of a run while it lasts, at any of its sites or at the coordinator."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from p2pft_flower.cli.exit_codes import EXIT_FAILED
from p2pft_flower.errors import ConfigError, printable
from p2pft_flower.keeping.bulletins import Bulletin, bulletins
from p2pft_flower.report.results import runs_folder
from p2pft_flower.report.run_list import RunRecord, record_of, runs_in
from p2pft_flower.report.status import RunStatus, status_of
from p2pft_flower.report.status_text import as_dict, status_table

__all__ = ["status"]

_REFRESH = 1.0
"""Seconds between two looks on a terminal."""

_PLAIN_REFRESH = 10.0
"""Seconds between two looks where no terminal is."""


def status(
    run: Annotated[
        str | None, typer.Argument(help="The run's id or name; all runs of this machine without it.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it anew every second until the runs have ended.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line a look.")] = False,
) -> None:
    """Tell who of a run is slow, who is lost, whether the result is at risk, and when it is done.

    A site knows this from the other peers' gossip, so it needs neither SuperLink nor coordinator; the
    coordinator of a deployment knows it from the peers that it can reach, or that report to it
    (observer-address). P2PFT_HOME must be the SuperNode's. A process that was killed is shown with its last
    words, for a day. Where no run trains, the last one is named, and what has come of it.

    Exit codes: 0 a run was found (with --watch: its end was seen); 1 no run trains here.
    """
    found = _look(run)
    if not found:
        typer.echo(_none(run), err=True)
        if as_json:
            typer.echo("[]")
        raise typer.Exit(EXIT_FAILED)
    if not watch:
        typer.echo(_text(found, as_json))
        return
    seen: dict[str, str] = {}
    console = Console()
    if as_json or not console.is_terminal:
        while found:
            seen |= {s.run: s.folder for s in found}
            typer.echo(_text(found, as_json))
            time.sleep(_REFRESH if as_json else _PLAIN_REFRESH)
            found = _look(run, living=True)
    else:
        with Live(Text(_text(found, as_json)), console=console, screen=False, auto_refresh=False) as live:
            while found:
                seen |= {s.run: s.folder for s in found}
                live.update(Text(_text(found, as_json)), refresh=True)
                time.sleep(_REFRESH)
                found = _look(run, living=True)
    for folder in () if as_json else seen.values():
        typer.echo(_ended(record_of(Path(folder))))


def _none(run: str | None) -> str:
    """Return the sentences where no run trains: what is known of the last one, and why there may be none."""
    try:
        records = runs_in(runs_folder())
    except ConfigError:
        records = []
    last = next((r for r in records if run in (None, r.run, r.name)), None)
    what = f"run {run} does not train here" if run else "no run trains here"
    if last is not None and last.ended is not None:
        return f"{what}; {'it' if run else 'the last one'}: {_ended(last)} (p2pft runs lists all)"
    return (
        f"{what}: is this the machine of one of its peers, and P2PFT_HOME that of its SuperNode? A run that "
        "has just been started is here once its peers have their plans, after the preflight; what has come "
        "of one that has ended stands in its folder (results.json, peers/)"
    )


def _ended(record: RunRecord) -> str:
    """Return what has come of a run, in a sentence."""
    called = f"{record.name} ({record.run})" if record.name else record.run
    at = "" if record.ended is None else time.strftime(", %Y-%m-%d %H:%M:%S", time.localtime(record.ended))
    return (
        f"run {printable(called)}{at}: {printable(record.told)}; its files are in {printable(record.folder)}"
    )


def _look(run: str | None, *, living: bool = False) -> list[RunStatus]:
    """Return the state of each run of this machine; if ``living``, of those with a process that lives."""
    by_run: dict[str, list[Bulletin]] = {}
    for bulletin in bulletins(run):
        by_run.setdefault(bulletin.run, []).append(bulletin)
    shown = (told for told in by_run.values() if not living or any(b.alive for b in told))
    return [status_of(told, time.time()) for told in shown]


def _text(found: list[RunStatus], as_json: bool) -> str:
    if as_json:
        return json.dumps([as_dict(s) for s in found])
    return "\n\n".join(status_table(s, time.time()) for s in found)
