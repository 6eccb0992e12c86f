"""Documents: links lead somewhere, the files that their tables name exist, and the map has every layer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import p2pft_flower
from tools import check_site

PACKAGE = Path(p2pft_flower.__file__).resolve().parent
ROOT = PACKAGE.parent
DOCUMENTS = sorted(
    file
    for place in (".", "docs", "deploy", "benchmarks", "topologies", "apps/p2pft", "p2pft_flower")
    for file in (ROOT / place).glob("*.md" if place != "p2pft_flower" else "**/*.md")
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(document), flags=re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in plain}


def without_code(document: Path) -> str:
    return re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def dead_links(document: Path) -> list[str]:
    found = []
    for link in LINK.findall(without_code(document)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_links_between_documents_lead_to_a_file_and_a_heading(document: Path) -> None:
    assert dead_links(document) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# One, two\n\n[x](b.md) [y](#one-two) [z](#two) [w](a.md#one-two)")
    assert dead_links(tmp_path / "a.md") == ["b.md", "#two"]


def missing_files(text: str) -> list[str]:
    """Return the files named in table rows that do not exist; a bare name is beside the one before."""
    found = []
    for row in re.findall(r"^\|.*\|$", text, flags=re.MULTILINE):
        folder = PACKAGE
        for name in re.findall(r"`([\w./]+\.(?:py|proto|toml))`", row):
            places = [folder / name, PACKAGE / name, PACKAGE / "learning" / name, ROOT / name]
            file = next((place for place in places if place.is_file()), None)
            if file is None:
                found.append(name)
            else:
                folder = file.parent
    return found


def test_every_file_that_the_documents_send_a_reader_to_exists() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    where = contributing[contributing.index("## Where things are") : contributing.index("## Adding things")]
    assert where.count(".py`") > 60
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = architecture[architecture.index("## Trunk and tail") : architecture.index("## Invariants")]
    assert modules.count(".py`") > 10
    assert missing_files(where) + missing_files(modules) == []


def test_the_map_has_every_layer_and_room_and_every_module_beside_them() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = text[text.index("## Where things are") : text.index("## I want to")]
    named = set(re.findall(r"^\| `([\w/.]+)` \|", text, flags=re.MULTILINE))
    rooms = {f"{file.parent.relative_to(PACKAGE)}/" for file in PACKAGE.rglob("*/__init__.py")}
    modules = {file.name for file in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert {name for name in named if name.endswith(("/", ".py"))} == (rooms | modules) - {
        "./",
        "learning/model/embedded/",
    }


def test_a_missing_file_is_found() -> None:
    assert missing_files("| read | `algorithms/p2pft.py`; `nothing.py` |") == ["nothing.py"]


@pytest.mark.parametrize(
    "element",
    [
        '<script src="https://cdn.example/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<img src="http://cdn.example/a.png">',
        '<p style="background: url(https://cdn.example/a.png)">',
        "<style>@import 'https://cdn.example/a.css';</style>",
    ],
)
def test_what_a_page_of_the_site_loads_from_another_place_is_found(element: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(f'<a href="https://flower.ai">x</a><img src="a.png">{element}')
    (found,) = check_site.remote_loads(tmp_path)
    assert found.startswith("index.html loads ")
    assert ".example/" in found


def test_a_list_that_the_site_reads_as_a_paragraph_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_site, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("# Title\n\nText\n- one\n- two\n")
    page = tmp_path / "site" / "index.html"
    page.parent.mkdir()
    page.write_text("<ul><li>menu</ul><article><h1>Title</h1><p>Text - one - two</p></article><img>")
    assert list(check_site.differences(page.parent, [tmp_path / "README.md"])) == [
        "README.md: 0 <li> on the site, 2 in CommonMark"
    ]
