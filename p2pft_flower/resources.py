"""Places of files: those shipped beside the package (topologies/, apps/), and those of runs."""

from __future__ import annotations

import os
from pathlib import Path

from p2pft_flower.errors import ConfigError

__all__ = ["home", "home_named", "resource_dir"]

_PACKAGE = Path(__file__).resolve().parent


def home() -> Path:
    """Return ``$P2PFT_HOME``, by default ``~/.p2pft``; nothing else is written below the home folder.

    Raises
    ------
    ConfigError
        If the user has no home folder.
    """
    try:
        return Path(os.environ.get("P2PFT_HOME") or "~/.p2pft").expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{home_named()}: this user has no home folder; set P2PFT_HOME to a folder that can be written"
        ) from error


def home_named() -> str:
    """Return the name that errors give to :func:`home`: the variable with its value, if it is set."""
    chosen = os.environ.get("P2PFT_HOME")
    return f"P2PFT_HOME = {chosen!r}" if chosen else "~/.p2pft (P2PFT_HOME is not set)"


def resource_dir(name: str) -> Path:
    """Return the folder ``name`` (``"topologies"`` or ``"apps"``) of this installation.

    An installed wheel carries copies in ``p2pft_flower/_resources``; in a checkout (or an editable
    install of one) the folders stand beside the package.

    Parameters
    ----------
    name : str
        ``"topologies"`` or ``"apps"``.

    Returns
    -------
    Path
        An existing directory.

    Raises
    ------
    FileNotFoundError
        If neither place has it, which means that the installation is incomplete.
    """
    candidates = (_PACKAGE / "_resources" / name, _PACKAGE.parent / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    places = " nor in ".join(str(c) for c in candidates)
    raise FileNotFoundError(
        f"no folder {name!r} in {places}: the installation is incomplete, install it again"
    )
