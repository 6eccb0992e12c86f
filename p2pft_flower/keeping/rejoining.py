"""What a deployed host keeps so that it can be started again: its plan; and whether it was interrupted."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from p2pft_flower.errors import Cause, ConfigError, DataError
from p2pft_flower.keeping.bulletins import bulletins
from p2pft_flower.keeping.folders import read_private, replacing
from p2pft_flower.keeping.journal import by_run, read_whole_lines
from p2pft_flower.keeping.lines import AnyLine, Failed, Outcome
from p2pft_flower.keeping.run_folders import Found, begun_by_journal, split_name
from p2pft_flower.keeping.running import running
from p2pft_flower.plan import Plan

__all__ = ["interrupted", "kept_plan", "last_place", "plan_file", "save_plan"]

_OVER = (Cause.STOPPED.name, Cause.HEARSAY.name, Cause.RUN.name)
"""Causes of a failure after which nobody trains the run any more."""

_LARGEST = 2**29
"""The most bytes of a plan: the plan of a run of 4096 peers has their whole graph."""

log = logging.getLogger("p2pft_flower")


def plan_file(folder: Path, peer: int) -> Path:
    """Return the path of the plan of ``peer``'s host in a run's folder."""
    return folder / "peers" / f"peer-{peer}.plan.json"


def save_plan(plan: Plan) -> None:
    """Keep a host's plan in its run's folder, readable for this user only, in one piece.

    Raises
    ------
    DataError
        If the plan cannot be written; the message names file and remedy.
    """
    path = plan_file(Path(plan.output_dir), plan.peers[0].peer)
    try:
        with replacing(path) as partial:  # on disk: it is for machines that lost their power
            partial.write_text(plan.to_json(), encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{path}: the plan, with which the peer could be started again, cannot be written "
            f"({error.strerror}); choose another output-dir, or make room"
        ) from error


def kept_plan(folder: Path, run: str, peer: int) -> Plan:
    """Return the plan with which ``peer`` can be started again while the others train.

    Parameters
    ----------
    folder : Path
        The run's folder on this machine.
    run : str
        The run's id, or its name.
    peer : int
        The peer.

    Raises
    ------
    ConfigError
        If there is no such run here, the plan is another peer's or run's, or the peer trains already or has
        come to its end.
    DataError
        If the plan or the peer's journal cannot be read.
    """
    path = plan_file(folder, peer)
    try:
        plan = Plan.from_json(read_private(path, _LARGEST))
    except FileNotFoundError as error:
        raise ConfigError(_not_here(folder, run, peer)) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); is it another user's?") from error
    except DataError as error:
        raise DataError(f"{path}: {error}; the run goes on without peer {peer}") from error
    if run not in {plan.run, plan.config.runtime.name or plan.run} or [p.peer for p in plan.peers] != [peer]:
        whose = ", ".join(str(p.peer) for p in plan.peers)
        raise ConfigError(
            f"{path} is of peer {whose} of run {plan.run}, not of peer {peer} of run {run}: a file was moved"
        )
    run = plan.run
    for there in running(run):
        if peer in there.peers:
            raise ConfigError(
                f"peer {peer} of run {run} trains already, in process {there.pid}; where that hangs, "
                f"end it first: kill -KILL {there.pid}"
            )
    last = _last_line(folder, peer)
    if isinstance(last, Outcome):
        raise ConfigError(f"peer {peer} of run {run} has trained to its end: its model is in {path.parent}")
    if isinstance(last, Failed) and last.cause in (Cause.STOPPED.name, Cause.HEARSAY.name):
        log.warning(
            "run %s was stopped when peer %d was there last (%s): p2pft run --resume goes on with one that "
            "nobody trains any more",
            run,
            peer,
            last.error,
        )
    return plan


def last_place(peer: int, run: str | None = None) -> Found | None:
    """Return the last run in which a process of this machine that was killed trained ``peer``.

    It is known by the process's bulletin, which is there for a day, and tells the run's folder also if the
    run-config chose that.

    Parameters
    ----------
    peer : int
        The peer.
    run : str, optional
        The id or the name of the only run to look for.
    """
    killed = [b for b in bulletins(run) if peer in b.own and not b.alive]
    last = max(killed, key=lambda b: b.begun, default=None)
    if last is None or not plan_file(Path(last.folder), peer).is_file():
        return None
    return Found(last.run, Path(last.folder), f"run {last.run} was trained here, in {last.folder}")


def interrupted(above: Path, peer: int, folder: Path | None = None) -> Found | str:
    """Return the run that ``peer`` trained last on this machine, if it was interrupted; else say why not.

    It was interrupted if the peer's last life has no end, as after a power cut, or if the peer left the
    others for a reason of its own site, as when the machine is shut down. Earlier runs do not count: this
    one began after them.

    Parameters
    ----------
    above : Path
        The folder that holds the runs' folders.
    peer : int
        The peer.
    folder : Path, optional
        The run's own folder, where it is not below ``above``; then only this run is looked at.

    Returns
    -------
    Found or str
        The run; or a sentence for people.

    Raises
    ------
    DataError
        If the journal or the plan of that run cannot be read.
    """
    chosen = _last_folder(above, peer) if folder is None else folder
    if chosen is None:
        return (
            f"no run of peer {peer} is below {above}; if the run-config chose another folder (output-dir, or "
            "p2pft run --out), give that one with --output-dir"
        )
    if not _journal(chosen, peer).is_file():
        return f"no run of peer {peer} is in {chosen}"
    run = _run_in(chosen, peer)
    over = _why_over(chosen, run, peer)
    return over or Found(run, chosen, f"run {run} was interrupted ({chosen})")


def _last_folder(above: Path, peer: int) -> Path | None:
    """Return the folder of the run that ``peer`` began last; None if there is none."""
    folders = [path.parent.parent for path in above.glob(f"*/peers/peer-{peer}.jsonl")]
    if (last := last_place(peer)) is not None:
        folders.append(last.folder)
    return max(folders, key=lambda one: (begun_by_journal(one) or 0.0, one.name), default=None)


def _why_over(folder: Path, run: str, peer: int) -> str:
    """Return why the peer's last run cannot be rejoined; empty if it was interrupted."""
    if there := [there for there in running(run) if peer in there.peers]:
        return f"peer {peer} trains run {run}, in process {there[0].pid}"
    last, which = _last_line(folder, peer), f"run {run}, the last one of peer {peer},"
    if isinstance(last, Outcome):
        return f"{which} was trained to its end"
    if isinstance(last, Failed) and last.cause in _OVER:
        return f"{which} is over: {last.error}"
    return "" if plan_file(folder, peer).exists() else f"{which} keeps no plan to rejoin it with"


