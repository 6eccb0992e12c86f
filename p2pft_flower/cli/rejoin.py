"""``p2pft rejoin``: a site's peer trains on with the others after its SuperNode or machine has died."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from p2pft_flower.errors import ConfigError, DataError, P2PFTError
from p2pft_flower.flower.logs import log_to_stream
from p2pft_flower.flower.site import Site
from p2pft_flower.host.agreement import LostContactError
from p2pft_flower.host.host import PeerFailedError
from p2pft_flower.keeping.progress import scored
from p2pft_flower.report.tables import number

__all__ = ["rejoin"]

EXIT_FAILED = 1
EXIT_USAGE = 2


def rejoin(
    run: Annotated[
        str, typer.Argument(help="The run's id, which names its folder in the site's output-dir.")
    ],
    node_config: Annotated[
        str, typer.Option(help="The same text, or TOML file, that the site's SuperNode is given.")
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            help="The run's own folder here; needed where the run-config's output-dir chose it.",
        ),
    ] = None,
) -> None:
    """Start a site's peer of a deployed run again while the others train; it needs no server, no SuperNode.

    The others let it in, it takes the model of one of them, and trains on with them to the end; its log and
    its model are where the run's are. SIGTERM and Ctrl-C end it alone, as at any site; p2pft stop ends the
    whole run once it has been let in.

    Exit codes: 0 it has trained to the end; 1 nobody has let it in before rejoin-deadline, or it failed or
    was stopped; 2 it was not started, with the reason.
    """
    log_to_stream()
    try:
        site = Site.parse(node_config)
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
        f"{number(scored(outcome.accuracy))}; its log and its model are in {where / 'peers'}; p2pft collect "
        "puts the results of all peers together"
    )
