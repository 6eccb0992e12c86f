"""A run in which the peers train among themselves: start hosts, listen to progress, gather outcomes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from flwr.app import Message
from flwr.serverapp import Grid

from p2pft_flower.algorithms.objective import peer_weights
from p2pft_flower.errors import Cause, DataError, listed
from p2pft_flower.facts import GraphName, RunFacts
from p2pft_flower.flower import messages, nodes
from p2pft_flower.flower.cluster import Register
from p2pft_flower.flower.ending import STOPPED, ResultsOnce
from p2pft_flower.flower.hearing import Looking, listen
from p2pft_flower.flower.messages import HostReport
from p2pft_flower.flower.nodes import HostAssignment, RunFailedError
from p2pft_flower.flower.office import Office
from p2pft_flower.flower.run import Run, collect_results, unfinished_results
from p2pft_flower.flower.signals import before_obeying
from p2pft_flower.host.ending import others_go_on
from p2pft_flower.host.hearsay import HeardOf
from p2pft_flower.host.session import remote_edges
from p2pft_flower.host.wires import Access
from p2pft_flower.keeping.event_files import ConsensusFile
from p2pft_flower.keeping.journal import read_whole_lines
from p2pft_flower.keeping.lines import Evaluation, Failed, Outcome, Report, ViewChange
from p2pft_flower.keeping.progress import Progress
from p2pft_flower.keeping.retention import files_kept
from p2pft_flower.keeping.running import running
from p2pft_flower.plan import Neighbourhood, Plan, greetings, terms_digest
from p2pft_flower.report.collected import rows_of
from p2pft_flower.report.results import ViewRow, log_name, lost_on_the_way, merged_views
from p2pft_flower.transport import (
    Credentials,
    digest_of,
    new_key,
    stop_run,
)
from p2pft_flower.typed import converted

__all__ = ["run_peers"]

log = logging.getLogger("p2pft_flower")

MAX_NOTES = 1000
"""Notes of a run that are shown; later ones are left out."""

RETRY_AFTER = 1.0
"""Seconds between two tries to send peers a stop."""


def run_peers(
    grid: Grid, run: Run, ending: ResultsOnce, own: Credentials | None = None, hears: Access | None = None
) -> dict[str, Any]:
    """Start every host with one message for the whole run, listen to progress, and return the results.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    run : Run
        The run.
    ending : ResultsOnce
        Gets the reason that the results have if a signal ends this process.
    own : Credentials, optional
        The coordinator's certificates, which it shows to stop peers that have certificates.
    hears : Access, optional
        The certificates with which the coordinator listens to the peers' progress; None: it does not listen.

    Returns
    -------
    dict
        The content of results.json, without ``seconds``.

    Raises
    ------
    RunFailedError
        When a host failed and the others did not go on without it, or scores are missing at the end.
    DataError
        When a host's reply cannot be used.
    """
    n = 1 if run.pooled else run.graph.n
    events = ConsensusFile(run.folder) if run.config.runtime.tensorboard else None
    completed = {} if events is None else {"completed": events.add}
    progress = Progress(n, run.iterations, lambda line: log.info("%s", line), run.missing, **completed)
    parent = os.getppid()
    with contextlib.ExitStack() as stack:
        office = stack.enter_context(Office.of(run))
        hosts = () if run.deployed else [host.peers for host in run.hosts]
        register = stack.enter_context(Register(run.id, hosts, run.folder))
        address = "" if hears is None else listen(stack, run, hears, progress, office, register.observer)
        key, look_key = new_key(), new_key()

        def stop(number: signal.Signals) -> bool:
            ending.reason = _stop_peers(run, key, own, number, parent)
            return True  # the coordinator is to end in any case

        begin = time.monotonic()
        ending.known = lambda: {  # by what the observer has heard
            **unfinished_results(run, "stopped", ending.reason or STOPPED, {}, progress),
            "seconds": time.monotonic() - begin,
        }
        with before_obeying(stop):
            if run.deployed and not address:
                log.info("the peers train; each site's log, and p2pft status there, tell how they get on")
                if own is not None and run.certified:
                    office.check_with(own.checked_signatures())
                if own is not None or not run.certified:  # else no peer would let the coordinator in
                    stack.enter_context(Looking(run, look_key, own, progress, office))
            keys = (digest_of(key), digest_of(look_key)) if run.deployed else ("", "")
            told = _train(grid, run, register, address, *keys)
    others = [heard.report for heard in told.heard.values() if heard.report is not None]
    for evaluation in [*told.evaluations, *others, *_on_this_machine(run)]:
        progress.fill(evaluation)
    if events is not None:
        events.close(progress.history())
    views, seconds = told.views, told.seconds or time.monotonic() - begin
    if views:
        progress.go_on_with(views[-1]["peers"])  # these alone are in its last evaluations
    if told.failure is not None:
        status = "stopped" if told.failure.stopped else "failed"
        known = unfinished_results(
            run, status, str(told.failure), told.outcomes, progress, views, told.last_lines, told.heard
        )
        told.failure.results = {**known, "seconds": seconds}
        raise told.failure
    # A peer that had done all iterations and gone is not in a later view, and was not lost.
    lost = sorted(set(run.peers) - set(views[-1]["peers"]) - told.outcomes.keys()) if views else []
    for failure in told.failures:
        log.warning("the others have gone on without it: %s", failure)
    reasons = [lost_on_the_way(views, lost)] if lost else []
    for peers, failure in told.at_the_end:
        reasons.append(f"peers {listed(peers)} were lost at the end: {failure}")
    if told.elsewhere:
        reasons.append(
            f"peers {told.elsewhere} came back through p2pft rejoin and trained on with the others: their "
            "results are at their sites, and p2pft collect puts all together"
        )
    without = [*told.elsewhere, *(p for peers, _ in told.at_the_end for p in peers)]
    results = collect_results(
        run, told.outcomes, progress, views, "; ".join(reasons), without, told.last_lines, told.heard
    )
    return {**results, "seconds": seconds}


def _on_this_machine(run: Run) -> list[Report]:
    """Return the evaluations in the peers' journals, of a simulation: the observer may have missed some."""
    found: list[Report] = []
    for peer in () if run.deployed else run.peers:
        if (log_file := run.folder / log_name(peer)).is_file():
            lines, _ = read_whole_lines(log_file)
            found += [line.report for line in lines if isinstance(line, Evaluation)]
    return found


