"""The coordinator's part in resuming a run: find the iteration, and check that the run is the same one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.flower.changed_images import Changes, accepted, changes_of
from p2pft_flower.flower.run import Run
from p2pft_flower.flower.strategies import is_strategy
from p2pft_flower.keeping.about import PeerAbout, ServerAbout
from p2pft_flower.keeping.checkpoints import SERVER
from p2pft_flower.keeping.resuming import (
    Kept,
    KeptView,
    config_differences,
    data_differences,
    given_up,
    image_differences,
    look_through,
    newest_common,
    place_differences,
    refuse,
)
from p2pft_flower.keeping.run_folders import find_run
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.plan import ResumePoint
from p2pft_flower.report.results import default_output_dir, runs_folder
from p2pft_flower.typed import Settings, converted

__all__ = [
    "by_id",
    "check_length",
    "earlier_run",
    "known_length",
    "no_extension_alone",
    "resumed",
    "resumed_folder",
]

log = logging.getLogger("p2pft_flower")


def resumed_folder(resume: str) -> Path:
    """Return the folder, on this machine, of the run that ``resume`` names by its id, name or folder."""
    path = Path(resume).expanduser()
    if path.is_absolute():
        return path
    found = find_run(runs_folder(), resume)
    return default_output_dir(resume) if found is None else found.folder


def by_id(resume: str) -> tuple[str, str]:
    """Return the id of the run on this machine that a run-config's ``resume`` names, and what to say of it.

    What to say is empty unless ``resume`` is a name; an id, a path and what is not here are returned as they
    are.
    """
    if not resume or Path(resume).expanduser().is_absolute():
        return resume, ""
    found = find_run(runs_folder(), resume)
    return (resume, "") if found is None else (found.run, found.note)


def earlier_run(folder: Path) -> PeerAbout | ServerAbout | None:
    """Return the facts that a run and its continuation must share, from a checkpoint in ``folder``.

    None if no checkpoint there is in good state.

    Raises
    ------
    DataError
        When a folder cannot be read.
    """
    named = (
        path.name.removeprefix("peer-") for path in sorted((folder / "peers").glob("peer-*.checkpoints"))
    )
    peers = [int(p) for name in named if (p := name.removesuffix(".checkpoints")).isdecimal()]
    for peer in (SERVER, *peers):
        if (found := look_through(folder, peer)).views:
            return found.newest.about
    return None


def known_length(about: PeerAbout | ServerAbout, config: RunConfig) -> int | None:
    """Return the length in iterations of a run with ``config``, without a look at the run's data.

    Parameters
    ----------
    about : PeerAbout or ServerAbout
        The facts of an earlier run, from :func:`earlier_run`.
    config : RunConfig
        The settings of the run that is to go on from there.

    Returns
    -------
    int or None
        None if the run counts in epochs, and the earlier run does not say how long an epoch is, a stream may
        have made an epoch longer, or an iteration may draw several gradients.
    """
    earlier, now = RunConfig.from_mapping(_known(about.config)).runtime, config.runtime
    if (earlier.epochs, earlier.iterations) == (now.epochs, now.iterations):
        return about.iterations
    if now.iterations:
        return now.iterations
    if config.learning.stream or config.method.algorithm_options:
        return None
    if not earlier.iterations:
        return about.iterations // earlier.epochs * now.epochs
    if isinstance(about, ServerAbout) or earlier.evaluate_every:  # neither shows what an epoch is
        return None
    return about.evaluate_every * now.epochs


def resumed(run: Run, answers: Mapping[int, Mapping[str, Any]]) -> Run:
    """Return ``run``, going on from the newest checkpoints of the run that its ``resume`` names.

    A run without ``resume`` is returned as it is, and so is one of Flower's strategies, whose server keeps
    the checkpoints.

    Parameters
    ----------
    run : Run
        The run as if it were new.
    answers : mapping
        The nodes' answers to hello, by node id; in a deployment, ``kept`` has each peer's checkpoints.

    Raises
    ------
    ConfigError
        When the earlier run is not the same one; the message lists the differences.
    DataError
        When the peers have no checkpoint in common, or checkpoints of several runs, or there is no such run.
    """
    config = run.config
    if not config.runtime.resume or is_strategy(config.method.algorithm):
        return run
    kept = _kept(run, answers)
    there = [one for one in kept if one.views]
    ids = sorted({one.run for one in there})
    name = ids[0] if len(ids) == 1 else config.runtime.resume
    if len(ids) > 1:
        told = "; ".join(f"peer {one.peer}: run {one.run or 'none'}" for one in kept)
        raise DataError(
            f"resume = {config.runtime.resume!r}: the peers' checkpoints are of several runs: {told}"
        )
    if not there:
        newest_common(kept, exchanges=run.exchanges)  # raises an error that says that each has nothing
    fitting = [_of_this_graph(run, one) for one in kept]
    compared = {
        one.peer: fits.among(run.peers) or one.among(run.peers) or one.newest
        for one, fits in zip(kept, fitting, strict=True)
        if one.views
    }
    first = compared[there[0].peer].of_peer
    iterations, every = _length(run, first)
    differences = config_differences(first.config, config.to_mapping())
    for in_view in compared.values():
        if set(in_view.live) != set(run.peers):
            differences.append(f"peers: {list(in_view.live)} in the checkpoint, {list(run.peers)} now")
    differences += check_length(config, first.iterations, iterations)
    try:
        view, point = newest_common(fitting, exchanges=run.exchanges)
    except DataError:
        found = _own_differences(run, compared, _changes(run, answers, compared))
        refuse(name, differences + found)  # settings first: they can be changed
        raise
    compared = {one.peer: one.views[view] for one in kept}
    changes = _changes(run, answers, compared)
    refuse(name, differences + _own_differences(run, compared, changes))
    odd = {k: v for k, v in first.versions.items() if v != run.versions.get(k)}
    if odd:
        log.warning(
            "run %s was begun with %s, now there are %s: it goes on, but not bit for bit",
            name,
            odd,
            {k: run.versions.get(k) for k in odd},
        )
    _tell_begin(name, point, iterations)
    if later := given_up(kept, view):
        log.warning(
            "run %s: all its peers go on from the newest iteration that they all have in its graph; what "
            "was done since then without some peers or links is given up: %s",
            name,
            "; ".join(later),
        )
    digests = {one.peer: one.views[view].digests[point[one.peer]] for one in kept}
    return replace(
        run,
        iterations=iterations,
        evaluate_every=every,
        changed=accepted({p: one.of_peer.known for p, one in compared.items()}, run, changes),
        # If a stream has grown, the weights would be others.
        loss_weights={one.peer: compared[one.peer].of_peer.loss_weight for one in kept},
        resume=ResumePoint(name, str(resumed_folder(config.runtime.resume)), point, digests),
    )


def _tell_begin(name: str, point: Mapping[int, int], iterations: int) -> None:
    """Log the iteration from which each peer of run ``name`` goes on, and whether any is left to be done."""
    begin = min(point.values())
    log.info(
        "run %s goes on from iteration %s",
        name,
        begin if len(set(point.values())) == 1 else ", ".join(f"{k} (peer {p})" for p, k in point.items()),
    )
    if begin >= iterations:
        log.warning(
            "run %s had done all its %d iterations: nothing is left to train, and it is only saved anew; "
            "p2pft run --resume %s --extend with more epochs or iterations lengthens it",
            name,
            iterations,
            name,
        )


def _of_this_graph(run: Run, kept: Kept) -> Kept:
    """Return ``kept`` without views in which links were cut: the peer had other neighbours or weights."""
    if not run.exchanges:
        return kept
    row, column = run.view.row(kept.peer), run.view.column(kept.peer)
    views = {
        v: one for v, one in kept.views.items() if not place_differences(kept.peer, one.of_peer, row, column)
    }
    return replace(kept, views=views)


def _kept(run: Run, answers: Mapping[int, Mapping[str, Any]]) -> list[Kept]:
    """Return each peer's checkpoints, ascending by peer; those of a simulation are read on this machine."""
    resume = run.config.runtime.resume
    if run.deployed:
        kept = [
            converted(answers[host.node]["kept"], Kept, f"what peers {list(host.peers)} have kept")
            for host in run.hosts
        ]
        return sorted(kept, key=lambda one: one.peer)
    folder = resumed_folder(resume)
    if not (folder / "peers").is_dir():
        raise DataError(
            f"resume = {resume!r}: there is no run in {folder} (no folder peers); give the id of a run in "
            "P2PFT_HOME, or the absolute path of its folder"
        )
    return [look_through(folder, peer) for peer in run.peers]


