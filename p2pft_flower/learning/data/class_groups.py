"""Reading and writing the text ``classes:…`` of a partition, which gives each peer its classes.

A text without quotes may be a class's name, the number that is a class's name, a class's position, or a range
of these. Such a text is accepted only if all its possible meanings agree; quotes enclose a literal name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.names import differing_unseen, number_of, some_names

__all__ = ["check_groups", "class_owners", "even_groups"]

_QUOTED = r'"(?:[^"]|"")*"'
_NAMES = rf"\s*(?P<first>{_QUOTED})\s*(?:-\s*(?P<last>{_QUOTED})\s*)?"
_ITEM = re.compile(rf'(?:{_NAMES}|(?P<bare>[^",+]*))(?P<end>[,+]|\Z)')


class _Item(NamedTuple):
    """One of the texts between ``+`` and ``,``: bare, or one or two names in quotes."""

    bare: str
    names: tuple[str, ...] = ()


def class_owners(spec: str, n: int, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the peer that holds each class.

    Parameters
    ----------
    spec : str
        ``"classes:0-1,2-3,4-6,7-9"``, as in :func:`~p2pft_flower.learning.data.partitions.partition_images`.
    n : int
        Number of peers.
    classes : sequence of str
        Names of the classes.

    Returns
    -------
    (C,) int64 array
        The peer of each class; -1 for a class of no peer.

    Raises
    ------
    ConfigError
        When ``spec`` cannot be read or can be read in two ways, does not fit n and the classes, or gives a
        class to two peers.
    """
    reader = _Reader(classes)
    owner: dict[int, int] = {}
    for peer, group in enumerate(check_groups(spec, n)):
        for c in reader.group(spec, group):
            if c in owner:
                called = f"class {c}" if classes[c] == str(c) else f"class {classes[c]!r}"
                raise ConfigError(f"partition = {spec!r}: {called} is given to peers {owner[c]} and {peer}")
            owner[c] = peer
    return np.array([owner.get(c, -1) for c in range(len(classes))], dtype=np.int64)


def even_groups(n: int, classes: Sequence[str]) -> str:
    """Write a partition of the classes into ``n`` ranges of nearly the same size, one a peer.

    The classes are written by position if that cannot be misread, else by plain name, else by name in quotes.
    """
    reader = _Reader(classes)
    spans = [range(part[0], part[-1] + 1) for part in np.array_split(np.arange(len(classes)), n)]
    for names in (range(len(classes)), classes):
        texts = [f"{names[span[0]]}-{names[span[-1]]}" for span in spans]
        if all(
            text.count("-") == 1 and not set(text) & set('",+') and reader.readings(text) == [span]
            for text, span in zip(texts, spans, strict=True)
        ):
            return "classes:" + ",".join(texts)
    return "classes:" + ",".join(reader.quoted(span) for span in spans)


def check_groups(spec: str, n: int) -> list[list[_Item]]:
    """Return the items of each peer's group of classes, without looking the classes up.

    Raises
    ------
    ConfigError
        When there are not ``n`` groups, or a quote is misplaced.
    """
    text = spec.partition(":")[2]
    groups: list[list[_Item]] = [[]]
    at = 0
    while True:
        found = _ITEM.match(text, at)
        if found is None:
            raise ConfigError(
                f"partition = {spec!r}: {text[at:]!r} cannot be read: quotes stand round a whole name, as in "
                'classes:"0-1"+"2-3","a"-"d", and a quote that is part of a name is written twice'
            )
        names = tuple(q[1:-1].replace('""', '"') for q in found.group("first", "last") if q)
        groups[-1].append(_Item(found["bare"] or "", names))
        if not found["end"]:
            break
        at = found.end()
        if found["end"] == ",":
            groups.append([])
    if len(groups) != n:
        more = '; a name with a comma in it stands in quotes, as "a, b"' if len(groups) > n else ""
        raise ConfigError(
            f"partition = {spec!r} names {len(groups)} groups of classes for {n} peers: give one a peer{more}"
        )
    return groups


