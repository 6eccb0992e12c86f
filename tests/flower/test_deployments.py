"""Runs of one deployment of three sites, one after the other: real processes, and a problem without torch.

A start of SuperLink and SuperNodes takes seconds, so all share it. Each test says which sites it needs, and
can be run alone; the server dies in the last. The SuperNode of site 1 starts nothing itself
(``--isolation process``): the site has an executor of its own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import time
from pathlib import Path

import pytest

from p2pft_flower.keeping.bulletins import bulletins
from p2pft_flower.keeping.running import running
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import FILE, read_results
from tests.quadratics import LARGE, LARGE_Q, SLOW

from .deployment import Deployment, wait_until

pytestmark = pytest.mark.timeout(900)

LEAVE = 60.0
"""Seconds within which stopped peers have left; who is not told notices it after ``peer-timeout``, 120 s."""

ROOT = Path(__file__).resolve().parents[2]

# Every Python that is started runs this first, and so notes each of these that it imports.
WATCH = """
import os, sys

class Watch:
    named = {
        "torch", "timm", "torchvision", "matplotlib", "sklearn", "p2pft_flower.host.own_problem"
    }

    def find_spec(self, name, path=None, target=None):
        if name in self.named:
            with open(os.environ["IMPORTED"], "a") as file:
                file.write(name + "\\n")

sys.meta_path.insert(0, Watch())
"""

FOR_EVER = {"problem": SLOW, "iterations": 10_000_000, "evaluate_every": 5}

OVER = "was told to end (SIGINT); the site stopped it, or its SuperNode is gone"

# Flower lets a SuperNode that was killed go only when its heartbeats have failed to come for a minute.
PATIENT = {"meet_timeout": 300.0}

TWO, THREE = (0, 1), (0, 1, 2)
"""Sites; each costs processor time, so tests that need no third one do without, and come last."""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("d")
    (folder / "sitecustomize.py").write_text(WATCH)
    watched = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "IMPORTED": str(folder / "imported")}
    with Deployment(
        folder / "deployment", 3, proxied=True, own_executors={1}, environment=watched
    ) as started:
        yield started
    assert not started.started()


def only(deployment, *peers):
    """Let the SuperNodes of these sites run, and no other, whatever an earlier test has left."""
    for peer in THREE:
        if peer in peers:
            deployment.start_supernode(peer)
        else:
            deployment.kill_supernode(peer)


def collected(deployment, run, *peers):
    """Wait until every peer has ended, and return the results that their files give."""
    deployment.peers_end(run, *peers)
    results = collect_results(find_peers([deployment.outputs[p] / run for p in peers or THREE]))
    assert (results["status"], results["run"]) == ("completed", run)
    assert None not in results["history"][-1]["accuracy"]
    return results


def signal_site(deployment, peer, number):
    """Signal a site's SuperNode and all its children at once."""
    deployment.supernodes[peer].send_signal(signal.SIGSTOP)  # it starts nothing meanwhile
    group = os.getpgid(deployment.supernodes[peer].pid)
    os.killpg(group, number)


@pytest.fixture(scope="module")
def trained(deployment, tmp_path_factory):
    """What Flower lists, the results and the number of a run of many numbers."""
    only(deployment, *THREE)
    folder = tmp_path_factory.mktemp("results") / "run"
    run = deployment.run(problem=LARGE, iterations=6, evaluate_every=2, output_dir=str(folder))
    listed = deployment.ended(run)
    assert listed["status"] == "finished:completed", deployment.said()
    return listed, read_results(folder), run


def test_what_crosses_the_superlink_is_small_however_large_q_is(trained):
    """By Flower's own figure; `test_app.py` compares one q with another."""
    listed, results, _ = trained
    assert results["trainable_parameters"] == LARGE_Q
    crossed = listed["network-traffic"]["total-bytes"]
    assert 1024 < crossed < 64 * 1024 < LARGE_Q, crossed  # not a byte a parameter


