"""A run's folder has its name and id, is found by either, and tells whether a process works there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from p2pft_flower.keeping.run_folders import at_rest, find_run, folder_name, in_use, split_name
from p2pft_flower.keeping.running import registered


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))


def made(above, *names):
    """Make folders, each a second newer than the one before."""
    for second, name in enumerate(names):
        (above / name).mkdir(parents=True)
        os.utime(above / name, (1_000_000 + second,) * 2)


@pytest.mark.parametrize(
    ("name", "folder"), [("", "17"), ("pets", "pets-17"), ("pets-2", "pets-2-17"), ("a_B-", "a_B--17")]
)
def test_a_folder_has_the_runs_name_and_id_and_gives_both_back(name, folder):
    assert folder_name("17", name) == folder
    assert split_name(folder) == (name, "17")


@pytest.mark.parametrize("folder", ["notes", "17-pets", "pets-17-x", "2-17", "pets.17", "pets-１７"])
def test_what_is_not_called_like_a_run_is_its_own_id(folder):
    assert split_name(folder) == ("", folder)


def test_a_run_is_found_by_its_id_whether_it_has_a_name_or_not(tmp_path):
    made(tmp_path, "17", "pets-18")
    assert find_run(tmp_path, "17") == ("17", tmp_path / "17", "")
    assert find_run(tmp_path, "18") == ("18", tmp_path / "pets-18", "")
    assert find_run(tmp_path, "pets-18") == ("18", tmp_path / "pets-18", "")


def test_a_name_means_the_newest_run_of_it_and_says_which_one_that_is(tmp_path):
    made(tmp_path, "pets-19", "pets-18", "pets-lora-20")
    found = find_run(tmp_path, "pets")
    assert found.run == "18"
    assert found.note == f"pets is run 18, the newest of 2 of this name ({tmp_path / 'pets-18'})"
    assert find_run(tmp_path, "pets-lora").note == f"pets-lora is run 20 ({tmp_path / 'pets-lora-20'})"


@pytest.mark.parametrize("wanted", ["21", "cats", "..", "", "a/b", "x" * 300, "pets*", "pets-"])
def test_what_no_run_has_finds_none(tmp_path, wanted):
    made(tmp_path / "runs", "pets-19")
    assert find_run(tmp_path / "runs", wanted) is None
    assert find_run(tmp_path / "nowhere", wanted) is None


def test_a_run_is_at_rest_but_while_a_process_works_on_it(tmp_path):
    with at_rest(tmp_path) as free:
        assert free
    with in_use(tmp_path), in_use(tmp_path), at_rest(tmp_path) as free:
        assert not free
    with at_rest(tmp_path) as free:
        assert free


def test_a_killed_process_leaves_a_run_at_rest(tmp_path):
    code = f"""
import sys
from pathlib import Path
from p2pft_flower.keeping.run_folders import in_use
with in_use(Path({str(tmp_path)!r})):
    print("there", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "there\n"
        with at_rest(tmp_path) as free:
            assert not free
        child.kill()
        child.wait(30)
    with at_rest(tmp_path) as free:
        assert free


def test_peers_that_train_are_found_by_the_runs_id_as_well(tmp_path):
    """For file systems without locks."""
    with registered("17", [0], []):
        for run, rests in (("17", False), ("18", True), ("", True)):
            with at_rest(tmp_path, run) as free:
                assert free is rests


def test_a_folder_that_cannot_be_marked_is_told_and_ends_no_training(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with in_use(tmp_path / "file"):
        pass
    assert "cannot be marked as in use" in caplog.text
