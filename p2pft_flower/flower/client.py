"""The ClientApp: answers hellos, runs the peers of its plan, and plays Flower's clients for strategies."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from p2pft_flower.algorithms import ALGORITHMS
from p2pft_flower.config import LearningConfig, RunConfig
from p2pft_flower.errors import ConfigError, DataError, P2PFTError, cause_of
from p2pft_flower.flower import cluster, messages
from p2pft_flower.flower.changed_images import changes_of, keep_lists
from p2pft_flower.flower.host_process import run_host
from p2pft_flower.flower.logs import kept_warnings, log_to_stream
from p2pft_flower.flower.messages import HostReport
from p2pft_flower.flower.metrics import served
from p2pft_flower.flower.site import FLOWERS, Site
from p2pft_flower.flower.versions import versions
from p2pft_flower.host.callbacks import require_watchers
from p2pft_flower.host.early import EarlyBulletin
from p2pft_flower.host.host import Host, PeerFailedError
from p2pft_flower.host.own_problem import Plugged
from p2pft_flower.host.wires import Access
from p2pft_flower.keeping.folders import look_at
from p2pft_flower.keeping.lines import Outcome, Report
from p2pft_flower.keeping.progress import told_evaluations
from p2pft_flower.keeping.rejoining import kept_plan, save_plan
from p2pft_flower.keeping.resuming import look_through
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.early_import import import_meanwhile, without_collecting
from p2pft_flower.learning.model.model_facts import (
    feature_facts,
    light_digest,
    model_facts,
    require_class_texts,
)
from p2pft_flower.learning.settings import check_privacy, require_accountant_here
from p2pft_flower.plan import Plan, config_digest
from p2pft_flower.plugins import is_reference
from p2pft_flower.resources import home
from p2pft_flower.transport import Prober
from p2pft_flower.typed import plain

if TYPE_CHECKING:
    # torch and timm take seconds to import: Flower loads the app in processes that never train.
    from p2pft_flower.host.problem import Problem
    from p2pft_flower.learning.workload import Workload

__all__ = ["make_client_app", "rejoin"]

log = logging.getLogger(__name__)

OWN_PARTITION = "problem"
"""The results' ``partition`` of a run with a ``problem`` of the user's own, which brings the peers' data."""


@lru_cache(maxsize=2)
def holdings(config: LearningConfig, n: int, pooled: str, peers: tuple[int, ...] | None) -> Holdings:
    """Look at the peers' images once for each process; the parameters are those of :class:`Holdings`."""
    return Holdings(config, n, pooled=pooled, peers=peers)


@lru_cache(maxsize=2)
def workload(config: LearningConfig, n: int, pooled: str, peers: tuple[int, ...] | None) -> Workload:
    """Build a workload once for each process, since Flower sends many messages to the same process.

    ``pooled`` is empty, or the objective (``uniform`` or ``examples``) if one peer holds all images.
    """
    with without_collecting():
        from p2pft_flower.learning.workload import Workload

    held = holdings(config, n, pooled, peers)
    return Workload(config, n, pooled=pooled, peers=peers, holdings=held)


@lru_cache(maxsize=2)
def plugged(config: LearningConfig, n: int, peers: tuple[int, ...] | None) -> Plugged:
    """Build a problem of the user's own once for each process."""
    config.check_problem()
    return Plugged(config, n, peers)


@dataclass(frozen=True)
class _Facts:
    """Facts of this machine's peers and their images, in numbers and names only."""

    data: dict[int, dict[str, Any]]
    """Fields of :class:`~p2pft_flower.learning.data.peer_data.PeerData`, by peer."""
    partition: str
    """The run-config's ``partition``, with ``auto`` resolved."""
    classes: tuple[str, ...]
    """Names of all classes."""
    warnings: tuple[str, ...]
    """Warnings that the look at the data gave."""
    notes: tuple[str, ...]
    """Lines on images that were left out, or changed to become pictures."""
    pixels: dict[int, dict[str, Any]]
    """Fields of :class:`~p2pft_flower.learning.data.survey.Statistics`, by peer with images of its own."""
    frozen: dict[str, str]
    """Facts that must be the same on all machines; empty in simulation, which has one machine."""
    width: int
    """Numbers of a sample, of a dataset of features; 0 of images."""
    model: str
    """Digest of what decides the model. If two machines have the same digest, they have the same model; if
    not, both build the model, and the coordinator compares the built models. Empty in simulation, and for a
    problem of the user's own, whose model digest is in ``frozen``."""


