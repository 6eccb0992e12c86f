"""A federation's certificates: its authority's (CA), one a peer with the peer's number, the coordinator's.

The authority's folder holds ``ca.pem`` and ``ca.key``; a peer's folder ``ca.pem``, ``peer.pem`` and
``peer.key``. A peer's certificate has the URI ``p2pft://<federation>/peer/<i>`` and the DNS name
``peer-<i>.<federation>.p2pft.internal``. A client asks for that name at any address of the peer, so that the
process that answers proves to be peer i of this federation. The coordinator's has the URI
``p2pft://<federation>/coordinator`` and the name ``coordinator.<federation>.p2pft.internal``: peers accept
one call of it, the stop of a run, and send it their progress. Its folder has the files of a peer's.

The functions that make certificates and those that read them share names and files: so it is longer than 500
lines.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from p2pft_flower.errors import ConfigError

__all__ = [
    "CA_FILE",
    "CA_KEY_FILE",
    "KEY_FILE",
    "PEER_FILE",
    "CertificateFacts",
    "Holder",
    "Identity",
    "create_authority",
    "facts_in",
    "identity_of",
    "is_issued_by",
    "issue",
    "read_certificate",
    "read_certificates",
    "renew",
    "target_name",
    "utc_now",
]

Holder = int | Literal["coordinator"]
"""A holder of a certificate from an authority: a peer, by its number, or the coordinator."""

CA_FILE, CA_KEY_FILE = "ca.pem", "ca.key"
PEER_FILE, KEY_FILE = "peer.pem", "peer.key"

_CURVE = ec.SECP256R1()
_CLOCKS = timedelta(minutes=5)
"""Time that a peer's clock may be behind the authority's without the new certificate being refused."""

_OWN_NAMES = ".p2pft.internal"
"""End of the DNS names that stand for peers; a process with such a name is that peer to all others."""

_FEDERATION = r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?"
_URI = re.compile(rf"p2pft://({_FEDERATION})/(?:(authority|coordinator)|peer/(0|[1-9]\d{{0,8}}))")


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
        Its holder.
    names : tuple of str
        The host names and IP addresses in it, without the one that stands for federation and peer.
    not_before, not_after : datetime.datetime
        Begin and end of its validity, UTC.
    fingerprint : str
        SHA-256 of the certificate, in hexadecimal.
    """

    identity: Identity
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    fingerprint: str

    @classmethod
    def of(cls, certificate: x509.Certificate) -> CertificateFacts:
        """Read ``certificate``.

        Raises
        ------
        ValueError
            When it is none of a federation's.
        """
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound as error:
            raise ValueError("it has no names (subjectAltName)") from error
        found = [_URI.fullmatch(uri) for uri in names.get_values_for_type(x509.UniformResourceIdentifier)]
        if len(found) != 1 or found[0] is None:
            raise ValueError("it names no federation and peer (URI p2pft://FEDERATION/peer/NUMBER)")
        federation, role, number = found[0].groups()
        if number is not None:
            identity = Identity(federation, int(number))
        else:
            identity = Identity(federation, "coordinator" if role == "coordinator" else "authority")
        own = target_name(federation, identity.holder)
        hosts = (name for name in names.get_values_for_type(x509.DNSName) if name != own)
        addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
        return cls(
            identity=identity,
            names=(*hosts, *addresses),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        )


def target_name(federation: str, holder: Holder | Literal["authority"]) -> str:
    """Return the DNS name that stands for a holder in certificates; it resolves nowhere."""
    who = f"peer-{holder}" if isinstance(holder, int) else holder
    return f"{who}.{federation}{_OWN_NAMES}"


@lru_cache(maxsize=1024)
def identity_of(pem: bytes) -> Identity:
    """Return the holder of a certificate in PEM form; cached by its bytes, since every payload asks.

    Raises
    ------
    ValueError
        When it is none of a federation's.
    """
    return CertificateFacts.of(x509.load_pem_x509_certificate(pem)).identity


