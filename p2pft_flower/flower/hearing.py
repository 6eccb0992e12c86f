"""How the coordinator hears of the peers' progress: they report to it, or it looks at them."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time

from p2pft_flower.errors import P2PFTError, called, printable
from p2pft_flower.flower.office import Office
from p2pft_flower.flower.run import Run
from p2pft_flower.host.recorder import MAX_NOTE
from p2pft_flower.host.wires import Access
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.absence import returned
from p2pft_flower.keeping.lines import Report, ViewChange
from p2pft_flower.keeping.progress import Progress
from p2pft_flower.transport import Credentials, Looker, ObserverServer, PeerReport, unix_address

__all__ = ["Looking", "listen"]

log = logging.getLogger("p2pft_flower")

MAX_NOTES = 1000
"""Notes of a run that are shown; later ones are left out."""

_INTERVAL = 2.0
"""Seconds between two looks."""

_LATER = 15.0
"""Seconds between two looks while no peer can be reached."""

_ENDING = 30.0
"""Seconds without an answer after there was one: peers that have ended answer no more, and reply soon."""

_END = 10.0
"""Seconds that the thread has to end."""


def listen(
    stack: contextlib.ExitStack,
    run: Run,
    hears: Access,
    progress: Progress,
    office: Office,
    among_nodes: str = "",
) -> str:
    """Listen to the peers' progress until ``stack`` is closed.

    Parameters
    ----------
    stack : contextlib.ExitStack
        Ends the listening when it is closed.
    run : Run
        The run.
    hears : Access
        The coordinator's certificates, or its permission of plain text.
    progress : Progress
        Gets the evaluations, and gives out their lines.
    office : Office
        Gets all reports, for the bulletin.
    among_nodes : str
        The address to listen at for the hosts of a simulation on several nodes; default empty: a Unix socket.

    Returns
    -------
    str
        The address to which the peers report; empty, after a warning, if the coordinator cannot listen.
    """
    notes = {printable(run.images_line)}  # the notes shown already

    def on_report(report: PeerReport) -> None:
        if report.run == run.id and report.peer in run.peers:
            office.take(report)
        if report.HasField("standing"):
            return
        if report.run == run.id and report.note and report.peer in run.peers:
            if live := {p for p in report.live if p in run.peers}:
                progress.go_on_with(live)
            note = printable(report.note[:MAX_NOTE])
            if note not in notes and len(notes) < MAX_NOTES:  # several hosts may have the same note
                notes.add(note)
                log.info("%s", note)
            return
        if (
            report.run != run.id
            or report.peer not in run.peers
            or report.iteration > run.iterations
            or len(report.sketch) != sketch.SIZE
        ):
            log.warning("a report that is none of this run's was left out")
            return
        progress.add(
            Report(
                peer=report.peer,
                iteration=report.iteration,
                loss=report.loss,
                accuracy=report.accuracy,
                accuracy_unseen=report.accuracy_unseen if report.HasField("accuracy_unseen") else None,
                sketch=sketch.encode(report.sketch),
                bytes_sent=report.bytes_sent,
            )
        )

    own_socket = among_nodes or unix_address(f"{run.id}-observer", 0)
    where = run.config.runtime.observer_address if run.deployed else own_socket
    insecure = hears.insecure or bool(among_nodes)
    try:
        server = ObserverServer(where, on_report, credentials=hears.credentials, insecure=insecure)
        return stack.enter_context(server).address
    except P2PFTError as error:
        log.warning("no progress will be shown while the peers train: %s", error)
        return ""


class Looking:
    """Asks the peers every two seconds how the run gets on, in a thread of its own; a context manager.

    A peer knows all others from gossip, so one that answers is enough for a line; the consensus error is in
    it if all answer, as each tells the sketch of its own θ to the coordinator alone. If none can be reached
    from here, that is said once, and nothing else follows from it.

    Parameters
    ----------
    run : Run
        The run, of a deployment.
    key : bytes
        The run's key for looks.
    own : Credentials or None
        The coordinator's certificates; None if the peers have none, or the coordinator has none.
    progress : Progress
        Gets the evaluations, and gives out their lines.
    office : Office
        Gets all that is heard, for the bulletin.
    """

    def __init__(
        self, run: Run, key: bytes, own: Credentials | None, progress: Progress, office: Office
    ) -> None:
        self._run, self._progress, self._office = run, progress, office
        self._looker = Looker(run.id, key, run.addresses, own)
        self._told = False
        self._patient_until = math.inf
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="p2pft-looking", daemon=True)

    def __enter__(self) -> Looking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(_END)
        self._looker.close()

    def _look_on(self) -> None:
        # Hosts listen once their processes have started.
        self._patient_until = time.monotonic() + self._run.config.runtime.meet_timeout
        try:
            while not self._closed.wait(_INTERVAL):
                if not self._look() and self._told and self._closed.wait(_LATER):
                    return
        except Exception:
            log.exception("how the peers get on is not shown here any more")

    def _look(self) -> bool:
        """Look once; return False if no peer has answered."""
        answers = self._looker.look(self._run.addresses, self._office.known())
        heard = [answer for answer in answers.values() if not isinstance(answer, P2PFTError)]
        reports, changes = self._office.hear(heard)  # all at once: a peer's own word counts before others'
        for change in changes:
            self._tell_change(change)
        for report in reports:
            self._progress.add(report)
        if heard:
            self._patient_until = max(self._patient_until, time.monotonic() + _ENDING)
        if not heard and not self._told and time.monotonic() > self._patient_until:
            self._told = True
            why = str(next(iter(answers.values()), "no peer has an address"))
            log.warning(
                "how the peers get on cannot be seen from here (%s); observer-address lets them report", why
            )
        return bool(heard)

    def _tell_change(self, change: ViewChange) -> None:
        self._progress.go_on_with(change.peers)
        names = self._run.names
        gone = [f"{called(p, names)} is gone" for p in change.lost]
        gone += [returned(called(p, names), change.iteration, change.missed.get(p)) for p in change.joined]
        told = "; ".join(gone) or "nobody was lost"
        log.info("view %d after %d iterations: %s", change.number, change.iteration, told)
