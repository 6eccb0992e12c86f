"""``p2pft certs``: a federation's authority, and the certificates of its peers."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from p2pft_flower.cli.exit_codes import EXIT_USAGE
from p2pft_flower.errors import ConfigError, printable
from p2pft_flower.transport.trust.authority import create_authority, identity_of, issue, renew, sign_request
from p2pft_flower.transport.trust.certificates import (
    CA_FILE,
    CA_KEY_FILE,
    CRL_FILE,
    FEDERATION,
    KEY_FILE,
    PEER_FILE,
    CertificateFacts,
    Holder,
    facts_in,
    read_certificates,
    serial_text,
)
from p2pft_flower.transport.trust.requests import make_request
from p2pft_flower.transport.trust.revocation import Revocations, RevokedList
from p2pft_flower.transport.trust.revoking import revoke

__all__ = ["app"]

app = typer.Typer(
    help="Make, show, renew and revoke the certificates of a federation's peers.", no_args_is_help=True
)

Authority = Annotated[Path, typer.Option(metavar="FOLDER", help="The authority's folder.")]
Days = Annotated[float, typer.Option(help="Days of validity.")]
Peer = Annotated[int | None, typer.Option(help="The peer's number in the graph, from 0.")]
Addresses = Annotated[
    list[str] | None,
    typer.Option("--address", help="A host name or IP address of the peer; may be given several times."),
]
Coordinator = Annotated[
    bool,
    typer.Option(
        "--coordinator", help="For the SuperLink's machine instead of a peer's: flwr stop, and progress."
    ),
]


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
    peer: Peer = None,
    coordinator: Coordinator = False,
    address: Addresses = None,
    request: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The holder's own request (peer.csr of 'p2pft certs request'): its key stays at the "
            "holder's site, and its addresses are taken from it.",
        ),
    ] = None,
    days: Days = 365,
) -> None:
    """Issue a peer's key and certificate, or the coordinator's, into a folder to be copied to its machine.

    With --request the key is made at the site and never leaves it: the folder gets ca.pem and peer.pem (and
    crl.pem, if there is one), which the site copies beside its peer.key. Be sure that the request came from
    the peer that --peer names.

    Exit codes: 0 the certificate was issued; 2 a value, the request or the authority cannot be used, or the
    folder holds certificates.
    """
    holder = _holder(peer, coordinator, address)
    try:
        if request is None:
            facts = issue(authority, out, holder, address or (), days)
        elif address:
            _fail("--address: the request has its addresses; leave it out, or have the request made anew")
        else:
            facts = sign_request(authority, out, holder, request, days)
    except ConfigError as error:
        _fail(error)
    typer.echo(f"{out}: {facts.identity}, valid until {facts.not_after:%Y-%m-%d}")
    if request is not None:
        names = ", ".join(facts.names) or "none"
        typer.echo(f"names: {names}; copy the files beside the {KEY_FILE} of the request")


@app.command("request")
def request_certificate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The site's new folder of certificates.")],
    federation: Annotated[str, typer.Option(help="The federation's name, as its authority has it.")],
    peer: Peer = None,
    coordinator: Coordinator = False,
    address: Addresses = None,
) -> None:
    """Make a key at the site where it stays, and a request to certify it for the federation's authority.

    Send peer.csr to the authority, whose operator must be sure that it comes from you:
    'p2pft certs issue --request peer.csr' makes peer.pem and ca.pem of it, which belong beside peer.key.

    Exit codes: 0 key and request were made; 2 a value cannot be used, or the folder holds certificates.
    """
    holder = _holder(peer, coordinator, address)
    if not re.fullmatch(FEDERATION, federation):
        _fail(f"federation {federation!r}: use lower-case letters, digits and hyphens inside, at most 40")
    try:
        identity = identity_of(federation, holder)
        file = make_request(folder, identity, address or ())
    except ConfigError as error:
        _fail(error)
    typer.echo(f"{file}: a request for {identity}; send it to the federation's authority")
    typer.echo(f"keep {folder / KEY_FILE} here: it is all that proves to be {identity.name}")


@app.command("revoke")
def revoke_certificates(
    authority: Authority,
    certificate: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Certificates, or the folders of their peers."),
    ] = None,
    peer: Annotated[
        int | None, typer.Option(help="All certificates that the authority has issued to this peer.")
    ] = None,
    coordinator: Annotated[
        bool, typer.Option("--coordinator", help="All that it has issued to the coordinator.")
    ] = False,
    days: Annotated[
        float, typer.Option(help="Days until a newer list is due; then sites warn, and go on using this one.")
    ] = 365,
) -> None:
    """Revoke certificates: write the authority's list of them, crl.pem, for all sites.

    Copy crl.pem into each site's folder of certificates, also that of the SuperLink's machine. The sites need
    no restart: within seconds a revoked peer is refused at its next message. A revocation ends all
    certificates that were issued to that peer before, so that it needs a new one ('renew', or 'issue').
    Without a certificate the list is written anew, with new dates.

    Exit codes: 0 the list was written; 2 a certificate, the list or the authority cannot be used.
    """
    if peer is not None and coordinator:
        _fail("give --peer NUMBER or --coordinator, not both")
    holder: Holder | None = "coordinator" if coordinator else peer
    try:
        done = revoke(authority, certificate or (), holder, days)
    except ConfigError as error:
        _fail(error)
    for entry in done.added:
        typer.echo(f"revoked: {entry}")
    if not done.added:
        typer.echo("nothing is revoked that was not before")
    typer.echo(f"{done.file}: {_list_in_words(done.present)}; copy it into every site's certificates folder")


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
        found, revocations = _certificates(folder)
    except ConfigError as error:
        _fail(error)
    lists = revocations.lists
    if as_json:
        rows = [as_dict(file, facts, revocations) for file, facts in found]
        typer.echo(json.dumps([*rows, *(_list_as_dict(one, found) for one in lists)], indent=2))
        return
    for file, facts in found:  # no table: a narrow terminal would cut fingerprints, which are to be compared
        typer.echo(f"{file}: {facts.identity}")
        typer.echo(f"  valid until {facts.not_after:%Y-%m-%d %H:%M} UTC ({state(facts, revocations)})")
        if facts.names:
            typer.echo(f"  names       {', '.join(map(printable, facts.names))}")
        typer.echo(f"  SHA-256     {facts.fingerprint}")
        typer.echo(f"  serial      {serial_text(facts.serial)}")
    for one in lists:
        typer.echo(f"{CRL_FILE}: {_list_in_words(one)}")
        for entry in one.entries:
            typer.echo(f"  revoked     {entry}")


def _holder(peer: int | None, coordinator: bool, address: list[str] | None) -> Holder:
    if peer is not None and not coordinator:
        return peer
    if peer is None and coordinator and not address:
        return "coordinator"
    _fail("give --peer NUMBER, or --coordinator, which has no --address")


def _certificates(folder: Path) -> tuple[list[tuple[str, CertificateFacts]], Revocations]:
    found, file = [], folder / PEER_FILE
    if file.exists():
        found.append((PEER_FILE, facts_in(read_certificates(file)[0], file)))
    roots = read_certificates(folder / CA_FILE)
    found += [(CA_FILE, facts_in(root, folder / CA_FILE)) for root in roots]
    return found, Revocations(folder / CRL_FILE, roots)


def _list_in_words(one: RevokedList) -> str:
    count = f"{len(one.entries)} revoked" if one.entries else "none revoked"
    overdue = ", OVERDUE" if one.due <= datetime.now(UTC) else ""
    return (
        f"list {one.number} of {one.issued:%Y-%m-%d %H:%M} UTC, the next is due by {one.due:%Y-%m-%d %H:%M} "
        f"UTC{overdue}, {count}"
    )


def state(facts: CertificateFacts, revocations: Revocations) -> str:
    """Describe a certificate's validity: the days left, or that it is revoked, expired or not valid yet."""
    now = datetime.now(UTC)
    if revocations.reason(facts) is not None:
        return "REVOKED"
    if now < facts.not_before:
        return "not valid yet"
    if now >= facts.not_after:
        return "EXPIRED"
    return f"{(facts.not_after - now).days} days left"


def as_dict(file: str, facts: CertificateFacts, revocations: Revocations) -> dict[str, Any]:
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
        "state": state(facts, revocations),
        "fingerprint": facts.fingerprint,
        "serial": serial_text(facts.serial),
    }


def _list_as_dict(one: RevokedList, found: list[tuple[str, CertificateFacts]]) -> dict[str, Any]:
    """Return the entry of a list of revoked certificates, with the keys of a certificate's and two more."""
    signer = next(facts for _, facts in found if facts.fingerprint == one.authority)
    return {
        "file": CRL_FILE,
        "federation": signer.identity.federation,
        "peer": None,
        "role": "revocations",
        "names": [],
        "not_before": one.issued.isoformat(),
        "not_after": one.due.isoformat(),
        "state": "OVERDUE" if one.due <= datetime.now(UTC) else "in force",
        "fingerprint": one.fingerprint,
        "serial": None,
        "number": one.number,
        "revoked": [
            {
                "serial": serial_text(entry.serial),
                "peer": entry.holder.peer,
                "role": "peer" if entry.holder.peer is not None else entry.holder.holder,
                "when": entry.when.isoformat(),
            }
            for entry in one.entries
        ],
    }
