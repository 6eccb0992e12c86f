"""The figure of attention maps, from made-up maps."""

from __future__ import annotations

import numpy as np

from p2pft_flower.report.attention_figure import (
    Panel,
    Row,
    attention_markdown,
    attention_table,
    draw_attention,
)
from tests.later import Later

figure = Later("matplotlib.figure")


def row(group, right, channels=3):
    rng = np.random.default_rng(0)
    panels = [
        Panel(rng.random((4, 4), dtype=np.float32), "a cat", 0.5, right, 0.25),
        Panel(rng.random((4, 4), dtype=np.float32), "a cat", 0.5, right, None),
    ]
    return Row(rng.random((32, 32, channels), dtype=np.float32), "a dog", group, panels)


def figure_of(monkeypatch, rows, tmp_path):
    """Draw ``rows`` and return the figure that was saved."""
    saved = []
    save = figure.Figure.savefig
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda self, *a, **k: (saved.append(self), save(self, *a, **k))
    )
    draw_attention(rows, ["Local-FT", "centralised"], "title", "subtitle", tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 5_000
    return saved[0]


def test_a_row_has_the_original_and_a_map_of_each_method(monkeypatch, tmp_path):
    figure = figure_of(monkeypatch, [row("held", True), row("never seen", False)], tmp_path)
    cells = [axis for axis in figure.axes if axis.get_xlabel()]
    assert len(cells) == 2 * 3
    assert [axis.get_title() for axis in cells[:3]] == ["original", "Local-FT", "centralised"]
    assert [len(axis.images) for axis in cells] == [1, 2, 2] * 2
    words = [text.get_text() for text in figure.texts]
    assert words == ["title", "subtitle", "held", "never seen"]


def test_right_and_wrong_can_be_told_without_colour(monkeypatch, tmp_path):
    rows = [row("held", True), row("never seen", False), row("own", None, channels=1)]
    figure = figure_of(monkeypatch, rows, tmp_path)
    first = [axis for axis in figure.axes if axis.get_xlabel()][1::3]
    assert [axis.get_xlabel().splitlines()[0] for axis in first] == [
        "✓ a cat (0.50)",
        "✗ a cat (0.50)",
        "a cat (0.50)",
    ]
    assert [axis.get_xlabel().splitlines()[1] for axis in first] == ["r = 0.25"] * 3
    assert [axis.spines["top"].get_linestyle() for axis in first] == ["-", (0, (3, 2)), "-"]


def test_the_maps_of_a_row_share_one_colour_scale(monkeypatch, tmp_path):
    figure = figure_of(monkeypatch, [row("held", True)], tmp_path)
    heats = [axis.images[1] for axis in figure.axes if len(axis.images) == 2]
    assert heats[0].get_clim() == heats[1].get_clim()
    assert heats[0].get_clim()[0] == 0
    assert heats[0].get_interpolation() == "bilinear"


def group(mean):
    spread = {"mean": mean, "std": 0.1}
    return {"images": 5, "correlation": spread, "overlap": spread, "accuracy": mean}


def test_a_missing_group_is_a_dash_and_many_peers_are_one_row():
    peers = [{"peer": i, "name": str(i), "seen": group(0.5), "unseen": None} for i in range(9)]
    numbers = {
        "title": "title",
        "subtitle": "subtitle",
        "reason": None,
        "test_images": 5,
        "patches": [14, 14],
        "top_patches": 39,
        "methods": [
            {"algorithm": "p2pft", "peers": peers, "all": {"seen": group(0.5), "unseen": None}},
            {"algorithm": "dgd", "peers": peers[:2], "all": {"seen": group(0.25), "unseen": None}},
        ],
    }
    markdown = attention_markdown(numbers, "f.png")
    rows = [line for line in markdown.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| P2P-FT | all | 0.500 ± 0.100 | – | 0.500 ± 0.100 | – | 0.500 | – |",
        "| dgd | 0 | 0.500 ± 0.100 | – | 0.500 ± 0.100 | – | 0.500 | – |",
        "| dgd | 1 | 0.500 ± 0.100 | – | 0.500 ± 0.100 | – | 0.500 | – |",
        "| dgd | all | 0.250 ± 0.100 | – | 0.250 ± 0.100 | – | 0.250 | – |",
    ]
    table = attention_table(numbers)
    assert "by chance 0.20" in " ".join(table.split())
    assert table.count("│ dgd") == 3
