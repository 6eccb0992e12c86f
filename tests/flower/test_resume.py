"""A run that goes on from checkpoints is the one never interrupted, bit for bit; or it is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from msgspec import structs
from PIL import Image

from p2pft_flower.config import MethodConfig
from p2pft_flower.errors import P2PFTError
from p2pft_flower.flower import client
from p2pft_flower.flower.rounds import STATELESS
from p2pft_flower.flower.strategies import make_strategy, strategy_names
from p2pft_flower.keeping.checkpoints import (
    SERVER,
    checkpoint_files,
    checkpoint_folder,
    read_checkpoint,
    write_checkpoint,
)
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.learning.privacy import epsilon
from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import read_results
from tests.quadratics import QUADRATICS

from .engine import run_app
from .sameness import same_run, scores, tails

SHORT = {
    "iterations": 7,
    "evaluate_every": 3,
    "checkpoint_every": 2,
    "checkpoints_kept": 50,
    "shots": 4,
    "batch_size": 3,
}
"""Checkpoints after 0, 2, 4, 6 and 7 iterations, evaluations after 0, 3, 6 and 7."""

NO_MODEL = {k: v for k, v in SHORT.items() if k not in ("shots", "batch_size")} | {"problem": QUADRATICS}
"""The same where the claim is about methods, files or places, which a problem without torch shows as well."""

PATIENT = NO_MODEL | {"meet_timeout": 120.0}
"""The same where hosts start one after the other."""


def killed_after(iteration, folder, to, n=4):
    """Copy what a run would have left, had it been killed after the checkpoint of ``iteration``."""
    shutil.copytree(folder, to)
    (to / "results.json").unlink(missing_ok=True)
    for p in range(n):
        (to / "peers" / f"peer-{p}.safetensors").unlink(missing_ok=True)
        for k, path in checkpoint_files(checkpoint_folder(to, p)).items():
            if k > iteration:
                path.unlink()
    return to


@pytest.fixture
def pictures(tmp_path):
    """A folder of images, 6 of each of 4 classes, and one for the test."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 1)):
        for label in range(4):
            folder = tmp_path / "pictures" / part / f"class-{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8) + np.uint8(50 * label)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pictures"


DROPPING = """
from timm.models.vision_transformer import VisionTransformer

def dropping(num_classes, pretrained):
    model = VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=num_classes, embed_dim=12, depth=2, num_heads=2,
        drop_rate=0.2, proj_drop_rate=0.2, drop_path_rate=0.2,
    )
    model.pretrained_cfg = {
        "input_size": (1, 8, 8), "interpolation": "bilinear", "mean": (0.5,), "std": (0.5,),
        "crop_pct": 1.0, "crop_mode": "center",
    }
    return model
"""

MINE = """
from typing import NamedTuple
import numpy as np
from p2pft_flower.algorithms.seam import Rows

class State(NamedTuple):
    theta: np.ndarray
    total: np.ndarray
    steps: int
    norm: float

class Adagrad:
    phases = ("theta",)

    def __init__(self, alpha, momentum):
        self.alpha = alpha

    def start(self, theta, gradient):
        return State(theta, np.zeros_like(theta), 0, 0.0)

    def step(self, k, state, gradient):
        g = gradient(state.theta)
        total = state.total + g * g
        mixed = yield Rows(state.theta - self.alpha(k) * g / np.sqrt(total + np.float32(1e-8)))
        return State(mixed, total, state.steps + 1, state.norm + float(np.linalg.norm(g)))
"""

METHODS = {
    "p2pft, momentum, cosine": {"algorithm": "p2pft", "momentum": 0.9, "schedule": "cosine"},
    "p2pft, by images, decay": {"objective": "examples", "weight_decay": 0.01, "topology": "lopsided-4"},
    "dgd, momentum": {"algorithm": "dgd", "momentum": 0.5},
    "gt-dgd": {"algorithm": "gt-dgd", "topology": "ring-4"},
    "local": {"algorithm": "local", "momentum": 0.9},
    "a method of one's own": {"algorithm": "{tmp}/mine.py:Adagrad", "learning_rate": 0.01},
}
"""On a problem without a model: of a method, its state is resumed."""

