"""The table of a tail's classes on consoles of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from p2pft_flower.report.class_tables import class_table, print_classes

NAMES = ["benign", "malignant", "squamous cell carcinoma"]


def score(*, intervals):
    three = [0.5, 0.25, 1.0]
    ends = [[0.125, 0.875]] * 3
    return {
        "peer": "0",
        "name": None,
        "class_scores": {
            "classes": {
                "names": NAMES,
                "support": [7, 6, 1234],
                "answers": [31, 59, 2222],
                **dict.fromkeys(("recall", "specificity", "precision", "auroc", "average_precision"), three),
            }
        },
        "intervals": {"recall": ends, "auroc": ends} if intervals else None,
    }


@pytest.mark.parametrize("width", [20, 60, 80, 120])
@pytest.mark.parametrize("intervals", [False, True])
def test_no_number_of_a_class_is_cut_off_on_a_console_of_any_width(width, intervals):
    console = Console(file=io.StringIO(), width=width)
    print_classes(console, class_table(score(intervals=intervals), "images"))
    printed = console.file.getvalue()
    for whole in ("benign", "squamous", "images", "specificity", "taken", "31", "59", "2222"):
        assert whole in printed.split(), whole
    for share in ("0.5000", "0.2500", "1.0000"):
        assert printed.count(share) == 5, share
    assert printed.count("0.875") == (6 if intervals else 0)
    if width >= 80:
        assert max(map(len, printed.splitlines())) <= width
