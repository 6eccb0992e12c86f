"""Revoked certificates: the list that an authority signs, and its use while a run lasts.

The list is an X.509 certificate revocation list (RFC 5280), the file ``crl.pem`` beside ``ca.pem``; a site
that trusts several authorities may have a list of each in the file, one after the other. An entry has a
certificate's serial number and, in an extension of its own, the certificate's holder and the generation
(:mod:`~p2pft_flower.transport.trust.certificates`) with which the holder's later certificates begin. So a
certificate is revoked if its serial is in the list, *or if its generation is below the holder's*: a
revocation ends all certificates that the holder had been issued before.

gRPC's Python interface has no setting for such lists. Therefore each end enforces it as it can:

- A server looks at the certificate of the connection at every call (`Credentials.identify`), on connections
  that are open as well as on new ones.
- A client cannot see the server's certificate. It asks TLS for the name of the generation instead
  (`Credentials.target`), which a revoked certificate does not have, so the handshake fails; a channel that
  was opened before the list came is closed and replaced (`Channels.ask`).

A list that cannot be read, that no trusted authority has signed, or that is older than the one in force is
refused, and the one in force stays: a bad file never lets a revoked certificate in again.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport.trust import certificates
from p2pft_flower.transport.trust.certificates import (
    CertificateFacts,
    Identity,
    identity_from,
    serial_text,
)

__all__ = [
    "HOLDER",
    "Revocations",
    "Revoked",
    "RevokedList",
    "generation_of",
    "holder_entry",
    "last_entries",
    "newest",
    "read_lists",
]

log = logging.getLogger(__name__)

HOLDER = x509.ObjectIdentifier("2.25.96817342560193747261983046120584933517")
"""The extension of an entry with the holder and the generation; an identifier made of a random number."""

LOOK = 1.0
"""Seconds between two looks at the file."""

_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)
_UTF8 = 0x0C
"""DER's tag of a UTF8String."""


@dataclass(frozen=True)
class Revoked:
    """One revoked certificate.

    Attributes
    ----------
    serial : int
        The certificate's serial number.
    holder : Identity
        The certificate's holder.
    generation : int
        The lowest generation of the holder's certificates that are not revoked with it.
    when : datetime.datetime
        The time of the revocation, UTC.
    """

    serial: int
    holder: Identity
    generation: int
    when: datetime

    def __str__(self) -> str:
        when = f"{self.when:%Y-%m-%d %H:%M} UTC"
        return f"{self.holder.name} (serial {serial_text(self.serial)}, revoked on {when})"


@dataclass(frozen=True)
class RevokedList:
    """The list of one authority.

    Attributes
    ----------
    number : int
        The list's number; each list of an authority has a higher one than those before.
    issued, due : datetime.datetime
        The time at which the list was made, and by which the next one was promised, UTC.
    entries : tuple of Revoked
        The revoked certificates, in the list's order.
    fingerprint : str
        SHA-256 of the list, hexadecimal.
    authority : str
        SHA-256 of the certificate of the authority that signed it, hexadecimal.
    pem : bytes
        The list in PEM form.
    """

    number: int
    issued: datetime
    due: datetime
    entries: tuple[Revoked, ...]
    fingerprint: str
    authority: str
    pem: bytes


def holder_entry(holder: Identity, generation: int) -> x509.UnrecognizedExtension:
    """Return the extension of an entry that names the holder and its next generation."""
    text = f"{holder.uri}#{generation}".encode()
    return x509.UnrecognizedExtension(HOLDER, bytes([_UTF8, len(text)]) + text)  # a URI is below 128 bytes


