"""Mutual TLS between peers: a peer's credentials, checked when loaded, and why a handshake fails.

gRPC's Python interface has no setting for the lowest version of TLS. It is 1.3 here for two reasons:

- A server looks at the version that each connection negotiated and refuses any but TLS 1.3 before it parses
  anything (`PeerServer`). Two hosts of this package always negotiate 1.3, and TLS 1.3 itself detects an
  attacker who talks them down (RFC 8446, 4.1.3).
- With `TLS13_ENVIRONMENT` in the environment before gRPC is imported, TLS 1.2 fails in the handshake
  already, on both sides: the one suite that is left to TLS 1.2 needs an RSA certificate, and those of a
  federation are ECDSA.
"""

from __future__ import annotations

import socket
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport.trust import certificates
from p2pft_flower.transport.trust.certificates import (
    CA_FILE,
    CA_KEY_FILE,
    CRL_FILE,
    KEY_FILE,
    PEER_FILE,
    CertificateFacts,
    Holder,
    Identity,
    facts_in,
    facts_of,
    is_issued_by,
    read_certificates,
    target_name,
)
from p2pft_flower.transport.trust.expiry import Expiry
from p2pft_flower.transport.trust.revocation import Revocations
from p2pft_flower.transport.trust.signatures import Signatures
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.addresses import Address, parse_address
from p2pft_flower.transport.wire.errors import Refused

__all__ = ["TLS13_ENVIRONMENT", "Credentials"]

TLS13_ENVIRONMENT = {"GRPC_SSL_CIPHER_SUITES": "ECDHE-RSA-AES256-GCM-SHA384"}
"""Environment variables with which gRPC offers a federation's certificates over TLS 1.3 only. They hold for
every gRPC connection of the process, and do not affect the suites of TLS 1.3."""

_RENEW = "renew it with 'p2pft certs renew'"
_RENEW_AUTHORITY = "make a new authority and renew the certificates with it"
_HAS_EXPIRED = 10
"""OpenSSL's number for a certificate whose time is over (X509_V_ERR_CERT_HAS_EXPIRED)."""
_OTHER_NAME = 62
"""OpenSSL's number for a certificate without the name asked for (X509_V_ERR_HOSTNAME_MISMATCH)."""


