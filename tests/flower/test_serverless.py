"""Once the peers train, nobody needs the server; and whoever ends the run does end the peers. Real processes.

A start takes a quarter of a minute and more, so what can share a deployment does.
"""

from __future__ import annotations

import json
import socket

import pytest

from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import FILE, read_results

from .deployment import Deployment, wait_until

LEAVE = 10.0
"""Seconds within which stopped peers have left."""

LONG = 10_000_000
"""Iterations that no test waits for."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def deployment(tmp_path):
    with Deployment(tmp_path) as started:
        yield started
    assert not list(started.started())


def training(deployment, run):
    """Wait until every peer of ``run`` has trained for a while, and is not near its end."""
    for peer in (0, 1):
        wait_until(
            lambda peer=peer: len(deployment.lines(run, peer, "evaluation")) > 1,
            f"peer {peer} trains",
            said=deployment.said,
        )
    assert not any(deployment.lines(run, peer, "end") for peer in (0, 1))


def all_stop(deployment, run, reason):
    """Wait until both ClientApps have left, each having said why in its log; and the ports are free."""
    wait_until(lambda: not deployment.processes("flwr-clientapp"), "ClientApps end", said=deployment.said)
    for peer in (0, 1):
        (last,) = deployment.lines(run, peer, "failed")
        assert reason in last["error"]
        assert not deployment.lines(run, peer, "end")
        socket.create_server(("127.0.0.1", deployment.ports[peer])).close()
    times = [deployment.lines(run, peer, "failed")[0]["time"] for peer in (0, 1)]
    assert max(times) - min(times) < LEAVE


def collected(deployment, run):
    """Wait until every peer has ended, and return the results that their files give."""
    for peer in (0, 1):
        wait_until(
            lambda peer=peer: deployment.lines(run, peer, "end"),
            f"peer {peer} has ended",
            said=deployment.said,
        )
    results = collect_results(find_peers([output / run for output in deployment.outputs]))
    assert (results["status"], results["run"]) == ("completed", run)
    assert None not in results["history"][-1]["accuracy"]
    return results


MODEL = """
from timm.models.vision_transformer import VisionTransformer

def _vit(dim, num_classes):
    model = VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=num_classes, embed_dim=dim, depth=1, num_heads=4
    )
    model.pretrained_cfg = {
        "input_size": (1, 8, 8), "interpolation": "bilinear", "mean": (0.5,), "std": (0.5,),
        "crop_pct": 1.0, "crop_mode": "center",
    }
    return model

def small(num_classes, pretrained):
    return _vit(28, num_classes)

def large(num_classes, pretrained):
    return _vit(408, num_classes)