def _stop_peers(
    run: Run, key: bytes, own: Credentials | None, number: signal.Signals, parent: int
) -> str | None:
    """Send the peers of a deployment a stop if their run was stopped, not if the ServerApp merely ends.

    ``flwr stop`` and Ctrl-C raise SIGINT here. So does the death of the SuperLink, but then ``parent``, the
    process that started this one, is gone. A machine ends its services by SIGTERM.

    Returns the reason for the results; None if the peers train on, so that nothing is to be written.
    """
    if not run.deployed:
        return STOPPED
    if number != signal.SIGINT or os.getppid() != parent:
        log.warning(
            "run %s: the coordinator ends (%s); the peers train on by themselves", run.id, number.name
        )
        return None
    log.info("run %s was stopped: telling the peers", run.id)
    left = _tell_until_heard(run, key, own)
    reason = "the run was stopped by flwr stop or Ctrl-C"
    if left:
        why = "; ".join(f"peer {p}: {problem}" for p, problem in left.items())
        which = f"at any one site, p2pft stop {run.id} stops all"
        if not run.exchanges:
            which = f"at the site of each, p2pft stop {run.id} stops it alone, for nothing is exchanged"
        log.error("run %s: peers %s train on; %s. Not told: %s", run.id, listed(left), which, why)
        reason += f", but peers {listed(left)} could not be told and train on; {which}"
    return reason


