"""A peer's images change between runs: a resumed run says which, and goes on if that is accepted."""

from __future__ import annotations

import gzip
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from p2pft_flower.cli.settings import settings_of_resumed
from p2pft_flower.errors import P2PFTError
from p2pft_flower.facts import ListedImage
from p2pft_flower.host.training import TRACE
from p2pft_flower.keeping.checkpoints import checkpoint_folder
from p2pft_flower.keeping.image_lists import FILE, ImageLists, difference, read_lists, write_lists
from p2pft_flower.keeping.invariants import TrackerSums
from p2pft_flower.keeping.journal import read_journal
from p2pft_flower.keeping.lines import Trace
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import read_results
from tests.learning.data.test_frames import written

from .engine import run_app
from .sameness import tails
from .test_moved_data import SETTINGS, anew, interrupted, write


def paint(file, seed=9):
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def change(root):
    """One dog is new, two are removed, one is changed; one test image of a cat is new."""
    dogs = root / "train" / "dog"
    paint(dogs / "new.png")
    for name in ("0.png", "1.png"):
        (dogs / name).unlink()
    paint(dogs / "2.png")
    paint(root / "test" / "cat" / "9.png")
    anew()


SAYS = "1 new (dog/new.png), 2 removed (dog/0.png, dog/1.png), 1 changed (dog/2.png)"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    root = tmp_path_factory.mktemp("earlier")
    run_app(root / "run", dataset=f"folder:{write(root / 'data')}", **SETTINGS)
    return root


@pytest.fixture
def killed(earlier, tmp_path):
    """What a run leaves that was killed after an iteration; its images lie elsewhere and have changed."""
    data = shutil.copytree(earlier / "data", tmp_path / "data")
    change(data)
    resume = interrupted(earlier / "run", tmp_path / "killed")
    return {**SETTINGS, "dataset": f"folder:{data}", "resume": resume}


def test_a_resumed_run_says_which_images_have_changed_and_refuses(killed, tmp_path):
    with pytest.raises(P2PFTError) as raised:
        run_app(tmp_path / "on", **killed)
    told = str(raised.value)
    assert "peer 1's training images: 6 in the checkpoint, 5 now: " in told
    assert SAYS in told
    assert "peer 0's test images: other labels, file names, sizes or contents" in told
    assert "1 new (cat/9.png) (data-changed = accept goes on with those of now)" in told
    assert "peer 0's training images" not in told
    assert not (tmp_path / "on" / "peers").exists()


def test_it_goes_on_with_them_if_that_is_accepted_and_results_and_log_tell_it(killed, tmp_path, capsys):
    run_app(tmp_path / "on", **killed, data_changed="accept")
    assert (
        f"data-changed = accept: peer 1 goes on with other training images: {SAYS}" in capsys.readouterr().out
    )
    results = read_results(tmp_path / "on")
    assert results["status"] == "completed"
    assert results["resumed_from"]["iteration"] == 1
    assert [peer["images"] for peer in results["peers"]] == [6, 5]
    test = {"new": 1, "removed": 0, "changed": 0}
    assert results["peers"][0]["data_changed"] == {"training": None, "test": test}
    assert results["peers"][1]["data_changed"] == {
        "training": {"new": 1, "removed": 2, "changed": 1},
        "test": test,
    }
    assert results["config"]["data-changed"] == "accept"
    anew_results = collect_results(find_peers([tmp_path / "on"]))
    assert json.loads(json.dumps(anew_results["peers"])) == results["peers"]
    started = settings_of_resumed(
        {"resume": str(tmp_path / "on"), "extend": True, "iterations": 9}, simulated=True
    )
    assert "data-changed" not in started  # it was said of the changes until then
    # From here on these are its images: it is resumed with them, and with no others.
    resume = interrupted(tmp_path / "on", tmp_path / "again", after=2)
    run_app(tmp_path / "third", **killed | {"resume": resume})
    assert read_results(tmp_path / "third")["peers"][1]["data_changed"] is None


