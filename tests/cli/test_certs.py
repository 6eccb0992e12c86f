"""``p2pft certs``: what it makes, prints and refuses."""

from __future__ import annotations

import json

import pytest

from p2pft_flower.cli import app
from p2pft_flower.transport import Credentials
from tests.commands import CliRunner


@pytest.fixture
def certs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words, code=0):
        result = CliRunner().invoke(app, ["certs", *words], env={"COLUMNS": "80"})
        assert result.exit_code == code, result.output
        return result.stdout if code == 0 else result.stderr

    return call


def test_from_an_authority_to_a_renewed_certificate(certs, tmp_path):
    assert "the authority of federation 'north'" in certs("init", "ca", "--federation", "north")
    address = ("--address", "ward.example", "--address", "10.0.0.3")
    said = certs("issue", "--authority", "ca", "--peer", "3", *address, "--out", "site")
    assert "site: peer 3 of federation 'north', valid until " in said
    before = Credentials.load(tmp_path / "site", 3).facts
    assert certs("renew", "site", "--authority", "ca", "--days", "30").startswith("site: peer 3 of")
    after = Credentials.load(tmp_path / "site", 3).facts
    assert before.fingerprint != after.fingerprint
    assert after.names == ("ward.example", "10.0.0.3")

    peer, authority = json.loads(certs("show", "site", "--json"))
    assert peer == {
        "file": "peer.pem",
        "federation": "north",
        "peer": 3,
        "role": "peer",
        "names": ["ward.example", "10.0.0.3"],
        "not_before": after.not_before.isoformat(),
        "not_after": after.not_after.isoformat(),
        "state": "29 days left",
        "fingerprint": after.fingerprint,
        "serial": f"{after.serial:X}",
    }
    assert (authority["file"], authority["peer"]) == ("ca.pem", None)
    table = certs("show", "site")
    assert max(map(len, table.splitlines())) <= 80  # and nothing of it is cut in a terminal
    for part in (
        "peer 3 of federation 'north'",
        "ward.example, 10.0.0.3",
        "29 days left",
        after.fingerprint,
    ):
        assert part in table
    assert "the authority of federation 'north'" in certs("show", "ca")


def test_a_new_authority_renews_what_the_previous_one_issued(certs, tmp_path):
    for ca in ("old", "new"):
        certs("init", ca, "--federation", "north")
    certs("issue", "--authority", "old", "--peer", "3", "--out", "site")
    assert "--previous" in certs("renew", "site", "--authority", "new", code=2)
    certs("renew", "site", "--authority", "new", "--previous", "old/ca.pem")
    assert Credentials.load(tmp_path / "site", 3).peer == 3


def test_a_certificate_is_for_one_peer_or_for_the_coordinator(certs, tmp_path):
    certs("init", "ca", "--federation", "north")
    issue = ("issue", "--authority", "ca", "--out", "office")
    for words in ((), ("--peer", "1", "--coordinator"), ("--coordinator", "--address", "office.example")):
        assert "give --peer NUMBER, or --coordinator" in certs(*issue, *words, code=2)
    assert "office: the coordinator of federation 'north', valid" in certs(*issue, "--coordinator")
    own, authority = json.loads(certs("show", "office", "--json"))
    assert (own["peer"], own["role"], authority["role"]) == (None, "coordinator", "authority")


def test_what_cannot_be_done_is_an_error_of_one_line(certs):
    certs("init", "ca", "--federation", "north")
    issue = ("issue", "--authority", "ca", "--peer", "1", "--out")
    certs(*issue, "site")
    for words, says in (
        (("init", "ca", "--federation", "north"), "ca/ca.pem is there already and is not overwritten"),
        (("init", "new", "--federation", "Not a name"), "use lower-case letters"),
        ((*issue, "site"), "site/ca.pem is there already and is not overwritten"),
        (("issue", "--authority", "site", "--peer", "1", "--out", "x"), "site/ca.key: No such file"),
        (("renew", "nowhere", "--authority", "ca"), "nowhere/peer.pem: No such file"),
        (("show", "nowhere"), "nowhere/ca.pem: No such file"),
    ):
        said = certs(*words, code=2)
        assert said.startswith("error: ")
        assert says in said
        assert said.count("\n") == 1


