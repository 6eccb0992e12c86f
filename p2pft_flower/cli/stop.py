"""``p2pft stop``: end a run from any one of its sites."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from p2pft_flower.cli.exit_codes import EXIT_FAILED
from p2pft_flower.keeping.running import running

__all__ = ["stop"]

PATIENCE = 30.0
"""Seconds to wait for processes to end, which takes up to 10 s on an idle machine."""


def stop(
    run: Annotated[
        str | None, typer.Argument(help="The run's id or name; all runs of this machine without it.")
    ] = None,
) -> None:
    """End the peers that train on this machine, and through them all peers of their runs, on any machine.

    If peers exchange nothing (algorithm = local), only those of this machine end.

    The peers are looked up in P2PFT_HOME, which must be the SuperNode's. Exit codes: 0 they have ended; 1
    there is none, several have the name, one cannot be reached, or one does not end.
    """
    found = running(run)
    if run is not None and len(ids := sorted({there.run for there in found})) > 1:
        typer.echo(f"runs {', '.join(ids)} are called {run}: give the id of one", err=True)
        raise typer.Exit(EXIT_FAILED)
    if not found:
        what = f"no peer of run {run} trains" if run else "no peer trains"
        typer.echo(
            f"{what} here: is this the machine of one of its peers, and P2PFT_HOME that of its SuperNode?",
            err=True,
        )
        raise typer.Exit(EXIT_FAILED)
    told = []
    for there in found:
        try:
            there.stop_run()
        except OSError as error:
            typer.echo(
                f"run {there.run}: peer {', '.join(map(str, there.peers))} cannot be asked to stop its run "
                f"({error}): see to it that this user can write there and the disk is not full, and try "
                f"again; kill {there.pid} ends the peers of that process alone",
                err=True,
            )
        else:
            told.append(there)
    deadline = time.monotonic() + PATIENCE
    while (left := [there for there in told if there.alive]) and time.monotonic() < deadline:
        time.sleep(0.1)  # they are no children of this process, so it must poll
    for there in told:
        who = f"run {there.run}: peer {', '.join(map(str, there.peers))}"
        if there in left:
            typer.echo(f"{who} does not end; its process is {there.pid}", err=True)
        else:
            also = ", and told its neighbours to" if there.neighbours else "; it has no neighbours to tell"
            typer.echo(f"{who} has ended{also}")
    if left or len(told) < len(found):
        raise typer.Exit(EXIT_FAILED)
