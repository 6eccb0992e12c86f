"""A federation's authority (CA): it makes the certificates of peers and coordinator, and renews them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport.trust import certificates
from p2pft_flower.transport.trust.certificates import (
    CA_FILE,
    CA_KEY_FILE,
    CRL_FILE,
    FEDERATION,
    KEY_FILE,
    PEER_FILE,
    CertificateFacts,
    Holder,
    Identity,
    facts_in,
    is_issued_by,
    read_certificates,
    serial_text,
    target_name,
)
from p2pft_flower.transport.trust.files import (
    CURVE,
    general_name,
    key_pem,
    pem,
    refuse_to_overwrite,
    write_files,
)
from p2pft_flower.transport.trust.requests import read_request
from p2pft_flower.transport.trust.revocation import RevokedList, generation_of, newest, read_lists

__all__ = ["Authority", "create_authority", "issue", "issued_to", "load_authority", "renew", "sign_request"]

ISSUED_FOLDER = "issued"
"""The folder, in the authority's, of copies of all certificates that it has issued."""

_CLOCKS = timedelta(minutes=5)
"""Time by which a peer's clock may be behind the authority's: the peer still accepts a new certificate."""


class Authority(NamedTuple):
    """An authority's folder, as it was read.

    Attributes
    ----------
    folder : Path
        The folder.
    roots : list of cryptography.x509.Certificate
        All certificates of its ``ca.pem``.
    root : cryptography.x509.Certificate
        The one to which ``ca.key`` belongs.
    key : EllipticCurvePrivateKey
        That key.
    """

    folder: Path
    roots: list[x509.Certificate]
    root: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def federation(self) -> str:
        """The federation's name."""
        return facts_in(self.root, self.folder / CA_FILE).identity.federation

    def generation(self, holder: Identity) -> int:
        """Return the generation of the certificates that a holder gets now.

        Raises
        ------
        ConfigError
            When the authority's ``crl.pem`` cannot be read, or is not its own.
        """
        return generation_of(read_lists(self.folder / CRL_FILE, [self.root]), holder)