def test_the_sum_of_the_trackers_holds_when_images_have_changed(killed, tmp_path, monkeypatch):
    """Σ τ = Σ g: the last gradients on the images of before are in the checkpoints."""
    monkeypatch.setenv(TRACE, "1")
    run_app(tmp_path / "on", **killed, data_changed="accept")
    sums = TrackerSums((0, 1))
    lines = [line for p in (0, 1) for line in read_journal(tmp_path / "on" / "peers" / f"peer-{p}.jsonl")]
    found = [sums.note_trace(line) for line in lines if isinstance(line, Trace)]
    surplus = [one.relative for one in found if one is not None]
    assert len(surplus) >= 2
    assert max(surplus) < 1e-5


def test_private_gradients_go_on_with_the_same_images_only(tmp_path):
    data = write(tmp_path / "data")
    settings = {**SETTINGS, "dataset": f"folder:{data}", "dp_clip": 1.0, "dp_noise": 1.0}
    run_app(tmp_path / "run", **settings)
    lists = read_lists(checkpoint_folder(tmp_path / "run", 1))
    assert lists.training is None
    resume = interrupted(tmp_path / "run", tmp_path / "killed")
    change(data)
    with pytest.raises(
        P2PFTError, match=r"6 in the checkpoint, 5 now \(with private gradients a run goes on"
    ) as r:
        run_app(tmp_path / "on", **settings, resume=resume, data_changed="accept")
    assert "new.png" not in str(r.value)


def test_without_lists_it_is_said_that_images_differ_and_not_which(killed, tmp_path):
    for peer in (0, 1):
        (checkpoint_folder(tmp_path / "killed", peer) / FILE).unlink()
    with pytest.raises(P2PFTError, match=r"6 in the checkpoint, 5 now \(data-changed = accept"):
        run_app(tmp_path / "on", **killed)
    run_app(tmp_path / "on", **killed, data_changed="accept")
    unknown = {"new": None, "removed": None, "changed": None}
    assert read_results(tmp_path / "on")["peers"][0]["data_changed"] == {"training": None, "test": unknown}


def test_a_site_of_a_deployment_tells_its_changes(tmp_path):
    nodes = [{"peer-id": p, "peer-address": f"127.0.0.1:{port}"} for p, port in enumerate(free_ports(2))]
    for peer, node in enumerate(nodes):
        node["output-dir"] = str(tmp_path / f"out-{peer}")
    write(tmp_path / "site-", sites=("0", "1"))
    settings = {**SETTINGS, "dataset": f"folder:{tmp_path}/site-{{peer}}", "slots": 2, "node_configs": nodes}
    run_app(tmp_path / "first", **settings)
    first = read_results(tmp_path / "first")["run"]
    change(tmp_path / "site-1")
    with pytest.raises(
        P2PFTError, match=rf"peer 1's training images: 12 in the checkpoint, 11 now: {re.escape(SAYS)}"
    ):
        run_app(tmp_path / "on", **settings | {"iterations": 5}, resume=first, extend=True)
    run_app(tmp_path / "on", **settings | {"iterations": 5}, resume=first, extend=True, data_changed="accept")
    results = read_results(tmp_path / "on")
    assert results["peers"][0]["data_changed"] is None
    assert results["peers"][1]["data_changed"]["training"] == {"new": 1, "removed": 2, "changed": 1}


def test_a_strategy_goes_on_with_other_images_if_that_is_accepted(tmp_path):
    data = write(tmp_path / "data")
    settings = {"topology": "complete:2", "batch_size": 3, "algorithm": "fedavg", "dataset": f"folder:{data}"}
    run_app(tmp_path / "run", **settings, epochs=1)
    change(data)
    settings |= {"epochs": 4, "extend": True, "resume": str(tmp_path / "run")}
    with pytest.raises(
        P2PFTError, match=r"peer 1's training images: 6 in the checkpoint, 5 now \(data-changed ="
    ):
        run_app(tmp_path / "on", **settings)
    run_app(tmp_path / "on", **settings, data_changed="accept")
    told = read_results(tmp_path / "on")["peers"][1]["data_changed"]
    assert told["training"] == {"new": None, "removed": None, "changed": None}


# --- lists --------------------------------------------------------------------------------------------------