KINDS = {kind: NO_MODEL | settings for kind, settings in METHODS.items()} | {
    kind: SHORT | settings
    for kind, settings in {
        "p2pft": {"algorithm": "p2pft"},
        "centralized": {"algorithm": "centralized", "momentum": 0.9},
        "drop-out": {"model": "{tmp}/models.py:dropping", "weights": "none"},
        "low rank": {"tune": "lora:2"},
        "augmentation": {"augment": "rand-m9-mstd0.5-inc1"},
        "privacy": {"dp_clip": 1.0, "dp_noise": 0.5, "shots": 0},
        "a folder that may grow": {
            "dataset": "folder:{tmp}/pictures", "stream": True, "shots": 0, "batch_size": 4,
        },
        "a pooled folder that may grow": {
            "dataset": "folder:{tmp}/pictures", "stream": True, "shots": 0, "batch_size": 4,
            "algorithm": "centralized",
        },
    }.items()
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_bit_identical_to_one_never_interrupted(kind, tmp_path, pictures):
    (tmp_path / "models.py").write_text(DROPPING)
    (tmp_path / "mine.py").write_text(MINE)
    settings = {
        k: v.replace("{tmp}", str(tmp_path)) if isinstance(v, str) else v for k, v in KINDS[kind].items()
    }
    n = 1 if settings.get("algorithm") == "centralized" else 4
    run_app(tmp_path / "whole", slots=1, **settings)
    assert list(checkpoint_files(checkpoint_folder(tmp_path / "whole", 0))) == [0, 2, 4, 6, 7]
    killed = killed_after(4, tmp_path / "whole", tmp_path / "killed", n)
    run_app(tmp_path / "resumed", slots=2, resume=str(killed), **settings)
    same_run(tmp_path / "resumed", tmp_path / "whole", n)
    whole, again = read_results(tmp_path / "whole"), read_results(tmp_path / "resumed")
    assert whole["resumed_from"] is None
    assert again["resumed_from"] == {"run": whole["run"], "iteration": 4}
    assert [row["iteration"] for row in again["history"]] == [0, 3, 6, 7]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A run that ended after 7 iterations, whose checkpoints are all there."""
    folder = tmp_path_factory.mktemp("earlier") / "run"
    run_app(folder, slots=1, **SHORT)
    return folder


@pytest.fixture(scope="module")
def modest(tmp_path_factory):
    """The same of a problem without a model."""
    folder = tmp_path_factory.mktemp("modest") / "run"
    run_app(folder, slots=1, **NO_MODEL)
    return folder


DIFFERENT = [
    ({"learning_rate": 0.2}, ["learning-rate: 0.1 in the checkpoint, 0.2 now"]),
    (
        {"seed": 1, "momentum": 0.5, "threads": 2},
        [
            "momentum: 0.0 in the checkpoint, 0.5 now",
            "seed: 0 in the checkpoint, 1 now",
            "threads: 1 in the checkpoint, 2 now",
        ],
    ),
    ({"cache": False}, ["cache: true in the checkpoint, false now"]),
    (
        {"topology": "lopsided-4"},
        [
            "edge 0 -> 0: weight 0.5 in the checkpoint, 0.833333 now",
            "edge 0 -> 3: weight none in the checkpoint,",
        ],
    ),
    (
        {"topology": "directed-ring:5"},
        ["peers: [0, 1, 2, 3] in the checkpoint, [0, 1, 2, 3, 4] now"],
    ),
    ({"iterations": 9}, ["iterations: 7 in the checkpoint, 9 now", "--extend, lengthens a run"]),
    ({"iterations": 5, "extend": True}, ["iterations: 7 in the checkpoint, 5 now", "not shorter"]),
]


@pytest.mark.parametrize(("changes", "told"), DIFFERENT, ids=str)
def test_another_config_or_graph_is_refused_with_every_difference(changes, told, earlier, tmp_path):
    with pytest.raises(P2PFTError) as refused:
        run_app(tmp_path / "x", slots=1, **SHORT | {"resume": str(earlier)} | changes)
    for what in told:
        assert what in str(refused.value)
    assert json.loads((tmp_path / "x" / "results.json").read_text())["status"] == "failed"
    assert not (tmp_path / "x" / "peers").exists()  # nothing was begun


def test_a_topology_file_with_the_same_edges_is_the_same_graph(modest, tmp_path):
    ring = tmp_path / "ring.yaml"
    ring.write_text("peers: 4\nedges: [[0, 1], [1, 2], [2, 3], [3, 0]]\n")
    run_app(tmp_path / "x", slots=1, **NO_MODEL | {"resume": str(modest), "topology": str(ring)})
    assert read_results(tmp_path / "x")["resumed_from"]["iteration"] == 7


def test_other_weights_are_refused_by_their_digest(earlier, tmp_path, monkeypatch):
    client.workload.cache_clear()
    monkeypatch.setattr(
        "p2pft_flower.learning.workload.Workload.model_digest", property(lambda self: "another")
    )
    with pytest.raises(P2PFTError, match=r"peer 0's model digest is \w+ in the checkpoint, another now"):
        run_app(tmp_path / "x", slots=1, **SHORT | {"resume": str(earlier)})
    client.workload.cache_clear()


def test_what_theta_does_not_depend_on_may_differ(modest, tmp_path):
    killed = killed_after(4, modest, tmp_path / "killed")
    others = {"transport": "grpc", "peer_timeout": 33.0, "checkpoint_every": 1, "checkpoints_kept": 1}
    run_app(tmp_path / "x", slots=2, **NO_MODEL | {"resume": str(killed)} | others)
    same_run(tmp_path / "x", modest)
    # 1 that everybody has, 1 that is being written, 3 for the graph's diameter; none is removed at the end.
    assert list(checkpoint_files(checkpoint_folder(tmp_path / "x", 0))) == [4, 5, 6, 7]


def test_a_run_that_has_ended_can_be_lengthened(modest, tmp_path):
    longer = NO_MODEL | {"iterations": 12}
    run_app(tmp_path / "x", slots=1, **longer | {"resume": str(modest), "extend": True})
    run_app(tmp_path / "whole", slots=1, **longer)
    same_run(tmp_path / "x", tmp_path / "whole")
    assert [row["iteration"] for row in read_results(tmp_path / "x")["history"]] == [0, 3, 6, 9, 12]


def test_a_run_of_which_nothing_is_left_to_train_says_how_to_lengthen_it(modest, tmp_path, capsys):
    run_app(tmp_path / "x", slots=1, **NO_MODEL | {"resume": str(modest)})
    (hint,) = [line for line in capsys.readouterr().out.splitlines() if "nothing is left to train" in line]
    assert "had done all its 7 iterations" in hint
    assert "--extend with more epochs or iterations lengthens it" in hint


def test_a_cosine_schedule_cannot_be_lengthened(tmp_path):
    run_app(tmp_path / "cosine", slots=1, **NO_MODEL | {"schedule": "cosine", "algorithm": "local"})
    settings = {
        "schedule": "cosine",
        "algorithm": "local",
        "resume": str(tmp_path / "cosine"),
        "extend": True,
    }
    with pytest.raises(
        P2PFTError, match=r"7 in the checkpoint, 9 now \(schedule = cosine: its earlier learning rates"
    ):
        run_app(tmp_path / "x", slots=1, **NO_MODEL | {"iterations": 9} | settings)


def test_extending_nothing_is_refused(tmp_path):
    with pytest.raises(P2PFTError, match="extend = true with an empty resume"):
        run_app(tmp_path / "x", extend=True)


def test_a_run_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path))
    with pytest.raises(P2PFTError, match=r"resume = '123': there is no run in .*runs/123"):
        run_app(tmp_path / "x", resume="123")


def test_a_run_is_found_by_its_id_in_the_home(modest, tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path))
    run = read_results(modest)["run"]
    killed_after(2, modest, tmp_path / "runs" / run)
    run_app(tmp_path / "x", slots=1, **NO_MODEL | {"resume": run})
    same_run(tmp_path / "x", modest)


def test_a_damaged_file_of_one_peer_takes_all_back_to_the_one_before(modest, tmp_path, capsys):
    killed = killed_after(6, modest, tmp_path / "killed")
    torn = checkpoint_folder(killed, 3) / "iteration-6.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    run_app(tmp_path / "x", slots=1, **NO_MODEL | {"resume": str(killed)})
    assert str(torn) in capsys.readouterr().out
    assert read_results(tmp_path / "x")["resumed_from"]["iteration"] == 4
    same_run(tmp_path / "x", modest)


def test_a_run_that_lost_a_peer_goes_on_with_all_from_where_all_were_there(modest, tmp_path, capsys):
    """Peer 2 was lost after 4 iterations, having done 6 by itself; the others did theirs without it."""
    killed = killed_after(7, modest, tmp_path / "killed")
    for p in range(4):
        folder = checkpoint_folder(killed, p)
        for k in (6, 7):
            path = folder / f"iteration-{k}.safetensors"
            if p == 2 and k == 7:
                path.unlink()
            elif p != 2:
                write_checkpoint(structs.replace(read_checkpoint(path)[0], view=1, live=(0, 1, 3)), folder)
    run_app(tmp_path / "x", slots=1, **NO_MODEL | {"resume": str(killed)})
    assert read_results(tmp_path / "x")["resumed_from"]["iteration"] == 4
    assert "is given up: view 1 of the peers [0, 1, 3], up to iteration 7" in capsys.readouterr().out
    same_run(tmp_path / "x", modest)


def without_a_link(folder, iterations):
    """Have what all peers kept after ``iterations`` look as if a link between peers 0 and 1 had been cut."""
    for p in range(4):
        kept = checkpoint_folder(folder, p)
        for k in iterations:
            found, _ = read_checkpoint(kept / f"iteration-{k}.safetensors")
            row = {j: w for j, w in found.about.row.items() if {p, j} != {0, 1}}
            column = {j: w for j, w in found.about.column.items() if {p, j} != {0, 1}}
            about = structs.replace(found.about, row=row, column=column)
            write_checkpoint(structs.replace(found, view=1, about=about), kept)


def test_a_run_whose_link_was_cut_goes_on_from_where_all_links_were_there(modest, tmp_path, capsys):
    killed = killed_after(7, modest, tmp_path / "killed")
    without_a_link(killed, (6, 7))
    run_app(tmp_path / "x", slots=1, **NO_MODEL | {"resume": str(killed)})
    assert read_results(tmp_path / "x")["resumed_from"]["iteration"] == 4
    told = "without some peers or links is given up: view 1 of the peers [0, 1, 2, 3], up to iteration 7"
    assert told in capsys.readouterr().out
    same_run(tmp_path / "x", modest)


def test_a_run_of_which_only_files_without_a_cut_link_are_left_is_refused_with_the_reason(modest, tmp_path):
    killed = killed_after(7, modest, tmp_path / "killed")
    without_a_link(killed, (0, 2, 4, 6, 7))
    with pytest.raises(
        P2PFTError, match=r"edge .*none in the checkpoint.*these links were cut, and no checkpoint"
    ):
        run_app(tmp_path / "x", slots=1, **NO_MODEL | {"resume": str(killed)})


def test_a_stream_that_has_grown_keeps_the_length_and_weights_of_the_run(tmp_path, pictures):
    settings = {
        "dataset": f"folder:{pictures}", "stream": True, "epochs": 3, "batch_size": 4,
        "objective": "examples",
        "checkpoint_every": 1, "checkpoints_kept": 50,
    }  # fmt: skip
    run_app(tmp_path / "whole", slots=1, **settings)
    assert read_results(tmp_path / "whole")["iterations"] == 6
    killed = killed_after(5, tmp_path / "whole", tmp_path / "killed")
    for i in range(5):
        shutil.copy(pictures / "train" / "class-0" / "0.png", pictures / "train" / "class-0" / f"new-{i}.png")
    run_app(tmp_path / "x", slots=1, **settings | {"resume": str(killed)})
    assert read_results(tmp_path / "x")["iterations"] == 6
    weights = [
        [
            read_checkpoint(checkpoint_files(checkpoint_folder(folder, p))[6])[0].about.loss_weight
            for p in range(4)
        ]
        for folder in (tmp_path / "whole", tmp_path / "x")
    ]
    assert weights[0] == weights[1] == [1.0] * 4


def sites(tmp_path, ports):
    return [
        {"peer-id": p, "peer-address": f"127.0.0.1:{port}", "output-dir": str(tmp_path / f"site-{p}")}
        for p, port in enumerate(ports)
    ]


def test_deployed_sites_go_on_from_their_own_files(earlier, tmp_path):
    nodes = sites(tmp_path, free_ports(4))
    run_app(tmp_path / "first", slots=4, node_configs=nodes, **SHORT)
    run = read_results(tmp_path / "first")["run"]
    for p in range(4):
        kept = checkpoint_folder(tmp_path / f"site-{p}" / run, p)
        for k, path in checkpoint_files(kept).items():
            if k > (6 if p == 2 else 4):  # one was a checkpoint ahead when all were killed
                path.unlink()
    run_app(tmp_path / "second", slots=4, node_configs=nodes, **SHORT | {"resume": run})
    results = read_results(tmp_path / "second")
    assert results["resumed_from"] == {"run": run, "iteration": 4}
    assert scores(results) == scores(read_results(earlier)) | {"graph": results["graph"]}
    folders = [tmp_path / f"site-{p}" / results["run"] for p in range(4)]
    assert [tails(f, [p])[0] for p, f in enumerate(folders)] == tails(earlier)
    collected = json.loads(json.dumps(collect_results(find_peers(folders))))
    clock = ("seconds", "begun", "ended")
    assert {k: v for k, v in collected.items() if k not in clock} == {
        k: v for k, v in results.items() if k not in clock
    }

    with pytest.raises(P2PFTError, match=r"learning-rate: 0.1 in the checkpoint, 0.3 now"):
        run_app(
            tmp_path / "third", slots=4, node_configs=nodes, **SHORT | {"resume": run, "learning_rate": 0.3}
        )
    with pytest.raises(P2PFTError, match=r"this site keeps its runs by their ids"):
        run_app(tmp_path / "fourth", slots=4, node_configs=nodes, **SHORT | {"resume": str(tmp_path)})


def test_in_deployment_a_site_without_its_files_is_named(tmp_path):
    nodes = sites(tmp_path, free_ports(4))
    run_app(tmp_path / "first", slots=4, node_configs=nodes, **NO_MODEL)
    run = read_results(tmp_path / "first")["run"]
    shutil.rmtree(tmp_path / "site-2")
    with pytest.raises(P2PFTError, match=r"peer 1: 0, 2, 4, 6, 7; peer 2: none; peer 3"):
        run_app(tmp_path / "second", slots=4, node_configs=nodes, **NO_MODEL | {"resume": run})


def test_private_gradients_of_a_deployment_cost_more_when_they_are_drawn_again(tmp_path):
    """The noise is another: what the interrupted run drew after the checkpoint stays spent."""
    nodes = sites(tmp_path, free_ports(4))
    settings = SHORT | {"dp_clip": 1.0, "dp_noise": 1.0, "shots": 0, "batch_size": 32}
    run_app(tmp_path / "first", slots=4, node_configs=nodes, **settings)
    first = read_results(tmp_path / "first")
    for p in range(4):
        for k, path in checkpoint_files(checkpoint_folder(tmp_path / f"site-{p}" / first["run"], p)).items():
            if k > 2:
                path.unlink()
    run_app(tmp_path / "second", slots=4, node_configs=nodes, **settings | {"resume": first["run"]})
    again = read_results(tmp_path / "second")
    for one, other in zip(first["peers"], again["peers"], strict=True):
        images, delta = one["images"], one["delta"]
        spent = [epsilon(noise=1.0, rate=32 / images, releases=n, delta=delta) for n in (8, 8 + 4)]
        assert [one["epsilon"], other["epsilon"]] == spent  # at most 4 gradients after the second iteration's


# --- Flower's strategies ---

ROUNDS = {"epochs": 3, "shots": 4, "batch_size": 4, "checkpoints_kept": 50, "momentum": 0.5}


@pytest.mark.parametrize("name", ["fedavg", "FedProx", "fedmedian", "qfedavg"])
def test_a_strategy_whose_only_state_is_the_model_goes_on_bit_for_bit(name, tmp_path):
    settings = ROUNDS | {"algorithm": name}
    settings |= {"strategy_options": "proximal-mu=0.1"} if name == "FedProx" else {}
    run_app(tmp_path / "whole", slots=1, **settings)
    rounds = list(checkpoint_files(checkpoint_folder(tmp_path / "whole", SERVER)))
    assert rounds[0] == 0
    assert len(rounds) == 4
    shutil.copytree(tmp_path / "whole" / "server.checkpoints", tmp_path / "killed" / "server.checkpoints")
    (tmp_path / "killed" / "server.checkpoints" / f"iteration-{rounds[3]}.safetensors").unlink()
    run_app(tmp_path / "x", slots=2, **settings | {"resume": str(tmp_path / "killed")})
    same_run(tmp_path / "x", tmp_path / "whole")
    whole = read_results(tmp_path / "whole")
    assert read_results(tmp_path / "x")["resumed_from"] == {"run": whole["run"], "iteration": rounds[2]}

    with pytest.raises(P2PFTError, match=r"momentum: 0.5 in the checkpoint, 0.0 now"):
        run_app(tmp_path / "y", slots=1, **settings | {"momentum": 0.0, "resume": str(tmp_path / "killed")})
    with pytest.raises(P2PFTError, match=r"has done all its \d+ iterations; p2pft run --extend"):
        run_app(tmp_path / "z", slots=1, **settings | {"resume": str(tmp_path / "whole")})


def test_a_strategys_run_can_be_lengthened_from_its_last_whole_round(tmp_path):
    settings = ROUNDS | {"algorithm": "fedavg", "local_epochs": 2}
    run_app(tmp_path / "short", slots=1, **settings)  # three epochs: its second round is half a one
    longer = settings | {"epochs": 6}
    run_app(tmp_path / "x", slots=1, **longer | {"resume": str(tmp_path / "short"), "extend": True})
    run_app(tmp_path / "whole", slots=1, **longer)
    assert tails(tmp_path / "x") == tails(tmp_path / "whole")
    assert read_results(tmp_path / "x")["history"] == read_results(tmp_path / "whole")["history"]


@pytest.mark.parametrize("name", sorted(set(strategy_names()) - STATELESS))
def test_a_strategy_with_state_of_its_own_is_refused_with_the_reason(name, tmp_path):
    with pytest.raises(P2PFTError, match=rf"algorithm = '{name}' keeps state of its own"):
        run_app(tmp_path / "x", slots=1, **ROUNDS | {"algorithm": name, "resume": str(tmp_path)})


@pytest.mark.parametrize("name", sorted(STATELESS))
def test_a_strategy_that_goes_on_keeps_nothing_between_rounds_but_the_model(name):
    """What it noted in a round (the arrays it sent out) is noted anew in the next one before it is read."""
    strategy = make_strategy(MethodConfig(algorithm=name), 4)
    assert set(vars(strategy)) - set(vars(make_strategy(MethodConfig(algorithm="fedavg"), 4))) <= {
        "beta", "client_learning_rate", "current_arrays", "num_malicious_nodes", "num_nodes_to_select",
        "proximal_mu", "q", "selection_rule", "train_loss_key",
    }  # fmt: skip


def test_a_strategys_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "server.checkpoints").write_text("a file")
    with pytest.raises(P2PFTError, match="the server: the checkpoint of iteration 0 cannot be written"):
        run_app(tmp_path / "x", slots=1, **ROUNDS | {"algorithm": "fedavg"})


def test_a_run_is_resumed_by_its_name_from_the_newest_of_that_name_and_keeps_the_name(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path))
    run_app("", slots=1, **NO_MODEL | {"name": "pets", "iterations": 4})
    run_app("", slots=1, **PATIENT | {"name": "pets"})
    runs = sorted((tmp_path / "runs").iterdir(), key=lambda folder: read_results(folder)["begun"])
    assert [folder.name for folder in runs] == [f"pets-{read_results(folder)['run']}" for folder in runs]
    for k in (6, 7):
        for p in range(4):
            (checkpoint_folder(runs[1], p) / f"iteration-{k}.safetensors").unlink()
    (runs[1] / "results.json").unlink()
    capsys.readouterr()
    run_app("", slots=1, **PATIENT | {"name": "pets", "resume": "pets"})
    newest = runs[1].name.removeprefix("pets-")
    assert f"pets is run {newest}, the newest of 2 of this name ({runs[1]})" in capsys.readouterr().out
    (resumed,) = {*(tmp_path / "runs").iterdir()} - {*runs}
    results = read_results(resumed)
    assert (results["name"], results["config"]["resume"]) == ("pets", newest)
    assert results["resumed_from"] == {"run": newest, "iteration": 4}


def test_sites_keep_a_named_run_under_its_name_and_resume_it_by_name_or_id(tmp_path, monkeypatch):
    """The coordinator has no files of it: each site finds its own."""
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "office"))
    nodes = sites(tmp_path, free_ports(4))
    run_app(tmp_path / "first", slots=4, node_configs=nodes, **PATIENT | {"name": "pets"})
    run = read_results(tmp_path / "first")["run"]
    for p in range(4):
        kept = tmp_path / f"site-{p}" / f"pets-{run}"
        assert (kept / "peers" / f"peer-{p}.safetensors").is_file()
        (checkpoint_folder(kept, p) / "iteration-7.safetensors").unlink()
    for number, wanted in enumerate(("pets", run)):
        settings = NO_MODEL | {"name": "again", "resume": wanted}
        run_app(tmp_path / f"again-{number}", slots=4, node_configs=nodes, **settings)
        results = read_results(tmp_path / f"again-{number}")
        assert results["resumed_from"] == {"run": run, "iteration": 6}
        assert (tmp_path / "site-3" / f"again-{results['run']}").is_dir()


def test_sites_that_share_a_folder_resume_the_earlier_run_of_a_name_not_the_new_one(tmp_path):
    """The new run's folder, of the same name, is there when the last host looks for the earlier one."""
    nodes = [
        {"peer-id": p, "peer-address": f"127.0.0.1:{port}", "output-dir": str(tmp_path / "all")}
        for p, port in enumerate(free_ports(4))
    ]
    run_app(tmp_path / "first", slots=4, node_configs=nodes, **PATIENT | {"name": "pets"})
    for p in range(4):
        (earlier,) = (tmp_path / "all").glob(f"pets-*/peers/peer-{p}.checkpoints/iteration-7.safetensors")
        earlier.unlink()
    run_app(tmp_path / "x", slots=4, node_configs=nodes, **PATIENT | {"name": "pets", "resume": "pets"})
    run = read_results(tmp_path / "first")["run"]
    assert read_results(tmp_path / "x")["resumed_from"] == {"run": run, "iteration": 6}
