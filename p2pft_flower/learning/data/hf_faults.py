"""Faults of Hugging Face's loaders without their words, which may quote cells: a cell may be a patient's."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pft_flower.errors import printable
from p2pft_flower.learning.data.names import some_names

__all__ = ["quiet", "where"]

_NUMBER = re.compile(r"\b(line|row|column)s? #?(\d{1,12})\b", re.IGNORECASE)


class _Kept(logging.Handler):
    """Keeps messages, and hands them to nobody."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Keep what the library ``datasets`` logs within the ``with`` block in a list, and show none of it."""
    texts: list[str] = []
    log, kept = logging.getLogger("datasets"), _Kept(texts)
    before, propagated = log.handlers[:], log.propagate
    log.handlers[:], log.propagate = [kept], False
    try:
        yield texts
    finally:
        log.handlers[:], log.propagate = before, propagated


def where(error: BaseException, texts: list[str], folder: Path) -> str:
    """Return what is known of a fault but the words: files in ``folder``, lines, rows, columns, and its kind.

    Parameters
    ----------
    error : exception
        The library's error.
    texts : list of str
        What the library logged before.
    folder : Path
        The dataset's folder.
    """
    chain = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and below not in chain:
        chain.append(below)
    said = "\n".join([*texts, *(str(one) for one in chain)])
    names = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if str(file) in said]
    files = [name for name in names if (folder / name).is_file()]
    places = dict.fromkeys(f"{what.lower()} {number}" for what, number in _NUMBER.findall(said))
    told = [*([some_names(files)] if files else []), *places]
    kinds = " of ".join(dict.fromkeys(type(one).__name__ for one in (chain[0], chain[-1])))
    return f"{printable(', '.join(told))}: {kinds}" if told else kinds
