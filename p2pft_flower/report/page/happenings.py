"""What happened to a run on the way, in words, with the local times at which it did."""

from __future__ import annotations

from p2pft_flower.errors import printable
from p2pft_flower.report.page.runs import ALONE, PEERS, POOLED, SERVER, Run, View
from p2pft_flower.report.page.verdicts import listed
from p2pft_flower.report.stand_stills import moment, others, sentence, stood_still

__all__ = ["events", "happened"]

STAND_STILLS = 8
"""The most stand-stills, and other waits, of a run that the report tells of."""


def _cut(text: str, most: int = 240) -> str:
    """Return another process's text on one line, cut if it is long."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else f"{line[:most].rstrip()} …"


def _came_back(run: Run, view: View, peer: int) -> str:
    """Return that a peer came back with a view, and how far behind it was, as far as that is known."""
    missed = view.missed.get(str(peer))
    behind = "" if missed is None else f", {missed} iterations behind, lost after {view.iteration - missed}"
    return f"{run.name(peer)} came back{behind}"


def _change(run: Run, view: View) -> str:
    changes = []
    for peer in view.lost:
        why = view.why.get(str(peer))
        changes.append(f"{run.name(peer)} was lost" + (f" ({_cut(why)})" if why else ""))
    changes += [_came_back(run, view, peer) for peer in view.joined]
    after = run.view_times.get(view.number)
    when = f"after iteration {view.iteration}" + ("" if view.time is None else f", {moment(view.time)}")
    when += "" if after is None else f", {after:.1f} s into the training"
    what = listed(changes) if changes else "nobody was lost, but links were left out"
    return (
        f"{run.label}, {when}: {what}; after {view.seconds:.1f} s the others went on as view "
        f"{view.number} with {len(view.peers)} peers and {len(view.edges)} edges."
    )


def events(run: Run) -> list[str]:
    """Return what happened to a run: changes of view, stand-stills, an end with faults; a sentence each."""
    told = [(view.time or 0.0, _change(run, view)) for view in run.results.views or ()]
    stills, more = _stand_stills(run)
    told = sorted([*told, *stills], key=lambda event: event[0])
    texts = [text for _, text in told]
    if run.results.views is None:
        unknown = "its changes of view are not known: a signal ended it; the journals have them"
        texts.insert(0, f"{run.label}: {unknown}.")
    if more:
        texts.append(f"{run.label}: {more} shorter waits are left out.")
    if run.results.error:
        at = "" if run.results.ended is None else f" at {moment(run.results.ended)}"
        texts.append(f"{run.label} ended as {run.results.status}{at}: {_cut(run.results.error)}")
    return texts


def _stand_stills(run: Run) -> tuple[list[tuple[float, str]], int]:
    """Return the longest stand-stills of all and waits of single peers by time, and how many are left out."""
    names = {p.peer: p.name for p in run.all_peers if p.name != str(p.peer)}
    stills = sorted(run.stand_stills, key=lambda s: s.begin - s.end)
    waits = sorted(others(run.stalls, run.stand_stills), key=lambda s: -s.seconds)
    told = [(s.begin, stood_still(s, names, dated=True)) for s in stills[:STAND_STILLS]]
    told += [
        (s.time - s.seconds, f"{sentence(s, names)}, until {moment(s.time)}") for s in waits[:STAND_STILLS]
    ]
    return [(at, f"{run.label}: {text}.") for at, text in told], len(stills) + len(waits) - len(told)


def happened(run: Run) -> str:
    """Return the sentence on whether something went wrong in a run."""
    results, views = run.results, run.results.views or ()
    lost = [p for view in views for p in view.lost]
    back = [p for view in views for p in view.joined]
    away = sorted({p for p in lost if lost.count(p) > back.count(p)})
    who = listed([run.name(p) for p in sorted(set(lost))])
    were = "was lost" if len(set(lost)) == 1 else "were lost"
    end = "came back" if not away else "did not come back"
    if away and len(away) < len(set(lost)):
        end = f"{listed([run.name(p) for p in away])} did not come back"
    if results.status in ("failed", "stopped"):
        how = "was stopped on purpose" if results.status == "stopped" else "failed"
        why = printable(" ".join((results.error or "no reason is known").split()))
        before = f" Before that {who} {were} and {end}." if lost else ""
        return f"{run.label} {how}: {why}.{before}"
    if lost:
        return f"{run.label}: {who} {were} on the way and {end}; the others trained on."
    if results.status != "completed":
        return f"{run.label} {results.status}: {printable(' '.join((results.error or '').split()))}."
    if views:
        return f"{run.label}: no peer was lost, but links were left out on the way."
    alone = {ALONE: "peer", PEERS: "peer", SERVER: "client", POOLED: "model"}[run.kind]
    many = len(results.peers)
    who = f"all {many} {alone}s" if many > 1 else f"its {alone}"
    return f"{run.label}: nothing went wrong: {who} trained through all {results.iterations} iterations."
