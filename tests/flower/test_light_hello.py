"""What a ClientApp answers before a run trains, and which models hello tells apart, without building any."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image
from safetensors.torch import save_file

from p2pft_flower.config import LearningConfig, config_keys
from p2pft_flower.errors import DataError
from p2pft_flower.flower import client, messages
from p2pft_flower.flower.nodes import RunFailedError
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.learning.model.model_facts import light_digest, model_facts
from p2pft_flower.learning.model.models import create_model
from tests.learning.data.test_torchvision_sets import write_cifar, write_flowers, write_pets
from tests.quadratics import QUADRATICS

from .engine import Engine, run_app

HEAVY = ("torch", "timm", "torchvision", "matplotlib")

ANSWERS = """
import json, sys
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from p2pft_flower.config import config_keys
from p2pft_flower.flower import messages
from tests.flower.engine import Engine

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
for case in json.load(open(sys.argv[1])):
    node = {"peer-id": 0, "peer-address": "127.0.0.1:" + sys.argv[2], "insecure": True}
    engine = Engine(1, 1, [node] if case.pop("deployed") else None)
    config = {**config_keys(), **case}
    hello = {"config": config, "n": 4, "pooled": "", "hold": 0.0}
    look = {"config": config, "run": "1", "addresses": {0: node["peer-address"]}, "timeout": 5.0}
    sent = [(messages.HELLO, hello)] + ([(messages.PREFLIGHT, look)] if engine._configs == [node] else [])
    for kind, body in sent:
        (reply,) = engine.send_and_receive([Message(messages.pack(body), 1000, kind)])
        answer = messages.unpack(reply)
        assert "ok" in answer, (case, answer)
    engine.close()
    print(json.dumps([case.get("dataset"), sorted(set(sys.argv[3:]) & sys.modules.keys())]))
"""


def pictures(root, peers):
    for peer in range(peers):
        for part in ("train", "test"):
            for label in range(8):
                folder = root / f"site-{peer}" / part / str(label)
                folder.mkdir(parents=True)
                Image.fromarray(np.full((8, 8), 20 * label + peer, np.uint8)).save(folder / "0.png")
    return root


def test_hello_and_the_preflights_links_import_no_torch_whatever_the_data(tmp_path):
    pictures(tmp_path, 4)
    write_cifar(tmp_path, kind=10)
    write_cifar(tmp_path, kind=100)
    write_pets(tmp_path)
    write_flowers(tmp_path)
    sets = {"data-dir": str(tmp_path), "verify": False, "partition": "iid"}
    weights = tmp_path / "weights.safetensors"
    save_file({"norm.weight": torch.ones(192)}, weights)
    (tmp_path / "own.py").write_text("import torch\n\n\ndef model(num_classes, pretrained):\n    ...\n")
    table = tmp_path / "labels.csv"
    rows = [
        f"site-{peer}/{part}/{label}/0.png,{label},{part},{peer}"
        for peer in range(4)
        for part in ("train", "test")
        for label in range(8)
    ]
    table.write_text("\n".join(["image,label,split,site", *rows]))
    tiny = {"model": "vit_tiny_patch16_224", "weights": str(weights)}
    cases = [
        {"deployed": False},
        {"deployed": True},
        {"deployed": True, "trunk-dtype": "float32", "dp-clip": 1.0, "dp-noise": 1.0},
        {"deployed": True, "dataset": f"folder:{tmp_path / 'site-0'}", "partition": "iid", **tiny},
        {"deployed": True, "dataset": f"folder:{tmp_path}/site-{{peer}}", "bad-images": "skip"},
        {"deployed": True, "dataset": f"folder:{tmp_path / 'site-0'}", "stream": True},
        {"deployed": True, "dataset": f"table:{table}", "partition": "by:site"},
        *({"deployed": True, "dataset": name, **sets} for name in ("cifar10", "cifar100")),
        {"deployed": True, "dataset": "oxford-flowers102", **sets, "model": f"{tmp_path / 'own.py'}:model"},
        {"deployed": True, "dataset": "oxford-iiit-pet", **sets, "shots": 2},
        {"deployed": True, "dataset": "digits", "partition": "dirichlet:9"},
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (port,) = free_ports(1)
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS, str(tmp_path / "cases.json"), str(port), *HEAVY],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        check=False,
    )
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(told) == len(cases), done.stderr[-3000:]
    assert [heavy for _, heavy in told] == [[]] * len(cases)


def tiny(**settings):
    return LearningConfig(model="vit_tiny_patch16_224", **settings)


@pytest.mark.parametrize(
    "other",
    [
        {"tune": "head"},
        {"seed": 1},
        {"image_size": 32},
        {"mean": "0.5"},
        {"weights": "none"},
        {"model": "deit_tiny_patch16_224"},
        {"trunk_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_whatever_decides_the_model_is_in_what_hello_says(other):
    first = {"model": "vit_tiny_patch16_224"}
    one, two = (light_digest(model_facts(LearningConfig(**s))) for s in (first, first | other))
    assert one != two
    assert one == light_digest(model_facts(tiny()))


def test_weights_count_by_what_the_file_holds_and_own_code_by_its_text(tmp_path):
    found = []
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        save_file({"norm.weight": torch.full((192,), value)}, tmp_path / f"{name}.safetensors")
        found.append(light_digest(model_facts(tiny(weights=str(tmp_path / f"{name}.safetensors")))))
    assert found[0] == found[1] != found[2]
    digests = []
    for text in ("def model(num_classes, pretrained): ...\n", "def model(num_classes, pretrained): ...\n\n"):
        (tmp_path / "own.py").write_text(text)
        digests.append(light_digest(model_facts(LearningConfig(model=f"{tmp_path / 'own.py'}:model"))))
    assert digests[0] != digests[1]
    with pytest.raises(DataError, match="there is no such file on the peers' machine"):
        model_facts(tiny(weights=str(tmp_path / "nowhere.safetensors")))


MODEL = """
from timm.models.vision_transformer import VisionTransformer
import torch

