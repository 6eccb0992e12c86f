"""The page of a run that has ended: from its results, from a site's journals, from what little there is."""

from __future__ import annotations

import json
import shutil

import pytest

from p2pft_flower.errors import DataError
from p2pft_flower.facts import GraphName, PeerFacts, Row, RunFacts
from p2pft_flower.facts import KnownImages as Known
from p2pft_flower.keeping.lines import written
from p2pft_flower.report.ended import ending_of, page_of_folder
from p2pft_flower.report.results import SCHEMA
from tests.flower.engine import run_app
from tests.journals import made_line
from tests.quadratics import QUADRATICS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, as a simulation leaves it."""
    folder = tmp_path_factory.mktemp("run") / "1"
    run_app(folder, problem=QUADRATICS, topology="ring:3", iterations=6, evaluate_every=2)
    return folder


def failed(folder, status="failed", error="peer 1: it ran out of memory", **fields):
    folder.mkdir(exist_ok=True)
    content = {"schema": SCHEMA, "status": status, "run": "7", "algorithm": "p2pft", "error": error}
    (folder / "results.json").write_text(json.dumps(content | fields))
    return folder


def journal(folder, peer, *lines, n=3):
    facts = RunFacts(GraphName("ring-3", "0", ()), tuple(range(n)), "iid", {}, False, None)
    row = Row(peer, f"site-{peer}", None, {peer: 0.5, (peer + 1) % n: 0.5})
    about = PeerFacts(f"site-{peer}", ("a",), Known(3), (row,))
    first = made_line("run", peer, n=n, facts=facts, about=about)
    (folder / "peers").mkdir(parents=True, exist_ok=True)
    (folder / "peers" / f"peer-{peer}.jsonl").write_bytes(b"".join(map(written, (first, *lines))))


def test_a_complete_run_is_shown_with_its_last_scores_edges_and_curves(run):
    page = page_of_folder(run)
    assert (page.phase, page.outcome, page.told) == ("ended", "completed", "The run is complete.")
    assert (page.iteration, page.iterations) == (6, 6)
    assert [(p.peer, p.state, p.name) for p in page.peers] == [(p, "finished", "") for p in range(3)]
    assert [(e.sender, e.receiver) for e in page.edges] == [
        (i, j) for i in range(3) for j in range(3) if i != j
    ]
    assert page.charts["loss"].iterations == (0, 2, 4, 6)
    assert page.charts["bytes_sent"].lines["all"][-1] == page.bytes_sent > 0
    assert ending_of(run) == ("completed", "The run is complete.")


def test_a_run_without_results_is_shown_from_its_journals(run, tmp_path):
    shutil.copytree(run / "peers", tmp_path / "peers")
    page, whole = page_of_folder(tmp_path), page_of_folder(run)
    assert page.charts == whole.charts
    assert [p.loss for p in page.peers] == [p.loss for p in whole.peers]
    assert page.told == "The 3 peers on this machine have come to the end, after 6 iterations."


def test_a_site_that_has_one_journal_shows_that_peer_and_says_that_others_are_elsewhere(run, tmp_path):
    (tmp_path / "peers").mkdir()
    shutil.copy(run / "peers" / "peer-1.jsonl", tmp_path / "peers")
    page = page_of_folder(tmp_path)
    assert [(p.state, p.why) for p in page.peers] == [
        ("unknown", "its journal is not here"),
        ("finished", ""),
        ("unknown", "its journal is not here"),
    ]
    assert page.charts["loss"].lines.keys() == {"1"}
    assert page.told == "Peer 1 has come to the end, after 6 iterations."
    assert ending_of(tmp_path, own=(1,)).outcome == "completed"
    assert ending_of(tmp_path, own=(0,)) is None


def test_a_run_that_failed_keeps_the_curves_of_its_journals_and_the_reason_of_its_results(run, tmp_path):
    shutil.copytree(run / "peers", failed(tmp_path) / "peers")
    page = page_of_folder(tmp_path)
    assert (page.outcome, page.told) == ("failed", "The run failed: peer 1: it ran out of memory")
    assert page.charts["loss"].iterations == (0, 2, 4, 6)


def test_a_run_that_failed_elsewhere_is_shown_with_its_reason_and_its_views(tmp_path):
    change = {"number": 1, "iteration": 4, "peers": [0, 1], "edges": [[0, 1], [1, 0]], "seconds": 1.0}
    change |= {"lost": [2], "joined": [], "why": {"2": "it crashed"}}
    page = page_of_folder(failed(tmp_path, "stopped", "it was stopped", views=[change]))
    assert (page.peers, page.charts) == ((), {})
    assert page.told == "The run was stopped: it was stopped"
    assert page.events[0].text == "peer 2 was lost after 4 iterations (view 1): it crashed"


def test_journals_say_who_failed_and_why_and_which_break_off(tmp_path):
    journal(
        tmp_path,
        0,
        made_line("evaluation", 0, iteration=4),
        made_line("failed", 0, iteration=5, error="no memory"),
    )
    journal(tmp_path, 1, made_line("evaluation", 1, iteration=4))
    page = page_of_folder(tmp_path)
    assert page.told == "peer 0 (site-0) failed in iteration 5: no memory"
    assert [(p.called, p.state, p.why, p.iteration) for p in page.peers] == [
        ("peer 0 (site-0)", "ended", "no memory", 4),
        ("peer 1 (site-1)", "ended", "its journal breaks off", 4),
        ("peer 2", "unknown", "its journal is not here", 0),
    ]
    assert [(e.sender, e.receiver) for e in page.edges] == [(1, 0), (2, 1)]


def test_the_waits_that_journals_tell_of_are_events_with_their_times(tmp_path):
    at = {"awaited": 1, "last": 1}
    waits = [made_line("stall", p, time=50.0 + p, seconds=9.0 - p, **at) for p in (0, 2)]
    for wait in waits:
        journal(tmp_path, wait.peer, made_line("evaluation", wait.peer, iteration=4), wait)
        if wait.peer == 0:
            (event,) = page_of_folder(tmp_path).events
            assert (event.time, event.kind) == (50.0, "plain")
            assert event.text == "peer 0 (site-0) waited 9 s for peer 1, which was slow, after 0 iterations"
    (event,) = page_of_folder(tmp_path).events
    assert (event.time, event.kind) == (50.0, "plain")
    assert event.text.startswith("all stood still from ")
    assert event.text.endswith("(5 s), waiting for peer 1, which was slow, after 0 iterations")


def test_a_run_with_results_has_the_waits_of_its_journals_too(run, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    log = tmp_path / "peers" / "peer-0.jsonl"
    *before, end = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*before, written(made_line("stall", 0, awaited=1, last=1)), end]))
    assert [e.text for e in page_of_folder(tmp_path).events if "waited 9 s" in e.text]


def test_a_stop_is_no_failure(tmp_path):
    said = "peer 0 stopped in iteration 5: p2pft stop"
    journal(tmp_path, 0, made_line("failed", 0, iteration=5, error=said, cause="STOPPED"))
    assert ending_of(tmp_path) == ("stopped", "peer 0 (site-0) was stopped in iteration 5: p2pft stop")


def test_results_of_a_stopped_run_are_shown_as_far_as_it_came_and_not_as_done(run, tmp_path):
    results = json.loads((run / "results.json").read_text()) | {"status": "stopped", "error": "p2pft stop"}
    results["peers"] = [{**peer, "iterations": 4} for peer in results["peers"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = page_of_folder(tmp_path)
    assert [(p.state, p.iteration) for p in page.peers] == [("stopped", 4)] * 3
    assert (page.outcome, page.iteration, page.iterations) == ("stopped", 4, 6)


def test_a_stopped_run_is_shown_as_far_as_it_came_and_not_as_done(tmp_path):
    journal(
        tmp_path,
        0,
        made_line("evaluation", 0, iteration=4),
        made_line("failed", 0, iteration=5, error="p2pft stop", cause="STOPPED"),
    )
    page = page_of_folder(tmp_path)
    assert [(p.state, p.iteration) for p in page.peers if p.peer == 0] == [("stopped", 4)]
    assert page.iteration == 4 < page.iterations


def test_two_parts_that_went_on_are_shown_as_no_run_with_what_each_peer_tells_of_itself(tmp_path):
    for peer, peers in ((0, (0, 1)), (2, (1, 2))):
        view = made_line("view", peer, number=1, iteration=4, peers=peers)
        journal(tmp_path, peer, made_line("evaluation", peer, iteration=4), view)
    page = page_of_folder(tmp_path)
    assert page.outcome == "failed"
    assert "peers 0 and 2 have gone on in different views 1" in page.told
    assert [p.iteration for p in page.peers] == [4, 0, 4]


def with_a_loss(run, folder, *later):
    """Make results of a run that lost its peer 2 after 4 of its 6 iterations."""
    content = json.loads((run / "results.json").read_text())
    change = {"iteration": 4, "edges": [[0, 1], [1, 0]], "why": {"2": "it crashed"}, "seconds": 1.0}
    lost = {**change, "number": 1, "peers": [0, 1], "lost": [2], "joined": [], "time": 1_800_000_000.0}
    content |= {"status": "completed-with-2-of-3", "views": [lost, *({**change, **v} for v in later)]}
    content["unfinished"] = [content["peers"].pop() | {"iterations": 2, "bytes_sent": 77}]
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(content))


def test_a_lost_peer_keeps_its_last_scores_and_its_loss_the_time_of_the_results(run, tmp_path):
    with_a_loss(run, tmp_path / "7")
    page = page_of_folder(tmp_path / "7")
    lost = page.peers[2]
    assert (lost.state, lost.iteration, lost.evaluated, lost.bytes_sent) == ("lost", 4, 2, 77)
    assert [(e.time, e.text) for e in page.events] == [
        (1_800_000_000.0, "peer 2 was lost after 4 iterations (view 1): it crashed")
    ]


def test_a_peer_that_came_back_is_not_shown_as_lost(run, tmp_path):
    back = {"number": 2, "peers": [0, 1, 2], "lost": [], "joined": [2], "why": {}, "time": 1_800_000_060.0}
    with_a_loss(run, tmp_path / "7", back)
    peer = page_of_folder(tmp_path / "7").peers[2]
    assert (peer.state, peer.why) == ("unknown", "it came back, and its end is not in the results")


def test_a_folder_without_a_run_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"results\.json.*no peers/peer-<i>\.jsonl"):
        page_of_folder(tmp_path)
    assert ending_of(tmp_path) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"history": [{"iteration": -1}]},
        {"peers": [{"peer": "zero"}]},
        {"graph": {"weights": "none"}},
        {"views": [{"number": 1}]},
        {"iterations": -5},
    ],
)
def test_results_with_a_damaged_field_are_refused_and_named(damage, run, tmp_path):
    content = json.loads((run / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(content | damage))
    with pytest.raises(DataError, match=r"results\.json"):
        page_of_folder(tmp_path)
