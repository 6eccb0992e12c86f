from __future__ import annotations

import threading

import pytest

from p2pft_flower.errors import ConfigError
from p2pft_flower.transport import Credentials, ObserverClient, ObserverServer, PeerReport, unix_address
from p2pft_flower.transport.endpoint import OBSERVER, Listener
from p2pft_flower.transport.network import Tasks
from tests.transport.federation import Federation
from tests.transport.wire import PATIENCE, spawn


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


def test_nobody_listening_costs_a_peer_nothing_but_one_line_of_its_log(tmp_path, caplog):
    client = ObserverClient(unix_address("r", 0, tmp_path), max_outstanding=4, timeout=10 * PATIENCE)
    peer = spawn(lambda: [client.report(PeerReport()) for _ in range(101)])
    peer.join(PATIENCE)
    waits, dropped = peer.is_alive(), client.dropped
    client.close(0.05)
    assert not waits, "for a call that nobody takes"
    assert dropped == 97
    client.report(PeerReport())  # after close: dropped, no error
    (record,) = caplog.records
    assert "progress does not reach the coordinator at unix:" in record.getMessage()


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


@pytest.fixture
def north(tmp_path):
    (tmp_path / "north").mkdir()
    return Federation(tmp_path / "north")


def told(server, credentials, peer, caplog):
    """Report as ``peer``; return what the log says of it."""
    caplog.clear()
    client = ObserverClient(server.address, timeout=PATIENCE, credentials=credentials)
    client.report(PeerReport(run="r", peer=peer))
    client.report(PeerReport(run="r", peer=peer))
    client.close(PATIENCE)
    return [record.getMessage() for record in caplog.records]


def test_over_tls_the_coordinator_hears_each_peer_of_its_federation_for_itself(north, caplog):
    seen = []
    own = Credentials.load(north.coordinator(), "coordinator")
    with ObserverServer("127.0.0.1:0", lambda r: seen.append(r.peer), credentials=own) as server:
        assert told(server, north[1], 1, caplog) == []
        (said,) = told(server, north[1], 2, caplog)  # once, however many are refused
        assert "NOT_AUTHENTIC: a report of peer 2 by peer 1" in said
        (said,) = told(server, own, 2, caplog)
        assert "NOT_AUTHENTIC: a report of peer 2 by the coordinator" in said
    assert seen == [1, 1]


def test_whoever_answers_in_the_coordinators_place_is_told_nothing(north, tmp_path, caplog):
    """Neither another federation's coordinator nor a peer of its own: a peer asks for the coordinator."""
    (tmp_path / "south").mkdir()
    south = Federation(tmp_path / "south", "south")
    for other in (Credentials.load(south.coordinator(), "coordinator"), north[2]):
        seen = []
        with ObserverServer("127.0.0.1:0", seen.append, credentials=other) as server:
            caplog.clear()
            with ObserverClient(server.address, timeout=1.0, credentials=north[1]) as client:
                client.report(PeerReport(run="r", peer=1))
                client.close(PATIENCE)
            assert "progress does not reach the coordinator at" in caplog.text
        assert (seen, client.dropped) == ([], 1)


@pytest.mark.parametrize(
    ("answer", "says"), [(b"\xff", "what answers there is no coordinator"), (b"\x08\x63", "99: ")]
)
def test_an_answer_that_is_none_is_told_of_and_the_next_report_leaves(answer, says, caplog):

    async def report(call):
        return answer

    tasks = Tasks()
    listener = Listener(
        tasks, OBSERVER, {"Report": report}, {0: "127.0.0.1:0"}, max_calls=8, max_connections=8
    )
    client = ObserverClient(listener.bound_addresses[0], timeout=PATIENCE)
    try:
        client.report(PeerReport(peer=1))
        client.report(PeerReport(peer=1))
    finally:
        client.close(PATIENCE)
        listener.close(1.0)
        tasks.close()
    (record,) = caplog.records
    assert says in record.getMessage()
    assert client.dropped == 2
