"""Requests for certificates (PKCS #10): a site makes its key itself, and the key never leaves it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport.trust.certificates import KEY_FILE, Identity, identity_from
from p2pft_flower.transport.trust.files import (
    CURVE,
    general_name,
    key_pem,
    refuse_to_overwrite,
    write_files,
)

__all__ = ["REQUEST_FILE", "make_request", "read_request"]

REQUEST_FILE = "peer.csr"


def make_request(folder: Path, identity: Identity, addresses: Iterable[str] = ()) -> Path:
    """Make a site's key and the request to certify it: ``peer.key`` and ``peer.csr``, both 0600.

    Parameters
    ----------
    folder : Path
        The site's folder, made if it is missing; must hold no certificates and no key.
    identity : Identity
        The holder that the certificate shall be for.
    addresses : iterable of str
        Host names and IP addresses of the holder, as for `authority.issue`.

    Returns
    -------
    Path
        The request's file, for the authority.

    Raises
    ------
    ConfigError
        When a value cannot be used, or a file is there already or cannot be written.
    """
    refuse_to_overwrite(folder)
    names = [general_name(address) for address in dict.fromkeys(addresses)]
    key = ec.generate_private_key(CURVE)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{identity.federation} {identity.name}")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri), *names]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    write_files(
        folder,
        {KEY_FILE: key_pem(key), REQUEST_FILE: request.public_bytes(serialization.Encoding.PEM)},
    )
    return folder / REQUEST_FILE


def read_request(file: Path, identity: Identity) -> tuple[ec.EllipticCurvePublicKey, list[x509.GeneralName]]:
    """Return the key of a request for a certificate of ``identity``, and the names that it asks for.

    Raises
    ------
    ConfigError
        When the file is no request or cannot be read, is not signed with its own key, is for somebody else,
        or has a key or names that these certificates cannot have.
    """
    try:
        request = x509.load_pem_x509_csr(file.read_bytes())
        right = request.is_signature_valid
        found = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}; 'p2pft certs request' makes it") from error
    except Exception as error:  # of bytes that are no request, the library raises errors of many kinds
        raise ConfigError(
            f"{file} is no request for a certificate of a federation ({error}): make it with 'p2pft certs "
            "request'"
        ) from error
    if not right:
        raise ConfigError(
            f"{file} is not signed with its own key: it is damaged, or was changed; ask for it again"
        )
    asked = [identity_from(uri) for uri in found.get_values_for_type(x509.UniformResourceIdentifier)]
    if asked != [identity]:
        told = asked[0] if len(asked) == 1 and asked[0] is not None else "nobody of a federation"
        raise ConfigError(
            f"{file} is for {told}, not for {identity}: whose is it? Have it made again, or name its holder"
        )
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != CURVE.name:
        raise ConfigError(f"{file} has no key on the curve {CURVE.name}, as 'p2pft certs request' makes it")
    hosts = found.get_values_for_type(x509.DNSName)
    numbers = map(str, found.get_values_for_type(x509.IPAddress))
    return key, [general_name(address) for address in dict.fromkeys([*hosts, *numbers])]