def _tell_until_heard(run: Run, key: bytes, own: Credentials | None) -> dict[int, str]:
    """Send the peers a stop; return the peers that train on, each with the reason why it was not reached.

    A host listens only once it has its model, so nobody may hear the first try. Flower leaves the time: it
    ends a ServerApp 5 s after its own handler of SIGINT is called, and that is called after this function.
    """
    reason, patience = "the run was stopped (flwr stop)", run.config.runtime.meet_timeout
    deadline = time.monotonic() + patience
    left = dict.fromkeys(run.peers, "it has no address: set peer-address in its --node-config")
    waiting = False
    while True:
        asked = {p: address for p, address in run.addresses.items() if p in left}
        missed = stop_run(run.id, key, asked, reason, own)
        heard = asked.keys() - missed.keys()
        left = {p: missed.get(p, why) for p, why in left.items() if p not in heard}
        if heard and run.exchanges:  # a peer that has the stop passes it on to all others
            return {}
        for there in running(run.id):
            ended = [p for p in there.peers if p in left]
            if not ended:
                continue
            try:
                there.stop_run()
            except OSError as error:
                here = f"nor can its process {there.pid} here: {error}"
                left |= {p: f"{left[p]}; {here}" for p in ended}
                continue
            log.warning("peers %s could not be told at their address: their process here is ended", ended)
            if run.exchanges:  # that process passes the stop on to all others
                return {}
            left = {p: why for p, why in left.items() if p not in ended}
        if not left or time.monotonic() >= deadline:
            return left
        if not waiting:
            log.warning(
                "peers %s do not hear it yet: trying for %g s (meet-timeout); %s",
                list(left),
                patience,
                next(iter(left.values())),
            )
            waiting = True
        time.sleep(RETRY_AFTER)


class _Told(NamedTuple):
    """The content of the hosts' replies."""

    outcomes: dict[int, Outcome]
    """Each peer's outcome."""
    evaluations: list[Report]
    """Evaluations in the replies of deployed peers."""
    views: list[ViewRow]
    """Changes of view, each once, ascending."""
    last_lines: dict[int, Failed]
    """The last line of each peer's journal whose host has given up."""
    seconds: float
    """The longest time of a host from its plan to its end."""
    failure: RunFailedError | None
    """The failure of the run; None if it has completed, perhaps with some of the peers."""
    failures: list[RunFailedError]
    """Failures of hosts without which the others have gone on."""
    elsewhere: list[int]
    """Peers that failed and came back in another process, which does not reply to the coordinator."""
    heard: dict[int, HeardOf]
    """What the others have heard of each of these."""
    at_the_end: list[tuple[tuple[int, ...], RunFailedError]]
    """Peers of each host that failed by itself after all had done all iterations, and the host's failure."""


