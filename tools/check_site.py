"""Check the documentation's site: it loads nothing from elsewhere, and shows what a reader of the files sees.

``python -m tools.check_site SITE`` exits with 1 and names each page that loads a script, a style, a font, a
picture or a frame from another place, and each document that the site reads otherwise than CommonMark (and
GitHub with it): a list that lost its items, a table that is a line of text.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

from markdown_it import MarkdownIt

__all__ = ["differences", "remote_loads"]

ROOT = Path(__file__).resolve().parents[1]

_LOADING = {
    "script": ("src",),
    "link": ("href",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "object": ("data",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
"""The attributes by which an element makes a browser load something."""

_QUIET_LINKS = frozenset({"canonical", "next", "prev", "author", "license", "edit"})
"""The rel of links that a browser does not load."""

_REMOTE = re.compile(r"^\s*(https?:)?//")
_STYLE = re.compile(r"(?:url\(\s*[\"']?|@import\s+[\"'])((?:https?:)?//[^\"')\s]+)")

_COUNTED = ("h1", "h2", "h3", "h4", "li", "table", "tr", "img", "blockquote")
"""The elements of which a page must have as many as CommonMark gives."""


class _Page(HTMLParser):
    """What a page loads, and how many elements of each kind its article has."""

    def __init__(self, article: bool) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.counts: Counter[str] = Counter()
        self._inside = not article

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._inside = self._inside or tag == "article"
        if self._inside and tag in _COUNTED:
            self.counts[tag] += 1
        if tag == "link" and given.get("rel") in _QUIET_LINKS:
            return
        self.loads += [given[name] or "" for name in _LOADING.get(tag, ()) if name in given]
        self.loads += _STYLE.findall(given.get("style") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self._inside = False


def remote_loads(site: Path) -> Iterator[str]:
    """Yield a line for each thing that a page or a style of the site loads from another place."""
    for file in sorted(site.rglob("*.html")):
        page = _read(file.read_text(encoding="utf-8"), article=True)
        for address in filter(_REMOTE.match, page.loads):
            yield f"{file.relative_to(site)} loads {address}"
    for file in sorted((*site.rglob("*.css"), *site.rglob("*.html"))):
        styles = file.read_text(encoding="utf-8")
        if file.suffix == ".html":
            styles = "".join(re.findall(r"<style[^>]*>(.*?)</style>", styles, re.DOTALL))
        for address in _STYLE.findall(styles):
            yield f"{file.relative_to(site)} loads {address}"


def differences(site: Path, documents: Iterable[Path]) -> Iterator[str]:
    """Yield a line for each kind of element of which a page has not as many as its document has."""
    reader = MarkdownIt("commonmark").enable("table")
    for document in documents:
        place = document.relative_to(ROOT).with_suffix("")
        page = site / (place.parent if place.name == "README" else place) / "index.html"
        ours = _read(page.read_text(encoding="utf-8"), article=True).counts
        right = _read(reader.render(document.read_text(encoding="utf-8")), article=False).counts
        for tag in _COUNTED:
            if ours[tag] != right[tag]:
                name = document.relative_to(ROOT)
                yield f"{name}: {ours[tag]} <{tag}> on the site, {right[tag]} in CommonMark"


def _read(html: str, *, article: bool) -> _Page:
    page = _Page(article)
    page.feed(html)
    return page


def main() -> int:
    """Check the site in the folder that the command line names; return the exit code."""
    from tools.site_hooks import documents

    site = Path(sys.argv[1])
    wrong = [*remote_loads(site), *differences(site, documents())]
    print("\n".join(wrong) or "nothing is loaded from elsewhere; each page shows its document")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
