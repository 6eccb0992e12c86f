"""The ServerApp: the coordinator. It starts the peers, collects numbers, and never sees θ, τ or data.

Two exceptions: a server-based strategy aggregates models, by its nature; and the peers' reports hold a sketch
of θ, 128 random sums (docs/architecture.md tells what such a sketch reveals).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from p2pft_flower.algorithms import ALGORITHMS, check_graph, gradients_per_step
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.flower import greeting, nodes
from p2pft_flower.flower.ending import ResultsOnce
from p2pft_flower.flower.logs import PREFLIGHT_PASSED, log_to_stream, status_line
from p2pft_flower.flower.method import make_method
from p2pft_flower.flower.nodes import RunFailedError
from p2pft_flower.flower.peer_run import run_peers
from p2pft_flower.flower.preflight import preflight
from p2pft_flower.flower.resume import by_id, no_extension_alone, resumed
from p2pft_flower.flower.run import plan_run, tell_plan
from p2pft_flower.flower.signals import before_obeying
from p2pft_flower.flower.strategies import (
    is_strategy,
    make_strategy,
    refuse_method_keys,
    refuse_own_problem,
    unknown_algorithm,
)
from p2pft_flower.flower.strategy_run import run_strategy
from p2pft_flower.flower.trust import (
    find_coordinators,
    find_distrust,
    observer_access,
    require_usable,
)
from p2pft_flower.host.callbacks import require_watchers
from p2pft_flower.host.wires import Access
from p2pft_flower.keeping.event_files import require_tensorboard
from p2pft_flower.keeping.run_folders import in_use
from p2pft_flower.learning.settings import check_learning
from p2pft_flower.plugins import is_reference
from p2pft_flower.report.results import default_output_dir, require_place, take_place, write_results
from p2pft_flower.report.tables import run_table, view_lines
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import scheduled
from p2pft_flower.topology.views import View

__all__ = ["make_server_app"]

log = logging.getLogger("p2pft_flower")


def make_server_app() -> ServerApp:
    """Return the ServerApp of the Flower app."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        log_to_stream()
        run_id = str(context.run_id)
        ending = ResultsOnce(run_id, context.run_config)
        try:
            config = _by_id(RunConfig.from_mapping(context.run_config))
            folder = ending.folder = _output_dir(config, run_id)
            with before_obeying(ending.was_stopped):  # in a simulation this is a thread, which gets no signal
                results = _run(grid, config, run_id, folder, ending)
        except Exception as error:
            _tell_failure(error, run_id, ending)
            raise
        if not ending.claim():
            return  # the results have the reason already
        if results is None:
            log.info("preflight passed; nothing was trained (preflight-only)")
            log.info("%s", status_line(run_id, PREFLIGHT_PASSED))
            return
        results |= ending.times()
        log.info("%s", status_line(run_id, results["status"], results["error"]))
        path = write_results(folder, results)
        log.info("%s", run_table(results))
        log.info("results: %s", path)

    return app


def _tell_failure(error: Exception, run_id: str, ending: ResultsOnce) -> None:
    """Log why a run did not complete, and write its results."""
    # Flower prints the traceback of what is raised; these lines are for people.
    reason = str(error) if isinstance(error, P2PFTError) else f"{type(error).__name__}: {error}"
    failure = error if isinstance(error, RunFailedError) else RunFailedError(reason)
    if failure.stopped:
        log.error("%s", status_line(run_id, "stopped", reason))
    else:
        log.error("run %s failed: %s", run_id, reason)
    for line in view_lines(failure.views) if failure.results is None else ():  # else the table has them
        log.error("%s", line)
    if ending.folder is not None and ending.claim():
        status = "stopped" if failure.stopped else "failed"
        path = ending.write(status, reason, failure.views, failure.results)
        if failure.results is not None:
            log.info("%s", run_table(failure.results))
        log.error("what there is was written to %s", path)


