"""The ServerApp: the coordinator. It starts the peers, collects numbers, and never sees θ, τ or data.

Two exceptions: a server-based strategy aggregates models, as it is there to show; and the peers' reports
hold a sketch of θ, 128 random sums (docs/architecture.md says what these reveal).
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp

from p2pft_flower.algorithms import ALGORITHMS, check_graph, make_algorithm
from p2pft_flower.algorithms.objective import peer_weights
from p2pft_flower.algorithms.schedules import make_schedule
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.flower import messages, nodes
from p2pft_flower.flower.logs import log_to_stream
from p2pft_flower.flower.nodes import HostAssignment, RunFailedError
from p2pft_flower.flower.strategies import PeersGrid, is_strategy, make_strategy, strategy_names
from p2pft_flower.plugins import is_reference
from p2pft_flower.report.results import SCHEMA, default_output_dir, holds_a_run, summary, write_results
from p2pft_flower.report.tables import run_table
from p2pft_flower.runtime import sketch
from p2pft_flower.runtime.journal import read_journal
from p2pft_flower.runtime.plan import Neighbourhood, Plan, terms_digest
from p2pft_flower.runtime.progress import Progress, Report
from p2pft_flower.runtime.wires import remote_edges
from p2pft_flower.topology import Graph
from p2pft_flower.transport import ObserverServer, PeerReport, unix_address

__all__ = ["make_server_app"]

log = logging.getLogger("p2pft_flower")


@dataclass(frozen=True)
class Run:
    """What the coordinator knows once everybody has said hello."""

    id: str
    config: RunConfig
    graph: Graph
    folder: Path
    pooled: bool
    exchanges: bool
    """Whether peers exchange anything with each other."""
    deployed: bool
    """Whether the peers run on SuperNodes of their own, not in a simulation."""
    hosts: list[HostAssignment]
    images: dict[int, int]
    classes: dict[int, list[str]]
    partition: str
    versions: dict[str, str]
    iterations: int
    epoch: int
    """Iterations of an epoch."""
    evaluate_every: int

    @property
    def peers(self) -> int:
        """Number of peers that train: one where the data is pooled."""
        return 1 if self.pooled else self.graph.n


def make_server_app() -> ServerApp:
    """Return the ServerApp of the Flower app."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        log_to_stream()
        run_id, begin = str(context.run_id), time.monotonic()
        folder = None
        try:
            config = RunConfig.from_mapping(context.run_config)
            folder = _output_dir(config, run_id)
            results = _run(grid, config, run_id, folder)
        except Exception as error:
            # Flower prints the traceback of what is raised here; this line is for people.
            reason = str(error) if isinstance(error, P2PFTError) else f"{type(error).__name__}: {error}"
            log.error("run %s failed: %s", run_id, reason)  # noqa: TRY400
            if folder is not None:
                failed = {"error": reason, "config": dict(context.run_config)}
                path = write_results(folder, _head("failed", run_id, context.run_config) | failed)
                log.error("what there is was written to %s", path)  # noqa: TRY400
            raise
        results["seconds"] = time.monotonic() - begin
        path = write_results(folder, results)
        log.info("%s", run_table(results))
        log.info("results: %s", path)

    return app


def _output_dir(config: RunConfig, run_id: str) -> Path:
    chosen = config.runtime.output_dir
    folder = Path(chosen).expanduser() if chosen else default_output_dir(run_id)
    if holds_a_run(folder):
        raise ConfigError(f"output-dir = {str(folder)!r} holds an earlier run; choose another or remove it")
    return folder


def _head(status: str, run_id: str, values: Any) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "status": status,
        "run": run_id,
        "algorithm": values.get("algorithm"),
        "seed": values.get("seed"),
    }


