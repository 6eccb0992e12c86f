"""Peers as clients of a server-based strategy: local steps and scores on the same model, data and batches."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from p2pft_flower.algorithms.objective import local_objective
from p2pft_flower.algorithms.schedules import make_schedule
from p2pft_flower.algorithms.seam import heavy_ball
from p2pft_flower.config import LearningConfig, RunConfig
from p2pft_flower.flower import messages
from p2pft_flower.flower.site import Site
from p2pft_flower.host.exchange import DivergedError
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.journal import Journal
from p2pft_flower.keeping.lines import LastRound, Round
from p2pft_flower.learning.workload import Workload
from p2pft_flower.typed import plain

__all__ = ["answer", "evaluate", "theta_of", "to_arrays", "train"]

Vector = npt.NDArray[Any]
Build = Callable[[LearningConfig, int, str, "tuple[int, ...] | None"], Workload]


def to_arrays(workload: Workload, theta: Vector) -> ArrayRecord:
    """Return θ, (q,), as the ArrayRecord that a strategy aggregates: the trained tensors by their names."""
    return ArrayRecord({name: Array(t.numpy()) for name, t in workload.named_tail(theta).items()})


def theta_of(workload: Workload, arrays: ArrayRecord) -> Vector:
    """Return θ, (q,) float32, of an ArrayRecord that :func:`to_arrays` returned.

    Raises
    ------
    DataError
        When a tensor is missing, unknown, or has another shape.
    """
    tensors = {name: torch.from_numpy(np.array(a.numpy(), dtype=np.float32)) for name, a in arrays.items()}
    return workload.theta_from(tensors, "the server's message")


def answer(message: Message, act: Callable[..., RecordDict], build: Build, site: Site | None) -> Message:
    """Return the reply to a node's message, with the records of every client that the message carries.

    A record ``name`` of peer i's client is called ``i/name`` in both; the error of a client that failed is
    its record ``failure``.

    Parameters
    ----------
    message : Message
        The message of the strategy's server, from :class:`~p2pft_flower.flower.peers_grid.PeersGrid`.
    act : callable
        :func:`train` or :func:`evaluate`, called for each client.
    build : callable
        Returns the workload of settings, number of peers, ``pooled`` and peers here.
    site : Site or None
        The site whose node this is; None in simulation, where a node has the data of all peers.

    Raises
    ------
    ConfigError, DataError
        When the site's settings or data cannot be used.
    """
    task = messages.unpack(message)
    config = RunConfig.from_mapping(task["config"])
    torch.set_num_threads(config.runtime.threads)
    if site is None:
        workload = build(config.learning, task["n"], "", None)
    else:
        workload = build(site.with_own_data(config.learning), task["n"], "", (site.peer_id,))
        task["output-dir"] = str(
            site.writable_folder(str(task["run"]), config.runtime.output_dir, config.runtime.name)
        )
    content = RecordDict()
    for peer in task["peers"]:
        try:
            arrays = message.content.array_records[task["arrays"][str(peer)]]
            told = message.content.config_records.get(f"{peer}/config", ConfigRecord())
            answered = act(task, config, workload, peer, arrays, told)
        except Exception as error:
            failure = {
                "error": f"peer {peer}: {type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
            }
            answered = RecordDict({"failure": ConfigRecord({"json": json.dumps(failure)})})
        for name, record in answered.items():
            content[f"{peer}/{name}"] = record
    return Message(content, reply_to=message)


def _rounds(task: dict[str, Any], told: ConfigRecord) -> int:
    """Return the number of the present round, from 1, counted from the beginning of a resumed run too."""
    return int(task["first-round"]) + int(cast(int, told["server-round"]))


def train(
    task: dict[str, Any],
    config: RunConfig,
    workload: Workload,
    peer: int,
    arrays: ArrayRecord,
    told: ConfigRecord,
) -> RecordDict:
    """Run a client's local steps of a round from the server's θ, and return its new θ and metrics.

    v begins at zero in every round; weight decay is part of ∇L_i.
    v ← β v + ∇L_i(θ) + μ (θ − θ_server),   θ ← θ − α_k v, with FedProx's μ if the strategy sends one.

    Parameters
    ----------
    task : dict
        The content of every client's message, from ``strategy_run``.
    config : RunConfig
        The run's settings.
    workload : Workload
        The model and images of the peers here.
    peer : int
        The client's peer.
    arrays : ArrayRecord
        The server's θ.
    told : ConfigRecord
        The strategy's own settings of the round.

    Raises
    ------
    DivergedError
        When θ is not finite.
    """
    objective = workload.objectives([peer])[peer]
    server = theta = theta_of(workload, arrays)
    mu = float(cast(float, told.get("proximal-mu", 0.0)))
    first = (_rounds(task, told) - 1) * task["steps"]
    schedule = make_schedule(config.method.schedule, config.method.learning_rate, task["iterations"])
    gradient = local_objective(objective.gradient, weight_decay=config.method.weight_decay)
    objective.drawn = first  # the order is the peer's own, in any process that plays the client
    velocity, losses = None, []
    begin = time.perf_counter()
    for k in range(first, min(first + task["steps"], task["iterations"])):
        direction = gradient(theta)
        if mu:
            direction = direction + mu * (theta - server)
        velocity = heavy_ball(config.method.momentum, velocity, direction)
        theta = theta - schedule(k) * velocity
        losses.append(objective.train_loss)
    passed = time.perf_counter() - begin
    if not np.isfinite(theta).all():
        raise DivergedError.not_finite(peer, f"round {told['server-round']!r}", "parameters")
    metrics = {"num-examples": task["weights"][str(peer)]}
    if not config.learning.dp_clip:  # the loss of training images has no noise: it would cost ε too
        metrics["train_loss"] = float(np.mean(losses))
    return RecordDict(
        {
            "arrays": to_arrays(workload, theta),
            "metrics": MetricRecord(metrics),
            "peer": ConfigRecord({"json": json.dumps({"gradient": passed})}),
        }
    )


def evaluate(
    task: dict[str, Any],
    config: RunConfig,
    workload: Workload,
    peer: int,
    arrays: ArrayRecord,
    told: ConfigRecord,
) -> RecordDict:
    """Score the server's θ on the peer's test images; return the scores. :func:`train` has the parameters.

    The scores also go into the peer's journal. After the last round, θ is saved as the peer's tail.

    Raises
    ------
    DivergedError
        When the loss is not finite.
    """
    theta, objective = theta_of(workload, arrays), workload.objectives([peer])[peer]
    done = min(_rounds(task, told) * task["steps"], task["iterations"])
    last = done == task["iterations"]
    begin = time.perf_counter()
    full = objective.evaluate_in_full(theta) if last else None
    score = objective.evaluate(theta) if full is None else full.score
    passed = time.perf_counter() - begin
    scored = not math.isnan(score.accuracy)
    if scored and not math.isfinite(score.loss):
        raise DivergedError.not_finite(peer, f"round {told['server-round']!r}", "loss")
    line = Round(
        peer=peer,
        iteration=done,
        loss=score.loss,
        accuracy=score.accuracy,
        accuracy_unseen=score.accuracy_unseen,
        accuracy_seen=score.accuracy_seen,
        sketch=sketch.encode(sketch.Sketcher(theta.size)(theta)),
        evaluation=passed,
    )
    told_back: dict[str, Any] = plain(line)
    journal = Journal(Path(task["output-dir"]), peer)
    try:
        journal.write(line)
        if full is not None:
            if config.runtime.predictions:
                journal.save_predictions(full.predictions)
            extra = {
                "run": task["run"],
                "peer": str(peer),
                "iterations": str(done),
                "preprocessing": json.dumps(workload.preprocessing),
                "test-digest": workload.holdings.test_digest(peer),
            }
            journal.save_tail(workload.named_tail(theta), {**workload.metadata(), **extra})
            # One gradient an iteration, drawn in any process, and the gradients that came to nothing.
            objective.drawn = done + task["lost"]
            epsilon, delta = objective.privacy_spent() or (None, None)
            told_back |= {"epsilon": epsilon, "delta": delta, "class_scores": plain(full.class_scores)}
            journal.write(LastRound(peer=peer, iteration=done, epsilon=epsilon, delta=delta))
    finally:
        journal.close()
    metrics: dict[str, Any] = {"num-examples": 0, "loss": 0.0, "accuracy": 0.0}  # counts for nothing
    if scored:
        metrics = {
            "num-examples": task["weights"][str(peer)],
            "loss": score.loss,
            "accuracy": score.accuracy,
        }
    return RecordDict(
        {"metrics": MetricRecord(metrics), "peer": ConfigRecord({"json": json.dumps(told_back)})}
    )
