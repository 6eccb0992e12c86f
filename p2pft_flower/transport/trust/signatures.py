"""Signatures with the keys of certificates: others can pass a peer's message on, but not change it."""

from __future__ import annotations

from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from p2pft_flower.transport.trust.certificates import CertificateFacts, is_issued_by

__all__ = ["MOST_CERTIFICATES", "Signatures"]

_SCHEME = ec.ECDSA(hashes.SHA256())

MOST_CERTIFICATES = 4
"""Number of a peer's latest certificates that count: so a renewal does not make older signatures void."""


class Signatures:
    """Signs as one peer of a federation, and checks the others' signatures. Not for several threads.

    The coordinator, which is no peer, only checks them.

    The dates of certificates are checked when a connection is made, not here: a signature that a peer made
    while its certificate was valid remains valid.

    Parameters
    ----------
    certificate : cryptography.x509.Certificate
        The certificate of the peer, or of the coordinator.
    key : EllipticCurvePrivateKey or None
        The private key of a peer's certificate; None for the coordinator.
    authorities : tuple of cryptography.x509.Certificate
        The federation's authorities.
    """

    def __init__(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey | None,
        authorities: tuple[x509.Certificate, ...],
    ) -> None:
        self._key, self._authorities = key, authorities
        self._federation = CertificateFacts.of(certificate).identity.federation
        self._known: dict[int, dict[bytes, ec.EllipticCurvePublicKey]] = {}
        self._verifies = lru_cache(4096)(self._verify)
        if key is not None:
            self.learn(certificate.public_bytes(serialization.Encoding.DER))

    def certificates(self, peer: int) -> tuple[bytes, ...]:
        """Return the certificates (DER) that are known of ``peer``."""
        return tuple(self._known.get(peer, ()))

    def learn(self, certificate: bytes) -> None:
        """Add a peer's certificate (DER) to the known ones.

        Raises
        ------
        ValueError
            When ``certificate`` is none of a peer of this federation; the message names the fault.
        """
        if any(certificate in known for known in self._known.values()):
            return
        loaded = x509.load_der_x509_certificate(certificate)
        who, key = CertificateFacts.of(loaded).identity, loaded.public_key()
        if who.peer is None or who.federation != self._federation:
            raise ValueError(f"a certificate for {who}, no peer of federation {self._federation!r}")
        if not any(is_issued_by(loaded, root) for root in self._authorities):
            raise ValueError(f"a certificate for {who} that none of the authorities has issued")
        if not isinstance(key, ec.EllipticCurvePublicKey):  # what another peer sends, not a caller's mistake
            raise ValueError(f"a certificate for {who} whose key is for no elliptic curve")  # noqa: TRY004
        known = self._known.setdefault(who.peer, {})
        known[certificate] = key
        while len(known) > MOST_CERTIFICATES:
            del known[next(iter(known))]

    def sign(self, content: bytes) -> bytes:
        """Return this peer's signature of ``content``."""
        if self._key is None:
            raise RuntimeError("the coordinator signs nothing")
        return self._key.sign(content, _SCHEME)

    def is_by(self, peer: int, content: bytes, signature: bytes) -> bool:
        """Tell whether ``signature``, of ``content``, is by the key of a certificate known of ``peer``."""
        return any(self._verifies(known, peer, content, signature) for known in self.certificates(peer))

    def _verify(self, certificate: bytes, peer: int, content: bytes, signature: bytes) -> bool:
        try:
            self._known[peer][certificate].verify(signature, content, _SCHEME)
        except InvalidSignature:
            return False
        return True
