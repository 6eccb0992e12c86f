"""One peer in a process of its own, to which a test does harm.

The test's process holds the other end of a pipe. The peer says where it is, and where it was told to hold it
waits there for a word: so a fault is injected at a certain moment, whatever the machine's speed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import torch

from p2pft_flower.errors import P2PFTError
from p2pft_flower.host import agreement, training
from p2pft_flower.host.agreement import Agreement, LostContactError
from p2pft_flower.host.host import Host, PeerFailedError
from p2pft_flower.host.recorder import Recorder
from p2pft_flower.host.wires import Access
from p2pft_flower.learning.workload import Workload
from p2pft_flower.plan import Plan
from p2pft_flower.transport.payloads import Carrier
from tests.faults.digits import Digits
from tests.namespaces.kernel import enter_network, mount_disk

EXIT_ERROR = 3
"""How a peer's process ends that has ended with an error of ours."""

JUMP_AT = 20
"""The gradient at which a clock jumps, and the iteration whose payloads suffer."""

SLOW = 0.2
"""Seconds that a slow gradient takes."""


@dataclass(frozen=True)
class Orders:
    """What one peer's process does besides its work.

    Attributes
    ----------
    hold : tuple of str
        Where it waits for a word: ``"gradient 20"`` (the 21st it computes), ``"ballot"`` (it has opened one
        and told it), ``"proposal"`` (a quorum has accepted the view that it proposed, and only it knows),
        ``"checkpoint 20"`` (half of it is written).
    namespace : str
        The network namespace to live in; empty: this one.
    clock_jump : float
        Seconds by which the wall clock moves at gradient `JUMP_AT`.
    payloads : str
        What is done to payloads of iteration `JUMP_AT` on: a key of `PAYLOADS`; empty: nothing.
    disk : int
        Bytes of the disk that its checkpoints go to; 0: enough.
    full : str
        From when on no file of it can grow, its log included: ``"gradient 20"``, ``"view"`` (the next one
        that it comes to, before it notes it); empty: never.
    spin : bool
        Whether the gradient `JUMP_AT` is a loop that never ends.
    slow_from : int
        From this gradient on, each takes `SLOW` seconds, until the test's process says to hurry: so a run
        does not come to its end before all has been done to it. Negative: none. Not together with a hold
        that is no gradient: two threads would read the pipe.
    default_job : bool
        Whether it learns what the plan's config says, the app's default job, instead of means of digits.
    """

    hold: tuple[str, ...] = ()
    namespace: str = ""
    clock_jump: float = 0.0
    payloads: str = ""
    disk: int = 0
    full: str = ""
    spin: bool = False
    slow_from: int = -1
    default_job: bool = False


class Reporter:
    """Tells the test where the peer is, and waits there where it shall."""

    def __init__(self, pipe: Connection, hold: tuple[str, ...]) -> None:
        self._pipe, self._hold, self._hurries = pipe, set(hold), False
        self._said: set[tuple[object, ...]] = set()
        self._lock = threading.Lock()

    def say(self, *words: object) -> None:
        with self._lock:
            self._pipe.send(words)

    def say_once(self, *words: object) -> None:
        if words not in self._said:
            self._said.add(words)
            self.say(*words)

    def at(self, place: str) -> None:
        if place in self._hold:
            self._hold.discard(place)
            self.say("at", place)
            while (word := self._pipe.recv()) != "go on":
                self._hurries |= word == "hurry"

    def linger(self) -> None:
        """Take a moment, unless the test has said to hurry."""
        if not self._hurries and self._pipe.poll(SLOW):
            self._hurries = self._pipe.recv() == "hurry"


def main(pipe: Connection, plan_json: str, orders: Orders, joining: bool) -> None:
    """Run one peer, which asks to be let in where the others train already, and say how it ended."""
    os.environ[training.TRACE] = "1"
    # To look through all that torch has imported keeps the interpreter for a quarter of a second of the
    # processor's time, which six peers on a busy core stretch to a deadline.
    gc.freeze()
    plan = Plan.from_json(plan_json)
    (peer,) = (p.peer for p in plan.peers)
    folder = Path(plan.output_dir)
    logging.basicConfig(
        filename=folder / f"peer-{peer}.txt", level=logging.INFO, format="%(relativeCreated)d %(message)s"
    )
    if orders.namespace:
        enter_network(orders.namespace)
    if orders.disk:
        mount_disk(folder / "peers" / f"peer-{peer}.checkpoints", orders.disk)
    reporter = Reporter(pipe, orders.hold)

    def reached(peer: int, drawn: int) -> None:
        if drawn == JUMP_AT and orders.clock_jump:
            move_clock(orders.clock_jump)
        if f"gradient {drawn}" == orders.full:
            fill_disks()
        while drawn == JUMP_AT and orders.spin:
            pass
        reporter.at(f"gradient {drawn}")
        if 0 <= orders.slow_from <= drawn:
            reporter.linger()

    problem = Learning(plan, reached) if orders.default_job else Digits(hook=reached)
    watch_views(reporter, fill=orders.full == "view")
    watch_ballots(reporter)
    watch_checkpoints(reporter)
    if orders.payloads:
        PAYLOADS[orders.payloads](reporter)
    try:
        Host(plan, problem, Access(insecure=bool(orders.namespace)), joining=joining, tells=True).run()
    except (P2PFTError, PeerFailedError, LostContactError) as error:
        logging.exception("it ended with an error")
        reporter.say("error", type(error).__name__, str(error))
        sys.exit(EXIT_ERROR)
    reporter.say("end", problem.built[peer].kept.tobytes())


