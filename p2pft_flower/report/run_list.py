"""The runs in a folder: what each was and how it ended, by its results or its peers' journals; removal."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from p2pft_flower.errors import Cause, ConfigError, DataError
from p2pft_flower.keeping.checkpoints import SERVER, checkpoint_folder
from p2pft_flower.keeping.event_files import EVENTS
from p2pft_flower.keeping.journal import read_whole_lines
from p2pft_flower.keeping.lines import AnyLine, Evaluation, Failed, LastRound, Outcome, Round, Run, Start
from p2pft_flower.keeping.progress import scored
from p2pft_flower.keeping.run_folders import at_rest, begun_by_journal, split_name
from p2pft_flower.report.preflight import PREFLIGHT_FILE
from p2pft_flower.report.results import FILE, PEERS, read_results, summary
from p2pft_flower.typed import read_object

__all__ = ["RunRecord", "is_run", "named_runs", "record_of", "remove_run", "runs_in"]

OWN_FILES = (FILE, "results.partial", PREFLIGHT_FILE, "preflight.partial", "reproduce.json", "compare.json")
"""The files of a run beside the folders :data:`PEERS` and of the server's checkpoints."""

_OF_A_PEER = re.compile(r"peer-\d+\..*")
"""Names of a run's files in :data:`PEERS`."""

_BEGINNING = re.compile(rb'\s*\{\s*"schema":\s*"p2pft\.results/')
"""How results begin."""

_LATEST = 2.0**36
"""The latest time of a file, Unix seconds, far in the future: calendars do not go on for ever."""

CLOSED = ("completed", "failed", "stopped")
"""How the status of results.json begins."""


@dataclass(frozen=True)
class RunRecord:
    """A run, as its folder tells of it; later versions only add fields.

    Attributes
    ----------
    folder : str
        The run's folder.
    run, name : str
        The run's id; its name, empty if it has none.
    method, graph, model : str
        The run-config's ``algorithm``; the graph's name; the model, or the problem of the user's own. Empty
        if this is not known.
    peers : int or None
        Number of peers of the graph; None if it is not known.
    status : str
        As in results.json; without it ``training`` (a process of this machine works on it), ``trained`` (its
        peers here have come to their end), ``failed``, ``stopped`` or ``broken-off``; ``damaged`` if its
        files cannot be read.
    told : str
        The status in words, with the reason or how far it came.
    accuracy : float or None
        Mean over the peers here of their newest accuracy, 0..1; None if there is none.
    bytes : int
        Size of its files.
    begun, ended : float or None
        Unix seconds; None if this is not known, or the run is still going on.
    """

    folder: str
    run: str
    name: str = ""
    method: str = ""
    graph: str = ""
    model: str = ""
    peers: int | None = None
    status: str = "damaged"
    told: str = ""
    accuracy: float | None = None
    bytes: int = 0
    begun: float | None = None
    ended: float | None = None


def is_run(folder: Path) -> bool:
    """Tell whether a folder is that of a run: it holds results, peers' journals or plans, or checkpoints."""
    server = checkpoint_folder(folder, SERVER)
    found = ((folder / PEERS).glob("peer-*.jsonl"), (folder / PEERS).glob("peer-*.plan.json"))
    if any(itertools.chain(*found, server.glob("iteration-*.safetensors"))):
        return True
    # Other programs have a results.json, too.
    if str(_key(folder / FILE, "schema")).startswith("p2pft.results/") or _cut_off(folder / FILE):
        return True
    return _key(folder / PREFLIGHT_FILE, "run") == split_name(folder.name)[1]


def _key(path: Path, key: str) -> object:
    """Return the value of a key in a file of JSON; None without the key or the file."""
    if not path.is_file():  # to read a pipe would never end
        return None
    try:
        return read_object(path.read_bytes(), path).get(key)
    except (OSError, DataError):
        return None


