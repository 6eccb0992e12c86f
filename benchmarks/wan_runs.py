"""Runs over links of a rate and a delay for wan.py: of peers, and of Flower's FedAvg; their curves, measured.

Both kinds have the same images, model and number of gradients, one process or more a site, and relays that
all bytes pass. Peers have a link for each edge of the graph. FedAvg's sites have one to the office, with the
same rate and delay in each direction.

- **Time** begins with the evaluation before training, when all features are there.
- **Bytes** are those that came into the relays since then, payloads and all else (headers, acknowledgements,
  heartbeats, polls), both ways, of all links, divided by the number of sites.
- **Accuracy** is the mean of the sites' scores. Peers score themselves, and the time of it is within theirs.
  FedAvg's model is scored at the office, from its checkpoints and after the run: no site is sent a model once
  more for a score, and no time passes for one. So a round is one model down and one up on each link.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from p2pft_flower.config import RunConfig
from p2pft_flower.keeping.checkpoints import SERVER, checkpoint_files, checkpoint_folder, read_checkpoint
from p2pft_flower.keeping.journal import read_journal
from p2pft_flower.keeping.lines import Evaluation
from p2pft_flower.lab.federation import Federation, plan_peers
from p2pft_flower.lab.ports import free_addresses
from p2pft_flower.lab.relay import Relay, Relays
from p2pft_flower.resources import home
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import scheduled

if TYPE_CHECKING:
    from p2pft_flower.learning.workload import Workload
    from tests.flower.deployment import Deployment

__all__ = ["Point", "Took", "run_fedavg", "run_peers"]

EVALUATED = 64
"""Gradients that a peer draws between two evaluations."""

NEVER = 1_000_000
"""Iterations between two evaluations of FedAvg at the sites, so many that there is none before the end."""

SAMPLED = 0.1
"""Seconds between two looks at the relays' numbers of bytes."""

LOOK = 5.0
"""Seconds between two looks for Flower's processes."""


class Point(NamedTuple):
    """A run at one evaluation."""

    gradients: int
    """Gradients that each site has drawn."""
    seconds: float
    """Seconds since the evaluation before training."""
    megabytes: float
    """Megabytes that passed the links since then, both ways, a site."""
    payload: float
    """Megabytes of the method's own vectors of them."""
    accuracy: float
    """Mean accuracy of the sites, 0..1."""


@dataclass(frozen=True)
class Took:
    """One run.

    Attributes
    ----------
    curve : tuple of Point
        The evaluations, from the one before training.
    alone : float
        Seconds that the bytes of the run would take, one after the other, at the link's rate: of the busiest
        direction of a link between peers; for FedAvg of the busiest link, up and down, since a client trains
        between the two. No run can be faster.
    whole : bool
        Whether all gradients were drawn.
    """

    curve: tuple[Point, ...]
    alone: float
    whole: bool

    def reached(self, goal: float) -> Point | None:
        """Return the first evaluation with an accuracy of ``goal``; None if there is none."""
        return next((point for point in self.curve if point.accuracy >= goal), None)

    @property
    def best(self) -> Point:
        """The first evaluation with the highest accuracy."""
        return max(self.curve, key=lambda point: point.accuracy)


