"""Names that a stream or a terminal cannot carry cost no table: they are escaped there, kept in results."""

from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest
from PIL import Image

from p2pft_flower.cli import app
from p2pft_flower.errors import P2PFTError
from p2pft_flower.flower.logs import _EachLine
from p2pft_flower.report.results import read_results
from tests.commands import CliRunner
from tests.flower.engine import run_app

NAMES = [
    b"ca\xfft",  # no UTF-8
    b"new\nline",
    b"08:15:00 run 7 ended: completed",
    b"esc\x1b[31m",
    "rtl\u202eabc".encode(),
    "line\u2028end".encode(),
    b"$x_1",
    "größe".encode(),
]
SHOWN = [
    *(r"ca\udcfft", r"new\nline", "08:15:00 run 7 ended: completed", r"esc\x1b[31m", r"rtl\u202eabc"),
    *(r"line\u2028end", "$x_1", "größe"),
]


def write(root, names, train=3, test=1):
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for k, name in enumerate(names):
            folder = root / part / os.fsdecode(name)
            try:
                folder.mkdir(parents=True)
            except OSError:
                pytest.skip("this file system takes names in UTF-8 only")
            for i in range(count):
                pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8)
                pixels[k] = 220
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return f"folder:{root}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    dataset = write(root / "data", NAMES)
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        # Flower's stream is text in UTF-8, and every line of it begins with the time.
        patch.setattr(logging.StreamHandler, "emit", lambda self, record: lines.append(self.format(record)))
        for method in ("local", "p2pft"):
            settings = {"iterations": 1, "topology": "complete:4", "algorithm": method, "batch_size": 4}
            run_app(root / "runs" / method, dataset=dataset, **settings)
    return root, "\n".join(lines)


def test_the_table_of_a_run_is_in_the_stream_with_names_that_can_be_shown(finished):
    _, stream = finished
    stream.encode()  # UTF-8
    for name in SHOWN:
        assert name in stream
    assert all(line[2] == line[5] == ":" for line in stream.splitlines())
    assert "accuracy on all classes" in stream


def test_no_name_makes_a_line_of_its_own(finished):
    """Lines of the stream say how a run ended."""
    _, stream = finished
    assert not [line for line in stream.splitlines() if line.startswith("08:15:00 run 7")]
    record = logging.LogRecord("p2pft_flower", logging.INFO, "", 0, "%s", ("a\x1b[2Kb\ud800\nc\x07",), None)
    first, second = _EachLine().format(record).splitlines()
    assert first.endswith(r" a\x1b[2Kb\ud800")
    assert second.endswith(r" c\x07")


def test_results_and_logs_keep_the_names_as_they_are(finished):
    root, _ = finished
    results = read_results(root / "runs" / "p2pft")
    held = {name for peer in results["peers"] for name in peer["classes"]}
    assert held == {os.fsdecode(name) for name in NAMES}


@pytest.mark.parametrize(
    "words",
    [
        ["data", "show", "dataset=folder:{root}/data", "topology=complete:4"],
        ["data", "show", "dataset=folder:{root}/data", "topology=directed-ring:13", "partition=iid"],
        ["collect", "{root}/runs/p2pft"],
        ["evaluate", "{root}/runs/p2pft"],
        [
            "attention",
            "{root}/runs/local",
            "{root}/runs/p2pft",
            "-o",
            "{out}/maps.png",
            "--seen=2",
            "--unseen=6",
        ],
    ],
    ids=lambda words: words[0],
)
def test_commands_print_such_names(words, finished, tmp_path):
    words = [word.format(root=finished[0], out=tmp_path) for word in words]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    if words[0] in ("data", "collect"):
        assert r"ca\udcfft" in done.stdout
    if words[0] == "attention":
        assert (tmp_path / "maps.png").stat().st_size > 5_000
        assert "udcff" in json.dumps(json.loads((tmp_path / "maps.json").read_text()))


def test_a_class_that_is_refused_is_named_so_that_it_can_be_read(tmp_path):
    dataset = write(tmp_path / "data", [b"a\xff", b"b\x1b"], test=1)
    (tmp_path / "data" / "test" / "b\x1b").rename(tmp_path / "data" / "test" / "c\x1b")
    with pytest.raises(P2PFTError) as raised:
        run_app(tmp_path / "run", dataset=dataset, iterations=1, topology="complete:2")
    assert r"c\x1b" in str(raised.value)
    assert "\x1b" not in str(raised.value)
    assert read_results(tmp_path / "run")["status"] == "failed"