def _cut_off(path: Path) -> bool:
    """Tell whether a file begins as results do, whatever became of the rest."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _BEGINNING.match(file.read(100)) is not None


def runs_in(above: Path) -> list[RunRecord]:
    """Return the runs in the folders below ``above``, or ``above`` itself if it is a run's folder.

    The run that began last comes first.

    Raises
    ------
    ConfigError
        When the folder cannot be read.
    """
    try:
        folders = [above] if is_run(above) else [f for f in sorted(above.iterdir()) if f.is_dir()]
    except FileNotFoundError:
        folders = []
    except OSError as error:
        raise ConfigError(f"{above}: cannot be read ({error.strerror}); give a folder of runs") from error
    records = [record_of(folder) for folder in folders if _readable(folder)]
    return sorted(records, key=lambda record: (-(record.begun or 0.0), record.folder))


def _readable(folder: Path) -> bool:
    try:
        return is_run(folder)
    except OSError:  # another user's
        return False


def named_runs(above: Path, wanted: str) -> list[Path]:
    """Return the folders of all runs that ``wanted`` names; an id or a folder counts before a name.

    Parameters
    ----------
    above : Path
        The folder that holds the runs' folders.
    wanted : str
        An id, a name, or a run's folder: what it is called in ``above``, or a path.

    Raises
    ------
    ConfigError
        When ``above`` cannot be read.
    """
    records = runs_in(above)
    found = [one for one in records if wanted in (one.run, Path(one.folder).name)]
    if found := found or [one for one in records if wanted and one.name == wanted]:
        return [Path(one.folder) for one in found]
    path = Path(wanted).expanduser()
    return [path] if os.path.lexists(path) else []


def record_of(folder: Path) -> RunRecord:
    """Return what a run's folder tells of it."""
    name, run = split_name(folder.name)
    record = RunRecord(str(folder), run, name, bytes=_size(folder))
    if (folder / FILE).is_file():
        try:
            return _by_results(record, read_results(folder))
        except (DataError, KeyError, TypeError, ValueError, OverflowError, AttributeError, OSError) as error:
            return replace(record, told=f"damaged: {folder / FILE} cannot be read ({error})")
    try:
        return _by_journals(record)
    except DataError as error:
        return replace(record, told=f"damaged: {error}")


def _by_results(record: RunRecord, results: Mapping[str, Any]) -> RunRecord:
    config, folder = results.get("config") or {}, Path(record.folder)
    status, peers = str(results["status"]), results.get("peers")
    weights = (results.get("graph") or {}).get("weights")
    reason = f": {results['error']}" if results.get("error") else ""
    told = status.replace("-", " ") + reason
    if not status.startswith(CLOSED):
        raise ValueError(f"status {status!r}")
    accuracy = (results.get("summary") or {}).get("accuracy")
    begun, ended = results.get("begun"), results.get("ended")
    begun = begun_by_journal(folder) if begun is None else begun
    return replace(
        record,
        run=str(results.get("run") or folder.name),
        name=str(results.get("name") or ""),
        method=str(results.get("algorithm") or ""),
        graph=str((results.get("graph") or {}).get("name") or config.get("topology") or ""),
        model=_model(config),
        peers=len(weights) if weights else None if peers is None else len(peers),
        status=status,
        told=told,
        accuracy=None if accuracy is None else _number("summary.accuracy.mean", accuracy["mean"], 1.0),
        begun=None if begun is None else _number("begun", begun),
        ended=(folder / FILE).stat().st_mtime if ended is None else _number("ended", ended),
    )


def _number(key: str, value: Any, most: float = _LATEST) -> float:
    """Return the number that a key has.

    Raises
    ------
    ValueError
        If it is not from 0 to ``most``, or no number.
    """
    if not 0 <= float(value) <= most:
        raise ValueError(f"{key} is {value!r}")
    return float(value)


def _model(config: Mapping[str, Any]) -> str:
    return str(config.get("problem") or config.get("model") or "")


def _by_journals(record: RunRecord) -> RunRecord:
    """Return ``record`` with what the journals of the peers here tell: no results are here (yet).

    Raises
    ------
    DataError
        When a journal cannot be read.
    """
    folder = Path(record.folder)
    told = [read_whole_lines(path)[0] for path in sorted((folder / PEERS).glob("peer-*.jsonl"))]
    journals = [lines for lines in told if lines]
    first = next((line for lines in journals for line in lines if isinstance(line, Run)), None)
    if first is not None:
        record = replace(
            record,
            run=first.run,
            name=str(first.config.get("name") or ""),
            method=str(first.config.get("algorithm", "")),
            graph=first.facts.graph.name if first.facts else str(first.config.get("topology", "")),
            model=_model(first.config),
            peers=first.n,
        )
    elif not journals:
        record = replace(record, graph=str(_key(folder / PREFLIGHT_FILE, "graph") or ""))
    status, words = _state(folder, record.run, journals, None if first is None else first.iterations)
    newest = [_accuracy(lines) for lines in journals]
    accuracy = summary([value for value in newest if value is not None])
    return replace(
        record,
        status=status,
        told=words,
        accuracy=None if accuracy is None else accuracy["mean"],
        begun=min((lines[0].time for lines in journals), default=None),
        ended=None if status == "training" else max((lines[-1].time for lines in journals), default=None),
    )