class _Reader:
    """A reader of texts that stand for some of ``classes``."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._index = {name: position for position, name in enumerate(classes)}
        self._numbers = [number_of(name) for name in classes]
        numbered = (name for p, name in enumerate(classes) if self._numbers[p] not in (None, p))
        self._misnumbered = next(numbered, None)
        """The first class whose name is a number other than the class's position; None if there is none."""

    def group(self, spec: str, items: Sequence[_Item]) -> list[int]:
        """Return the classes of a peer's group, ascending, with repetitions.

        Raises
        ------
        ConfigError
            When an item means no class, or the meaning of the items is ambiguous.
        """
        ways = self._ways(items)
        if len(ways) == 1:
            return [*next(iter(ways))]
        for item in items:
            meant = self._spans([item])
            if not meant:
                raise self._unknown(spec, item)
            if len(meant) > 1:
                raise _ambiguous(spec, item.bare, [self.quoted(span) for span in meant])
        raise _ambiguous(spec, "+".join(map(_text, items)), [*ways.values()])

    def _ways(self, items: Sequence[_Item]) -> dict[tuple[int, ...], str]:
        """Return at most two meanings of the items, each with its text in quotes.

        A ``+`` may also be part of a name.
        """
        longest = 1 + 2 * max((name.count("+") for name in self._classes), default=0)  # "a+b-c+d"
        ways: list[dict[tuple[int, ...], str]] = [{(): ""}]  # of the first items, by their number
        for end in range(1, len(items) + 1):
            here: dict[tuple[int, ...], str] = {}
            for start in range(end - 1, max(0, end - longest) - 1, -1):
                for span in self._spans(items[start:end]):
                    for before, text in ways[start].items():
                        meant = tuple(sorted([*before, *span]))
                        here.setdefault(meant, "+".join(filter(None, [text, self.quoted(span)])))
            ways.append(dict([*here.items()][:2]))
        return ways[-1]

    def _spans(self, items: Sequence[_Item]) -> list[range]:
        """Return the meanings of the items taken as one text, in which ``+`` is part of names."""
        if not any(item.names for item in items):
            return self.readings("+".join(item.bare for item in items))
        if len(items) > 1 or not all(name in self._index for name in items[0].names):
            return []
        first, last = (self._index[items[0].names[i]] for i in (0, -1))
        return [range(first, last + 1)] if first <= last else []

    def readings(self, text: str) -> list[range]:
        """Return all meanings of a text without quotes, each a range of positions; names come first."""
        found = self._range(text, self._named)
        # If numbers are names, a position is only a possible intention.
        if self._misnumbered is None or found:
            found += self._range(text, self._placed)
        return [*dict.fromkeys(found)]

    def _range(self, text: str, ends: Callable[[str], set[int]]) -> list[range]:
        spans = [range(c, c + 1) for c in sorted(ends(text))]
        for dash in (match.start() for match in re.finditer("-", text)):
            firsts, lasts = ends(text[:dash]), ends(text[dash + 1 :])
            spans += [range(a, b + 1) for a in sorted(firsts) for b in sorted(lasts) if a <= b]
        return spans

    def _named(self, text: str) -> set[int]:
        """Return the classes of this name, with blanks round it or without, else those of this number."""
        exact = {self._index[name] for name in (text, text.strip()) if name in self._index}
        number = number_of(text.strip())
        if exact or number is None:
            return exact
        return {c for c, value in enumerate(self._numbers) if value == number}

    def _placed(self, text: str) -> set[int]:
        """Return the class at the position ``text``; if ``text`` is no number, the classes of this name."""
        bare = text.strip()
        if not _is_position(bare):
            return set() if number_of(bare) is not None else self._named(text)
        taken = self._misnumbered is not None and bare in self._index
        return {int(bare)} if not taken and int(bare) < len(self._classes) else set()

    def quoted(self, span: range) -> str:
        """Return a text for a range of classes: the names of the first and the last, in quotes."""
        ends = dict.fromkeys((self._classes[span[0]], self._classes[span[-1]]))
        return "-".join(map(_quoted, ends))

    def _unknown(self, spec: str, item: _Item) -> ConfigError:
        """Return the error for an item that names no class, with the nearest name."""
        text = item.bare.strip()
        if (numbers := text.split("-")) and all(map(_is_position, numbers)) and len(numbers) <= 2:
            for number in numbers:
                if self._misnumbered is not None and number not in self._index:
                    return ConfigError(
                        f"partition = {spec!r}: no class is called {number!r}, and numbers are names here, "
                        f"as class {self._misnumbered!r} has position {self._index[self._misnumbered]}: give "
                        f"the classes by their names, {some_names(self._classes)}"
                    )
                if self._misnumbered is None and int(number) >= len(self._classes):
                    return ConfigError(
                        f"partition = {spec!r}: class {number} does not exist; classes are "
                        f"0-{len(self._classes) - 1}"
                    )
        unknown = next((name for name in item.names if name not in self._index), text)
        close = difflib.get_close_matches(unknown, self._classes, n=1)
        near = f"; did you mean {close[0]!r}?" if close else ""
        return ConfigError(
            f"partition = {spec!r}: {_text(item)!r} is neither a class (7, or its name) nor a range (7-9)"
            f"{differing_unseen(unknown, self._classes) or near}"
        )


def _ambiguous(spec: str, text: str, meant: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"partition = {spec!r}: {text!r} may mean the classes {' or '.join(meant[:2])}: write what you mean, "
        "with these quotes round the names"
    )


def _text(item: _Item) -> str:
    return "-".join(map(_quoted, item.names)) or item.bare


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _is_position(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
