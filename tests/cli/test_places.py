"""Places that cannot be written to: one line, exit 2, before anything is started, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess

import pytest

from p2pft_flower.cli import app
from p2pft_flower.errors import ConfigError
from p2pft_flower.keeping.folders import look_at, require_writable
from tests.commands import CliRunner
from tests.flower.engine import run_app

from .real import environment, p2pft


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    """Nothing may be started; homes that can be written to, and the present folder."""

    def forbidden(*_, **__):
        raise AssertionError("something was started")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    (tmp_path / "nowhere").symlink_to(tmp_path / "not-there")
    return tmp_path


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(words, *named, before):
    """The command exits 2 with one line that names all of ``named``, and makes nothing."""
    there = tree(before)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, done.output
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for name in named:
        assert name in done.stderr
    assert tree(before) == there


BAD = ["file", "file/below", "nowhere", "nowhere/below", "file/far/below"]
"""A file, below one, a link that leads nowhere, below one: none of them stops root less than others."""


@pytest.mark.parametrize("place", BAD)
@pytest.mark.parametrize(
    "words",
    [
        ["run", "--out"],
        ["compare", "p2pft,local", "--out"],
        ["reproduce", "table2", "--out"],
        ["chaos", "--out"],
    ],
    ids=lambda words: words[0],
)
def test_an_out_that_cannot_be_written_starts_nothing(words, place, quiet):
    refused([*words, place], str(quiet / place) if words[0] == "run" else place, before=quiet)


@pytest.mark.parametrize("place", BAD)
@pytest.mark.parametrize(
    "words",
    [["run"], ["compare", "dgd", "--out", "new"], ["reproduce", "table2"], ["up"], ["chaos"]],
    ids=lambda words: words[0],
)
def test_a_home_that_cannot_be_written_starts_nothing(words, place, quiet, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", place)
    if words[0] == "reproduce":
        words = [*words, "model=glyph_vit_8", "cifar10.dataset=digits", "--datasets", "cifar10"]
    refused(words, f"P2PFT_HOME = {place!r}: nothing can be written", before=quiet)


@pytest.mark.parametrize("place", BAD)
@pytest.mark.parametrize("words", [["run"], ["up"], ["run", "--connection", "far"]], ids=str)
def test_a_home_of_flower_that_cannot_be_written_starts_nothing(words, place, quiet, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", place)
    refused(words, f"FLWR_HOME = {place!r}: nothing can be written", "set FLWR_HOME to", before=quiet)


@pytest.mark.parametrize(
    ("unset", "says"),
    [("P2PFT_HOME", "~/.p2pft (P2PFT_HOME is not set)"), ("FLWR_HOME", "~/.flwr (FLWR_HOME")],
)
def test_a_users_home_that_cannot_be_written_is_named_with_the_variable(unset, says, quiet, monkeypatch):
    monkeypatch.setenv("HOME", str(quiet / "file"))
    monkeypatch.delenv(unset)
    refused(["run"], says, str(quiet / "file"), f"set {unset} to a folder that can be written", before=quiet)


@pytest.mark.parametrize("unset", ["P2PFT_HOME", "FLWR_HOME"])
def test_a_user_without_a_home_is_told_which_variable_to_set(unset, quiet, monkeypatch):
    monkeypatch.delenv(unset)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where nobody knows of this user
    refused(["run"], "this user has no home folder", f"set {unset} to", before=quiet)


def test_the_cache_alone_is_refused_and_is_not_needed_by_all_runs(quiet, monkeypatch, flower):
    monkeypatch.setattr("p2pft_flower.cli.run.local_superlink", lambda _: contextlib.nullcontext({}))
    (quiet / "home").mkdir()
    (quiet / "home" / "cache").write_text("no folder")
    refused(["run", "--out", "o"], "set P2PFT_HOME to", "or cache = false", before=quiet)
    assert flower.asked == []
    for number, words in enumerate((["cache=false"], ["tune=full"])):
        done = CliRunner().invoke(app, ["run", *words, "algorithm=p2pft", "seed=0", "--out", f"o{number}"])
        assert done.exit_code == 0, done.output
    assert len(flower.asked) == 2


def test_a_folder_for_temporary_files_is_looked_at(quiet, monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    refused(["run", "--out", "o"], "TMPDIR", before=quiet)


def test_nothing_is_up_where_its_folder_cannot_be(quiet, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", "file/below")
    done = CliRunner().invoke(app, ["down"])
    assert (done.exit_code, done.stdout) == (0, "nothing is up\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "a"
    run_app(folder, iterations=1, shots=2, topology="complete:2", evaluate_every=1)
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["export", "{run}", "-o", "file/x"],
        ["export", "{run}/peers/peer-0.safetensors", "-o", "file/x.safetensors"],
        ["collect", "{run}", "--out", "file/x"],
        ["attention", "{run}", "-o", "file/x.png"],
        ["certs", "init", "file/ca", "--federation", "f"],
        ["topology", "show", "ring-4", "--png", "file/x.png"],
        ["data", "show", "--png", "file/x.png"],
        ["demo", "regression", "--iterations", "2", "--png", "file/x.png"],
    ],
    ids=lambda words: words[0],
)
def test_other_commands_that_write_say_in_one_line_that_they_cannot(words, quiet, finished):
    words = [word.format(run=finished) for word in words]
    refused(words, "file", before=quiet)


def test_a_coordinator_refuses_its_results_place_before_it_greets_anyone(tmp_path):
    """``flwr run``, whose command line does not look."""
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ConfigError, match=r"output-dir = '.*file/below': nothing can be written"):
        run_app(tmp_path / "file" / "below", nodes=0)


def test_the_folder_that_is_looked_at_stays_as_it_was(tmp_path):
    require_writable("--out x", tmp_path / "a" / "b", "choose another")
    assert tree(tmp_path) == []
    assert look_at("home", tmp_path).error == ""


def without_roots_rights():
    """Return the words before a command that is to be stopped by modes, as root is not."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root is not stopped by modes, and there is no setpriv that would have it stopped")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.mark.parametrize("words", [["run"], ["run", "--out", "shut/out"], ["up"]], ids=str)
def test_a_read_only_home_is_named_before_flower_starts(words, tmp_path):
    """As in containers and on batch nodes; real modes, a real process."""
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o555)
    env = {k: v for k, v in environment(tmp_path).items() if k != "P2PFT_HOME"} | {"HOME": str(shut)}
    done = p2pft(env, *words, cwd=tmp_path, before=without_roots_rights())
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert str(shut) in line
    assert "Permission denied" in line
    assert ("output-dir" if "--out" in words else "P2PFT_HOME") in line
    assert list(tmp_path.iterdir()) == [shut]
    assert list(shut.iterdir()) == []
