"""A run of one of Flower's strategies, unmodified, on the same peers, batches, model and metrics."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from msgspec import structs

from p2pft_flower.flower.nodes import HostAssignment, RunFailedError
from p2pft_flower.flower.peers_grid import PeersGrid
from p2pft_flower.flower.rounds import RoundKeeper
from p2pft_flower.flower.run import Run, collect_results
from p2pft_flower.flower.strategies import make_strategy
from p2pft_flower.host.callbacks import Callbacks, WatchedRun
from p2pft_flower.keeping.lines import Evaluation, Outcome, Report
from p2pft_flower.keeping.progress import Progress
from p2pft_flower.scores import ClassScores
from p2pft_flower.typed import converted

if TYPE_CHECKING:
    from p2pft_flower.learning.workload import Workload

__all__ = ["run_strategy"]

log = logging.getLogger("p2pft_flower")


def run_strategy(grid: Grid, run: Run) -> dict[str, Any]:
    """Run one of Flower's strategies on the run's peers, and return the content of results.json.

    Raises
    ------
    RunFailedError
        When a client fails or does not reply, or the strategy returns no model.
    ConfigError, DataError
        When the strategy refuses its settings, or the run to be resumed cannot go on.
    """
    from p2pft_flower.learning.workload import Workload  # torch and timm, which other coordinators never need

    n, steps = run.graph.n, run.config.method.local_epochs * run.epoch
    workload = Workload(run.config.learning, n, classes=run.class_names, width=run.width)
    progress = Progress(n, run.iterations, lambda line: log.info("%s", line))
    keeper = RoundKeeper(run, steps, workload.model_digest)
    run = replace(run, resume=keeper.resume, changed=keeper.changed)
    watched = WatchedRun(
        run=run.id,
        name=run.config.runtime.name,
        folder=run.folder,
        peers=tuple(run.peers),
        n=n,
        iterations=run.iterations,
        config=run.config.to_mapping(),
    )
    callbacks = Callbacks(run.config, watched, lambda text: log.warning("%s", text))
    account = _Account(keeper, progress, workload.theta0.nbytes, callbacks)
    ends: dict[int, Outcome] = {}
    callbacks.start()
    try:
        passed = _start(grid, run, workload, keeper, account)
        ends = account.outcomes(run, workload)
    finally:
        callbacks.close(ends)
    return {**collect_results(run, ends, progress), "seconds": passed}


def _start(grid: Grid, run: Run, workload: Workload, keeper: RoundKeeper, account: _Account) -> float:
    """Run the strategy from its first round, or the one from which it goes on, to the last.

    Returns the seconds that this took.

    Raises
    ------
    RunFailedError
        When a client fails or does not reply, or the strategy returns no model.
    ConfigError
        When the strategy refuses its settings.
    """
    from p2pft_flower.flower import clients

    method = run.config.method
    strategy, steps = make_strategy(method, run.graph.n), method.local_epochs * run.epoch
    begin = time.monotonic()
    initial = keeper.arrays or clients.to_arrays(workload, workload.theta0)
    peers = PeersGrid(grid, run.hosts, _task(run, keeper, steps), account.note, keeper.is_scored)
    if not keeper.first_round:  # a strategy asks for scores after rounds only
        peers.score(initial, run.config.runtime.run_timeout)
    result = strategy.start(
        grid=peers,
        initial_arrays=initial,
        num_rounds=math.ceil(run.iterations / steps) - keeper.first_round,
        timeout=run.config.runtime.run_timeout,
        train_config=ConfigRecord(),
        evaluate_config=ConfigRecord(),
        evaluate_fn=keeper.keep,
    )
    if not result.arrays or result.arrays is initial:  # Flower 1.43 returns what it began with
        raise RunFailedError(f"{method.algorithm} returned no model; see Flower's log above")
    passed = time.monotonic() - begin
    account.share_out(passed, run.hosts)
    return passed


def _task(run: Run, keeper: RoundKeeper, steps: int) -> dict[str, Any]:
    """Return the content of every client's message besides the strategy's own settings."""
    by_images = run.config.method.objective == "examples"
    return {
        "config": run.config.to_mapping(),
        "n": run.graph.n,
        "run": run.id,
        "iterations": run.iterations,
        "steps": steps,
        "first-round": keeper.first_round,
        "lost": keeper.lost,
        "weights": {p: float(run.images[p]) if by_images else 1.0 for p in range(run.graph.n)},
        "output-dir": str(run.folder),
    }


class _Account:
    """The scores, bytes, seconds and privacy that peers report round by round.

    Parameters
    ----------
    keeper : RoundKeeper
        Keeps the reports; if the run is resumed, has the seconds and bytes of the earlier rounds.
    progress : Progress
        Shows the reports, also those of earlier rounds.
    payload : int
        Bytes of one model.
    callbacks : Callbacks
        Get each evaluation.
    """

    def __init__(self, keeper: RoundKeeper, progress: Progress, payload: int, callbacks: Callbacks) -> None:
        self._keeper, self._progress, self._payload = keeper, progress, payload
        self._callbacks, self._begin = callbacks, time.monotonic()
        self._seconds, self._sent = keeper.seconds, keeper.sent
        self._before = {p: dict(parts) for p, parts in keeper.seconds.items()}
        self._last: dict[int, Report] = {}
        self._last_only: dict[int, dict[str, Any]] = {}
        """The numbers of each peer's last evaluation that no report has."""
        for report in keeper.reports:
            progress.fill(report)

    def note(self, kind: str, told: list[dict[str, Any]]) -> None:
        """Add the facts that all clients sent beside their replies to messages of type ``kind``."""
        for note in told:
            peer = note["peer"]
            if kind.startswith("train"):
                self._seconds[peer]["gradient"] += note["gradient"]
                self._sent[peer] += 2 * self._payload  # both ways: nobody else counts the server's part
            else:
                self._seconds[peer]["evaluation"] += note["evaluation"]
                told_of = {key: note[key] for key in Report.__struct_fields__ if key != "bytes_sent"}
                report = self._last[peer] = Report(**told_of, bytes_sent=self._sent[peer])
                self._progress.add(report)
                passed = time.monotonic() - self._begin
                self._callbacks.evaluated(
                    Evaluation(**structs.asdict(report), seconds=passed, epsilon=note.get("epsilon"))
                )
                self._keeper.reports.append(report)
                only = ("accuracy_seen", "epsilon", "delta", "class_scores")
                self._last_only[peer] = {key: note.get(key) for key in only}
                if (by_class := note.get("class_scores")) is not None:
                    where = f"peer {peer}'s scores by class"
                    self._last_only[peer]["class_scores"] = converted(by_class, ClassScores, where)

    def share_out(self, passed: float, hosts: Sequence[HostAssignment]) -> None:
        """Count as exchange those of ``passed`` seconds that no gradient or evaluation of a host took."""
        for host in hosts:
            parts = ("gradient", "evaluation")
            busy = sum(self._seconds[p][part] - self._before[p][part] for p in host.peers for part in parts)
            for p in host.peers:
                self._seconds[p]["exchange"] = self._before[p]["exchange"] + max(0.0, passed - busy)

    def outcomes(self, run: Run, workload: Workload) -> dict[int, Outcome]:
        """Return the outcome of each peer that was evaluated."""
        model_parameters, preprocessing = workload.model_parameters, workload.preprocessing
        return {
            p: Outcome(
                peer=p,
                loss=r.loss,
                accuracy=r.accuracy,
                accuracy_unseen=r.accuracy_unseen,
                bytes_sent=r.bytes_sent,
                sketch=cast(str, r.sketch),  # the server has each client's
                accuracy_seen=self._last_only[p]["accuracy_seen"],
                epsilon=self._last_only[p]["epsilon"],
                delta=self._last_only[p]["delta"],
                class_scores=self._last_only[p]["class_scores"],
                seconds=self._seconds[p],
                iterations=run.iterations,
                parameters=workload.theta0.size,
                model_parameters=model_parameters,
                preprocessing=preprocessing,
            )
            for p, r in self._last.items()
        }