def test_what_the_coordinator_has_made_of_it_is_what_the_peers_files_give(deployment, trained):
    _, results, run = trained
    again = json.loads(json.dumps(collected(deployment, run)))
    assert all(
        again[key] == results[key] for key in results.keys() - {"seconds", "begun", "ended"}
    )  # whose clock


def test_a_problem_without_torch_is_trained_without_torch_in_any_process(deployment, trained):
    imported = set(Path(deployment.environment["IMPORTED"]).read_text().split())
    assert "p2pft_flower.host.own_problem" in imported
    assert imported.isdisjoint({"torch", "timm", "torchvision", "matplotlib", "sklearn"})


def all_stop(deployment, run, reason, *peers):
    """Wait until all ClientApps have left, each having said why in its log; and the ports are free."""
    wait_until(lambda: not deployment.processes("flwr-clientapp"), "ClientApps end", said=deployment.said)
    for peer in peers:
        left(deployment, run, peer, reason)
    times = [deployment.lines(run, peer, "failed")[0]["time"] for peer in peers]
    assert max(times) - min(times) < LEAVE


def left(deployment, run, peer, reason):
    """Check that a peer has said why it ends, and that its port is free."""
    (last,) = deployment.lines(run, peer, "failed")
    assert reason in last["error"]
    assert not deployment.lines(run, peer, "end")
    socket.create_server(("127.0.0.1", deployment.ports[peer])).close()


def test_a_sites_command_ends_all_peers_at_once_also_after_a_loss_with_a_table_of_them_all(
    deployment, tmp_path, monkeypatch
):
    only(deployment, *THREE)
    settings = {
        **FOR_EVER,
        **PATIENT,
        "peer_timeout": 5.0,
        "observer_address": f"127.0.0.1:{free_ports(1)[0]}",
    }
    run = deployment.run(**settings, topology="directed-ring:3", output_dir=str(tmp_path))
    deployment.trains(run)
    monkeypatch.setenv("P2PFT_HOME", deployment.environment["P2PFT_HOME"])
    (victim,) = (there for there in running(run) if there.peers == (2,))
    os.kill(victim.pid, signal.SIGKILL)  # its SuperNode does not notice for a minute
    for peer in (0, 1):
        wait_until(lambda peer=peer: deployment.lines(run, peer, "view"), "it goes on", said=deployment.said)
    assert f"run {run}: peer 0 has ended" in deployment.p2pft("stop", run)
    begin = time.monotonic()
    all_stop(deployment, run, "the run was stopped at a site of it (p2pft stop, SIGTERM)", 0, 1)
    assert deployment.ended(run)["status"] == "finished:failed"
    assert time.monotonic() - begin < 40, "Flower does not notice for a minute that the victim is gone"
    results = read_results(tmp_path)
    assert results["status"] == "stopped"
    assert "(p2pft stop, SIGTERM)" in results["error"]
    assert [p["peer"] for p in results["peers"]] == [0, 1]
    (lost,) = results["unfinished"]
    assert lost["peer"] == 2
    assert lost["state"] == f"lost after {results['views'][0]['iteration']} iterations"
    assert all(p["accuracy"] is not None for p in [*results["peers"], lost])
    assert None not in results["history"][0]["accuracy"]
    found = collect_results(find_peers([output / run for output in deployment.outputs]))
    assert (found["status"], found["error"]) == (results["status"], results["error"])
    assert json.loads(json.dumps(found["peers"])) == results["peers"]


