from __future__ import annotations

import threading
import time

import pytest

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport import ObserverClient, ObserverServer, PeerReport, unix_address
from tests.transport.wire import PATIENCE


def test_reports_reach_the_observer_before_close_returns():
    seen = []
    with ObserverServer("127.0.0.1:0", seen.append) as server:
        client = ObserverClient(server.address)
        sent = [
            PeerReport(run="r", peer=2, iteration=k, loss=0.5, accuracy=0.9, sketch=[1, 2], bytes_sent=7)
            for k in range(20)
        ]
        for report in sent:
            client.report(report)
        client.close(PATIENCE)
    assert sorted(seen, key=lambda report: report.iteration) == sent
    assert not seen[0].HasField("accuracy_unseen")
    assert client.dropped == 0


def test_an_observer_that_starts_late_still_hears(tmp_path):
    address = unix_address("r", 0, tmp_path)
    heard = threading.Event()
    with ObserverClient(address) as client:
        client.report(PeerReport(peer=1))
        with ObserverServer(address, lambda report: heard.set()):
            assert heard.wait(PATIENCE)


def test_nobody_listening_costs_a_peer_nothing(tmp_path):
    client = ObserverClient(unix_address("r", 0, tmp_path), max_outstanding=4)
    client.report(PeerReport())
    start = time.perf_counter()
    for _ in range(100):
        client.report(PeerReport())
    assert time.perf_counter() - start < 0.5
    assert client.dropped >= 97
    client.close(0.05)
    client.report(PeerReport())  # after close: dropped, no error


def test_an_observer_that_fails_does_not_disturb_the_peer(caplog):
    def broken(report):
        raise RuntimeError("no screen")

    with ObserverServer("127.0.0.1:0", broken) as server, ObserverClient(server.address) as client:
        client.report(PeerReport())
        client.close(PATIENCE)
    assert "no screen" in caplog.text
    assert client.dropped == 0


def test_reports_leave_the_machine_in_plain_text_only_when_the_user_says_so():
    with pytest.raises(ConfigError, match="insecure = true"):
        ObserverServer("0.0.0.0:0", print)
    with pytest.raises(ConfigError, match="insecure = true"):
        ObserverClient("192.0.2.1:80")


def test_a_peers_reports_come_in_the_order_in_which_it_made_them():
    seen = []
    with ObserverServer("127.0.0.1:0", lambda r: seen.append(r.note)) as server:
        client = ObserverClient(server.address, timeout=60.0)
        for i in range(50):
            client.report(PeerReport(run="r", peer=0, note=str(i)))
        client.close(timeout=60.0)
    assert seen == [str(i) for i in range(50)]
    assert client.dropped == 0
