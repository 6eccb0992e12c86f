"""TensorBoard's event files of a run: curves of each peer's scores, in ``tensorboard/`` of its folder."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from p2pft_flower.errors import ConfigError
from p2pft_flower.keeping.folders import make_private
from p2pft_flower.keeping.lines import Evaluation

__all__ = ["EVENTS", "ConsensusFile", "EventFiles", "require_tensorboard"]

EVENTS = "tensorboard"
"""The folder of event files in a run's folder; each peer has one of its own in it."""

_ALL = "all"
"""The folder, beside the peers', of what only the coordinator knows."""

log = logging.getLogger("p2pft_flower")

SCORES = ("loss", "accuracy", "accuracy_unseen", "bytes_sent", "epsilon", "validation")
"""The fields of an evaluation that are drawn."""


def require_tensorboard() -> None:
    """Raise an error unless the package tensorboard is installed here.

    Raises
    ------
    ConfigError
        If it is not; has the remedy.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "tensorboard = true: the package tensorboard, which writes event files, is not installed here: "
            "pip install 'p2pft-flower[tensorboard]', or leave tensorboard out"
        )


class EventFiles:
    """Writes the event files of some peers, or of the coordinator; every event is on disk at once.

    Parameters
    ----------
    folder : Path
        The run's folder.

    Raises
    ------
    OSError
        If a file cannot be written; by every method.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / EVENTS
        self._writers: dict[str, Any] = {}  # EventFileWriter

    def evaluated(self, evaluation: Evaluation) -> None:
        """Write the scores of a peer."""
        scores = {key: getattr(evaluation, key) for key in SCORES}
        self.write(f"peer-{evaluation.peer}", evaluation.iteration, evaluation.time, scores)

    def write(self, whose: str, iteration: int, when: float, values: Mapping[str, float | None]) -> None:
        """Write numbers after an iteration; numbers that are None or not finite are left out.

        Parameters
        ----------
        whose : str
            The folder below ``tensorboard/``: ``peer-<i>``, or that of what only the coordinator knows.
        iteration : int
            The number of iterations that are done.
        when : float
            Unix seconds.
        values : mapping of str to float or None
            The numbers, by the names of their curves.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        told = {key: float(value) for key, value in values.items() if value is not None}
        scalars = [
            Summary.Value(tag=key, simple_value=value) for key, value in told.items() if math.isfinite(value)
        ]
        if whose not in self._writers:
            make_private(self._folder)
            self._writers[whose] = EventFileWriter(str(self._folder / whose))
        writer = self._writers[whose]
        writer.add_event(Event(wall_time=when, step=iteration, summary=Summary(value=scalars)))
        writer.flush()

    def ended(self, _: object = None) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


class ConsensusFile:
    """The coordinator's event file: the consensus error and the bytes of all peers together.

    A file that cannot be written ends no run: the first error is logged.

    Parameters
    ----------
    folder : Path
        The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._files = EventFiles(folder)
        self._written: set[int] = set()
        self._failed = False

    def add(self, iteration: int, error: float | None, sent: int) -> None:
        """Write what is known after an iteration, once for each.

        Parameters
        ----------
        iteration : int
            The number of iterations that are done.
        error : float or None
            The consensus error, in units of θ; None if it is not known yet: then nothing is written.
        sent : int
            The bytes of all peers.
        """
        if error is None or iteration in self._written or self._failed:
            return
        self._written.add(iteration)
        try:
            self._files.write(_ALL, iteration, time.time(), {"consensus_error": error, "bytes_sent": sent})
        except OSError as fault:
            self._failed = True
            log.warning("tensorboard = true: %s cannot be written (%s); the run goes on", _ALL, fault)

    def close(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write what was not known in time, and close the file.

        Parameters
        ----------
        history : sequence of mapping
            The scores of each evaluation, as ``Progress.history()`` has them.
        """
        for row in history:
            if row["consensus_error"] is not None:
                self.add(row["iteration"], row["consensus_error"], row["bytes_sent"])
        if not self._failed:
            self._files.ended()
