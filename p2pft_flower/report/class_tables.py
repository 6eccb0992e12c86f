"""Tables for people of a tail's scores by class, from what ``p2pft evaluate --json`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pft_flower.errors import printable
from p2pft_flower.report.tables import number

__all__ = ["MATRIX", "class_table", "confusion_table", "overall_line", "peer_of", "print_classes"]

MATRIX = 12
"""The most classes of which a confusion matrix is shown; JSON has it of any number."""

_BETWEEN = 2
"""Blanks before a column of a table of classes."""

_ENDS = "0.000 to"
"""The first line of an interval that takes two."""

_NAME = 8
"""The most characters of a class's name that one line has in any case."""

_SHARE = "0.0000"

_RANKED = (("AUROC", "macro_auroc"), ("AP", "macro_average_precision"))


def peer_of(score: Mapping[str, Any]) -> str:
    """Return the peer's number, with its name in brackets if it has one."""
    name = score["name"]
    return score["peer"] if name is None else printable(f"{score['peer']} ({name})")


def overall_line(score: Mapping[str, Any], what: str) -> str:
    """Return a line on the scores of a tail over all classes, without those that a table has.

    With confidence intervals it has all.

    Parameters
    ----------
    score : mapping
        An entry of what ``p2pft evaluate --json`` prints.
    what : str
        The word for the samples.
    """
    scores, peer = score["class_scores"], peer_of(score)
    if scores is None:
        return f"peer {peer}: no test {what}, so no scores by class"
    ends = score["intervals"] or {}
    values = {
        **({"accuracy": score["accuracy"], "balanced accuracy": scores["balanced_accuracy"]} if ends else {}),
        "macro F1": scores["macro_f1"],
        **({f"macro {name}": scores[key] for name, key in _RANKED} if scores["several_labels"] else {}),
    }
    parts = [
        f"{name} {number(value, '.4f')}{_interval(ends.get(name.lower().replace(' ', '_')))}"
        for name, value in values.items()
    ]
    error = number(scores["calibration_error"], ".4f")
    parts.append(f"expected calibration error {error} ({scores['bins']} bins)")
    if ends:
        parts[-1] += f"; {100 * ends['level']:g} % intervals of {ends['resamples']} drawings"
    return f"peer {peer}: {', '.join(parts)}"


def class_table(score: Mapping[str, Any], what: str) -> Table:
    """Return the table with a row for each class; parameters as of :func:`overall_line`.

    AP is the average precision, *taken* the number of images that were taken for the class.
    """
    classes, ends = score["class_scores"]["classes"], score["intervals"] or {}
    table = Table(title=Text(f"peer {peer_of(score)}, each class"), box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    longest = max((len(printable(name)) for name in classes["names"]), default=0)
    table.add_column("class", overflow="fold", min_width=min(longest, _NAME))
    for name in (what, "recall", "specificity", "precision", "AUROC", "AP", "taken"):
        least = {"recall": _ENDS, "AUROC": _ENDS} if ends else {}
        # In few columns long names and intervals take more lines.
        width = max(len(name), len(least.get(name, "" if name in (what, "taken") else _SHARE)))
        table.add_column(name, justify="right", min_width=width, no_wrap=name not in least)
    for k, name in enumerate(classes["names"]):
        table.add_row(
            Text(printable(name), overflow="fold"),
            str(classes["support"][k]),
            _with_interval(classes["recall"], ends.get("recall"), k),
            number(classes["specificity"][k], ".4f"),
            number(classes["precision"][k], ".4f"),
            _with_interval(classes["auroc"], ends.get("auroc"), k),
            number(classes["average_precision"][k], ".4f"),
            str(classes["answers"][k]),
        )
    return table


def print_classes(console: Console, table: Table) -> None:
    """Print a :func:`class_table` without cutting a number off; on a narrow console its lines are longer."""
    needed = sum((column.min_width or 0) + _BETWEEN for column in table.columns) + 1
    if needed > console.width:
        table.width = needed
    console.print(table, crop=False)


def confusion_table(score: Mapping[str, Any]) -> Table | str:
    """Return the confusion matrix of a tail, or a line in its place if it is too large to be read."""
    names, counts = score["class_scores"]["classes"]["names"], score["class_scores"]["confusion"]
    if score["class_scores"]["several_labels"]:
        return "images with several labels have no confusion matrix; accuracy: the share of right decisions"
    if len(names) > MATRIX:
        return f"the confusion matrix of {len(names)} classes: see --json"
    table = Table(title=Text(f"peer {peer_of(score)}, confusion (row: true class, column: answer)"))
    for name in ("", *names):
        table.add_column(Text(printable(name)), justify="right", overflow="fold")
    for name, row in zip(names, counts, strict=True):
        table.add_row(Text(printable(name)), *map(str, row))
    return table


def _with_interval(
    values: Sequence[float | None], ends: Sequence[Sequence[float] | None] | None, k: int
) -> str:
    told = number(values[k], ".4f")
    found = None if ends is None else ends[k]
    return told if found is None else f"{told}\n{found[0]:.3f} to {found[1]:.3f}"


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f" ({ends[0]:.3f} to {ends[1]:.3f})"
