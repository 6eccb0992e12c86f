"""Once the peers train, nobody needs the server, through which little goes. Real processes.

A start takes a quarter of a minute and more, so what can share a deployment does.
"""

from __future__ import annotations

import json

import pytest

from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import read_results

from .deployment import Deployment, wait_until

pytestmark = pytest.mark.timeout(900)


def collected(deployment, run):
    """Wait until every peer has ended, and return the results that their files give."""
    deployment.peers_end(run)
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


def test_what_crosses_the_superlink_is_small_and_does_not_depend_on_q(tmp_path):
    """By Flower's own figure; and what the coordinator made of it is what the peers' files give."""
    models = tmp_path / "models.py"
    models.write_text(MODEL)
    traffic, sizes = {}, {}
    with Deployment(tmp_path / "deployment") as deployment:
        for name in ("small", "large"):
            folder = tmp_path / name
            settings = {"model": f"{models}:{name}", "weights": "none", "shots": 2, "iterations": 6}
            run = deployment.run(**settings, evaluate_every=2, output_dir=str(folder))
            listed = deployment.ended(run)
            assert listed["status"] == "finished:completed", deployment.said()
            results = read_results(folder)
            traffic[name] = listed["network-traffic"]["total-bytes"]
            sizes[name] = results["trainable_parameters"]
            again = json.loads(json.dumps(collected(deployment, run)))
            assert all(again[key] == results[key] for key in results.keys() - {"seconds"})  # whose clock
    assert not list(deployment.started())
    assert 10_000 < sizes["small"] < 12_000
    assert 2_000_000 < sizes["large"] < 2_100_000
    assert max(traffic.values()) < 64 * 1024, traffic
    assert abs(traffic["large"] - traffic["small"]) < 1024, traffic  # numbers have more or fewer digits


def scores(deployment, run, peer):
    return len(deployment.lines(run, peer, "evaluation"))


def kill_the_serverapp(deployment):
    (server,) = deployment.processes("flwr-serverapp")
    server.kill()


def cut_the_network(deployment):
    for relay in deployment.network:
        relay.sever()


def kill_the_superlink(deployment):
    deployment.superlink.kill()
    deployment.superlink.wait()


def test_nothing_that_happens_to_the_server_changes_anything_for_the_peers(tmp_path):
    with Deployment(tmp_path, proxied=True) as deployment:
        run = deployment.run(iterations=2400, evaluate_every=40)
        deployment.trains(run)
        for harm in (kill_the_serverapp, cut_the_network, kill_the_superlink):
            seen = [len(deployment.lines(run, peer, "evaluation")) for peer in (0, 1)]
            harm(deployment)
            for peer in (0, 1):
                wait_until(
                    lambda peer=peer, seen=seen: (
                        len(deployment.lines(run, peer, "evaluation")) > seen[peer] + 1
                    ),
                    f"peer {peer} trains on after {harm.__name__}",
                    said=deployment.said,
                )
            assert not any(deployment.lines(run, peer, "end") for peer in (0, 1)), harm.__name__
        collected(deployment, run)
    assert not list(deployment.started())
