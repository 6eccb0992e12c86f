"""results.json, the result of a run; docs/results-schema.md has its schema."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from p2pft_flower.errors import ConfigError, DataError, listed
from p2pft_flower.keeping.checkpoints import SERVER, checkpoint_folder
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.keeping.journal import read_journal
from p2pft_flower.keeping.lines import Outcome, Run, Start, ViewChange
from p2pft_flower.keeping.run_folders import folder_name
from p2pft_flower.resources import home, home_named
from p2pft_flower.typed import read_object

__all__ = [
    "FILE",
    "SCHEMA",
    "ViewRow",
    "absent_at_start",
    "default_output_dir",
    "finite",
    "head",
    "holds_a_run",
    "log_name",
    "lost_on_the_way",
    "merged_views",
    "read_results",
    "require_place",
    "require_schema",
    "runs_folder",
    "stopped_tail_name",
    "summary",
    "tail_name",
    "take_place",
    "write_json",
    "write_results",
]

SCHEMA = "p2pft.results/2"
READ = ("p2pft.results/1", SCHEMA)
"""The schemas that are read: the first has no scores by class."""

FILE = "results.json"
PEERS = "peers"
"""The folder of the peers' files in a run's folder."""

_PLAIN = re.compile(r"peer-\d+\.(jsonl|plan\.json.*)")
"""Names of a peer's journal and plan, which its host writes before it trains."""


class ViewRow(TypedDict):
    """An entry of results.json's ``views``: a change of view, put together from the reports of all hosts."""

    number: int
    iteration: int
    peers: list[int]
    edges: list[list[int]]
    lost: list[int]
    joined: list[int]
    why: dict[str, str]
    seconds: float
    missed: dict[str, int]
    time: float


def default_output_dir(run: str, name: str = "") -> Path:
    """Return the folder of a run's results if ``output-dir`` is not set; ``name`` is the run's name."""
    return runs_folder() / folder_name(run, name)


def runs_folder() -> Path:
    """Return the folder in which each run has one of its own if ``output-dir`` is not set."""
    return home() / "runs"


def require_place(output_dir: str) -> None:
    """Refuse a place for a run's results to which nothing can be written.

    Parameters
    ----------
    output_dir : str
        The run-config's ``output-dir``; empty: the default.

    Raises
    ------
    ConfigError
        When nothing can be written there; the message names the setting or variable, the folder, and the
        remedy.
    """
    if output_dir:
        named, remedy = f"output-dir = {output_dir!r}", "choose another folder (p2pft run: --out)"
        require_writable(named, Path(output_dir).expanduser(), remedy)
        return
    require_writable(
        home_named(),
        runs_folder(),
        "set P2PFT_HOME to a folder that can be written, or output-dir (p2pft run: --out)",
    )


def summary(values: Sequence[float | None]) -> dict[str, float] | None:
    """Return mean, population std, min and max of the numbers among ``values``; None if all are None."""
    numbers = np.array([v for v in values if v is not None], dtype=np.float64)
    if not len(numbers):
        return None
    return {
        "mean": float(numbers.mean()),
        "std": float(numbers.std()),
        "min": float(numbers.min()),
        "max": float(numbers.max()),
    }


def head(status: str, run_id: str, values: Any) -> dict[str, Any]:
    """Return the keys with which the results of every run begin, also of a run that failed.

    ``values`` are the run-config's keys and values.
    """
    return {
        "schema": SCHEMA,
        "status": status,
        "run": run_id,
        "name": values.get("name") or None,
        "algorithm": values.get("algorithm"),
        "seed": values.get("seed"),
    }


def absent_at_start(peers: Sequence[int]) -> str:
    """Return the sentence on ``peers``, without which a run started (``min-peers``)."""
    return f"peers {listed(peers)} were not there at the start"


def lost_on_the_way(changes: Sequence[ViewRow], missing: Sequence[int]) -> str:
    """Return the sentence on the peers ``missing``, which were lost while the others trained.

    ``changes`` are the run's changes of view; a peer that none of them has lost did not come to its end.
    """
    sentences = []
    for peer in missing:
        change = next((c for c in reversed(changes) if peer in c["lost"]), None)
        if change is None:
            sentences.append(f"peer {peer} did not come to its end")
        else:
            why = change["why"].get(str(peer), "the others did not hear from it any more")
            sentences.append(f"peer {peer} was lost after {change['iteration']} iterations: {why}")
    return "; ".join(sentences)


