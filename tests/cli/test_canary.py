"""``p2pft run --canary``: a try of a run, what it tells of the whole run, and what it keeps."""

from __future__ import annotations

import contextlib
from collections import namedtuple

import pytest

from p2pft_flower.cli import app
from p2pft_flower.cli.canary import require_room, verdict
from p2pft_flower.cli.run import Finished
from p2pft_flower.errors import ConfigError
from p2pft_flower.keeping.checkpoints import checkpoint_folder
from tests.commands import CliRunner
from tests.report.made_up import results

ENDED = Finished("completed")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("p2pft_flower.cli.run.local_superlink", lambda _: contextlib.nullcontext({}))
    return tmp_path / "home"


def canary(*words):
    return CliRunner().invoke(app, ["run", "--canary", *map(str, words)])


def test_a_canary_has_the_runs_own_settings_but_two_iterations_and_keeps_nothing(flower, home):
    done = canary("algorithm=p2pft", "topology=directed-ring:4", "epochs=50", "seed=3")
    assert done.exit_code == 0, done.output
    (asked,) = flower.asked
    few = {"iterations": 2, "evaluate-every": 2, "checkpoint-every": 2, "name": "canary"}
    assert {key: asked[key] for key in few} == few
    assert (asked["topology"], asked["epochs"], asked["seed"]) == ("directed-ring:4", 50, 3)
    assert "the canary lives: 4 peers" in done.output
    assert "results:" not in done.output
    assert not (home / "canaries").exists()


def test_a_canary_that_fails_exits_1_with_the_reason_and_leaves_its_files(flower, home):
    flower.errors["p2pft"] = "peer 2: no room"
    done = canary("algorithm=p2pft", "topology=directed-ring:4")
    assert done.exit_code == 1
    assert "peer 2: no room" in done.output
    assert len(list((home / "canaries").iterdir())) == 1


def test_the_same_words_without_canary_do_the_run_after_its_canary(flower, tmp_path):
    words = ["--out", str(tmp_path / "results" / "out"), "algorithm=p2pft", "topology=directed-ring:4"]
    for _ in range(2):
        done = canary(*words)
        assert done.exit_code == 0, done.output
        assert not list((tmp_path / "results").iterdir())
    assert flower.asked[0]["output-dir"].startswith(f"{tmp_path}/results/canary-")  # on the same disk
    done = CliRunner().invoke(app, ["run", *words])
    assert done.exit_code == 0, done.output
    assert f"results: {tmp_path / 'results' / 'out' / 'results.json'}" in done.output


def test_a_canary_of_a_deployment_leaves_the_runs_folder_alone(flower, connections, tmp_path, monkeypatch):
    monkeypatch.setattr("p2pft_flower.cli.run.execute", lambda values, **_: asked.append(values) or ENDED)
    asked, out = [], tmp_path / "out"
    done = canary("--connection", "far", "--out", out, "algorithm=p2pft", "topology=directed-ring:4")
    assert done.exit_code == 0, done.output
    assert (asked[0]["name"], asked[0]["output-dir"]) == ("canary", "")
    assert f"{out} is free for the run itself" in done.output.replace("\n", " ")


@pytest.mark.parametrize("word", ["--resume", "--extend"])
def test_a_canary_of_a_resumed_run_is_refused(word, flower, monkeypatch):
    monkeypatch.setattr("p2pft_flower.cli.run._values", lambda *_, **__: {"resume": "7", "extend": True})
    done = canary(word, *(["7"] if word == "--resume" else []))
    assert done.exit_code == 2
    assert "from its beginning" in done.output
    assert not flower.asked


def told(peers=None, **values):
    made = results()
    made["peers"] = [{**peer, **(peers or {})} for peer in made["peers"]]
    return "\n".join(verdict(made, {"algorithm": "p2pft", "topology": "directed-ring:4", **values}))


SECONDS = {"gradient": 0.5, "exchange": 1.5, "evaluation": 4.0}


def test_the_whole_runs_length_time_and_bytes_come_from_the_canarys():
    one = {"images": 320, "bytes_sent": 2_000_000, "seconds": SECONDS}
    said = told(one, epochs=30)
    assert "300 iterations and 31 evaluations" in said
    assert "(1 s each, 2 s an evaluation), at most 6 min" in said
    assert "a peer sends up to 300.0 MB" in said
    halved = told(one, epochs=30, **{"algorithm-options": "local-steps=2"})
    assert "150 iterations and 31 evaluations" in halved
    assert "40 iterations and 3 evaluations" in told(one, iterations=40, **{"evaluate-every": 20})
    assert "the whole run" not in told(one, algorithm="fedavg")


def test_a_loss_that_grows_is_told():
    made = results()
    made["history"][0]["loss"], made["history"][-1]["loss"] = [2.0, 2.0, None, 2.0], [1.0, 9.0, 3.0, 3.9]
    said = verdict(made, {"algorithm": "p2pft", "topology": "directed-ring:4"})
    assert (
        said[-1] == "note: the loss grew in these iterations (peer 1 from 2 to 9): is learning-rate too high?"
    )


def test_a_disk_without_room_for_the_whole_runs_checkpoints_is_refused(tmp_path, monkeypatch):
    made = results()
    for peer in range(4):
        folder = checkpoint_folder(tmp_path, peer)
        folder.mkdir(parents=True)
        (folder / "iteration-2.safetensors").write_bytes(bytes(1000))
    usage = namedtuple("usage", "total used free")
    values = {"algorithm": "p2pft", "topology": "directed-ring:4", "checkpoints-kept": 2}
    for free in (12_000, 11_999):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: usage(0, 0, free))
        with (
            contextlib.nullcontext()
            if free == 12_000
            else pytest.raises(ConfigError, match="checkpoints need 12")
        ):
            require_room(made, values, tmp_path)
