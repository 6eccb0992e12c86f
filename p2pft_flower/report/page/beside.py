"""The sections on what lies beside the runs: figures of attention, and the paper's tables."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from p2pft_flower.errors import DataError
from p2pft_flower.report.grids import Grid
from p2pft_flower.report.page.document import Picture, Section
from p2pft_flower.report.page.material import Material
from p2pft_flower.report.page.runs import Run
from p2pft_flower.report.paper import DATASETS, NODES, TABLES, PaperDataset, PaperTable
from p2pft_flower.report.reproduction import Row, differences
from p2pft_flower.report.tables import number, spans
from p2pft_flower.typed import decoded

__all__ = ["AttentionFigure", "attention", "find_attention", "paper"]

ATTENTION = "p2pft.attention/1"
"""Schema of the numbers beside a figure of ``p2pft attention``."""

WIDEST = 1400
"""Pixels of a figure in the page; a wider one is made smaller."""

LARGEST = 600_000
"""Most bytes of a figure in the page; a larger one is left out by name."""

_KINDS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


class _Likeness(msgspec.Struct, frozen=True):
    images: int
    accuracy: float | None = None
    correlation: dict[str, float | None] | None = None


class _Method(msgspec.Struct, frozen=True):
    algorithm: str
    all: dict[str, _Likeness | None]


class _Attention(msgspec.Struct, frozen=True):
    """The content of a figure's JSON file, as far as the page shows it."""

    schema: str
    title: str
    subtitle: str
    methods: tuple[_Method, ...] = ()


@dataclass(frozen=True)
class AttentionFigure:
    """A figure of ``p2pft attention``: its picture, or the reason why there is none, and its numbers."""

    name: str
    title: str
    subtitle: str
    rows: Sequence[Sequence[str]]
    picture: Picture | None
    missing: str = ""


def find_attention(folders: Iterable[Path]) -> list[AttentionFigure]:
    """Read the figures of ``p2pft attention`` that lie in some folders."""
    found, seen = [], set()
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            if path.resolve() in seen or not path.is_file():
                continue
            seen.add(path.resolve())
            try:
                data = path.read_bytes()
            except OSError:
                continue
            if ATTENTION.encode() in data[:4096]:
                found.append(_figure(path, data))
    return found


def _figure(path: Path, data: bytes) -> AttentionFigure:
    try:
        told = decoded(data, _Attention, path.name)
    except DataError as error:
        return AttentionFigure(path.name, path.name, "", (), None, str(error))
    rows = []
    for method in told.methods:
        cells = [method.algorithm]
        for side in ("seen", "unseen"):
            one = method.all.get(side)
            cells += [
                number(one.correlation.get("mean") if one and one.correlation else None),
                number(one.accuracy if one else None),
            ]
        rows.append(cells)
    image = next((p for kind in _KINDS if (p := path.with_suffix(kind)).is_file()), None)
    if image is None:
        return AttentionFigure(
            path.name, told.title, told.subtitle, rows, None, f"no picture lies beside {path.name}"
        )
    try:
        address = _address(image)
    except (OSError, ValueError) as error:
        return AttentionFigure(
            path.name, told.title, told.subtitle, rows, None, f"{image.name} cannot be read: {error}"
        )
    if len(address) > LARGEST * 4 // 3 + 100:
        why = f"{image.name} is too large for this page: open it beside the page"
        return AttentionFigure(path.name, told.title, told.subtitle, rows, None, why)
    picture = Picture(told.title, f"{told.title}. {told.subtitle}", address)
    return AttentionFigure(path.name, told.title, told.subtitle, rows, picture)