def read_lists(file: Path, authorities: Sequence[x509.Certificate]) -> tuple[RevokedList, ...]:
    """Return the lists in a file, each signed by one of ``authorities``; none if there is no such file.

    Raises
    ------
    ConfigError
        When the file cannot be read or holds no list, or a list in it is damaged, was signed by none of the
        authorities, or does not say whose certificates it revokes.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from error
    blocks = _BLOCK.findall(content)
    if not blocks or content.count(b"-----BEGIN") != len(blocks):
        raise ConfigError(
            f"{file} is damaged or no list of revoked certificates: copy the authority's crl.pem again "
            "('p2pft certs revoke' makes it)"
        )
    lists = tuple(_parse(file, block, authorities) for block in blocks)
    if len({one.authority for one in lists}) != len(lists):
        raise ConfigError(f"{file} holds two lists of one authority: leave the older one out")
    return lists


def _parse(file: Path, block: bytes, authorities: Sequence[x509.Certificate]) -> RevokedList:
    try:
        found = x509.load_pem_x509_crl(block)
        signers = [root for root in authorities if _has_signed(root, found)]
        whole = _read(found, signers[0], block) if signers else None
    except Exception as error:  # of bytes that are no list, the library raises errors of many kinds
        raise ConfigError(
            f"{file} is damaged or not made by 'p2pft certs revoke' ({error}): copy the authority's crl.pem "
            "again"
        ) from error
    if whole is None:
        raise ConfigError(
            f"{file} was signed by none of the authorities in ca.pem beside it: copy the crl.pem of your own "
            "federation's authority"
        )
    return whole


def _read(found: x509.CertificateRevocationList, signer: x509.Certificate, block: bytes) -> RevokedList:
    return RevokedList(
        number=found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number,
        issued=found.last_update_utc,
        due=found.next_update_utc or found.last_update_utc,
        entries=tuple(_entry(entry) for entry in found),
        fingerprint=found.fingerprint(hashes.SHA256()).hex(),
        authority=_print_of(signer),
        pem=block + b"\n",
    )


def _print_of(root: x509.Certificate) -> str:
    return root.fingerprint(hashes.SHA256()).hex()


def _has_signed(root: x509.Certificate, found: x509.CertificateRevocationList) -> bool:
    return found.issuer == root.subject and found.is_signature_valid(root.public_key())  # type: ignore[arg-type]


def _entry(entry: x509.RevokedCertificate) -> Revoked:
    serial = entry.serial_number
    try:
        extension = entry.extensions.get_extension_for_oid(HOLDER).value
    except x509.ExtensionNotFound as error:
        raise ValueError(f"its entry of serial {serial_text(serial)} names no holder") from error
    value = extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""
    uri, _, generation = value[2:].decode().partition("#")
    holder = identity_from(uri)
    if value[:2] != bytes([_UTF8, len(value) - 2]) or holder is None or not generation.isdecimal():
        raise ValueError(f"its entry of serial {serial_text(serial)} names no holder of a federation")
    return Revoked(serial, holder, int(generation), entry.revocation_date_utc)


class _Stamp(NamedTuple):
    """The state of a file by which a change is noticed."""

    changed: int
    size: int
    inode: int


class Revocations:
    """The lists in force at one site: read at the start, and again whenever their file has changed.

    All methods may be called from any thread; ``_lock`` guards all fields. The file's date is looked at once
    a second at most, and only when a call comes or goes.

    Parameters
    ----------
    file : Path
        The file of the lists; need not exist.
    authorities : sequence of cryptography.x509.Certificate
        The authorities that this site trusts.
    clock : callable
        The time in seconds; default time.monotonic.

    Raises
    ------
    ConfigError
        When there is a file, and `read_lists` refuses it: at the start no list is in force that could stay.
    """

    def __init__(
        self,
        file: Path,
        authorities: Sequence[x509.Certificate],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.file = file
        self._authorities, self._clock = tuple(authorities), clock
        self._lock = threading.Lock()
        self._stamp = _stamp(file)
        self._lists = read_lists(file, self._authorities)
        self._serials, self._last = _by_serial(self._lists), last_entries(self._lists)
        self._looked = clock()
        self._refused: str | None = None
        """The reason why the file, as it is now, is not in force."""
        self._told = False
        """Whether the log has it."""
        self._warned: datetime | None = None
        self._since: dict[Identity, float] = {}
        """The time at which a holder's latest revocation came into force, if that was after the start."""
        self._warn_if_due()

    @property
    def lists(self) -> tuple[RevokedList, ...]:
        """The lists in force."""
        with self._lock:
            self._look()
            return self._lists

    def generation(self, holder: Identity) -> int:
        """Return the lowest generation of a holder's certificates that are not revoked."""
        with self._lock:
            self._look()
            entry = self._last.get(holder)
        return 0 if entry is None else entry.generation

    def reason(self, facts: CertificateFacts) -> str | None:
        """Return a sentence on the revocation of a certificate and the remedy; None if it is not revoked."""
        with self._lock:
            self._look()
            exact, last = self._serials.get(facts.serial), self._last.get(facts.identity)
        if exact is not None:
            return _sentence(exact, facts)
        return _sentence(last, facts) if last is not None and facts.generation < last.generation else None

    def of(self, holder: Identity) -> str | None:
        """Return a sentence on the last revocation of a holder, and the remedy; None if there was none."""
        with self._lock:
            self._look()
            entry = self._last.get(holder)
        return None if entry is None else _sentence(entry)

    def since(self, holder: Identity) -> float | None:
        """Return the time at which a revocation of ``holder`` came into force here, by the clock.

        None if there was none since the start.
        """
        with self._lock:
            self._look()
            return self._since.get(holder)

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < LOOK:
            return
        self._looked = now
        self._warn_if_due()
        stamp = _stamp(self.file)
        if stamp == self._stamp and (self._refused is None or self._told):
            return
        again, self._stamp = stamp == self._stamp, stamp
        try:
            new = read_lists(self.file, self._authorities)
            self._refuse_older(new)
        except ConfigError as error:
            # A file that is just being copied is no fault: it is another one at the next look.
            self._refused, self._told = str(error), again
            if again:
                log.error(  # noqa: TRY400 - its text has the reason
                    "%s; the list that was in force before stays in force", error
                )
            return
        self._refused, self._told = None, False
        self._take(new, now)

    def _refuse_older(self, new: Sequence[RevokedList]) -> None:
        """Raise ConfigError if the lists in force are not followed by ``new``."""
        found = {one.authority: one for one in new}
        for old in self._lists:
            one = found.get(old.authority)
            if one is None:
                gone = "is gone" if not new else f"lacks list {old.number} of an authority in ca.pem"
                raise ConfigError(f"{self.file} {gone}: copy the authority's crl.pem there again")
            if one.number < old.number or (one.number == old.number and one.fingerprint != old.fingerprint):
                what = "older than" if one.number < old.number else "another one than"
                raise ConfigError(
                    f"{self.file} holds list {one.number} of {one.issued:%Y-%m-%d %H:%M} UTC, which is "
                    f"{what} list {old.number} of {old.issued:%Y-%m-%d %H:%M} UTC: copy the authority's "
                    "latest crl.pem"
                )

    def _take(self, new: tuple[RevokedList, ...], now: float) -> None:
        known, self._lists = self._serials, new
        self._serials, self._last = _by_serial(new), last_entries(new)
        added = [entry for serial, entry in self._serials.items() if serial not in known]
        self._since |= {e.holder: now for e in added}
        self._warned = None
        for one in new:
            log.info(
                "%s: list %d of %s UTC is in force", self.file, one.number, f"{one.issued:%Y-%m-%d %H:%M}"
            )
        for entry in added:
            log.warning("the certificate of %s is refused from now on", entry)
        self._warn_if_due()

    def _warn_if_due(self) -> None:
        """Warn once a day of a list whose next one is overdue; it stays in force."""
        now = certificates.utc_now()
        late = [one for one in self._lists if one.due <= now]
        if late and (self._warned is None or now - self._warned >= timedelta(days=1)):
            self._warned = now
            log.warning(
                "%s: the authority promised a newer list by %s UTC, and it is not there; list %d stays in "
                "force: copy the authority's latest crl.pem, or renew it ('p2pft certs revoke')",
                self.file,
                f"{late[0].due:%Y-%m-%d %H:%M}",
                late[0].number,
            )