@lru_cache(maxsize=2)
def _facts(config: LearningConfig, n: int, pooled: str, peers: tuple[int, ...] | None) -> _Facts:
    """Look at the images once for each process; every later hello gets the warnings of that look again."""
    if config.problem:
        return _facts_of_own(config, n, peers)
    with kept_warnings() as warnings:
        check_privacy(config, pooled=bool(pooled))
        require_accountant_here(config)
        model = {} if peers is None or config.of_features else model_facts(config)
        held = holdings(config, n, pooled, peers)
        width = held.dataset.width
        if config.of_features:
            made = feature_facts(config, held.classes, width)  # refuses texts that do not fit
            model = {} if peers is None else made
        else:
            require_class_texts(config, held.classes)
        there = range(len(held.partition))
        data = {p: vars(held.data(p)) for p in peers or there if p in there}
        held.test_positions  # noqa: B018 - test images that cannot be used shall be named now
        lines = held.notes  # refuses images of which it is not clear what is black and white
        sites = (peers is not None or config.sited) and not pooled
        own = data if sites and not config.dp_clip else ()  # statistics would cost privacy, too
        pixels = {p: asdict(found) for p in own if (found := held.statistics(p)) is not None}
        dealt = peers is not None and not config.sited and not config.stream
        frozen = {"training images": held.dealt_digest} if dealt else {}
        if peers is not None:
            frozen["labels"] = "several an image" if held.several_labels else "one an image"
    notes = tuple(_noted(peer, line) for peer, line in lines)
    told = tuple(warnings)
    return _Facts(
        data,
        held.partition_spec,
        held.classes,
        told,
        notes,
        pixels,
        frozen,
        width,
        light_digest(model) if model else "",
    )


def _facts_of_own(config: LearningConfig, n: int, peers: tuple[int, ...] | None) -> _Facts:
    """Return the facts of a problem of the user's own, which has samples, and no images or classes."""
    with kept_warnings() as warnings:
        own = plugged(config, n, peers)
        data: dict[int, dict[str, Any]] = {
            p: {
                "images": own.samples(p),
                "classes": (),
                "train_digest": own.data_digest(p),
                "test_digest": "",
                "pixel_range": "",
            }
            for p in own.here
        }
    frozen = {} if peers is None else {"model digest": own.model_digest}
    return _Facts(data, OWN_PARTITION, (), tuple(warnings), (), {}, frozen, 0, "")


def _noted(peer: int | None, line: str) -> str:
    """Return a note on images that were left out or changed, and log it on this machine."""
    note = f"{'the dataset' if peer is None else f'peer {peer}'}: {line}"
    log.info("%s", note)
    return note


def _peers_here(site: Site | None) -> tuple[int, ...] | None:
    """Return the peer whose data this machine has; None in simulation, where it has the data of all."""
    return None if site is None else (site.peer_id,)


def _learning(config: RunConfig, site: Site | None) -> LearningConfig:
    return config.learning if site is None else site.with_own_data(config.learning)