def _address(path: Path) -> str:
    """Return a picture as a ``data:`` address; it is written anew, so that nothing but pixels comes along.

    Raises
    ------
    OSError, ValueError
        When it cannot be read, or has very many pixels.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                shown = image.convert("RGB")
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(str(error)) from error
    if shown.width > WIDEST:
        shown = shown.resize((WIDEST, round(shown.height * WIDEST / shown.width)))
    file = io.BytesIO()
    shown.save(file, format="WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def attention(figures: Sequence[AttentionFigure]) -> Section:
    """Return the section with figures of attention."""
    heading = "Where do the models look?"
    if not figures:
        text = "No figure of attention lies in these folders; p2pft attention RUN… -o RUN/map.png draws one."
        return Section("attention", heading, [text])
    said, tables = [], []
    header = ["method", "correlation, seen", "accuracy, seen", "correlation, unseen", "accuracy, unseen"]
    for figure in figures:
        best = [
            (float(row[3]), row[0])
            for row in figure.rows
            if row[3] != "–" and row[0] not in ("centralized", "start")
        ]
        told = (
            f": on unseen classes, the maps of {max(best)[1]} are most like the centralised ones "
            f"(r = {max(best)[0]:.2f})"
            if best
            else ""
        )
        said.append(f"{figure.title}{told}.")
        if figure.rows:
            tables.append(
                Grid(
                    f"{figure.title}: likeness to the centralised maps",
                    header,
                    [list(r) for r in figure.rows],
                )
            )
    notes = [f"{figure.name}: {figure.missing}." for figure in figures if figure.missing]
    pictures = [figure.picture for figure in figures if figure.picture is not None]
    return Section("attention", heading, said, (), pictures, tables, notes)


# --- the paper's tables -------------------------------------------------------------------------------------


def _paper_dataset(run: Run) -> tuple[str, PaperDataset] | None:
    name = run.results.config.get("dataset")
    return next(((key, one) for key, one in DATASETS.items() if one.dataset == name), None)


def paper(material: Material) -> Section:
    """Return the section that puts the paper's Table 1, and its accuracies, beside those of the runs."""
    heading = "Beside the paper"
    known = [(run, *found) for run in material.scored if (found := _paper_dataset(run)) is not None]
    if not known:
        names = ", ".join(one.name for one in DATASETS.values())
        return Section(
            "paper",
            heading,
            [f"No run here is of one of the paper's datasets ({names}): no table of it applies."],
        )
    said, tables, notes = list[str](), list[Grid](), list[str]()
    for key in dict.fromkeys(key for _, key, _ in known):
        runs = [run for run, other, _ in known if other == key]
        said.append(_split_words(runs[0], DATASETS[key]))
        tables.append(_split(material, runs, DATASETS[key]))
    for run, key, one in known:
        table = next((t for t in TABLES.values() if t.model == run.results.config.get("model")), None)
        stated = table.figures(run.algorithm, key) if table is not None else None
        if table is None or stated is None or len(run.results.peers) != NODES:
            continue
        tables.append(_beside(run, table, one, stated))
        said.append(_beside_words(run, table, stated))
        notes += [
            f"{run.label} differs from the paper: {line}." for line in _differences(material, run, key, table)
        ]
    if not any("Table 1" not in table.title for table in tables):
        notes.append("The paper has no accuracy of these methods and models: its Tables 2 to 4 do not apply.")
    return Section("paper", heading, said, tables=tables, notes=notes)


def _split_words(run: Run, one: PaperDataset) -> str:
    same = run.results.partition == one.partition
    return f"The peers' classes of {one.name} are {'' if same else 'not '}those of the paper's Table 1."


def _split(material: Material, runs: Sequence[Run], one: PaperDataset) -> Grid:
    """Return the paper's Table 1 beside ours; ours are counted by the head, if that is known."""
    ours = next((run for run in runs if len(run.results.peers) > 1), runs[0])
    theirs = one.partition.removeprefix("classes:").split(",")
    answers = material.of(ours)
    places = {name: str(k) for k, name in enumerate(answers[0].classes)} if answers else {}
    rows = []
    for k in range(max(len(theirs), len(ours.results.peers))):
        mine = ours.results.peers[k].classes if k < len(ours.results.peers) else ()
        there = theirs[k] if k < len(theirs) else "–"
        rows.append([f"node {k + 1}", there, spans([places.get(name, name) for name in mine]) or "–"])
    title = f"{one.name}: the paper's Table 1, classes by node, counted from 0"
    return Grid(title, ["node", "the paper", "ours"], rows)


def _beside(run: Run, table: PaperTable, one: PaperDataset, stated: Sequence[float]) -> Grid:
    rows = [
        [f"node {k + 1}", f"{theirs:.2f}", "–" if peer.accuracy is None else f"{100 * peer.accuracy:.2f}"]
        for k, (theirs, peer) in enumerate(zip(stated, run.results.peers, strict=True))
    ]
    title = f"{run.label} on {one.name}: the paper's Table {table.number} ({table.architecture}), accuracy, %"
    return Grid(title, ["node", "the paper", "ours"], rows)


def _beside_words(run: Run, table: PaperTable, stated: Sequence[float]) -> str:
    mine, theirs = 100 * (run.accuracy or 0.0), sum(stated) / len(stated)
    gap = mine - theirs
    word = "the same as" if abs(gap) < 0.05 else f"{abs(gap):.2f} points {'above' if gap > 0 else 'below'}"
    paper = f"the {theirs:.2f} % of the paper's Table {table.number}"
    return f"{run.label}: a mean accuracy of {mine:.2f} %, {word} {paper}."


def _differences(material: Material, run: Run, key: str, table: PaperTable) -> list[str]:
    """Return how a run differs from the paper's experiment, as far as its results and answers tell."""
    one, results = DATASETS[key], run.results
    config: dict[str, Any] = dict(results.config)
    answers = material.of(run)
    train = sum(p.images for p in results.peers)
    whole = config.get("shots") == 0 and not config.get("validation")
    row = Row(
        dataset=key,
        settings=config,
        classes=len(run.classes),
        train=train,
        available=train if whole else one.train,
        test=len(answers[0].labels) if answers else one.test,
        partition=results.partition,
        weights=Path(str(config.get("weights"))).name,
    )
    try:
        found = differences(table, row)
    except KeyError as error:
        return [f"its settings lack {error.args[0]}, so they cannot be compared"]
    return found if answers else [*found, "its test images could not be counted here"]