def create_authority(folder: Path, federation: str, days: float = 3650) -> CertificateFacts:
    """Make a federation's authority: ``ca.pem`` and ``ca.key`` (mode 0600) in ``folder`` (0700).

    Parameters
    ----------
    folder : Path
        The authority's folder, made if it is missing; must not hold an authority or a peer's files.
    federation : str
        The federation's name: at most 40 lower-case letters, digits and, inside, hyphens, since it becomes
        part of DNS names.
    days : float
        Days for which the authority's certificate is valid.

    Returns
    -------
    CertificateFacts
        The facts of the authority's certificate.

    Raises
    ------
    ConfigError
        When ``federation`` or ``days`` cannot be used, or a file is there already or cannot be written.
    """
    if not re.fullmatch(FEDERATION, federation):
        raise ConfigError(
            f"federation {federation!r}: use lower-case letters, digits and hyphens inside, at most 40"
        )
    key = ec.generate_private_key(CURVE)
    certificate = (
        _builder(Identity(federation, "authority"), (), key.public_key(), days)
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
    refuse_to_overwrite(folder)
    write_files(folder, {CA_FILE: pem(certificate), CA_KEY_FILE: key_pem(key)})
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
    refuse_to_overwrite(folder)
    own = load_authority(authority)
    identity = identity_of(own.federation, holder)
    names = [general_name(address) for address in dict.fromkeys(addresses)]
    return _sign_and_write(own, folder, own.roots, identity, names, days, own.generation(identity))


def sign_request(
    authority: Path, folder: Path, holder: Holder, request: Path, days: float = 365
) -> CertificateFacts:
    """Certify the key of a holder's own request: ``ca.pem`` and ``peer.pem`` in ``folder``, no key.

    Parameters
    ----------
    authority : Path
        The authority's folder.
    folder : Path
        A folder for the two files, made if it is missing; must not hold certificates yet.
    holder : int or str
        The holder from whom the request is known to have come: a peer, or ``coordinator``.
    request : Path
        The request: ``peer.csr`` of `requests.make_request`. Its names become the certificate's.
    days : float
        Days for which the certificate is valid.

    Raises
    ------
    ConfigError
        When the authority or the request cannot be read, the request is for another holder or federation,
        is not signed with its own key, or its key is not of the kind that these certificates have; or a file
        is there already or cannot be written.
    """
    refuse_to_overwrite(folder)
    own = load_authority(authority)
    identity = identity_of(own.federation, holder)
    key, names = read_request(request, identity)
    return _sign_and_write(own, folder, own.roots, identity, names, days, own.generation(identity), key)


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
    own = load_authority(authority)
    certificate = read_certificates(folder / PEER_FILE)[0]
    old = facts_in(certificate, folder / PEER_FILE)
    if old.identity.holder == "authority" or old.identity.federation != own.federation:
        raise ConfigError(
            f"{folder / PEER_FILE} is for {old.identity}, but {authority} is the authority of federation "
            f"{own.federation!r}: renew with the authority of the same federation"
        )
    vouching = own.roots if previous is None else [*own.roots, *read_certificates(previous)]
    if not any(is_issued_by(certificate, root) for root in vouching):
        files = str(authority / CA_FILE) if previous is None else f"{authority / CA_FILE} or {previous}"
        raise ConfigError(
            f"{folder / PEER_FILE} says {old.identity}, but was not issued by an authority in {files}: if "
            "another authority of yours did, give that one's ca.pem (--previous), and never the one of the "
            "peer's folder; otherwise issue a new certificate to whom you know to be that peer"
        )
    kept = [c for c in read_certificates(folder / CA_FILE) if c.not_valid_after_utc > certificates.utc_now()]
    trusted = list(dict.fromkeys([*kept, *own.roots]))
    if (folder / CA_KEY_FILE).exists():
        raise ConfigError(f"{folder / CA_KEY_FILE}: an authority's key has no place beside a peer's; move it")
    names = [general_name(address) for address in old.names]
    # Another authority's list may have revoked certificates of the holder, of which this one knows nothing.
    generation = max(own.generation(old.identity), old.generation)
    there = read_lists(folder / CRL_FILE, [*own.roots, *read_certificates(folder / CA_FILE)])
    return _sign_and_write(own, folder, trusted, old.identity, names, days, generation, others=there)


def identity_of(federation: str, holder: Holder) -> Identity:
    """Return the identity of a holder in a federation; raise ConfigError if there can be no such peer."""
    if holder != "coordinator" and not 0 <= holder < 10**9:
        raise ConfigError(f"peer {holder}: peers are numbered from 0")
    return Identity(federation, holder)


def issued_to(authority: Path, holder: Identity) -> list[x509.Certificate]:
    """Return the certificates that an authority has issued to a holder, as far as it has copies of them.

    Raises
    ------
    ConfigError
        When a copy cannot be read.
    """
    files = sorted((authority / ISSUED_FOLDER).glob("*.pem"))
    found = [(certificate, file) for file in files for certificate in read_certificates(file)]
    return [certificate for certificate, file in found if facts_in(certificate, file).identity == holder]


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
    key: ec.EllipticCurvePublicKey,
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
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _CLOCKS)
        .not_valid_after(end if root is None else min(end, root.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([uri, *names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _sign_and_write(
    own: Authority,
    folder: Path,
    trusted: Sequence[x509.Certificate],
    identity: Identity,
    names: Sequence[x509.GeneralName],
    days: float,
    generation: int,
    key: ec.EllipticCurvePublicKey | None = None,
    others: Sequence[RevokedList] = (),
) -> CertificateFacts:
    """Write a new certificate for ``identity`` to ``folder``, and a new key unless a public one is given.

    With it go the authorities in ``trusted``, and the lists of revoked certificates: the authority's own, and
    ``others`` of theirs. The authority keeps a copy of the certificate.
    """
    made = ec.generate_private_key(CURVE)
    certificate = _certify(own, identity, names, days, generation, key or made.public_key())
    facts = CertificateFacts.of(certificate)
    lists = newest([*read_lists(own.folder / CRL_FILE, [own.root]), *others], trusted)
    revoked = {CRL_FILE: b"".join(one.pem for one in lists)} if lists else {}
    copy = f"{identity.name.replace(' ', '-')}-{serial_text(facts.serial)}.pem"
    write_files(own.folder / ISSUED_FOLDER, {copy: pem(certificate)})
    keys = {KEY_FILE: key_pem(made)} if key is None else {}
    write_files(
        folder, {CA_FILE: b"".join(map(pem, trusted)), **revoked, PEER_FILE: pem(certificate), **keys}
    )
    return facts


def _certify(
    own: Authority,
    identity: Identity,
    names: Sequence[x509.GeneralName],
    days: float,
    generation: int,
    key: ec.EllipticCurvePublicKey,
) -> x509.Certificate:
    proving = [target_name(identity.federation, identity.holder, g) for g in range(generation + 1)]
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    issuer_key = own.root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(identity, [*map(x509.DNSName, proving), *names], key, days, own.root)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False
        )
        .sign(own.key, hashes.SHA256())
    )


def load_authority(folder: Path) -> Authority:
    """Read an authority's folder.

    Raises
    ------
    ConfigError
        When it cannot be read, is none of an authority, or the authority has expired.
    """
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
    return Authority(folder, roots, own[0], key)
