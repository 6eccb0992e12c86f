"""``p2pft certs``: what it makes, prints and refuses."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from p2pft_flower.cli import app
from p2pft_flower.transport import Credentials


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