def test_a_peer_that_came_back_stands_in_the_results_of_a_stop_as_the_others_do(
    deployment, tmp_path, monkeypatch
):
    only(deployment, *THREE)
    settings = {**FOR_EVER, **PATIENT, "output_dir": str(tmp_path)}
    run = deployment.run(**settings, topology="directed-ring:3")
    deployment.trains(run)
    monkeypatch.setenv("P2PFT_HOME", deployment.environment["P2PFT_HOME"])
    (victim,) = (there for there in running(run) if there.peers == (2,))
    os.kill(victim.pid, signal.SIGTERM)
    wait_until(lambda: deployment.lines(run, 0, "view"), "the others go on", said=deployment.said)
    rejoined = deployment.start_p2pft("rejoin", run, "--node-config", deployment.node_config(2))

    def scored_again():
        back = [view for view in deployment.lines(run, 0, "view") if view["joined"] == [2]]
        told = [p for b in bulletins(run) if b.own == (0,) for p in b.peers if p.peer == 2]
        return back and [p for p in told if (p.evaluated or 0) > back[0]["iteration"]]

    wait_until(scored_again, "peer 0 has heard of its scores", said=deployment.said)
    deployment.p2pft("stop", run)
    assert rejoined.wait(60) == 1
    deployment.ended(run)
    results = read_results(tmp_path)
    lost, back = results["views"]
    assert results["status"] == "stopped", results["error"]
    # Who was reached first tells the others; whoever it is, peer 0 does not name itself twice.
    assert re.match(r"peer 0(: peer [12])? stopped in iteration \d+: ", results["error"]), results["error"]
    assert back["missed"] == {"2": back["iteration"] - lost["iteration"]}
    (row,) = (row for row in results["peers"] if row["peer"] == 2)
    assert "came back and was stopped with the others, last heard of after" in row["state"]
    assert row["iterations"] > back["iteration"]
    assert row["accuracy"] is not None


def test_sites_whose_supernodes_die_are_left_behind_and_named_in_the_results(deployment, tmp_path):
    only(deployment, *THREE)
    # Their peers train on until they are told, which takes Flower some seconds, and the second one 20.
    settings = {"iterations": 250, "evaluate_every": 5, "output_dir": str(tmp_path)}
    run = deployment.run(problem=SLOW, topology="directed-ring:3", **settings)
    deployment.trains(run)
    deployment.kill_supernode(2)
    for peer in (0, 1):
        (view,) = wait_until(
            lambda peer=peer: deployment.lines(run, peer, "view"), f"{peer} goes on", said=deployment.said
        )
        assert (view["number"], view["peers"], view["lost"]) == (1, [0, 1], [2])
        assert [1, 0] in view["edges"]  # 2 stood between them
    deployment.kill_supernode(1)  # it has not started its executor, nor the peer
    deployment.peers_end(run, 0)
    left(deployment, run, 1, OVER)
    deployment.ended(run)
    results = read_results(tmp_path)
    assert results["status"] == "completed-with-1-of-3"
    assert [p["peer"] for p in results["peers"]] == [0]
    for peer in (1, 2):
        assert f"peer {peer} was lost after" in results["error"]
    assert OVER in results["error"]
    assert [view["peers"] for view in results["views"]] == [[0, 1], [0]]
    for view, peer in zip(results["views"], (2, 1), strict=True):
        assert OVER in view["why"][str(peer)]
    assert results["history"][-1]["accuracy"][1:] == [None, None]
    found = collect_results(find_peers([output / run for output in deployment.outputs]))
    for view in (*found["views"], *results["views"]):
        for key in ("seconds", "time"):  # of all peers whose log is read; the coordinator has peer 0's alone
            view.pop(key)
    assert found["views"] == results["views"]
    assert found["status"] == results["status"]


