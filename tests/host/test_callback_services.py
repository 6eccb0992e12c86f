"""The docs' examples of callbacks with the real packages, offline, where these are installed.

They are large (``pip install wandb mlflow-skinny``), so that the extra ``test`` is without them.
"""

from __future__ import annotations

import importlib.util

import pytest

from tests.examples import write_example

from .hosts import run_together
from .quadratic import GRAPH, Quadratics, plans


def needs(package):
    there = importlib.util.find_spec(package) is not None
    reason = f"{package} is not installed: it is no part of the test extra"
    return pytest.mark.skipif(not there, reason=reason)


def train(folder, value, caplog):
    (plan,) = plans(GRAPH, [[0, 1, 2, 3]], {}, folder, callbacks=value, name="squares")
    (outcomes,) = run_together([plan], [Quadratics()])
    assert [outcome.iterations for outcome in outcomes] == [20] * 4
    warned = [r.getMessage() for r in caplog.records if r.name == "p2pft_flower"]
    assert [text for text in warned if text.startswith("callbacks")] == []
    return outcomes


@needs("wandb")
@pytest.mark.filterwarnings("default")  # those of other people's packages
def test_the_example_for_weights_and_biases_writes_a_run_without_a_network(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    file = write_example("my_wandb", tmp_path)
    train(tmp_path, f"{file}:Wandb", caplog)
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"peer 3/loss" in written.read_bytes()


@needs("mlflow")
@pytest.mark.filterwarnings("default")
def test_the_example_for_mlflow_writes_a_run_into_a_local_store(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # skinny has no other store
    file = write_example("my_mlflow", tmp_path)
    outcomes = train(tmp_path, f"{file}:Mlflow", caplog)
    import mlflow

    (run,) = mlflow.MlflowClient().search_runs([mlflow.get_experiment_by_name("p2pft").experiment_id])
    assert (run.info.run_name, run.info.status) == ("squares", "FINISHED")
    assert run.data.params["learning-rate"] == "0.1"
    assert run.data.metrics["peer_3.loss"] == pytest.approx(outcomes[3].loss)