def _length(run: Run, about: PeerAbout) -> tuple[int, int]:
    """Return the run's iterations, and its iterations between two evaluations.

    Each is the earlier run's unless its settings have changed: an epoch of a stream that has grown would be
    longer.
    """
    earlier, now = RunConfig.from_mapping(_known(about.config)).runtime, run.config.runtime
    same = (earlier.epochs, earlier.iterations) == (now.epochs, now.iterations)
    iterations = about.iterations if same else run.iterations
    alike = earlier.evaluate_every == now.evaluate_every
    return iterations, about.evaluate_every if alike else run.evaluate_every


def _known(config: Settings) -> Settings:
    """Return ``config`` without the keys that this version lacks; those are reported as differences."""
    known = RunConfig().to_mapping()
    return {key: value for key, value in config.items() if key in known}


def check_length(config: RunConfig, before: int, now: int) -> list[str]:
    """Return the reasons why a run of ``before`` iterations may not get ``now`` of them; empty if it may."""
    told = f"iterations: {before} in the checkpoint, {now} now"
    if now < before:
        return [f"{told} (a run may become longer, not shorter)"]
    if now > before and not config.runtime.extend:
        return [f"{told} (extend = true, or p2pft run --extend, lengthens a run)"]
    if now > before and config.method.schedule == "cosine":
        return [f"{told} (schedule = cosine: its earlier learning rates follow from the length, too)"]
    return []


