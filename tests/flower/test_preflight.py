"""A deployment is looked at before it trains: every peer, every link, every folder."""

from __future__ import annotations

import json
import socket
import time
from types import SimpleNamespace

import pytest

from p2pft_flower.errors import P2PFTError
from p2pft_flower.flower import greeting, preflight
from p2pft_flower.keeping.folders import look_at
from p2pft_flower.report.preflight import preflight_tables
from tests.flower.engine import run_app


def ports(n: int) -> list[int]:
    """Return TCP ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    found = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return found


def nodes(n: int, **more) -> list[dict]:
    return [{"peer-id": i, "peer-address": f"127.0.0.1:{port}", **more} for i, port in enumerate(ports(n))]


SMALL = {"topology": "directed-ring:3", "iterations": 2, "batch-size": 8}


def deploy(folder, node_configs, **settings):
    run_app(folder, nodes=3, slots=3, node_configs=node_configs, **(SMALL | settings))


def found(folder) -> dict:
    return json.loads((folder / "preflight.json").read_text())


def test_every_link_is_measured_both_ways_and_the_run_goes_on(tmp_path):
    deploy(tmp_path / "run", nodes(3))
    report = found(tmp_path / "run")
    assert report["failures"] == []
    assert report["versions"].keys() >= {"p2pft-flower", "flwr", "torch", "timm"}
    assert "config" in report["digests"]
    assert len(report["digests"]) > 1  # and those of what is frozen
    assert {(p["peer"], link["neighbour"]) for p in report["peers"] for link in p["links"]} == {
        (i, j) for i in range(3) for j in range(3) if i != j
    }
    assert all(link["error"] == "" for p in report["peers"] for link in p["links"])
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "completed"


def test_preflight_only_trains_nothing(tmp_path):
    deploy(tmp_path / "run", nodes(3), preflight_only=True)
    assert found(tmp_path / "run")["failures"] == []
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["preflight.json"]


def test_a_peer_that_listens_elsewhere_stops_the_run_before_it_trains_and_names_its_links(tmp_path):
    for deadline in (1.5, 30.0):  # the second for a machine on which nothing answers within the first
        configs = nodes(3)
        [elsewhere] = ports(1)
        configs[1]["bind-address"] = f"127.0.0.1:{elsewhere}"
        with pytest.raises(P2PFTError, match="preflight found") as caught:
            deploy(tmp_path / "run", configs, meet_timeout=deadline)
        if "link 0 -> 2 " not in str(caught.value):
            break
    assert "link 0 -> 1 " in str(caught.value)
    assert "link 2 -> 1 " in str(caught.value)
    assert "link 0 -> 2 " not in str(caught.value)
    assert not (tmp_path / "run" / "peers").exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    configs = nodes(3)
    configs[2]["output-dir"] = str(tmp_path / "file")
    with pytest.raises(P2PFTError, match=r"peer 2: output-dir .*file.* give a folder"):
        deploy(tmp_path / "run", configs)


def test_a_folder_that_the_run_will_make_is_not_made_by_looking_at_it(tmp_path):
    report = look_at("output-dir", tmp_path / "runs" / "17")
    assert (report.path, report.error) == (str(tmp_path / "runs" / "17"), "")
    assert report.free > 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").write_text("")
    assert look_at("output-dir", tmp_path / "runs" / "17").error == "Not a directory"


def test_the_folder_looked_at_is_the_one_the_site_will_write_to(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    deploy("", nodes(3))
    [run] = (tmp_path / "home" / "runs").iterdir()
    assert sorted(p.name for p in (run / "peers").glob("*.jsonl")) == [f"peer-{i}.jsonl" for i in range(3)]
    for peer in found(run)["peers"]:
        assert {f["purpose"]: f["path"] for f in peer["folders"]}["output-dir"] == str(run)


def test_a_peer_that_reads_the_run_config_otherwise_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("p2pft_flower.flower.client.config_digest", lambda config: "another")
    with pytest.raises(P2PFTError, match=r"peer 2 reads the run-config otherwise .*install the same build"):
        deploy(tmp_path / "run", nodes(3))


def test_a_clock_that_is_no_number_is_named():
    link = {"neighbour": 1, "address": "a:1", "error": "", "skew": float("nan")}
    [failure] = preflight._failures(0, {"config": "d", "links": [link], "folders": []}, "d")
    assert "the clocks differ" in failure


def test_a_clock_that_is_hardly_behind_is_not_said_to_be_minus_0_ms_ahead():
    link = {"neighbour": 1, "error": "", "round_trip": 0.001, "bandwidth": 1e6, "skew": -0.0003}
    row = {"name": "a", "peer": 0, "address": "x:1", "images": 3, "classes": ["0"], "certificate": ""}
    report = {"graph": "g", "peers": [{**row, "folders": [], "links": [link]}], "versions": {}, "digests": {}}
    said = preflight_tables(report)
    assert "+0 ms" in said
    assert "-0 ms" not in said
    assert "each link is probed from both ends: peer 0 measured the row 0 to 1" in said


def test_clocks_that_differ_too_much_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "MAX_SKEW", -1.0)
    with pytest.raises(P2PFTError, match=r"link 0 -> 1 .*clocks differ.*NTP"):
        deploy(tmp_path / "run", nodes(3))


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "MIN_FREE", 2**60)
    with pytest.raises(P2PFTError, match=r"peer 1: output-dir .*MiB free .* make room"):
        deploy(tmp_path / "run", nodes(3))


def test_a_run_may_start_without_some_peers_and_says_who_is_missing(tmp_path, capsys, monkeypatch):
    now, hear = [0.0], greeting._Greeting.hear

    def heard(greeted):
        hear(greeted)
        if len(greeted.answers) == 3:
            now[0] = 100.0  # meet-timeout is over once those that are there have answered

    monkeypatch.setattr(greeting._Greeting, "hear", heard)
    monkeypatch.setattr(greeting, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    four = nodes(4)
    run_app(
        tmp_path / "run",
        nodes=3,
        slots=3,
        node_configs=[four[i] for i in (0, 1, 3)],
        **SMALL | {"topology": "directed-ring-4", "min_peers": 3, "meet_timeout": 60.0, "iterations": 40},
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "completed-with-3-of-4"
    assert results["error"] == "peers [2] were not there at the start"
    assert [p["peer"] for p in results["peers"]] == [0, 1, 3]
    assert results["history"][-1]["accuracy"][2] is None
    assert results["consensus_error"] < 0.2  # the ring was closed: 1 sends to 3
    links = {(p["peer"], link["neighbour"]) for p in found(tmp_path / "run")["peers"] for link in p["links"]}
    assert links == {(0, 1), (1, 0), (1, 3), (3, 1), (3, 0), (0, 3)}
    assert results["graph"]["added_edges"] == [[1, 3]]
    assert "new neighbours (sender to receiver): 1 to 3" in capsys.readouterr().out


def test_without_leave_to_go_on_all_peers_of_the_graph_must_be_there(tmp_path):
    four = nodes(4)
    with pytest.raises(P2PFTError, match=r"waiting for peers \[2\]; there are the peers \[0, 1, 3\]"):
        run_app(
            tmp_path / "run",
            nodes=3,
            slots=3,
            node_configs=[four[i] for i in (0, 1, 3)],
            **SMALL | {"topology": "directed-ring-4", "meet_timeout": 3.0},
        )


def test_a_simulation_has_no_links_to_look_at(tmp_path):
    with pytest.raises(P2PFTError, match="preflight-only"):
        run_app(tmp_path / "run", preflight_only=True, **SMALL)
