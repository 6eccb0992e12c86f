"""Peers as processes over sockets, what is done to them, and what must be true afterwards."""

from __future__ import annotations

import contextlib
import multiprocessing.util
import shutil
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest

from p2pft_flower.keeping.checkpoints import checkpoint_files, checkpoint_folder
from p2pft_flower.keeping.resuming import look_through, newest_common
from p2pft_flower.lab.ports import free_addresses
from p2pft_flower.lab.supervisor import Functions
from p2pft_flower.plan import Plan, ResumePoint
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import STATIC, scheduled
from tests.faults.digits import accuracy, held, optimum, undisturbed
from tests.faults.peer import Orders, main
from tests.host.quadratic import plans
from tests.journals import lines_of, tracker_surplus
from tests.namespaces.network import PRELOADED

PATIENCE = 120.0
"""Seconds after which a run has not ended; only a broken one takes that long."""

DEADLINE = 3.0
"""``peer-timeout`` of these runs, in seconds."""

PATIENT = {"peer-timeout": PATIENCE}
"""For runs in which nobody falls silent: on a slow machine, too, nobody is lost."""

ITERATIONS = 120

RATE = 0.05
"""Learning rate; with the twice of it the method itself does not settle on a directed ring of six."""

NEAR = 0.02
"""How far peers may be from each other and from their optimum, whose largest number is 0.1 or more."""

multiprocessing.util.get_temp_dir()  # outside the tests' own, which goes before this process does


class Fault(Enum):
    """What is done to peers, each by one test at least."""

    KILL_ONE = "SIGKILL of a peer"
    KILL_TWO = "SIGKILL of two peers at once"
    KILL_CUT_VERTEX = "SIGKILL of the peer without which the graph falls apart"
    PAUSE = "SIGSTOP, and SIGCONT within the deadline"
    LONG_PAUSE = "SIGSTOP, and SIGCONT after the others have gone on"
    KILL_AND_REJOIN = "SIGKILL of a peer that is started again, three times"
    ALL_KILLED_AND_RESUMED = "SIGKILL of all peers, whose run is resumed"
    LINK_CUT_BOTH_WAYS = "a link carries nothing, in neither direction"
    LINK_CUT_ONE_WAY = "a link carries nothing, in one direction"
    CUT_OFF = "a peer's machine is taken off the network"
    PARTITION = "the network falls into two halves"
    STRAGGLER = "a peer whose gradients are slow takes several deadlines for one of them"
    HANG = "a gradient that never ends, waiting or in a loop, while heartbeats go on"
    SLOW_LINK = "a link that is slow"
    CORRUPTED = "payloads arrive with a bit flipped"
    DUPLICATED = "payloads arrive twice"
    REORDERED = "payloads arrive again after a later one"
    REPLAYED = "old payloads arrive again"
    FULL_DISK = "no room for a checkpoint, or for the log"
    UNWRITABLE = "checkpoints cannot be written"
    CLOCK_JUMP = "the wall clock is set"
    KILL_BALLOT = "SIGKILL of who has opened a ballot"
    KILL_PROPOSER = "SIGKILL of who has proposed the next view"
    KILL_CHECKPOINT = "SIGKILL while a checkpoint is written"


def injects(*faults: Fault) -> pytest.MarkDecorator:
    """Mark a test as the one that injects ``faults``."""
    return pytest.mark.injects(*faults)


@dataclass
class Ended:
    """How one peer's process ended."""

    exitcode: int | None
    theta: np.ndarray[Any, Any] | None = None
    error: str = ""