def _run(grid: Grid, config: RunConfig, run_id: str, folder: Path) -> dict[str, Any]:
    graph = Graph.load(config.runtime.topology)
    name = config.method.algorithm
    strategy = is_strategy(name)
    exchanges = True
    pooled = False
    if not strategy:
        if name not in ALGORITHMS and not is_reference(name):
            choices = ", ".join([*ALGORITHMS, *strategy_names()])
            raise ConfigError(
                f"algorithm = {name!r} is unknown; choose one of {choices}, or my_module:my_method"
            )
        schedule = make_schedule(config.method.schedule, config.method.learning_rate, 1)
        method = make_algorithm(name, alpha=schedule, momentum=config.method.momentum)
        check_graph(method, graph)
        pooled, exchanges = bool(getattr(method, "pooled", False)), bool(method.phases)
        if config.method.strategy_options:
            raise ConfigError(
                f"strategy-options = {config.method.strategy_options!r}: "
                f"algorithm {name!r} is none of Flower's"
            )
    else:
        make_strategy(config.method, graph.n)  # refuse wrong options before anything starts

    answers = nodes.greet(grid, config, graph.n, pooled=pooled)
    hosts = nodes.assign_hosts(answers, graph.n, config.runtime.transport, pooled=pooled)
    run = _plan_run(run_id, config, graph, folder, pooled, exchanges, hosts, answers)
    _tell_plan(run)
    return _run_strategy(grid, run) if strategy else _run_peers(grid, run)


def _plan_run(
    run_id: str,
    config: RunConfig,
    graph: Graph,
    folder: Path,
    pooled: bool,
    exchanges: bool,
    hosts: list[HostAssignment],
    answers: dict[int, dict[str, Any]],
) -> Run:
    told = [answers[host.node] for host in hosts]
    for host, answer in zip(hosts, told, strict=True):
        odd = {k: v for k, v in answer["versions"].items() if v != told[0]["versions"][k]}
        if odd:
            here = {k: told[0]["versions"][k] for k in odd}
            raise RunFailedError(
                f"peers {list(host.peers)} run {odd}, peers {list(hosts[0].peers)} run {here}: "
                "install the same versions"
            )
    data = {int(p): d for answer in told for p, d in answer["data"].items()}
    images = {p: int(d["images"]) for p, d in data.items()}
    # An epoch: as many iterations as a peer's mean share of the data has batches.
    epoch = math.ceil(sum(images.values()) / graph.n / config.learning.batch_size)
    iterations = config.runtime.iterations or config.runtime.epochs * epoch
    return Run(
        id=run_id,
        config=config,
        graph=graph,
        folder=folder,
        pooled=pooled,
        exchanges=exchanges,
        deployed=any(answer["peer-id"] is not None for answer in told),
        hosts=hosts,
        images=images,
        classes={p: list(d["classes"]) for p, d in data.items()},
        partition=told[0]["partition"],
        versions=told[0]["versions"],
        iterations=iterations,
        epoch=epoch,
        evaluate_every=config.runtime.evaluate_every or epoch,
    )


def _tell_plan(run: Run) -> None:
    c = run.config
    who = "1 pooled peer" if run.pooled else f"{run.graph.n} peers"
    where = f"{len(run.hosts)} host{'s' if len(run.hosts) > 1 else ''} at once"
    log.info(
        "%s: %s on graph %s, %s; %s (weights: %s), tune %s; %s, partition %s",
        c.method.algorithm,
        who,
        run.graph.name,
        where,
        c.learning.model,
        c.learning.weights,
        c.learning.tune,
        c.learning.dataset,
        run.partition,
    )
    if c.learning.weights == "none":
        log.warning(
            "weights = none: RANDOM weights, no pre-training; these figures say nothing about transfer"
        )
    log.info(
        "%d iterations (an epoch has %d), batch size %d, learning rate %g (%s), objective %s, seed %d",
        run.iterations,
        run.epoch,
        c.learning.batch_size,
        c.method.learning_rate,
        c.method.schedule,
        c.method.objective,
        c.learning.seed,
    )