def test_a_revoked_certificate_is_listed_for_all_sites_and_shown(certs, tmp_path):
    certs("init", "ca", "--federation", "north")
    certs("issue", "--authority", "ca", "--peer", "3", "--out", "site")
    certs("issue", "--authority", "ca", "--coordinator", "--out", "office")
    serial = f"{Credentials.load(tmp_path / 'site', 3).facts.serial:X}"
    said = certs("revoke", "--authority", "ca", "--peer", "3")
    assert said.startswith(f"revoked: peer 3 (serial {serial}, revoked on ")
    assert "ca/crl.pem: list 1 of " in said
    assert "1 revoked; copy it into every site's certificates folder" in said
    (tmp_path / "site/crl.pem").write_bytes((tmp_path / "ca/crl.pem").read_bytes())
    table = certs("show", "site")
    for part in (
        "REVOKED",
        "crl.pem: list 1 of",
        "the next is due by",
        f"  revoked     peer 3 (serial {serial}",
    ):
        assert part in table
    own, _, listed = json.loads(certs("show", "site", "--json"))
    assert (own["state"], own["serial"]) == ("REVOKED", serial)
    assert (listed["file"], listed["role"], listed["number"], listed["state"]) == (
        "crl.pem",
        "revocations",
        1,
        "in force",
    )
    ((entry),) = listed["revoked"]
    assert (entry["serial"], entry["peer"], entry["role"]) == (serial, 3, "peer")
    assert "the coordinator (serial" in certs("revoke", "office", "--authority", "ca", "--days", "30")
    assert "nothing is revoked that was not before" in certs("revoke", "--authority", "ca")
    assert "list 3 of" in certs("show", "ca")
    assert certs("renew", "site", "--authority", "ca")
    assert "REVOKED" not in certs("show", "site")


def test_a_key_that_stays_at_its_site_is_certified_by_request(certs, tmp_path):
    certs("init", "ca", "--federation", "north")
    said = certs("request", "site", "--federation", "north", "--peer", "3", "--address", "ward.example")
    assert said.startswith("site/peer.csr: a request for peer 3 of federation 'north'")
    issue = ("issue", "--authority", "ca", "--request", "site/peer.csr", "--out", "mail")
    said = certs(*issue, "--peer", "3")
    assert "mail: peer 3 of federation 'north', valid until" in said
    assert "names: ward.example; copy the files beside the peer.key" in said
    for name in ("ca.pem", "peer.pem"):
        (tmp_path / "site" / name).write_bytes((tmp_path / "mail" / name).read_bytes())
    assert not (tmp_path / "mail" / "peer.key").exists()
    assert Credentials.load(tmp_path / "site", 3).peer == 3
    for words, says in (
        ((*issue[:-1], "other", "--peer", "4"), "is for peer 3 of federation 'north', not for peer 4"),
        ((*issue[:-1], "other", "--peer", "3", "--address", "x.example"), "the request has its addresses"),
        (("request", "site", "--federation", "north", "--peer", "3"), "is there already and is not"),
        (("request", "new", "--federation", "No name", "--peer", "3"), "use lower-case letters"),
        (("request", "new", "--federation", "north"), "give --peer NUMBER, or --coordinator"),
        (("revoke", "--authority", "ca", "--peer", "3", "--coordinator"), "not both"),
        (("revoke", "--authority", "ca", "--peer", "9"), "has no copy of a certificate of peer 9"),
        (("revoke", "site/peer.csr", "--authority", "ca"), "holds no certificate in PEM form"),
        (("revoke", "--authority", "ca", "--days", "0"), "days = 0: must be above 0"),
    ):
        told = certs(*words, code=2)
        assert told.startswith("error: ")
        assert says in told
