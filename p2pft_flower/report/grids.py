"""Tables of texts, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from p2pft_flower.report.tables import cell, render

__all__ = ["Grid", "as_markdown", "as_text", "grid_lines"]

LEFT = ("", "method", "way")
"""Names of columns of words, which are aligned to the left."""


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes
    ----------
    title : str
        A line above it.
    header : list of str
        Names of the columns.
    rows : list of list of str
        The cells.
    group : int
        Number of successive rows that belong together, before a line in the terminal.
    """

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    group: int = 1_000_000


def as_text(grids: Sequence[Grid], notes: Sequence[tuple[str, list[str]]]) -> str:
    """Return tables, and the lines of notes under their headings, as text for a terminal."""
    parts: list[Table | Text] = []
    for grid in grids:
        table = Table(title=Text(grid.title))
        for i, name in enumerate(grid.header):
            table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=i == 0)
        for i, row in enumerate(grid.rows):
            table.add_row(*map(Text, row), end_section=(i + 1) % grid.group == 0)
        parts.append(table)
    for heading, lines in notes:
        parts += [Text(f"{heading}:"), *(Text(f"  - {line}") for line in lines)]
    return render(*parts)


def as_markdown(grids: Sequence[Grid], notes: Sequence[tuple[str, list[str]]], *, first: int = 1) -> str:
    """Return tables and notes as Markdown; the first table's heading has level ``first``, the others 2."""
    lines: list[str] = []
    for number, grid in enumerate(grids):
        lines += [*grid_lines(grid, 2 if number else first), ""]
    for heading, notes_of_it in notes:
        lines += [f"## {heading}", "", *(f"- {' '.join(note.split())}" for note in notes_of_it), ""]
    return "\n".join(lines)


def grid_lines(grid: Grid, level: int) -> list[str]:
    """Return a table as lines of Markdown, under a heading of ``level``."""
    return [
        f"{'#' * level} {grid.title}",
        "",
        "| " + " | ".join(map(cell, grid.header)) + " |",
        "|" + " --- |" * len(grid.header),
        *("| " + " | ".join(map(cell, row)) + " |" for row in grid.rows),
    ]
