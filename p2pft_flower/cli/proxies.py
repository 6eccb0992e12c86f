"""Proxies in the environment, without which programs on this machine reach each other."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import cache
from urllib.parse import urlsplit

__all__ = ["LOCAL", "answers", "without_local_proxies"]

LOCAL = ("127.0.0.1", "localhost", "::1")
"""This machine's names in Flower's programs."""

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
"""Variables that Flower's HTTP library (httpx) reads, in any case."""

log = logging.getLogger(__name__)


def without_local_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return ``environment``, changed so that its proxies are used for everything but this machine.

    A proxy or a ``no_proxy`` entry that Flower's HTTP library cannot use is left out, with a warning: the
    library raises an error for it at any request.

    Parameters
    ----------
    environment : mapping of str to str
        Variables and values; returned unchanged if no variable names a proxy.
    """
    proxies = {name: value for name, value in environment.items() if name.lower() in _PROXIES and value}
    unusable = tuple((name, value) for name, value in sorted(proxies.items()) if not _usable(value))
    left = {name: value for name, value in environment.items() if (name, value) not in unusable}
    if len(unusable) == len(proxies):
        if unusable:
            _warn(unusable)
        return left
    named = [
        (name, entry.strip())
        for name, value in environment.items()
        if name.lower() == "no_proxy"
        for entry in value.split(",")
        if entry.strip()
    ]
    excepted = [entry for _, entry in named if _can_except(entry)]
    odd = tuple((name, entry) for name, entry in named if not _can_except(entry))
    if unusable or odd:
        _warn(unusable + odd)
    # A star alone exempts every address; in a list, not all libraries read it.
    value = "*" if "*" in excepted else ",".join(dict.fromkeys([*excepted, *LOCAL]))
    left = {name: kept for name, kept in left.items() if name.lower() != "no_proxy"}
    return {**left, "no_proxy": value, "NO_PROXY": value}


def _usable(proxy: str) -> bool:
    """Return whether httpx accepts this proxy; a proxy without a scheme is an ``http`` one."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        _ = parts.port
    except ValueError:
        return False
    if not _is_url(proxy if "://" in proxy else f"http://{proxy}"):
        return False
    if parts.scheme in ("socks5", "socks5h"):
        return importlib.util.find_spec("socksio") is not None
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _can_except(entry: str) -> bool:
    """Return whether httpx accepts this entry of ``no_proxy``: a name, an address, or a URL."""
    try:
        ipaddress.ip_address(entry.partition("/")[0])
    except ValueError:
        return _is_url(entry if "://" in entry else f"all://*{entry}")
    return True


def _is_url(text: str) -> bool:
    import httpx

    try:
        httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return True


@cache
def _warn(unusable: tuple[tuple[str, str], ...]) -> None:
    """Log the proxies and ``no_proxy`` entries that are left out, once in each process."""
    log.warning(
        "%s cannot be used by Flower's HTTP library and is left out for the programs that are started here "
        "(for socks5://: pip install 'httpx[socks]'): their downloads do without it",
        ", ".join(f"{name} = {_without_password(value)}" for name, value in unusable),
    )


def _without_password(proxy: str) -> str:
    start, at, host = proxy.rpartition("@")
    scheme, colon, _ = start.partition("://")
    return f"{scheme}{colon}…@{host}" if at and colon else f"…@{host}" if at else proxy


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(address: str) -> bool:
    """Return whether a SuperLink on this machine, at ``host:port``, answers; no proxy is asked.

    Parameters
    ----------
    address : str
        The address of the SuperLink's HTTP interface.
    """
    try:
        with _direct.open(f"http://{address}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:  # also urllib's own errors
        return False
