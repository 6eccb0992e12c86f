"""The coordinator's knowledge of a run, and the results that it makes of the peers' outcomes."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from p2pft_flower.algorithms.codecs import make_codec
from p2pft_flower.algorithms.compression import codec_step
from p2pft_flower.config import LearningConfig, MethodConfig, RunConfig
from p2pft_flower.errors import ConfigError, listed, printable
from p2pft_flower.facts import ChangedData, KnownImages, PeerFacts, ResumedFrom
from p2pft_flower.flower.nodes import HostAssignment, RunFailedError
from p2pft_flower.flower.unlike import unlike
from p2pft_flower.host.hearsay import HeardOf
from p2pft_flower.keeping.lines import Failed, Outcome
from p2pft_flower.keeping.progress import Progress
from p2pft_flower.keeping.retention import iterations_apart
from p2pft_flower.learning.data.by_column import names_by
from p2pft_flower.learning.data.names import differing_unseen
from p2pft_flower.plan import ResumePoint
from p2pft_flower.report.outcomes import Reached, how_far, run_results
from p2pft_flower.report.results import ViewRow, absent_at_start
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View
from p2pft_flower.transport import unix_address

__all__ = ["Run", "collect_results", "plan_run", "tell_plan", "unfinished_results"]

log = logging.getLogger("p2pft_flower")

_SAME_WEIGHTS = "give all peers the same weights file, and set trunk-dtype where machines choose differently"
_SAME_TEXT = "give all peers the same file of text-embeddings"
_SAME_PROBLEM = "give all peers the same module, of the same version, and the same model"
_SAME_IMAGES = "give all peers the same model, or set {} in the run-config"
_REMEDIES = {
    "image size": _SAME_IMAGES.format("image-size"),
    "crop": _SAME_IMAGES.format("crop-pct"),
    "interpolation": _SAME_IMAGES.format("interpolation"),
    "mean": _SAME_IMAGES.format("mean"),
    "deviation": _SAME_IMAGES.format("std"),
    "labels": "give all peers data with one class an image, or all with several labels",
    "features": "one model must have made the features of all sites",
    "training images": (
        "shares are dealt out by position, so give all peers the same images, in files of the same names and "
        "sizes, all readable or unreadable alike; or a folder for each peer (dataset = folder:/path-{peer})"
    ),
}
"""The remedy if sites differ in a frozen fact, by the fact's name."""