def make_client_app() -> ClientApp:
    """Return the ClientApp of the Flower app."""
    app = ClientApp()
    log_to_stream()

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        return messages.reply(message, {**_guarded(_hello, message, context), **_sender(context)})

    @app.query("preflight")
    def preflight(message: Message, context: Context) -> Message:
        return messages.reply(message, _guarded(_preflight, message, context))

    @app.train("peers")
    def train_peers(message: Message, context: Context) -> Message:
        told = HostReport()  # the answer has it also if the host fails
        body = _guarded(_train_peers, message, context, told)
        return messages.reply(message, {**body, "report": plain(told), **_sender(context)})

    @app.train("clients")
    def train_clients(message: Message, context: Context) -> Message:
        from p2pft_flower.flower import clients

        return clients.answer(message, clients.train, workload, Site.of(context.node_config))

    @app.evaluate("clients")
    def evaluate_clients(message: Message, context: Context) -> Message:
        from p2pft_flower.flower import clients

        return clients.answer(message, clients.evaluate, workload, Site.of(context.node_config))

    return app


def _guarded(handle: Any, *arguments: Any) -> dict[str, Any]:
    """Return ``{"ok": handle(*arguments)}``; if that raises, the error's text, cause and perhaps traceback.

    Nothing is raised, since Flower would hide the error behind a code.
    """
    try:
        return {"ok": handle(*arguments)}
    except (P2PFTError, PeerFailedError) as error:  # the latter's traceback stands in its peers' logs
        return {"error": str(error), "cause": cause_of(error).name}
    except Exception as error:
        return {
            "error": f"{type(error).__name__}: {error}",
            "cause": cause_of(error).name,
            "traceback": traceback.format_exc(),
        }


def _sender(context: Context) -> dict[str, Any]:
    """Return peer, address and machine of the SuperNode that answers, for errors.

    In simulation the machine alone, if Ray has a cluster of several nodes; else nothing. The node-config may
    be what is wrong, so nothing of it is relied upon.
    """
    given = context.node_config
    if given.keys() & FLOWERS:
        place = cluster.here()
        return {} if place is None else {"sender": {"machine": str(place)}}
    keys = {"peer": "peer-id", "site": "site-name", "address": "peer-address"}
    told = {**{name: given.get(key) for name, key in keys.items()}, "machine": platform.node()}
    return {"sender": {key: str(value)[:200] for key, value in told.items() if value is not None}}


def _hello(message: Message, context: Context) -> dict[str, Any]:
    """Return this node's answer to a hello: its peer, and facts of its data.

    The answer is held for a while, so that the coordinator can see how many nodes run at once.
    """
    begin = time.time()
    asked = messages.unpack(message)
    config = RunConfig.from_mapping(asked["config"])
    site = Site.of(context.node_config)
    here = _peers_here(site)
    name = config.method.algorithm
    if name in ALGORITHMS or is_reference(name):  # a strategy of Flower is watched by the coordinator
        require_watchers(config.runtime)
    own, fault = None, ""
    try:
        own = None if site is None else site.credentials()
    except ConfigError as error:  # told with all that the coordinator finds wrong, at this site and at others
        fault = str(error)
    images = ""
    facts = _Facts({}, "", (), (), (), {}, {}, 0, "")
    if here is None or 0 <= here[0] < asked["n"]:  # the coordinator refuses any other peer-id
        learning = _learning(config, site)
        facts = _facts(learning, asked["n"], asked["pooled"], here)
        if asked.get("build") and facts.model:
            built = workload(learning, asked["n"], asked["pooled"], here)
            images = built.images_line
            facts = dataclasses.replace(facts, frozen={**facts.frozen, **built.frozen_facts()})
    if site is None and asked["hold"] > 0 and not config.learning.problem:
        # A simulation's process trains next: it imports torch and timm while the coordinator hears of it.
        import_meanwhile()
    hold = asked["hold"] * (cluster.LONGER if site is None and cluster.here() is not None else 1)
    time.sleep(hold)  # not to synchronise: the overlap of these stretches is what is measured
    return {
        "begin": begin,
        "end": time.time(),
        "peer-id": None if here is None else here[0],
        "address": "" if site is None else site.peer_address,
        "site": "" if site is None else site.site_name,
        "versions": versions(),
        "cpus": os.cpu_count(),
        "federation": "" if own is None else own.federation,
        "certificate": "" if own is None else f"{own.facts.not_after:%Y-%m-%d}",
        "fault": fault,
        "insecure": site is not None and site.insecure,
        **vars(facts),
        "images": images,
        "kept": _kept(config, site),
        "changed": _changed(config, site, asked["n"]),
        "warnings": (*facts.warnings, *(() if own is None else own.warnings)),
    }


