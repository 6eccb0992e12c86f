"""What certificates say, who may read their files, and every reason for which credentials are refused."""

from __future__ import annotations

import asyncio
import shutil
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport import Credentials
from p2pft_flower.transport.trust import expiry, files
from p2pft_flower.transport.trust.authority import create_authority, issue, renew
from p2pft_flower.transport.trust.certificates import (
    facts_of,
    read_certificate,
    read_certificates,
    target_name,
)
from tests.transport.federation import Clock, Federation


@pytest.fixture
def north(tmp_path):
    return Federation(tmp_path / "north")


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_peers_folder_holds_its_certificate_its_key_and_the_authority_and_nothing_else(north):
    folder = north.issue(3, addresses=["ward-3.example", "10.0.0.3", "fd00::3"])
    assert {f.name: mode(f) for f in folder.iterdir()} == dict.fromkeys(
        ("ca.pem", "peer.pem", "peer.key"), 0o600
    )
    assert mode(folder) == mode(north.authority) == 0o700
    assert {f.name: mode(f) for f in north.authority.iterdir() if f.is_file()} == {
        "ca.pem": 0o600,
        "ca.key": 0o600,
    }
    facts = read_certificate(folder / "peer.pem")
    assert (facts.identity.federation, facts.identity.peer) == ("north", 3)
    assert facts.names == ("ward-3.example", "10.0.0.3", "fd00::3")
    assert 364 < (facts.not_after - facts.not_before).days < 367
    assert facts_of((folder / "peer.pem").read_bytes()) == facts
    assert target_name("north", 3) == "peer-3.north.p2pft.internal"


def test_the_coordinators_certificate_is_its_own_and_no_peers(north):
    folder = north.coordinator()
    assert {f.name: mode(f) for f in folder.iterdir()} == dict.fromkeys(
        ("ca.pem", "peer.pem", "peer.key"), 0o600
    )
    (certificate,) = read_certificates(folder / "peer.pem")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [
        "p2pft://north/coordinator",
        "coordinator.north.p2pft.internal",
    ]
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(uses) == {x509.ExtendedKeyUsageOID.CLIENT_AUTH, x509.ExtendedKeyUsageOID.SERVER_AUTH}
    assert Credentials.load(folder, "coordinator").facts.names == ()
    for holder in (None, 0):
        with pytest.raises(ConfigError, match="is for the coordinator of federation 'north', not for"):
            Credentials.load(folder, holder)
    with pytest.raises(ConfigError, match=r"is for peer 3 of .*, not for the coordinator: .*--coordinator"):
        Credentials.load(north.issue(3), "coordinator")
    before = Credentials.load(folder, "coordinator").facts
    after = renew(north.authority, folder)
    assert after.identity == before.identity
    assert after.fingerprint != before.fingerprint
    with pytest.raises(ConfigError, match=r"ca\.key: No such file"):
        issue(folder, folder.parent / "by-the-coordinator", 0)


def test_nothing_is_overwritten(north):
    folder = north.issue(0)
    before = (folder / "peer.key").read_bytes()
    for make in (
        lambda: issue(north.authority, folder, 1),
        lambda: issue(north.authority, north.authority, 1),
        lambda: create_authority(north.authority, "north"),
        lambda: create_authority(folder, "north"),
    ):
        with pytest.raises(ConfigError, match="is there already and is not overwritten"):
            make()
    assert (folder / "peer.key").read_bytes() == before


@pytest.mark.parametrize("name", ["", "North", "a.b", "-a", "a-", "a" * 41, "a/b", "ä"])
def test_a_federations_name_must_fit_a_dns_name(name, tmp_path):
    with pytest.raises(ConfigError, match="lower-case letters"):
        create_authority(tmp_path / "ca", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"holder": -1}, "peers are numbered from 0"),
        ({"addresses": ["host:9000"]}, r"'host:9000' is neither a host name nor an IP address"),
        ({"days": 0}, "days = 0: must be above 0"),
        *(
            ({"addresses": ["10.0.0.1", name]}, r"ends in \.p2pft\.internal: such a name proves which peer")
            for name in (
                "peer-0.north.p2pft.internal",
                "peer-1.north.p2pft.internal",
                "Peer-0.North.P2PFT.Internal",
                "peer-0.north.p2pft.internal.",
                "peer-0.south.p2pft.internal",
                "p2pft.internal",
            )
        ),
    ],
)
def test_what_cannot_be_issued_leaves_nothing_behind(what, says, north, tmp_path):
    with pytest.raises(ConfigError, match=says):
        issue(north.authority, tmp_path / "new", **({"holder": 1} | what))
    assert not (tmp_path / "new").exists()


def test_a_certificate_never_outlives_its_authority(tmp_path):
    authority = create_authority(tmp_path / "ca", "north", days=30)
    assert issue(tmp_path / "ca", tmp_path / "p", 0, days=365).not_after == authority.not_after


