"""A run of one of Flower's strategies, unmodified, on the same peers, batches, model and metrics."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from typing import Any

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from p2pft_flower.flower.nodes import RunFailedError
from p2pft_flower.flower.rounds import RoundKeeper
from p2pft_flower.flower.run import Run, collect_results
from p2pft_flower.flower.strategies import PeersGrid, make_strategy
from p2pft_flower.keeping.lines import Outcome, Report
from p2pft_flower.keeping.progress import Progress

__all__ = ["run_strategy"]

log = logging.getLogger("p2pft_flower")


def run_strategy(grid: Grid, run: Run) -> dict[str, Any]:
    """Run one of Flower's strategies, unmodified, on the same peers, batches, model and metrics."""
    from p2pft_flower.flower import clients  # torch and timm, which other coordinators never need
    from p2pft_flower.learning.workload import Workload

    method, n = run.config.method, run.graph.n
    strategy = make_strategy(method, n)
    workload = Workload(run.config.learning, n, classes=run.class_names)
    steps = method.local_epochs * run.epoch
    rounds = math.ceil(run.iterations / steps)
    payload = workload.theta0.nbytes
    progress = Progress(n, run.iterations, lambda line: log.info("%s", line))
    keeper = RoundKeeper(run, steps, workload.model_digest)
    run = replace(run, resume=keeper.resume)
    for report in keeper.reports:
        progress.fill(report)
    seconds, sent = keeper.seconds, keeper.sent
    before = {p: dict(parts) for p, parts in seconds.items()}
    last: dict[int, Report] = {}
    privacy: dict[int, dict[str, float | None]] = {}

    def on_reply(kind: str, told: list[dict[str, Any]]) -> None:
        for note in told:
            peer = note["peer"]
            if kind.startswith("train"):
                seconds[peer]["gradient"] += note["gradient"]
                sent[peer] += 2 * payload  # both ways: nobody else counts the server's part
            else:
                seconds[peer]["evaluation"] += note["evaluation"]
                told_of = {key: note[key] for key in Report.__struct_fields__ if key != "bytes_sent"}
                last[peer] = Report(**told_of, bytes_sent=sent[peer])
                progress.add(last[peer])
                keeper.reports.append(last[peer])
                privacy[peer] = {key: note.get(key) for key in ("epsilon", "delta")}

    weights = {p: float(run.images[p]) if method.objective == "examples" else 1.0 for p in range(n)}
    task = {
        "config": run.config.to_mapping(),
        "n": n,
        "run": run.id,
        "iterations": run.iterations,
        "steps": steps,
        "first-round": keeper.first_round,
        "lost": keeper.lost,
        "weights": weights,
        "output-dir": str(run.folder),
    }
    begin = time.monotonic()
    initial = keeper.arrays or clients.to_arrays(workload, workload.theta0)
    result = strategy.start(
        grid=PeersGrid(grid, run.hosts, task, on_reply),
        initial_arrays=initial,
        num_rounds=rounds - keeper.first_round,
        timeout=run.config.runtime.run_timeout,
        train_config=ConfigRecord(),
        evaluate_config=ConfigRecord(),
        evaluate_fn=keeper.keep,
    )
    if not result.arrays or result.arrays is initial:  # Flower 1.43 returns what it began with
        raise RunFailedError(f"{method.algorithm} returned no model; see Flower's log above")
    passed = time.monotonic() - begin
    for host in run.hosts:
        # A host's time that is no gradient or evaluation of a peer went into messages and waiting.
        parts = ("gradient", "evaluation")
        busy = sum(seconds[p][part] - before[p][part] for p in host.peers for part in parts)
        for p in host.peers:
            seconds[p]["exchange"] = before[p]["exchange"] + max(0.0, passed - busy)
    model_parameters, preprocessing = workload.model_parameters, workload.preprocessing
    outcomes = {
        p: Outcome(
            peer=p,
            loss=r.loss,
            accuracy=r.accuracy,
            accuracy_unseen=r.accuracy_unseen,
            bytes_sent=r.bytes_sent,
            sketch=r.sketch,
            epsilon=privacy[p]["epsilon"],
            delta=privacy[p]["delta"],
            seconds=seconds[p],
            iterations=run.iterations,
            parameters=workload.theta0.size,
            model_parameters=model_parameters,
            preprocessing=preprocessing,
        )
        for p, r in last.items()
    }
    return collect_results(run, outcomes, progress)