def listed(*files, root="/data", size=1, label="a", content=""):
    return tuple(ListedImage(f"{root}/{file}", label, size, content) for file in files)


@pytest.mark.parametrize("root", ["/data", "/elsewhere/deeper"])
def test_images_are_matched_wherever_they_lie_now(root):
    before = listed("train/a/1.png", "train/b/1.png", "train/b/2.png")
    now = listed("train/a/1.png", "train/b/1.png", "train/c/3.png", "train/c/4.png", root=root)
    found = difference(before, now)
    assert [len(found.new), len(found.removed), len(found.changed)] == [2, 1, 0]
    assert found.removed[0].endswith("2.png")


def test_a_new_folder_beside_the_others_changes_no_match():
    """The folder that all of them have in common is another then."""
    before = listed("train/b/1.png", "train/b/2.png")
    for root in ("/data", "/moved"):
        found = difference(before, listed("train/b/1.png", "train/b/2.png", "train/c/1.png", root=root))
        assert found.counts.__dict__ == {"new": 1, "removed": 0, "changed": 0}


def test_another_class_size_or_content_is_a_change_and_a_content_not_looked_into_is_none():
    before = listed("1.png", content="x")
    assert not difference(before, listed("1.png", content="x")).changed
    assert not difference(before, listed("1.png")).changed
    for other in ({"size": 2}, {"label": "b"}, {"content": "y"}):
        assert difference(before, listed("1.png", **{"content": "x", **other})).changed == ("data/1.png",)


def test_all_images_may_be_others_and_few_are_named():
    found = difference(listed(*"12345"), listed(*"6789", root="/d"))
    assert str(found) == "4 new (d/6, d/7, d/8 and 1 more), 5 removed (data/1, data/2, data/3 and 2 more)"
    assert "another" in str(difference(listed("1", "2"), listed("2", "1")))
    assert difference((), listed("1")).new == ("data/1",)


def test_lists_are_read_as_written_and_a_damaged_or_unwritable_one_only_warns(tmp_path, caplog):
    lists = ImageLists(listed("1.png", "2.png"), None)
    write_lists(tmp_path / "a", lists)
    assert read_lists(tmp_path / "a") == lists
    file = tmp_path / "a" / FILE
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_lists(tmp_path / "none") is None
    assert not caplog.records
    for damaged in (
        b"no gzip",
        gzip.compress(b"{}"),
        file.read_bytes()[:-9],
        gzip.compress(json.dumps([]).encode()),
    ):
        file.write_bytes(damaged)
        caplog.clear()
        assert read_lists(tmp_path / "a") is None
        assert "nobody knows which images have changed" in caplog.text
    (tmp_path / "b").write_text("a file, no folder")
    write_lists(tmp_path / "b", lists)
    assert "so a resumed run can say that images have changed, but not which" in caplog.text


def frames_for(root, dogs=3):
    """Files of three frames each, by class; of the dogs' file so many."""
    for number, (part, label) in enumerate((p, c) for p in ("train", "test") for c in ("cat", "dog")):
        count = dogs if (part, label) == ("train", "dog") else 3
        levels = [np.random.default_rng(10 * number + k).integers(0, 255, (8, 8)) for k in range(count)]
        written(root / part / label / "scan.dcm", levels, bits=8)
    return f"folder:{root}"


def test_a_run_on_frames_goes_on_with_the_same_ones_and_names_those_that_are_gone(tmp_path):
    settings = {**SETTINGS, "dataset": frames_for(tmp_path / "data"), "partition": "classes:cat,dog"}
    run_app(tmp_path / "whole", **settings)
    resume = interrupted(tmp_path / "whole", tmp_path / "killed")
    anew()
    run_app(tmp_path / "on", **settings, resume=resume)
    assert tails(tmp_path / "on", range(2)) == tails(tmp_path / "whole", range(2))
    frames_for(tmp_path / "data", dogs=2)
    anew()
    with pytest.raises(
        P2PFTError, match=r"3 in the checkpoint, 2 now: 1 removed \(dog/scan.dcm#3\), 2 changed"
    ):
        run_app(tmp_path / "not", **settings, resume=resume)
