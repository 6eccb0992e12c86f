"""``p2pft certs``: a federation's authority, and the certificates of its peers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from p2pft_flower.cli.run import EXIT_USAGE
from p2pft_flower.errors import ConfigError, printable
from p2pft_flower.transport.trust.authority import create_authority, issue, renew
from p2pft_flower.transport.trust.certificates import (
    CA_FILE,
    CA_KEY_FILE,
    PEER_FILE,
    CertificateFacts,
    facts_in,
    read_certificate,
    read_certificates,
)

__all__ = ["app"]

app = typer.Typer(help="Make, show and renew the certificates of a federation's peers.", no_args_is_help=True)

Authority = Annotated[Path, typer.Option(metavar="FOLDER", help="The authority's folder.")]
Days = Annotated[float, typer.Option(help="Days of validity.")]


def _fail(message: object) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(EXIT_USAGE)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The new folder of the authority.")],
    federation: Annotated[str, typer.Option(help="The federation's name, such as north-hospitals.")],
    days: Days = 3650,
) -> None:
    """Make a federation's authority (CA). Keep its ca.key on one safe machine, never on a peer's.

    Exit codes: 0 the authority was made; 2 the name or the folder cannot be used, or the folder holds
    certificates.
    """
    try:
        facts = create_authority(folder, federation, days)
    except ConfigError as error:
        _fail(error)
    typer.echo(f"{folder}: {facts.identity}, valid until {facts.not_after:%Y-%m-%d}")
    typer.echo(
        f"keep {folder / CA_KEY_FILE} secret: it can make a certificate for any peer of the federation"
    )


@app.command("issue")
def issue_certificate(
    authority: Authority,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The new folder for the files.")],
    peer: Annotated[int | None, typer.Option(help="The peer's number in the graph, from 0.")] = None,
    coordinator: Annotated[
        bool,
        typer.Option(
            "--coordinator", help="For the SuperLink's machine instead of a peer's: flwr stop, and progress."
        ),
    ] = False,
    address: Annotated[
        list[str] | None,
        typer.Option(help="A host name or IP address of the peer; may be given several times."),
    ] = None,
    days: Days = 365,
) -> None:
    """Issue a peer's key and certificate, or the coordinator's, into a folder to be copied to its machine.

    Exit codes: 0 the certificate was issued; 2 a value or the authority cannot be used, or the folder holds
    certificates.
    """
    try:
        if peer is not None and not coordinator:
            facts = issue(authority, out, peer, address or (), days)
        elif peer is None and coordinator and not address:
            facts = issue(authority, out, "coordinator", days=days)
        else:
            _fail("give --peer NUMBER, or --coordinator, which has no --address")
    except ConfigError as error:
        _fail(error)
    typer.echo(f"{out}: {facts.identity}, valid until {facts.not_after:%Y-%m-%d}")


@app.command("renew")
def renew_certificate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The peer's or coordinator's.")],
    authority: Authority,
    previous: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Your own copy of the ca.pem of the authority that issued it, if that was another one.",
        ),
    ] = None,
    days: Days = 365,
) -> None:
    """Replace a peer's key and certificate by new ones, for the same peer and names.

    The folder's certificate must have been issued by the authority, or by the one of --previous: a ca.pem
    that came with the folder is no proof.

    Exit codes: 0 the certificate was renewed; 2 folder or authority cannot be used, they are of different
    federations, or another authority issued it.
    """
    try:
        facts = renew(authority, folder, days, previous)
    except ConfigError as error:
        _fail(error)
    typer.echo(f"{folder}: {facts.identity}, valid until {facts.not_after:%Y-%m-%d}")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An authority's or a peer's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Print the owners, dates and fingerprints of the certificates in a folder.

    Exit codes: 0 the certificates were shown, valid or not; 2 they cannot be read.
    """
    try:
        found = _certificates(folder)
    except ConfigError as error:
        _fail(error)
    if as_json:
        typer.echo(json.dumps([as_dict(file, facts) for file, facts in found], indent=2))
        return
    for file, facts in found:  # no table: a narrow terminal would cut fingerprints, which are to be compared
        typer.echo(f"{file}: {facts.identity}")
        typer.echo(f"  valid until {facts.not_after:%Y-%m-%d %H:%M} UTC ({state(facts)})")
        if facts.names:
            typer.echo(f"  names       {', '.join(map(printable, facts.names))}")
        typer.echo(f"  SHA-256     {facts.fingerprint}")


def _certificates(folder: Path) -> list[tuple[str, CertificateFacts]]:
    found = []
    if (folder / PEER_FILE).exists():
        found.append((PEER_FILE, read_certificate(folder / PEER_FILE)))
    file = folder / CA_FILE
    found += [(CA_FILE, facts_in(root, file)) for root in read_certificates(file)]
    return found


def state(facts: CertificateFacts) -> str:
    """Describe a certificate's validity: the days left, or that it is expired or not valid yet."""
    now = datetime.now(UTC)
    if now < facts.not_before:
        return "not valid yet"
    if now >= facts.not_after:
        return "EXPIRED"
    return f"{(facts.not_after - now).days} days left"


def as_dict(file: str, facts: CertificateFacts) -> dict[str, Any]:
    """Return a certificate's entry in the output of ``--json``; times are in ISO 8601, UTC.

    Later versions only add keys.
    """
    return {
        "file": file,
        "federation": facts.identity.federation,
        "peer": facts.identity.peer,
        "role": "peer" if isinstance(facts.identity.holder, int) else facts.identity.holder,
        "names": list(facts.names),
        "not_before": facts.not_before.isoformat(),
        "not_after": facts.not_after.isoformat(),
        "state": state(facts),
        "fingerprint": facts.fingerprint,
    }