def _train(
    grid: Grid, run: Run, register: Register, observer: str, stop_digest: str, look_digest: str
) -> _Told:
    """Run every host's peers, and return the content of the hosts' replies.

    Raises
    ------
    DataError
        When a reply cannot be used.
    """
    sent = []
    for host in run.hosts:
        plan = replace(_host_plan(run, host, observer, stop_digest, look_digest), register=register.name)
        message = Message(
            messages.pack({"plan": plan.to_json()}),
            dst_node_id=host.node,
            message_type=messages.TRAIN_PEERS,
            ttl=run.config.runtime.run_timeout,
        )
        sent.append(message)
    grace = run.config.runtime.peer_timeout + 60
    # A host that completes has waited for the others; a host that fails alone does not show when they end.
    ends = nodes.is_failure if not _survives(run) else _ends_all
    replies = nodes.collect(
        grid,
        sent,
        timeout=run.config.runtime.run_timeout,
        grace=grace,
        ends=ends,
        needless=partial(_lost_hosts, run),
        tell=register.tell,
    )
    outcomes: dict[int, Outcome] = {}
    reports: dict[int, HostReport] = {}
    failures: list[tuple[tuple[int, ...], RunFailedError]] = []
    for host in run.hosts:
        who = f"peers {listed(host.peers)}" if len(host.peers) > 1 else f"peer {host.peers[0]}"
        if host.node not in replies:
            failures.append((host.peers, RunFailedError(f"{who}: its SuperNode has not replied")))
            continue
        if (report := _report(replies[host.node], who)) is not None:
            reports[host.node] = report
            if not run.deployed and (machine := nodes.machine_of(replies[host.node])):
                who += f" on {machine}"
        try:
            facts = nodes.body_of(replies[host.node], who)
        except RunFailedError as failure:
            failures.append((host.peers, failure))
            continue
        outcomes |= {o.peer: o for o in converted(facts["outcomes"], list[Outcome], who)}
    views = [view for report in reports.values() for view in report.views]
    last = max(views, key=lambda view: view.number, default=None)
    members = set(run.peers if last is None else last.peers)
    # A host that completes has waited for all peers of the last view, also for those that came back.
    failed = {p for peers, _ in failures for p in peers}
    elsewhere = sorted(failed & members & {p for view in views for p in view.joined})
    counted = [(peers, f) for peers, f in failures if not members.difference(elsewhere).isdisjoint(peers)]
    # The others have completed, so a member that failed by itself, as by a full disk, has failed later.
    at_the_end = [(peers, f) for peers, f in counted if _spares(f.ended_by, _survives(run))]
    first: RunFailedError | None = None
    if failures and (not outcomes or len(at_the_end) < len(counted)):
        first = _says_most(f for _, f in counted or failures)
        if not first.stopped:  # by those that were there; what was survived before is no reason for a stop
            first = _says_most(f for _, f in failures)
    changes, first = _merged(views, run.peers, first)
    return _Told(
        outcomes=outcomes,
        evaluations=[e for report in reports.values() for e in report.evaluations],
        views=changes,
        last_lines={line.peer: line for report in reports.values() for line in report.failures},
        seconds=max((report.seconds for report in reports.values()), default=0.0),
        failure=first,
        failures=[f for peers, f in failures if (peers, f) not in at_the_end],
        elsewhere=elsewhere,
        heard={p: _heard(p, reports.values()) for p in elsewhere},
        at_the_end=at_the_end,
    )


def _merged(
    told: Iterable[ViewChange], peers: Iterable[int], failure: RunFailedError | None
) -> tuple[list[ViewRow], RunFailedError | None]:
    """Return the changes of view, each once, and the failure; hosts that tell of different views are one."""
    try:
        changes = merged_views(told, peers)
    except DataError as error:
        told_before, cause = ("", None) if failure is None else (f"{failure}; ", failure.ended_by)
        return [], RunFailedError(f"{told_before}{error}", cause)
    if failure is not None:
        failure.views = changes
    return changes, failure


def _report(reply: Message, who: str) -> HostReport | None:
    """Return what a host tells beside its outcomes; None if Flower has replied in its place."""
    return None if reply.has_error() else converted(messages.unpack(reply)["report"], HostReport, who)


def _heard(peer: int, reports: Iterable[HostReport]) -> HeardOf:
    """Return the newest that hosts have heard of a peer; one that knows of its stop is enough."""
    told = [heard for report in reports for heard in report.heard if heard.peer == peer]
    newest = max((h.report for h in told if h.report is not None), key=lambda r: r.iteration, default=None)
    return HeardOf(
        peer=peer,
        iteration=max((h.iteration for h in told), default=0),
        stopped=any(h.stopped for h in told),
        report=newest,
    )


def _lost_hosts(run: Run, replies: Mapping[int, Message]) -> set[int]:
    """Return the nodes of hosts that are in no view any more when the run has ended for the others.

    So are hosts that came back and were stopped with the others, who tell of it: a new process replies to
    nobody. Flower takes a minute to notice that a ClientApp was killed, and that is not waited for.
    """
    if not any(_ends_all(reply) for reply in replies.values()):
        return set()  # a host that is lost may come back
    told = [_report(reply, f"node {node}") for node, reply in replies.items()]
    views = [view for report in told if report is not None for view in report.views]
    if not views:
        return set()
    stopped = {heard.peer for report in told if report is not None for heard in report.heard if heard.stopped}
    there = set(max(views, key=lambda view: view.number).peers) - stopped
    return {host.node for host in run.hosts if there.isdisjoint(host.peers)}


