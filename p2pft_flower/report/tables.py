"""Tables for people, from the same dictionaries that results.json holds."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from p2pft_flower.errors import printable
from p2pft_flower.keeping.progress import human_bytes

__all__ = [
    "RANDOM_WEIGHTS",
    "cell",
    "comparison_markdown",
    "comparison_table",
    "number",
    "render",
    "run_table",
    "samples_word",
    "titled",
    "view_lines",
]

ROWS_SHOWN = 64
"""The most peers that all have a row in a run's table."""

WORST_SHOWN = 16
"""Rows of a table of more peers."""

EDGES_SHOWN = 16
"""Most edges that a view's line lists; if a view has more, its line has their number alone."""

WIDTH = 140
"""Columns of a rendered table; a log has no terminal width."""

RANDOM_WEIGHTS = "RANDOM WEIGHTS, no pre-training"
"""Begins the title of every table whose runs had ``weights = "none"``."""


def render(*parts: Any) -> str:
    """Return rich objects, such as tables, as plain text."""
    text = io.StringIO()
    # No markup: names and addresses may hold brackets ("[fd00::1]") that are none of rich's tags.
    console = Console(
        file=text,
        width=WIDTH,
        force_terminal=False,
        color_system=None,
        legacy_windows=False,
        markup=False,
        emoji=False,
    )
    for part in parts:
        console.print(part)
    return text.getvalue().rstrip("\n")


def number(value: float | None, form: str = ".3f") -> str:
    """Return a number for a cell, or a dash for None."""
    return "–" if value is None else format(value, form)


def titled(title: str, runs: Sequence[dict[str, Any]]) -> str:
    """Return ``title``, with a loud note if one of the runs began without pre-trained weights."""
    random = any(run.get("config", {}).get("weights") == "none" for run in runs)
    return f"{RANDOM_WEIGHTS}: {title}" if random else title


def cell(text: str) -> str:
    """Return ``text`` for a cell of a Markdown table."""
    return printable(" ".join(text.split())).replace("|", "\\|")


def samples_word(config: Mapping[str, Any]) -> str:
    """Return the word for a run's samples: images, or samples of features and of problems of one's own."""
    of_others = config.get("problem") or str(config.get("dataset", "")).startswith("features:")
    return "samples" if of_others else "images"