@dataclass(frozen=True)
class Run:
    """The coordinator's knowledge of a run once every node has answered its hello."""

    id: str
    config: RunConfig
    graph: Graph
    """The whole graph, with the peers that are not there."""
    view: View
    """The peers that are there, with the graph that they exchange over."""
    folder: Path
    """The folder of the results."""
    pooled: bool
    """Whether one peer holds the data of all."""
    exchanges: bool
    """Whether peers exchange anything with each other."""
    deployed: bool
    """Whether the peers run on SuperNodes of their own, not in a simulation."""
    hosts: list[HostAssignment]
    images: dict[int, int]
    """Number of training images of each peer."""
    classes: dict[int, list[str]]
    """Names of the classes that each peer holds images of."""
    class_names: list[str]
    """Names of all classes."""
    partition: str
    """The run-config's ``partition``, with ``auto`` resolved."""
    versions: dict[str, str]
    """Each package's version."""
    iterations: int
    """Iterations of the whole run."""
    epoch: int
    """Iterations of an epoch."""
    evaluate_every: int
    """Iterations between two evaluations."""
    resume: ResumePoint | None = None
    """The point from which the run goes on; None if it begins anew."""
    loss_weights: dict[int, float] | None = None
    """The factor of each peer's loss in the earlier run, if this run goes on from one."""
    codec_step: float = 0.0
    """γ of the exchanges with a codec; 0 without one."""
    images_line: str = ""
    """A line on the images that the models see, from the sites; empty if no site has built its model yet."""
    width: int = 0
    """Numbers of a sample, of a dataset of features; 0 of images."""
    known: dict[int, KnownImages] = field(default_factory=dict)
    """Digests that recognise each peer's images, as far as the answers have them."""
    changed: dict[int, ChangedData] = field(default_factory=dict)
    """The changes of the peers' images with which the run goes on; of no other peer."""
    certified: bool = False
    """Whether the peers have certificates."""
    site_names: dict[int, str] = field(default_factory=dict)
    """The name of each peer's site, if it has one."""

    def __post_init__(self) -> None:
        peers: dict[str, int] = {}
        for peer, name in self.names.items():
            if (other := peers.setdefault(name, peer)) != peer:
                raise RunFailedError(
                    f"peers {other} and {peer} are both called {name!r}: give each site a site-name of its "
                    "own in --node-config"
                )

    @property
    def checkpoint_every(self) -> int:
        """Iterations between two checkpoints; negative: none."""
        return iterations_apart(self.config.runtime.checkpoint_every, self.evaluate_every)

    @property
    def resumed_from(self) -> ResumedFrom | None:
        """The run that this one goes on from, for the results; None if it begins anew."""
        if self.resume is None:
            return None
        return ResumedFrom(self.resume.run, min(self.resume.iterations.values()))

    @property
    def peers(self) -> tuple[int, ...]:
        """The peers that train, ascending; if the data is pooled, the one peer that has the data of all."""
        return (0,) if self.pooled else self.view.peers

    @property
    def missing(self) -> tuple[int, ...]:
        """The peers of the graph that were not there at the start, ascending."""
        return tuple(p for p in range(self.graph.n) if p not in self.view.peers)

    def address(self, peer: int) -> str:
        """Return the address at which neighbours reach ``peer``.

        Raises
        ------
        ConfigError
            When neither the peer's node-config nor the graph has an address.
        """
        if not self.deployed:
            return unix_address(self.id, peer)  # the graph's addresses are for a deployment
        address = next(host.address for host in self.hosts if host.peers == (peer,))
        if not address:
            raise ConfigError(
                f"peer {peer} has no address: set peer-address in its --node-config, or give the peer an "
                f"address in the topology {self.graph.name}"
            )
        return address

    @property
    def names(self) -> dict[int, str]:
        """The name of each peer that has one: its site's, else the graph's, if that is not its number.

        If neither sites nor graph name any peer, the values of ``partition = by:COLUMN`` are the names.
        """
        drawn = {p: name for p, name in enumerate(self.graph.peer_names) if name != str(p)}
        return {} if self.pooled else {**drawn, **self.site_names} or names_by(self.partition)

    @property
    def addresses(self) -> dict[int, str]:
        """The addresses of a deployment's peers, ascending, without peers that have none."""
        given = {p: host.address for host in self.hosts for p in host.peers if host.address}
        return dict(sorted(given.items())) if self.deployed else {}

    def about(self, peer: int) -> PeerFacts:
        """Return the facts of a peer that results have besides its scores."""
        name = "all" if self.pooled else self.names.get(peer, str(peer))
        known = self.known.get(peer, KnownImages(self.images[peer]))
        return PeerFacts(name, tuple(self.classes[peer]), known, data_changed=self.changed.get(peer))


def plan_run(
    run_id: str,
    config: RunConfig,
    graph: Graph,
    view: View,
    folder: Path,
    pooled: bool,
    exchanges: bool,
    gradients: int,
    hosts: list[HostAssignment],
    answers: dict[int, dict[str, Any]],
) -> Run:
    """Return the run that the coordinator's settings and the hosts' answers make together.

    Parameters
    ----------
    run_id : str
        Flower's id of the run.
    config : RunConfig
        The run's settings.
    graph : Graph
        The whole graph.
    view : View
        The peers that are there.
    folder : Path
        The folder of the results.
    pooled : bool
        Whether one peer holds the data of all.
    exchanges : bool
        Whether peers exchange anything with each other.
    gradients : int
        Gradients that a peer draws in an iteration.
    hosts : list of HostAssignment
        The run's hosts.
    answers : dict of int to dict
        The nodes' answers to hello, by node id.

    Raises
    ------
    RunFailedError
        When hosts run different versions, have data of different classes, or differ in a frozen fact, such as
        the model's weights or its image size.
    """
    told = [answers[host.node] for host in hosts]
    for host, answer in zip(hosts, told, strict=True):
        odd = {k: v for k, v in answer["versions"].items() if v != told[0]["versions"][k]}
        if odd:
            here = {k: told[0]["versions"][k] for k in odd}
            raise RunFailedError(
                f"peers {listed(host.peers)} run {odd}, peers {listed(hosts[0].peers)} run {here}: "
                "install the same versions"
            )
        if answer["classes"] != told[0]["classes"]:
            new = [c for c in answer["classes"] if c not in told[0]["classes"]]
            unseen = next(filter(None, (differing_unseen(c, told[0]["classes"]) for c in new)), "")
            raise RunFailedError(
                f"the classes differ: peers {listed(host.peers)} have {answer['classes']}, peers "
                f"{list(hosts[0].peers)} have {told[0]['classes']}{unseen}; give all peers the same classes "
                "(in folders, an empty one in train/ for a class that a peer does not hold; in tables, a row "
                "without an image)"
            )
    _check_frozen(config.learning, hosts, told)
    _tell_warnings(hosts, told)
    _tell_pixels(told)
    data = {int(p): d for answer in told for p, d in answer["data"].items()}
    images = {p: int(d["images"]) for p, d in data.items()}
    site_names = {a["peer-id"]: a["site"] for a in told if a["site"]}
    # An epoch: as many gradients as a peer's mean share of the data has batches.
    batches = math.ceil(sum(images.values()) / len(view.peers) / config.learning.batch_size)
    epoch = math.ceil(batches / gradients)
    iterations = config.runtime.iterations or math.ceil(config.runtime.epochs * batches / gradients)
    return Run(
        id=run_id,
        config=config,
        graph=graph,
        view=view,
        folder=folder,
        pooled=pooled,
        exchanges=exchanges,
        deployed=any(answer["peer-id"] is not None for answer in told),
        hosts=hosts,
        images=images,
        classes={p: list(d["classes"]) for p, d in data.items()},
        known={
            p: KnownImages(images[p], str(d["train_digest"]), str(d["test_digest"]), str(d["pixel_range"]))
            for p, d in data.items()
        },
        class_names=list(told[0]["classes"]),
        partition=told[0]["partition"],
        versions=told[0]["versions"],
        iterations=iterations,
        epoch=epoch,
        codec_step=_codec_step(config.method, view.graph),
        evaluate_every=config.runtime.evaluate_every or epoch,
        images_line=told[0]["images"],
        width=told[0]["width"],
        certified=any(answer["federation"] for answer in told),
        site_names=site_names,
    )