def model(num_classes, pretrained):
    built = VisionTransformer(img_size=8, patch_size=4, in_chans=1, num_classes=num_classes, embed_dim=16,
                              depth=2, num_heads=2)
    built.pretrained_cfg = {"input_size": (1, 8, 8), "mean": (MEAN,), "std": (0.5,), "crop_pct": 1.0}
    return built
"""


def sites(tmp_path, monkeypatch, facts):
    """Have each of two sites say other facts of its model, as machines with other files would."""
    nodes = [{"peer-id": p, "peer-address": f"127.0.0.1:{port}"} for p, port in enumerate(free_ports(2))]
    for cached in (client._facts, client.workload, client.holdings):
        cached.cache_clear()
    told = iter(facts)
    monkeypatch.setattr(client, "model_facts", lambda _: {"weights": next(told)})
    own = tmp_path / "own_model.py"
    own.write_text(MODEL.replace("MEAN", "0.5"))
    return {
        "slots": 2,
        "node_configs": nodes,
        "topology": "ring:2",
        "model": f"{own}:model",
        "weights": "none",
        "iterations": 1,
        "tune": "head",
    }


def built(monkeypatch):
    """Count how often a model is built."""
    count = []

    def counted(*arguments):
        count.append(arguments)
        return create_model(*arguments)

    monkeypatch.setattr("p2pft_flower.learning.image_model.create_model", counted)
    return count


def test_sites_whose_files_differ_build_their_models_and_train_where_these_are_alike(
    tmp_path, monkeypatch, capsys
):
    run_app(tmp_path / "out", **sites(tmp_path, monkeypatch, ["safetensors", "pth", "", ""]))
    said = capsys.readouterr().out
    assert "the sites build their models, which are compared: files of weights, code or processors" in said
    assert json.loads((tmp_path / "out" / "results.json").read_text())["status"] == "completed"
    digests = json.loads((tmp_path / "out" / "preflight.json").read_text())["digests"]
    assert digests["image size"] == "8 × 8 pixels, grey"


def test_sites_that_say_the_same_build_nothing_before_they_train(tmp_path, monkeypatch, capsys):
    settings = sites(tmp_path, monkeypatch, ["same", "same"])
    models = built(monkeypatch)
    run_app(tmp_path / "out", **settings)
    assert "the sites build their models" not in capsys.readouterr().out
    assert len(models) == 2  # one a site, when it trains
    assert "model digest" not in json.loads((tmp_path / "out" / "preflight.json").read_text())["digests"]


def test_models_that_differ_though_hello_said_the_same_are_refused_when_the_peers_meet(tmp_path, monkeypatch):
    settings = sites(tmp_path, monkeypatch, ["same", "same"])
    monkeypatch.setattr(
        "p2pft_flower.learning.workload.Workload.frozen_facts",
        lambda self: {"mean": f"that of peer {self.holdings.here[0]}"},
    )
    with pytest.raises(RunFailedError, match=r"has configuration digest 'settings \w+ model \w+'"):
        run_app(tmp_path / "out", **settings)
    assert not any(
        json.loads(line)["event"] == "start"
        for file in (tmp_path / "out").rglob("peer-*.jsonl")
        for line in file.read_text().splitlines()
    )


@pytest.mark.parametrize("settings", [{"algorithm": "local"}, {"algorithm": "fedavg"}])
def test_models_of_peers_that_never_meet_are_built_and_compared_first(settings, tmp_path, monkeypatch):
    nodes = sites(tmp_path, monkeypatch, ["same"] * 4)
    monkeypatch.setattr(
        "p2pft_flower.learning.workload.Workload.frozen_facts",
        lambda self: {"model digest": f"digest-{self.holdings.here}"},
    )
    with pytest.raises(RunFailedError, match=r"model digest differs: peers \[1\] have digest-\(1,\)"):
        run_app(tmp_path / "out", **nodes, **settings)


@pytest.mark.parametrize(
    ("settings", "node", "begun"),
    [({}, None, 1), ({"problem": QUADRATICS}, None, 0), ({}, {"peer-id": 0, "insecure": True}, 0)],
)
def test_a_simulations_process_imports_torch_while_it_holds_its_answer(settings, node, begun, monkeypatch):
    calls = []
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    monkeypatch.setattr(client, "import_meanwhile", lambda: calls.append(1))
    site = node and {**node, "peer-address": "127.0.0.1:9000"}
    config = {**config_keys(), **settings}
    for hold in (0.0, 0.01):
        body = {"config": config, "n": 4, "pooled": "", "hold": hold}
        engine = Engine(1, 1, [site] if site else None)
        (reply,) = engine.send_and_receive([Message(messages.pack(body), 1000, messages.HELLO)])
        engine.close()
        assert "ok" in messages.unpack(reply)
        assert len(calls) == (begun if hold else 0)
