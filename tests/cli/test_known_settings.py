"""Settings that can be known to be wrong: exit 2 with one line, nothing started, nothing left, at once."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from p2pft_flower.cli import app, rehearsal
from p2pft_flower.cli.rehearsal import Peer, Rehearsal, check_rehearsed
from p2pft_flower.cli.settings import check, parse_settings, settings_of_resumed
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import P2PFTError
from p2pft_flower.keeping.about import PeerAbout
from p2pft_flower.keeping.checkpoints import Checkpoint, checkpoint_folder, write_checkpoint
from p2pft_flower.report.results import SCHEMA, write_results
from p2pft_flower.topology import Graph
from tests.commands import CliRunner

WRONG = {
    # key: words, and what the one line says
    "algorithm": ("algorithm=p2pfd", "algorithm = 'p2pfd' is unknown; .*; did you mean 'p2pft'"),
    "algorithm, a module": ("algorithm=no_such_module:Method", "cannot import 'no_such_module'"),
    "algorithm, a file": ("algorithm=mine.py:Methd", "'.*mine.py' has no 'Methd'"),
    "algorithm, a module beside": ("algorithm=mine:Method", "cannot import 'mine'"),
    "keep, without images to choose by": (
        "keep=best:loss",
        "keep = 'best:loss' with validation = 0: .* give validation",
    ),
    "keep, of a strategy of Flower": (
        "keep=best:loss validation=0.1 algorithm=fedavg",
        "keep = 'best:loss' with algorithm = 'fedavg': .* have no edges to each other",
    ),
    "class-weights": ("class-weights=balance", "class-weights = 'balance': must be one of none, balanced"),
    "class-weights, of a strategy of Flower": (
        "class-weights=balanced algorithm=fedavg",
        "class-weights = 'balanced' with algorithm = 'fedavg': .* have none; give class-weights = none",
    ),
    "class-weights, of a problem of one's own": (
        "class-weights=balanced problem=mine:problem",
        "class-weights = 'balanced' with problem = 'mine:problem': .*leave them out",
    ),
    "model": ("model=vit_tinny", "model = 'vit_tinny' is unknown; .*; did you mean 'vit_tiny_patch16_224'"),
    "model, near": ("model=vit_tiny_patch16_225", "did you mean 'vit_tiny_patch16_224'"),
    "model, unsupported": (
        "model=resnet18",
        "model = 'resnet18': timm's resnet does more than .* supported are",
    ),
    "model, deprecated and unsupported": ("model=convnext_tiny_in22k", "timm's convnext does more"),
    "model, tag": (
        "model=vit_tiny_patch16_224.augreg_in22k",
        "has no weights tagged 'augreg_in22k' .* did you mean 'augreg_in21k'",
    ),
    "model, a module": ("model=json:dumpz", "model = 'json:dumpz': 'json' has no 'dumpz'"),
    "model, no Python": ("model=broken.py:vit", "cannot import '.*broken.py' .*invalid syntax"),
    "weights": (
        "model=vit_tiny_patch16_224 weights=/no/such.pth",
        "weights = '/no/such.pth': there is no such",
    ),
    "weights, a web page": (
        "model=vit_tiny_patch16_224 weights=page.pth",
        "its weights could not be loaded from .*/page.pth: it is a web page",
    ),
    "weights of an embedded model": ("weights=mine.py", "'glyph_vit_8' brings its own"),
    "loss": ("loss=focal", "loss = 'focal': must be one of auto, ce, bce"),
    "loss, of other data": (
        "loss=bce",
        "loss = 'bce' with dataset = 'digits': each image has one class there, .* give loss = auto or ce",
    ),
    "image-size": ("image-size=-1", "image-size = -1"),
    "image-size, patches": ("image-size=9", "patches of glyph_vit_8 are 2 × 2 .* such as 8 or 10"),
    "image-size, timm's patches": (
        "model=vit_tiny_patch16_224 weights=none image-size=100",
        "the patches of vit_tiny_patch16_224 are 16 × 16 .* such as 96 or 112",
    ),
    "image-size, absurd": ("image-size=100000", "image-size = 100000: must be .* at most 8192"),
    "image-size, too many patches": ("image-size=2048", "more than 262144 of them; choose 1024 at most"),
    "crop-pct": ("crop-pct=2", "crop-pct = 2.0"),
    "interpolation": ("interpolation=linear", "interpolation = 'linear'"),
    "mean": ("mean=0.1,0.2", "mean = '0.1,0.2'"),
    "std": ("std=0", "std = '0'"),
    "tune": ("tune=lastblock", "tune = 'lastblock' is unknown; .*; did you mean 'last-block'"),
    "tune, number": ("tune=lora:0", "tune = lora:R: 0"),
    "tune, rank": ("tune=lora:65", r"tune = lora:R: 65 is not in 1\.\.64"),
    "tune, timm's rank": (
        "model=vit_tiny_patch16_224 weights=none tune=lora:193",
        r"tune = lora:R: 193 is not in 1\.\.192",
    ),
    "tune, Swin's width": (
        "model=swin_tiny_patch4_window7_224 weights=none tune=adapter:97",
        r"tune = adapter:R: 97 is not in 1\.\.96",
    ),
    "tune, blocks": ("tune=last-blocks:5", "the model has 4 blocks"),
    "tune, prompts": ("tune=prompt:10001", r"tune = prompt:N: 10001 is not in 1\.\.10000"),
    "tune, digits": (f"tune=lora:{'9' * 4999}", "a number of 4999 digits"),
    "tune, of features": ("dataset=features:nowhere.npz tune=head", "give model = none, and tune = head,"),
    "head": ("head=textual", "head = 'textual': must be one of random, text"),
    "head, without embeddings": ("head=text", "needs text-tower, the name of a model of open_clip, or"),
    "text-embeddings": ("text-embeddings=names.npz", "only head = text reads texts"),
    "text-tower": (
        "model=glyph_clip_8 head=text text-tower=ViT-B-32",
        r"must be local-dir:/path \(open_clip's folder\)",
    ),
    "prompts": (
        "model=glyph_clip_8 head=text text-tower=glyph_clip_8 prompts=photo",
        r"must be a template with \{\} where the",
    ),
    "class-names": ("class-names=names.json", "only head = text reads texts"),
    "tune, of texts": ("tune=text-prompt:4", "a learned prompt is trained through a text tower"),
    "problem": ("problem=quadratics", "problem = 'quadratics': must be empty, my_module:my_problem"),
    "problem, file": ("problem=/no/such.py:problem", "cannot import '/no/such.py'"),
    "problem, and vision": ("problem=json:loads tune=head", "tune = 'head' with problem = 'json:loads'"),
    "problem, strategy": ("problem=json:loads algorithm=fedavg", "are run on vision transformers only"),
    "problem, pooled": ("problem=json:loads algorithm=centralized", "it has one objective a peer"),
    "device": ("device=tpu", "device = 'tpu': must be one of"),
    "device, elsewhere": ("device=mps", "device = 'mps': torch finds none on this machine"),
    "dataset": (
        "dataset=cifar99",
        "dataset = 'cifar99' is unknown; .*; did you mean 'cifar10' or 'cifar100'",
    ),
    "dataset, no path": ("dataset=folder:", "dataset folder '.*' has no train/"),
    "dataset, a folder": ("dataset=folder:nowhere", "dataset folder '.*/nowhere' does not exist"),
    "dataset, a folder without test": ("dataset=folder:half", "dataset folder '.*/half' has no test/"),
    "dataset, a peer's folder": (
        "dataset=folder:site-{peer}",
        "peer 2: dataset folder '.*/site-2' does not exist",
    ),
    "dataset, features": (
        "dataset=features:nowhere.npz model=none tune=head",
        "dataset = 'features:.*/nowhere.npz': there is no such file",
    ),
    "dataset, features of another kind": (
        "dataset=features:mine.py model=none tune=head",
        r"a file of features ends in \.safetensors or \.npz",
    ),
    "dataset, a table": ("dataset=table:labels.csv", "labels.csv': there is no such file"),
    "dataset, a table without rows": ("dataset=table:mine.py", "mine.py, line 1: no column image"),
    "dataset, no text": ("dataset=folder:\udcff", "dataset = .*: it is not UTF-8"),
    "data-dir": ("dataset=cifar10 data-dir=nowhere", "there is no folder .*/nowhere/cifar-10-batches-py"),
    "data-dir, incomplete": ("dataset=cifar100 data-dir=some", "/some/cifar-100-python lacks test, meta"),
    "data-dir, ignored": ("data-dir=some", "data-dir = '.*some': dataset = 'digits' does not read it"),
    "data-dir, of a folder": ("dataset=folder:whole data-dir=some", "it names its place itself"),
    "max-megapixels": ("max-megapixels=-1", "max-megapixels = -1.0: must be a number from 0 to 1000000"),
    "data-changed": ("data-changed=yes", "data-changed = 'yes': must be one of refuse, accept"),
    "partition": ("partition=classes:0-4,5-9", "names 2 groups of classes for 4 peers"),
    "partition, classes": ("partition=classes:0,1,2,3-10", "class 10 does not exist; classes are 0-9"),
    "partition, a folder's classes": (
        "dataset=folder:whole partition=classes:cat,1,2,3",
        "class 2 does not exist",
    ),
    "partition, dirichlet": ("partition=dirichlet:none", "ALPHA must be a positive number"),
    "partition, shards": ("partition=shards:11", "a whole number from 1 to 10"),
    "partition, by a column": ("partition=by:center", "the dataset has no column 'center'; it has none"),
    "partition, by a table's column": (
        "dataset=table:table.csv partition=by:site",
        r"the column has 1 values for 4 peers: north \(1 images\); give topology = a graph of 1 peers",
    ),
    "partition, by values": ("partition=by:center=a,b", "2 values for 4 peers"),
    "partition, unknown": ("partition=idd", "partition = 'idd' is unknown; .*; did you mean 'iid'"),
    "partition, a module": ("partition=mine.py:dael", "'.*mine.py' has no 'dael'"),
    "partition, own": ("partition=own", "partition = 'own' with dataset = 'digits'"),
    "pixel-range": ("dataset=folder:site-{peer} pixel-range=0:1,0:2", "has 2 ranges for 4 peers"),
    "dicom-window": ("dicom-window=400", "must be auto or CENTRE:WIDTH with WIDTH > 1"),
    "augment": ("augment=rnad-m9", "augment = 'rnad-m9': choose none, basic"),
    "augment, a section": ("augment=rand-x9", "augment = 'rand-x9': choose none, basic"),
    "stream": ("stream=true", "stream = true with dataset = 'digits'"),
    "seed": ("seed=9223372036854775808", "seed = 9223372036854775808: must be .* 64 bits"),
    "iterations": ("iterations=9223372036854775808", "iterations = .*: must be .* 64 bits"),
    "batch-size, bits": ("batch-size=9223372036854775808", "batch-size = .*: must be .* 64 bits"),
    "batch-size": ("batch-size=0", "batch-size = 0"),
    "batched": ("batched=yes", "batched = 'yes'"),
    "dp-clip": ("dp-clip=1 algorithm=centralized", "dp-clip = 1.0 with algorithm = centralized"),
    "dp-noise": ("dp-noise=1", "dp-noise = 1.0 with dp-clip = 0"),
    "topology": ("topology=rign:4", "rign"),
    "schedule": ("schedule=linear", "schedule = 'linear' is unknown"),
    "algorithm-options": ("algorithm-options=local-steps=0", "p2pft refuses: local-steps = 0: must be"),
    "algorithm-options, unknown": ("algorithm-options=steps=8", "p2pft has no option 'steps'; it has: local"),
    "algorithm-options, a strategy": (
        "algorithm=fedavg algorithm-options=local-steps=8",
        "it is for methods whose peers exchange their vectors",
    ),
    "codec": ("codec=q5", "codec = 'q5' is unknown; choose one of none, float16"),
    "codec, a share": ("codec=topk:2", r"codec = 'topk:2': give the share .* in \(0, 1\]"),
    "codec, a strategy": (
        "algorithm=fedavg codec=q4",
        "it is for methods whose peers exchange their vectors",
    ),
    "codec, no exchange": ("algorithm=local codec=q4", "algorithm 'local' exchanges nothing"),
    "codec-step": ("codec-step=2", r"codec-step = 2.0: must be a number from 0 to 1"),
    "codec-step, no codec": ("codec-step=0.5", r"codec-step = 0.5: without a codec it has no effect"),
    "codec-step, a strategy": (
        "algorithm=fedavg codec-step=0.5",
        r"codec-step = 0.5 with algorithm = 'fedavg'",
    ),
    "schedule-graph": ("schedule-graph=base:0", "schedule-graph = 'base:0': base:K needs a whole number K"),
    "schedule-graph, a graph": ("schedule-graph=ring:5,ring:4", "turn 0: the weights are those of 5 peers"),
    "schedule-graph, a method": (
        "schedule-graph=base:1 algorithm=exact-diffusion topology=ring-4",
        "ExactDiffusion's correction holds for one W only",
    ),
    "schedule-graph, a strategy": (
        "algorithm=fedavg schedule-graph=base:1",
        "it is for methods whose peers exchange their vectors",
    ),
    "schedule-graph, no exchange": ("algorithm=local schedule-graph=base:1", "exchanges nothing"),
    "schedule-graph, own": ("schedule-graph=no_such_file:turns", "schedule-graph = 'no_such_file:turns'"),
    "pipelined": ("pipelined=true algorithm=dgd", "pipelined = true: dgd has no form that computes while"),
    "pipelined, a strategy": (
        "algorithm=fedavg pipelined=true",
        "pipelined = True with algorithm = 'fedavg'",
    ),
    "strategy-options": ("algorithm=fedavg strategy-options=mu=1", "fedavg has no option 'mu'"),
    "min-peers": ("min-peers=5", "min-peers = 5: the graph directed-ring-4 has 4 peers"),
    "preflight-only": ("preflight-only=true", "preflight-only = true: .* a simulation has none"),
    "resume": ("resume=17", "there is no checkpoint in good state, as .* --out, .*: give it"),
    "name": ("name=pets/lora", "name = 'pets/lora': must be empty, or 1 to 64 letters, digits, - and _"),
    "name, of a file": ("name=..", "name = '..'"),
    "name, like an id": ("name=17", "name = '17': .* the first one a letter"),
    "name, long": (f"name={'a' * 65}", "name = 'aaa.*': must be empty, or 1 to 64"),
    "callbacks": ("callbacks=notes", "callbacks = 'notes': must be empty, or my_module:MyCallback"),
    "callbacks, a module": ("callbacks=no_such_module:Notes", "cannot import 'no_such_module'"),
    "callbacks, a file": ("callbacks=mine.py:Notes", "'.*mine.py' has no 'Notes'"),
    "callbacks, of a strategy": ("algorithm=fedavg callbacks=mine:Method", "cannot import 'mine'"),
    "tensorboard": ("tensorboard=yes", "tensorboard = 'yes': must be true or false"),
    "predictions": ("predictions=1", "predictions = .1.: must be true or false"),
    "extend": ("extend=true", "extend = true with an empty resume"),
}

ELSEWHERE = {
    "model=vit_tinny": "is unknown",
    "dataset=cifar99": "is unknown",
    "partition=classes:0,1": "names 2 groups",
    "algorithm=centralized": "their data cannot be pooled",
    "transport=memory": "nor their payloads stay in memory",
    "data-dir=/some": "does not read it",
}
"""What is wrong wherever the peers are."""

THE_SITES_OWN = (
    "dataset=folder:/no/such",
    "dataset=cifar10 data-dir=/no/such",
    "model=vit_tiny_patch16_224 weights=/no/such",
    "device=cuda",
    "device=mps",
    "model=no_such_module:vit",
    "problem=no_such_module:problem",
    "partition=/no/such.py:deal",
)
"""What only a site knows: it has another disk, another environment, other hardware."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to be in, with files that are partly wrong; nothing may be started."""

    def forbidden(*_, **__):
        raise AssertionError("something was started")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.chdir(tmp_path)
    fill(tmp_path)
    return tmp_path


