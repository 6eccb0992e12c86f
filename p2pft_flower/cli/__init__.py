"""The command line: ``p2pft``."""

from __future__ import annotations

import io
import signal
import sys

import typer

from p2pft_flower import __version__
from p2pft_flower.cli import (
    attention,
    cache,
    certs,
    chaos,
    collect,
    compare,
    dashboard,
    data,
    demo,
    evaluate,
    export,
    preflight,
    rejoin,
    report,
    reproduce,
    run,
    runs,
    status,
    stop,
    text_embeddings,
    topology,
    up,
)
from p2pft_flower.cli.completion import BashComplete

__all__ = ["app", "main"]

app = typer.Typer(
    name="p2pft",
    help="Peer-to-peer fine-tuning of vision transformers, as an extension of Flower.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("preflight")(preflight.preflight)
app.command("compare")(compare.compare)
app.command("report")(report.report)
app.command("evaluate")(evaluate.evaluate)
app.command("export")(export.export)
app.command("attention")(attention.attention)
app.command("text-embeddings")(text_embeddings.text_embeddings)
app.command("collect")(collect.collect)
app.command("chaos")(chaos.chaos)
app.command("status")(status.status)
app.command("dashboard")(dashboard.dashboard)
app.command("stop")(stop.stop)
app.command("rejoin")(rejoin.rejoin)
app.command("up")(up.up)
app.command("down")(up.down)
app.add_typer(runs.app, name="runs")
app.add_typer(reproduce.app, name="reproduce")
app.add_typer(topology.app, name="topology")
app.add_typer(data.app, name="data")
app.add_typer(cache.app, name="cache")
app.add_typer(certs.app, name="certs")
app.add_typer(demo.app, name="demo")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_version, is_eager=True
    ),
) -> None:
    """Peer-to-peer fine-tuning of vision transformers, as an extension of Flower."""


def _terminated(number: int, frame: object) -> None:  # noqa: ARG001 - a signal handler's signature
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command line; on SIGTERM, or if its terminal is closed, it ends with its child processes."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, _terminated)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # like standard error: names of files may be any bytes
    command = typer.main.get_command(app)
    BashComplete.register()
    command()
