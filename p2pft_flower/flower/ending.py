"""The end of a run by a signal: Flower ends its ServerApp at once, and results.json must have the reason."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2pft_flower.report.results import ViewRow, head, write_results

__all__ = ["STOPPED", "ResultsOnce"]

log = logging.getLogger("p2pft_flower")

STOPPED = "the run was stopped: its ServerApp was told to end"
"""The reason of a run whose ServerApp was ended by a signal, if nothing more is known."""


class ResultsOnce:
    """Writes a run's results.json exactly once: the ServerApp does, or the handler of a signal that ends it.

    Parameters
    ----------
    run_id : str
        Flower's id of the run.
    values : mapping
        The run-config.

    Attributes
    ----------
    folder : Path or None
        The folder of the results; None until it is known. Nothing is written while it is None.
    known : callable or None
        Returns what is known of the run, as results.json has it; None before its peers train.
    begun : float
        The time at which the run began, Unix seconds.
    reason : str or None
        The reason that the results give when a signal ends the run. None if the peers train on: then nothing
        is written.
    """

    def __init__(self, run_id: str, values: Mapping[str, Any]) -> None:
        self.folder: Path | None = None
        self.known: Callable[[], dict[str, Any]] | None = None
        self.reason: str | None = STOPPED
        self.begun = time.time()
        self._run_id, self._values = run_id, dict(values)
        self._claimed = threading.Lock()

    def claim(self) -> bool:
        """Return True to the first caller alone, which then has to write the results."""
        return self._claimed.acquire(blocking=False)  # never waits: a signal's handler may be the other one

    def was_stopped(self, number: signal.Signals) -> bool:
        """Write the results of a run that signal ``number`` ends; for ``before_obeying``.

        Nothing is written if the results are claimed already, their folder is not known, or the peers train
        on. Always returns True: the process obeys the signal.
        """
        if self.folder is None or self.reason is None or not self.claim():
            return True
        try:
            known = None if self.known is None else self.known()
            path = self.write("stopped", f"{self.reason} ({number.name})", None, known)
        except OSError as error:  # it must not keep the signal from being obeyed
            log.error("run %s: %s; its results cannot be written: %s", self._run_id, self.reason, error)  # noqa: TRY400
        else:
            log.warning("run %s: %s; what there is was written to %s", self._run_id, self.reason, path)
        return True

    def write(
        self,
        status: str,
        reason: str,
        views: Sequence[ViewRow] | None,
        known: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the results of a run that did not complete, and return their path.

        Parameters
        ----------
        status : str
            ``"stopped"`` or ``"failed"``.
        reason : str
            The results' ``error``.
        views : sequence of ViewRow or None
            The changes of view in the hosts' answers; None: the hosts could not be asked any more.
        known : mapping, optional
            What else is known of the run, as results.json has it; default nothing.

        Raises
        ------
        RuntimeError
            When the folder of the results is not known.
        OSError
            When the file cannot be written.
        """
        if self.folder is None:
            raise RuntimeError("nobody has said where the results go")
        results = {**head(status, self._run_id, self._values), **self.times()}
        told = {"views": views, "error": reason, "config": self._values}
        return write_results(self.folder, {**results, **(known or {}), "status": status, **told})

    def times(self) -> dict[str, float]:
        """Return the results' ``begun`` and ``ended``, Unix seconds, of a run that ends now."""
        return {"begun": self.begun, "ended": time.time()}