def _journal(folder: Path, peer: int) -> Path:
    return folder / "peers" / f"peer-{peer}.jsonl"


def _run_in(folder: Path, peer: int) -> str:
    """Return the id of the run in a folder: the journal's, or that of the folder's name if it has none."""
    lives = by_run(read_whole_lines(_journal(folder, peer))[0])
    return lives[-1].run.run if lives else split_name(folder.name)[1]


def _not_here(folder: Path, run: str, peer: int) -> str:
    if not folder.is_dir():
        why = (
            f"there is no {folder}: is that the site's output-dir, and was the run here? If the run-config "
            "chose its folder (output-dir, or p2pft run --out), give that one with --output-dir"
        )
    elif others := sorted(p.name for p in folder.glob("peers/peer-*.plan.json")):
        why = f"{folder} has {', '.join(others)}: is peer-id right?"
    else:
        why = f"{folder} has no plan of it: none is kept where on-failure = 'stop', or nothing is exchanged"
    return f"peer {peer} of run {run} cannot be started again here: {why}"


def _last_line(folder: Path, peer: int) -> AnyLine | None:
    """Return the last line of the peer's last life; None if there is none after the first."""
    path = _journal(folder, peer)
    if not os.path.lexists(path):
        return None
    lives = by_run(read_whole_lines(path)[0])
    return lives[-1].lines[-1] if lives and lives[-1].lines else None
