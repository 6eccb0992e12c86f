"""What a report says in words, made of the numbers alone: learned or not, agreed or not, cheaper or dearer.

Each function returns a small object with the numbers and the sentence; the rules are constants here, and the
page prints them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import printable
from p2pft_flower.keeping.progress import human_bytes
from p2pft_flower.report.page.runs import PEERS, POOLED, SERVER, Run, mean

__all__ = [
    "Agreed",
    "Answers",
    "Cost",
    "Learned",
    "Reached",
    "against_fedavg",
    "against_pooled",
    "agreed",
    "comparable",
    "learned",
    "listed",
    "main_run",
    "reached",
]

LEARNED = 0.9
"""A peer has learned the classes it never saw if its accuracy on them is this share of the yardstick."""

HALF = 0.5
"""The least yardstick if no centralised run is there, since the best of bad runs is no measure."""

GUESSED = 0.55
"""A balanced accuracy up to this is hardly better than guessing, which has 0.5."""

SAME_ANSWERS = 0.95
"""Peers agree if each gives the answer that most give to at least this share of the test images, and …"""

SPREAD = 0.02
"""… their accuracies differ by no more than this, and, if their answers are not known, …"""

APART = 0.05
"""… their distance from each other is no more than this share of the way that they have come."""

TARGET = 0.95
"""Costs are read off where a run first has this share of the other run's final accuracy."""

ALIKE = 0.1
"""Costs that differ by no more than this share are about the same."""


