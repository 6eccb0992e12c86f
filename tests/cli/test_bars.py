"""Progress of commands where no terminal is."""

from __future__ import annotations

from types import SimpleNamespace

from p2pft_flower.cli import bars


def said(monkeypatch, capsys, seconds):
    """Return the lines of a task of ten steps, each of which takes ``seconds``."""
    now = [100.0]
    monkeypatch.setattr(bars, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with bars.counted("scoring tails", 10) as advance:
        for _ in range(10):
            now[0] += seconds
            advance(1)
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()


def test_a_long_task_says_now_and_then_how_much_is_done_and_how_long_the_rest_takes(monkeypatch, capsys):
    assert said(monkeypatch, capsys, 1.0) == [
        "scoring tails: 3 of 10, about 7 s left",
        "scoring tails: 6 of 10, about 4 s left",
        "scoring tails: 9 of 10, about 1 s left",
    ]


def test_a_short_task_says_nothing(monkeypatch, capsys):
    assert said(monkeypatch, capsys, 0.2) == []
