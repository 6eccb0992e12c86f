"""An authority revokes certificates: its next list, signed, for every site of the federation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport.trust import certificates
from p2pft_flower.transport.trust.authority import Authority, identity_of, issued_to, load_authority
from p2pft_flower.transport.trust.certificates import (
    CRL_FILE,
    PEER_FILE,
    CertificateFacts,
    Holder,
    facts_in,
    is_issued_by,
    read_certificates,
)
from p2pft_flower.transport.trust.files import write_files
from p2pft_flower.transport.trust.revocation import (
    Revoked,
    RevokedList,
    generation_of,
    holder_entry,
    read_lists,
)

__all__ = ["Revocation", "revoke"]


@dataclass(frozen=True)
class Revocation:
    """The outcome of :func:`revoke`.

    Attributes
    ----------
    file : Path
        The list's file.
    present : RevokedList
        The list.
    added : tuple of Revoked
        The entries that the list before it did not have.
    """

    file: Path
    present: RevokedList
    added: tuple[Revoked, ...]


def revoke(
    authority: Path, files: Sequence[Path] = (), holder: Holder | None = None, days: float = 365
) -> Revocation:
    """Write an authority's next list of revoked certificates to ``crl.pem`` in its folder.

    The list has the entries of the one before it, with a higher number and new dates; also if nothing is
    added.

    Parameters
    ----------
    authority : Path
        The authority's folder.
    files : sequence of Path
        Certificates to revoke: files, or the folders of their holders.
    holder : int or str, optional
        A peer, or ``coordinator``: all certificates of this holder of which the authority has a copy.
    days : float
        Days until the next list is due; then sites warn that this one is old, and go on using it.

    Raises
    ------
    ConfigError
        When the authority, its list or a certificate cannot be read, a certificate is not the authority's,
        it has no copy of one of the holder's, or the list cannot be written.
    """
    if not 0 < days <= 36500:
        raise ConfigError(f"days = {days:g}: must be above 0 and at most 36500")
    own = load_authority(authority)
    file = authority / CRL_FILE
    old = next(iter(read_lists(file, [own.root])), None)
    entries = list(old.entries) if old else []
    found = [_given(own, path) for path in files]
    if holder is not None:
        found += _copies(own, holder)
    now = certificates.utc_now().replace(microsecond=0)
    known = {entry.serial for entry in entries}
    new = {facts.serial: facts for facts in found if facts.serial not in known}
    # The certificates of one holder that are revoked together are followed by one generation.
    next_one = {facts.identity: 0 for facts in new.values()}
    for facts in new.values():
        before = max(facts.generation, generation_of([old] if old else [], facts.identity))
        next_one[facts.identity] = max(next_one[facts.identity], before + 1)
    added = tuple(Revoked(f.serial, f.identity, next_one[f.identity], now) for f in new.values())
    signed = _sign(own, [*entries, *added], (old.number if old else 0) + 1, days)
    write_files(authority, {CRL_FILE: signed.public_bytes(serialization.Encoding.PEM)})
    (present,) = read_lists(file, [own.root])
    return Revocation(file, present, added)


def _given(own: Authority, path: Path) -> CertificateFacts:
    file = path / PEER_FILE if path.is_dir() else path
    certificate = read_certificates(file)[0]
    facts = facts_in(certificate, file)
    if facts.identity.holder == "authority" or not is_issued_by(certificate, own.root):
        raise ConfigError(
            f"{file} is for {facts.identity} and not a certificate that the authority in {own.folder} has "
            "issued to a peer or a coordinator: only those can be revoked with its list"
        )
    return facts


def _copies(own: Authority, holder: Holder) -> list[CertificateFacts]:
    identity = identity_of(own.federation, holder)
    found = [c for c in issued_to(own.folder, identity) if is_issued_by(c, own.root)]
    if not found:
        raise ConfigError(
            f"{own.folder} has no copy of a certificate of {identity} (earlier versions of p2pft kept none): "
            f"give the certificate itself, a {PEER_FILE} of that peer"
        )
    return [CertificateFacts.of(certificate) for certificate in found]


def _sign(
    own: Authority, entries: Sequence[Revoked], number: int, days: float
) -> x509.CertificateRevocationList:
    now = certificates.utc_now()
    issuer_key = own.root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(own.root.subject)
        .last_update(now)
        .next_update(now + timedelta(days=days))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False
        )
    )
    for entry in entries:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(entry.serial)
            .revocation_date(entry.when)
            .add_extension(holder_entry(entry.holder, entry.generation), critical=False)
            .build()
        )
    return builder.sign(own.key, hashes.SHA256())