def fill(folder):
    (folder / "mine.py").write_text("class Method: ...\n\ndef deal(labels, n, seed): ...\n")
    (folder / "page.pth").write_text("<!DOCTYPE html>\n")
    (folder / "table.csv").write_text("image,label,split,site\na,x,train,north\nb,x,test,south\n")
    (folder / "file.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "broken.py").write_text("def vit(:\n")
    for name in ("half/train/a", "some/cifar-100-python", "train", "test"):
        (folder / name).mkdir(parents=True)
    (folder / "some" / "cifar-100-python" / "train").write_bytes(b"")
    for name in ("cat", "dog"):
        for part in ("train", "test"):
            (folder / "whole" / part / name).mkdir(parents=True)
    for peer in (0, 1):
        (folder / f"site-{peer}" / "train" / "cat").mkdir(parents=True)
    (folder / "train").rmdir()


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_setting_costs_one_line_and_leaves_nothing(kind, here):
    words, says = WRONG[kind]
    before = tree(here)
    done = CliRunner().invoke(app, ["run", *words.split(), "--out", "out"])
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert re.search(says, line), line
    assert done.stdout == ""
    assert tree(here) == before


def test_every_key_that_names_something_is_among_them():
    """Whoever adds a key adds here what is wrong with it, or to the list of those that any value suits."""
    from p2pft_flower.config import config_keys

    numbers_and_choices = {
        *("learning-rate", "momentum", "weight-decay", "objective", "local-epochs"),
        *(
            "cache",
            "cache-dtype",
            "trunk-dtype",
            "download",
            "verify",
            "validation",
            "evaluate-on",
            "shots",
            "bad-images",
            "dp-delta",
        ),
        *("epochs", "evaluate-every", "transport", "threads", "meet-timeout", "peer-timeout"),
        *(
            "on-failure",
            "rejoin-deadline",
            "hang-timeout",
            "run-timeout",
            "checkpoint-every",
            "checkpoints-kept",
        ),
        *("observer-address", "output-dir"),
    }
    assert {kind.partition(",")[0].split()[0] for kind in WRONG} | numbers_and_choices == set(config_keys())


def test_the_check_needs_neither_torch_nor_timm_nor_torchvision(tmp_path):
    """They take seconds to import; the whole of it is to take less than three."""
    fill(tmp_path)
    cases = [words.split() for words, _ in WRONG.values() if "\udcff" not in words]
    code = f"""
import json, sys
from p2pft_flower.cli.settings import check, parse_settings
from p2pft_flower.errors import P2PFTError
for words in json.loads({json.dumps(json.dumps(cases))}):
    try:
        check(parse_settings(words), here=True)
    except P2PFTError:
        continue
    print("not refused:", words)
print(sorted({{"torch", "timm", "torchvision", "datasets"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert [line for line in done.stdout.splitlines()[:-1] if "resume=17" not in line] == []


@pytest.mark.parametrize("words", ELSEWHERE)
def test_what_is_wrong_everywhere_is_refused_of_a_deployment_too(words):
    with pytest.raises(P2PFTError, match=ELSEWHERE[words]):
        check(parse_settings(words.split()), here=False)


@pytest.mark.parametrize("words", THE_SITES_OWN)
def test_what_only_a_site_knows_is_left_to_the_sites(words):
    check(parse_settings(words.split()), here=False)


@pytest.mark.parametrize(
    "words",
    [
        "dataset=folder:whole partition=classes:cat,dog topology=complete:2",
        "model=vit_tiny_patch16_224.augreg_in21k weights=file.safetensors",
        "model=deit_tiny_patch16_224",
        "model=vit_tiny_patch16_224_in21k",
        "algorithm=mine.py:Method partition=mine.py:deal",
        "partition=mine:deal",
        "augment=rand-m9-mstd0.5-inc1",
        "dataset=cifar10 download=true",
        "tune=prompt-deep:4 device=cpu",
    ],
)
def test_what_is_right_passes(words, here):
    check(parse_settings(words.split()), here=True)


def test_a_value_longer_than_any_files_name_is_read_like_others(here):
    groups = ",".join(f"{i % 10}" for i in range(200))
    assert parse_settings([f"partition=classes:{groups}"])["partition"] == f"classes:{groups}"


@pytest.mark.parametrize(
    "command", [["compare", "p2pft,gt-dgd"], ["data", "show"], ["compare", "gt-dgd"]], ids=str
)
def test_other_commands_refuse_the_same(command, here):
    done = CliRunner().invoke(app, [*command, "model=vit_tinny"])
    assert done.exit_code == 2
    assert "did you mean 'vit_tiny" in done.stderr
    assert not (here / "comparison").exists()


def test_a_table_refuses_what_is_wrong_in_its_last_row_before_it_looks_at_the_first(here):
    words = ["model=glyph_vit_8", "pets.dataset=digits", "flowers.dataset=digits", "partition=iid"]
    done = CliRunner().invoke(
        app,
        ["reproduce", "table2", *words, "flowers.tune=lastblock", "--datasets", "pets,flowers", "--out", "t"],
    )
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert "did you mean 'last-block'" in line
    assert not (here / "t").exists()


def test_the_same_out_is_used_after_a_wrong_setting_and_after_a_run_that_did_not_begin(
    here, flower, monkeypatch
):
    monkeypatch.setattr("p2pft_flower.cli.run.local_superlink", lambda _: contextlib.nullcontext({}))

    def run(*words):
        return CliRunner().invoke(app, ["run", *words, "algorithm=p2pft", "seed=0", "--out", "out"])

    assert run("dataset=cifar99").exit_code == 2
    failed = {"schema": SCHEMA, "status": "failed", "run": "7", "algorithm": "p2pft", "error": "at hello"}
    write_results(here / "out", failed)  # as a coordinator leaves them whose peers said no
    done = run()
    assert done.exit_code == 0, done.output
    assert json.loads(Path("out/results.json").read_text())["status"] == "completed"
    again = run()
    assert again.exit_code == 2
    assert "holds an earlier run" in again.stderr


def test_a_name_that_no_file_system_takes_is_refused_before_anything_is_started(here):
    done = CliRunner().invoke(app, ["run", "--out", "x" * 300])
    assert done.exit_code == 2, done.output
    assert "nothing can be written to" in done.stderr
    assert "File name too long" in done.stderr


def leave_checkpoint(folder, config):
    """Leave what a peer of a run had written after its last iteration."""
    about = PeerAbout(
        config={**RunConfig().to_mapping(), "evaluate-every": 2, **config},
        iterations=4,
        evaluate_every=config.get("evaluate-every", 2) or 12,
        checkpoint_every=1,
        **{"model_digest": "", "partition": "iid", "versions": {}, "graph": None, "known": None},
        **{"loss_weight": 1.0, "row": {0: 1.0}, "column": {0: 1.0}, "whole": True},
    )
    checkpoint = Checkpoint(
        peer=0,
        iteration=4,
        run="7",
        about=about,
        position={},
        bytes_sent=0,
        seconds={},
        state={"theta": np.zeros(3, np.float32)},
    )
    write_checkpoint(checkpoint, checkpoint_folder(folder, 0))


@pytest.mark.parametrize("name", ["whole", "mine.py", "broken", "."])
def test_a_folder_or_file_that_is_there_is_what_resume_names(name, here):
    (here / "broken").symlink_to(here / "nowhere")
    done = CliRunner().invoke(app, ["run", "--resume", name])
    assert done.exit_code == 2, done.output
    assert str((here / name).absolute()) in done.stderr
    assert "/home/runs/" not in done.stderr


def test_an_id_of_a_run_in_the_home_comes_before_a_folder_that_holds_none(here):
    (here / "17").mkdir()
    (here / "home" / "runs" / "17").mkdir(parents=True)
    assert parse_settings(["resume=17"])["resume"] == "17"
    (here / "17" / "peers").mkdir()
    assert parse_settings(["resume=17"])["resume"] == str(here / "17")


LENGTHS = [
    ({"iterations": 4}, ["iterations=9"], "iterations: 4 in the checkpoint, 9 now .*p2pft run --extend"),
    ({"iterations": 4}, ["iterations=3"], "3 now .*not shorter"),
    ({"iterations": 4}, ["epochs=1"], "epochs: 4 iterations in the checkpoint, 1 epochs now .*--extend"),
    ({"iterations": 4, "evaluate-every": 0}, ["epochs=1"], "iterations: 4 in the checkpoint, 12 now"),
    ({"epochs": 2}, ["epochs=4"], "iterations: 4 in the checkpoint, 8 now"),
    ({"epochs": 2, "schedule": "cosine"}, ["epochs=4", "--extend"], "schedule = cosine"),
]


@pytest.mark.parametrize(("earlier", "words", "says"), LENGTHS)
def test_a_resumed_run_of_another_length_is_refused_at_once(earlier, words, says, here):
    leave_checkpoint(here / "run", earlier)
    done = CliRunner().invoke(app, ["run", "--resume", str(here / "run"), *words, "--out", "out"])
    assert done.exit_code == 2, done.output
    assert re.search(says, done.stderr), done.stderr
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("earlier", "given"),
    [
        ({"iterations": 4}, {"iterations": 4}),
        ({"iterations": 4}, {"iterations": 9, "extend": True}),
        ({"iterations": 4}, {"epochs": 1, "extend": True}),
        ({"epochs": 2}, {"iterations": 4}),
        ({"epochs": 2}, {"epochs": 3, "extend": True}),
    ],
)
def test_a_resumed_run_may_be_as_long_or_longer_with_extend(earlier, given, here):
    leave_checkpoint(here / "run", earlier)
    values = settings_of_resumed({"resume": str(here / "run"), **given}, simulated=True)
    assert values["evaluate-every"] == 2


@pytest.mark.parametrize("connection", [[], ["--connection", "far"]], ids=str)
@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_run_that_has_completed_is_not_resumed_but_lengthened(connection, checkpoint, here, monkeypatch):
    monkeypatch.setattr("p2pft_flower.cli.run.check_connection", lambda _: None)
    if checkpoint or not connection:
        leave_checkpoint(here / "run", {"iterations": 4})
    write_results(here / "run", {"schema": SCHEMA, "status": "completed", "iterations": 4})
    done = CliRunner().invoke(app, ["run", "--resume", str(here / "run"), *connection, "--out", "out"])
    assert done.exit_code == 2, done.output
    assert "that run has completed, 4 iterations on all peers" in done.stderr
    assert "--extend epochs=… or iterations=… lengthens it" in done.stderr


@pytest.mark.parametrize("status", ["completed-with-2-of-3", "stopped", "failed"])
def test_a_run_that_some_peers_did_not_complete_may_be_resumed(status, here):
    leave_checkpoint(here / "run", {"iterations": 4})
    write_results(here / "run", {"schema": SCHEMA, "status": status, "iterations": 4})
    assert settings_of_resumed({"resume": str(here / "run")}, simulated=True)["iterations"] == 4


def leave_rehearsal(monkeypatch, peers):
    state = Rehearsal("mark", "rehearsal", "127.0.0.1:1", tuple(Peer(i, "", "", "") for i in range(peers)))
    monkeypatch.setattr(rehearsal, "current", lambda: state)
    monkeypatch.setattr(rehearsal, "connection_address", lambda _: state.superlink)


@pytest.mark.parametrize("command", [["run"], ["preflight"], ["compare", "p2pft"]], ids=str)
@pytest.mark.parametrize("peers", [2, 5])
def test_a_graph_of_other_peers_than_the_rehearsal_has_is_refused_at_once(command, peers, here, monkeypatch):
    leave_rehearsal(monkeypatch, peers)
    monkeypatch.setattr(f"p2pft_flower.cli.{command[0]}.check_connection", lambda _: None)
    done = CliRunner().invoke(app, [*command, "--connection", "rehearsal"])
    assert done.exit_code == 2, done.output
    says = f"the rehearsal that is up has {peers} peers, and the graph directed-ring-4 has 4"
    assert says in " ".join(done.stderr.split())
    assert f"topology=directed-ring:{peers}" in done.stderr


def test_a_rehearsal_of_enough_peers_or_another_deployment_is_let_pass(monkeypatch):
    leave_rehearsal(monkeypatch, 2)
    four = Graph.load("directed-ring-4")
    check_rehearsed("rehearsal", Graph.load("complete:2"))
    check_rehearsed("rehearsal", four, min_peers=2)
    check_rehearsed("office", four)
    monkeypatch.setattr(rehearsal, "connection_address", lambda _: "127.0.0.1:2")
    check_rehearsed("rehearsal", four)


def test_evaluate_refuses_data_that_is_not_there_before_torch_is_imported(tmp_path):
    save_file({"a": np.zeros(1)}, tmp_path / "peer-0.safetensors", metadata={"dataset": "digits"})
    cases = {
        "--dataset cifar99": "did you mean 'cifar10'",
        "--dataset folder:/no/such": "does not exist",
        "--dataset cifar10 --data-dir /no/such": "there is no folder /no/such/",
        "--data-dir /no/such": "dataset = 'digits' does not read it",
    }
    code = f"""
import sys
from tests.commands import CliRunner
from p2pft_flower.cli import app
for words, says in {cases!r}.items():
    done = CliRunner().invoke(app, ["evaluate", "peer-0.safetensors", *words.split()])
    print(done.exit_code, says in done.stderr, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout.splitlines() == ["2 True False"] * len(cases)
