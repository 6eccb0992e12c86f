"""Deployed peers that cannot trust each other are refused before anything trains."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest

from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError
from p2pft_flower.flower.nodes import HostAssignment, RunFailedError
from p2pft_flower.flower.trust import coordinator_credentials, find_distrust, observer_access
from p2pft_flower.host.wires import Access
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View
from p2pft_flower.transport import COORDINATOR_CERTIFICATES
from tests.transport.federation import Clock, Federation

from .engine import run_app
from .test_app import same, tails

RING = Graph.load("ring:3")
FINE = ([], frozenset())


def check(
    federations, addresses=("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"), insecure=(False,) * 3, view=None
):
    view = view or View.whole(RING)
    hosts = [HostAssignment(100 + p, (p,), address) for p, address in enumerate(addresses) if p in view.peers]
    answers = {100 + p: {"federation": federations[p], "insecure": insecure[p]} for p in range(3)}
    return find_distrust(view, hosts, answers)


def test_only_the_addresses_of_those_that_are_there_matter():
    four = Graph.from_weights(
        Graph.load("directed-ring:4").W, addresses=[None, None, None, "far.example:9000"]
    )
    assert check([""] * 3, view=View.without(four, [3])) == FINE


def test_new_neighbours_must_trust_each_other_too():
    """0 to 1 to 2 to 3 to 0: without 3, what 2 sends goes to 0, which had nothing of it."""
    view = View.without(Graph.load("directed-ring:4"), [3])
    found = check([""] * 3, ("127.0.0.1:1", "127.0.0.1:2", "far.example:1"), view=view)
    assert found.faults[0].startswith("peer 0 has no certificates, and peer 2 at far.example:1 is on another")


FAR = ("127.0.0.1:1", "ward.example:9000", "127.0.0.1:3")


def test_peers_of_one_federation_and_plain_text_on_one_machine_are_fine():
    assert check(["north"] * 3, FAR) == FINE
    assert check([""] * 3) == FINE
    assert check([""] * 3, ("unix:/run/0.sock", "localhost:1", "[::1]:2")) == FINE
    assert check([""] * 3, FAR, insecure=(True,) * 3) == FINE


@pytest.mark.parametrize(
    ("federations", "addresses", "insecure", "says"),
    [
        (
            ["north", "south", "north"],
            FAR,
            (False,) * 3,
            r"different federations, 'north': peers \[0, 2\]; 'south': peers \[1\]",
        ),
        (["north", "", "north"], FAR, (False,) * 3, r"peers \[1\] have no certificates, peers \[0, 2\] have"),
        (["north", "", ""], FAR, (True,) * 3, r"peers \[1, 2\] have no certificates, peers \[0\] have those"),
        (
            [""] * 3,
            FAR,
            (False,) * 3,
            "peer 0 has no certificates, and peer 1 at ward.example:9000 is on another machine: set cert",
        ),
        ([""] * 3, FAR, (True, True, False), "peer 2 has no certificates, and peer 1 at ward"),
    ],
)
def test_peers_that_cannot_trust_each_other_are_named(federations, addresses, insecure, says):
    told = "\n".join(check(federations, addresses, insecure).faults)
    assert re.search(says, told), told


def nodes_of(folders):
    return [
        {"peer-id": p, "peer-address": f"127.0.0.1:{port}", "certificates": str(folder)}
        for p, (folder, port) in enumerate(zip(folders, free_ports(len(folders)), strict=True))
    ]


SETTINGS = {"slots": 2, "topology": "ring:2", "partition": "iid", "iterations": 4}


def test_deployed_peers_reach_the_same_theta_over_tls_and_say_what_expires(tmp_path, capsys):
    north = Federation(tmp_path / "north")
    run_app(tmp_path / "d", node_configs=nodes_of([north.issue(0), north.issue(1, days=3)]), **SETTINGS)
    run_app(tmp_path / "m", **SETTINGS)
    assert same(tails(tmp_path / "d", 2), tails(tmp_path / "m", 2))
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "expires on" in line]
    assert " peer 1: " in warning
    assert "p2pft certs renew" in warning


def said_by(tmp_path, capsys, monkeypatch, folder, **settings):
    """Return what a run of two peers of north logs when the coordinator is given ``folder``."""
    north = Federation(tmp_path / "north")
    monkeypatch.delenv(COORDINATOR_CERTIFICATES, raising=False)
    if folder is not None:
        monkeypatch.setenv(COORDINATOR_CERTIFICATES, str(folder(north)))
    run_app(tmp_path / "d", node_configs=nodes_of([north.issue(0), north.issue(1)]), **SETTINGS, **settings)
    return capsys.readouterr().out


def test_a_coordinator_that_could_not_stop_the_peers_says_so_at_the_start(tmp_path, capsys, monkeypatch):
    said = said_by(tmp_path, capsys, monkeypatch, None)
    assert said.count("flwr stop and Ctrl-C will not reach the peers") == 1
    assert "Set P2PFT_CERTIFICATES in the SuperLink's environment" in said
    assert said.index("will not reach") < said.index("accuracy on all classes")


def test_a_coordinator_with_a_certificate_of_its_own_warns_of_nothing(tmp_path, capsys, monkeypatch):
    assert "flwr stop" not in said_by(tmp_path, capsys, monkeypatch, Federation.coordinator)


def test_a_coordinator_with_a_certificate_hears_of_progress_where_it_listens(tmp_path, capsys, monkeypatch):
    where = {"observer_address": "127.0.0.1:0", "evaluate_every": 2}
    said = said_by(tmp_path, capsys, monkeypatch, Federation.coordinator, **where)
    assert re.findall(r"^[\d:]+ iteration (\d)/4 \| loss", said, re.M) == [
        "0",
        "2",
        "4",
    ]  # no site's own line
    assert "each site's log" not in said
    assert "does not reach" not in said


def test_a_coordinator_without_one_says_that_it_does_not_listen(tmp_path, capsys, monkeypatch):
    said = said_by(tmp_path, capsys, monkeypatch, None, observer_address="127.0.0.1:0")
    assert "observer-address = 127.0.0.1:0: nobody listens there" in said
    assert "each site's log, and p2pft status there, tell how they get on" in said
    assert not re.search(r"^[\d:]+ iteration", said, re.M)


def test_progress_is_heard_in_plain_text_only_where_all_peers_say_insecure():
    config = RunConfig.from_mapping({"observer-address": "192.0.2.7:9100"})
    plain = [{"federation": "", "insecure": insecure} for insecure in (True, False)]
    assert observer_access(config, {1: plain[0], 2: plain[0]}, None) == Access(insecure=True)
    assert observer_access(config, {1: plain[0], 2: plain[1]}, None) == Access(insecure=False)
    assert observer_access(RunConfig(), {1: plain[0]}, None) is None


def test_peers_without_certificates_are_stopped_without_and_nothing_is_warned_of(caplog, monkeypatch):
    monkeypatch.setenv(COORDINATOR_CERTIFICATES, "/nowhere")
    assert coordinator_credentials({1: {"federation": ""}, 2: {"federation": ""}}) is None
    assert caplog.text == ""


def test_a_coordinators_certificate_of_a_peer_or_of_another_federation_is_refused(tmp_path, monkeypatch):
    north, south = Federation(tmp_path / "north"), Federation(tmp_path / "south", "south")
    answers = {1: {"federation": "north"}}
    monkeypatch.setenv(COORDINATOR_CERTIFICATES, str(south.coordinator()))
    with pytest.raises(RunFailedError, match=r"is for the coordinator of federation 'south', but the peers"):
        coordinator_credentials(answers)
    monkeypatch.setenv(COORDINATOR_CERTIFICATES, str(north.issue(9)))
    with pytest.raises(ConfigError, match="is for peer 9 of federation 'north', not for the coordinator"):
        coordinator_credentials(answers)


@pytest.mark.parametrize(
    "what", ["another peer's", "expired", "missing", "readable by others", "two federations"]
)
def test_certificates_that_cannot_be_used_end_the_run_before_training(what, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    clock.ahead = timedelta(days=-10)
    north, south = Federation(tmp_path / "north"), Federation(tmp_path / "south", "south")
    expired = north.issue(1, days=5)
    clock.ahead = timedelta(0)
    open_to_others = north.issue(1)
    (open_to_others / "peer.key").chmod(0o644)
    folder, says = {
        "another peer's": (north.issue(2), r"peer 1: .*peer\.pem is for peer 2 of .*, not for peer 1"),
        "expired": (expired, r"peer 1: .*peer\.pem expired on .*'p2pft certs renew'"),
        "missing": (tmp_path / "nothing", r"peer 1: .*nothing/peer\.pem: No such file or directory"),
        "readable by others": (open_to_others, r"peer 1: .*peer\.key can be read by others .*chmod 600"),
        "two federations": (south.issue(1), "'north': peers .0.; 'south': peers .1."),
    }[what]
    with pytest.raises(RunFailedError, match=says):
        run_app(tmp_path / "out", node_configs=nodes_of([north.issue(0), folder]), **SETTINGS)
    assert not (tmp_path / "out" / "peers").exists()


def test_faults_of_certificates_and_folders_are_told_together(tmp_path, monkeypatch):
    north = Federation(tmp_path / "north")
    monkeypatch.setenv(COORDINATOR_CERTIFICATES, str(north.issue(8)))
    nodes = nodes_of([north.issue(0), tmp_path / "nothing", north.issue(9), north.issue(3)])
    (tmp_path / "file").write_text("")
    nodes[1]["output-dir"] = nodes[3]["output-dir"] = str(tmp_path / "file")
    with pytest.raises(RunFailedError) as caught:
        run_app(tmp_path / "out", node_configs=nodes, **SETTINGS | {"slots": 4, "topology": "ring:4"})
    first, *told = str(caught.value).splitlines()
    assert first.startswith("preflight found 5 failures")
    assert re.search(r"peer 1: .*nothing/peer\.pem: No such file", told[0])
    assert re.search(r"peer 2: .*peer\.pem is for peer 9 of .*, not for peer 2", told[1])
    assert re.search(r"coordinator: .*is for peer 8 of federation 'north', not for the coordinator", told[2])
    assert re.search(r"peer 1: output-dir .*file.* give a folder", told[3])
    assert re.search(r"peer 3: output-dir .*file.* give a folder", told[4])
    report = json.loads((tmp_path / "out" / "preflight.json").read_text())
    assert [(p["peer"], link["neighbour"]) for p in report["peers"] for link in p["links"]] == [
        (0, 3),
        (3, 0),
    ]


@pytest.mark.parametrize("algorithm", ["local", "fedavg"])
def test_certificates_that_cannot_be_used_end_runs_without_a_preflight_too(algorithm, tmp_path):
    north = Federation(tmp_path / "north")
    nodes = nodes_of([north.issue(5), tmp_path / "nothing"])
    with pytest.raises(RunFailedError, match=r"(?s)peer 0: .*for peer 5.*peer 1: .*No such file"):
        run_app(tmp_path / "out", node_configs=nodes, algorithm=algorithm, **SETTINGS)