def merged_views(told: Iterable[ViewChange], first: Iterable[int]) -> list[ViewRow]:
    """Return every change of view once, ascending, from the reports of several hosts on the same changes.

    ``lost`` of each change is relative to the view before. ``why`` joins the observations of all hosts; a
    presumption on a peer appears only if no host has an observation on it. ``seconds`` is the longest that a
    host reported. ``missed`` counts from the view that lost the peer, or else is what hosts have told.
    ``time`` is the first at which a host took the view up.

    Parameters
    ----------
    told : iterable of ViewChange
        The hosts' reports, in any order. Each host compares a view with the last one that it was in.
    first : iterable of int
        The peers of view 0.

    Raises
    ------
    DataError
        When hosts tell of different views with one number: parts of the run have gone on by themselves, and
        the results of neither are those of the run.
    """
    changes = sorted(told, key=lambda change: change.number)
    _require_one_run(changes)
    views: dict[int, ViewRow] = {}
    for change in changes:
        one = views.setdefault(change.number, _row(change))
        # A host that was away also names peers that joined earlier views; all hosts name those of this view.
        one["joined"] = sorted({*one["joined"]}.intersection(change.joined))
        one["seconds"] = max(one["seconds"], change.seconds)
        one["time"] = min(one["time"], change.time)
    before = set(first)
    for one in views.values():
        one["lost"], before = sorted(before.difference(one["peers"])), set(one["peers"])
    _note_missed(views, changes)
    for reasons in ("why", "presumed"):
        for change in changes:
            for peer, why in getattr(change, reasons).items():
                # A host that comes over several views at once has the missed peers in its last report only.
                gone = [v for v, o in views.items() if v <= change.number and peer in o["lost"]]
                if gone:
                    views[gone[-1]]["why"].setdefault(str(peer), why)
    return list(views.values())


def _require_one_run(changes: Iterable[ViewChange]) -> None:
    """Refuse changes, ascending, of which two are to different views with one number.

    Agreement rules them out as long as no member lies (docs/protocol.md, "A member that lies").
    """
    first: dict[int, ViewChange] = {}
    for change in changes:
        other = first.setdefault(change.number, change)
        if _place(change) != _place(other):
            both = listed(sorted({*change.peers} & {*other.peers}))
            raise DataError(
                f"peers {other.peer} and {change.peer} have gone on in different views {change.number}, "
                f"with the peers {listed(other.peers)} after {other.iteration} iterations and with "
                f"{listed(change.peers)} after {change.iteration}: the run has fallen into parts, and the "
                "results of neither are the run's. That takes a member that lies; the peers of both views "
                f"are {both} (docs/protocol.md, A member that lies)"
            )


def _place(change: ViewChange) -> tuple[int, tuple[int, ...], frozenset[tuple[int, int]]]:
    return change.iteration, change.peers, frozenset(change.edges)


def _note_missed(views: Mapping[int, ViewRow], changes: Iterable[ViewChange]) -> None:
    """Set ``missed`` of each view, ascending, whose ``lost`` and ``joined`` are known."""
    lost_at: dict[int, int] = {}
    for number, one in views.items():
        told: dict[int, int] = {}
        for change in changes:
            told |= change.missed if change.number == number else {}
        told |= {p: one["iteration"] - lost_at[p] for p in one["joined"] if p in lost_at}
        one["missed"] = {str(p): told[p] for p in one["joined"] if p in told}
        lost_at |= dict.fromkeys(one["lost"], one["iteration"])


def _row(change: ViewChange) -> ViewRow:
    return ViewRow(
        number=change.number,
        iteration=change.iteration,
        peers=list(change.peers),
        edges=[list(edge) for edge in change.edges],
        lost=list(change.lost),
        joined=list(change.joined),
        why={},
        seconds=change.seconds,
        missed={},
        time=change.time,
    )


def log_name(peer: int) -> str:
    """Return the path of a peer's journal, relative to a run's folder."""
    return f"peers/peer-{peer}.jsonl"


def tail_name(peer: int) -> str:
    """Return the path of a peer's tail, relative to a run's folder."""
    return f"peers/peer-{peer}.safetensors"