class Learning(Workload):
    """What a plan says is to be learned; ``reached`` is told of each gradient before it is computed."""

    def __init__(self, plan: Plan, reached: Callable[[int, int], None]) -> None:
        torch.set_num_threads(1)
        super().__init__(plan.config.learning, plan.n)
        self._reached = reached
        self.built: dict[int, Watched] = {}

    def objectives(self, peers, progress):
        self.built = {p: Watched(o, p, self._reached) for p, o in super().objectives(peers, progress).items()}
        return self.built


class Watched:
    """An objective that tells where it is, and keeps what it was scored at last."""

    def __init__(self, objective, peer, reached):
        self._objective, self._peer, self._reached = objective, peer, reached

    def gradient(self, theta):
        self._reached(self._peer, self._objective.drawn)
        return self._objective.gradient(theta)

    def evaluate(self, theta):
        self.kept = theta.copy()
        return self._objective.evaluate(theta)

    def evaluate_in_full(self, theta):
        self.kept = theta.copy()
        return self._objective.evaluate_in_full(theta)

    def __getattr__(self, name):
        return getattr(self._objective, name)


def move_clock(seconds: float) -> None:
    """Let the wall clock jump: whoever asks for the time of day is told another one."""
    real = time.time
    # Not gRPC's Python half: its other half, in C, asks the kernel, whose clock stays where it is.
    still = SimpleNamespace(**vars(time))
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "grpc" and getattr(module, "time", None) is time:
            module.time = still
    time.time = lambda: real() + seconds


def fill_disks() -> None:
    """Let no file of this process grow from here on, which needs no root."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def watch_views(reporter: Reporter, *, fill: bool) -> None:
    """Say which peers are in a view that is installed; before it is noted, ``fill`` the disk."""
    original = Recorder.view_changed

    def view_changed(self, new, *more):
        if fill:
            fill_disks()
        original(self, new, *more)
        reporter.say("view", *new.view.peers)

    Recorder.view_changed = view_changed


def watch_ballots(reporter: Reporter) -> None:
    """Hold where this peer has told of a ballot of its own, and where its proposal was just accepted."""
    tell, step, told = Agreement.tell, agreement.step, set()

    def tell_of_ballots(self, remote):
        own = self._state.record.proposal
        if own is not None and own.value is None:
            if remote in told:
                reporter.at("ballot")
            told.add(remote)
        return tell(self, remote)

    def follow_own_proposal(state, event, now):
        after, effects = step(state, event, now)
        own = state.record.proposal
        if own is not None and after.view != state.view and own.value == after.view:
            reporter.at("proposal")
        return after, effects

    Agreement.tell, agreement.step = tell_of_ballots, follow_own_proposal


def watch_checkpoints(reporter: Reporter) -> None:
    """Hold where half of a checkpoint is written."""
    original = os.replace

    def replace_file(source, target):
        source = Path(source)
        if source.suffix == ".partial" and f"checkpoint {_number(source)}" in reporter._hold:
            os.truncate(source, source.stat().st_size // 2)
            reporter.at(f"checkpoint {_number(source)}")
        original(source, target)

    os.replace = replace_file


def _number(path: Path) -> str:
    return path.name.removesuffix(".safetensors.partial").rpartition("-")[2]


# What is done to payloads: each wraps `Carrier.deliver`, which sends one once, and says that it was done.


def corrupt(reporter: Reporter) -> None:
    """Flip a bit of each payload of one iteration the first time that it is sent."""
    original, done = Carrier.deliver, set()

    async def deliver(self, payload, call):
        key = payload.edge, payload.iteration, payload.phase
        if payload.iteration == JUMP_AT and key not in done:
            done.add(key)
            payload = replace(payload, body=bytes([payload.body[0] ^ 1]) + payload.body[1:])
            reporter.say_once("harmed")
        return await original(self, payload, call)

    Carrier.deliver = deliver


def duplicate(reporter: Reporter) -> None:
    """Send everything twice, from one iteration on."""
    original = Carrier.deliver

    async def deliver(self, payload, call):
        if payload.iteration < JUMP_AT:
            return await original(self, payload, call)
        reporter.say_once("harmed")
        return await with_copy(original(self, payload, call), original(self, payload, call))

    Carrier.deliver = deliver


def reorder(reporter: Reporter) -> None:
    """Send a copy of each payload once more after the one that follows it, which overtakes it."""
    original, before = Carrier.deliver, {}

    async def deliver(self, payload, call):
        sending = original(self, payload, call)
        earlier = before.get(payload.edge)
        before[payload.edge] = payload
        if earlier is None or not JUMP_AT <= payload.iteration < JUMP_AT + 5:
            return await sending
        reporter.say_once("harmed")
        return await with_copy(sending, original(self, earlier, call))

    Carrier.deliver = deliver


def replay(reporter: Reporter) -> None:
    """Send what was sent ten iterations before once more, before the first try of each payload."""
    original, sent = Carrier.deliver, {}

    async def deliver(self, payload, call):
        key = payload.edge, payload.iteration, payload.phase
        first = key not in sent
        sent[key] = payload
        earlier = sent.get((payload.edge, payload.iteration - 10, payload.phase))
        sending = original(self, payload, call)
        if not first or not JUMP_AT <= payload.iteration < JUMP_AT + 20 or earlier is None:
            return await sending
        reporter.say_once("harmed")
        return await with_copy(sending, original(self, earlier, call), copy_first=True)

    Carrier.deliver = deliver


async def with_copy(sending, copy, *, copy_first=False):
    """Send a payload and a copy, in this order or the other; return what comes of the payload."""
    order = (copy, sending) if copy_first else (sending, copy)
    outcomes = await asyncio.gather(*order, return_exceptions=True)
    outcome = outcomes[copy_first]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


PAYLOADS = {"corrupt": corrupt, "duplicate": duplicate, "reorder": reorder, "replay": replay}
