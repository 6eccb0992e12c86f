"""The documentation's site (mkdocs.yml): the repository's documents become its pages, at their own places.

So a document is read in the repository and on the site, with the same links. A file or folder of code to
which a document links becomes a page that shows it. Two pages are made of the code (:mod:`tools.site_pages`).
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.site_pages import api, notebook, settings

__all__ = ["documents", "on_files", "on_page_markdown"]

ROOT = Path(__file__).resolve().parents[1]
PLACES = (
    "*.md",
    "docs/*.md",
    "docs/*.css",
    "docs/*.ipynb",
    "docs/images/*",
    "apps/p2pft/README.md",
    "benchmarks/README.md",
    "deploy/README.md",
    "topologies/README.md",
    "p2pft_flower/learning/model/embedded/README.md",
)
"""The documents, their pictures and the site's own style, as patterns of paths in the repository."""

NOTEBOOK = ".ipynb"

_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=\))")
"""The target of a link to a file or folder of the repository, without an anchor."""

_CODE = "files/{}.md"
"""The page that shows a file or folder of code, by its path in the repository."""


def documents() -> list[Path]:
    """Return the paths of the repository's documents."""
    return sorted({path for place in PLACES for path in ROOT.glob(place) if path.suffix == ".md"})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the theme's files, the repository's documents, and the pages of code that they link to."""
    taken = Files([file for file in files if file.src_dir != config.docs_dir])
    for path in sorted({path for place in PLACES for path in ROOT.glob(place)}):
        uri = path.relative_to(ROOT).as_posix()
        if path.suffix == NOTEBOOK:
            page = uri.removesuffix(NOTEBOOK) + ".md"
            taken.append(File.generated(config, page, content=notebook(path)))
        else:
            taken.append(File.generated(config, uri, abs_src_path=str(path)))
    code = {target for path in documents() for target in _linked_code(path)}
    code |= {file for target in code if target.is_dir() for file in target.iterdir() if file.is_file()}
    for target in sorted(code):
        uri = _CODE.format(target.relative_to(ROOT).as_posix())
        taken.append(File.generated(config, uri, content=_shown(target)))
    taken.append(File.generated(config, "settings.md", content=settings()))
    taken.append(File.generated(config, "api.md", content=api()))
    return taken


def on_page_markdown(markdown: str, page: Page, files: Files, **_: object) -> str:
    """Return the text of a page with its links to code turned into links to the pages that show it."""
    here = posixpath.dirname(page.file.src_uri)

    def shown(match: re.Match[str]) -> str:
        if match[1].endswith(NOTEBOOK):
            return match[1].removesuffix(NOTEBOOK) + ".md"
        target = posixpath.normpath(posixpath.join(here, match[1]))
        uri = _CODE.format(target)
        return posixpath.relpath(uri, here or ".") if files.get_file_from_path(uri) else match[1]

    return _LINK.sub(shown, markdown)


def _linked_code(document: Path) -> Iterator[Path]:
    """Yield the files and folders to which a document links and which are no documents themselves."""
    for link in _LINK.findall(document.read_text(encoding="utf-8")):
        target = Path(os.path.normpath(document.parent / link))
        if target.is_dir() or (target.is_file() and not any(target.match(place) for place in PLACES)):
            yield target


def _shown(target: Path) -> str:
    """Return the text of the page that shows a file, or the names of a folder's files."""
    title = f"# {target.relative_to(ROOT).as_posix()}\n\n"
    if target.is_dir():
        names = sorted(file.name for file in target.iterdir() if file.is_file())
        return title + "\n".join(f"- [{name}]({target.name}/{name}.md)" for name in names)
    return f"{title}````` {{ .{target.suffix[1:] or 'text'} }}\n{target.read_text(encoding='utf-8')}\n`````\n"
