"""What a process does first when it is told to end, and whom the coordinator tells."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from p2pft_flower.config import RunConfig
from p2pft_flower.flower import host_process, peer_run, signals
from p2pft_flower.flower.nodes import HostAssignment
from p2pft_flower.flower.run import Run
from p2pft_flower.flower.signals import before_obeying
from p2pft_flower.host.host import Host
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View
from tests.host.quadratic import GRAPH, Quadratics, plans

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def _a_signal_is_obeyed():
    """Stand in for Flower's handler: a shell that runs the tests in the background has SIGINT ignored."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_is_acted_on_once_and_then_obeyed():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def act(number):
        seen.append(number)
        signal.raise_signal(signal.SIGTERM)  # an impatient second one
        return True

    with pytest.raises(KeyboardInterrupt), before_obeying(act):
        signal.raise_signal(signal.SIGINT)
    assert seen == [signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_was_enough_to_act_on_is_not_obeyed_but_a_second_one_is():
    def twice():
        with before_obeying(lambda number: False):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()


@pytest.fixture
def reply(monkeypatch):
    """Whether somebody waits for the process's reply; looks at it follow each other at once."""
    monkeypatch.setattr(signals, "_EVERY", 0.0)
    waits = threading.Event()
    waits.set()
    return waits


def wait_for_a_signal(number=None):
    """Raise ``number``, if one is given, and wait until a signal is obeyed."""
    if number is not None:
        signal.raise_signal(number)
    threading.Event().wait(PATIENCE)
    raise AssertionError("no signal was obeyed")


@pytest.mark.parametrize("told_before", [False, True])
def test_a_signal_is_obeyed_only_when_nobody_waits_for_the_reply_any_more(reply, told_before):
    over, looks = [], []

    def held():
        looks.append(reply.is_set())
        if over and len(looks) > 3:
            reply.clear()
        return reply.is_set()

    def hand_over():
        with before_obeying(lambda number: False, held):
            if told_before:
                signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        over.append("the reply")
        wait_for_a_signal()

    with pytest.raises(KeyboardInterrupt):
        hand_over()
    assert over == ["the reply"]


def test_a_reply_that_takes_too_long_is_not_waited_for(reply, monkeypatch):
    monkeypatch.setattr(signals, "_LONGEST", 0.05)
    with before_obeying(lambda number: False, reply.is_set):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        wait_for_a_signal(signal.SIGINT)


def test_where_nobody_waits_for_a_reply_a_second_signal_is_obeyed_at_once(reply):
    def twice():
        with before_obeying(lambda number: False, lambda: False):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        twice()
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_ignored_signal_does_not_take_the_place_of_one_that_is_obeyed(reply):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with before_obeying(lambda number: False, reply.is_set):
        pass
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    reply.clear()
    with pytest.raises(KeyboardInterrupt):
        wait_for_a_signal()


def test_a_second_block_in_the_same_process_holds_signals_no_longer(reply):
    for _ in range(3):
        with before_obeying(lambda number: False, reply.is_set):
            pass
    reply.clear()
    with pytest.raises(KeyboardInterrupt):
        wait_for_a_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_client_app_that_has_ended_its_run_is_not_ended_while_its_supernode_listens(
    reply, tmp_path, monkeypatch
):
    monkeypatch.setattr(host_process, "answers", reply.is_set)
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    (plan,) = plans(GRAPH, [range(GRAPH.n)], {}, tmp_path)
    host_process.run_host(Host(plan, Quadratics()), deployed=True)
    signal.raise_signal(signal.SIGINT)
    reply.clear()
    with pytest.raises(KeyboardInterrupt):
        wait_for_a_signal()


def test_a_signal_is_obeyed_even_when_acting_on_it_fails():
    def act(number):
        raise OSError("the disk is full")

    with pytest.raises(KeyboardInterrupt) as caught, before_obeying(act):
        signal.raise_signal(signal.SIGINT)
    assert "the disk is full" in str(caught.value.__context__)


def test_without_a_signal_nothing_has_changed_afterwards():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with before_obeying(lambda number: True):
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_signals_are_left_alone():
    handlers = []

    def run():
        with before_obeying(lambda number: True):
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


@pytest.fixture
def reached():
    """Peers that hear a stop at each try (the last holds on), and the ClientApps on this machine."""
    return SimpleNamespace(tries=[set()], here=[])


@pytest.fixture
def told(monkeypatch, reached):
    """The addresses at which the coordinator told of the stop, try by try."""
    calls = []

    def stop_run(run, key, addresses, reason, credentials):
        hearing = reached.tries[min(len(calls), len(reached.tries) - 1)]
        calls.append(addresses)
        return {p: "no answer" for p in addresses if p not in hearing}

    monkeypatch.setattr(peer_run, "stop_run", stop_run)
    monkeypatch.setattr(peer_run, "running", lambda run: reached.here)
    monkeypatch.setattr(peer_run, "RETRY_AFTER", 0.0)
    return calls


ADDRESSES = {0: "10.0.0.0:9000", 1: "10.0.0.1:9000"}


def stop(number, parent, *, deployed=True, exchanges=True, addresses=ADDRESSES, patience=0.0):
    runtime = SimpleNamespace(meet_timeout=patience)
    run = SimpleNamespace(
        id="7",
        peers=(0, 1),
        addresses=addresses,
        exchanges=exchanges,
        deployed=deployed,
        config=SimpleNamespace(runtime=runtime),
    )
    return peer_run._stop_peers(run, b"key", None, number, parent)


def test_a_stopped_run_is_told_to_its_peers_and_a_failure_to_reach_any_says_what_to_do(told, caplog):
    reason = stop(signal.SIGINT, os.getppid())
    assert told == [ADDRESSES]
    assert "peers [0, 1] train on" in caplog.text
    assert "but peers [0, 1] could not be told and train on" in reason
    assert "Not told: peer 0: no answer; peer 1: no answer" in caplog.text
    assert "at any one site, p2pft stop 7 stops all" in caplog.text


def test_a_stop_that_comes_before_the_hosts_listen_is_told_again_until_one_hears_it(told, reached, caplog):
    reached.tries = [set(), set(), {1}]
    assert stop(signal.SIGINT, os.getppid(), patience=60.0) == "the run was stopped by flwr stop or Ctrl-C"
    assert told == [ADDRESSES] * 3
    assert "trying for 60 s (meet-timeout)" in caplog.text
    assert "train on" not in caplog.text


def test_where_nothing_is_exchanged_every_peer_is_told_by_itself(told, reached, caplog):
    reached.tries = [{1}, {0}]
    stop(signal.SIGINT, os.getppid(), exchanges=False, patience=60.0)
    assert told == [ADDRESSES, {0: ADDRESSES[0]}]
    assert "train on" not in caplog.text


def test_a_peer_without_an_address_is_named_when_it_trains_on(told, reached, caplog):
    reached.tries = [{1}]
    stop(signal.SIGINT, os.getppid(), exchanges=False, addresses={1: ADDRESSES[1]})
    assert "peers [0] train on" in caplog.text
    assert "it has no address: set peer-address" in caplog.text
    assert "at the site of each, p2pft stop 7" in caplog.text


class Here:
    """A process on the coordinator's machine in which ``peers`` train, and what it was told."""

    def __init__(self, *peers, full=False):
        self.pid, self.peers, self.full, self.told = 4711, peers, full, []

    def stop_run(self):
        if self.full:
            raise OSError(28, "No space left on device", "/home/running/4711-1.stop")
        self.told.append("stop the run")


@pytest.mark.parametrize("hearing", [set(), {0}])
def test_clientapps_on_the_coordinators_machine_stop_the_run_only_where_no_peer_heard_it(
    hearing, reached, told, caplog
):
    reached.tries = [hearing]
    reached.here = [here := Here(1)]
    stop(signal.SIGINT, os.getppid())
    assert here.told == ([] if hearing else ["stop the run"])
    assert "p2pft stop" not in caplog.text


def test_a_peer_without_an_address_is_stopped_where_it_trains_on_the_coordinators_machine(told, reached):
    reached.here = [here := Here(0, 1)]
    stop(signal.SIGINT, os.getppid(), exchanges=False, addresses={})
    assert here.told == ["stop the run"]


def test_a_clientapp_that_cannot_be_told_is_named_with_the_file_and_the_next_one_is_told(
    told, reached, caplog
):
    reached.here = [Here(1, full=True)]
    reason = stop(signal.SIGINT, os.getppid())
    assert "peers [0, 1] train on" in caplog.text
    assert "peer 1: no answer; nor can its process 4711 here: [Errno 28] No space left" in caplog.text
    assert "4711-1.stop" in caplog.text
    assert "train on" in reason
    reached.here = [Here(1, full=True), other := Here(0)]
    assert stop(signal.SIGINT, os.getppid()) == "the run was stopped by flwr stop or Ctrl-C"
    assert other.told == ["stop the run"]


@pytest.mark.parametrize(
    ("number", "parent"),
    [(signal.SIGTERM, os.getppid()), (signal.SIGINT, os.getppid() + 1)],
    ids=["the-service-is-ended", "the-superlink-has-died"],
)
def test_a_server_that_merely_goes_stops_nobody(number, parent, told, caplog):
    assert stop(number, parent) is None  # so no results say that the run was stopped
    assert told == []
    assert "the peers train on by themselves" in caplog.text


def test_a_simulation_is_ended_with_its_processes_and_tells_nobody(told):
    assert "the run was stopped" in stop(signal.SIGINT, os.getppid(), deployed=False)
    assert told == []


def deployment(tmp_path, *, deployed=True, addresses=("10.0.0.1:9000", "", "10.0.0.3:9000")):
    graph = Graph.load("ring:3")
    return Run(
        id="7",
        config=RunConfig.from_mapping({"algorithm": "local"}),
        graph=graph,
        view=View.whole(graph),
        folder=tmp_path,
        pooled=False,
        exchanges=False,
        deployed=deployed,
        hosts=[HostAssignment(100 + p, (p,), address) for p, address in enumerate(addresses)],
        images=dict.fromkeys(range(3), 10),
        classes={p: ["0"] for p in range(3)},
        class_names=["0"],
        partition="iid",
        versions={},
        iterations=1,
        epoch=1,
        evaluate_every=1,
    )


def test_peers_that_exchange_nothing_are_told_where_to_listen_for_stops_and_need_no_address(tmp_path):
    run = deployment(tmp_path)
    told = [peer_run._host_plan(run, host, "", "digest", "") for host in run.hosts]
    assert [plan.addresses for plan in told] == [{0: "10.0.0.1:9000"}, {}, {2: "10.0.0.3:9000"}]
    assert [plan.listens_for_stops for plan in told] == [True, False, True]


def test_a_peer_in_a_simulation_listens_for_no_stops(tmp_path):
    run = deployment(tmp_path, deployed=False)
    assert not any(peer_run._host_plan(run, host, "", "", "").listens_for_stops for host in run.hosts)
