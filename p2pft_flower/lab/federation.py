"""The plan of a run that lasts until it is stopped, and its peers as processes of this machine."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from p2pft_flower.algorithms.codecs import make_codec
from p2pft_flower.algorithms.compression import codec_step
from p2pft_flower.config import RunConfig
from p2pft_flower.keeping.retention import files_kept
from p2pft_flower.lab.peer import main
from p2pft_flower.lab.supervisor import Functions
from p2pft_flower.learning.workload import Workload
from p2pft_flower.plan import Neighbourhood, Plan, greetings, terms_digest
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View

__all__ = ["Federation", "plan_peers"]

ENDLESS = 10**9
"""Iterations of a run that lasts until it is stopped."""

END = 20.0
"""Seconds that processes have to end after they were asked to."""

_PRELOADED = ["__main__", "p2pft_flower.lab.peer", "sklearn.datasets", "timm"]
"""Modules imported once, by the process that is forked for each peer, so that a peer starts quickly."""


def plan_peers(
    run: str, graph: Graph, settings: Mapping[str, Any], addresses: Mapping[int, str], folder: Path
) -> list[Plan]:
    """Return each peer's plan for a run of the app's default job that lasts until it is stopped.

    Parameters
    ----------
    run : str
        The run's identifier.
    graph : Graph
        The graph over which the peers train.
    settings : mapping
        Run-config keys with values other than the app's.
    addresses : mapping of int to str
        The address of each peer.
    folder : Path
        The folder for logs, checkpoints and tails.
    """
    config = RunConfig.from_mapping({"iterations": ENDLESS, **settings})
    view = View.whole(graph)
    shares = Workload(config.learning, graph.n).holdings.partition
    images = sum(len(shares[p]) for p in range(graph.n))
    epoch = math.ceil(images / graph.n / config.learning.batch_size)
    every = config.runtime.evaluate_every or epoch
    plan = Plan(
        run=run,
        config=config,
        n=graph.n,
        greetings=greetings(view, [[p] for p in range(graph.n)]),
        terms=terms_digest(config, view, ENDLESS),
        peers=(),
        loss_weights=dict.fromkeys(range(graph.n), 1.0),
        iterations=ENDLESS,
        evaluate_every=every,
        output_dir=str(folder),
        addresses=dict(addresses),
        graph=graph.to_dict(),
        members={p: (p,) for p in range(graph.n)},
        hosts={p: (p,) for p in range(graph.n)},
        checkpoint_every=every,
        checkpoint_files=files_kept(config.runtime.checkpoints_kept, every, graph.lead),
        codec_step=codec_step(make_codec(config.method.codec), config.method.codec_step, graph),
    )
    return [replace(plan, peers=(Neighbourhood.of(view, p, plan.codec_step),)) for p in range(graph.n)]


class Federation:
    """The processes of all peers; a context manager that leaves none behind.

    Parameters
    ----------
    plans : sequence of Plan
        The plan of each peer, in the order of their numbers.
    routes : mapping of (int, int) to str
        By (p, q), the address at which peer p looks for peer q, if that is a relay's and not q's own.
    """

    def __init__(self, plans: Sequence[Plan], routes: Mapping[tuple[int, int], str]) -> None:
        self._plans = [
            replace(plan, addresses={q: routes.get((p, q), at) for q, at in plan.addresses.items()})
            for p, plan in enumerate(plans)
        ]
        # With a thread of torch's for each core, the peers would get in each other's way.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._processes = Functions(_PRELOADED)
        self.killed: set[int] = set()
        """Peers that were killed and not started again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._processes.__exit__(kind, error, trace)

    def start(self, peer: int, *, joining: bool = False) -> None:
        """Start the process of ``peer``, also if an earlier one has ended."""
        self._processes.start(peer, main, self._plans[peer].to_json(), joining)
        self.killed.discard(peer)

    def kill(self, *peers: int) -> None:
        """SIGKILL all of ``peers``, and return when they are gone."""
        self.killed.update(peers)
        self._processes.kill(*peers)

    def pause(self, peer: int) -> None:
        """Stop the process of ``peer`` by SIGSTOP."""
        self._processes.signal(peer, signal.SIGSTOP)

    def resume(self, peer: int) -> None:
        """Let the process of ``peer`` go on by SIGCONT."""
        self._processes.signal(peer, signal.SIGCONT)

    def ended(self) -> dict[int, int]:
        """Return the exit code, by peer, of each peer that has ended without being killed by :meth:`kill`."""
        codes = {p: self._processes.exit_code(p) for p in self._processes.started if p not in self.killed}
        return {p: code for p, code in codes.items() if code is not None}

    def stop(self, reason: str) -> dict[int, int | None]:
        """Tell all peers to stop, for ``reason``; return the exit codes by peer, None if one still runs."""
        for peer in self._processes.started:
            try:
                self._processes.pipe(peer).send(reason)
            except BrokenPipeError:  # it has ended
                continue
        end = time.monotonic() + END
        for peer in self._processes.started:
            self._processes.join([peer], max(0.0, end - time.monotonic()))
        return {p: self._processes.exit_code(p) for p in self._processes.started}

    @property
    def alive(self) -> list[int]:
        """Peers whose process has not ended."""
        return self._processes.alive
