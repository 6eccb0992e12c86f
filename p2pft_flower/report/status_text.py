"""The state of a run as a table and sentences for people, and as JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from rich.table import Table

from p2pft_flower.errors import called, printable
from p2pft_flower.keeping.absence import returned
from p2pft_flower.keeping.lines import ViewChange
from p2pft_flower.keeping.progress import human_bytes
from p2pft_flower.report.stand_stills import clock, others, sentence, stood_still
from p2pft_flower.report.status import PeerStatus, RunStatus
from p2pft_flower.report.tables import number, render

__all__ = ["as_dict", "span", "status_table"]

_COLUMNS = (
    "peer",
    "name",
    "state",
    "for",
    "iteration",
    "a second",
    "last word",
    "accuracy",
    "unseen",
    "sent",
)


_WAITS_LONG = 4.0
"""Seconds of waiting for another peer from which on it is told, as on the live page."""


def span(seconds: float | None) -> str:
    """Return a time span for people: ``12 s``, ``4 min``, ``2 h 05 min``."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def status_table(status: RunStatus, now: float) -> str:
    """Return the state of a run as a table and sentences."""
    done = f"iteration {status.iteration} of {status.iterations}"
    table = Table(title=f"run {printable(status.run)} at {clock(now)}: {done}")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("name", "state") else "right")
    for p in status.peers:
        table.add_row(
            str(p.peer),
            printable(p.name),
            _word(p),
            span(p.since),
            str(p.iteration),
            f"{p.rate:.2f}" if p.rate else "–",
            "–" if p.contact is None else f"{span(p.contact)} ago",
            number(p.accuracy),
            number(p.accuracy_unseen),
            human_bytes(p.bytes_sent),
        )
    return "\n".join([render(table), *map(printable, _sentences(status, now))])


def _sentences(status: RunStatus, now: float) -> list[str]:
    lines = [
        f"{p.called} {_been(p)}" + (f": {p.why}" if p.why else "")
        for p in status.peers
        if p.state in ("lost", "ended", "silent", "slow")
    ]
    names = {p.peer: p.name for p in status.peers if p.name}
    happened = [
        (v.time, f"view {v.number} after {v.iteration} iterations: {_who_changed(v, names)}")
        for v in status.views
    ]
    happened += [(s.time, sentence(s, names)) for s in others(status.stalls, status.stand_stills)]
    happened += [(s.end, stood_still(s, names)) for s in status.stand_stills]
    lines += [f"{clock(at)} {what}" for at, what in sorted(happened)]
    lines.append(status.risk)
    if status.left is not None and status.left > 0:
        at = time.strftime("%H:%M", time.localtime(now + status.left))
        lines.append(f"It is done in about {span(status.left)}, at {at}, if it goes on like this.")
    elif any(p.state in ("slow", "silent", "ended") for p in status.peers):
        lines.append("The others wait for it: while the run stands still, when it is done is not known.")
    elif status.left is None:
        lines.append("When it is done is not known yet.")
    else:
        lines.append("All iterations are done.")
    return lines


def _word(peer: PeerStatus) -> str:
    """Return a peer's state for people; to wait for a moment is part of every iteration."""
    if peer.state == "waiting" and (peer.since or 0.0) >= _WAITS_LONG:
        return f"waiting {peer.why}"
    if peer.state == "preparing" and peer.why:
        return peer.why
    words = {"ended": "killed", "unknown": "not heard of yet", "computing": "training", "waiting": "training"}
    return words.get(peer.state, peer.state)


def _been(peer: PeerStatus) -> str:
    state = _word(peer)
    return f"is {state}" if peer.since is None else f"has been {state} for {span(peer.since)}"


def _who_changed(change: ViewChange, names: Mapping[int, str]) -> str:
    parts = [f"{called(p, names)} was lost" for p in change.lost]
    parts += [returned(called(p, names), change.iteration, change.missed.get(p)) for p in change.joined]
    return "; ".join(parts) or "nobody was lost"


def as_dict(status: RunStatus) -> dict[str, Any]:
    """Return what ``p2pft status --json`` prints of a run; later versions only add keys."""
    return dict(msgspec.to_builtins(status, str_keys=True))
