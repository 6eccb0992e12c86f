"""A host: one process that runs one or more peers in lock-step, from the first gradient to the last score."""

from __future__ import annotations

import contextlib
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from p2pft_flower.algorithms.registry import gradients_per_step, make_algorithm, vectors_per_payload
from p2pft_flower.algorithms.schedules import make_schedule
from p2pft_flower.algorithms.seam import Algorithm, Vector
from p2pft_flower.errors import Cause, ConfigError, P2PFTError, cause_of, listed
from p2pft_flower.host.agreement import Agreement, LostContactError
from p2pft_flower.host.class_counts import class_number
from p2pft_flower.host.ending import (
    Act,
    DepartedError,
    End,
    Ending,
    Event,
    News,
    TooFewPeersError,
    others_go_on,
)
from p2pft_flower.host.exchange import HostExchange
from p2pft_flower.host.hearsay import HeardOf, heard_of
from p2pft_flower.host.keeper import Keeper
from p2pft_flower.host.lookout import Lookout
from p2pft_flower.host.meeting import Meeting
from p2pft_flower.host.peer_errors import PeerFailedError, naming
from p2pft_flower.host.problem import Objective, Problem, device_of, together
from p2pft_flower.host.publisher import Publisher
from p2pft_flower.host.recorder import Recorder
from p2pft_flower.host.session import Session, Sessions
from p2pft_flower.host.standings import Standings
from p2pft_flower.host.training import Training
from p2pft_flower.host.wires import Access, Wires
from p2pft_flower.keeping.absence import last_word
from p2pft_flower.keeping.lines import Failed, Outcome, ViewChange
from p2pft_flower.plan import Plan
from p2pft_flower.transport import OwnPulse, Pulse, Stop, ViewChangeError, cause_from

__all__ = ["DepartedError", "Host", "PeerFailedError", "TooFewPeersError"]

log = logging.getLogger("p2pft_flower")

_PLAIN = Access()


