from __future__ import annotations

from pathlib import Path

import pytest

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport import parse_address, unix_address


@pytest.mark.parametrize(
    ("text", "target", "local"),
    [
        ("unix:/run/p2pft/0.sock", "unix:/run/p2pft/0.sock", True),
        ("127.0.0.1:80", "127.0.0.1:80", True),
        ("tcp:127.8.9.1:80", "127.8.9.1:80", True),
        ("localhost:0", "localhost:0", True),
        ("[::1]:7", "[::1]:7", True),
        ("tcp:[2001:db8::1]:7", "[2001:db8::1]:7", False),
        ("0.0.0.0:80", "0.0.0.0:80", False),
        ("peer-3.example.org:18600", "peer-3.example.org:18600", False),
    ],
)
def test_an_address_is_understood_and_known_to_be_local_or_not(text, target, local):
    address = parse_address(text)
    assert (address.target, address.is_local) == (target, local)


@pytest.mark.parametrize(
    "text",
    ["", "unix:relative.sock", "host", "host:", ":80", "host:99999", "::1:80", "http://host:80", "host:-1"],
)
def test_what_is_no_address_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="address"):
        parse_address(text)


def test_a_socket_path_that_no_system_can_bind_is_refused_with_a_remedy():
    with pytest.raises(ConfigError, match="shorter path"):
        parse_address("unix:/" + "x" * 120)


@pytest.mark.parametrize("run", ["123456", "a run/with ../everything", "ü" * 300])
def test_a_socket_is_named_by_run_and_peer_only(run):
    address = unix_address(run, 3, Path("/run"))
    assert address == unix_address(run, 3, Path("/run"))
    assert address not in {unix_address(run, 4, Path("/run")), unix_address(run + "0", 3, Path("/run"))}
    folder = Path(address.removeprefix("unix:")).parent
    assert folder.parent == Path("/run")
    assert folder.name.startswith("p2pft-")
