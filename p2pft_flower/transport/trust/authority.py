"""A federation's authority (CA): it makes the certificates of peers and coordinator, and renews them."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport.trust import certificates
from p2pft_flower.transport.trust.certificates import (
    CA_FILE,
    CA_KEY_FILE,
    FEDERATION,
    KEY_FILE,
    OWN_NAMES,
    PEER_FILE,
    CertificateFacts,
    Holder,
    Identity,
    facts_in,
    is_issued_by,
    read_certificates,
    target_name,
)

__all__ = ["create_authority", "issue", "renew"]

_CURVE = ec.SECP256R1()
_CLOCKS = timedelta(minutes=5)
"""Time by which a peer's clock may be behind the authority's: the peer still accepts a new certificate."""


def create_authority(folder: Path, federation: str, days: float = 3650) -> CertificateFacts:
    """Make a federation's authority: ``ca.pem`` and ``ca.key`` (mode 0600) in ``folder`` (0700).

    Parameters
    ----------
    folder : Path
        The authority's folder, made if it is missing; must not hold an authority or a peer's files.
    federation : str
        Lower-case letters, digits and hyphens, 40 at most: it becomes part of DNS names.
    days : float
        Days for which the authority's certificate is valid.

    Raises
    ------
    ConfigError
        When the name or the time cannot be used, or a file is there already or cannot be written.
    """
    if not re.fullmatch(FEDERATION, federation):
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
        Host names and IP addresses, without port, at which the holder is reached. Nothing depends on them;
        they are for people and other programs. None may end in ``.p2pft.internal``.
    days : float
        Days for which the certificate is valid; never longer than the authority's own certificate.

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

    The old certificate says who the holder is. So an authority in the caller's own files must have signed it:
    the files in ``folder``, ``ca.pem`` included, come from the peer and prove nothing.

    ``ca.pem`` keeps the authorities that are still valid and gains ``authority``'s: while authorities
    change, a peer trusts the old and the new one.

    Parameters
    ----------
    authority : Path
        The authority's folder: the one that issued the certificate, or a new one of the same federation.
    folder : Path
        The holder's folder.
    days : float
        Days for which the new certificate is valid.
    previous : Path, optional
        While authorities change: the ``ca.pem`` of the authority that issued the old certificate, from the
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
    kept = [c for c in read_certificates(folder / CA_FILE) if c.not_valid_after_utc > certificates.utc_now()]
    trusted = dict.fromkeys([*kept, *roots])
    if (folder / CA_KEY_FILE).exists():
        raise ConfigError(f"{folder / CA_KEY_FILE}: an authority's key has no place beside a peer's; move it")
    return _sign_and_write(folder, trusted, root, root_key, old.identity, old.names, days)


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
    """Return a builder with all that certificates have in common; without ``root`` it is self-issued."""
    if not 0 < days <= 36500:
        raise ConfigError(f"days = {days:g}: must be above 0 and at most 36500")
    begin = certificates.utc_now()
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
    """Write a new key and certificate for ``identity`` to ``folder``, with the authorities in ``trusted``."""
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
    if f".{name}".endswith(OWN_NAMES):
        raise ConfigError(
            f"address {address!r} ends in {OWN_NAMES}: such a name proves which peer its bearer is, and is "
            "given by --peer alone; leave it out, or issue the certificate anew if it is in one already"
        )
    return x509.DNSName(name)


def _load_authority(
    folder: Path,
) -> tuple[list[x509.Certificate], x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return all certificates of ca.pem, the certificate to which ca.key belongs, and that key."""
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
    if own[0].not_valid_after_utc <= certificates.utc_now():
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
