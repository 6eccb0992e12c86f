"""A report as headings, sentences, tables and charts, and the two forms that it is written in.

:class:`Report` knows nothing of runs. :func:`as_html` makes one page of it that needs nothing else: no
script, no font, no request; its Content-Security-Policy forbids them. Jinja2 escapes every
text but the style and the charts, in which the XML library has done so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from p2pft_flower.errors import printable
from p2pft_flower.report.grids import Grid, grid_lines
from p2pft_flower.report.page.charts import Chart
from p2pft_flower.report.tables import cell

__all__ = ["Answer", "Picture", "Report", "Section", "as_html", "as_markdown"]

_HERE = "p2pft_flower.report.page"

LONG = 24
"""A table with more rows is folded up until it is opened."""


@dataclass(frozen=True)
class Picture:
    """A picture of pixels: its caption, words for a reader who does not see it, and a ``data:`` address."""

    title: str
    description: str
    address: str


@dataclass(frozen=True)
class Section:
    """A section: its sentences come first, then charts and tables.

    Attributes
    ----------
    key : str
        The heading's anchor.
    heading : str
        The heading.
    sentences : sequence of str
        What the numbers say, in words; at least one.
    charts : sequence of Chart
        Its charts.
    pictures : sequence of Picture
        Its pictures.
    tables : sequence of Grid
        Its tables; the first column names the row.
    notes : sequence of str
        How the numbers came about, and what is left out and why.
    """

    key: str
    heading: str
    sentences: Sequence[str]
    charts: Sequence[Chart] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Grid] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Answer:
    """One of the questions at the top, the answer in a word, and the sentences behind it."""

    question: str
    word: str
    sentences: Sequence[str]
    key: str


@dataclass(frozen=True)
class Report:
    """A whole report: its title, what it is about, the questions answered first, and its sections."""

    title: str
    about: str
    answers: Sequence[Answer]
    sections: Sequence[Section] = field(default_factory=tuple)


def as_html(report: Report) -> str:
    """Return the report as one HTML page."""
    environment = Environment(
        loader=PackageLoader(_HERE, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["line"] = printable
    style = files(_HERE).joinpath("page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        report=report,
        long=LONG,
        style=style,
    )


def as_markdown(report: Report) -> str:
    """Return the report's sentences, tables and notes as Markdown; its charts are only named."""
    lines = [f"# {_text(report.title)}", "", _text(report.about), ""]
    for answer in report.answers:
        lines += [f"**{_text(answer.question)}** {_text(answer.word)}.", ""]
        lines += [*(f"- {_text(sentence)}" for sentence in answer.sentences), ""]
    for section in report.sections:
        lines += [f"## {_text(section.heading)}", ""]
        lines += [*(f"- {_text(sentence)}" for sentence in section.sentences), ""]
        for table in section.tables:
            lines += [*grid_lines(_safe(table), 3), ""]
        lines += [*(f"- {_text(note)}" for note in section.notes), ""] if section.notes else []
    return "\n".join(lines)


_MARKED = str.maketrans({c: f"\\{c}" for c in "\\`*_<>[]#"})


def _text(text: str) -> str:
    """Return a text for a line of Markdown, in which no name can begin a tag, a link or a heading."""
    return cell(text.translate(_MARKED))


def _safe(table: Grid) -> Grid:
    """Return ``table`` with each text as :func:`_text` makes it, but for what ``grid_lines`` does itself."""
    title, *header = (text.translate(_MARKED) for text in (table.title, *table.header))
    return Grid(title, header, [[text.translate(_MARKED) for text in row] for row in table.rows])