def _run_peers(grid: Grid, run: Run) -> dict[str, Any]:
    """Start every host with one message for the whole run, listen to progress, gather how the peers ended."""
    progress = Progress(run.peers, run.iterations, lambda line: log.info("%s", line))

    def on_report(report: PeerReport) -> None:
        if report.run != run.id or report.peer >= run.peers or len(report.sketch) != sketch.SIZE:
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

    with contextlib.ExitStack() as stack:
        address = ""
        if not run.deployed:
            try:
                server = ObserverServer(unix_address(f"{run.id}-observer", 0), on_report)
                address = stack.enter_context(server).address
            except P2PFTError as error:
                log.warning("no progress will be shown while the peers train: %s", error)
        outcomes, facts = _train(grid, run, observer=address)
    # What the observer missed stands in the peers' own logs, where this machine can read them.
    for peer in range(run.peers):
        log_file = run.folder / "peers" / f"peer-{peer}.jsonl"
        if log_file.is_file():
            for line in read_journal(log_file):
                if line["event"] == "evaluation":
                    progress.fill(Report.of(line))
    return _results(run, outcomes, progress, facts["model-parameters"])


def _train(grid: Grid, run: Run, observer: str) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    sent = []
    for host in run.hosts:
        plan = _host_plan(run, host, observer)
        message = Message(
            messages.pack({"plan": plan.to_json()}),
            dst_node_id=host.node,
            message_type=messages.TRAIN_PEERS,
            ttl=run.config.runtime.run_timeout,
        )
        sent.append(message)
    grace = run.config.runtime.peer_timeout + 60
    replies = nodes.collect(grid, sent, timeout=run.config.runtime.run_timeout, grace=grace)
    outcomes: dict[int, dict[str, Any]] = {}
    facts: dict[str, Any] = {}
    failures: list[RunFailedError] = []
    for host in run.hosts:
        who = f"peers {list(host.peers)}" if len(host.peers) > 1 else f"peer {host.peers[0]}"
        if host.node not in replies:
            failures.append(RunFailedError(f"{who}: no reply from node {host.node}", "NoReply"))
            continue
        try:
            facts = nodes.body_of(replies[host.node], who)
        except RunFailedError as failure:
            failures.append(failure)
            continue
        outcomes |= {o["peer"]: o for o in facts["outcomes"]}
    if failures:
        raise min(failures, key=lambda f: _HEARSAY.get(f.kind, 0))
    return outcomes, facts


_HEARSAY = {"ExchangeTimeoutError": 1, "PeerUnreachableError": 1, "NoReply": 2, "ExchangeStoppedError": 3}
"""Errors that others' failures cause, by how little they say of the cause."""


def _host_plan(run: Run, host: HostAssignment, observer: str) -> Plan:
    if run.pooled:
        peers: tuple[Neighbourhood, ...] = (Neighbourhood(0, {0: 1.0}, {0: 1.0}),)
        weights = {0: 1.0}
    else:
        peers = tuple(Neighbourhood.of(run.graph, p) for p in host.peers)
        # Where nothing is exchanged there is nobody to be weighed against.
        objective = run.config.method.objective if run.exchanges else "uniform"
        factors = peer_weights(objective, [run.images[p] for p in range(run.graph.n)])
        weights = {p: float(factors[p]) for p in host.peers}
    leaving, entering = remote_edges(peers, always=run.config.runtime.transport == "grpc")
    around = (
        {p for edge in leaving | entering for p in edge} | set(host.peers) if leaving | entering else set()
    )
    addresses = {p: _address(run, p) for p in sorted(around)} if run.exchanges else {}
    return Plan(
        run=run.id,
        config=run.config.to_mapping(),
        n=run.graph.n,
        terms=terms_digest(run.config, run.graph, run.iterations),
        peers=peers,
        loss_weights=weights,
        iterations=run.iterations,
        evaluate_every=run.evaluate_every,
        output_dir=str(run.folder),
        addresses=addresses,
        observer=observer,
        pooled=run.pooled,
    )


def _address(run: Run, peer: int) -> str:
    if not run.deployed:
        return unix_address(run.id, peer)  # whatever addresses the graph has for a deployment
    given = {host.peers[0]: host.address for host in run.hosts}
    address = given.get(peer) or run.graph.addresses[peer]
    if not address:
        raise ConfigError(
            f"peer {peer} has no address: give its SuperNode peer-address in --node-config, or the graph "
            "addresses"
        )
    return address