def _check_frozen(
    learning: LearningConfig, hosts: Sequence[HostAssignment], told: Sequence[dict[str, Any]]
) -> None:
    """Refuse hosts that differ in a frozen fact; name it, both hosts' peers, and the remedy."""
    other = _SAME_PROBLEM if learning.problem else _SAME_TEXT if learning.of_features else _SAME_WEIGHTS
    for host, answer in zip(hosts, told, strict=True):
        for what, value in answer["frozen"].items():
            if value != told[0]["frozen"][what]:
                raise RunFailedError(
                    f"{what} differs: peers {listed(host.peers)} have {value}, peers "
                    f"{listed(hosts[0].peers)} have {told[0]['frozen'][what]}; {_REMEDIES.get(what, other)}"
                )


def _codec_step(method: MethodConfig, graph: Graph) -> float:
    step = codec_step(make_codec(method.codec), method.codec_step, graph)
    if step:
        log.info(
            "codec %s: peers exchange differences of their vectors, codec-step %g%s",
            method.codec,
            step,
            "" if method.codec_step else " (chosen from the graph and the codec's error)",
        )
    if 0 < step < 1 and method.algorithm in ("dgd", "sgp"):  # all others are exact on any weights
        log.warning(
            "%s with codec-step %g comes to rest about as far from the optimum as without a codec and with "
            "learning-rate %g; p2pft reaches it with any codec",
            method.algorithm,
            step,
            method.learning_rate / step,
        )
    return step


def _tell_warnings(hosts: list[HostAssignment], told: list[dict[str, Any]]) -> None:
    """Log the warnings in the hosts' answers, each once, though all hosts may look at the same data."""
    peers: dict[str, list[int]] = {}
    for host, answer in zip(hosts, told, strict=True):
        for warning in answer["warnings"]:
            whose = peers.setdefault(warning, [])
            if answer["peer-id"] is not None and not warning.startswith(f"peer {host.peers[0]}"):
                whose.append(host.peers[0])
    for warning, whose in peers.items():
        several = f"peers {listed(whose)}: " if len(whose) > 1 else ""
        log.warning("%s", printable((several or f"peer {whose[0]}: " if whose else "") + warning))


def _tell_pixels(told: list[dict[str, Any]]) -> None:
    """Log how sites changed their images, and warn if two sites' pictures are unlike each other."""
    for note in dict.fromkeys(note for answer in told for note in answer["notes"]):
        log.info("%s", printable(note))
    statistics = {int(p): found for answer in told for p, found in answer["pixels"].items()}
    if warning := unlike(statistics):
        log.warning("%s", warning)


