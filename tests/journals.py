"""Peers' logs as plain dictionaries: a test names what it looks at."""

from __future__ import annotations

from p2pft_flower.keeping.journal import by_run, read_journal
from p2pft_flower.typed import plain


def lines_of(path):
    """Return all lines of a log."""
    return [plain(line) for line in read_journal(path)]


def last_life(path):
    """Return the lines of the last run in a log, or of the peer's last life in it."""
    life = by_run(read_journal(path))[-1]
    return [plain(line) for line in (life.run, *life.lines)]
