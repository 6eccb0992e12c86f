"""``p2pft dashboard``: a live page of a run, at a site, at the coordinator, or from a run's folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from pathlib import Path
from typing import Annotated

import typer

from p2pft_flower.cli.dashboard_watch import Watch
from p2pft_flower.cli.exit_codes import EXIT_FAILED, EXIT_USAGE
from p2pft_flower.errors import ConfigError, DataError, P2PFTError
from p2pft_flower.keeping.bulletins import bulletins
from p2pft_flower.keeping.run_folders import find_run
from p2pft_flower.report.results import runs_folder
from p2pft_flower.transport import parse_address

__all__ = ["NICE", "dashboard"]

NICE = 10
"""How much this process gives way to others: training comes first on a busy machine."""

_CONNECTIONS = 64
"""The most connections at once; each open page has one or two."""


def dashboard(
    run: Annotated[
        str | None,
        typer.Argument(
            help="The run's id, name or folder, while it trains or later; all runs here without it."
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", help="The address of the page; port 0 takes any free one.")
    ] = "127.0.0.1:8265",
) -> None:
    """Show a run in the browser while it trains: who is slow or lost, accuracy, traffic, time left.

    The page knows what p2pft status knows: at a site from the other peers' gossip, at the coordinator from
    the peers that it can reach, in a simulation both; P2PFT_HOME must be the SuperNode's. It only reads
    files, so it may be closed and started again at any time, before the run, during it and after it.

    On 127.0.0.1 every user of this machine can see it. Beyond loopback it needs the token in the address that
    is printed, and is plain HTTP: better reach it with ssh -L 8265:127.0.0.1:8265 from elsewhere.

    Exit codes: 0 ended by Ctrl-C; 1 no such run here; 2 it cannot listen there.
    """
    try:
        bound = _bound(listen)
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    with bound:
        try:
            watch = Watch(*_chosen(run))
        except P2PFTError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_FAILED) from None
        os.nice(NICE)
        _serve(watch, bound, beyond=not parse_address(listen).is_local)


def _chosen(run: str | None) -> tuple[str | None, Path | None]:
    """Return the identifier of the run to look at, or its folder.

    Raises
    ------
    DataError
        If there is no such run on this machine, or several that train here have the name.
    """
    if run is None:
        return None, None
    if ids := sorted({b.run for b in bulletins(run)}):
        if len(ids) > 1:
            raise DataError(f"runs {', '.join(ids)} are called {run}: give the id of one")
        return ids[0], None
    folder = Path(run).expanduser()
    if folder.is_dir():
        return None, folder.resolve()
    found = find_run(runs_folder(), run)
    if found is None:
        raise DataError(
            f"run {run} does not train here, and is no folder, id or name of a run in {runs_folder()}: is "
            "this the machine of one of its peers, and P2PFT_HOME that of its SuperNode?"
        )
    if found.note:
        typer.echo(f"note: {found.note}", err=True)
    return None, found.folder.resolve()


def _bound(listen: str) -> socket.socket:
    """Return a socket that listens at an address.

    Raises
    ------
    ConfigError
        If it is no address of TCP, or nothing can listen there.
    """
    address = parse_address(listen)
    if address.path is not None:
        raise ConfigError(f"--listen {listen!r}: a browser needs host:port, as in 127.0.0.1:8265")
    try:
        family, kind, number, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM
        )[0]
        bound = socket.socket(family, kind, number)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(place)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"--listen {listen}: cannot listen there ({error.strerror or error}); does another dashboard "
            "run? Choose another port, or 0 for any free one"
        ) from error
    return bound


def _serve(watch: Watch, bound: socket.socket, *, beyond: bool) -> None:
    """Answer until Ctrl-C or SIGTERM; ``beyond`` is whether other machines can reach the socket."""
    import uvicorn

    from p2pft_flower.cli.dashboard_server import Board, make_app

    host, port = bound.getsockname()[:2]
    token = secrets.token_urlsafe(24) if beyond else ""
    board = Board(watch.look, lambda: server.should_exit)
    config = uvicorn.Config(
        make_app(board, token, f"p2pft-{port}"),
        log_level="warning",
        access_log=False,  # it would hold the token
        server_header=False,
        date_header=False,
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=3,
    )
    server = uvicorn.Server(config)
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else host  # noqa: S104 - a comparison
    place = f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"
    typer.echo(f"open http://{place}/{f'?token={token}' if token else ''} (Ctrl-C ends it; the run goes on)")
    if beyond:
        typer.echo("whoever is on the way can read along: this is plain HTTP", err=True)
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn may raise again once it has ended
        server.run([bound])
    typer.echo("the page has ended; the run goes on")
