"""The end of certificates: warnings while a run lasts, and the reason if an expired one cuts a link."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from p2pft_flower.transport.trust import certificates
from p2pft_flower.transport.trust.certificates import CertificateFacts

__all__ = ["SOON", "Expiry", "watch"]

log = logging.getLogger(__name__)

SOON = timedelta(days=7)
"""Rest of a certificate's life at the first warning."""

_LOOK = 60.0
"""Seconds between two looks at the clock."""


@dataclass(frozen=True)
class Expiry:
    """The end of one certificate that this host needs.

    Attributes
    ----------
    file : Path
        The certificate's file.
    facts : CertificateFacts
        The certificate's content.
    remedy : str
        The remedy, in words, for messages.
    """

    file: Path
    facts: CertificateFacts
    remedy: str

    @property
    def left(self) -> timedelta:
        """The rest of the certificate's life; not positive once it has expired."""
        return self.facts.not_after - certificates.utc_now()

    @property
    def stage(self) -> int:
        """The number of these that have come, 0 to 4: a week left, a tenth of the life, an hour, nothing."""
        life = self.facts.not_after - self.facts.not_before
        return sum(
            self.left <= bound for bound in (SOON, min(SOON, life / 10), timedelta(hours=1), timedelta(0))
        )

    def __str__(self) -> str:
        """Return a sentence on the certificate, its date and the remedy."""
        what, when = f"{self.file} ({self.facts.identity})", f"{self.facts.not_after:%Y-%m-%d %H:%M} UTC"
        if self.left <= timedelta(0):
            return f"{what} expired on {when}: {self.remedy}"
        return f"{what} expires on {when}, in {_words(self.left)}: {self.remedy}"


async def watch(expiries: Sequence[Expiry]) -> None:
    """Warn of certificates that expire soon, once a day and at each new :attr:`~Expiry.stage`, for ever.

    `Credentials.warnings` has the state at the start, which was logged when the certificates were loaded.
    """
    said: list[tuple[int, datetime]] = [(e.stage, certificates.utc_now()) for e in expiries]
    while True:
        await asyncio.sleep(_LOOK)
        now = certificates.utc_now()
        for k, expiry in enumerate(expiries):
            stage, when = said[k]
            if expiry.stage > stage or (expiry.stage and now - when >= timedelta(days=1)):
                log.warning(
                    "%s; connections that are open go on, no new one can be made after that date", str(expiry)
                )
                said[k] = expiry.stage, now


def _words(left: timedelta) -> str:
    hours = left / timedelta(hours=1)
    return (
        f"{hours / 24:.0f} days"
        if hours >= 48
        else f"{hours:.0f} hours"
        if hours >= 2
        else "less than 2 hours"
    )