def test_renewing_keeps_peer_and_names_and_changes_the_key(north, clock):
    folder = north.issue(2, addresses=["ward.example"])
    before, key = read_certificate(folder / "peer.pem"), (folder / "peer.key").read_bytes()
    clock.ahead = timedelta(days=300)
    after = renew(north.authority, folder)
    assert (after.identity, after.names) == (before.identity, before.names)
    assert after.not_after > before.not_after + timedelta(days=299)
    assert (folder / "peer.key").read_bytes() != key
    assert mode(folder / "peer.key") == 0o600
    assert Credentials.load(folder, 2).facts == after
    assert len(read_certificates(folder / "ca.pem")) == 1


def test_while_authorities_change_a_peer_trusts_the_old_and_the_new_one(north, tmp_path):
    folder = north.issue(2)
    create_authority(tmp_path / "new", "north")
    renew(tmp_path / "new", folder, previous=north.authority / "ca.pem")
    old, new = (read_certificates(f / "ca.pem")[0] for f in (north.authority, tmp_path / "new"))
    assert read_certificates(folder / "ca.pem") == [old, new]
    assert Credentials.load(folder, 2).peer == 2


@pytest.mark.parametrize("brings_its_own_authority", [True, False])
def test_a_peer_cannot_become_another_by_having_a_certificate_of_its_own_making_renewed(
    brings_its_own_authority, north, tmp_path
):
    """It has an authority of the same name say that it is peer 0, and sends that folder in."""
    forged = Federation(tmp_path / "forged").issue(0)
    if not brings_its_own_authority:
        shutil.copy(north.authority / "ca.pem", forged / "ca.pem")
    before = {file.name: file.read_bytes() for file in forged.iterdir()}
    says = r"says peer 0 of federation 'north', but was not issued by an authority in .*ca\.pem"
    with pytest.raises(ConfigError, match=says):
        renew(north.authority, forged)
    create_authority(tmp_path / "new", "north")
    with pytest.raises(ConfigError, match=says):
        renew(tmp_path / "new", forged, previous=north.authority / "ca.pem")
    assert {file.name: file.read_bytes() for file in forged.iterdir()} == before


def test_a_new_authority_renews_what_the_old_one_issued_only_where_the_operator_names_the_old_one(
    north, tmp_path
):
    folder = north.issue(2)
    create_authority(tmp_path / "new", "north")
    with pytest.raises(ConfigError, match=r"give that one's ca\.pem \(--previous\)"):
        renew(tmp_path / "new", folder)
    assert renew(tmp_path / "new", folder, previous=north.authority / "ca.pem").identity.peer == 2


def test_a_name_that_proves_to_be_another_peer_is_not_renewed(north, monkeypatch):
    with monkeypatch.context() as before:  # certificates were once issued with such names
        before.setattr(files, "OWN_NAMES", ".elsewhere")
        folder = north.issue(2, addresses=["peer-0.north.p2pft.internal"])
    with pytest.raises(ConfigError, match=r"'peer-0\.north\.p2pft\.internal' ends in .*issue the cert"):
        renew(north.authority, folder)


def test_renewing_with_another_federations_authority_is_refused(north, tmp_path):
    folder = north.issue(2)
    create_authority(tmp_path / "south", "south")
    with pytest.raises(ConfigError, match=r"peer 2 of federation 'north'.*authority of federation 'south'"):
        renew(tmp_path / "south", folder)


def test_an_authority_whose_key_is_lost_or_strange_issues_nothing(north, tmp_path):
    other = Federation(tmp_path / "other")
    shutil.copy(other.authority / "ca.key", north.authority / "ca.key")
    with pytest.raises(ConfigError, match=r"ca\.key does not belong to .*ca\.pem"):
        north.issue(1)
    (north.authority / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"ca\.key: No such file"):
        north.issue(1)


@pytest.mark.parametrize("name", ["peer.pem", "peer.key", "ca.pem"])
def test_a_missing_file_is_named_with_what_makes_it(name, north):
    folder = north.issue(1)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name}: No such file or directory; .*issue"):
        Credentials.load(folder, 1)


@pytest.mark.parametrize("name", ["peer.pem", "peer.key", "ca.pem"])
def test_a_damaged_file_is_named(name, north):
    folder = north.issue(1)
    (folder / name).write_bytes(b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match=rf"{name} (holds no certificate|is no private key) in PEM form"):
        Credentials.load(folder, 1)


