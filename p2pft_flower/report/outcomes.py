"""What results.json says of a run whose peers have ended, and of one that was stopped or failed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from p2pft_flower.errors import Cause
from p2pft_flower.facts import PeerFacts, ResumedFrom
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.lines import Failed, Outcome, Report
from p2pft_flower.keeping.progress import scored
from p2pft_flower.report.results import ViewRow, head, log_name, summary, tail_name
from p2pft_flower.typed import plain

__all__ = ["Reached", "how_far", "run_results", "thinned"]

_OF_CLASSES = (
    "balanced_accuracy",
    "macro_f1",
    "calibration_error",
    "macro_auroc",
    "macro_average_precision",
)
"""The scores by class that a run's summary has."""


_MANY_PEERS = 64
_MOST_SCORES = 2**17
"""Runs of more than so many peers have history of at most so many scores of peers: :func:`thinned`."""


class Reached(NamedTuple):
    """What is known of a peer that has not come to the end of its run.

    Attributes
    ----------
    state : str
        How far it came, and why no further, in words.
    report : Report or None
        Its last evaluation; None if none is known.
    failed : Failed or None
        The last line of its journal; None if it has none, or it is not known.
    lost : bool
        Whether the others went on without it.
    """

    state: str
    report: Report | None = None
    failed: Failed | None = None
    lost: bool = False

    @property
    def known(self) -> bool:
        """Whether anything is known of it but its state."""
        return self.report is not None or (self.failed is not None and self.failed.bytes_sent is not None)


def how_far(peer: int, changes: Sequence[ViewRow], failed: Failed | None) -> str:
    """Return how far a peer came that has no outcome, in words, without the reason of a stop of all."""
    there = not changes or peer in changes[-1]["peers"]
    if not there:
        change = next((c for c in reversed(changes) if peer in c["lost"]), None)
        return "lost" if change is None else f"lost after {change['iteration']} iterations"
    if failed is None:
        return "nothing is known of its end"
    if failed.cause == Cause.STOPPED.name:
        return f"stopped in iteration {failed.iteration}"
    return f"ended in iteration {failed.iteration}: {failed.error}"


def run_results(
    *,
    total: int,
    missing: str | None,
    run_id: str,
    config: Mapping[str, Any],
    iterations: int,
    outcomes: Mapping[int, Outcome],
    about: Mapping[int, PeerFacts],
    history: list[dict[str, Any]],
    graph: Mapping[str, Any],
    partition: str,
    hosts: Collection[Sequence[int]],
    versions: Mapping[str, str],
    resumed_from: ResumedFrom | None = None,
    views: Sequence[ViewRow] = (),
    reached: Mapping[int, Reached] = MappingProxyType({}),
    status: str | None = None,
) -> dict[str, Any]:
    """Return the results of a run whose peers have ended, as results.json has them, without ``seconds``.

    Parameters
    ----------
    total : int
        Number of peers of the run. With outcomes of M of N peers the status is ``completed-with-M-of-N``
        instead of ``completed``.
    missing : str or None
        The sentence on peers without outcomes, if there are any; else the reason why the run was stopped or
        failed.
    run_id : str
        Flower's id of the run.
    config : mapping
        The run-config.
    iterations : int
        Length of the run.
    outcomes : mapping of int to Outcome
        The outcomes of the peers that have trained to the end, by peer.
    about : mapping of int to PeerFacts
        The peers' facts, by peer.
    history : list of dict
        The scores of each evaluation, from :meth:`~p2pft_flower.keeping.progress.Progress.history`.
    graph : mapping
        The graph's ``name``, ``weights``, ``peer_names``, ``addresses``, ``digest`` and ``added_edges``, and
        ``turns`` if the weights change with the iteration.
    partition : str
        The run-config's ``partition``, with ``auto`` resolved.
    hosts : collection of sequences of int
        The peers of each host.
    versions : mapping
        Each package's version.
    resumed_from : ResumedFrom, optional
        The run that this one goes on from; None if it began anew.
    views : sequence of ViewRow
        The changes of view, from :func:`merged_views`.
    reached : mapping of int to Reached
        What is known of the other peers, by peer; default nothing.
    status : str, optional
        ``stopped`` or ``failed``: then ``peers`` has those of ``reached`` that were there, too, and
        ``unfinished`` the lost ones. Default: the run has completed, and all of ``reached`` are in
        ``unfinished``.
    """
    ended = {p: _ended(p, o, about[p]) for p, o in outcomes.items()}
    others = {p: _unfinished(p, r, about[p]) for p, r in reached.items() if r.known}
    there = {p: row for p, row in others.items() if status is not None and not reached[p].lost}
    peers = [row for _, row in sorted({**ended, **there}.items())]
    unfinished = [row for p, row in sorted(others.items()) if p not in there]
    one = _sizes(outcomes, reached)
    sketches = [(o.iterations, o.sketch) for _, o in sorted(outcomes.items())]
    reports = [r for p in sorted(there) if (r := reached[p].report) is not None]
    sketches += [(r.iteration, r.sketch) for r in reports if r.sketch is not None]
    consensus = None
    if len(sketches) == len(peers) and len({iteration for iteration, _ in sketches}) == 1:
        consensus = sketch.consensus_error([sketch.decode(text) for _, text in sketches])
    if status is None:
        status = "completed" if len(ended) == total else f"completed-with-{len(ended)}-of-{total}"
    return {
        **head(status, run_id, config),
        "iterations": iterations,
        "trainable_parameters": None if one is None else one.parameters,
        "model_parameters": None if one is None else one.model_parameters,
        "preprocessing": one.preprocessing if isinstance(one, Outcome) else None,
        "peers": peers,
        "unfinished": unfinished,
        "summary": {
            **{
                key: summary([p[key] for p in peers])
                for key in ("accuracy", "accuracy_unseen", "accuracy_seen", "loss")
            },
            **{
                key: summary([p["class_scores"] and p["class_scores"][key] for p in peers])
                for key in _OF_CLASSES
            },
        },
        "consensus_error": consensus,
        "kept": _kept_by_all(outcomes.values()),
        "history": thinned(history, total),
        "evaluations": len(history),
        "views": [dict(view) for view in views],
        "graph": dict(graph),
        "partition": partition,
        "hosts": [list(host) for host in hosts],
        "config": dict(config),
        "versions": dict(versions),
        "resumed_from": plain(resumed_from),
        "error": missing,
    }