def stopped_tail_name(peer: int) -> str:
    """Return the path of what a peer had when it stopped before its end, relative to a run's folder."""
    return f"peers/peer-{peer}.stopped.safetensors"


def write_results(folder: Path, results: dict[str, Any]) -> Path:
    """Write ``results.json`` into ``folder`` in one piece and return the file's path.

    Numbers that are not finite (a loss that diverged) become null: JSON has no NaN.
    """
    return write_json(folder / FILE, results)


def finite(value: Any) -> Any:
    """Return ``value`` with None in place of each number that is not finite, since JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write ``content`` to ``path`` in one piece and return the path; make its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(_laid_out(finite(content)) + "\n", encoding="utf-8")
    os.replace(partial, path)  # noqa: PTH105 - a reader sees the whole file or none
    return path


def _laid_out(value: Any, margin: str = "\n") -> str:
    """Return ``value`` as JSON with an entry a line, but lists of numbers and texts in one line each.

    The weights of 1,024 peers are a million numbers: with a line each they would take 14 MB instead of 5.
    """
    inner = f"{margin}  "
    if isinstance(value, dict) and value:
        rows = [f"{json.dumps(str(key))}: {_laid_out(one, inner)}" for key, one in value.items()]
        return f"{{{inner}{f',{inner}'.join(rows)}{margin}}}"
    if isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        return f"[{inner}{f',{inner}'.join(_laid_out(one, inner) for one in value)}{margin}]"
    return json.dumps(value, allow_nan=False)


def holds_a_run(folder: Path) -> bool:
    """Return whether ``folder`` holds a run's results or the remains of an interrupted run.

    The results of a run that failed or was stopped before its peers trained do not count: they hold only the
    reason, and the next run replaces them and the peers' journals. Journals, or their folder, without results
    count, since their run may be going on at this moment.
    """
    if _untrained_logs(folder) is None:
        return True
    try:
        return read_results(folder)["status"] not in ("failed", "stopped")
    except DataError:
        return os.path.lexists(folder / PEERS) or os.path.lexists(folder / FILE)


def take_place(folder: Path) -> None:
    """Remove from ``folder`` the files of a run that ended before its peers trained.

    Raises
    ------
    ConfigError
        When :func:`holds_a_run` is true of ``folder``.
    """
    if holds_a_run(folder):
        raise ConfigError(f"output-dir = {str(folder)!r} holds an earlier run; choose another or remove it")
    if os.path.exists(folder):  # noqa: PTH110 - Path's own raises if a folder may not be searched
        for path in _untrained_logs(folder) or ():
            path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (folder / PEERS).rmdir()
        (folder / FILE).unlink(missing_ok=True)


def _untrained_logs(folder: Path) -> list[Path] | None:
    """Return journals and plans of peers in ``folder``, none of which has done an iteration.

    Empty if there is no folder of peers' files; None if it holds other files, or cannot be read.
    """
    if os.path.isdir(checkpoint_folder(folder, SERVER)):  # noqa: PTH112 - as in `take_place`
        return None
    try:
        files = sorted((folder / PEERS).iterdir())
        plain = all(_PLAIN.fullmatch(path.name) and path.is_file() for path in files)
        if plain and not any(path.suffix == ".jsonl" and _has_trained(path) for path in files):
            return files
    except OSError:
        return None if os.path.lexists(folder / PEERS) else []
    return None


def _has_trained(log: Path) -> bool:
    """Return whether a peer's journal shows a completed iteration, or cannot be read."""
    try:
        return any(
            isinstance(line, Outcome) or (not isinstance(line, Run | Start) and line.iteration > 0)
            for line in read_journal(log)
        )
    except DataError:
        return True


def read_results(folder: Path) -> dict[str, Any]:
    """Return the content of ``results.json`` in ``folder``.

    Raises
    ------
    DataError
        When the file cannot be read, or is not JSON or of another schema.
    """
    path = folder / FILE
    try:
        results = read_object(path.read_bytes(), path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); is this a run's folder?") from error
    require_schema(results.get("schema"), path)
    return results


def require_schema(schema: object, path: Path) -> None:
    """Refuse results whose schema this version does not read.

    Raises
    ------
    DataError
        When ``schema`` is not one of `READ`; the message names ``path``, the results' file.
    """
    if schema not in READ:
        raise DataError(f"{path}: schema {schema!r}, this version reads {' and '.join(map(repr, READ))}")
