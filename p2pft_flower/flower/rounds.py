"""Checkpoints of runs of Flower's strategies: the server keeps its one model after each round.

Flower's strategies offer no way to read or restore the state that they keep from round to round. Strategies
whose only state is the model (``STATELESS``) go on bit for bit; the others are refused.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.facts import ChangedData
from p2pft_flower.flower.changed_images import accepted
from p2pft_flower.flower.resume import check_length, resumed_folder
from p2pft_flower.flower.run import Run
from p2pft_flower.flower.strategies import plain_name
from p2pft_flower.keeping.about import ServerAbout
from p2pft_flower.keeping.checkpoints import (
    SERVER,
    Checkpoint,
    checkpoint_files,
    checkpoint_folder,
    forget,
    read_checkpoint,
    write_checkpoint,
)
from p2pft_flower.keeping.lines import Report
from p2pft_flower.keeping.resuming import config_differences, data_differences, look_through, refuse
from p2pft_flower.plan import ResumePoint
from p2pft_flower.typed import Count, PeerNumber, Positive, converted, plain

if TYPE_CHECKING:
    from flwr.app import ArrayRecord

__all__ = ["STATELESS", "RoundKeeper", "check_resumable"]

log = logging.getLogger("p2pft_flower")

STATELESS = frozenset(
    {"bulyan", "fedavg", "fedmedian", "fedprox", "fedtrimmedavg", "krum", "multikrum", "qfedavg"}
)
"""Strategies of Flower 1.41 that keep nothing from one round to the next but the model."""


def check_resumable(config: RunConfig) -> None:
    """Refuse to resume a run of a strategy that keeps more from round to round than the model.

    Raises
    ------
    ConfigError
        When ``resume`` is set for such a run; the message lists the strategies that can go on.
    """
    name, resume = plain_name(config.method.algorithm), config.runtime.resume
    if resume and name not in STATELESS:
        raise ConfigError(
            f"resume = {resume!r}: algorithm = {name!r} keeps state of its own from round to round "
            "(momenta), which Flower's strategies do not hand out, so it cannot go on; those that can: "
            f"{', '.join(sorted(STATELESS))}"
        )


@dataclass(frozen=True)
class Position:
    """The server's position in a run of a strategy: rounds done, and attributes of :class:`RoundKeeper`."""

    round: Positive
    reports: tuple[Report, ...]
    sent: dict[PeerNumber, Count]
    seconds: dict[PeerNumber, dict[str, float]]
    lost: Count