def tell_plan(run: Run) -> None:
    """Log the run's settings, and which host runs which peers."""
    c = run.config
    who = "1 pooled peer" if run.pooled else f"{len(run.peers)} peers"
    where = f"{len(run.hosts)} host{'s' if len(run.hosts) > 1 else ''} at once"
    learned = f"problem {c.learning.problem}"
    if not c.learning.problem:
        model = f"{c.learning.model} (weights: {c.learning.weights})"
        learned = (
            f"{'features' if c.learning.of_features else model}, tune {c.learning.tune}; "
            f"{c.learning.dataset}, partition {printable(run.partition)}"
        )
    log.info("%s: %s on graph %s, %s; %s", c.method.algorithm, who, run.view.graph.name, where, learned)
    if c.learning.weights == "none":
        log.warning(
            "weights = none: RANDOM weights, no pre-training; these figures say nothing about transfer"
        )
    if run.images_line:
        log.info("%s", printable(run.images_line))
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


def collect_results(
    run: Run,
    outcomes: dict[int, Outcome],
    progress: Progress,
    views: Sequence[ViewRow] = (),
    lost: str = "",
    elsewhere: Collection[int] = (),
    failures: Mapping[int, Failed] = MappingProxyType({}),
    heard: Mapping[int, HeardOf] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the results of a run that completed, as results.json has them, without ``seconds``.

    Parameters
    ----------
    run : Run
        The run.
    outcomes : dict of int to Outcome
        The outcomes of the peers that ended, by peer.
    progress : Progress
        Has the run's evaluations.
    views : sequence of ViewRow
        The run's changes of view.
    lost : str
        A text on the peers that are not in the last view, and on the peers ``elsewhere``; empty if there are
        none.
    elsewhere : collection of int
        Peers of the last view without an outcome here: their results are at their sites, or they failed at
        the end.
    failures : mapping of int to Failed
        The last lines of peers that have given up, as far as they are known.
    heard : mapping of int to HeardOf
        What the others have heard of peers that came back in another process.

    Raises
    ------
    RunFailedError
        When another peer of the last view has no outcome: without it the run has not completed.
    """
    live = views[-1]["peers"] if views else run.peers
    missing = sorted(set(live) - outcomes.keys() - set(elsewhere))
    if missing:
        raise RunFailedError(f"no scores from peers {missing}", views=views)
    absent = [absent_at_start(run.missing)] if run.missing else []
    told = "; ".join([*absent, *([lost] if lost else [])]) or None
    return _results(run, told, outcomes, progress, views, failures, set(elsewhere), heard)


def _came_back(heard: HeardOf) -> str:
    """Return how far a peer came whose new process replies to no coordinator, by the words of the others."""
    last = f"last heard of after iteration {heard.iteration}"
    if heard.stopped:
        return f"came back and was stopped with the others, {last}"
    return f"came back, {last}: its own files have its end"


def unfinished_results(
    run: Run,
    status: str,
    reason: str,
    outcomes: dict[int, Outcome],
    progress: Progress,
    views: Sequence[ViewRow] = (),
    failures: Mapping[int, Failed] = MappingProxyType({}),
    heard: Mapping[int, HeardOf] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return what is known of a run that was stopped or failed, as :func:`collect_results` does.

    ``status`` is ``stopped`` or ``failed``, ``reason`` the way in which the run ended.
    """
    return _results(run, reason, outcomes, progress, views, failures, heard=heard, status=status)


def _results(
    run: Run,
    missing: str | None,
    outcomes: dict[int, Outcome],
    progress: Progress,
    views: Sequence[ViewRow],
    failures: Mapping[int, Failed],
    elsewhere: Collection[int] = (),
    heard: Mapping[int, HeardOf] = MappingProxyType({}),
    status: str | None = None,
) -> dict[str, Any]:
    reached = {}
    for peer in sorted(set(run.peers) - outcomes.keys()):
        failed = failures.get(peer) if peer not in heard else None  # else of an earlier life
        if peer in heard:
            state = _came_back(heard[peer])
        elif peer in elsewhere:
            state = "it is not known here how it came to its end: its own files have that"
        else:
            state = how_far(peer, views, failed)
        lost = bool(views) and peer not in views[-1]["peers"]
        reached[peer] = Reached(state, progress.last(peer), failed, lost)
    return run_results(
        total=1 if run.pooled else run.graph.n,
        missing=missing,
        run_id=run.id,
        config=run.config.to_mapping(),
        iterations=run.iterations,
        outcomes=outcomes,
        about={p: run.about(p) for p in run.peers},
        history=progress.history(),
        graph={
            **run.graph.to_dict(),
            "digest": run.graph.digest,
            "added_edges": [list(edge) for edge in run.view.added_to(run.graph)],
        },
        partition=run.partition,
        hosts=[host.peers for host in run.hosts],
        versions=run.versions,
        resumed_from=run.resumed_from,
        views=views,
        reached=reached,
        status=status,
    )
