"""Connections in Flower's own config.toml, added and removed without changing the rest of the file."""

from __future__ import annotations

import difflib
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from p2pft_flower.cli.flwr_run import FlowerError, flower_environment, program
from p2pft_flower.errors import ConfigError
from p2pft_flower.keeping.folders import require_writable

__all__ = [
    "add_connection",
    "check_connection",
    "config_file",
    "connection_address",
    "connection_names",
    "remove_connection",
    "require_flower_home",
]

ASK_TIMEOUT = 60.0
"""Seconds that Flower's command line may take to write its default file."""


def config_file() -> Path:
    """Return the file of Flower's connections: ``$FLWR_HOME/config.toml``, by default ``~/.flwr``.

    Raises
    ------
    ConfigError
        When the path begins with ``~`` and this user has no home folder.
    """
    try:
        return Path(os.environ.get("FLWR_HOME") or "~/.flwr").expanduser().absolute() / "config.toml"
    except RuntimeError as error:
        raise ConfigError(
            "~/.flwr (FLWR_HOME is not set): this user has no home folder; set FLWR_HOME to a folder that "
            "can be written"
        ) from error


def require_flower_home() -> None:
    """Refuse a home of Flower that cannot be written to, before one of Flower's programs is started.

    Raises
    ------
    ConfigError
        When nothing can be written to it; the message names variable, folder and remedy.
    """
    chosen = os.environ.get("FLWR_HOME")
    require_writable(
        f"FLWR_HOME = {chosen!r}" if chosen else "~/.flwr (FLWR_HOME is not set)",
        config_file().parent,
        "Flower stores its apps and connections there: set FLWR_HOME to a folder that can be written",
    )


def connection_address(name: str) -> str | None:
    """Return the address of the connection ``name`` in Flower's config.toml; None if there is none.

    Empty if the connection has no address.

    Raises
    ------
    ConfigError
        When the file is not TOML or cannot be read.
    """
    file = config_file()
    if not _is_there(file):
        return None
    found = _connections(file).get(name)
    return None if found is None else str(found.get("address", ""))


def connection_names() -> list[str]:
    """Return the names of the connections in Flower's config.toml, in the file's order; none without a file.

    Raises
    ------
    ConfigError
        When the file is not TOML or cannot be read.
    """
    file = config_file()
    return list(_connections(file)) if _is_there(file) else []


def check_connection(name: str) -> None:
    """Refuse a connection that Flower's config.toml lacks, before anything is started.

    Raises
    ------
    ConfigError
        When the connection is unknown (the message lists the others); when the file is not TOML, or cannot be
        read or written.
    FlowerError
        When there is no file yet, though it could be written, and Flower does not write its default one.
    """
    _have_file()
    names = connection_names()
    if name in names:
        return
    if name == "rehearsal":
        remedy = "'p2pft up' starts the SuperLink and SuperNodes that it leads to"
    else:
        close = difflib.get_close_matches(name, names, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"choose one, or add [superlink.{name}] there"
    there = f"has {', '.join(names)}" if names else "has none"
    raise ConfigError(f"unknown connection {name!r}: {config_file()} {there}; {remedy}")


def add_connection(name: str, address: str) -> None:
    """Add a connection to a SuperLink of this machine, in plain text; replaces a connection of the same name.

    Parameters
    ----------
    name : str
        The name for ``flwr run APP name`` and ``p2pft run --connection name``.
    address : str
        ``host:port`` of the SuperLink.

    Raises
    ------
    ConfigError
        When the file is not TOML, or cannot be read or written.
    FlowerError
        When there is no file yet, and Flower does not write its default one.
    """
    file = _have_file()
    document = _read(file)
    table = tomlkit.table()
    table.add("address", address)
    table.add("insecure", True)
    document.setdefault("superlink", tomlkit.table(is_super_table=True))[name] = table
    _write(file, document)


def remove_connection(name: str) -> None:
    """Remove the connection ``name`` from Flower's config.toml, if the file has it.

    Raises
    ------
    ConfigError
        When the file is not TOML, or cannot be read or written.
    """
    file = config_file()
    if connection_address(name) is None:
        return
    document = _read(file)
    del document["superlink"][name]
    _write(file, document)


def _have_file() -> Path:
    """Return the path of Flower's config.toml; if it is missing, Flower writes its default one first."""
    file = config_file()
    if not _is_there(file):
        require_flower_home()
        # Flower writes its own connections only if there is no file at all, so that has to happen first.
        try:
            asked = subprocess.run(  # noqa: S603 - a program of this environment
                [program("flwr"), "config", "list"],
                env=flower_environment(),
                capture_output=True,
                text=True,
                timeout=ASK_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise FlowerError(f"flwr config list did not answer within {ASK_TIMEOUT:g} s") from error
        if not _is_there(file):
            raise FlowerError(f"flwr config list did not write {file}: {asked.stdout}{asked.stderr}")
    return file


def _is_there(file: Path) -> bool:
    return os.path.exists(file)  # noqa: PTH110 - Path's own raises where a folder may not be searched


def _connections(file: Path) -> dict[str, Any]:
    """Return the tables of ``[superlink]``, by name, without the key ``default``, which is no table."""
    found = _read(file).get("superlink", {})
    return {name: table for name, table in found.items() if isinstance(table, Mapping)}


def _read(file: Path) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML that can be read ({error}): repair or remove it") from error


def _write(file: Path, document: tomlkit.TOMLDocument) -> None:
    """Replace the file in one step, so that a reader sees the old file or the new one."""
    target = file.resolve()  # the target of a link
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=target.parent, prefix="config-", suffix=".toml", encoding="utf-8", delete=False
        ) as new:
            new.write(tomlkit.dumps(document).rstrip("\n") + "\n")
        Path(new.name).chmod(target.stat().st_mode & 0o777)
        Path(new.name).replace(target)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror or error}") from error
