"""Certificates for tests, made as the product makes them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from p2pft_flower.transport import Credentials
from p2pft_flower.transport.trust import certificates
from p2pft_flower.transport.trust.authority import create_authority, issue


class Federation:
    """An authority and its peers' folders below ``folder``."""

    def __init__(self, folder: Path, name: str = "north") -> None:
        self.folder, self.name = folder, name
        self.authority = folder / "authority"
        create_authority(self.authority, name)

    def issue(self, peer: int, **more) -> Path:
        """Return the folder of new certificates."""
        folder = self.folder / f"peer-{peer}-{len(list(self.folder.iterdir()))}"
        issue(self.authority, folder, peer, **more)
        return folder

    def coordinator(self) -> Path:
        """Return the folder of the coordinator's new certificate."""
        folder = self.folder / f"coordinator-{len(list(self.folder.iterdir()))}"
        issue(self.authority, folder, "coordinator")
        return folder

    def __getitem__(self, peer: int) -> Credentials:
        """Return new credentials of ``peer``."""
        return Credentials.load(self.issue(peer), peer)


class Clock:
    """Replaces the time that certificates are made and checked by; begins as the real one."""

    def __init__(self, patch) -> None:
        self._real, self.ahead = certificates.utc_now, timedelta(0)
        patch.setattr(certificates, "utc_now", lambda: self._real() + self.ahead)