def _by_id(config: RunConfig) -> RunConfig:
    """Return ``config`` with the id in place of a name in ``resume``, if that run is on this machine.

    This is decided once, before the new run, which may have the same name, has a folder.
    """
    run, note = by_id(config.runtime.resume)
    if note:
        log.info("%s", note)
    return replace(config, runtime=replace(config.runtime, resume=run))


def _output_dir(config: RunConfig, run_id: str) -> Path:
    chosen = config.runtime.output_dir
    require_place(chosen)
    folder = Path(chosen).expanduser() if chosen else default_output_dir(run_id, config.runtime.name)
    take_place(folder)
    return folder


def _check_watchers(config: RunConfig, *, strategy: bool) -> None:
    """Refuse TensorBoard or a callback that the coordinator needs and does not have.

    Only runs of Flower's strategies are watched here: of other methods each host is watched by itself.
    """
    if strategy:
        require_watchers(config.runtime)
    elif config.runtime.tensorboard:
        require_tensorboard()


def _run(
    grid: Grid, config: RunConfig, run_id: str, folder: Path, ending: ResultsOnce
) -> dict[str, Any] | None:
    no_extension_alone(config)
    graph = scheduled(Graph.load(config.runtime.topology), config.method.schedule_graph)
    name = config.method.algorithm
    strategy = is_strategy(name)
    exchanges = True
    pooled = False
    gradients = 1
    if not strategy:
        if name not in ALGORITHMS and not is_reference(name):
            raise unknown_algorithm(name)
        method = make_method(config.method)
        check_graph(method, graph)
        gradients = gradients_per_step(method)
        pooled, exchanges = bool(getattr(method, "pooled", False)), bool(method.phases)
        if config.method.strategy_options:
            raise ConfigError(
                f"strategy-options = {config.method.strategy_options!r}: "
                f"algorithm {name!r} is none of Flower's"
            )
    else:
        make_strategy(config.method, graph.n)  # refuse wrong options before anything starts
        refuse_method_keys(config.method, config.learning)
        refuse_own_problem(config)
    _check_watchers(config, strategy=strategy)
    check_learning(config.learning, graph.n, pooled=pooled)

    config, answers = greeting.greet_by_names(grid, config, graph, pooled=pooled)
    hosts = nodes.assign_hosts(answers, graph.n, config.runtime.transport, pooled=pooled)
    if any(answer["peer-id"] is not None for answer in answers.values()):
        hosts = nodes.with_addresses(hosts, graph)
    there = {answer["peer-id"] for answer in answers.values()}
    view = View.whole(graph) if there == {None} else View.without(graph, set(range(graph.n)) - there)
    if added := view.added_to(graph):
        log.warning(
            "without peers %s the graph would fall apart; new neighbours (sender to receiver): %s",
            sorted(set(range(graph.n)) - there),
            ", ".join(f"{j} to {i}" for j, i in added),
        )
    links = exchanges and not strategy and there != {None}
    distrust = find_distrust(view, hosts, answers) if links else require_usable(hosts, answers)
    if strategy and len(view.peers) < graph.n:
        raise ConfigError(
            f"peers {sorted(set(range(graph.n)) - there)} are not there, and algorithm = {name!r} needs all: "
            "min-peers is for methods without a server"
        )
    if not strategy:
        check_graph(method, view.graph)
    answers = greeting.compare_models(grid, config, graph.n, answers, meet=exchanges and not strategy)
    run = plan_run(run_id, config, graph, view, folder, pooled, exchanges, gradients, hosts, answers)
    run = resumed(run, answers)
    tell_plan(run)
    own = None
    if not strategy:
        own, distrust = find_coordinators(answers, distrust, preflight=links)
    if run.deployed and run.exchanges and not strategy:
        preflight(grid, run, answers, distrust)
    elif config.runtime.preflight_only:
        raise ConfigError(
            "preflight-only = true: a preflight looks at the links between SuperNodes of a deployment, "
            "and this run has none"
        )
    if config.runtime.preflight_only:
        return None
    hears = observer_access(config, answers, own) if run.deployed and not strategy else Access()
    with in_use(folder):
        return run_strategy(grid, run) if strategy else run_peers(grid, run, ending, own, hears)
