"""A host in a ClientApp's process: it trains in a thread, and the main thread waits for signals."""

from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path

from p2pft_flower.flower.signals import before_obeying
from p2pft_flower.flower.supernode import answers, watched
from p2pft_flower.host.agreement import LostContactError
from p2pft_flower.host.host import Host
from p2pft_flower.keeping.lines import Outcome
from p2pft_flower.keeping.run_folders import in_use
from p2pft_flower.keeping.running import registered
from p2pft_flower.transport import ExchangeStoppedError

__all__ = ["run_host"]

LEAVE = 8.0
"""Seconds after a stop within which a deployed host ends, even in the middle of a long gradient."""


def run_host(host: Host, *, deployed: bool) -> list[Outcome]:
    """Run ``host`` to its end, or until a signal ends this process; return its peers' outcomes.

    In a deployment, after SIGTERM or SIGINT (which Flower also raises when the SuperNode has died), the host
    first reports to the others that it leaves; ``on-failure`` decides what they do then. After ``p2pft stop``
    the same signals stop all peers of the run: the host sends a stop to its neighbours, and they pass it on.
    If the SuperNode is still there, the ClientApp then answers it, as after any other stop.

    Raises
    ------
    ExchangeStoppedError
        When a neighbour or the coordinator stopped the run.
    LostContactError
        When the others have gone on without this host, and it was not let in again in time.
    Exception
        Any error that :meth:`~p2pft_flower.host.host.Host.run` raises.
    """
    result: list[list[Outcome]] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(host.run())
        except BaseException as error:
            failure.append(error)

    parent = os.getppid()
    orphaned = threading.Event()

    def supernode_died() -> None:
        orphaned.set()
        os.kill(os.getpid(), signal.SIGINT)  # as Flower does if it notices the death itself

    def stop(number: signal.Signals) -> bool:
        if entry.stops_run():
            host.stop(f"the run was stopped at a site of it (p2pft stop, {number.name})")
        else:
            why = "the site stopped it, or its SuperNode is gone"
            host.leave(f"its ClientApp was told to end ({number.name}); {why}")
        # A SuperNode of Flower 1.41 whose ClientApp obeys waits for ever for its reply, also if the
        # parent that is gone was a SuperExec of the site's own.
        return orphaned.is_set() or (os.getppid() != parent and not answers())

    thread = threading.Thread(target=run, name="p2pft-host", daemon=True)
    with in_use(Path(host.plan.output_dir)):
        if not deployed:
            _watch(host, thread, math.inf)
        else:
            peers, name = [p.peer for p in host.plan.peers], host.plan.config.runtime.name
            with (
                registered(host.plan.run, peers, host.neighbours, name) as entry,
                before_obeying(stop, answers),
                watched(supernode_died),
            ):
                _watch(host, thread, LEAVE)
    if failure:
        raise failure[0]
    return result[0]


def _watch(host: Host, thread: threading.Thread, leave: float) -> None:
    """Start ``thread``, which runs ``host``, and return when it has ended.

    Raises what ends the host before: it was stopped more than ``leave`` seconds ago and is still busy, the
    others have gone on without it, or Flower raised an exception in this thread.
    """
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.05)  # the main thread must stay responsive to Flower's stop signal
            host.raise_if_stopped(longer_than=leave)
            host.raise_if_lost()  # it may be busy with a gradient that never ends
    except ExchangeStoppedError:
        host.save_stopped()  # the host is still busy: its thread will not live to do so
        raise
    except LostContactError:
        raise
    except BaseException:
        host.leave("its ClientApp was told to end")
        thread.join(LEAVE / 2)  # Flower ends the process 5 s after the signal
        host.save_stopped()
        raise