def test_a_site_that_died_comes_back_and_all_peers_train_to_the_end(deployment, tmp_path):
    only(deployment, *THREE)
    settings = {"iterations": 30, "evaluate_every": 5, "peer_timeout": 5.0, "output_dir": str(tmp_path)}
    # The others wait for it from when it is suspended: on however fast a machine they do not end before.
    run = deployment.run(problem=SLOW, topology="directed-ring:3", **settings, **PATIENT, on_failure="wait")
    deployment.trains(run)
    signal_site(deployment, 2, signal.SIGSTOP)
    plan = deployment.outputs[2] / run / "peers" / "peer-2.plan.json"
    assert stat.S_IMODE(plan.stat().st_mode) == 0o600
    refused = deployment.p2pft_fails("rejoin", run, "--node-config", deployment.node_config(2))
    assert re.search(rf"peer 2 of run {run} trains already, in process \d+", refused)
    signal_site(deployment, 2, signal.SIGKILL)  # as a power cut would
    # As the service does that starts with the machine: nobody says which run.
    rejoined = deployment.start_p2pft("rejoin", "--interrupted", "--node-config", deployment.node_config(2))
    deployment.peers_end(run)
    assert rejoined.wait(60) == 0, deployment.said()
    for peer in range(3):
        views = deployment.lines(run, peer, "view")
        assert [(view["peers"], view["joined"]) for view in views] == [([0, 1, 2], [2])]
    deployment.ended(run)
    results = read_results(tmp_path)
    assert results["status"] == "completed-with-2-of-3"
    assert "peers [2] came back through p2pft rejoin" in results["error"]
    assert [view["joined"] for view in results["views"]] == [[2]]
    found = collect_results(find_peers([output / run for output in deployment.outputs]))
    assert found["status"] == "completed"
    assert found["error"] is None
    assert found["history"][-1]["accuracy"][2] is not None


def test_flwr_stop_ends_all_peers(deployment, tmp_path):
    only(deployment, *TWO)
    folder = tmp_path / "results"
    run = deployment.run(**FOR_EVER, **PATIENT, topology="ring:2", output_dir=str(folder))
    deployment.trains(run, *TWO)
    deployment.flwr("stop", run, "test")
    all_stop(deployment, run, "the run was stopped (flwr stop)", *TWO)
    wait_until((folder / FILE).exists, "the coordinator writes its results", said=deployment.said)
    results = read_results(folder)
    assert results["status"] == "stopped"
    assert results["error"] == "the run was stopped by flwr stop or Ctrl-C (SIGINT)"


def test_a_peer_ends_with_its_sites_own_executor_and_where_peers_do_not_go_on_so_do_all(deployment):
    only(deployment, *TWO)
    run = deployment.run(**FOR_EVER, **PATIENT, topology="ring:2", on_failure="stop")
    deployment.trains(run, *TWO)
    parents = [p.ppid() for p in deployment.processes("flwr-clientapp")]
    assert parents.count(deployment.superexecs[1].pid) == 1
    deployment.kill_superexec(1)
    all_stop(deployment, run, OVER, *TWO)
    assert deployment.ended(run)["status"] == "finished:failed"
    deployment.start_superexec(1)  # as a service manager does; the SuperNode is not restarted


def kill_the_serverapp(deployment):
    (server,) = deployment.processes("flwr-serverapp")
    server.kill()


def cut_the_network(deployment):
    for relay in deployment.network:
        relay.sever()


def kill_the_superlink(deployment):
    deployment.superlink.kill()
    deployment.superlink.wait()


def test_nothing_that_happens_to_the_server_changes_anything_for_the_peers(deployment):
    """The last one: nothing is left of the server."""
    only(deployment, *TWO)
    run = deployment.run(problem=SLOW, topology="ring:2", iterations=120, evaluate_every=5, **PATIENT)
    deployment.trains(run, *TWO)
    for harm in (kill_the_serverapp, cut_the_network, kill_the_superlink):
        seen = [len(deployment.lines(run, peer, "evaluation")) for peer in TWO]
        harm(deployment)
        for peer in TWO:
            wait_until(
                lambda peer=peer, seen=seen: len(deployment.lines(run, peer, "evaluation")) > seen[peer] + 1,
                f"peer {peer} trains on after {harm.__name__}",
                said=deployment.said,
            )
        assert not any(deployment.lines(run, peer, "end") for peer in TWO), harm.__name__
    collected(deployment, run, *TWO)
