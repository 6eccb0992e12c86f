"""Where the files shipped beside the package lie: the graphs in topologies/ and the Flower app in apps/."""

from __future__ import annotations

from pathlib import Path

__all__ = ["resource_dir"]

_PACKAGE = Path(__file__).resolve().parent


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
        When neither place has it, which means that the installation is incomplete.
    """
    candidates = (_PACKAGE / "_resources" / name, _PACKAGE.parent / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    places = " nor in ".join(str(c) for c in candidates)
    raise FileNotFoundError(
        f"no folder {name!r} in {places}: the installation is incomplete, install it again"
    )
