"""Names of classes and files: their order, names that look the same, and lists for messages."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal

from natsort import natsorted

from p2pft_flower.errors import printable

__all__ = ["differing_unseen", "in_order", "is_missing", "look_alikes", "number_of", "some_names"]

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,9})?", re.IGNORECASE)

_MISSING = {"", "nan", "-nan", "na", "n/a", "#na", "#n/a", "<na>", "null"}
"""Cells that pandas, R and spreadsheets write or read where a value is missing, in lower case."""

NAMED = 10
"""Most names that a message lists; a message counts the others."""


def in_order(names: Iterable[str]) -> list[str]:
    """Return names in natural order: numbers in them count as numbers, so that 2 comes before 10.

    Names that are numbers come first, by their value: -1 before 0, 0.25 before 0.5.
    """
    natural = natsorted(sorted(names))  # names of the same value, as 2 and 02, by their letters
    values = [(number_of(name), place, name) for place, name in enumerate(natural)]
    numbers = sorted((value, place, name) for value, place, name in values if value is not None)
    return [name for *_, name in numbers] + [name for value, _, name in values if value is None]


def is_missing(cell: str) -> bool:
    """Return whether a table's cell is empty, or a word for a missing value, such as ``nan`` or ``N/A``.

    ``none`` is none of these words: it is a grade, too.
    """
    return cell.strip().lower() in _MISSING


def number_of(name: str) -> Decimal | None:
    """Return the value of a name that is a number, as ``01``, ``-1``, ``1.0`` or ``0,5``; else None."""
    written = name.replace("\u2212", "-").replace(",", ".")  # the minus sign of typesetters
    return Decimal(written) if _NUMBER.fullmatch(written) else None


def differing_unseen(name: str, others: Iterable[str]) -> str:
    """Return the end of a message on an invisible difference between ``name`` and one of ``others``.

    Returns
    -------
    str
        A text such as ``"; it differs from 'cat' only in case"``; empty if there is no such name.
    """
    for other in others:
        if other != name and _bare(other) == _bare(name):
            return f"; it differs from {other!a} only in {_difference(name, other)}"
    return ""


def look_alikes(names: Iterable[str]) -> list[str]:
    """Return a description of each group of ``names`` that only look different.

    They differ in Unicode form, blanks or case, or are one number, as 1 and 1.0.
    """
    groups: dict[str | Decimal, list[str]] = {}
    for name in names:
        groups.setdefault(_bare(name), []).append(name)
    return [
        f"{' and '.join(ascii(name) for name in group)} differ only in "
        f"{' and '.join(dict.fromkeys(_difference(group[0], other) for other in group[1:]))}"
        for group in groups.values()
        if len(group) > 1
    ]


def some_names(names: Sequence[object]) -> str:
    """Return a text for one line with the first ten names and the number of the others."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(printable(str(name)) for name in names[:NAMED]) + more


def _bare(name: str) -> str | Decimal:
    bare = "".join(unicodedata.normalize("NFKC", name).casefold().split())
    number = number_of(bare)
    return bare if number is None else number


def _difference(one: str, other: str) -> str:
    """Return a description of the difference of two names with the same :func:`_bare`."""
    forms = {
        "Unicode form": lambda name: unicodedata.normalize("NFKC", name),
        "blanks": lambda name: "".join(name.split()),
        "case": str.casefold,
    }
    for what, form in forms.items():
        if form(one) == form(other):
            return what
    if isinstance(_bare(one), Decimal):
        return "the way in which a number is written"
    return "Unicode form, blanks or case"
