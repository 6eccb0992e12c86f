"""The files of authorities, peers and requests: keys, names, and how a file is written."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport.trust.certificates import (
    CA_FILE,
    CA_KEY_FILE,
    CRL_FILE,
    KEY_FILE,
    OWN_NAMES,
    PEER_FILE,
)

__all__ = ["CURVE", "general_name", "key_pem", "pem", "refuse_to_overwrite", "write_files"]

CURVE = ec.SECP256R1()
"""The curve of all keys."""


def general_name(address: str) -> x509.GeneralName:
    """Return a host name or an IP address as a certificate's name.

    Raises
    ------
    ConfigError
        When ``address`` is neither, or a name that stands for a peer.
    """
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


def pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate in PEM form."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key in PEM form, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def refuse_to_overwrite(folder: Path) -> None:
    """Raise ConfigError if a folder holds certificates or keys already."""
    for name in (CA_FILE, CA_KEY_FILE, PEER_FILE, KEY_FILE):
        if os.path.lexists(folder / name):
            raise ConfigError(
                f"{folder / name} is there already and is not overwritten: choose another folder, or replace "
                "a peer's certificate with 'p2pft certs renew'"
            )


def write_files(folder: Path, contents: dict[str, bytes]) -> None:
    """Write files (0600; ``crl.pem`` 0644) into ``folder``, made (0700) if missing; each whole or not."""
    written: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            for name, content in contents.items():
                part = folder / f".{name}.{os.getpid()}"
                written.append((part, folder / name))
                # Whoever copies the list to a site need not be the user who reads it there: it is no secret.
                mode = 0o644 if name == CRL_FILE else 0o600
                with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
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