class Host:
    """Runs the peers of ``plan``; :meth:`stop` and :meth:`leave` may be called from any thread.

    The thread of :meth:`run` makes the parts (``_recorder``, ``_wires``, ``_training``), each once; until
    then, other threads find None.

    Parameters
    ----------
    plan : Plan
        The plan, as the coordinator sent it.
    problem : Problem
        The learning problem.
    access : Access
        The addresses and certificates of this machine's peers; default: plain text, on this machine only.
    joining : bool
        Whether this host was started anew while the others train, and asks them to be let in again; default
        False.
    tells : bool
        Whether the log of this process says how the training gets on, as at a site; default False: in a
        simulation the coordinator does.

    Raises
    ------
    ConfigError
        If ``joining`` is true in a run whose view never changes.
    """

    def __init__(
        self,
        plan: Plan,
        problem: Problem,
        access: Access = _PLAIN,
        *,
        joining: bool = False,
        tells: bool = False,
    ) -> None:
        if joining and not plan.members:
            raise ConfigError(
                f"nobody can come back to run {plan.run}: its peers exchange nothing, or on-failure = 'stop'"
            )
        self.plan, self.problem, self._access = plan, problem, access
        self._joining = joining
        self._config = plan.config
        self._peers = [p.peer for p in plan.peers]
        self._pulse = OwnPulse()
        self._meeting = Meeting(self._config.runtime.meet_timeout)
        me = self._peers[0]
        signatures = None if access.credentials is None else access.credentials.signatures()
        hosts = plan.hosts or {me: tuple(self._peers)}
        self._standings = Standings(plan.run, me, hosts, plan.iterations, signatures)
        words = {p: last_word(Path(plan.output_dir), p, plan.run) for p in self._peers} if joining else {}
        self._last_words = {p: word for p, word in words.items() if word is not None}
        self._recorder: Recorder | None = None
        self._wires: Wires | None = None
        self._stopped = set[int]()  # peers of other hosts that have taken or sent a stop
        self._lookout: Lookout | None = None
        self._training: Training | None = None
        self._publisher = Publisher(
            plan,
            self._pulse,
            self._standings,
            wires=lambda: self._wires,
            views=lambda: self.views,
            report=lambda standing: None if self._recorder is None else self._recorder.stands(standing),
            stalled=lambda stall: None if self._recorder is None else self._recorder.stalled(stall),
            tells=tells,
            meeting=self._meeting,
            gone={p: word.time for p, word in self._last_words.items()},
        )
        self._ending = Ending(
            {
                Act.WAKE: self._wake,
                Act.NOTE: self._note,
                Act.SAVE: lambda _: self.save_stopped(),
                Act.PASS_ON: self._pass_on,
                Act.DEPART: self._depart,
            }
        )

    def run(self) -> list[Outcome]:
        """Prepare, meet the neighbours, train, and return the peers' outcomes.

        Raises
        ------
        ExchangeError
            If a neighbour cannot be met, stays silent beyond the deadline, or has stopped; if this host was
            stopped or has left.
        DivergedError
            If a peer's gradient, payload or loss is not finite, or a codec does not follow its vector.
        PeerFailedError
            If a peer's own code raised.
        LostContactError
            If no next view was agreed on in time, or the others have gone on without this host and have not
            let it in again in time.
        TooFewPeersError
            If fewer than ``min-peers`` are left.
        CheckpointError, JournalError
            If a checkpoint, journal or tail cannot be written.
        P2PFTError
            If data or model cannot be used.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._ending.wait)  # last: no news comes any more
            stack.callback(self._close_wires)
            publisher = self._publisher
            recorder = self._recorder = Recorder(
                self.plan, self.problem, self._access, publisher.evaluated, publisher.view_changed
            )
            stack.callback(recorder.close)
            stack.callback(publisher.close)
            publisher.start()
            stack.callback(self._ending.wait)  # first: closed wires carry no news
            try:
                return self._run(recorder)
            except BaseException as error:
                self._fail(error)
                raise

    # --- the run, from its beginning to its end ---

    def _run(self, recorder: Recorder) -> list[Outcome]:
        plan, settings = self.plan, self._config.method
        schedule = make_schedule(settings.schedule, settings.learning_rate, plan.iterations)
        method = make_algorithm(
            settings.algorithm,
            alpha=schedule,
            momentum=settings.momentum,
            options=settings.algorithm_options,
            pipelined=settings.pipelined,
        )
        if method.phases:
            self._publisher.will_exchange()
        with recorder.telling():
            theta0 = self.problem.theta0
        always = self._config.runtime.transport == "grpc"
        model = getattr(self.problem, "meeting_digest", "") or self.problem.model_digest
        sessions = Sessions(
            plan,
            theta0,
            method.phases,
            model,
            always=always,
            vectors=vectors_per_payload(method),
            classes=class_number(self.problem) if self._config.learning.balances else 0,
        )
        training = self._prepare(recorder, method, theta0, sessions.first())
        if self._joining:
            self._meeting.end()  # the others have met long ago
        else:
            training.restore(theta0)
            self._meeting.meet(self._wires, plan.greetings)
        if self._wires is not None:
            self._wires.watch()
            self._lookout = self._wires.lookout()
        recorder.started()
        self._publisher.training_begins()
        self._train(recorder, training, theta0, sessions)
        return training.finish()

    def _prepare(
        self, recorder: Recorder, method: Algorithm[Any], theta0: Vector, first: Session
    ) -> Training:
        """Open the wires, so that neighbours and stops are heard; then make all that training needs."""
        wires = self._wires = self._open_wires(first)
        self.raise_if_stopped()  # the server may have taken a stop before the wires were there
        objectives: dict[int, Objective] = {}
        for p in self._peers:
            with naming(p, 0, "its data could not be prepared"), recorder.telling():
                objectives |= self.problem.objectives([p], self._meeting.note_progress)
        device = device_of(self.problem) if first.compression is None else None  # codecs are NumPy's
        self._training = Training(
            self.plan,
            first,
            method,
            objectives,
            together(self.problem, objectives),
            HostExchange(self._peers, wires, theta0.dtype.itemsize, device),
            recorder,
            Keeper(self.plan, self.problem.model_digest, recorder, gradients_per_step(method)),
            self._pulse,
            self.raise_if_stopped,
            device,
        )
        return self._training

    def _open_wires(self, session: Session) -> Wires | None:
        if session.mailbox is None:
            return None
        try:
            return Wires(
                self.plan,
                session,
                self._access,
                on_hello=self._meeting.answer,
                on_stop=self._on_stop,
                pulse=self._pulse,
                standings=self._standings,
                joining=self._joining,
            )
        except P2PFTError as error:
            if session.leaving or session.entering:
                raise
            # This host needs no other peer, so only this one way to stop it is lost.
            own = listed(self._peers)
            log.warning("flwr stop will not reach peers %s, which train alone: %s", own, error)
            return None

    def _train(self, recorder: Recorder, training: Training, theta0: Vector, sessions: Sessions) -> None:
        """Train to the end, through any number of views."""
        wires, agreement = self._wires, self._agreement
        if self._joining:
            self._change_view(recorder, training, sessions)
        else:
            training.begin(theta0)
        while True:
            try:
                training.iterate(agreement)
                if wires is not None:
                    self._pulse.enter(Pulse.WAITING)  # for receivers, which may be slow: it does not hang
                    wires.links.flush(math.inf)
                self._pulse.enter(Pulse.FINISHED)
                timeout = self._config.runtime.peer_timeout
                if agreement is None or agreement.finish(timeout, self.raise_if_stopped):
                    if wires is not None:
                        wires.farewell()
                    return
            except ViewChangeError as change:
                if agreement is None:
                    raise
                log.debug("%s", change)
            self._change_view(recorder, training, sessions)

    def _change_view(self, recorder: Recorder, training: Training, sessions: Sessions) -> None:
        """Begin again in the next view: from a donor's θ if this view lets the host in, else from its own."""
        wires, agreement = self._wires, self._agreement
        if wires is None or agreement is None:
            raise RuntimeError("the view changes where it never does")
        least, deadline = self._config.runtime.min_peers, self._config.runtime.rejoin_deadline
        let_in = False
        while True:
            self._pulse.enter(Pulse.PAUSED)
            new = agreement.settle(partial(self._raise_if_over, agreement), training.keep_excluded)
            let_in = let_in or not set(new.joined).isdisjoint(self._peers)
            recorder.view_changed(new, training.done_before(self._last_words))
            if len(new.view.peers) < least:
                raise TooFewPeersError(
                    f"after {new.iteration} iterations only the peers {listed(new.view.peers)} are left, and "
                    f"min-peers is {least}: the run stops; its checkpoints are kept"
                )
            session = sessions.of(new)
            wires.install(session)
            agreement.recheck()
            try:
                theta = wires.fetch(deadline, self.raise_if_stopped) if let_in else None
            except ViewChangeError as change:
                log.info("view %d has changed before this host got a vector: %s", session.number, change)
                continue
            if not training.states:
                training.restore_past(session)
            training.enter_view(session, theta)
            thetas = {p: np.asarray(state.theta) for p, state in training.states.items()}
            wires.server.offer(session.first, thetas, session.peers)
            return

    def _raise_if_over(self, agreement: Agreement) -> None:
        """Raise the error that ends this host, also if it asks to be let in and nobody is left to do that."""
        self.raise_if_stopped()
        if self._lookout is not None and (alone := agreement.alone_for()) is not None:
            self._lookout.raise_if_over(alone)

    def _close_wires(self) -> None:
        if self._wires is not None:
            self._wires.close()

    @property
    def _agreement(self) -> Agreement | None:
        return None if self._wires is None else self._wires.agreement

    @property
    def _iteration(self) -> int:
        """The iteration that is under way; 0 before training."""
        return 0 if self._training is None else self._training.iteration

    @property
    def _begun(self) -> bool:
        """Whether the peers have a state; if the host joins, whether it was let in."""
        return self._training is not None and self._training.completed is not None

    # --- how it ends before; from any thread ---

    def stop(self, reason: str) -> None:
        """Stop this host's peers and, through their neighbours, all others.

        Return once the neighbours have the stop and the peers' journals have their last line, even if
        :meth:`run` is busy; if that takes too long, give up after some 5 s. :meth:`run` raises
        ExchangeStoppedError: at the next iteration, or at once if it waits. A host that is joining stops
        alone.
        """
        news = News(self._peers[0], self._iteration, reason, Cause.STOPPED)
        self._ending.take(Event.STOP, End.by(news))
        self._ending.wait()

    def leave(self, reason: str) -> None:
        """End this host's peers alone, if the others can go on without them; else :meth:`stop` all.

        The others can if views change (``on-failure``), the training has begun, and they are a quorum with
        ``min-peers`` peers or more; and always if this host has not been let in yet. :meth:`run` raises
        DepartedError: at the next iteration, or at once if it waits. If this host leaves alone, return once
        the others know, after 2 s at most.
        """
        agreement = self._agreement
        # All can go on without a host that was not let in yet.
        spared = not self._begun or (
            agreement is not None and agreement.spares(self._config.runtime.min_peers)
        )
        if not (self._others_go_on(Cause.OWN) and spared):
            self.stop(reason)
            return
        departed = DepartedError(f"peers {listed(self._peers)} leave the run: {reason}")
        self._ending.take(Event.LEAVE, End(departed, departed))

    def raise_if_stopped(self, longer_than: float = 0.0) -> None:
        """Raise the error of the end if this host was ended ``longer_than`` seconds ago or more.

        Raises
        ------
        ExchangeStoppedError
            If the run was stopped, or this host has left (DepartedError).
        """
        self._ending.raise_if_ending(longer_than)

    def raise_if_lost(self) -> None:
        """Give this host up if it was too busy to be let in again before the deadline; from any thread.

        A gradient may never end, and then :meth:`run` does not either. When this method raises, the journals
        have their last line, and θ and a checkpoint are saved; if :meth:`run` goes on after all, it raises
        DepartedError.

        Raises
        ------
        LostContactError
            If the others have gone on without this host for longer than the deadline, or no view was agreed
            on for so long (run-config ``rejoin-deadline``).
        """
        agreement = self._agreement
        waits = self._pulse.read().activity == Pulse.PAUSED  # for a view: `settle` looks at the deadline
        if agreement is None or waits or not (why := agreement.overdue()):
            return
        lost = LostContactError(
            f"peers {listed(self._peers)}, busy in iteration {self._iteration}: {why}; what they compute "
            "does not end: does an accelerator or a disk hang? p2pft rejoin starts a deployed peer again "
            "while others train"
        )
        if self._ending.take(Event.LOSE, End(DepartedError(str(lost)), lost)):
            raise lost

    def save_stopped(self) -> None:
        """Save each peer's θ, and a checkpoint, after the last complete iteration, once; from any thread.

        :meth:`run` calls this method if it fails; a caller that does not wait for a busy :meth:`run` calls it
        directly.
        """
        if self._training is not None:
            self._training.save_stopped()

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The peers of other hosts to which this host sends a stop, ascending; empty without transport."""
        near = {p for place in self.plan.peers for p in (*place.in_neighbours, *place.out_neighbours)}
        return tuple(p for p in sorted(near) if p in self.plan.addresses and p not in self._peers)

    @property
    def views(self) -> list[ViewChange]:
        """Every change of view so far, as in the peers' journals."""
        return [] if self._recorder is None else list(self._recorder.views)

    @property
    def failures(self) -> list[Failed]:
        """The last lines of the peers' journals, without tracebacks, if this host has given up."""
        return [] if self._recorder is None else list(self._recorder.failures)

    @property
    def heard(self) -> list[HeardOf]:
        """What this host has heard of the peers of others that came back."""
        back = {p for view in self.views for p in view.joined}.difference(self._peers)
        return heard_of(self._standings, back, self.plan.hosts, [*self._stopped])

    @property
    def seconds(self) -> float:
        """Seconds from the plan to the end of this host's peers; 0 before."""
        return 0.0 if self._recorder is None else self._recorder.seconds_in_all

    def _fail(self, error: BaseException) -> None:
        """End this host by an error of the training, alone or with all others, as the cause asks for."""
        cause = cause_of(error)
        peer = getattr(error, "peer", None)
        reason = str(error) or type(error).__name__
        news = News(self._peers[0] if peer is None else peer, self._iteration, reason, cause)
        if self._others_go_on(cause):
            self._ending.take(Event.FAIL, End(DepartedError(reason), error))
        else:
            self._ending.take(Event.RUIN, End(news.error, error, news))

    def _others_go_on(self, cause: Cause) -> bool:
        return others_go_on(
            cause,
            views_change=self._agreement is not None,
            begun=self._begun,
            joining=self._joining,
        )

    def _on_stop(self, stop: Stop) -> None:
        """Take a stop from a neighbour, or from the coordinator, which speaks as a peer of this host."""
        cause = cause_from(stop.cause) or Cause.RUN
        self._stopped.add(stop.sender)
        here = stop.sender in self._peers
        origin, iteration = (stop.sender, self._iteration) if here else (stop.origin, stop.iteration)
        self._ending.take(Event.STOP, End.by(News(origin, iteration, stop.reason, cause)))

    # --- the acts of the ending ---

    def _wake(self, end: End) -> None:
        self._meeting.end()  # neighbours that wait for this host shall hear the news
        if self._wires is not None:
            self._wires.fail(end.error)

    def _note(self, end: End) -> None:
        if self._recorder is not None:
            training = self._training if self._begun else None
            sent, seconds = ({}, 0.0) if training is None else training.sent
            self._recorder.failed(self._iteration, end.noted, sent, seconds)

    def _pass_on(self, end: End) -> bool:
        """Send the neighbours a stop; return False if there is no way to them, or no news."""
        wires, news = self._wires, end.news
        if wires is None or news is None:
            return False
        if self._begun or not self._joining:  # a host that was not let in yet stops nobody
            self._stopped.update(wires.links.stop(news.origin, news.iteration, news.reason, news.cause))
        return True

    def _depart(self, end: End) -> None:
        if self._wires is not None:
            self._wires.depart(str(end.noted))