def _kept(config: RunConfig, site: Site | None) -> dict[str, Any] | None:
    """Return this site's checkpoints of the run that is to be resumed, as values for JSON.

    None if no run is to be resumed, and in simulation.
    """
    if site is None or not config.runtime.resume:
        return None
    return plain(look_through(site.resumed_folder(config.runtime.resume), site.peer_id))  # type: ignore[no-any-return]


def _changed(config: RunConfig, site: Site | None, n: int) -> dict[str, Any] | None:
    """Return the changes of this site's images since the run that is to be resumed, as values for JSON.

    None if no run is to be resumed, for a problem of the user's own, and in simulation, where the coordinator
    can look itself.
    """
    if site is None or not config.runtime.resume or config.learning.problem or site.peer_id >= n:
        return None
    held = holdings(_learning(config, site), n, "", (site.peer_id,))
    return plain(  # type: ignore[no-any-return]
        changes_of(site.peer_id, site.resumed_folder(config.runtime.resume), held)
    )


def _preflight(message: Message, context: Context) -> dict[str, Any]:
    """Return the findings on the links to the neighbours and on the folders that the run will write to."""
    asked = messages.unpack(message)
    site = Site.of(context.node_config)
    if site is None:
        raise ConfigError("a preflight looks at SuperNodes of a deployment; this one has no peer-id")
    addresses = {int(p): str(a) for p, a in asked["addresses"].items()}
    own = addresses.pop(site.peer_id)
    config = RunConfig.from_mapping(asked["config"])
    folder = site.output_folder(asked["run"], config.runtime.output_dir, config.runtime.name)
    folders = [look_at("output-dir", folder), look_at("home", home())]
    links = []
    if addresses:  # none where the certificates cannot be used, which the coordinator knows
        access = site.access()
        with Prober(
            asked["run"],
            site.peer_id,
            access.bind_address or own,
            addresses,
            credentials=access.credentials,
            insecure=access.insecure,
        ) as prober:
            links = prober.probe(asked["timeout"])
    return {
        "links": [asdict(link) for link in links],
        "folders": [asdict(f) for f in folders],
        "config": config_digest(config),
    }


def _host(plan: Plan, site: Site | None, *, met: Access | None = None, joining: bool = False) -> Host:
    """Return the host of ``plan``'s peers, ready to run here; ``met`` is its access in simulation."""
    config = plan.config
    learning, here = _learning(config, site), _peers_here(site)
    problem: Problem
    if learning.problem:
        problem = plugged(learning, plan.n, here)
    else:
        problem = workload(learning, plan.n, config.method.objective if plan.pooled else "", here)
    if "torch" in sys.modules:  # a problem of the user's own may need no torch
        import torch

        # Sums inside an operator depend on the number of threads that share them: θ is the same everywhere
        # only if that number is (invariant 2 of docs/architecture.md).
        torch.set_num_threads(config.runtime.threads)
    access = site.access() if site is not None else met or Access()
    return Host(plan, problem, access, joining=joining, tells=site is not None)


