"""Addresses of peers: ``unix:/path``, ``host:port`` or ``tcp:host:port``."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from p2pft_flower.errors import ConfigError

__all__ = ["SOCKET_FOLDER_PREFIX", "Address", "parse_address", "tcp_address", "unix_address"]

SOCKET_FOLDER_PREFIX = "p2pft-"
"""Folders whose names begin so are made (mode 0700) by the first server that needs them, and removed by the
last one."""

_MAX_SOCKET_PATH = 103  # bytes; sun_path holds 104 on macOS and 108 on Linux, the final NUL included


@dataclass(frozen=True)
class Address:
    """A parsed address.

    Attributes
    ----------
    path : Path or None
        The path of the Unix socket; None for TCP.
    host : str
        Name or IP address without brackets; empty for a Unix socket.
    port : int
        TCP port; 0 lets the system choose one when it is bound.
    """

    path: Path | None
    host: str = ""
    port: int = 0

    @property
    def target(self) -> str:
        """The address in gRPC's notation."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether the address is on this machine (a Unix socket or the loopback interface)."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name, whose machine is not known here
            return False

    def __str__(self) -> str:
        return self.target


def parse_address(text: str) -> Address:
    """Parse ``unix:/path``, ``host:port`` or ``tcp:host:port`` (IPv6 in brackets).

    Raises
    ------
    ConfigError
        When the text has none of these forms; the message has the text and the remedy.
    """
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise ConfigError(
                f"address {text!r}: a Unix socket needs an absolute path, as in 'unix:/run/p2pft/0.sock'"
            )
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise ConfigError(
                f"address {text!r}: the path of a Unix socket has at most {_MAX_SOCKET_PATH} bytes; "
                "use a folder with a shorter path (TMPDIR sets the default one)"
            )
        return Address(path)
    match = re.fullmatch(r"(?:tcp:)?(?:\[([0-9A-Fa-f:.%\w]+)\]|([\w.-]+)):(\d{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ConfigError(
            f"address {text!r} is neither 'unix:/path' nor 'host:port' (port 0 to 65535, IPv6 in brackets)"
        )
    return Address(None, match[1] or match[2], int(match[3]))


def tcp_address(host: str, port: int) -> str:
    """Return the address of a port of ``host``, a name or an IP address without brackets."""
    return Address(None, host, port).target


def unix_address(run: str, peer: int, folder: Path | None = None) -> str:
    """Return the address of ``peer``'s Unix socket, which follows from run and peer: nothing to look up.

    Parameters
    ----------
    run : str
        The run's identifier.
    peer : int
        The peer's number.
    folder : Path, optional
        The folder for the run's socket folder; default the system's folder for temporary files.

    Raises
    ------
    ConfigError
        When the path of the folder is too long for a Unix socket.
    """
    # A name that does not fit a short path component is replaced by its digest.
    name = (
        run if re.fullmatch(r"[\w-]{1,32}", run, re.ASCII) else hashlib.sha256(run.encode()).hexdigest()[:16]
    )
    base = Path(tempfile.gettempdir()) if folder is None else folder
    address = f"unix:{base.absolute() / f'{SOCKET_FOLDER_PREFIX}{os.getuid()}-{name}' / f'{peer}.sock'}"
    parse_address(address)
    return address
