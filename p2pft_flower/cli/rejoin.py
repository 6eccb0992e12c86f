"""``p2pft rejoin``: a site's peer rejoins its run after its SuperNode or machine has failed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from p2pft_flower.cli.exit_codes import EXIT_FAILED, EXIT_USAGE
from p2pft_flower.errors import ConfigError, DataError, P2PFTError
from p2pft_flower.flower.logs import log_to_stream
from p2pft_flower.flower.site import Site
from p2pft_flower.host.agreement import LostContactError
from p2pft_flower.host.host import PeerFailedError
from p2pft_flower.keeping.progress import scored
from p2pft_flower.report.tables import number

__all__ = ["rejoin"]


def rejoin(
    *,
    run: Annotated[
        str | None,
        typer.Argument(help="The run's id, or its name: its folder in the site's output-dir has both."),
    ] = None,
    node_config: Annotated[str, typer.Option(help="The same text or TOML file as the site's SuperNode has.")],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            help="The run's own folder here; needed if the run-config's output-dir chose it.",
        ),
    ] = None,
    interrupted: Annotated[
        bool,
        typer.Option(
            "--interrupted",
            help="Without RUN: rejoin the site's last run if it was interrupted, else say so and exit 0. "
            "For a service that starts with the machine (deploy/systemd/p2pft-rejoin.service).",
        ),
    ] = False,
) -> None:
    """Start a site's peer of a deployed run again while the others train, without a server or SuperNode.

    The peer rejoins the run, takes the model of one of the others, and trains with them to the end. Its
    journal and its model are in the run's folder. SIGTERM and Ctrl-C end it alone, as at any site; once it
    has rejoined, p2pft stop ends the whole run.

    Exit codes: 0 it has trained to the end, or --interrupted found nothing to rejoin; 1 it could not rejoin
    before rejoin-deadline, or it failed or was stopped; 2 it was not started, with the reason.
    """
    log_to_stream()
    try:
        site = Site.parse(node_config)
        _one_of(run, interrupted=interrupted)
        if run is None:
            found = site.interrupted(None if folder is None else folder.expanduser().absolute())
            if isinstance(found, str):
                typer.echo(f"there is nothing to rejoin: {found}")
                return
            run, folder = found.run, found.folder
            typer.echo(found.note)
        from p2pft_flower.flower import client  # Flower takes a second to import

        outcome, where = client.rejoin(run, site, folder)
    except (ConfigError, DataError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    except (P2PFTError, LostContactError, PeerFailedError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    typer.echo(
        f"peer {outcome.peer} has trained to the end: {outcome.iterations} iterations, accuracy "
        f"{number(scored(outcome.accuracy))}; its journal and its model are in {where / 'peers'}; "
        "p2pft collect joins the results of all peers"
    )


def _one_of(run: str | None, *, interrupted: bool) -> None:
    if interrupted and run is not None:
        raise ConfigError("--interrupted finds the run by itself: leave RUN out")
    if not interrupted and run is None:
        raise ConfigError("which run? Give its id or its name, or --interrupted for the site's last one")
