"""Whole runs that are watched: TensorBoard's event files and callbacks, also of Flower's strategies."""

from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from p2pft_flower.cli.settings import check
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.keeping import event_files
from p2pft_flower.lab.ports import free_ports
from p2pft_flower.plugins import load_reference
from p2pft_flower.report.results import read_results
from tests.quadratics import QUADRATICS

from .engine import run_app

SHORT = {"iterations": 6, "evaluate_every": 3}

KEEPS = """
kept = []

class Keeps:
    def __init__(self, run):
        kept.append(("made", run.peers))

    def evaluated(self, line):
        kept.append(("evaluated", line.peer, line.iteration, line.accuracy))

    def ended(self, ends):
        kept.append(("ended", sorted(ends)))
"""


@pytest.fixture
def keeps(tmp_path):
    (tmp_path / "keeps.py").write_text(KEEPS)
    return f"{tmp_path / 'keeps.py'}:Keeps"


def kept_by(value):
    return load_reference(value, key="callbacks").__init__.__globals__["kept"]


def curve(folder, tag):
    events = EventAccumulator(str(folder)).Reload().Scalars(tag)
    return [(e.step, pytest.approx(e.value)) for e in events]


def sorted_curve(folder, tag):
    return sorted(curve(folder, tag), key=lambda event: event[0])


@pytest.mark.parametrize("algorithm", ["p2pft", "fedavg"])
def test_the_event_files_of_a_run_have_the_history_of_its_results(algorithm, tmp_path):
    settings = {"epochs": 2, "shots": 4, "batch_size": 3} if algorithm == "fedavg" else SHORT
    run_app(tmp_path, algorithm=algorithm, tensorboard=True, **settings)
    results = read_results(tmp_path)
    history = results["history"]
    for p in range(4):
        for key in ("loss", "accuracy", "accuracy_unseen"):
            expected = [(row["iteration"], row[key][p]) for row in history]
            assert curve(tmp_path / "tensorboard" / f"peer-{p}", key) == expected
        sent = curve(tmp_path / "tensorboard" / f"peer-{p}", "bytes_sent")
        assert sent[-1] == (results["iterations"], results["peers"][p]["bytes_sent"])
    if algorithm == "p2pft":
        expected = [(row["iteration"], row["consensus_error"]) for row in history]
        assert curve(tmp_path / "tensorboard" / "all", "consensus_error") == expected


def test_in_a_deployment_each_site_has_the_event_files_and_the_callback_of_its_peer(tmp_path, keeps):
    """The coordinator, to which nobody reports before the end, has the consensus error all the same."""
    nodes = [
        {"peer-id": p, "peer-address": f"127.0.0.1:{port}", "output-dir": str(tmp_path / f"site-{p}")}
        for p, port in enumerate(free_ports(2))
    ]
    run_app(
        tmp_path / "office",
        slots=2,
        node_configs=nodes,
        problem=QUADRATICS,
        topology="ring:2",
        tensorboard=True,
        callbacks=keeps,
        **SHORT,
    )
    results = read_results(tmp_path / "office")
    for p in range(2):
        (files,) = (tmp_path / f"site-{p}").glob("*/tensorboard")
        assert [path.name for path in files.iterdir()] == [f"peer-{p}"]
        assert [step for step, _ in curve(files / f"peer-{p}", "loss")] == [0, 3, 6]
    expected = [(row["iteration"], row["consensus_error"]) for row in results["history"]]
    # In so short a run it may hear of the last evaluation first, and of the others at the end.
    assert sorted_curve(tmp_path / "office" / "tensorboard" / "all", "consensus_error") == expected
    assert [entry for entry in kept_by(keeps) if entry[0] == "ended"] == [("ended", [0]), ("ended", [1])] or [
        entry for entry in kept_by(keeps) if entry[0] == "ended"
    ] == [("ended", [1]), ("ended", [0])]


def test_of_a_strategy_the_coordinator_tells_one_callback_of_all_peers(tmp_path, keeps):
    run_app(tmp_path / "out", algorithm="fedavg", epochs=1, shots=4, batch_size=3, callbacks=keeps)
    made, *told, end = kept_by(keeps)
    assert made == ("made", (0, 1, 2, 3))
    assert end == ("ended", [0, 1, 2, 3])
    last = {p["peer"]: p["accuracy"] for p in read_results(tmp_path / "out")["peers"]}
    assert {peer: accuracy for _, peer, _, accuracy in told} == last


@pytest.mark.parametrize("algorithm", ["p2pft", "fedavg"])
def test_what_is_missing_is_refused_before_anything_trains(algorithm, tmp_path, monkeypatch):
    with pytest.raises(P2PFTError, match="cannot import 'no_such_module'"):
        run_app(tmp_path / "a", algorithm=algorithm, callbacks="no_such_module:Notes", **SHORT)
    monkeypatch.setattr(event_files, "find_spec", lambda name: None)
    with pytest.raises(P2PFTError, match=r"p2pft-flower\[tensorboard\]"):
        run_app(tmp_path / "b", algorithm=algorithm, tensorboard=True, **SHORT)
    with pytest.raises(ConfigError, match=r"p2pft-flower\[tensorboard\]"):
        check({"algorithm": algorithm, "tensorboard": True}, here=True)
    check({"algorithm": algorithm, "tensorboard": True}, here=False)  # the sites have their own packages
    for folder in ("a", "b"):
        assert not (tmp_path / folder / "peers").exists()