def thinned(history: Sequence[dict[str, Any]], peers: int) -> list[dict[str, Any]]:
    """Return the evaluations that results have: all, or of more than 64 peers 131,072 / ``peers`` at most.

    Those are evenly spaced, the first and the last included. Journals keep all.
    """
    most = max(2, _MOST_SCORES // peers)
    if peers <= _MANY_PEERS or len(history) <= most:
        return list(history)
    last = len(history) - 1
    return [history[k * last // (most - 1)] for k in range(most)]


def _kept_by_all(outcomes: Iterable[Outcome]) -> dict[str, Any] | None:
    """Return score, iteration and mean of the θ that the peers have kept; None if they have not kept one."""
    kept = {(one.by, one.iteration, one.score) for o in outcomes if (one := o.kept) is not None}
    if len(kept) != 1:
        return None
    ((by, iteration, score),) = kept
    return {"by": by, "iteration": iteration, "score": score}


def _ended(peer: int, outcome: Outcome, about: PeerFacts) -> dict[str, Any]:
    """Return the entry of a peer that has trained to the end."""
    return {
        **_facts_of(peer, about),
        "iterations": outcome.iterations,
        "accuracy": scored(outcome.accuracy),
        "accuracy_unseen": outcome.accuracy_unseen,
        "accuracy_seen": outcome.accuracy_seen,
        "loss": scored(outcome.loss),
        "class_scores": plain(outcome.class_scores),
        "bytes_sent": outcome.bytes_sent,
        "epsilon": outcome.epsilon,
        "delta": outcome.delta,
        "seconds": outcome.seconds,
        "kept": plain(outcome.kept),
        "state": None,
        "log": log_name(peer),
        "tail": tail_name(peer),
    }


def _unfinished(peer: int, reached: Reached, about: PeerFacts) -> dict[str, Any]:
    """Return the entry of a peer that has not: the scores of its last evaluation."""
    report, failed = reached.report, reached.failed
    sent = [0 if report is None else report.bytes_sent, (failed and failed.bytes_sent) or 0]
    return {
        **_facts_of(peer, about),
        "iterations": report and report.iteration,
        "accuracy": report and scored(report.accuracy),
        "accuracy_unseen": report and report.accuracy_unseen,
        "accuracy_seen": None,  # a report has none
        "loss": report and scored(report.loss),
        "class_scores": None,
        "bytes_sent": max(sent),
        "epsilon": failed and failed.epsilon,
        "delta": failed and failed.delta,
        "seconds": {} if failed is None else failed.seconds,
        "kept": None,
        "state": reached.state,
        "log": log_name(peer),
        "tail": None,
    }


def _facts_of(peer: int, about: PeerFacts) -> dict[str, Any]:
    return {
        "peer": peer,
        "name": about.name,
        "classes": list(about.classes),
        "images": about.known.images,
        "data_changed": plain(about.data_changed),
    }


def _sizes(outcomes: Mapping[int, Outcome], reached: Mapping[int, Reached]) -> Outcome | Failed | None:
    """Return a line that has the numbers of parameters; None if there is none."""
    if outcomes:
        return outcomes[min(outcomes)]
    failures = (reached[p].failed for p in sorted(reached))
    return next((f for f in failures if f is not None and f.parameters is not None), None)
