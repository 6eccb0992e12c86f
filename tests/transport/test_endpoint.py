"""What a listener does with calls that wait: a stopped process, or a busy loop, costs nobody its call."""

from __future__ import annotations

import threading

import grpc

from p2pft_flower.transport import endpoint
from p2pft_flower.transport.endpoint import Listener
from p2pft_flower.transport.network import Tasks

PATIENCE = 60.0
CALLS = 20


def codes():
    """Return how calls end that come while the loop of all calls is busy with one."""
    begun, go_on = threading.Event(), threading.Event()

    async def answer(call):
        begun.set()
        go_on.wait(PATIENCE)
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
            return {call.code().name for call in calls}
    finally:
        go_on.set()
        listener.close(1.0)
        tasks.close()


def test_how_long_a_call_may_wait_for_a_busy_loop_is_the_listeners_to_say(monkeypatch):
    """Tried with no time at all, since gRPC's own 30 s are too long for a test."""
    assert codes() == {"OK"}
    monkeypatch.setattr(endpoint, "UNTAKEN", 0)
    assert any(
        "CANCELLED" in codes() for _ in range(20)
    )  # on a busy machine calls may come after the loop is free