@dataclass(frozen=True)
class Credentials:
    """A peer's, or the coordinator's, certificate, key and authorities; see :meth:`load`.

    Attributes
    ----------
    folder : Path
        The folder from which they were loaded.
    facts : CertificateFacts
        The certificate's content.
    warnings : tuple of str
        A warning for each certificate that expires soon.
    expiries : tuple of Expiry
        The end of the certificate, and of those of its issuing authorities.
    revocations : Revocations
        The revoked certificates, by the folder's ``crl.pem``, which may change while a run lasts.
    """

    folder: Path
    facts: CertificateFacts
    warnings: tuple[str, ...]
    expiries: tuple[Expiry, ...]
    revocations: Revocations = field(repr=False, compare=False)
    _authorities: bytes = field(repr=False)
    _chain: bytes = field(repr=False)
    _key: bytes = field(repr=False)
    _context: ssl.SSLContext = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # OpenSSL takes a key from a file only. Read now, so that `diagnose` shows what gRPC shows, also when
        # the files have been renewed or moved meanwhile.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self._authorities.decode())
        try:
            context.load_cert_chain(self.folder / PEER_FILE, self.folder / KEY_FILE)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(
                f"{self.folder / PEER_FILE} and {KEY_FILE} cannot be used together ({error}): if they were "
                f"changed just now, try again; otherwise {_RENEW}"
            ) from error
        context.set_alpn_protocols(["h2"])
        object.__setattr__(self, "_context", context)

    @classmethod
    def load(cls, folder: Path, holder: Holder | None = None) -> Credentials:
        """Read and check a peer's folder, or the coordinator's.

        Parameters
        ----------
        folder : Path
            A folder with ``ca.pem``, ``peer.pem`` and ``peer.key``, and with ``crl.pem`` if there is a list
            of revoked certificates.
        holder : int or str, optional
            The required holder: a peer, or ``coordinator``; default any peer.

        Raises
        ------
        ConfigError
            When a file is missing or cannot be read, the key does not fit or can be read by others, the
            certificate is expired, not valid yet, for somebody else, or from none of the authorities in
            ca.pem, or revoked, these are of another federation, the list of revoked certificates is damaged
            or not theirs, or an authority's key lies there; the message names the file and the remedy.
        """
        file, authority_file, key_file = folder / PEER_FILE, folder / CA_FILE, folder / KEY_FILE
        certificate = read_certificates(file)[0]
        facts = facts_in(certificate, file)
        who = facts.identity
        if holder == "coordinator":
            if who.holder != holder:
                raise ConfigError(
                    f"{file} is for {who}, not for the coordinator: give the folder that 'p2pft certs issue "
                    "--coordinator' made"
                )
        elif who.peer is None or (holder is not None and who.peer != holder):
            wanted = "a peer" if holder is None else f"peer {holder}"
            raise ConfigError(
                f"{file} is for {who}, not for {wanted}: give the folder that was issued for it, or set "
                "peer-id right"
            )
        if (folder / CA_KEY_FILE).exists():
            raise ConfigError(
                f"{folder / CA_KEY_FILE}: the authority's key must not lie on a peer's machine; move it away"
            )
        _check_dates(file, facts, _RENEW)
        authorities = [(root, facts_in(root, authority_file)) for root in read_certificates(authority_file)]
        for _, root in authorities:
            if root.identity.federation != who.federation or root.identity.holder != "authority":
                raise ConfigError(
                    f"{authority_file} holds a certificate for {root.identity}, but {file} is for {who}: use "
                    "the ca.pem of the same federation"
                )
        issuers = [root for certified, root in authorities if is_issued_by(certificate, certified)]
        if not issuers:
            raise ConfigError(
                f"{file} was issued by none of the authorities in {authority_file}: copy both from the same "
                "'p2pft certs issue', or renew the certificate with the present authority"
            )
        for root in issuers:
            _check_dates(authority_file, root, _RENEW_AUTHORITY)
        revocations = Revocations(folder / CRL_FILE, [certified for certified, _ in authorities])
        if (revoked := revocations.reason(facts)) is not None:
            raise ConfigError(f"{file}: {revoked}")
        key = _load_key(key_file, certificate)
        expiries = (
            Expiry(file, facts, _RENEW),
            *(Expiry(authority_file, root, _RENEW_AUTHORITY) for root in issuers),
        )
        warnings = tuple(str(expiry) for expiry in expiries if expiry.stage)
        pems = (root.public_bytes(serialization.Encoding.PEM) for root, _ in authorities)
        chain = certificate.public_bytes(serialization.Encoding.PEM)
        return cls(folder, facts, warnings, expiries, revocations, b"".join(pems), chain, key)

    @property
    def peer(self) -> int | None:
        """The number of the peer that holds the certificate; None for the coordinator's."""
        return self.facts.identity.peer

    @property
    def federation(self) -> str:
        """The federation's name."""
        return self.facts.identity.federation

    def expired(self) -> str | None:
        """Return a sentence on the expired certificate of this host and the remedy; None if none expired."""
        return next((str(e) for e in self.expiries if e.left <= timedelta(0)), None)

    def target(self, holder: Holder) -> str:
        """Return the name that TLS must find in a holder's certificate, which no revoked one has."""
        generation = self.revocations.generation(Identity(self.federation, holder))
        return target_name(self.federation, holder, generation)

    def revoked(self, holder: Holder) -> str | None:
        """Return a sentence on the last revocation of a holder's certificate; None if there was none."""
        return self.revocations.of(Identity(self.federation, holder))

    def revoked_since(self, holder: Holder) -> float | None:
        """Return the time (time.monotonic) at which a revocation of a holder came into force here.

        None if there was none since the credentials were loaded.
        """
        return self.revocations.since(Identity(self.federation, holder))

    def server(self) -> grpc.ServerCredentials:
        """Return gRPC's credentials of a server that asks each client for the federation's certificate."""
        return grpc.ssl_server_credentials([(self._key, self._chain)], self._authorities, True)

    def channel(self) -> grpc.ChannelCredentials:
        """Return gRPC's credentials of a client that shows its own certificate."""
        return grpc.ssl_channel_credentials(self._authorities, self._key, self._chain)

    def signatures(self) -> Signatures:
        """Return an object that signs as this peer, and checks signatures of the federation's other peers.

        Raises
        ------
        ConfigError
            When the key is no elliptic-curve key.
        """
        key = serialization.load_pem_private_key(self._key, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(
                f"{self.folder / KEY_FILE} is no elliptic-curve key, as 'p2pft certs' makes them: {_RENEW}"
            )
        return self._signatures(key)

    def checked_signatures(self) -> Signatures:
        """Return an object that checks signatures of the federation's peers, and signs nothing."""
        return self._signatures(None)

    def _signatures(self, key: ec.EllipticCurvePrivateKey | None) -> Signatures:
        authorities = tuple(x509.load_pem_x509_certificates(self._authorities))
        return Signatures(x509.load_pem_x509_certificates(self._chain)[0], key, authorities)

    def identify(self, proved: Mapping[str, Any]) -> Identity:
        """Return the holder of the certificate of a call's connection; gRPC has verified the certificate.

        Parameters
        ----------
        proved : mapping of str to sequence of bytes
            The properties of a call's connection over TCP that TLS proved, as gRPC has them.

        Returns
        -------
        Identity
            A peer of this federation, or its coordinator, from which only a stop is accepted.

        Raises
        ------
        Refused
            When the connection is not TLS 1.3, or the certificate is for neither of these, or revoked.
        """
        version = b", ".join(proved.get("ssl_tls_version", ())).decode()
        if version != "TLSv1.3":
            told = version or "a version of TLS that gRPC does not tell (grpcio 1.85 or newer does)"
            raise Refused(pb.NOT_AUTHENTIC, f"the connection uses {told}, not TLSv1.3")
        try:
            facts = facts_of(proved["x509_pem_cert"][0])
        except (KeyError, ValueError) as error:
            raise Refused(pb.NOT_AUTHENTIC, f"the certificate cannot be used: {error}") from error
        who = facts.identity
        if who.holder == "authority" or who.federation != self.federation:
            raise Refused(
                pb.NOT_AUTHENTIC,
                f"the certificate is for {who}; this is a peer of federation {self.federation!r}",
            )
        if (revoked := self.revocations.reason(facts)) is not None:
            raise Refused(pb.REVOKED, revoked)
        return who

    def diagnose(self, address: str, peer: int, timeout: float = 5.0) -> str | None:
        """Try a handshake with ``peer``; return the reason why it fails, None if it does not.

        None also if nobody is there. gRPC does not report to a client why a server refused its certificate;
        OpenSSL does. Raises no error of the network: the caller has an error to report already.

        Parameters
        ----------
        address : str
            The peer's ``host:port``; a ConfigError is raised if it has no such form.
        peer : int
            The peer that should answer there.
        timeout : float
            Longest wait for an answer, in seconds.
        """
        name = self.target(peer)
        try:
            let_in = _is_let_in(self._context, parse_address(address), name, timeout)
        except ssl.SSLCertVerificationError as error:
            return self._not_accepted(error, parse_address(address), peer, timeout)
        except ssl.SSLError as error:
            # Without a reason the connection was closed: by a relay in front of a host that is not there yet.
            if isinstance(error, ssl.SSLEOFError) or error.reason is None:
                return None
            return f"what listens there does not speak TLS 1.3: {error.reason}"
        except (OSError, UnicodeError):  # nobody there, or no host name; gRPC's own error says so
            return None
        if let_in:
            return None
        return (
            f"it closed the connection after seeing our certificate, {self.folder / PEER_FILE} (SHA-256 "
            f"{self.facts.fingerprint[:16]}…): "
        ) + (
            self.expired()
            or "is the authority that issued it in the ca.pem there, and the clock there right?"
        )

    def _not_accepted(
        self, error: ssl.SSLCertVerificationError, place: Address, peer: int, timeout: float
    ) -> str:
        """Return the reason, in words, why this host does not accept what a peer shows at ``place``."""
        if error.verify_code == _OTHER_NAME and (revoked := self.revoked(peer)) is not None:
            return revoked
        problem = f"the certificate shown there is not accepted here: {error.verify_message}"
        expired = error.verify_code == _HAS_EXPIRED
        found = self._shown(place, self.target(peer), timeout) if expired else None
        return problem if found is None else f"{problem}: that of {found}; {_RENEW} there"

    def _shown(self, place: Address, name: str, timeout: float) -> str | None:
        """Return holder and date of the expired certificate shown at ``place``, in words.

        None if no authority that this host trusts issued it.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # to look at it, not to trust it
        try:
            with (
                socket.create_connection((place.host, place.port), timeout) as plain,
                context.wrap_socket(plain, server_hostname=name) as secure,
            ):
                shown = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
            roots = x509.load_pem_x509_certificates(self._authorities)
            if not any(is_issued_by(shown, root) for root in roots):
                return None
            facts = CertificateFacts.of(shown)
        except (OSError, ValueError):
            return None
        return f"{facts.identity} expired on {facts.not_after:%Y-%m-%d %H:%M} UTC"


def _is_let_in(context: ssl.SSLContext, place: Address, name: str, timeout: float) -> bool:
    """Connect, and return whether the server keeps the connection after it saw this host's certificate."""
    with (
        socket.create_connection((place.host, place.port), timeout) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        # In TLS 1.3 the client's handshake ends before the server looks at its certificate. A server that
        # accepts it speaks HTTP/2 first; one that does not closes, and gRPC's says nothing before.
        try:
            return bool(secure.recv(1))
        except TimeoutError:  # it took its time, which is no refusal
            return True
        except OSError:
            return False


def _check_dates(file: Path, facts: CertificateFacts, remedy: str) -> None:
    now = certificates.utc_now()
    if now < facts.not_before:
        raise ConfigError(
            f"{file} is not valid before {facts.not_before:%Y-%m-%d %H:%M} UTC: is the clock here right?"
        )
    if now >= facts.not_after:
        raise ConfigError(f"{file} expired on {facts.not_after:%Y-%m-%d %H:%M} UTC: {remedy}")


def _load_key(file: Path, certificate: x509.Certificate) -> bytes:
    try:
        mode = file.stat().st_mode
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{file}: {error.strerror or error}; it is issued with the certificate and must be readable for "
            "the user who runs the SuperNode"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{file} can be read by others (mode {mode & 0o777:04o}): chmod 600 {file}")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file} is no private key in PEM form: issue or renew the certificate") from error
    if key.public_key() != certificate.public_key():
        raise ConfigError(
            f"{file} does not fit the certificate {file.with_name(PEER_FILE)}: copy both from the same "
            "'p2pft certs issue' or 'p2pft certs renew'"
        )
    return content