@dataclass(frozen=True)
class Answers:
    """One tail's answers to the test images that it was scored on.

    Attributes
    ----------
    peer : int
        The tail's peer.
    classes : sequence of str
        The classes in the order of the head's outputs.
    labels, predicted : (N,) int64 arrays
        Positions in ``classes``: the images' true classes, and the answers. If images have several labels,
        (N, C) of 0 and 1.
    """

    peer: int
    classes: Sequence[str]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]

    @property
    def several_labels(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.labels.ndim == 2


def main_run(runs: Sequence[Run]) -> Run:
    """Return the run that the page's first lines are about: P2P-FT, else the first whose peers exchange."""
    scored = [run for run in runs if run.scored] or list(runs)
    peers = [run for run in scored if run.kind == PEERS]
    return next((run for run in peers if run.algorithm == "p2pft"), (peers or scored)[0])


def comparable(one: Run, other: Run) -> bool:
    """Tell whether the accuracies of two runs are of the same classes, held by the same peers."""
    a, b = one.results, other.results
    keys = ("dataset", "problem", "shots", "validation", "evaluate-on")
    same = all((a.config.get(k) or None) == (b.config.get(k) or None) for k in keys)  # older runs lack some
    return a.partition == b.partition and same


def baseline(run: Run, runs: Sequence[Run], kind: str) -> Run | None:
    """Return the run of ``kind`` to which ``run`` is compared: FedAvg among servers, the same seed first."""
    found = [r for r in runs if r.kind == kind and r.scored and r is not run and comparable(run, r)]
    found.sort(key=lambda r: (r.algorithm != "fedavg", r.results.seed != run.results.seed))
    return found[0] if found else None


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return names as words, ``a, b and c``; of many, some and the number of the others."""
    shown = [printable(name) for name in names]
    if len(shown) > most:
        return f"{', '.join(shown[:most])} and {len(shown) - most} more"
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


# --- did every peer learn the classes it never saw? ---------------------------------------------------------


@dataclass(frozen=True)
class Learned:
    """Whether the peers of a run learned the classes they never saw.

    ``verdict`` is ``"all"``, ``"some"`` or ``"none"`` of the peers, ``"nothing unseen"`` if each holds images
    of all classes, or ``"not known"``.
    """

    verdict: Literal["all", "some", "none", "nothing unseen", "not known"]
    sentence: str
    yardstick: float | None = None
    who: tuple[int, ...] = ()


def _yardstick(run: Run, runs: Sequence[Run]) -> tuple[float, str] | None:
    what, floor = ("balanced accuracy", 0.0) if run.several_labels else ("accuracy", HALF)

    def score(of: Run) -> float | None:
        return of.balance if run.several_labels else of.accuracy

    pooled = baseline(run, runs, POOLED)
    if pooled is not None and (reached := score(pooled)) is not None:
        return reached, f"the {reached:.3f} of training with all {run.samples} in one place ({pooled.label})"
    found = [(a, r.label) for r in runs if comparable(run, r) and (a := score(r)) is not None]
    if not found:
        return None
    best, of = max(found)
    if best < floor:
        return floor, f"an accuracy of {floor} (no centralised run is there to compare with)"
    whose = "their own" if of == run.label else f"{of}'s"
    return best, f"{whose} mean {what} on all classes, {best:.3f} (no centralised run is there)"


def _nothing_to_learn(run: Run, unseen: Mapping[int, float]) -> Learned | None:
    """Return why the question has no answer for ``run``; None if it has."""
    if not run.scored:
        return Learned("not known", f"{run.label} has no numbers: {run.results.status}.")
    if run.kind == POOLED:
        text = f"{run.label} trains one model on all {run.samples}: no class is unseen by it."
        return Learned("nothing unseen", text)
    if unseen:
        return None
    if any(set(p.classes) != set(run.classes) for p in run.results.peers):
        text = f"{run.label}: the test {run.samples} have none of a class that a peer never saw."
        return Learned("not known", text)
    return Learned("nothing unseen", f"{run.label}: every peer holds {run.samples} of all classes.")


def _when(run: Run) -> str:
    """Return which peers of a run have scores, if it is not all of them at the run's end."""
    if run.results.status in ("failed", "stopped"):
        return (
            f" that were there when the run {'failed' if run.results.status == 'failed' else 'was stopped'}"
        )
    return "" if run.results.status == "completed" else " that came to the end"


def learned(run: Run, runs: Sequence[Run]) -> Learned:
    """Tell which peers of ``run`` learned the classes of which they hold no image."""
    unseen = {p.peer: p.accuracy_unseen for p in run.results.peers if p.accuracy_unseen is not None}
    if (nothing := _nothing_to_learn(run, unseen)) is not None:
        return nothing
    what, bound = "accuracy", 2 * (chance := 1 / max(1, len(run.classes)))
    if run.several_labels:  # accuracy counts labels that are rare and were rightly not given
        what, chance, bound = "balanced accuracy", 0.5, GUESSED
        unseen = {p.peer: b for p in run.results.peers if (b := p.balance_unseen) is not None}
    stick = _yardstick(run, runs)
    if stick is None or not unseen:
        return Learned("not known", f"{run.label}: no {what} is known.")
    value, of = stick
    if value <= bound:
        return Learned("not known", f"{run.label}: even {of} is hardly better than guessing ({chance:.3f}).")
    who = tuple(p for p, a in unseen.items() if a >= LEARNED * value)
    spread = f"{min(unseen.values()):.3f} to {max(unseen.values()):.3f}"
    rule = f"{LEARNED:.0%} of {of}"
    others = [f"{run.name(p)}: {a:.3f}" for p, a in unseen.items() if p not in who]
    if not others:
        every = f"all {len(who)} peers" if len(who) > 1 else "its peer"
        every += _when(run)
        text = f"{every} learned the classes they never saw: {what} {spread} on them, at least {rule}"
        return Learned("all", f"{run.label}: {text}.", value, who)
    if who:
        text = (
            f"{len(who)} of {len(unseen)} peers learned the classes they never saw; {listed(others)} did not"
        )
        return Learned("some", f"{run.label}: {text} reach {rule}.", value, who)
    text = f"no peer learned the classes it never saw: {what} {spread} on them, not {rule}"
    return Learned("none", f"{run.label}: {text}.", value)


# --- do they agree? -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreed:
    """Whether the peers of a run agree at the end: ``"yes"``, ``"no"``, ``"one model"`` or ``"not known"``.

    ``same`` is what :func:`same_answers` returns, ``spread`` the difference between the best and the worst
    accuracy, ``apart`` the consensus error as a share of the way come; each None if it is not known.
    """

    verdict: Literal["yes", "no", "one model", "not known"]
    sentence: str
    same: float | None = None
    spread: float | None = None
    apart: float | None = None


def same_answers(answers: Sequence[Answers]) -> float | None:
    """Return the share of test images to which a peer gives the answer of most peers; the least of any peer.

    None if there is one tail only, or if the tails were scored on different images.
    """
    if len(answers) < 2 or any(not np.array_equal(answers[0].labels, a.labels) for a in answers):
        return None
    predicted = np.stack([a.predicted for a in answers])
    if not predicted.size:
        return None
    if answers[0].several_labels:
        most = predicted.mean(axis=0) > 0.5
        return float((predicted == most).all(axis=2).mean(axis=1).min())
    votes = np.stack([(predicted == c).sum(axis=0) for c in range(len(answers[0].classes))])
    return float((predicted == votes.argmax(axis=0)).mean(axis=1).min())


def agreed(run: Run, answers: Sequence[Answers]) -> Agreed:
    """Tell whether the peers of ``run`` have come to the same model.

    Parameters
    ----------
    run : Run
        The run.
    answers : sequence of Answers
        The answers of its peers' tails; empty if they are not known.
    """
    if not run.scored:
        return Agreed("not known", f"{run.label} has no numbers: {run.results.status}.")
    count = len(run.results.peers)
    if count < 2:
        return Agreed("one model", f"{run.label} has one model at its end: there is nothing to agree on.")
    own_tests = run.results.partition == "own"
    accuracies = run.finals("accuracy")
    spread = max(accuracies) - min(accuracies) if len(accuracies) > 1 and not own_tests else None
    same, apart = same_answers(answers), (run.apart[-1][1] if run.apart else None)
    told = []
    if same is not None:
        often = f"to at least {same:.1%} of the test {run.samples}"
        every = f"all {count} give the same answer to every test {run.sample}"
        told.append(every if same == 1 else f"each of the {count} gives the answer of most {often}")
    if spread is not None:
        told.append(f"their accuracies differ by {100 * spread:.1f} points at most")
    if apart is not None:
        told.append(f"the distance between their models is {apart:.2g} of the way that they have come")
    if run.results.consensus_error is not None:
        told.append(f"the consensus error is {run.results.consensus_error:.2g}")
    known = [(same, SAME_ANSWERS, True), (spread, SPREAD, False), (apart, APART, False)]
    checks = [
        value >= bound if least else value <= bound for value, bound, least in known if value is not None
    ]
    if not checks:
        return Agreed(
            "not known", f"{run.label}: it is not known whether the peers agree.", same, spread, apart
        )
    yes = all(checks[:-1] if same is not None and apart is not None else checks)
    verb = "the peers agree" if yes else "the peers do not agree"
    text = f"{run.label}: {verb}: {', '.join(told)}."
    return Agreed("yes" if yes else "no", text, same, spread, apart)


# --- what did it cost? --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reached:
    """Where a run first had a mean accuracy: ``iteration``, bytes of all peers and seconds, None: unknown."""

    iteration: int
    sent: int | None
    seconds: float | None


def reached(run: Run, target: float) -> Reached | None:
    """Return where the mean accuracy of ``run`` first was ``target``; None if it never was."""
    for moment in run.results.history:
        accuracy = mean(moment.accuracy)
        if accuracy is not None and accuracy >= target:
            return Reached(moment.iteration, moment.bytes_sent, run.seconds_at.get(moment.iteration))
    return None


@dataclass(frozen=True)
class Cost:
    """A run's cost beside another's: ``"cheaper"``, ``"dearer"``, ``"the same"``, or why it is not compared.

    ``ratio`` and ``time`` are the run's bytes and seconds as multiples of the other's, at the same accuracy;
    ``whole`` is the same of all bytes to the end.
    """

    verdict: Literal["cheaper", "dearer", "the same", "not reached", "not known"]
    sentence: str
    ratio: float | None = None
    time: float | None = None
    whole: float | None = None


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times as much" if ratio < 10 else f"{ratio:.0f} times as much"


def _seconds(one: Reached, two: Reached, other: Run) -> str:
    if one.seconds is None or two.seconds is None:
        return ""
    return f" Training took {one.seconds:.1f} s up to there, that of {other.label} {two.seconds:.1f} s."


def against_fedavg(run: Run, runs: Sequence[Run]) -> Cost:
    """Compare the bytes and seconds that ``run`` and FedAvg needed for the same mean accuracy."""
    other = baseline(run, runs, SERVER)
    if other is None:
        spent = f"{run.label} sent {human_bytes(run.bytes_sent)} in all"
        if run.training_seconds is not None:
            spent += f" and trained for {run.training_seconds:.1f} s"
        return Cost("not known", f"{spent}; there is no run of fedavg on the same data to compare with.")
    mine, theirs = run.accuracy, other.accuracy
    if mine is None or theirs is None:
        return Cost("not known", f"{run.label} and {other.label}: an accuracy is missing.")
    target = TARGET * theirs
    one, two = reached(run, target), reached(other, target)
    whole = f"{human_bytes(run.bytes_sent)} sent in all, {other.label} {human_bytes(other.bytes_sent)}"
    if one is None or two is None:
        text = (
            f"{run.label} does not come to {target:.3f}, {TARGET:.0%} of the accuracy of {other.label}: "
            f"it ends with {mine:.3f} after {whole}."
        )
        return Cost("not reached", text)
    if one.sent is None or two.sent is None or not two.sent:
        return Cost("not known", f"{run.label}: the bytes at an accuracy of {target:.3f} are not known.")
    ratio = one.sent / two.sent
    verdict: Literal["cheaper", "dearer", "the same"] = "the same"
    if ratio < 1 - ALIKE:
        verdict = "cheaper"
    elif ratio > 1 + ALIKE:
        verdict = "dearer"
    word = "costs about as much as" if verdict == "the same" else f"is {verdict} than"
    text = (
        f"{run.label} {word} {other.label} in bytes: to a mean accuracy of {target:.3f} ({TARGET:.0%} of "
        f"what {other.label} ends with) it sent {human_bytes(one.sent)}, {other.label} "
        f"{human_bytes(two.sent)}: "
        f"{_times(ratio)}.{_seconds(one, two, other)} To the end: {whole}"
    )
    all_bytes = run.bytes_sent / other.bytes_sent if run.bytes_sent and other.bytes_sent else None
    text += "" if all_bytes is None else f": {_times(all_bytes)}"
    text += f"; accuracy {mine:.3f} and {theirs:.3f}."
    time = one.seconds / two.seconds if one.seconds is not None and two.seconds else None
    return Cost(verdict, text, ratio, time, all_bytes)


def against_pooled(run: Run, runs: Sequence[Run]) -> Cost:
    """Compare the accuracy and seconds of ``run`` with those of training with all images in one place."""
    other = baseline(run, runs, POOLED)
    if other is None:
        return Cost(
            "not known", f"{run.label}: there is no centralized run on the same data to compare with."
        )
    mine, theirs = run.accuracy, other.accuracy
    if mine is None or theirs is None:
        return Cost("not known", f"{run.label} and {other.label}: an accuracy is missing.")
    points = 100 * (mine - theirs)
    gap = (
        "as much as"
        if abs(points) < 0.05
        else f"{abs(points):.1f} points {'more' if points > 0 else 'less'} than"
    )
    text = (
        f"{run.label} ends with a mean accuracy of {mine:.3f}, {gap} {other.label} ({theirs:.3f}), which "
        f"sends no payloads but needs the {run.samples} of all peers in one place."
    )
    target = TARGET * theirs
    one, two = reached(run, target), reached(other, target)
    if one is None:
        return Cost("not reached", f"{text} It does not come to {target:.3f}, {TARGET:.0%} of that.")
    verdict: Literal["cheaper", "dearer", "the same", "not known"] = "not known"
    if two is not None and one.seconds is not None and two.seconds is not None:
        text += (
            f" To {target:.3f}, {TARGET:.0%} of that, it took {one.seconds:.1f} s of training, "
            f"{other.label} {two.seconds:.1f} s."
        )
        low, high = (1 - ALIKE) * two.seconds, (1 + ALIKE) * two.seconds
        verdict = "cheaper" if one.seconds < low else "dearer" if one.seconds > high else "the same"
    return Cost(verdict, text)
