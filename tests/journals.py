"""Peers' logs for tests: read as plain dictionaries, and made up of the fields that a test is about."""

from __future__ import annotations

import msgspec
import numpy as np

from p2pft_flower.config import config_keys
from p2pft_flower.errors import DataError
from p2pft_flower.keeping import lines, sketch
from p2pft_flower.keeping.invariants import TrackerSums
from p2pft_flower.keeping.journal import by_run, read_journal

EMPTY = sketch.encode(np.zeros(sketch.SIZE))
SCORES = {"loss": 1.0, "accuracy": 0.5, "accuracy_unseen": None, "sketch": EMPTY, "bytes_sent": 0}
KINDS = {
    "run": (lines.Run, {"run": "7", "n": 1, "iterations": 300, "evaluate_every": 10, "host": (0,)}),
    "start": (lines.Start, {"parameters": 3, "prepared": 0.1}),
    "evaluation": (lines.Evaluation, {**SCORES, "iteration": 0, "seconds": 1.0}),
    "trace": (lines.Trace, {"view": 0, "iteration": 0, "surplus": EMPTY}),
    "view": (
        lines.ViewChange,
        {
            **{"number": 1, "iteration": 0, "peers": (0,), "edges": (), "lost": (), "joined": ()},
            **{"why": {}, "presumed": {}, "seconds": 1.0},
        },
    ),
    "stall": (
        lines.Stall,
        {"iteration": 0, "awaited": 1, "last": 1, "silent": False, "seconds": 9.0},
    ),
    "failed": (lines.Failed, {"iteration": 0, "error": "", "kind": "P2PFTError"}),
    "end": (
        lines.Outcome,
        {**SCORES, "seconds": {}, "iterations": 300, "parameters": 3, "model_parameters": 9},
    ),
}
KINDS["run"][1]["config"] = config_keys()


def made_line(event, peer=0, **fields):
    """Return a line of ``event`` with ``fields``; what is not given is anything."""
    kind, usual = KINDS[event]
    return kind(peer=peer, **{**usual, **fields})


def as_json(line):
    """Return a line as it stands in its file."""
    return msgspec.json.decode(msgspec.json.encode(line))


def lines_of(path):
    """Return all lines of a log."""
    return [as_json(line) for line in read_journal(path)]


def last_life(path):
    """Return the lines of the last run in a log, or of the peer's last life in it."""
    life = by_run(read_journal(path))[-1]
    return [as_json(line) for line in (life.run, *life.lines)]


def tracker_surplus(folder, peers):
    """Return the surplus after each iteration that all peers of its view have completed and traced.

    What peers did before they were killed and came back counts.
    """
    sums, traces = TrackerSums(peers), []
    for peer in sorted(sums.views[0]):
        path = folder / "peers" / f"peer-{peer}.jsonl"
        if not path.is_file():
            raise DataError(f"{path}: peer {peer} has left no log")
        lives = by_run(read_journal(path))
        for line in (e for life in lives if life.run.run == lives[-1].run.run for e in life.lines):
            if isinstance(line, lines.ViewChange):
                sums.note_view(line, path)
            elif isinstance(line, lines.Trace):
                traces.append(line)
    told = (sums.note_trace(line) for line in traces)
    return sorted(surplus for surplus in told if surplus is not None)