class Federation:
    """Peers of one run; a context manager that leaves no process.

    Parameters
    ----------
    folder : Path
        For plans, logs and tails.
    graph : str
        What `Graph.load` knows.
    orders : mapping of int to Orders
        What peers do besides their work.
    addresses : mapping of int to str
        Where they listen; default free ports of loopback.
    routes : mapping of (int, int) to str
        The address under which one peer knows another, where that is another one: a relay's.
    checkpoint_every : int
        Iterations between two checkpoints; negative: none are written.
    resumed : Path, optional
        The folder of a run from whose checkpoints this one goes on.
    **settings
        Run-config.
    """

    def __init__(
        self,
        folder: Path,
        graph: str = "directed-ring:6",
        *,
        orders: Mapping[int, Orders] | None = None,
        addresses: Mapping[int, str] | None = None,
        routes: Mapping[tuple[int, int], str] | None = None,
        checkpoint_every: int = -1,
        resumed: Path | None = None,
        **settings: Any,
    ) -> None:
        self.folder, self._static = folder, graph
        self.graph = scheduled(Graph.load(graph), settings.get("schedule-graph", STATIC))
        self.iterations = settings.get("iterations", ITERATIONS)
        self.addresses = dict(addresses or free_addresses(self.graph.n))
        self._orders, self._routes = orders or {}, routes or {}
        self._every, self._resumed = checkpoint_every, resumed
        settings = {
            "iterations": ITERATIONS,
            "learning-rate": RATE,
            "peer-timeout": DEADLINE,
            "rejoin-deadline": 20.0,
            "meet-timeout": PATIENCE,
        } | settings
        self._settings = settings
        self._processes = Functions(PRELOADED)
        self._said: dict[int, list[tuple[Any, ...]]] = {}
        self._plans: dict[int, Plan] = {}

    @property
    def peers(self) -> range:
        return range(self.graph.n)

    def __enter__(self) -> Self:
        alone = [[p] for p in self.peers]
        survive = self._settings.get("on-failure") != "stop"
        all_plans = plans(self.graph, alone, self.addresses, self.folder, survive=survive, **self._settings)
        point = None if self._resumed is None else _newest(self._resumed, self.peers)
        for p, plan in enumerate(all_plans):
            known = {q: self._routes.get((p, q), at) for q, at in self.addresses.items()}
            own = replace(
                plan,
                addresses=known,
                evaluate_every=self._settings.get("evaluate-every", plan.evaluate_every),
                checkpoint_every=self._every,
                resume=point,
            )
            self._plans[p] = own if point is None else replace(own, run=f"{point.run} resumed")
        for p in self.peers:
            self._start(p, self._orders.get(p, Orders()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = self._processes.alive
        self._processes.__exit__(kind, error, trace)
        assert kind is not None or not left, f"peers {left} were still running"

    def _start(self, peer: int, orders: Orders, *, joining: bool = False) -> None:
        self._processes.start(peer, main, self._plans[peer].to_json(), orders, joining)
        self._said[peer] = []

    def forget(self, peer: int) -> None:
        """Remove all that a peer which has ended had written."""
        shutil.rmtree(checkpoint_folder(self.folder, peer))
        (self.folder / "peers" / f"peer-{peer}.jsonl").unlink()

    def start_again(self, peer: int, orders: Orders) -> None:
        """Start a peer that has ended in a new process, which asks to be let in."""
        self._start(peer, orders, joining=True)

    # What is done to them ----------------------------------------------------------------------------

    def await_word(self, peer: int, *words: Any) -> None:
        """Wait until a peer has said ``words``."""
        pipe, end = self._processes.pipe(peer), time.monotonic() + PATIENCE
        while words not in self._said[peer]:
            assert pipe.poll(max(0.0, end - time.monotonic())), (
                f"peer {peer} does not say {words}: {self.log(peer)}"
            )
            try:
                self._said[peer].append(pipe.recv())
            except EOFError:
                raise AssertionError(f"peer {peer} ended before it said {words}: {self.log(peer)}") from None

    def await_view(self, among: Iterable[int], members: Iterable[int]) -> None:
        """Wait until all peers ``among`` are in a view of ``members``."""
        for peer in among:
            self.await_word(peer, "view", *members)

    def hold(self, peer: int, place: str) -> None:
        """Wait until a peer holds at ``place``."""
        self.await_word(peer, "at", place)

    def release(self, peer: int) -> None:
        """Let a peer that holds go on."""
        self._processes.pipe(peer).send("go on")

    def hurry(self, *peers: int) -> None:
        """Let peers be slow no more."""
        for peer in peers:
            self._processes.pipe(peer).send("hurry")

    def signal(self, peer: int, number: signal.Signals) -> None:
        self._processes.signal(peer, number)

    def kill(self, *peers: int) -> None:
        self._processes.kill(*peers)

    # What is true of them ----------------------------------------------------------------------------

    def ended(self, peers: Iterable[int] | None = None) -> dict[int, Ended]:
        """Wait until all of ``peers`` (default: all) have ended, and return how."""
        end = time.monotonic() + PATIENCE
        found = {}
        for peer in self.peers if peers is None else peers:
            pipe, said = self._processes.pipe(peer), self._said[peer]
            # What a peer says last may not fit into the pipe: it is read before its end is waited for.
            with contextlib.suppress(EOFError, ConnectionResetError):
                while pipe.poll(max(0.0, end - time.monotonic())):
                    said.append(pipe.recv())
            self._processes.join([peer], max(0.0, end - time.monotonic()))
            found[peer] = Ended(self._processes.exit_code(peer))
            for word, *more in said:
                if word == "end":
                    found[peer].theta = np.frombuffer(more[0], np.float32)
                elif word == "error":
                    found[peer].error = f"{more[0]}: {more[1]}"
        return found

    def said(self, peer: int) -> list[tuple[Any, ...]]:
        """Return what a peer has said by now; all of it, once it is known how it ended."""
        return self._said[peer]

    def journal(self, peer: int) -> list[dict[str, Any]]:
        return lines_of(self.folder / "peers" / f"peer-{peer}.jsonl")

    def views(self, peer: int) -> list[dict[str, Any]]:
        """Return the changes of view that a peer tells of in all its lives, each once, ascending."""
        told = {line["number"]: line for line in self.journal(peer) if line["event"] == "view"}
        return [told[number] for number in sorted(told)]

    def first_iteration(self, peer: int) -> int:
        """Return how many iterations a peer had completed when it began."""
        return next(line["iteration"] for line in self.journal(peer) if line["event"] == "trace")

    def log(self, peer: int) -> str:
        path = self.folder / f"peer-{peer}.txt"
        return path.read_text() if path.is_file() else "it has no log"

    def logs(self) -> str:
        return "\n".join(f"--- peer {p}\n{self.log(p)}" for p in self.peers)

    def check_survivors(self, survivors: Sequence[int], ended: Mapping[int, Ended]) -> None:
        """Check that exactly ``survivors`` come to the end, agree, and are at their own optimum."""
        for p in ended:
            assert (ended[p].exitcode == 0) == (p in survivors), (p, ended[p].error, self.logs())
        thetas = np.stack([ended[p].theta for p in survivors])
        assert np.abs(thetas - thetas.mean(axis=0)).max() < NEAR
        assert np.abs(thetas.mean(axis=0) - optimum(survivors)).max() < NEAR
        self.check_accuracy(survivors, ended)
        self.check_invariant()

    def check_accuracy(self, survivors: Sequence[int], ended: Mapping[int, Ended]) -> None:
        """Check how accurate each is beside the same peers trained without a fault, on all that they hold."""
        known = [digit for p in survivors for digit in held(p)]
        without = undisturbed(self._static, tuple(survivors), RATE, self.iterations)
        wanted = [accuracy(theta, known) for theta in without]
        found = [accuracy(ended[p].theta, known) for p in survivors]
        assert min(wanted) > 0.8
        assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 0.02, (found, wanted)

    def check_same(self, ended: Mapping[int, Ended]) -> None:
        """Check that all peers end with the very bits that they end with undisturbed, in one view."""
        for p in self.peers:
            assert ended[p].exitcode == 0, (p, ended[p].error, self.logs())
            assert self.views(p) == []
        without = undisturbed(self._static, tuple(self.peers), RATE, self.iterations)
        for p in self.peers:
            assert ended[p].theta.tobytes() == without[p].tobytes(), p
        self.check_accuracy(self.peers, ended)
        self.check_invariant()

    def check_kept(self, peer: int) -> None:
        """Check that a peer that stopped has left its model and a checkpoint of its last iteration."""
        done = [line["iteration"] for line in self.journal(peer) if line["event"] == "trace"]
        assert max(checkpoint_files(checkpoint_folder(self.folder, peer))) == max(done), self.log(peer)
        assert (self.folder / "peers" / f"peer-{peer}.stopped.safetensors").is_file()

    def check_invariant(self) -> None:
        """Check Σ τ = Σ g after each iteration that all peers of a view have completed, to the last one."""
        surplus = tracker_surplus(self.folder, self.peers)
        told = {v["number"]: v for p in self.peers for v in self.views(p)}
        looked_at = {(s.view, s.iteration) for s in surplus}
        for number in (0, *told):
            begin = told[number]["iteration"] if number else 0
            members = told[number]["peers"] if number else self.peers
            lines = {p: [t for t in self.journal(p) if t["event"] == "trace"] for p in members}
            done = {p: [t["iteration"] for t in lines[p] if t["view"] == number] for p in members}
            if number == 0 and self._resumed is not None:
                begin = self.first_iteration(min(members))
            # Somebody may die in the view, or be ahead when it ends: what all have completed counts.
            common = min(max(one, default=begin) for one in done.values())
            missing = {(number, k) for k in range(begin + 1, common + 1)} - looked_at
            assert not missing, sorted(missing)
        last = max((0, *told))
        assert (last, self.iterations) in looked_at
        assert max(s.relative for s in surplus) < 1e-4, max(surplus, key=lambda s: s.relative)

    def check_told(self, survivors: Iterable[int], lost: Mapping[int, str], number: int = 1) -> None:
        """Check that survivors tell of view ``number`` alike, and some of them why each peer was lost."""
        seen = []
        for p in survivors:
            named = [view for view in self.views(p) if view["number"] == number]
            assert named, f"peer {p} was not in view {number}: {self.logs()}"
            seen += named
        for view in seen:
            assert view["lost"] == sorted(lost)
            assert (view["peers"], view["edges"], view["iteration"]) == (
                seen[0]["peers"],
                seen[0]["edges"],
                seen[0]["iteration"],
            )
        for peer, how in lost.items():
            told = [view["why"][str(peer)] for view in seen if str(peer) in view["why"]]
            assert told, (peer, seen)
            assert all(how in why for why in told), told


def _newest(folder: Path, peers: Iterable[int]) -> ResumePoint:
    """Return the newest iteration of which all peers of a run have a checkpoint."""
    kept = [look_through(folder, p) for p in peers]
    view, iterations = newest_common(kept, exchanges=True)
    digests = {one.peer: one.views[view].digests[iterations[one.peer]] for one in kept}
    return ResumePoint(kept[0].run, str(folder), iterations, digests)
