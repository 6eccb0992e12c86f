"""A federation's certificates: that of its authority (CA), that of each peer, and the coordinator's.

The authority's folder holds ``ca.pem`` and ``ca.key``; a peer's folder ``ca.pem``, ``peer.pem`` and
``peer.key``. A peer's certificate has the URI ``p2pft://<federation>/peer/<i>`` and the DNS name
``peer-<i>.<federation>.p2pft.internal``. A client asks for that name at any address of the peer, so that the
process that answers proves to be peer i of this federation. The coordinator's has the URI
``p2pft://<federation>/coordinator`` and the name ``coordinator.<federation>.p2pft.internal``: peers accept
one call of the coordinator, the stop of a run, and send it their progress. The coordinator's folder has the
same files as a peer's.

All may hold ``crl.pem``, the list of revoked certificates
(:mod:`~p2pft_flower.transport.trust.revocation`). A certificate has a *generation*: 0 for the first
certificates of a holder, g for those that were issued after its g-th revocation. These have the DNS names
``r1.peer-<i>.…`` to ``r<g>.peer-<i>.…`` beside the one above. So a client, whose gRPC can ask for a name and
cannot look at a list, asks for the name of the generation after the last revocation, which no earlier
certificate has.

:mod:`~p2pft_flower.transport.trust.authority` makes certificates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes

from p2pft_flower.errors import ConfigError

__all__ = [
    "CA_FILE",
    "CA_KEY_FILE",
    "CRL_FILE",
    "FEDERATION",
    "KEY_FILE",
    "OWN_NAMES",
    "PEER_FILE",
    "CertificateFacts",
    "Holder",
    "Identity",
    "facts_in",
    "facts_of",
    "identity_from",
    "is_issued_by",
    "read_certificate",
    "read_certificates",
    "serial_text",
    "target_name",
    "utc_now",
]

Holder = int | Literal["coordinator"]
"""A holder of a certificate from an authority: a peer, by its number, or the coordinator."""

CA_FILE, CA_KEY_FILE = "ca.pem", "ca.key"
PEER_FILE, KEY_FILE = "peer.pem", "peer.key"
CRL_FILE = "crl.pem"

OWN_NAMES = ".p2pft.internal"
"""End of the DNS names that stand for peers; a process with such a name is that peer to all others."""

FEDERATION = r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?"
_GENERATION = r"r([1-9]\d{0,5})\."
_URI = re.compile(rf"p2pft://({FEDERATION})/(?:(authority|coordinator)|peer/(0|[1-9]\d{{0,8}}))")


@dataclass(frozen=True)
class Identity:
    """The holder of a certificate.

    Attributes
    ----------
    federation : str
        The federation's name.
    holder : int or str
        The peer's number; ``authority`` for the authority itself, ``coordinator`` for the coordinator of its
        runs.
    """

    federation: str
    holder: Holder | Literal["authority"]

    @property
    def peer(self) -> int | None:
        """The peer's number; None for the authority and the coordinator."""
        return self.holder if isinstance(self.holder, int) else None

    @property
    def uri(self) -> str:
        """The identity as the certificate's URI."""
        who = self.holder if self.peer is None else f"peer/{self.peer}"
        return f"p2pft://{self.federation}/{who}"

    @property
    def name(self) -> str:
        """The holder in words, without the federation."""
        return f"the {self.holder}" if self.peer is None else f"peer {self.peer}"

    def __str__(self) -> str:
        return f"{self.name} of federation {self.federation!r}"


@dataclass(frozen=True)
class CertificateFacts:
    """The content of a certificate.

    Attributes
    ----------
    identity : Identity
        The certificate's holder.
    names : tuple of str
        The certificate's host names and IP addresses, but for the name that stands for the holder.
    not_before, not_after : datetime.datetime
        Begin and end of the certificate's validity, UTC.
    fingerprint : str
        SHA-256 of the certificate, in hexadecimal.
    serial : int
        The number that its authority gave to it alone.
    generation : int
        The number of its holder's revocations before it was issued.
    """

    identity: Identity
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    fingerprint: str
    serial: int
    generation: int

    @classmethod
    def of(cls, certificate: x509.Certificate) -> CertificateFacts:
        """Return the facts in ``certificate``.

        Raises
        ------
        ValueError
            When ``certificate`` does not name exactly one federation and holder.
        """
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound as error:
            raise ValueError("it has no names (subjectAltName)") from error
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        identity = identity_from(uris[0]) if len(uris) == 1 else None
        if identity is None:
            raise ValueError("it names no federation and peer (URI p2pft://FEDERATION/peer/NUMBER)")
        own = target_name(identity.federation, identity.holder)
        since = re.compile(_GENERATION + re.escape(own))
        known = names.get_values_for_type(x509.DNSName)
        hosts = [name for name in known if name != own and not since.fullmatch(name)]
        generations = [int(found[1]) for name in known if (found := since.fullmatch(name))]
        addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
        return cls(
            identity=identity,
            names=(*hosts, *addresses),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
            serial=certificate.serial_number,
            generation=max(generations, default=0),
        )


def target_name(federation: str, holder: Holder | Literal["authority"], generation: int = 0) -> str:
    """Return the DNS name that stands for a holder in certificates of a generation; it resolves nowhere."""
    who = f"peer-{holder}" if isinstance(holder, int) else holder
    since = f"r{generation}." if generation else ""
    return f"{since}{who}.{federation}{OWN_NAMES}"


def identity_from(uri: str) -> Identity | None:
    """Return the holder that a certificate's URI names; None if it names none."""
    if (found := _URI.fullmatch(uri)) is None:
        return None
    federation, role, number = found.groups()
    if number is not None:
        return Identity(federation, int(number))
    return Identity(federation, "coordinator" if role == "coordinator" else "authority")


def serial_text(serial: int) -> str:
    """Return a certificate's serial number as people and other programs write it, in hexadecimal."""
    return f"{serial:X}"


@lru_cache(maxsize=1024)
def facts_of(pem: bytes) -> CertificateFacts:
    """Return the content of a certificate in PEM form; cached by its bytes, since every payload asks.

    Raises
    ------
    ValueError
        When ``pem`` is not a certificate of a federation.
    """
    return CertificateFacts.of(x509.load_pem_x509_certificate(pem))


def read_certificates(file: Path) -> list[x509.Certificate]:
    """Return the certificates in a PEM file, at least one.

    Raises
    ------
    ConfigError
        When the file is missing, cannot be read, or holds no certificate.
    """
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{file}: {error.strerror or error}; 'p2pft certs issue' makes a peer's folder, "
            "'p2pft certs init' an authority's"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{file} holds no certificate in PEM form; copy or issue it again") from error


def read_certificate(file: Path) -> CertificateFacts:
    """Return the content of the first certificate in a PEM file.

    Raises
    ------
    ConfigError
        When the file cannot be read, or is no certificate of a federation.
    """
    return facts_in(read_certificates(file)[0], file)


def facts_in(certificate: x509.Certificate, file: Path) -> CertificateFacts:
    """Return the content of a ``certificate`` that was read from ``file``.

    Raises
    ------
    ConfigError
        When ``certificate`` is not one of a federation.
    """
    try:
        return CertificateFacts.of(certificate)
    except ValueError as error:
        raise ConfigError(
            f"{file} holds a certificate of no federation: {error}; make one with 'p2pft certs'"
        ) from error


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Return whether ``authority`` has signed ``certificate``; dates are not looked at."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def utc_now() -> datetime:
    """Return the present time, UTC, by which certificates are made and checked."""
    return datetime.now(UTC)
