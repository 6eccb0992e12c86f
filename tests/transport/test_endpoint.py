"""What a listener does with calls that wait: a stopped process, or a busy loop, costs nobody its call."""

from __future__ import annotations

import threading

import grpc
import pytest

from p2pft_flower.transport import endpoint
from p2pft_flower.transport.endpoint import UNTAKEN, Listener
from p2pft_flower.transport.network import Tasks

PATIENCE = 60.0
CALLS = 20


@pytest.mark.parametrize(("untaken", "ended"), [(UNTAKEN, {"OK"}), (0, {"OK", "CANCELLED"})])
def test_a_call_that_no_one_takes_for_long_is_ended_by_its_own_deadline_only(untaken, ended, monkeypatch):
    """gRPC's own 30 s are too long for a test: with none, calls end so if and only if they wait at all."""
    monkeypatch.setattr(endpoint, "UNTAKEN", untaken)
    begun, go_on = threading.Event(), threading.Event()

    async def answer(call):
        begun.set()
        go_on.wait(PATIENCE)  # the loop of all calls is busy
        return b""

    tasks = Tasks()
    listener = Listener(tasks, "s", {"m": answer}, {0: "127.0.0.1:0"}, max_calls=CALLS + 1, max_connections=8)
    try:
        with grpc.insecure_channel(listener.bound_addresses[0]) as channel:
            method = channel.unary_unary("/s/m")
            first = method.future(b"", timeout=PATIENCE)
            assert begun.wait(PATIENCE)
            calls = [first, *(method.future(b"", timeout=PATIENCE) for _ in range(CALLS))]
            go_on.set()
            assert {call.code().name for call in calls} == ended
    finally:
        go_on.set()
        listener.close(1.0)
        tasks.close()
