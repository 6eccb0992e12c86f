"""A host's notes on its peers: their seconds, scores, journals and tails."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import structs

from p2pft_flower.errors import ConfigError, cause_of
from p2pft_flower.host.agreement import NewView
from p2pft_flower.host.callbacks import Callbacks, WatchedRun
from p2pft_flower.host.problem import Objective, Problem, Score, evaluations
from p2pft_flower.host.wires import Access
from p2pft_flower.keeping import lines, sketch
from p2pft_flower.keeping.absence import returned
from p2pft_flower.keeping.journal import Journal, JournalError, allow_journals
from p2pft_flower.keeping.kept import Kept
from p2pft_flower.keeping.lines import Evaluation, Failed, Outcome, Stall, ViewChange
from p2pft_flower.plan import Plan
from p2pft_flower.scores import ClassScores
from p2pft_flower.transport import ObserverClient, PeerReport, Standing
from p2pft_flower.typed import encoded

__all__ = ["Outcome", "Recorder"]

Vector = npt.NDArray[Any]

MAX_NOTE = 1000
"""The most characters of a line of the log that are sent to the observer."""

log = logging.getLogger("p2pft_flower")


def _observer(address: str, access: Access) -> ObserverClient | None:
    """Return the client of the observer; None, which ends no run, if this site does not allow one."""
    try:
        return ObserverClient(address, credentials=access.credentials, insecure=access.insecure)
    except ConfigError as error:
        log.warning("the coordinator is told of no progress: observer-address = %s: %s", address, error)
        return None


class Recorder:
    """Evaluates peers, writes their journals and tails, and reports to the observer, for which nothing waits.

    Parameters
    ----------
    plan : Plan
        The host's part of the run.
    problem : Problem
        The learning problem.
    access : Access
        The certificates with which this machine reports to the observer, or the permission of plain text.
    on_evaluation : callable
        Gets each evaluation, and the sketch, (128,), of the peer's θ; default: nobody does.
    on_view : callable
        Gets each change of view; default: nobody does.
    """

    def __init__(
        self,
        plan: Plan,
        problem: Problem,
        access: Access,
        on_evaluation: Callable[[Evaluation, sketch.Sketch], None] = lambda *_: None,
        on_view: Callable[[ViewChange], None] = lambda _: None,
    ) -> None:
        self._plan, self._problem = plan, problem
        self._on_evaluation, self._on_view = on_evaluation, on_view
        self._begin = time.monotonic()
        watched = WatchedRun(
            run=plan.run,
            name=plan.config.runtime.name,
            folder=Path(plan.output_dir),
            peers=tuple(p.peer for p in plan.peers),
            n=plan.n,
            iterations=plan.iterations,
            config=plan.config.to_mapping(),
        )
        self._callbacks = Callbacks(plan.config, watched, self._warn)  # before any file is opened
        allow_journals(len(plan.peers))
        self._journals = {p.peer: Journal(Path(plan.output_dir), p.peer) for p in plan.peers}
        self._observer = _observer(plan.observer, access) if plan.observer else None
        # Flower's engine brings the app into its workers without their log's set-up. The level
        # stays, since other hosts share the process and its log.
        if self._observer is not None and not log.isEnabledFor(logging.INFO):
            log.setLevel(logging.INFO)
        self._seconds = {p.peer: {"gradient": 0.0, "exchange": 0.0, "evaluation": 0.0} for p in plan.peers}
        """Seconds of each peer by activity; of exchanges only those before this run."""
        self._scores: dict[int, Score] = {}
        self._class_scores: dict[int, ClassScores | None] = {}
        """The scores by class of each peer's last θ, if its problem has classes."""
        self._spent: dict[int, tuple[float | None, float | None]] = {}
        """(ε, δ) of each peer's gradients up to its last evaluation."""
        self._times: dict[int, list[float]] = {}
        """Times of each journal's first line and, if there is one, last line."""
        self.failures: list[lines.Failed] = []
        """The last lines of the journals, if the host has given up."""
        self._ends: dict[int, Outcome | Failed] = {}
        self.views: list[ViewChange] = []
        """Every change of view so far, as in the journals."""
        for peer, journal in self._journals.items():
            first = lines.Run(
                peer=peer,
                run=plan.run,
                n=plan.n,
                iterations=plan.iterations,
                evaluate_every=plan.evaluate_every,
                host=tuple(p.peer for p in plan.peers),
                config=plan.config.to_mapping(),
                facts=plan.facts,
                about=plan.peer_facts.get(peer),
            )
            journal.write(first)
            self._times[peer] = [first.time]
        self._callbacks.start()

    @property
    def seconds_in_all(self) -> float:
        """Seconds from the first to the last line of a journal, this host's longest; 0 before the end."""
        return max((times[-1] - times[0] for times in self._times.values()), default=0.0)

    def continue_journal(
        self,
        peer: int,
        earlier: Iterable[Evaluation | ViewChange],
        seconds: Mapping[str, float] | None,
    ) -> None:
        """Write the earlier lines of a peer that goes on from a checkpoint into its new journal.

        Parameters
        ----------
        peer : int
            The peer.
        earlier : iterable of Evaluation and ViewChange
            The peer's earlier lines, which keep their time.
        seconds : mapping or None
            The peer's seconds before, by activity; None if they are not known.
        """
        for line in earlier:
            self._journals[peer].write(line)
        if seconds is not None:
            self._seconds[peer] = dict(seconds)

    def seconds(self, peer: int, exchange: float) -> dict[str, float]:
        """Return the peer's seconds by activity; ``exchange`` is this host's seconds in exchanges so far."""
        before = self._seconds[peer]
        return {**before, "exchange": before["exchange"] + exchange}

    @property
    def q(self) -> int:
        """The length q of θ."""
        return int(self._problem.theta0.size)

    def sync(self, peer: int) -> None:
        """Bring the peer's journal to disk."""
        self._journals[peer].sync()

    @contextlib.contextmanager
    def timed(self, peer: int, part: str) -> Iterator[None]:
        """Add the seconds of a ``with`` block to ``peer``'s ``part`` (gradient, exchange or evaluation)."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[peer][part] += time.perf_counter() - begin

    def share_seconds(self, peers: Collection[int], part: str, seconds: float) -> None:
        """Add ``seconds`` that ``peers`` spent together to their ``part``, in equal shares."""
        for peer in peers:
            self._seconds[peer][part] += seconds / len(peers)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Send this thread's log in a ``with`` block to the observer, to show the progress of preparing."""
        if self._observer is None:
            yield
            return
        peer, thread = self._plan.peers[0].peer, threading.get_ident()
        handler = logging.Handler(logging.INFO)

        def emit(record: logging.LogRecord) -> None:
            self._report(peer=peer, note=record.getMessage()[:MAX_NOTE])

        handler.emit = emit  # type: ignore[method-assign]
        handler.addFilter(lambda record: record.thread == thread)
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)

    def started(self) -> None:
        """Write into the journals that all neighbours were met and training begins."""
        prepared = time.monotonic() - self._begin
        for peer, journal in self._journals.items():
            journal.write(lines.Start(peer=peer, parameters=self._problem.theta0.size, prepared=prepared))

    def evaluate(
        self,
        objectives: Mapping[int, Objective],
        thetas: Mapping[int, Vector],
        done: int,
        bytes_sent: Mapping[int, int],
        progress: Callable[[], None],
        validation: Mapping[int, float] = MappingProxyType({}),
    ) -> Iterator[Score]:
        """Score each peer's θ, (q,), after ``done`` iterations; write, report and yield the scores, in order.

        ``progress`` is called when a part of the work is done. The score on a peer's ``validation`` images,
        which chooses the best θ, stays in the journal.
        """
        last = done == self._plan.iterations
        for peer in self._scored(objectives, thetas, progress, full=last):
            score = self._scores[peer]
            told = _scores(score) | {
                "peer": peer,
                "iteration": done,
                "bytes_sent": bytes_sent[peer],
                "seconds": time.monotonic() - self._begin,
            }
            sketched = self._sketch(np.asarray(thetas[peer]))
            self._spent[peer] = objectives[peer].privacy_spent() or (None, None)  # also if the run fails
            epsilon, _ = self._spent[peer]
            line = Evaluation(
                sketch=sketch.encode(sketched), epsilon=epsilon, validation=validation.get(peer), **told
            )
            self._journals[peer].write(line)
            self._callbacks.evaluated(line)
            self._report(sketch=sketched, **told)
            self._on_evaluation(line, sketched)
            yield score

    def score_again(
        self,
        objectives: Mapping[int, Objective],
        thetas: Mapping[int, Vector],
        progress: Callable[[], None],
    ) -> None:
        """Score θ that peers have kept, (q,) each: a peer's last scores are those of its last θ."""
        for _ in self._scored(objectives, thetas, progress, full=True):
            pass

    def _scored(
        self,
        objectives: Mapping[int, Objective],
        thetas: Mapping[int, Vector],
        progress: Callable[[], None],
        *,
        full: bool,
    ) -> Iterator[int]:
        """Score each peer's θ and yield the peer; write the predictions if ``full`` and they are wanted."""
        found = evaluations(self._problem, objectives, thetas, full=full, progress=progress)
        begin = time.perf_counter()
        for some in found:
            for peer, one in some.items():
                self._scores[peer] = one.score
                if full:
                    self._class_scores[peer] = one.class_scores
                if one.predictions is not None and full and self._plan.config.runtime.predictions:
                    self._journals[peer].save_predictions(one.predictions)
            self.share_seconds(some, "evaluation", time.perf_counter() - begin)
            yield from some
            begin = time.perf_counter()

    def trace(self, peer: int, view: int, done: int, surplus: Vector) -> None:
        """Write a sketch of ``surplus``, τ_i − g_i, (q,), after ``done`` iterations into the journal."""
        told = sketch.encode(self._sketch(surplus))
        self._journals[peer].write(lines.Trace(peer=peer, view=view, iteration=done, surplus=told))

    def stands(self, standing: Standing) -> None:
        """Report this host's standing to the observer."""
        self._report(peer=self._plan.peers[0].peer, standing=standing)

    def stalled(self, stall: Stall) -> None:
        """Write an unusually long wait of this host into the journal of its first peer; from any thread."""
        self._journals[stall.peer].write(stall)

    def view_changed(self, new: NewView, done: Mapping[int, int] = MappingProxyType({})) -> None:
        """Log, report and write into the journals that the peers go on in another view.

        Parameters
        ----------
        new : NewView
            The view.
        done : mapping of int to int
            The iterations that peers of this host had completed before they were lost, if this view has let
            them in; default: not known.
        """
        place = ", ".join(map(str, new.view.peers))
        called = self._plan.called
        missed = self._missed(new, done)
        what = [f"{called(p)} is gone" for p in new.lost]
        what += [returned(called(p), new.iteration, missed.get(p)) for p in new.joined]
        note = (
            f"view {new.number} after {new.iteration} iterations: {'; '.join(what) or 'nobody was lost'}; "
            f"going on with the peers {place}"
        )
        log.warning("%s, %.1f s after they began to agree on it", note, new.seconds)
        notes = [note, *(f"{called(p)} is gone: {why}" for p, why in sorted(new.why.items()))]
        for text in notes[1:]:
            log.warning("%s", text)
        first, peers = self._plan.peers[0].peer, new.view.peers
        change = ViewChange(
            peer=first,
            number=new.number,
            iteration=new.iteration,
            peers=peers,
            edges=tuple((peers[j], peers[i]) for j, i in new.view.graph.edges),
            lost=new.lost,
            joined=new.joined,
            missed=missed,
            why=dict(new.why),
            presumed=dict(new.presumed),
            seconds=new.seconds,
        )
        for text in notes:
            self._report(peer=first, note=text[:MAX_NOTE], live=peers, view_change=encoded(change))
        self.views.append(change)
        self._on_view(change)
        for peer, journal in self._journals.items():
            journal.write(structs.replace(change, peer=peer))
            journal.sync()  # a resumed run that counts gradients must know of each change
        self._callbacks.view_changed(change)

    def _missed(self, new: NewView, done: Mapping[int, int]) -> dict[int, int]:
        """Return how many iterations went by without each peer that a view lets in, where that is known."""
        lost_at = {p: view.iteration for view in self.views for p in view.lost} | dict(done)
        return {p: max(0, new.iteration - lost_at[p]) for p in new.joined if p in lost_at}

    def finish(
        self,
        peer: int,
        objective: Objective,
        theta: Vector,
        kept: Kept | None,
        bytes_sent: int,
        exchange_seconds: float,
    ) -> Outcome | None:
        """Write the peer's tail and the last line of its journal; return its outcome.

        If the peer has ``kept`` the θ of an iteration, ``theta`` is that one, and was scored again. Return
        None if the journal has its last line already, that of a stop.
        """
        of = self._plan.iterations
        if kept is not None and kept.is_earlier(of):
            of = kept.iteration
        epsilon, delta = objective.privacy_spent() or (None, None)
        outcome = Outcome(
            **_scores(self._scores[peer]),
            accuracy_seen=self._scores[peer].accuracy_seen,
            peer=peer,
            bytes_sent=bytes_sent,
            seconds=self.seconds(peer, exchange_seconds),
            iterations=self._plan.iterations,
            parameters=theta.size,
            model_parameters=self._problem.model_parameters,
            sketch=sketch.encode(self._sketch(np.asarray(theta))),
            epsilon=epsilon,
            delta=delta,
            preprocessing=self._preprocessing,
            class_scores=self._class_scores.get(peer),
            kept=kept,
        )
        self._save(peer, theta, of, stopped=False)
        self._times[peer].append(outcome.time)
        if not self._journals[peer].write_last(outcome):
            return None
        self._ends[peer] = outcome
        return outcome

    def failed(
        self, iteration: int, error: BaseException, sent: Mapping[int, int], exchange_seconds: float
    ) -> None:
        """Write the error by which the host ends into each journal without a last line; from any thread.

        Never raises: an error of writing must not hide the reason why the host ends.

        Parameters
        ----------
        iteration : int
            The iteration that is under way.
        error : BaseException
            The error.
        sent : mapping of int to int
            The bytes that each peer has sent so far; empty before training.
        exchange_seconds : float
            Seconds that this host has spent in exchanges so far.
        """
        where = "".join(traceback.format_exception(error))
        for peer, journal in self._journals.items():
            epsilon, delta = self._spent.get(peer, (None, None))
            known = bool(sent)  # else the problem may not be built yet
            told = lines.Failed(
                peer=peer,
                iteration=iteration,
                error=str(error),
                kind=type(error).__name__,
                cause=cause_of(error).name,
                traceback=where,
                bytes_sent=sent.get(peer),
                seconds=self.seconds(peer, exchange_seconds) if known else {},
                epsilon=epsilon,
                delta=delta,
                parameters=self.q if known else None,
                model_parameters=self._problem.model_parameters if known else None,
            )
            try:
                if journal.write_last(told):
                    self._times[peer].append(told.time)
                    self.failures.append(structs.replace(told, traceback=""))
                    self._ends[peer] = told
            except JournalError as unwritten:
                log.error("the last line of a log is missing: %s", unwritten)  # noqa: TRY400 - one line

    def save_stopped(self, peer: int, theta: Vector, done: int) -> None:
        """Write the tail of a peer that stops after ``done`` iterations, before its end.

        Never raises: an error of writing must not hide the reason why the peer stopped.
        """
        try:
            path = self._save(peer, theta, done, stopped=True)
        except Exception:
            log.exception("peer %d: its model after %d iterations could not be saved", peer, done)
        else:
            log.info("peer %d: its model after %d iterations is in %s", peer, done, path)

    @cached_property
    def _preprocessing(self) -> dict[str, Any] | None:
        """Settings of the images that the model sees; None for a problem without images."""
        return getattr(self._problem, "preprocessing", None)

    def _save(self, peer: int, theta: Vector, done: int, *, stopped: bool) -> Path:
        extra = {"run": self._plan.run, "peer": str(peer), "iterations": str(done)}
        if self._preprocessing is not None:
            extra["preprocessing"] = json.dumps(self._preprocessing)
        if peer in self._plan.names:
            extra["peer-name"] = self._plan.names[peer]
        facts = self._plan.peer_facts.get(peer)
        if facts is not None and facts.known.test_digest:
            extra["test-digest"] = facts.known.test_digest
        metadata = {**self._problem.metadata(), **extra}
        return self._journals[peer].save_tail(
            self._problem.named_tail(np.asarray(theta)), metadata, stopped=stopped
        )

    def close(self) -> None:
        """Let callbacks come to their end and reports that are under way leave, and close the journals."""
        self._callbacks.close(self._ends)
        if self._observer is not None:
            self._observer.close(timeout=1.0)
        for journal in self._journals.values():
            journal.close()

    def _warn(self, text: str) -> None:
        """Warn of what hurts no training, here and at the coordinator; from any thread."""
        log.warning("%s", text)
        self._report(peer=self._plan.peers[0].peer, note=text[:MAX_NOTE])

    def _report(self, **told: Any) -> None:
        if self._observer is not None:
            self._observer.report(PeerReport(run=self._plan.run, **told))

    @cached_property
    def _sketch(self) -> sketch.Sketcher:
        return sketch.Sketcher(self.q)  # not before the problem is built


def _scores(score: Score) -> dict[str, Any]:
    return {"loss": score.loss, "accuracy": score.accuracy, "accuracy_unseen": score.accuracy_unseen}
