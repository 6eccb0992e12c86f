"""A site's numbers for Prometheus: by its naming conventions, from its bulletin, and only where it asked."""

from __future__ import annotations

import math
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from p2pft_flower.errors import ConfigError
from p2pft_flower.flower import metrics
from p2pft_flower.flower.metrics import served
from p2pft_flower.flower.site import Site
from p2pft_flower.keeping.bulletins import bulletin_path, write_bulletin
from p2pft_flower.lab.ports import free_ports
from tests.report.test_status import bulletin, peer


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path))
    return f"127.0.0.1:{free_ports(1)[0]}"


def samples(address):
    """Return the numbers at ``/metrics``, by name and labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_a_scrape_has_the_numbers_of_the_moment_by_peer_and_site(address):
    written = {"written": time.time() + 3600.0}  # it grows no older while the test lasts
    south = peer(2, evaluated=390, loss=0.5, accuracy=0.75, accuracy_unseen=None, bytes_sent=4000)
    write_bulletin(bulletin_path(0), bulletin(south, **written))
    with served(address, "7"):
        found = samples(address)
        labels = (("peer", "2"), ("run", "7"), ("site", "south"))
        assert found["p2pft_peer_accuracy_ratio", *labels] == 0.75
        assert found["p2pft_peer_sent_bytes_total", *labels] == 4000
        assert ("p2pft_peer_accuracy_unseen_ratio", *labels) not in found
        state = {k: v for k, v in found.items() if k[0] == "p2pft_peer_state" and ("peer", "2") in k}
        assert [dict(k[1:])["p2pft_peer_state"] for k, v in state.items() if v] == ["computing"]
        assert found["p2pft_run_iterations", ("run", "7")] == 1000
        assert found["p2pft_run_at_risk", ("run", "7")] == 0
        write_bulletin(bulletin_path(0), bulletin(peer(2, evaluated=400, accuracy=0.8), **written))
        assert samples(address)["p2pft_peer_accuracy_ratio", *labels] == 0.8
    with pytest.raises(OSError):  # noqa: PT011 - nobody listens any more
        samples(address)


def test_a_state_of_a_peer_is_one_of_those_that_are_served(address):
    write_bulletin(
        bulletin_path(0), bulletin(peer(1, state="waiting", awaited=2), written=time.time() + 3600.0)
    )
    with served(address, "7"):
        found = samples(address)
    for p in range(4):
        assert (
            math.fsum(v for k, v in found.items() if k[0] == "p2pft_peer_state" and ("peer", str(p)) in k)
            == 1
        )


def test_an_address_that_is_taken_ends_nothing_and_is_named(address, caplog):
    with served(address, "7"), served(address, "8"):
        assert samples(address) is not None
    assert f"metrics-address = {address}: nothing is served there" in caplog.text


def test_a_site_without_the_key_serves_nothing(tmp_path):
    with served("", "7"):
        assert Site.of({"peer-id": 0}).metrics_address == ""


@pytest.mark.parametrize("wrong", ["unix:/tmp/x", "nowhere", "127.0.0.1:99999"])
def test_an_address_that_cannot_be_one_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"metrics-address|host:port|port"):
        Site.of({"peer-id": 0, "metrics-address": wrong})


def test_without_the_library_the_key_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'p2pft-flower\[metrics\]'"):
        Site.of({"peer-id": 0, "metrics-address": "127.0.0.1:9464"})