def test_a_key_that_others_can_read_is_refused_with_the_command_that_helps(north):
    folder = north.issue(1)
    (folder / "peer.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"can be read by others \(mode 0640\): chmod 600 .*peer\.key"):
        Credentials.load(folder, 1)


def test_a_key_of_another_certificate_is_refused(north):
    folder, other = north.issue(1), north.issue(1)
    shutil.copy(other / "peer.key", folder / "peer.key")
    with pytest.raises(ConfigError, match=r"peer\.key does not fit the certificate .*peer\.pem"):
        Credentials.load(folder, 1)


def test_a_certificate_of_another_peer_is_refused(north):
    with pytest.raises(ConfigError, match=r"peer\.pem is for peer 1 of federation 'north', not for peer 2"):
        Credentials.load(north.issue(1), 2)


def test_an_authoritys_folder_is_none_of_a_peers(north):
    shutil.copy(north.authority / "ca.pem", north.authority / "peer.pem")
    with pytest.raises(ConfigError, match=r"is for the authority of federation 'north', not for peer 0"):
        Credentials.load(north.authority, 0)
    folder = north.issue(0)
    shutil.copy(north.authority / "ca.key", folder / "ca.key")
    with pytest.raises(ConfigError, match=r"ca\.key: the authority's key must not lie on a peer's machine"):
        Credentials.load(folder, 0)


def test_an_authority_of_another_federation_or_of_the_same_name_is_refused(north, tmp_path):
    folder = north.issue(1)
    south = Federation(tmp_path / "south", "south")
    shutil.copy(south.authority / "ca.pem", folder / "ca.pem")
    with pytest.raises(ConfigError, match=r"authority of federation 'south', but .* peer 1 of federation"):
        Credentials.load(folder, 1)
    namesake = Federation(tmp_path / "namesake", "north")
    shutil.copy(namesake.authority / "ca.pem", folder / "ca.pem")
    with pytest.raises(ConfigError, match=r"issued by none of the authorities in .*ca\.pem"):
        Credentials.load(folder, 1)


def test_an_expired_certificate_is_refused_and_one_that_expires_soon_is_warned_of(north, clock):
    folder = north.issue(1, days=30)
    assert Credentials.load(folder, 1).warnings == ()
    clock.ahead = timedelta(days=25)
    (warning,) = Credentials.load(folder, 1).warnings
    assert "peer.pem (peer 1 of federation 'north') expires on" in warning
    assert "in 5 days: renew it with 'p2pft certs renew'" in warning
    clock.ahead = timedelta(days=31)
    with pytest.raises(ConfigError, match=r"peer\.pem expired on .* UTC: renew it with 'p2pft certs renew'"):
        Credentials.load(folder, 1)


def test_a_certificate_of_the_future_is_refused(north, clock):
    clock.ahead = timedelta(days=2)
    folder = north.issue(1)
    clock.ahead = timedelta(0)
    with pytest.raises(ConfigError, match=r"peer\.pem is not valid before .* is the clock here right\?"):
        Credentials.load(folder, 1)


def test_a_clock_that_is_minutes_behind_does_no_harm(north, clock):
    folder = north.issue(1)
    clock.ahead = timedelta(minutes=-4)
    assert Credentials.load(folder, 1).peer == 1


def test_the_key_is_in_no_representation(north):
    own = north[1]
    assert "PRIVATE" not in repr(own)
    assert repr(own._key) not in repr(own)


def test_while_a_run_lasts_a_certificate_is_warned_of_each_day_and_when_it_gets_urgent(
    north, clock, caplog, monkeypatch
):
    monkeypatch.setattr(expiry, "_LOOK", 0.0)
    own = Credentials.load(north.issue(1, days=30), 1)
    days = iter([0, 23.5, 23.6, 24.6, 27.5, 29.97, 29.98, 31])
    looked = []

    class EndError(Exception):
        pass

    async def sleep(_):
        looked.append(len(caplog.records))
        if (day := next(days, None)) is None:
            raise EndError
        clock.ahead = timedelta(days=day)

    monkeypatch.setattr(expiry.asyncio, "sleep", sleep)
    with pytest.raises(EndError):
        asyncio.run(expiry.watch(own.expiries))
    # A week is left, a day has passed, a tenth of its life is left, an hour, and none.
    assert looked == [0, 0, 1, 1, 2, 3, 4, 4, 5]
    says = [r.getMessage() for r in caplog.records]
    assert all("peer.pem (peer 1 of federation 'north')" in s and "p2pft certs renew" in s for s in says)
    assert "expires on" in says[0]
    assert "days" in says[0]
    assert "expired on" in says[-1]


def test_an_authority_that_expires_first_is_warned_of_too(clock, tmp_path):
    folder, authority = tmp_path / "1", tmp_path / "authority"
    create_authority(authority, "north", days=5)
    issue(authority, folder, 1, days=365)
    says = Credentials.load(folder, 1).warnings
    assert [("ca.pem" in s, "make a new authority" in s) for s in says] == [(False, False), (True, True)]