class RoundKeeper:
    """Writes the server's checkpoints, and reads the checkpoint that the run goes on from.

    Parameters
    ----------
    run : Run
        The run.
    steps : int
        Local iterations of a round.
    model_digest : str
        Digest of the frozen weights and θ^0.

    Attributes
    ----------
    first_round : int
        Rounds done by the run that this one goes on from; 0 if this run begins anew.
    arrays : ArrayRecord or None
        The model after these rounds; None if the run begins anew.
    reports : list of Report
        The peers' scores after each round so far.
    sent : dict of int to int
        Payload bytes of each peer so far.
    seconds : dict of int to dict
        Each peer's seconds so far, by activity.
    lost : int
        The most gradients of a peer that interrupted runs may have drawn in vain.
    resume : ResumePoint or None
        The point from which the run goes on; None if it begins anew.
    changed : dict of int to ChangedData
        The changes of the peers' images with which it goes on.

    Raises
    ------
    ConfigError
        When the run cannot go on: the strategy keeps state of its own, a setting differs, or the run has done
        all its iterations.
    DataError
        When the server has no checkpoint in good state.
    """

    def __init__(self, run: Run, steps: int, model_digest: str) -> None:
        self._run, self._steps, self._model_digest = run, steps, model_digest
        self._folder = checkpoint_folder(run.folder, SERVER)
        self.first_round = 0
        self.arrays: ArrayRecord | None = None
        self.reports: list[Report] = []
        self.sent = dict.fromkeys(run.peers, 0)
        self.seconds = {p: {"gradient": 0.0, "exchange": 0.0, "evaluation": 0.0} for p in run.peers}
        self.lost = 0
        self.resume: ResumePoint | None = None
        self.changed: dict[int, ChangedData] = {}
        if run.config.runtime.resume:
            self._go_on(run.config.runtime.resume)

    def is_scored(self, server_round: int) -> bool:
        """Tell whether ``evaluate-every`` asks for the clients' scores after a round of this run.

        So it does before the first round, at the end, and where a round comes to, or passes, a multiple.
        """
        every, done = self._run.evaluate_every, self._done(server_round)
        return done == self._run.iterations or done // every > self._done(server_round - 1) // every

    def _done(self, server_round: int) -> int:
        """Return the iterations done after a round of this run; negative before round 0."""
        return min((self.first_round + server_round) * self._steps, self._run.iterations)

    def keep(self, server_round: int, arrays: ArrayRecord) -> None:
        """Write a checkpoint after a round of this run; the strategy calls this as its ``evaluate_fn``.

        Parameters
        ----------
        server_round : int
            Rounds done by this run, without :attr:`first_round`.
        arrays : ArrayRecord
            The model.

        Raises
        ------
        CheckpointError
            When the checkpoint cannot be written.
        """
        if self._run.checkpoint_every < 0:
            return
        done = self._done(server_round)
        checkpoint = Checkpoint(
            run=self._run.id,
            peer=SERVER,
            iteration=done,
            about=self._about(),
            position=plain(
                Position(
                    self.first_round + server_round, tuple(self.reports), self.sent, self.seconds, self.lost
                )
            ),
            bytes_sent=sum(self.sent.values()),
            seconds={},
            state={name: array.numpy() for name, array in arrays.items()},
            live=self._run.peers,
        )
        write_checkpoint(checkpoint, self._folder)
        if done < self._run.iterations:
            own = [k for k in checkpoint_files(self._folder) if k <= done]
            forget(self._folder, own[: -self._run.config.runtime.checkpoints_kept])

    def _about(self) -> ServerAbout:
        run = self._run
        return ServerAbout(
            config=run.config.to_mapping(),
            iterations=run.iterations,
            steps=self._steps,
            model_digest=self._model_digest,
            partition=run.partition,
            versions=run.versions,
            known={p: run.about(p).known for p in sorted(run.images)},
        )

    def _go_on(self, resume: str) -> None:
        run = self._run
        check_resumable(run.config)
        folder = resumed_folder(resume)
        kept = look_through(folder, SERVER)
        if not kept.views:
            raise DataError(
                f"resume = {resume!r}: the server has no checkpoint in good state in "
                f"{checkpoint_folder(folder, SERVER)}"
            )
        before, now = kept.newest.about, self._about()
        if not isinstance(before, ServerAbout):
            raise DataError(f"{checkpoint_folder(folder, SERVER)}: a peer's checkpoint, not the server's")
        differences = config_differences(before.config, now.config)
        differences += check_length(run.config, before.iterations, now.iterations)
        differences += [
            f"{what.replace('_', ' ')}: {getattr(before, what)} in the checkpoint, {getattr(now, what)} now"
            for what in ("steps", "model_digest", "partition")
            if getattr(before, what) != getattr(now, what)
        ]
        if before.known.keys() != now.known.keys():
            differences.append(f"peers: {list(before.known)} in the checkpoint, {list(now.known)} now")
        for peer in sorted(before.known.keys() & now.known.keys()):
            differences += data_differences(
                peer, before.known[peer], now.known[peer], before.config, now.config
            )
        refuse(kept.run, differences)
        self.changed = accepted(before.known, run)
        # A longer run has no shortened round at the shorter one's end.
        whole = [k for k in kept.digests if k % self._steps == 0 or now.iterations == before.iterations]
        if not whole or max(whole) >= now.iterations:
            raise ConfigError(
                f"run {kept.run} has done all its {now.iterations} iterations; p2pft run --extend with "
                "more epochs lengthens it"
            )
        path = checkpoint_files(checkpoint_folder(folder, SERVER))[max(whole)]
        self._restore(read_checkpoint(path, kept.run)[0], path)
        self.resume = ResumePoint(kept.run, str(folder), dict.fromkeys(run.peers, max(whole)), {})
        log.info("run %s goes on from iteration %d, after %d rounds", kept.run, max(whole), self.first_round)

    def _restore(self, checkpoint: Checkpoint, path: Path) -> None:
        from flwr.app import Array, ArrayRecord

        told = converted(checkpoint.position, Position, path)
        self.first_round = told.round
        self.arrays = ArrayRecord({name: Array(np.asarray(a)) for name, a in checkpoint.state.items()})
        self.reports, self.sent, self.seconds = list(told.reports), told.sent, told.seconds
        # With noise from a machine's entropy, the gradients of an unfinished round still count towards ε.
        self.lost = told.lost + (self._steps if self._run.deployed else 0)
