"""The same data at another path: a run goes on with it, its tails are scored on it; other data is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from PIL import Image

from p2pft_flower.cli import app
from p2pft_flower.cli.settings import settings_of_resumed
from p2pft_flower.config import config_keys
from p2pft_flower.errors import DataError, P2PFTError
from p2pft_flower.facts import KnownImages
from p2pft_flower.flower import client
from p2pft_flower.keeping.checkpoints import (
    SERVER,
    checkpoint_files,
    checkpoint_folder,
    read_checkpoint,
    write_checkpoint,
)
from p2pft_flower.keeping.journal import read_journal
from p2pft_flower.keeping.lines import written
from p2pft_flower.keeping.resuming import config_differences
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import read_results
from tests.commands import CliRunner
from tests.learning.data.test_torchvision_sets import write_cifar, write_pets

from .engine import run_app
from .sameness import same_run, tails

SETTINGS = {
    "topology": "complete:2",
    "iterations": 3,
    "evaluate_every": 3,
    "checkpoint_every": 1,
    "checkpoints_kept": 50,
    "batch_size": 3,
}


def write(root, sites=(), train=6, test=2, suffix="png"):
    """Write images of two classes; with ``sites`` a folder for each of these peers."""
    for site in sites or [""]:
        rng = np.random.default_rng(int(site or 0))
        for part, count in (("train", train), ("test", test)):
            for label, name in enumerate(("cat", "dog")):
                folder = Path(f"{root}{site}") / part / name
                folder.mkdir(parents=True)
                for i in range(count):
                    pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8) + np.uint8(90 * label)
                    Image.fromarray(pixels).save(folder / f"{i}.{suffix}")
    return root


def other_image(root, part):
    """Replace an image of the second peer's class by one of another size."""
    Image.new("L", (30, 30)).save(root / part / "dog" / "0.png")


def anew():
    """Have data looked at again at the same path, as a new process does."""
    client.holdings.cache_clear()
    client.workload.cache_clear()
    client._facts.cache_clear()


