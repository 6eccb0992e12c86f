"""``p2pft stop``: end a run from any one of its sites."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from p2pft_flower.runtime.running import running

__all__ = ["stop"]

PATIENCE = 30.0
"""Seconds to wait for processes to end, which takes up to 10 s on a machine that has processors to spare."""

EXIT_FAILED = 1


def stop(
    run: Annotated[
        str | None, typer.Argument(help="The run's id; all runs of this machine without it.")
    ] = None,
) -> None:
    """End the peers that train on this machine, and through them all peers of their runs, on any machine.

    Where peers exchange nothing (algorithm = local) only those of this machine end.

    They are looked up in P2PFT_HOME, which must be the SuperNode's. Exit codes: 0 they have ended; 1 there
    is none, or one does not end.
    """
    found = running(run)
    if not found:
        what = f"no peer of run {run} trains" if run else "no peer trains"
        typer.echo(
            f"{what} here: is this the machine of one of its peers, and P2PFT_HOME that of its SuperNode?",
            err=True,
        )
        raise typer.Exit(EXIT_FAILED)
    for there in found:
        there.stop_run()
    deadline = time.monotonic() + PATIENCE
    while (left := [there for there in found if there.alive]) and time.monotonic() < deadline:
        time.sleep(0.1)  # they are no children of this process: nothing else tells that they have ended
    for there in found:
        who = f"run {there.run}: peer {', '.join(map(str, there.peers))}"
        if there in left:
            typer.echo(f"{who} does not end; its process is {there.process.pid}", err=True)
        else:
            told = ", and told its neighbours to" if there.neighbours else "; it has no neighbours to tell"
            typer.echo(f"{who} has ended{told}")
    if left:
        raise typer.Exit(EXIT_FAILED)
