"""A host: one process that runs one or more peers in lock-step, from the first gradient to the last score."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from typing import Any, NamedTuple

from p2pft_flower.algorithms.registry import make_algorithm
from p2pft_flower.algorithms.schedules import make_schedule
from p2pft_flower.algorithms.seam import Algorithm, Vector
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.host.agreement import Agreement, LostContactError, NewView
from p2pft_flower.host.exchange import HostExchange
from p2pft_flower.host.keeper import Keeper
from p2pft_flower.host.problem import Objective, Problem
from p2pft_flower.host.recorder import Outcome, Recorder
from p2pft_flower.host.training import PeerFailedError, Training, naming
from p2pft_flower.host.wires import Access, Wires, remote_edges
from p2pft_flower.keeping.checkpoints import CheckpointError
from p2pft_flower.keeping.journal import JournalError
from p2pft_flower.plan import Neighbourhood, Plan
from p2pft_flower.transport import (
    ExchangeStoppedError,
    Hello,
    OwnPulse,
    Pulse,
    Reply,
    Status,
    Stop,
    Terms,
    ViewChangeError,
)

__all__ = ["DepartedError", "Host", "PeerFailedError", "TooFewPeersError"]

log = logging.getLogger("p2pft_flower")

_MEET_REMEDY = (
    "is its host running? Peers that wait for each other must run at the same time: set transport = memory, "
    "or give the simulation more CPUs (client-resources-num-cpus, init-args-num-cpus); where preparing takes "
    "long, raise meet-timeout"
)

_KEPT = 1.0
"""Seconds that a hello is kept before it is answered PREPARING; less where meet-timeout is short."""


_LEFT = 5.0
"""Seconds that telling of a departure may take: 2 s for the others to hear it, and what is noted of it."""

_PLAIN = Access()


class News(NamedTuple):
    """Who gave up first, where, and why."""

    origin: int
    iteration: int
    reason: str


class TooFewPeersError(P2PFTError):
    """Fewer peers are left than the run is to go on with."""


class DepartedError(ExchangeStoppedError):
    """Raised in a host that was told to end, where the others go on without it."""


class Host:
    """Runs the peers of ``plan``; :meth:`stop` and :meth:`leave` may be called from any thread.

    Parameters
    ----------
    plan : Plan
        What the coordinator decided.
    problem : Problem
        What is learned.
    access : Access
        How this machine's peers listen and prove who they are; default: in plain text, on this machine only.
    joining : bool
        Whether the others train already, and this host, which was started anew, asks them to be let in again;
        default False.

    Raises
    ------
    ConfigError
        When it is to join a run whose view never changes.
    """

    def __init__(
        self, plan: Plan, problem: Problem, access: Access = _PLAIN, *, joining: bool = False
    ) -> None:
        if joining and not plan.members:
            raise ConfigError(
                f"nobody can come back to run {plan.run}: its peers exchange nothing, or on-failure = 'stop'"
            )
        self.plan, self.problem, self._access = plan, problem, access
        self._joining = joining
        self._without_theta = joining
        """Whether the others were in a view without it, and it has not got θ from them yet."""
        self._config = RunConfig.from_mapping(plan.config)
        self._peers = [p.peer for p in plan.peers]
        self._news: News | None = None
        self._departed: DepartedError | None = None
        self._parted = threading.Event()
        """Whoever noted `_departed` has told the others, and needs nothing of this host any more."""
        self._wires: Wires | None = None
        self._lock = threading.Lock()
        self._stage = 0.0
        """Hellos of lower stages are agreed to: 0 while this host prepares."""
        self._staged = threading.Condition()
        self._progress = 0
        self._recorder: Recorder | None = None
        self._telling: threading.Thread | None = None
        self._told = False
        self._stopped_at: float | None = None
        self._keeper: Keeper | None = None
        self._pulse = OwnPulse()
        self._training: Training | None = None
        self._saving, self._saved = threading.Lock(), False

    def run(self) -> list[Outcome]:
        """Prepare, meet the neighbours, train, and return how each peer ended.

        Raises
        ------
        ExchangeError
            When a neighbour cannot be met, stays silent beyond the deadline, or has stopped.
        DivergedError
            When a peer's gradient, payload or loss is not finite.
        PeerFailedError
            When a peer's own code raised.
        LostContactError
            When the others have gone on without this host, and have not let it in again in time.
        CheckpointError, JournalError
            When a checkpoint, log or tail cannot be written.
        P2PFTError
            When data or model cannot be used.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_wires)  # last, and whatever else fails
            stack.callback(self._wait_until_told)
            recorder = None
            try:
                recorder = self._recorder = Recorder(self.plan, self.problem, self._access)
                stack.callback(recorder.close)
                stack.callback(self._wait_until_parted)  # first: what is closed tells nobody
                return self._train(recorder)
            except BaseException as error:
                # The neighbours are told first, so that they stop now and not at their deadline.
                if self._others_go_on(error):
                    if error is not self._departed:  # else they were told when it left
                        self._leave(error)
                else:
                    self._hear(self._news_of(error), own=True)
                if recorder is not None:
                    recorder.failed(self._iteration, error)
                    self.save_stopped()
                raise

    def stop(self, reason: str) -> None:
        """Stop this host's peers and, through their neighbours, all others; returns once these were told.

        :meth:`run` raises ExchangeStoppedError: at the next iteration, or at once where it waits. The peers'
        logs have their last line when this returns, whatever :meth:`run` is busy with. A host that joins, and
        has not been let in yet, stops alone.
        """
        self._hear(News(self._peers[0], self._iteration, reason))
        self._wait_until_told()

    def leave(self, reason: str) -> None:
        """End this host's peers alone, where the others can go on without it; else :meth:`stop` all.

        They can where views change (``on-failure``), the training has begun, and they are a quorum and not
        fewer than ``min-peers``. :meth:`run` raises DepartedError: at the next iteration, or at once where it
        waits. Returns once the others were told, within 2 s.
        """
        wires = self._wires
        agreement = None if wires is None else wires.agreement
        alone = self._joining and not self._begun  # not let in yet: nobody counts on it
        spared = agreement is not None and agreement.spares(self._config.runtime.min_peers)
        if wires is None or agreement is None or not (alone or (self._begun and spared)):
            self.stop(reason)
            return
        with self._lock:
            first = self._news is None and self._departed is None
            if first:
                self._departed = DepartedError(f"peers {self._peers} leave the run: {reason}")
                self._stopped_at = time.monotonic()
        if not first or self._departed is None:
            return
        try:
            self._leave(self._departed)
            wires.fail(self._departed)
            if self._recorder is not None:
                self._recorder.failed(self._iteration, self._departed)
        finally:
            self._parted.set()

    def save_stopped(self) -> None:
        """Save each peer's θ, and a checkpoint, after the last complete iteration, once; from any thread.

        :meth:`run` does so when it fails; who does not wait for it, since it is busy, does it instead. Where
        no training has begun there is nothing to save.
        """
        with self._saving:  # who comes second waits until the files are there
            completed = None if self._training is None else self._training.completed
            if self._recorder is None or completed is None or self._saved:
                return
            self._saved = True
            for peer, state in completed.states.items():
                done = max(completed.done, self.plan.begins[peer])
                self._recorder.save_stopped(peer, state.theta, done)
            if self._keeper is not None:
                self._keeper.keep_stopped(completed)

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The peers elsewhere that hear of a stop from this host, ascending; none in memory."""
        near = {p for place in self.plan.peers for p in (*place.in_neighbours, *place.out_neighbours)}
        return tuple(p for p in sorted(near) if p in self.plan.addresses and p not in self._peers)

    @property
    def views(self) -> list[dict[str, Any]]:
        """Every change of view so far, as the peers' logs tell it."""
        return [] if self._recorder is None else list(self._recorder.views)

    @property
    def _iteration(self) -> int:
        """The iteration under way; 0 before training."""
        return 0 if self._training is None else self._training.iteration

    @property
    def _begun(self) -> bool:
        """Whether this host's peers have a state: where it joins, whether it was let in."""
        return self._training is not None and self._training.completed is not None

    def raise_if_stopped(self, longer_than: float = 0.0) -> None:
        """Raise ExchangeStoppedError when the run was stopped, or this host left, so many seconds ago."""
        if self._stopped_at is not None and time.monotonic() - self._stopped_at >= longer_than:
            raise self._stopped()

    def raise_if_lost(self) -> None:
        """Give up a host that is too busy to be let in again before its deadline; from any thread.

        Its gradient may never end, and :meth:`run` with it. When this raises, its log has its last line, and
        θ and a checkpoint are saved; :meth:`run`, should it go on, raises DepartedError.

        Raises
        ------
        LostContactError
            When the others have gone on without it for longer than ``rejoin-deadline``, or no view was agreed
            on for so long.
        """
        wires = self._wires
        if wires is None or wires.agreement is None or not (why := wires.agreement.overdue()):
            return
        error = LostContactError(
            f"peers {self._peers}, busy in iteration {self._iteration}: {why}; what they compute does not "
            "end: does an accelerator or a disk hang? p2pft rejoin starts a deployed peer again while "
            "others train"
        )
        with self._lock:
            if self._news is not None or self._departed is not None:
                return  # it goes already, for another reason
            self._departed = DepartedError(str(error))
            self._stopped_at = time.monotonic()
        try:
            self._leave(error)
            wires.fail(self._departed)
            if self._recorder is not None:
                self._recorder.failed(self._iteration, error)
            self.save_stopped()
        finally:
            self._parted.set()
        raise error

    def _train(self, recorder: Recorder) -> list[Outcome]:
        plan, settings, timeouts = self.plan, self._config.method, self._config.runtime
        schedule = make_schedule(settings.schedule, settings.learning_rate, plan.iterations)
        method = make_algorithm(settings.algorithm, alpha=schedule, momentum=settings.momentum)
        with recorder.telling():
            theta0 = self.problem.theta0
        self._wires = self._open_wires(method, theta0)
        self.raise_if_stopped()  # the server hears stops before self._wires can be told of them
        objectives: dict[int, Objective] = {}
        for p in self._peers:
            with naming(p, self._iteration, "its data could not be prepared"), recorder.telling():
                objectives |= self.problem.objectives([p], self._note_progress)
        exchange = HostExchange(plan.peers, self._wires, theta0.dtype.itemsize, method.phases)
        keeper = self._keeper = Keeper(plan, self.problem.model_digest, recorder)
        training = self._training = Training(
            plan, method, objectives, exchange, recorder, keeper, self._pulse, self.raise_if_stopped
        )
        if self._joining:
            self._reach(math.inf)  # the others have met long ago
        else:
            training.take_up(theta0)
            self._meet(timeouts.meet_timeout)
        if self._wires is not None:
            self._wires.watch()
        recorder.started()
        self._iterate(training, theta0, exchange, recorder)
        training.finish()
        ended = [
            recorder.finish(
                p, objectives[p], training.states[p].theta, exchange.bytes_sent[p], exchange.seconds
            )
            for p in self._peers
        ]
        if None in ended:
            raise self._stopped()
        self._saved = True  # as results
        return [outcome for outcome in ended if outcome is not None]

    def _iterate(
        self, training: Training, theta0: Vector, exchange: HostExchange, recorder: Recorder
    ) -> None:
        """Train to the end, through as many views as it takes."""
        agreement = None if self._wires is None else self._wires.agreement
        if self._joining:
            self._change_view(training, exchange, recorder)
        else:
            training.begin(theta0)
        while True:
            try:
                training.go_on(agreement)
                if self._wires is not None:
                    self._pulse.enter(Pulse.WAITING)  # for receivers, who may be slow: it does not hang
                    self._wires.links.flush(math.inf)
                self._pulse.enter(Pulse.FINISHED)
                timeout = self._config.runtime.peer_timeout
                if agreement is None or agreement.finish(timeout, self.raise_if_stopped):
                    return
            except ViewChangeError as change:
                if agreement is None:
                    raise
                log.debug("%s", change)
            self._change_view(training, exchange, recorder)

    def _change_view(self, training: Training, exchange: HostExchange, recorder: Recorder) -> None:
        """Begin again in the next view; from a donor's θ where the others had one without this host."""
        wires = self._wires
        if wires is None or wires.agreement is None:
            raise RuntimeError("the view changes where it never does")
        while True:
            self._pulse.enter(Pulse.PAUSED)
            new = self._next_view(wires, wires.agreement, exchange, recorder)
            try:
                theta = self._fetch(wires, new) if self._without_theta else None
            except ViewChangeError as change:
                log.info("view %d has changed before this host got a vector: %s", new.number, change)
                continue
            if self._joining and training.completed is None:
                training.come_back(new)
            training.enter(new, theta)
            self._without_theta = False
            thetas = {p: state.theta for p, state in training.states.items()}
            wires.offer(new.iteration, thetas, new.view.peers)
            return

    def _fetch(self, wires: Wires, new: NewView) -> Vector:
        """Take θ from the donor that the view names, or from whoever else in the view has one."""
        near = [j for p in self._peers for j in new.view.row(p)]
        first = [] if new.donor is None else [new.donor]
        order = dict.fromkeys([*first, *sorted(near), *new.view.peers])
        donors = [p for p in order if p not in self._peers]
        timeout = self._config.runtime.rejoin_deadline
        theta = wires.fetch(self._peers[0], donors, timeout, self.raise_if_stopped)
        log.info("peers %s go on from the vector of another peer of view %d", self._peers, new.number)
        return theta

    def _excluded(self) -> None:
        """Keep what there is: the others have gone on without this host, which asks to be let in again."""
        log.warning("peers %s: the others have gone on without them; asking to be let in again", self._peers)
        completed = None if self._training is None else self._training.completed
        if self._keeper is not None and completed is not None:
            self._keeper.keep_stopped(completed)
        self._without_theta = True

    def _next_view(
        self, wires: Wires, agreement: Agreement, exchange: HostExchange, recorder: Recorder
    ) -> NewView:
        """Wait for the next view, and take everything that exchanges to it."""
        new = agreement.settle(self.raise_if_stopped, self._excluded)
        recorder.view_changed(new)
        least = self._config.runtime.min_peers
        if len(new.view.peers) < least:
            raise TooFewPeersError(
                f"after {new.iteration} iterations only the peers {list(new.view.peers)} are left, and "
                f"min-peers is {least}: the run stops; its checkpoints are kept"
            )
        places = [Neighbourhood.of(new.view, p) for p in self._peers]
        always = self._config.runtime.transport == "grpc"
        back = set(new.joined).difference(self._peers)
        wires.install(new.number, new.iteration, *remote_edges(tuple(places), always=always), back)
        exchange.install(places)
        agreement.recheck()
        return new

    def _close_wires(self) -> None:
        if self._wires is not None:
            self._wires.close()

    def _open_wires(self, method: Algorithm[Any], theta0: Vector) -> Wires | None:
        always = self._config.runtime.transport == "grpc"
        leaving, entering = remote_edges(self.plan.peers, always=always) if method.phases else (set(), set())
        alone = not (leaving or entering)
        if alone and not self.plan.listens_for_stops:
            return None
        terms = Terms(
            run=self.plan.run,
            length=theta0.size,
            dtype=theta0.dtype,
            phases=max(1, len(method.phases)),  # without edges no payload is taken in at all
            config=f"{self.plan.terms}:{self.problem.model_digest}",
            phase_names=method.phases,
        )
        try:
            return Wires(
                self.plan,
                terms,
                leaving,
                entering,
                self._access,
                config=self._config.runtime,
                on_hello=self._on_hello,
                on_stop=self._on_stop,
                pulse=self._pulse,
                joining=self._joining,
            )
        except P2PFTError as error:
            if not alone:
                raise
            # It needs no other peer, so nothing is lost but this one way to stop it.
            log.warning("flwr stop will not reach peers %s, which train alone: %s", self._peers, error)
            return None

    def _meet(self, timeout: float) -> None:
        """Wait until all peers of the run are prepared: no peer-timeout may run meanwhile.

        At stage s a neighbour agrees when its own neighbours have agreed to stage s - 1, so a host that has
        gone through s stages knows of all that are s steps away, along edges in either direction.
        """
        for stage in range(self.plan.greetings):
            self._reach(stage + 1)
            if self._wires is not None:
                self._wires.links.meet(timeout, _MEET_REMEDY, stage=stage)
        self._reach(math.inf)

    def _reach(self, stage: float) -> None:
        with self._staged:
            self._stage = max(self._stage, stage)
            self._staged.notify_all()

    def _note_progress(self) -> None:
        self._progress += 1

    def _on_hello(self, hello: Hello) -> Reply | None:
        """Agree when this host has reached the stage; else say after a moment how far it has come."""
        kept = min(_KEPT, self._config.runtime.meet_timeout / 4)
        with self._staged:
            if self._staged.wait_for(lambda: self._stage > hello.stage, kept):
                return None
            reason = "model, data or trunk take longer"
            if self._stage > 0:
                reason = "prepared, and waiting for neighbours of its own"
                self._progress += 1  # its own waiting has deadlines
        return Reply(status=Status.PREPARING, reason=reason, progress=self._progress)

    def _on_stop(self, stop: Stop) -> None:
        if stop.sender in self._peers:  # the coordinator's: it speaks to a peer, and is none itself
            self._hear(News(stop.sender, self._iteration, stop.reason))
        else:
            self._hear(News(stop.origin, stop.iteration, stop.reason))

    def _hear(self, news: News, *, own: bool = False) -> None:
        """Take in that the run stops, and pass it on; ``own``: :meth:`run` notes itself what went wrong."""
        with self._lock:
            if self._news is None:
                self._news, self._stopped_at = news, time.monotonic()
                # A thread of its own: neither a long gradient nor a slow neighbour may hold the news up.
                self._telling = threading.Thread(
                    target=self._tell, args=(own,), name="p2pft-stop", daemon=True
                )
                self._telling.start()
        self._reach(math.inf)  # whoever waits for this host shall hear the news
        if self._wires is not None:
            self._wires.fail(self._stopped())

    def _tell(self, own: bool) -> None:
        """Note the news in the peers' logs, and pass it on along every edge."""
        if self._recorder is not None and not own:
            self._recorder.failed(self._iteration, self._stopped())
        if self._wires is not None and self._news is not None:
            self._told = True
            if self._begun or not self._joining:  # who has not been let in yet stops nobody
                self._wires.links.stop(*self._news)

    def _wait_until_told(self) -> None:
        """Return once the neighbours have heard the news, if there is any; each is given 2 s."""
        if self._telling is not None:
            self._telling.join(5.0)
            if not self._told:  # the news came before there were links
                self._tell(own=True)

    def _wait_until_parted(self) -> None:
        """Return once another thread, which has this host leave, has told the others; 5 s at most."""
        if self._departed is not None and not self._parted.wait(_LEFT):
            log.warning("peers %s: what is to be done when they leave takes longer than 5 s", self._peers)

    def _stopped(self) -> ExchangeStoppedError:
        if self._departed is not None:
            return self._departed
        origin, iteration, reason = self._news or News(self._peers[0], self._iteration, "unknown")
        return ExchangeStoppedError(f"peer {origin} stopped in iteration {iteration}: {reason}")

    def _others_go_on(self, error: BaseException) -> bool:
        """Tell whether what went wrong is this host's own affair, and the others go on without it.

        What is wrong with the run itself (it diverges, it was stopped) is not.
        """
        if self._news is not None or self._wires is None or self._wires.agreement is None:
            return False
        if not self._begun:
            return self._joining  # they train without it
        own = (PeerFailedError, LostContactError, CheckpointError, JournalError, DepartedError)
        return isinstance(error, own)

    def _leave(self, error: BaseException) -> None:
        """Tell all contacts that this host goes, so that they need not wait for its silence."""
        if self._wires is None or (agreement := self._wires.agreement) is None:
            return
        agreement.leave(str(error))
        gossip = {}
        for remote, local in agreement.contacts().items():
            gossip[remote] = agreement.tell(remote)
            gossip[remote].sender = local
        self._wires.links.gossip_all(gossip, 2.0)

    def _news_of(self, error: BaseException) -> News:
        """Return what the neighbours are told: the first cause where this host knows one, else its own."""
        if self._news is not None:
            return self._news
        peer = getattr(error, "peer", None)
        reason = str(error) or type(error).__name__
        return News(self._peers[0] if peer is None else peer, self._iteration, reason)