def interrupted(folder, to, after=1):
    """Copy what a run would have left, had it been killed after the checkpoint of an iteration."""
    shutil.copytree(folder, to)
    (to / "results.json").unlink()
    for peer in (0, 1, SERVER):
        for k, path in checkpoint_files(checkpoint_folder(to, peer)).items():
            if k > after:
                path.unlink()
    return str(to)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A run, on data that is there no more where it was."""
    root = tmp_path_factory.mktemp("moved")
    data = write(root / "data")
    run_app(root / "run", dataset=f"folder:{data}", **SETTINGS)
    data.rename(root / "elsewhere")
    return root


@pytest.fixture
def new_place(earlier, tmp_path):
    return Path(shutil.copytree(earlier / "elsewhere", tmp_path / "new" / "place"))


def test_a_run_goes_on_with_the_same_images_at_another_path_bit_for_bit(earlier, new_place, tmp_path):
    resume = interrupted(earlier / "run", tmp_path / "killed")
    run_app(tmp_path / "on", dataset=f"folder:{new_place}", **SETTINGS, resume=resume)
    same_run(earlier / "run", tmp_path / "on", 2)
    assert read_results(tmp_path / "on")["config"]["dataset"] == f"folder:{new_place}"


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("train", "peer 1's training images: other labels, file names, sizes or contents"),
        ("test", "peer 0's test images:"),
    ],
)
def test_a_run_does_not_go_on_with_other_images(part, says, earlier, new_place, tmp_path):
    other_image(new_place, part)
    resume = interrupted(earlier / "run", tmp_path / "killed")
    with pytest.raises(P2PFTError, match=f"cannot be resumed like this: .*{says}") as raised:
        run_app(tmp_path / "on", dataset=f"folder:{new_place}", **SETTINGS, resume=resume)
    if part == "train":
        assert "peer 0" not in str(raised.value)  # its own are the same
    assert not (tmp_path / "on" / "peers").exists()


def test_other_images_at_the_same_path_are_refused_too(tmp_path):
    data = write(tmp_path / "data")
    run_app(tmp_path / "run", dataset=f"folder:{data}", **SETTINGS)
    other_image(data, "train")
    anew()
    resume = interrupted(tmp_path / "run", tmp_path / "killed")
    with pytest.raises(P2PFTError, match="peer 1's training images: other"):
        run_app(tmp_path / "on", dataset=f"folder:{data}", **SETTINGS, resume=resume)


def test_other_images_of_the_same_names_and_sizes_are_refused_too(tmp_path):
    """As those of formats that do not compress always are."""
    data = write(tmp_path / "data", suffix="bmp")
    run_app(tmp_path / "run", dataset=f"folder:{data}", **SETTINGS)
    other = data / "train" / "dog" / "3.bmp"
    size = other.stat().st_size
    Image.fromarray(np.asarray(Image.open(other)) + np.uint8(9)).save(other)
    assert other.stat().st_size == size
    anew()
    resume = interrupted(tmp_path / "run", tmp_path / "killed")
    with pytest.raises(P2PFTError, match="peer 1's training images: other labels, file names, sizes or cont"):
        run_app(tmp_path / "on", dataset=f"folder:{data}", **SETTINGS, resume=resume)


def test_checkpoints_that_do_not_say_what_their_images_were_hold_to_their_path(earlier, new_place, tmp_path):
    resume = interrupted(earlier / "run", tmp_path / "killed")
    for peer in (0, 1):
        folder = checkpoint_folder(tmp_path / "killed", peer)
        for path in checkpoint_files(folder).values():
            checkpoint, _ = read_checkpoint(path)
            known = KnownImages(checkpoint.about.known.images)
            about = structs.replace(checkpoint.about, known=known)
            write_checkpoint(structs.replace(checkpoint, about=about), folder)
    with pytest.raises(
        P2PFTError, match=r"dataset: folder:.*data in the checkpoint, .*place now; .* known again"
    ):
        run_app(tmp_path / "on", dataset=f"folder:{new_place}", **SETTINGS, resume=resume)


def test_the_one_model_of_a_strategy_goes_on_with_the_same_images_only(tmp_path):
    data = write(tmp_path / "data")
    settings = {"topology": "complete:2", "batch_size": 3, "algorithm": "fedavg", "epochs": 3}
    run_app(tmp_path / "whole", dataset=f"folder:{data}", **settings)
    data = data.rename(tmp_path / "moved")
    kept = tmp_path / "killed" / "server.checkpoints"
    shutil.copytree(tmp_path / "whole" / "server.checkpoints", kept)
    checkpoint_files(kept).popitem()[1].unlink()
    settings |= {"dataset": f"folder:{data}", "resume": str(tmp_path / "killed")}
    run_app(tmp_path / "on", **settings)
    same_run(tmp_path / "whole", tmp_path / "on", 2)
    other_image(data, "train")
    anew()
    with pytest.raises(
        P2PFTError, match="cannot be resumed like this: peer 1's training images: other labels"
    ):
        run_app(tmp_path / "other", **settings)


def test_a_sites_images_may_lie_elsewhere_and_must_be_the_same(tmp_path):
    """A deployment: each site names its own data-dir."""
    nodes = []
    for peer, port in enumerate(free_ports(2)):
        write_cifar(tmp_path / f"data-{peer}", kind=10)
        nodes.append(
            {"peer-id": peer, "peer-address": f"127.0.0.1:{port}", "data-dir": str(tmp_path / f"data-{peer}")}
        )
        nodes[-1]["output-dir"] = str(tmp_path / f"site-{peer}")
    settings = {**SETTINGS, "dataset": "cifar10", "verify": False, "slots": 2, "node_configs": nodes}
    run_app(tmp_path / "first", **settings)
    first = read_results(tmp_path / "first")["run"]
    for peer, node in enumerate(nodes):
        kept = checkpoint_folder(tmp_path / f"site-{peer}" / first, peer)
        for k in (2, 3):
            checkpoint_files(kept)[k].unlink()
        shutil.move(node["data-dir"], tmp_path / f"moved-{peer}")
        node["data-dir"] = str(tmp_path / f"moved-{peer}")
    run_app(tmp_path / "on", **settings, resume=first)
    second = read_results(tmp_path / "on")["run"]
    folders = [[tmp_path / f"site-{peer}" / run for peer in range(2)] for run in (first, second)]
    before, after = ([tails(folder, [peer]) for peer, folder in enumerate(run)] for run in folders)
    assert before == after
    collected = collect_results(find_peers(folders[1]))
    assert collected["summary"] == read_results(tmp_path / "on")["summary"]

    batch = next((tmp_path / "moved-1").rglob("test_batch"))
    batch.write_bytes(batch.read_bytes().replace(b"\x03" * 3072, b"\x04" * 3072))
    anew()
    with pytest.raises(P2PFTError, match="peer 1's test images: other labels, file names, sizes or contents"):
        run_app(tmp_path / "other", **settings, resume=first)


@pytest.mark.parametrize(
    ("settings", "node"),
    [
        ({"dataset": "digits"}, {}),
        ({"dataset": "folder:{data}"}, {}),
        ({"dataset": "digits"}, {"data-dir": "/x"}),
    ],
    ids=str,
)
def test_a_data_dir_that_nothing_reads_is_refused_of_a_run_and_of_a_site(settings, node, tmp_path):
    data = write(tmp_path / "data")
    settings = {key: value.format(data=data) for key, value in settings.items()}
    if node:
        node = {"peer-id": 0, "peer-address": f"127.0.0.1:{free_ports(1)[0]}", **node}
        settings |= {"topology": "complete:1", "node_configs": [node]}
    else:
        settings["data_dir"] = "/x"
    where = " in --node-config" if node else ""
    with pytest.raises(P2PFTError, match=f"data-dir = '/x'{where}: dataset = '.*' does not read it"):
        run_app(tmp_path / "run", **settings)


def test_sites_whose_copies_of_a_dataset_that_is_dealt_out_differ_are_refused(tmp_path):
    """Each would deal other shares: two peers would hold the same image, and nobody another one."""
    nodes = []
    for peer, port in enumerate(free_ports(2)):
        folder = write_pets(tmp_path / f"data-{peer}")
        if peer:  # one image less
            listed = folder / "annotations" / "trainval.txt"
            listed.write_text("\n".join(listed.read_text().splitlines()[1:]))
        data_dir = str(tmp_path / f"data-{peer}")
        nodes.append({"peer-id": peer, "peer-address": f"127.0.0.1:{port}", "data-dir": data_dir})
    settings = {**SETTINGS, "dataset": "oxford-iiit-pet", "partition": "iid", "slots": 2}
    with pytest.raises(P2PFTError, match=r"training images differs: .*give all peers the same images"):
        run_app(tmp_path / "run", **settings, node_configs=nodes)


def test_logs_that_differ_in_paths_only_are_of_one_run(earlier, tmp_path):
    folders = []
    for peer in range(2):
        folder = tmp_path / f"site-{peer}" / "peers"
        folder.mkdir(parents=True)
        for name in (f"peer-{peer}.jsonl", f"peer-{peer}.safetensors"):
            shutil.copy(earlier / "run" / "peers" / name, folder / name)
        folders.append(folder.parent)

    def rewrite(**changes):
        log = folders[1] / "peers" / "peer-1.jsonl"
        first, *others = read_journal(log)
        config = first.config | {key.replace("_", "-"): value for key, value in changes.items()}
        log.write_bytes(b"".join(map(written, [structs.replace(first, config=config), *others])))

    rewrite(dataset="folder:/data/of/this/site", output_dir="/elsewhere", data_dir="/there")
    assert collect_results(find_peers(folders))["status"] == "completed"
    rewrite(dataset="folder:/data/{peer}")
    with pytest.raises(DataError, match="not of the same run: config"):
        find_peers(folders)
    rewrite(dataset="folder:/data", seed=7)
    with pytest.raises(DataError, match="not of the same run: config"):
        find_peers(folders)


def test_the_command_line_takes_the_earlier_settings_and_the_new_place(earlier, new_place, tmp_path):
    resume = interrupted(earlier / "run", tmp_path / "killed")
    given = {"resume": resume, "dataset": f"folder:{new_place}"}
    values = settings_of_resumed(given, simulated=True)
    assert values["dataset"] == f"folder:{new_place}"
    assert values["batch-size"] == 3
    for dataset in ("digits", "folder:/data-{peer}"):
        with pytest.raises(P2PFTError, match=f"dataset: folder:.* in the checkpoint, {dataset} now"):
            settings_of_resumed({**given, "dataset": dataset}, simulated=True)
    now = {**config_keys(), "dataset": "folder:/a-{peer}", "data-dir": "/x"}
    assert config_differences({"dataset": "folder:/b-{peer}"}, now) == []


# --- scores -------------------------------------------------------------------------------------------------


def evaluate(*words):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)], env={"COLUMNS": "160"})


def test_tails_are_scored_where_the_images_lie_now_as_the_run_said(earlier, new_place):
    gone = evaluate(earlier / "run")
    assert gone.exit_code == 2
    assert "does not exist" in gone.stderr
    done = evaluate(earlier / "run", "--dataset", f"folder:{new_place}", "--json")
    assert done.exit_code == 0, done.output
    scores = json.loads(done.stdout)
    assert [s["accuracy"] for s in scores] == [p["accuracy"] for p in read_results(earlier / "run")["peers"]]
    assert [s["same_images"] for s in scores] == [True, True]


def test_scores_on_other_images_say_so(earlier, new_place):
    other_image(new_place, "test")
    done = evaluate(earlier / "run", "--dataset", f"folder:{new_place}")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0].endswith("; these are other images than those of its run")
    scores = json.loads(evaluate(earlier / "run", "--dataset", f"folder:{new_place}", "--json").stdout)
    assert [s["same_images"] for s in scores] == [False, False]


def test_tails_are_not_scored_unasked_on_images_that_have_become_others(tmp_path):
    data = write(tmp_path / "data")
    run_app(tmp_path / "run", dataset=f"folder:{data}", **SETTINGS)
    other_image(data, "train")  # they are not scored on these
    assert evaluate(tmp_path / "run").exit_code == 0
    other_image(data, "test")
    done = evaluate(tmp_path / "run")
    assert done.exit_code == 2
    assert "are other ones here than in its run" in done.stderr
    assert evaluate(tmp_path / "run", "--dataset", f"folder:{data}").exit_code == 0


def test_a_site_is_scored_on_its_own_images_and_all_of_them_where_data_is_pooled(tmp_path):
    data = write(tmp_path / "site-", sites=("0", "1"))
    dataset = f"folder:{data}{{peer}}"
    run_app(tmp_path / "run", dataset=dataset, **SETTINGS)
    run_app(tmp_path / "pooled", dataset=dataset, **SETTINGS, algorithm="centralized")
    other_image(tmp_path / "site-1", "test")
    told = {
        run: json.loads(evaluate(tmp_path / run, "--dataset", dataset, "--json").stdout)
        for run in ("run", "pooled")
    }
    assert [s["same_images"] for s in told["run"]] == [True, False]
    assert [s["same_images"] for s in told["pooled"]] == [False]


def test_a_data_dir_is_for_datasets_that_read_it(earlier, tmp_path):
    """Also where a tail's own settings name one, as a run's could that read none."""
    refused = evaluate(earlier / "run", "--data-dir", tmp_path)
    assert refused.exit_code == 2
    assert "does not read it; it names its place itself" in refused.stderr
    write_cifar(tmp_path / "old", kind=10)
    run_app(tmp_path / "run", dataset="cifar10", data_dir=str(tmp_path / "old"), verify=False, **SETTINGS)
    (tmp_path / "old").rename(tmp_path / "new")
    assert evaluate(tmp_path / "run").exit_code == 2
    done = evaluate(tmp_path / "run", "--data-dir", tmp_path / "new", "--json")
    assert done.exit_code == 0, done.output
    assert all(s["same_images"] for s in json.loads(done.stdout))