"""


def test_what_crosses_the_superlink_is_small_and_does_not_depend_on_q(deployment):
    """By Flower's own figure; and what the coordinator made of it is what the peers' files give."""
    models = deployment.folder / "models.py"
    models.write_text(MODEL)
    traffic, sizes = {}, {}
    for name in ("small", "large"):
        folder = deployment.folder / name
        run = deployment.run(
            model=f"{models}:{name}",
            weights="none",
            shots=2,
            iterations=6,
            evaluate_every=2,
            output_dir=str(folder),
        )
        listed = deployment.ended(run)
        assert listed["status"] == "finished:completed", deployment.said()
        results = read_results(folder)
        traffic[name], sizes[name] = listed["network-traffic"]["total-bytes"], results["trainable_parameters"]
        again = json.loads(json.dumps(collected(deployment, run)))
        assert all(
            again[key] == results[key] for key in results.keys() - {"seconds"}
        )  # the coordinator's clock
    assert 10_000 < sizes["small"] < 12_000
    assert 2_000_000 < sizes["large"] < 2_100_000
    assert max(traffic.values()) < 64 * 1024, traffic
    assert abs(traffic["large"] - traffic["small"]) < 1024, traffic  # numbers have more or fewer digits


def test_a_killed_serverapp_changes_nothing_for_the_peers_and_flwr_stop_ends_them(deployment):
    run = deployment.run(iterations=3000, evaluate_every=300)
    training(deployment, run)
    (server,) = deployment.processes("flwr-serverapp")
    server.kill()
    assert not any(deployment.lines(run, peer, "end") for peer in (0, 1))
    collected(deployment, run)
    wait_until(lambda: not deployment.processes("flwr-clientapp"), "ClientApps end", said=deployment.said)

    folder = deployment.folder / "stopped"
    run = deployment.run(iterations=LONG, evaluate_every=100, output_dir=str(folder))
    training(deployment, run)
    deployment.flwr("stop", run, "test")
    all_stop(deployment, run, "the run was stopped (flwr stop)")
    wait_until((folder / FILE).exists, "the coordinator writes its results", said=deployment.said)
    results = read_results(folder)
    assert (results["status"], results["error"]) == (
        "stopped",
        "the run was stopped by flwr stop or Ctrl-C (SIGINT)",
    )


def test_a_killed_superlink_changes_nothing_for_the_peers(deployment):
    run = deployment.run(iterations=3000, evaluate_every=300)
    training(deployment, run)
    deployment.superlink.kill()
    deployment.superlink.wait()
    assert not any(deployment.lines(run, peer, "end") for peer in (0, 1))
    collected(deployment, run)


def test_a_network_cut_to_the_superlink_changes_nothing_for_the_peers(tmp_path):
    with Deployment(tmp_path, proxied=True) as deployment:
        run = deployment.run(iterations=3000, evaluate_every=300)
        training(deployment, run)
        for proxy in deployment.proxies:
            proxy.cut()
        assert not any(deployment.lines(run, peer, "end") for peer in (0, 1))
        collected(deployment, run)


def test_one_site_ends_all_by_its_command_and_where_nobody_goes_on_alone_by_its_supernodes_death(deployment):
    folder = deployment.folder / "stopped"
    run = deployment.run(iterations=LONG, evaluate_every=100, output_dir=str(folder))
    training(deployment, run)
    said = deployment.p2pft("stop", run)
    assert f"run {run}: peer 0 has ended" in said
    all_stop(deployment, run, "the run was stopped at a site of it (p2pft stop, SIGTERM)")
    assert deployment.ended(run)["status"] == "finished:failed"
    results = read_results(folder)
    assert (results["status"], results["views"]) == ("stopped", [])
    assert "(p2pft stop, SIGTERM)" in results["error"]

    run = deployment.run(iterations=LONG, evaluate_every=100, on_failure="stop")
    training(deployment, run)
    deployment.supernodes[1].kill()
    deployment.supernodes[1].wait()
    all_stop(deployment, run, "was told to end (SIGINT); the site stopped it, or its SuperNode is gone")


def test_executors_of_the_sites_own_train_the_peers_and_end_them_with_their_supernode(tmp_path):
    """SuperNodes with ``--isolation process`` start nothing themselves."""
    ended = "was told to end (SIGINT); the site stopped it, or its SuperNode is gone"
    with Deployment(tmp_path, isolation="process") as deployment:
        run = deployment.run(iterations=LONG, evaluate_every=100, on_failure="stop")
        training(deployment, run)
        parents = {p.ppid() for p in deployment.processes("flwr-clientapp")}
        assert parents == {executor.pid for executor in deployment.superexecs}
        deployment.superexecs[1].kill()
        deployment.superexecs[1].wait()
        all_stop(deployment, run, ended)
        assert deployment.ended(run)["status"] == "finished:failed"

        deployment.start_superexec(1)  # as a service manager does; the SuperNode has not been restarted
        run = deployment.run(iterations=6, evaluate_every=2)
        assert deployment.ended(run)["status"] == "finished:completed", deployment.said()
        collected(deployment, run)

        run = deployment.run(iterations=LONG, evaluate_every=100, on_failure="stop")
        training(deployment, run)
        deployment.supernodes[1].kill()
        deployment.supernodes[1].wait()
        all_stop(deployment, run, ended)
    assert not list(deployment.started())