def _survives(run: Run) -> bool:
    """Tell whether the others may go on when a host is lost."""
    return run.exchanges and len(run.hosts) > 1 and run.config.runtime.on_failure != "stop"


def _spares(cause: Cause | None, views_change: bool) -> bool:
    """Tell whether the others go on without a host that ended for ``cause``; None: the host gave no cause."""
    return cause is not None and others_go_on(cause, views_change=views_change)


def _ends_all(reply: Message) -> bool:
    """Tell whether a host's reply means that the others are to end soon."""
    if reply.has_error():
        return False
    body = messages.unpack(reply)
    return "error" not in body or not _spares(Cause[body["cause"]], views_change=True)


_SAYS_MOST = (Cause.OWN, Cause.RUN, Cause.LOST, Cause.HEARSAY, Cause.STOPPED, None)
"""Causes, in the order in which they explain why a run failed; None: no reply came, or none with a cause."""


def _says_most(failures: Iterable[RunFailedError]) -> RunFailedError:
    return min(failures, key=lambda failure: _SAYS_MOST.index(failure.ended_by))


def _host_plan(run: Run, host: HostAssignment, observer: str, stop_digest: str, look_digest: str) -> Plan:
    """Return the plan of one host; the three texts are attributes of the plan."""
    if run.pooled:
        peers: tuple[Neighbourhood, ...] = (Neighbourhood(0, {0: 1.0}, {0: 1.0}),)
        weights = {0: 1.0}
    else:
        peers = tuple(Neighbourhood.of(run.view, p, run.codec_step) for p in host.peers)
        # If nothing is exchanged, no peer is weighed against another.
        objective = run.config.method.objective if run.exchanges else "uniform"
        factors = peer_weights(objective, [run.images[p] for p in run.peers])
        weights = {p: float(f) for p, f in zip(run.peers, factors, strict=True)}
    if run.loss_weights is not None:
        weights = {p: run.loss_weights[p] for p in weights}
    leaving, entering = remote_edges(peers, always=run.config.runtime.transport == "grpc")
    around = (
        {p for edge in leaving | entering for p in edge} | set(host.peers) if leaving | entering else set()
    )
    addresses = {p: address for p, address in run.addresses.items() if p in host.peers}
    # Any two peers may become neighbours when others are lost.
    around |= set(run.peers) if around and _survives(run) else set()
    addresses |= {p: run.address(p) for p in sorted(around)} if run.exchanges else {}
    return Plan(
        run=run.id,
        config=run.config,
        n=run.graph.n,
        greetings=greetings(run.view, [host.peers for host in run.hosts]) if run.exchanges else 1,
        terms=terms_digest(run.config, run.view, run.iterations),
        peers=peers,
        loss_weights=weights,
        iterations=run.iterations,
        evaluate_every=run.evaluate_every,
        output_dir=str(run.folder),
        addresses=addresses,
        graph=run.graph.to_dict() if around and _survives(run) else {},
        members={min(h.peers): h.peers for h in run.hosts} if around and _survives(run) else {},
        hosts={min(h.peers): h.peers for h in run.hosts},
        names=run.names,
        observer=observer,
        pooled=run.pooled,
        facts=RunFacts(
            GraphName(run.graph.name, run.graph.digest, run.view.added_to(run.graph)),
            run.peers,
            run.partition,
            run.versions,
            run.pooled,
            run.resumed_from,
        ),
        peer_facts={
            p.peer: replace(
                run.about(p.peer),
                rows=rows_of(run.graph, range(run.graph.n) if run.pooled else [p.peer]),
            )
            for p in peers
        },
        stop_digest=stop_digest,
        look_digest=look_digest,
        checkpoint_every=run.checkpoint_every,
        checkpoint_files=files_kept(
            run.config.runtime.checkpoints_kept,
            run.checkpoint_every,
            run.view.graph.lead if run.exchanges else None,
        ),
        resume=run.resume,
        codec_step=run.codec_step,
        rounds=run.view.graph.diameter if run.exchanges and run.config.learning.agrees else 0,
    )