def rejoin(run: str, site: Site, folder: Path | None = None) -> tuple[Outcome, Path]:
    """Start a deployed run's peer of this machine again, while the others train, and return at its end.

    Parameters
    ----------
    run : str
        The run's id, or its name.
    site : Site
        The site's settings, as its SuperNode has them.
    folder : Path, optional
        The run's folder here; default: the site's folder for this run.

    Returns
    -------
    outcome : Outcome
        The peer's scores and other numbers at its end.
    folder : Path
        The run's folder.

    Raises
    ------
    P2PFTError
        When there is no such run here, when it has ended or runs already, or when data, model or certificates
        cannot be used; the message names the fault and its place.
    LostContactError
        When nobody has let the peer in before ``rejoin-deadline``.
    ExchangeStoppedError
        When the run was stopped.
    PeerFailedError
        When the peer's own code raised.
    """
    if folder is None:
        run, folder, note = site.found(run)
        if note:
            log.info("%s", note)
    folder = folder.expanduser().absolute()
    log.info("peer %d is to rejoin run %s: it reads its plan, its data and its model", site.peer_id, run)
    plan = dataclasses.replace(kept_plan(folder, run, site.peer_id), output_dir=str(folder))
    run = plan.run
    told = {} if plan.facts is None else plan.facts.versions
    if differing := [
        f"{p} {v} (the run has {told[p]})" for p, v in versions().items() if told.get(p, v) != v
    ]:
        log.warning("not the versions that the run began with: %s", ", ".join(differing))
    with EarlyBulletin(plan, joining=True) as early:
        host = _host(plan, site, joining=True)
        early.close()
        with served(site.metrics_address, run):
            (outcome,) = run_host(host, deployed=True)
    return outcome, folder


def _train_peers(message: Message, context: Context, told: HostReport) -> dict[str, Any]:
    """Run this host's peers for the whole run, and return their outcomes.

    All else that the coordinator is to know is put into ``told``, also if the host fails.
    """
    plan = Plan.from_json(messages.unpack(message)["plan"])
    site = Site.of(context.node_config)
    config = plan.config
    if site is not None:
        own = site.writable_folder(plan.run, config.runtime.output_dir, config.runtime.name)
        plan = dataclasses.replace(plan, output_dir=str(own))
        if plan.resume is not None:
            # By its id: the newest run of a name may be this one by now, by another host of this machine.
            by_path = Path(config.runtime.resume).is_absolute()
            kept = site.resumed_folder(config.runtime.resume if by_path else plan.resume.run)
            plan = dataclasses.replace(plan, resume=dataclasses.replace(plan.resume, folder=str(kept)))
        if plan.members:
            save_plan(plan)
    pooled = config.method.objective if plan.pooled else ""
    facts = partial(_shared_facts, config.learning, plan.n, pooled)
    with cluster.met(plan, facts) as (plan, met), EarlyBulletin(plan) as early:
        return _run_host(plan, site, met, told, early)


def _run_host(
    plan: Plan, site: Site | None, met: Access, told: HostReport, early: EarlyBulletin
) -> dict[str, Any]:
    """Make the host of a plan whose process has a bulletin, and run it as :func:`_train_peers` returns."""
    host, config = _host(plan, site, met=met), plan.config
    if not config.learning.problem:
        pooled = config.method.objective if plan.pooled else ""
        keep_lists(plan, holdings(_learning(config, site), plan.n, pooled, _peers_here(site)))
    early.close()
    try:
        with served("" if site is None else site.metrics_address, plan.run):
            outcomes = run_host(host, deployed=site is not None)
    finally:
        told.views, told.failures, told.seconds = host.views, host.failures, host.seconds
        told.heard = host.heard
        if site is not None:  # in simulation the coordinator can read the peers' journals
            told.evaluations = _evaluations(plan)
    return {"outcomes": plain(outcomes)}


def _shared_facts(learning: LearningConfig, n: int, pooled: str) -> dict[str, str]:
    """Return what must be the same on all nodes of a simulation's cluster, by name."""
    if learning.problem:
        return versions() | {"model digest": plugged(learning, n, None).model_digest}
    return versions() | {
        "the digest of the training images": holdings(learning, n, pooled, None).dealt_digest
    }


def _evaluations(plan: Plan) -> list[Report]:
    """Return the evaluations that a deployed host sends to the coordinator; none without a journal."""
    folder = Path(plan.output_dir) / "peers"
    try:
        return [e for p in plan.peers for e in told_evaluations(folder, p.peer, plan.n)]
    except DataError as error:  # the host may have failed for the same reason, which is to be told
        log.warning("the coordinator is not told of evaluations: %s", error)
        return []
