"""What a process does first when it is told to end, and whom the coordinator tells."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import SimpleNamespace

import pytest

from p2pft_flower.flower import peer_run
from p2pft_flower.flower.signals import before_obeying


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
    """How many peers the coordinator can reach, and the ClientApps of the run on its machine."""
    return SimpleNamespace(count=0, here=[])


@pytest.fixture
def told(monkeypatch, reached):
    """The addresses at which the coordinator told of the stop."""
    calls = []

    def stop_run(run, key, addresses, reason, credentials):
        calls.append(addresses)
        return dict.fromkeys(list(addresses)[reached.count :], "no answer")

    monkeypatch.setattr(peer_run, "stop_run", stop_run)
    monkeypatch.setattr(peer_run, "running", lambda run: reached.here)
    monkeypatch.setattr(peer_run, "_address", lambda run, peer: f"10.0.0.{peer}:9000")
    monkeypatch.setattr(logging.getLogger("p2pft_flower"), "propagate", True)
    return calls


def stop(number, parent, deployed=True):
    run = SimpleNamespace(id="7", peers=2, deployed=deployed)
    peer_run._stop_peers(run, b"key", None, number, parent)


def test_a_stopped_run_is_told_to_its_peers_and_a_failure_to_reach_any_says_what_to_do(told, caplog):
    stop(signal.SIGINT, os.getppid())
    assert told == [{0: "10.0.0.0:9000", 1: "10.0.0.1:9000"}]
    assert "could be told at its address: peer 0: no answer; peer 1: no answer" in caplog.text
    assert "at any one site, p2pft stop 7 stops all" in caplog.text


@pytest.mark.parametrize("count", [0, 1])
def test_clientapps_on_the_coordinators_machine_are_ended_only_where_no_peer_heard_it(
    count, reached, told, caplog
):
    reached.count = count
    ended = []
    process = SimpleNamespace(terminate=lambda: ended.append("terminated"))
    reached.here = [SimpleNamespace(process=process)]
    stop(signal.SIGINT, os.getppid())
    assert ended == ([] if count else ["terminated"])
    assert "p2pft stop" not in caplog.text


@pytest.mark.parametrize(
    ("number", "parent"),
    [(signal.SIGTERM, os.getppid()), (signal.SIGINT, os.getppid() + 1)],
    ids=["the-service-is-ended", "the-superlink-has-died"],
)
def test_a_server_that_merely_goes_stops_nobody(number, parent, told, caplog):
    stop(number, parent)
    assert told == []
    assert "the peers train on by themselves" in caplog.text


def test_a_simulation_is_ended_with_its_processes_and_tells_nobody(told):
    stop(signal.SIGINT, os.getppid(), deployed=False)
    assert told == []