def _accuracy(lines: list[AnyLine]) -> float | None:
    scores = (line for line in reversed(lines) if isinstance(line, Outcome | Evaluation | Round))
    return next((scored(line.accuracy) for line in scores), None)


def _state(folder: Path, run: str, journals: list[list[AnyLine]], iterations: int | None) -> tuple[str, str]:
    """Return the status of a run without results, and the status in words."""
    done = max((_iteration(lines) for lines in journals), default=0)
    whole = "" if iterations is None else f" of {iterations}"
    where = f"after iteration {done}{whole}" if done else "before its first iteration"
    with at_rest(folder, run) as free:
        if not free:
            return "training", f"training, {where}" if journals else "training; its journals are at its sites"
    last = [lines[-1] for lines in journals]
    failures = [line for line in last if isinstance(line, Failed)]
    if failures:
        on_purpose = all(line.cause in (Cause.STOPPED.name, Cause.HEARSAY.name) for line in failures)
        status = "stopped" if on_purpose else "failed"
        return status, f"{status} {where}: {failures[0].error}"
    if last and all(isinstance(line, Outcome | LastRound) for line in last):
        return "trained", "its peers here have trained to the end; the coordinator has the results"
    if not journals:
        return "broken-off", "there are no results, and no peer has begun here"
    return "broken-off", f"broken off {where}: its processes are gone; p2pft run --resume goes on"


def _iteration(lines: list[AnyLine]) -> int:
    """Return how many iterations a journal shows to be done."""
    for line in reversed(lines):
        if isinstance(line, Outcome):
            return line.iterations
        if not isinstance(line, Run | Start):
            return line.iteration
    return 0


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the files below ``folder``; links are yielded, not followed."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            else:
                yield entry


def _size(folder: Path) -> int:
    total = 0
    for entry in _files(folder):
        with contextlib.suppress(OSError):  # removed meanwhile
            total += entry.stat(follow_symlinks=False).st_size
    return total


def remove_run(folder: Path) -> tuple[int, list[str]]:
    """Remove a run's files, and its folder if nothing else is in it.

    Links are removed, not followed; files that are none of a run's are left.

    Parameters
    ----------
    folder : Path
        The run's folder.

    Returns
    -------
    freed : int
        The bytes of the removed files.
    left : list of str
        The names in the folder that are none of a run's.

    Raises
    ------
    ConfigError
        When ``folder`` is a link or is no run's folder, a process of this machine works on the run, or files
        cannot be removed.
    """
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a link, which is not followed: give the run's own folder")
    if not folder.is_dir() or not is_run(folder):
        raise ConfigError(
            f"{folder} is no run's folder: it has no {FILE} and no {PEERS}/peer-<i>.jsonl; nothing is removed"
        )
    record = record_of(folder)
    with at_rest(folder, record.run) as free:
        if not free:
            raise ConfigError(
                f"run {record.run} is at work on this machine ({folder}): end it first with p2pft stop "
                f"{record.run}, or wait for its end"
            )
        try:
            for path in _own(folder):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)  # which follows no link
                else:
                    path.unlink(missing_ok=True)
            for place in (folder / PEERS, folder):
                if place.is_dir() and not any(place.iterdir()):
                    place.rmdir()
            left = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        except OSError as error:
            raise ConfigError(
                f"{folder}: not all of it can be removed ({error.strerror}: {error.filename})"
            ) from error
    return record.bytes - _size(folder), left


def _own(folder: Path) -> Iterator[Path]:
    """Yield the files and folders of a run, those of :data:`PEERS` one by one; a link is one of them."""
    peers = folder / PEERS
    if peers.is_symlink():
        yield peers
    elif peers.is_dir():
        yield from [path for path in sorted(peers.iterdir()) if _OF_A_PEER.fullmatch(path.name)]
    for path in (checkpoint_folder(folder, SERVER), folder / EVENTS, *(folder / name for name in OWN_FILES)):
        if os.path.lexists(path):
            yield path