def create_authority(folder: Path, federation: str, days: float = 3650) -> CertificateFacts:
    """Make a federation's authority: ``ca.pem`` and ``ca.key`` (mode 0600) in ``folder`` (0700).

    Parameters
    ----------
    folder : Path
        The authority's folder, made if it is missing; must not hold an authority or a peer's files.
    federation : str
        Lower-case letters, digits and hyphens, 40 at most: it becomes part of DNS names.
    days : float
        Days for which it is valid.

    Raises
    ------
    ConfigError
        When the name or the time cannot be used, or a file is there already or cannot be written.
    """
    if not re.fullmatch(_FEDERATION, federation):
        raise ConfigError(
            f"federation {federation!r}: use lower-case letters, digits and hyphens inside, at most 40"
        )
    key = ec.generate_private_key(_CURVE)
    certificate = (
        _builder(Identity(federation, "authority"), (), key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        # A site that trusts several authorities must not have to fear that one speaks for another's
        # federation.
        .add_extension(
            x509.NameConstraints(
                permitted_subtrees=[x509.UniformResourceIdentifier(federation)], excluded_subtrees=None
            ),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    _refuse_to_overwrite(folder)
    _write(folder, {CA_FILE: _pem(certificate), CA_KEY_FILE: _key_pem(key)})
    return CertificateFacts.of(certificate)


def issue(
    authority: Path, folder: Path, holder: Holder, addresses: Iterable[str] = (), days: float = 365
) -> CertificateFacts:
    """Make a peer's folder, or the coordinator's: ``ca.pem``, ``peer.pem`` and ``peer.key``, all 0600.

    With its certificate the coordinator can stop a run of peers that have certificates (``flwr stop``), and
    listen to the run's progress.

    Parameters
    ----------
    authority : Path
        The authority's folder.
    folder : Path
        The holder's folder, made if it is missing; must not hold certificates yet.
    holder : int or str
        The peer's number, from 0, or ``coordinator``.
    addresses : iterable of str
        Host names and IP addresses the peer is reached at, without port. Nothing depends on them; they are
        for people and other programs. None may end in ``.p2pft.internal``.
    days : float
        Days for which it is valid; never longer than the authority's own certificate.

    Raises
    ------
    ConfigError
        When the authority cannot be read, or a value cannot be used, or a file is there already or cannot
        be written.
    """
    if holder != "coordinator" and not 0 <= holder < 10**9:
        raise ConfigError(f"peer {holder}: peers are numbered from 0")
    _refuse_to_overwrite(folder)
    roots, root, root_key = _load_authority(authority)
    identity = Identity(facts_in(root, authority / CA_FILE).identity.federation, holder)
    return _sign_and_write(folder, roots, root, root_key, identity, addresses, days)


def renew(authority: Path, folder: Path, days: float = 365, previous: Path | None = None) -> CertificateFacts:
    """Replace a peer's, or the coordinator's, key and certificate by new ones for the same holder and names.

    The holder is taken from the old certificate, which must therefore be signed by an authority of the
    caller's own files: the files in ``folder``, its ``ca.pem`` included, come from the peer and prove
    nothing.

    ``ca.pem`` keeps the authorities that are still valid and gains ``authority``'s: while authorities
    change, a peer trusts the old and the new one.

    Parameters
    ----------
    authority : Path
        The authority's folder: the one that issued the certificate, or a new one of the same federation.
    folder : Path
        The peer's folder.
    days : float
        Days for which the new certificate is valid.
    previous : Path, optional
        While authorities change: the ``ca.pem`` of the one that issued the old certificate, from the
        caller's own copy.

    Raises
    ------
    ConfigError
        When authority or folder cannot be read or written, or they are of different federations, or the old
        certificate was not issued by ``authority`` or ``previous``.
    """
    roots, root, root_key = _load_authority(authority)
    certificate = read_certificates(folder / PEER_FILE)[0]
    old = facts_in(certificate, folder / PEER_FILE)
    federation = CertificateFacts.of(root).identity.federation
    if old.identity.holder == "authority" or old.identity.federation != federation:
        raise ConfigError(
            f"{folder / PEER_FILE} is for {old.identity}, but {authority} is the authority of federation "
            f"{federation!r}: renew with the authority of the same federation"
        )
    vouching = roots if previous is None else [*roots, *read_certificates(previous)]
    if not any(is_issued_by(certificate, own) for own in vouching):
        files = str(authority / CA_FILE) if previous is None else f"{authority / CA_FILE} or {previous}"
        raise ConfigError(
            f"{folder / PEER_FILE} says {old.identity}, but was not issued by an authority in {files}: if "
            "another authority of yours did, give that one's ca.pem (--previous), and never the one of the "
            "peer's folder; otherwise issue a new certificate to whom you know to be that peer"
        )
    kept = [c for c in read_certificates(folder / CA_FILE) if c.not_valid_after_utc > utc_now()]
    trusted = dict.fromkeys([*kept, *roots])
    if (folder / CA_KEY_FILE).exists():
        raise ConfigError(f"{folder / CA_KEY_FILE}: an authority's key has no place beside a peer's; move it")
    return _sign_and_write(folder, trusted, root, root_key, old.identity, old.names, days)


def read_certificates(file: Path) -> list[x509.Certificate]:
    """Return the certificates in a PEM file, one at least.

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
    """Return the content of a ``certificate`` from ``file``.

    Raises
    ------
    ConfigError
        When it is no certificate of a federation.
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
    """Return the time by which certificates are made and checked."""
    return datetime.now(UTC)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    identity: Identity,
    names: Iterable[x509.GeneralName],
    key: ec.EllipticCurvePrivateKey,
    days: float,
    root: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    """Return a builder with all that certificates have in common; one without a ``root`` is its own."""
    if not 0 < days <= 36500:
        raise ConfigError(f"days = {days:g}: must be above 0 and at most 36500")
    begin = utc_now()
    end = begin + timedelta(days=days)
    common_name = f"{identity.federation} {identity.name.removeprefix('the ')}"
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "p2pft"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
    uri = x509.UniformResourceIdentifier(identity.uri)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if root is None else root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _CLOCKS)
        .not_valid_after(end if root is None else min(end, root.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([uri, *names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _sign_and_write(
    folder: Path,
    trusted: Iterable[x509.Certificate],
    root: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
    identity: Identity,
    addresses: Iterable[str],
    days: float,
) -> CertificateFacts:
    """Make a peer's or the coordinator's new key and certificate, in a folder with whom it trusts."""
    own_name = x509.DNSName(target_name(identity.federation, identity.holder))
    names = (own_name, *(_general_name(address) for address in dict.fromkeys(addresses)))
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    issuer_key = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    key = ec.generate_private_key(_CURVE)
    certificate = (
        _builder(identity, names, key, days, root)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False
        )
        .sign(root_key, hashes.SHA256())
    )
    authorities = b"".join(map(_pem, trusted))
    _write(folder, {CA_FILE: authorities, PEER_FILE: _pem(certificate), KEY_FILE: _key_pem(key)})
    return CertificateFacts.of(certificate)


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address.strip("[]")))
    except ValueError:
        pass
    label = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    name = address.removesuffix(".")
    if len(address) > 253 or not re.fullmatch(rf"{label}(?:\.{label})*", name):
        raise ConfigError(f"address {address!r} is neither a host name nor an IP address (without a port)")
    name = name.lower()
    if f".{name}".endswith(_OWN_NAMES):
        raise ConfigError(
            f"address {address!r} ends in {_OWN_NAMES}: such a name proves which peer its bearer is, and is "
            "given by --peer alone; leave it out, or issue the certificate anew if it is in one already"
        )
    return x509.DNSName(name)


def _load_authority(
    folder: Path,
) -> tuple[list[x509.Certificate], x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return all certificates of ca.pem, the one that ca.key belongs to, and that key."""
    roots = read_certificates(folder / CA_FILE)
    file = folder / CA_KEY_FILE
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(
            f"{file}: {error.strerror or error}; give the authority's own folder ('p2pft certs init')"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file} is no private key in PEM form: restore it from a backup") from error
    own = [root for root in roots if root.public_key() == key.public_key()]
    if not own or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{file} does not belong to {folder / CA_FILE}: restore both from a backup")
    facts = facts_in(own[0], folder / CA_FILE)
    if facts.identity.holder != "authority":
        raise ConfigError(f"{folder} is the folder of {facts.identity}, not of an authority")
    if own[0].not_valid_after_utc <= utc_now():
        raise ConfigError(
            f"{folder / CA_FILE} expired on {own[0].not_valid_after_utc:%Y-%m-%d}: make a new authority with "
            "'p2pft certs init' and renew every peer's certificate with it"
        )
    return roots, own[0], key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _refuse_to_overwrite(folder: Path) -> None:
    for name in (CA_FILE, CA_KEY_FILE, PEER_FILE, KEY_FILE):
        if os.path.lexists(folder / name):
            raise ConfigError(
                f"{folder / name} is there already and is not overwritten: choose another folder, or replace "
                "a peer's certificate with 'p2pft certs renew'"
            )


def _write(folder: Path, contents: dict[str, bytes]) -> None:
    """Write files (0600) into ``folder``, made (0700) if missing; each appears whole or not at all."""
    written: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            for name, content in contents.items():
                part = folder / f".{name}.{os.getpid()}"
                written.append((part, folder / name))
                with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
            for part, file in written:
                part.replace(file)
        finally:
            for part, _ in written:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder} cannot be written: {error.strerror or error}"
        ) from error