def _worst(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of the peers with the lowest accuracy; those without any are last."""
    scored = sorted(rows, key=lambda row: math.inf if row["accuracy"] is None else float(row["accuracy"]))
    return scored[:WORST_SHOWN]


def _cells(peer: Mapping[str, Any], *, private: bool, partly: bool) -> list[str]:
    """Return the cells of one peer's row in the table of a run."""
    seconds = peer["seconds"]
    return [
        peer["name"],
        spans(peer["classes"]),
        str(peer["images"]),
        *([bound(peer["epsilon"])] if private else []),
        *([number(peer["iterations"], "d")] if partly else []),
        number(peer["accuracy"]),
        number(peer["accuracy_unseen"]),
        number(peer["loss"]),
        human_bytes(peer["bytes_sent"]),
        *(
            f"{seconds[part]:.1f} s" if part in seconds else "–"
            for part in ("gradient", "exchange", "evaluation")
        ),
    ]


def run_table(results: dict[str, Any]) -> str:
    """Return a run's table, a row for each peer, and lines on the whole run.

    Of more than :data:`ROWS_SHOWN` peers those with the lowest accuracy have a row. ``results`` is the
    content of results.json.
    """
    name = f"{results['name']}: " if results.get("name") else ""
    title = f"{name}{results['algorithm']} on {results['graph']['name']}, seed {results['seed']}"
    table = Table(title=titled(title, [results]))
    unfinished = results.get("unfinished") or []
    rows = sorted([*results["peers"], *unfinished], key=lambda row: int(row["peer"]))
    partly = [row for row in rows if row.get("state")]
    private = any(peer.get("delta") is not None for peer in rows)
    for name in (
        "peer",
        "classes",
        samples_word(results["config"]),
        *(["ε"] if private else []),
        *(["after"] if partly else []),
        "accuracy",
        "unseen",
        "loss",
        "sent",
        "gradient",
        "exchange",
        "evaluation",
    ):
        table.add_column(name, justify="left" if name == "classes" else "right", overflow="fold")
    shown = _worst(rows) if len(rows) > ROWS_SHOWN else rows
    for peer in shown:
        table.add_row(*_cells(peer, private=private, partly=bool(partly)))
    lines = [f"peer {row['name']}: {printable(row['state'])}" for row in partly]
    if len(shown) < len(rows):
        lines.insert(
            0, f"the {len(shown)} of {len(rows)} peers with the lowest accuracy; results.json has all of them"
        )
    if unfinished:
        lines.append(f"the lines below are about the other peers; sent by all: {human_bytes(sent(results))}")
    # A peer with a folder of its own is scored on the test images there.
    own = f"accuracy, each on its own test {samples_word(results['config'])}"
    on_all = own if results["partition"] == "own" else "accuracy on all classes"
    if any((peer.get("class_scores") or {}).get("several_labels") for peer in results["peers"]):
        on_all = on_all.replace("accuracy", "accuracy (share of right decisions on labels)")
    for key, what in (("accuracy", on_all), ("accuracy_unseen", "on classes never seen")):
        s = results["summary"][key]
        if s is not None:
            lines.append(
                f"{what}: mean {s['mean']:.4f}, std {s['std']:.4f}, min {s['min']:.4f}, max {s['max']:.4f}"
            )
    lines += _zero_shot(results)
    if most := results["config"].get("evaluate-on"):
        lines.append(f"scored on {most} test {samples_word(results['config'])} at most, drawn by the seed")
    lines += _class_lines(results)
    error = results["consensus_error"]
    lines.append(
        f"consensus error {number(error, '.2e')} | {_length(results)} | "
        f"{number(results['trainable_parameters'], ',')} trained of "
        f"{number(results['model_parameters'], ',')} parameters | {results['seconds']:.1f} s"
    )
    lines += kept_lines(results)
    if private:
        lines += privacy_lines(results)
    lines += view_lines(results.get("views") or [])
    return render(table, *lines)


def _zero_shot(results: Mapping[str, Any]) -> list[str]:
    """Return a line on the accuracy before training of a head that began with texts; none of other heads."""
    first = next(iter(results.get("history") or []), None)
    if results["config"].get("head") != "text" or first is None or first["iteration"]:
        return []
    there = [value for value in first["accuracy"] if value is not None]
    return [f"zero-shot, before training: mean accuracy {fmean(there):.4f}"] if there else []


def _class_lines(results: Mapping[str, Any]) -> list[str]:
    """Return a line on balanced accuracy and the lowest recall of a class; none if no peer has them."""
    told = [(peer["name"], peer.get("class_scores")) for peer in results["peers"]]
    s = results["summary"].get("balanced_accuracy")
    scored = [(name, scores) for name, scores in told if scores and scores["lowest_recall"] is not None]
    if s is None or not scored:
        return []
    name, worst = min(scored, key=lambda one: float(one[1]["lowest_recall"]))
    recall, images = worst["lowest_recall"], worst["lowest_support"]
    what = samples_word(results["config"])
    ranked = results["summary"].get("macro_auroc")
    auroc = (
        f"mean AUROC of the labels: mean {ranked['mean']:.4f}, min {ranked['min']:.4f}, "
        f"max {ranked['max']:.4f}; "
        if ranked
        else ""
    )
    return [
        f"{auroc}balanced accuracy: mean {s['mean']:.4f}, min {s['min']:.4f}, max {s['max']:.4f}; lowest "
        f"recall {recall:.4f}: class {printable(worst['lowest_class'])} ({images} test {what}), peer {name}"
    ]


def kept_lines(results: Mapping[str, Any]) -> list[str]:
    """Return the lines on the best θ that the peers have kept; none if they end with their last one."""
    rows = {row["peer"]: row["kept"] for row in results["peers"] if row.get("kept") is not None}
    told: dict[str, list[int]] = {}
    of = samples_word(results.get("config", {}))
    for peer, kept in rows.items():
        score = f"{kept['by'].replace('-', ' ')} {kept['score']:.4f} on validation {of}"
        told.setdefault(f"of iteration {kept['iteration']}, the best: {score}", []).append(peer)
    lines = [
        f"kept: θ {what}" if len(told) == 1 else f"peers {peers} kept: θ {what}"
        for what, peers in told.items()
    ]
    if without := [peer for peer, kept in rows.items() if not kept["own"]]:
        lines.append(f"peers {without} were not there then: their scores are those of their last θ")
    return lines


def _length(results: Mapping[str, Any]) -> str:
    """Return how many iterations a run has done, of how many if it has not completed."""
    every = f"{results['iterations']} iterations"
    if str(results["status"]).startswith("completed"):
        return every
    done = max((peer["iterations"] or 0 for peer in results["peers"]), default=0)
    return f"evaluated after {done} of {every}"


def sent(results: Mapping[str, Any]) -> int:
    """Return the payload bytes that all peers of a run have sent, the lost ones' included as far as known."""
    return sum(peer["bytes_sent"] for peer in [*results["peers"], *(results.get("unfinished") or [])])


def view_lines(views: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each change of view: when, which peers were lost or rejoined, why, and the graph."""
    lines = []
    for view in views:
        why = view["why"]
        changes = [
            f"peer {p} lost ({printable(why[str(p)])})" if str(p) in why else f"peer {p} lost"
            for p in view["lost"]
        ]
        missed = view.get("missed", {})
        behind = {p: f", {missed[str(p)]} iterations behind" for p in view["joined"] if str(p) in missed}
        changes += [f"peer {p} joined{behind.get(p, '')}" for p in view["joined"]]
        edges = view["edges"]
        graph = f"{len(edges)} edges"
        if len(edges) <= EDGES_SHOWN:
            graph += f" (sender to receiver: {', '.join(f'{j} to {i}' for j, i in edges)})"
        place, peers = f"view {view['number']} after iteration {view['iteration']}", map(str, view["peers"])
        lines.append(
            f"{place}: {', '.join(changes) or 'nobody lost'}; {view['seconds']:.1f} s until they agreed, "
            f"then peers {' '.join(peers)}, {graph}"
        )
    return lines


def bound(epsilon: float | None) -> str:
    """Return ε for a cell; None stands for infinity, which JSON lacks."""
    return "∞" if epsilon is None or math.isinf(epsilon) else f"{epsilon:.2f}"


def privacy_lines(results: dict[str, Any]) -> list[str]:
    """Return ε and δ of each peer, and how they were computed."""
    peers, config = results["peers"], results["config"]
    epsilons = " ".join(bound(peer["epsilon"]) for peer in peers)
    deltas = " ".join(number(peer["delta"], ".1e") for peer in peers)
    return [
        f"differential privacy: ε {epsilons} at δ {deltas}",
        f"clip {config['dp-clip']:g}, noise {config['dp-noise']:g} | RDP accountant (Opacus), Poisson "
        "batches, one image added or removed",
    ]


def spans(classes: Sequence[str]) -> str:
    """Return class names for a cell: ``4-6`` for a run of numbers, a count for many other names."""
    if len(classes) > 1 and all(c.isdecimal() for c in classes):
        numbers = sorted(int(c) for c in classes)
        groups: list[list[int]] = []
        for value in numbers:
            if groups and value == groups[-1][-1] + 1:
                groups[-1].append(value)
            else:
                groups.append([value])
        return ",".join(f"{g[0]}-{g[-1]}" if len(g) > 1 else str(g[0]) for g in groups)
    return ",".join(map(printable, classes)) if len(classes) <= 6 else f"{len(classes)} classes"


_COMPARISON = (
    "algorithm",
    "accuracy of each peer",
    "mean",
    "std",
    "unseen",
    "loss",
    "consensus error",
    "sent",
    "seconds",
)


def _comparison_rows(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for results in runs:
        if results["status"] != "completed":
            rows.append(
                [
                    results["algorithm"],
                    "\n".join(map(printable, f"{results['status']}: {results['error']}".splitlines())),
                    *[""] * (len(_COMPARISON) - 2),
                ]
            )
            continue
        peers = results["peers"]
        accuracy, unseen = results["summary"]["accuracy"], results["summary"]["accuracy_unseen"]
        each = (
            " ".join(number(p["accuracy"]) for p in peers)
            if len(peers) <= 8
            else f"{number(accuracy and accuracy['min'])} to {number(accuracy and accuracy['max'])}"
        )
        rows.append(
            [
                results["algorithm"],
                each,
                number(accuracy and accuracy["mean"]),
                number(accuracy and accuracy["std"]),
                number(unseen and unseen["mean"]),
                number(results["summary"]["loss"] and results["summary"]["loss"]["mean"]),
                number(results["consensus_error"], ".1e"),
                human_bytes(sent(results)),
                f"{results['seconds']:.1f}",
            ]
        )
    return rows


def comparison_table(runs: Sequence[dict[str, Any]], title: str) -> str:
    """Return a table of several runs' results, a row for each run."""
    table = Table(title=title)
    for name in _COMPARISON:
        table.add_column(name, justify="left" if name.startswith(("algorithm", "accuracy of")) else "right")
    for row in _comparison_rows(runs):
        table.add_row(*row)
    return render(table)


def comparison_markdown(runs: Sequence[dict[str, Any]], title: str) -> str:
    """Return the table of :func:`comparison_table` as Markdown."""
    lines = [f"# {title}", "", "| " + " | ".join(_COMPARISON) + " |", "|" + " --- |" * len(_COMPARISON)]
    lines += ["| " + " | ".join(cell(text) for text in row) + " |" for row in _comparison_rows(runs)]
    return "\n".join(lines) + "\n"