class Meter:
    """The bytes that came into relays, by time; a context manager that looks every tenth of a second."""

    def __init__(self, relays: Sequence[Relay]) -> None:
        self._relays, self._over = relays, threading.Event()
        self._times: list[float] = []
        self._passed: list[list[int]] = []
        self._thread = threading.Thread(target=self._look, name="meter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        over = False
        while not over:
            over = self._over.wait(SAMPLED)
            self._times.append(time.time())
            self._passed.append([relay.passed[way] for relay in self._relays for way in ("there", "back")])

    def at(self, when: float) -> npt.NDArray[np.float64]:
        """Return the bytes that had come in at the Unix time ``when``, (relays, 2): there and back."""
        ways = np.array(self._passed, dtype=np.float64).T
        return np.array([np.interp(when, self._times, way) for way in ways]).reshape(-1, 2)


def evaluations(folder: Path, peer: int) -> list[Evaluation]:
    """Return the evaluations in a peer's journal so far."""
    log = folder / "peers" / f"peer-{peer}.jsonl"
    return [line for line in read_journal(log) if isinstance(line, Evaluation)] if log.is_file() else []


def common(folder: Path, peers: range) -> list[tuple[int, float, float, float]]:
    """Return (iteration, time, mean accuracy, mean bytes) of the evaluations that all peers have."""
    by = [{e.iteration: e for e in evaluations(folder, p)} for p in peers]
    return [
        (
            k,
            max(each[k].time for each in by),
            statistics.mean(each[k].accuracy or 0.0 for each in by),
            statistics.mean(each[k].bytes_sent for each in by),
        )
        for k in sorted(set.intersection(*(set(each) for each in by)))
    ]


def run_peers(
    graph: Graph,
    link: tuple[float, float],
    settings: Mapping[str, Any],
    gradients: int,
    longest: float,
    goal: float | None = None,
) -> Took:
    """Train peers over links of a rate and a delay, and return the run.

    Parameters
    ----------
    graph : Graph
        The graph of the peers.
    link : (float, float)
        Bytes a second of each link and direction, and seconds by which each byte is late.
    settings : mapping
        Run-config keys and values.
    gradients : int
        Gradients that each peer draws, unless the run ends before.
    longest : float
        Seconds after which the run is given up.
    goal : float, optional
        A mean accuracy at which the run ends; default: it goes on.

    Raises
    ------
    RuntimeError
        When the peers were not evaluated once, or a peer ended before the others were done.
    """
    graph = scheduled(graph, str(settings.get("schedule-graph", "static")))
    steps = int(str(settings.get("algorithm-options", "local-steps=1")).partition("=")[2])
    length, every = gradients // steps, min(EVALUATED, gradients) // steps
    with tempfile.TemporaryDirectory() as name, Relays() as relays:
        folder, addresses = Path(name), free_addresses(graph.n)
        plans = plan_peers("wan", graph, settings, addresses, folder)
        plans = [replace(plan, iterations=length, evaluate_every=every) for plan in plans]
        pairs = {pair for edge in graph.edges for pair in (edge, edge[::-1])}
        shaped = {(p, q): relays.open(addresses[q], rate=link[0], delay=link[1]) for p, q in pairs}
        routes = {pair: relay.address for pair, relay in shaped.items()}
        with Meter(list(shaped.values())) as meter, Federation(plans, routes) as peers:
            for p in range(graph.n):
                peers.start(p)
            begun, seen = time.monotonic(), []
            while peers.alive and not any(peers.ended().values()) and time.monotonic() - begun < longest:
                time.sleep(0.5)
                seen = common(folder, range(graph.n))
                if seen and (seen[-1][0] == length or (goal is not None and seen[-1][2] >= goal)):
                    break
            peers.stop("measured")
        seen = common(folder, range(graph.n))
        first = min((e.time for p in range(graph.n) for e in evaluations(folder, p)), default=0.0)
        late = time.monotonic() - begun >= longest
        done = bool(seen) and (seen[-1][0] == length or seen[-1][2] >= (goal or 2.0))
        if not seen or not (done or late):
            logs = "\n".join(file.read_text()[-1000:] for file in sorted(folder.glob("peer-*.log")))
            raise RuntimeError(f"the peers did not train to the end; their logs end so:\n{logs}")
    start, before = seen[0][1], meter.at(first)  # who was evaluated first may send before the last one is
    curve = tuple(
        Point(k * steps, at - start, (meter.at(at) - before).sum() / graph.n / 1e6, sent / 1e6, accuracy)
        for k, at, accuracy, sent in seen
    )
    alone = float((meter.at(seen[-1][1]) - before).max() / link[0])
    return Took(curve, alone, seen[-1][0] == length)


def run_fedavg(
    n: int, link: tuple[float, float], settings: Mapping[str, Any], gradients: int, longest: float
) -> Took:
    """Run Flower's FedAvg with ``n`` sites over a link each to the office, and return the run.

    A SuperLink and a SuperNode for each site are deployed on this machine, as ``p2pft up`` does, and the app
    is run with ``algorithm = fedavg``. The seconds are those of Flower as it is, which looks for messages
    every few seconds and starts a process for each of them; on few cores these wait for each other.

    Clients are asked for scores before training only (``evaluate-every``). The clock begins when the office
    has these scores, and an evaluation is at the time at which the office has saved the mean of the round's
    models. The run is one gradient longer than what is counted, so that the scores at its end come later,
    too; it is ended as soon as the counted gradients are done.

    Parameters as of :func:`run_peers`.

    Raises
    ------
    RuntimeError
        When the run ended before its last round, or the office's score of the model before training is not
        that of the sites.
    """
    from tests.flower.deployment import Deployment

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        office = folder / "office"
        values = {
            "partition": "auto",
            **settings,
            "iterations": gradients + 1,
            "evaluate-every": NEVER,
            "checkpoint-every": 0,
            "checkpoints-kept": NEVER,
            "output-dir": str(office),
        }
        shaped = {"rate": link[0], "delay": link[1]}
        own = {"P2PFT_HOME": str(home())}  # which has features of earlier runs
        with Deployment(folder / "sites", n, proxied=True, link=shaped, environment=own) as sites:
            with Meter(sites.network) as meter:
                run = sites.run(**values)
                whole = _comes(sites, checkpoint_folder(office, SERVER), gradients, longest)
            scored = [sites.lines(run, p, "round")[0]["accuracy"] for p in range(n)]
        files = checkpoint_files(checkpoint_folder(office, SERVER))
        times = {k: path.stat().st_mtime for k, path in files.items() if k <= gradients}
        score, payload = _score_of(RunConfig.from_mapping(values), n)
        before, start = meter.at(times[0]), times[0]
        steps = min((k for k in times if k), default=gradients)
        curve = tuple(
            Point(
                k,
                at - start,
                float((meter.at(at) - before).sum() / n / 1e6),
                2 * payload / 1e6 * (k // steps),
                score(files[k]),
            )
            for k, at in times.items()
        )
    if abs(curve[0].accuracy - statistics.mean(scored)) > 1e-9:
        raise RuntimeError(f"before training: {curve[0].accuracy} at the office, {scored} at the sites")
    alone = float((meter.at(max(times.values())) - before).sum(axis=1).max() / link[0])
    return Took(curve, alone, whole)


def _comes(sites: Deployment, checkpoints: Path, gradients: int, longest: float) -> bool:
    """Wait until the office has the model after ``gradients``; return False if that takes too long.

    Raises
    ------
    RuntimeError
        When the run ended before, or the sites were not even scored in time.
    """
    begun = looked = time.monotonic()
    started = False
    while gradients not in (seen := checkpoint_files(checkpoints)):
        now = time.monotonic()
        if now - begun > longest:
            if 0 not in seen:
                raise RuntimeError(f"FedAvg did not begin within {longest:g} s:\n{sites.said()}")
            return False
        if now - looked > LOOK:
            alive, looked = bool(sites.processes("flwr-serverapp")), now
            if started and not alive:
                raise RuntimeError(f"FedAvg did not train to the end:\n{sites.said()}")
            started = started or alive
        time.sleep(0.2)
    return True


def _score_of(config: RunConfig, n: int) -> tuple[Callable[[Path], float], int]:
    """Return a function that scores the model in a checkpoint as the sites would, and the model's bytes."""
    import torch

    from p2pft_flower.learning.workload import Workload

    torch.set_num_threads(config.runtime.threads)
    workload = Workload(config.learning, n)
    objectives = workload.objectives(range(n))

    def score(path: Path) -> float:
        theta = _theta(workload, path)
        return statistics.mean(objectives[p].evaluate(theta).accuracy for p in range(n))

    return score, workload.theta0.nbytes


def _theta(workload: Workload, path: Path) -> npt.NDArray[np.float32]:
    import torch

    checkpoint, _ = read_checkpoint(path)
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in checkpoint.state.items()}
    return workload.theta_from(tensors, str(path))
