"""The notebook of the first half hour runs, and prints what stands in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.later import Later

plt = Later("matplotlib.pyplot")

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "first-half-hour.ipynb"


def cells():
    return [c for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def stored(cell):
    """Return the text that a cell printed when the notebook was made, and its number of figures."""
    printed = "".join("".join(o["text"]) for o in cell["outputs"] if o["output_type"] == "stream")
    return printed, sum("image/png" in o.get("data", {}) for o in cell["outputs"])


def numbers(text):
    return [float(number) for number in re.findall(r"\d[\d.]*(?:e-?\d+)?", text)]


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_every_cell_runs_in_its_order_and_prints_and_draws_what_the_notebook_shows(monkeypatch, capsys):
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: drawn.append(plt.close("all")))
    scope = {}
    for cell in cells():
        drawn = []
        exec(compile("".join(cell["source"]), "cell", "exec"), scope)
        printed, figures = stored(cell)
        said = capsys.readouterr().out
        assert len(drawn) == figures
        assert re.sub(r"\d[\d.e-]*", "#", said) == re.sub(r"\d[\d.e-]*", "#", printed)
        assert numbers(said) == pytest.approx(
            numbers(printed), abs=0.03
        )  # another processor rounds otherwise
