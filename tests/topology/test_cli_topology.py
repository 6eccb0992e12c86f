"""`p2pft topology` and its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result

from p2pft_flower.cli.topology import app
from p2pft_flower.topology import Graph
from p2pft_flower.topology.draw import draw
from tests.commands import CliRunner
from tests.later import Later

image = Later("matplotlib.image")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "140"})


def test_show_prints_size_meaning_and_every_peers_weights() -> None:
    done = run("show", "lopsided-4")
    assert done.exit_code == 0
    for text in (
        "lopsided-4",
        "6, directed",
        "gt-dgd and exact-diffusion refuse",
        "dgd is biased",
        "81.1%",
        "3:0.167",
        "spectral gap",
    ):
        assert text in done.stdout
    done = run("show", "ring-4")
    assert "gt-dgd runs" in done.stdout
    assert "exact-diffusion runs" in done.stdout
    assert "exact-diffusion refuses" in run("show", "directed-ring-4").stdout
    assert "4, undirected" in done.stdout
    assert ":metropolis" in run("show", "star:5").stdout
    assert "A single peer" in run("show", "complete:1").stdout


def test_show_prints_the_weights_of_every_turn() -> None:
    done = run("show", "directed-ring:5", "--schedule-graph", "base:1")
    assert done.exit_code == 0
    for text in ("directed-ring:5 by base:1", "8 8 4 8 8 vectors", "Iteration 4, 9, …", "4:0.8"):
        assert text in done.stdout
    assert "exact-diffusion refuses weights that change" in done.stdout
    turns = json.loads(run("show", "ring-4", "--schedule-graph", "one-peer-exponential", "--json").stdout)[
        "turns"
    ]
    assert turns[1][0] == [0.5, 0.0, 0.5, 0.0]
    refused = run("show", "ring-4", "--schedule-graph", "base:0")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "base:K needs a whole number K" in refused.stderr


def test_show_shortens_long_lists_of_neighbours() -> None:
    assert "… 31 more" in run("show", "complete:40").stdout


def test_names_that_look_like_markup_are_printed_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text('peers: ["[red]x", y]\nedges: [[0, 1], [1, 0]]', encoding="utf-8")
    assert "[red]x" in run("show", str(path)).stdout


def test_json_has_stable_keys() -> None:
    done = run("show", "paper-4", "--json")
    assert done.exit_code == 0
    data = json.loads(done.stdout)
    graph = Graph.load("paper-4")
    assert set(data) >= {
        "name", "description", "n", "edges", "undirected", "doubly_stochastic", "diameter",
        "second_modulus_A", "second_modulus_B", "spectral_gap", "digest", "W", "A", "B", "peers",
    }  # fmt: skip
    assert data["digest"] == graph.digest
    assert data["edges"] == [list(edge) for edge in graph.edges]
    assert data["A"] == graph.A.tolist()
    first = data["peers"][0]
    assert (first["peer"], first["name"], first["address"]) == (0, "node-1", None)
    assert first["in_neighbours"] == list(graph.in_neighbours(0))


def test_list_names_every_shipped_graph_and_generator() -> None:
    done = run("list")
    assert done.exit_code == 0
    for text in ("directed-ring-4", "paper-4", "erdos-renyi:N:P:SEED", "exponential:16"):
        assert text in done.stdout


@pytest.mark.parametrize("x", ["nope", "ring:1", "no/such.yaml"])
def test_an_error_is_one_message_on_stderr_and_exit_code_2(x: str) -> None:
    done = run("show", x, "--json")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    done = run("show", "ring-4", "--png", str(tmp_path / "no" / "x.png"))
    assert done.exit_code == 2
    assert "No such file or directory" in done.stderr


@pytest.mark.parametrize(
    "x", ["lopsided-4", "star-5", "grid:2x3", "complete:1", "ring:2", "random-directed:16:3:7"]
)
def test_pictures_are_png_and_not_empty(x: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.png"
    assert run("show", x, "--png", str(path)).exit_code == 0
    pixels = image.imread(path)
    assert min(pixels.shape[:2]) > 300
    assert len({tuple(pixel) for pixel in pixels[::5, ::5].reshape(-1, pixels.shape[2])}) > 3


def test_long_and_odd_names_are_drawn(tmp_path: Path) -> None:
    names = ["hospital-amsterdam", "price in $x$ and $y", "lab"]
    path = tmp_path / "graph.dat"
    draw(Graph.from_weights([[1, 2, 0], [0, 1, 1], [1, 0, 3]], peer_names=names), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_audit_says_who_finds_whose_gradients_alone_and_in_pairs() -> None:
    done = run("audit", "lopsided-4")
    assert done.exit_code == 0
    lines = [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]
    for line in (
        "0 3 3 (k 0, 1) everybody",
        "2 0, 1 1; 0 (k 0, 1) everybody",
        "k: the iterations, of 0 to 5, whose gradient is found; without k: all",
        "0, 2 3 nobody",
        "2 of 6 pairs",
    ):
        assert line in lines
    assert "in any case: each gradient counts as a secret of its own" in done.stdout
    done = run("audit", "star:4", "--collude", "1")
    assert "everybody" in done.stdout
    assert "pair" not in done.stdout
    assert "None of the 10 pairs finds more together" in run("audit", "star:5").stdout
    assert "A single peer receives nothing." in run("audit", "complete:1").stdout


def test_audit_prints_all_that_it_found_as_json() -> None:
    told = json.loads(run("audit", "directed-ring-4", "--iterations", "3", "--json").stdout)
    assert (told["name"], told["n"], told["iterations"]) == ("directed-ring-4", 4, 3)
    assert told["digest"] == Graph.load("directed-ring-4").digest
    assert len(told["sets"]) == 4 + 6
    assert told["sets"][0] == {
        "attackers": [0],
        "gradients": {"3": [0, 1]},
        "steady": [1, 2, 3],
        "averaging": [1, 2, 3],
    }
    pair = next(s for s in told["sets"] if s["attackers"] == [0, 2])
    assert pair["gradients"] == {"1": [0, 1, 2, 3], "3": [0, 1, 2, 3]}


def test_audit_looks_at_pairs_of_large_graphs_only_if_asked() -> None:
    told = json.loads(run("audit", "star:33", "--iterations", "1", "--json").stdout)
    assert len(told["sets"]) == 33
    assert all(len(one["attackers"]) == 1 for one in told["sets"])


def test_audit_refuses_what_is_no_graph() -> None:
    for words in (("nowhere",), ("ring-4", "--collude", "3"), ("ring-4", "--iterations", "0")):
        refused = run("audit", *words)
        assert (refused.exit_code, refused.stdout) == (2, "")
    assert "error: there is no graph 'nowhere'" in run("audit", "nowhere").stderr