def _changes(
    run: Run, answers: Mapping[int, Mapping[str, Any]], compared: Mapping[int, KeptView]
) -> dict[int, Changes]:
    """Return what is known of the changes of the images of those peers whose images have changed.

    The sites of a deployment have told it; in a simulation the images are on this machine.
    """
    config = run.config
    now = config.to_mapping()
    other = [
        peer
        for peer, one in compared.items()
        if (before := one.of_peer.known) is not None and image_differences(before, run.about(peer).known, now)
    ]
    if run.deployed:
        told = {host.peers: answers[host.node]["changed"] for host in run.hosts}
        return {p: converted(told[p,], Changes, f"peer {p}'s changes") for p in other if told[p,]}
    if not other or config.learning.problem:
        return {}
    held = Holdings(
        config.learning, run.graph.n, pooled=config.method.objective if run.pooled else "", peers=None
    )
    folder = resumed_folder(config.runtime.resume)
    return {peer: changes_of(peer, folder, held) for peer in other}


def _own_differences(run: Run, compared: Mapping[int, KeptView], changes: Mapping[int, Changes]) -> list[str]:
    """Return differences of the peers' graph and data from the earlier run's, one a line."""
    return [
        told
        for peer, one in compared.items()
        for told in _peers_differences(run, peer, one.of_peer, changes.get(peer, Changes()))
    ]


def _peers_differences(run: Run, peer: int, about: PeerAbout, changes: Changes) -> list[str]:
    row, column = ({peer: 1.0}, {peer: 1.0}) if run.pooled else (run.view.row(peer), run.view.column(peer))
    found = place_differences(peer, about, row, column)
    digest = None if about.graph is None else about.graph.digest
    same = digest == run.graph.digest
    if found and same:
        found.append("these links were cut, and no checkpoint in which all peers had all links is left")
    elif not same and not found:
        found.append(f"graph: digest {digest} in the checkpoint, {run.graph.digest} now")
    if about.partition != run.partition:
        found.append(f"partition: {about.partition} in the checkpoint, {run.partition} now")
    known, now = run.about(peer).known, run.config.to_mapping()
    return found + data_differences(peer, about.known, known, about.config, now, changes.told)


def no_extension_alone(config: RunConfig) -> None:
    """Refuse ``extend`` without ``resume``.

    Raises
    ------
    ConfigError
        When ``extend`` is set and ``resume`` is empty.
    """
    if config.runtime.extend and not config.runtime.resume:
        raise ConfigError("extend = true with an empty resume: name the run that is to become longer")