def _by_serial(lists: Sequence[RevokedList]) -> dict[int, Revoked]:
    return {entry.serial: entry for one in lists for entry in one.entries}


def _stamp(file: Path) -> _Stamp | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return _Stamp(found.st_mtime_ns, found.st_size, found.st_ino)


def _sentence(entry: Revoked, facts: CertificateFacts | None = None) -> str:
    who, when = entry.holder.name, f"{entry.when:%Y-%m-%d %H:%M} UTC"
    if facts is None or facts.serial == entry.serial:
        told = f"the certificate of {who} was revoked on {when} (serial {serial_text(entry.serial)})"
    else:
        told = (
            f"the certificate of {who} (serial {serial_text(facts.serial)}) was revoked on {when}, with all "
            "that were issued to it before"
        )
    return f"{told}: it needs one that was issued later ('p2pft certs renew', or 'issue')"


def newest(lists: Sequence[RevokedList], authorities: Sequence[x509.Certificate]) -> list[RevokedList]:
    """Return the list of the highest number of each of ``authorities`` that has one, in their order."""
    best: dict[str, RevokedList] = {}
    for one in lists:
        if one.authority not in best or best[one.authority].number < one.number:
            best[one.authority] = one
    return [best[name] for name in map(_print_of, authorities) if name in best]


def last_entries(lists: Sequence[RevokedList]) -> dict[Identity, Revoked]:
    """Return the entry of the highest generation of each holder that has one."""
    last: dict[Identity, Revoked] = {}
    for entry in (entry for one in lists for entry in one.entries):
        if entry.holder not in last or last[entry.holder].generation < entry.generation:
            last[entry.holder] = entry
    return last


def generation_of(lists: Sequence[RevokedList], holder: Identity) -> int:
    """Return the lowest generation of a holder's certificates that are not revoked by ``lists``."""
    entry = last_entries(lists).get(holder)
    return 0 if entry is None else entry.generation