def _run_strategy(grid: Grid, run: Run) -> dict[str, Any]:
    """Run one of Flower's strategies, unmodified, on the same peers, batches, model and metrics."""
    from p2pft_flower.flower import clients  # torch and timm, which other methods' coordinators never need
    from p2pft_flower.learning.workload import Workload

    method, n = run.config.method, run.graph.n
    strategy = make_strategy(method, n)
    workload = Workload(run.config.learning, n)
    steps = method.local_epochs * run.epoch
    rounds = math.ceil(run.iterations / steps)
    payload = workload.theta0.nbytes
    progress = Progress(n, run.iterations, lambda line: log.info("%s", line))
    seconds = {p: {"gradient": 0.0, "exchange": 0.0, "evaluation": 0.0} for p in range(n)}
    sent = dict.fromkeys(range(n), 0)
    last: dict[int, Report] = {}

    def on_reply(kind: str, told: list[dict[str, Any]]) -> None:
        for note in told:
            peer = note["peer"]
            if kind.startswith("train"):
                seconds[peer]["gradient"] += note["gradient"]
                sent[peer] += payload  # what the client sends; what the server sends it is not the peer's
            else:
                seconds[peer]["evaluation"] += note["evaluation"]
                last[peer] = Report.of({**note, "bytes_sent": sent[peer]})
                progress.add(last[peer])

    weights = {p: float(run.images[p]) if method.objective == "examples" else 1.0 for p in range(n)}
    task = {
        "config": run.config.to_mapping(),
        "n": n,
        "run": run.id,
        "iterations": run.iterations,
        "steps": steps,
        "weights": weights,
        "output-dir": str(run.folder),
    }
    begin = time.monotonic()
    result = strategy.start(
        grid=PeersGrid(grid, run.hosts, task, on_reply),
        initial_arrays=clients.to_arrays(workload, workload.theta0),
        num_rounds=rounds,
        timeout=run.config.runtime.run_timeout,
        train_config=ConfigRecord(),
        evaluate_config=ConfigRecord(),
    )
    if not result.arrays:
        raise RunFailedError(f"{method.algorithm} returned no model; see Flower's log above")
    passed = time.monotonic() - begin
    for host in run.hosts:
        # What is nobody's gradient or evaluation on a host went into messages and waiting.
        busy = sum(seconds[p]["gradient"] + seconds[p]["evaluation"] for p in host.peers)
        for p in host.peers:
            seconds[p]["exchange"] = max(0.0, passed - busy)
    outcomes = {
        p: {
            **vars(r),
            "seconds": seconds[p],
            "iterations": run.iterations,
            "parameters": workload.theta0.size,
        }
        for p, r in last.items()
    }
    return _results(run, outcomes, progress, sum(p.numel() for p in workload.model.parameters()))


def _results(
    run: Run, outcomes: dict[int, dict[str, Any]], progress: Progress, model_parameters: int
) -> dict[str, Any]:
    missing = sorted(set(range(run.peers)) - outcomes.keys())
    if missing:
        raise RunFailedError(f"no scores from peers {missing}")
    peers = [
        {
            "peer": p,
            "name": "all" if run.pooled else run.graph.peer_names[p],
            "classes": run.classes[p],
            "images": run.images[p],
            "accuracy": o["accuracy"],
            "accuracy_unseen": o["accuracy_unseen"],
            "loss": o["loss"],
            "bytes_sent": o["bytes_sent"],
            "seconds": o["seconds"],
            "log": f"peers/peer-{p}.jsonl",
            "tail": f"peers/peer-{p}.safetensors",
        }
        for p, o in sorted(outcomes.items())
    ]
    values = run.config.to_mapping()
    return {
        **_head("completed", run.id, values),
        "iterations": run.iterations,
        "trainable_parameters": outcomes[0]["parameters"],
        "model_parameters": model_parameters,
        "peers": peers,
        "summary": {key: summary([p[key] for p in peers]) for key in ("accuracy", "accuracy_unseen", "loss")},
        "consensus_error": sketch.consensus_error([sketch.decode(o["sketch"]) for o in outcomes.values()]),
        "history": progress.history(),
        "graph": {**run.graph.to_dict(), "digest": run.graph.digest},
        "partition": run.partition,
        "hosts": [list(host.peers) for host in run.hosts],
        "config": values,
        "versions": run.versions,
        "error": None,
    }
