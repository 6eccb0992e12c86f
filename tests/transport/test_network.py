"""The one thread of networking, and who owns what runs in it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError

import pytest

from p2pft_flower.transport import ExchangeStoppedError, network
from p2pft_flower.transport.network import Tasks
from tests.transport.wire import PATIENCE


def threads():
    return [t for t in threading.enumerate() if t.name == "p2pft-network"]


async def name_of_thread():
    return threading.current_thread().name


async def fail():
    raise ValueError("of its own accord")


def test_all_owners_share_one_thread_and_the_last_one_ends_it(monkeypatch):
    # A network that other tests of this process have open is none of this one's.
    monkeypatch.setattr(network, "_shared", None)
    before = threads()
    with Tasks() as first:
        with Tasks() as second:
            assert {first.run(name_of_thread), second.run(name_of_thread)} == {"p2pft-network"}
            assert len(threads()) == len(before) + 1
        assert first.run(name_of_thread) == "p2pft-network"
    assert threads() == before
    with Tasks() as again:
        assert again.run(name_of_thread) == "p2pft-network"


def test_closing_cancels_what_is_under_way_and_waits_for_its_end():
    begun, steps = threading.Event(), []

    async def long():
        try:
            begun.set()
            await asyncio.sleep(10 * PATIENCE)
        finally:
            await asyncio.sleep(0.01)
            steps.append("ended")

    tasks = Tasks()
    future = tasks.start(long)
    assert begun.wait(PATIENCE)
    tasks.close()
    assert steps == ["ended"]
    with pytest.raises(CancelledError):
        future.result(PATIENCE)
    tasks.close()  # again does no harm


def test_what_a_task_raises_reaches_its_owner_and_a_caller_that_waits_gets_it_itself():
    failures, known = [], threading.Event()
    with Tasks(lambda error: (failures.append(error), known.set())) as tasks:
        with pytest.raises(ValueError, match="of its own accord"):
            tasks.run(fail)
        assert failures == []
        tasks.start(fail)
        assert known.wait(PATIENCE)
        assert [str(error) for error in failures] == ["of its own accord"]


def test_nothing_begins_once_its_owner_has_closed():
    tasks = Tasks()
    tasks.close()
    for begin in (tasks.start, tasks.run):
        with pytest.raises(ExchangeStoppedError, match="closed"):
            begin(name_of_thread)
    tasks.call(threads)
