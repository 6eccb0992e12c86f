"""A site's numbers for Prometheus at ``/metrics`` while its peer trains (node-config ``metrics-address``)."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from p2pft_flower.errors import ConfigError
from p2pft_flower.keeping.bulletins import bulletins
from p2pft_flower.report.status import PeerStatus, RunStatus, status_of
from p2pft_flower.transport import parse_address

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["require_metrics", "served"]

log = logging.getLogger("p2pft_flower")

STATES = (
    *("unknown", "preparing", "computing", "waiting", "evaluating", "changing", "finished"),
    *("slow", "silent", "lost", "ended"),
)
"""The states of a peer, one of which is 1."""


def require_metrics(address: str) -> None:
    """Refuse a ``metrics-address`` that is not ``host:port``, and a machine without ``prometheus_client``.

    Raises
    ------
    ConfigError
        In both cases; the message names the remedy.
    """
    if parse_address(address).path is not None:
        raise ConfigError(
            f"metrics-address = {address!r} in --node-config: give host:port, as 127.0.0.1:9464"
        )
    if importlib.util.find_spec("prometheus_client") is None:
        raise ConfigError(
            f"metrics-address = {address!r} in --node-config: prometheus_client is not installed here; "
            "pip install 'p2pft-flower[metrics]'"
        )


@contextlib.contextmanager
def served(address: str, run: str) -> Iterator[None]:
    """Serve the numbers of ``run`` at ``address`` during a ``with`` block; empty: nothing is served.

    An address that cannot be had ends no run: a warning names it.
    """
    if not address:
        yield
        return
    import prometheus_client

    registry = prometheus_client.CollectorRegistry()
    registry.register(_Collector(run))
    parsed = parse_address(address)
    try:
        server, thread = prometheus_client.start_http_server(parsed.port, parsed.host, registry)
    except OSError as error:
        log.warning("metrics-address = %s: nothing is served there (%s)", address, error.strerror or error)
        yield
        return
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5.0)


class _Collector:
    """Makes the numbers of a run whenever they are asked for, from this machine's bulletins."""

    def __init__(self, run: str) -> None:
        self._run = run

    def collect(self) -> Iterable[Metric]:
        """Return the metric families, by Prometheus' naming conventions."""
        told = [b for b in bulletins(self._run) if b.own]
        return _families(status_of(told, time.time())) if told else ()


def _families(status: RunStatus) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, StateSetMetricFamily

    labels = ("run", "peer", "site")

    def gauge(name: str, text: str, value: float | None) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"p2pft_{name}", text, labels=("run",))
        if value is not None:
            family.add_metric((status.run,), value)
        return family

    def of_peers(family: GaugeMetricFamily | CounterMetricFamily, attribute: str) -> Metric:
        for p in status.peers:
            if (value := getattr(p, attribute)) is not None:
                family.add_metric(_labels(status, p), value)
        return family

    yield gauge("run_iterations", "Iterations of the whole run", status.iterations)
    yield gauge("run_view", "Number of the present view", status.view)
    yield gauge("run_seconds_left", "Seconds to the end at the present rate", status.left)
    yield gauge("run_at_risk", "1 if the result is at risk", status.at_risk)
    yield gauge("run_consensus_error", "Distance of the peers from their mean", status.consensus_error)
    for name, text, attribute in (
        ("peer_iteration", "Iterations that the peer has completed", "iteration"),
        ("peer_iterations_per_second", "Iterations a second of late", "rate"),
        ("peer_last_word_seconds", "Seconds since the peer's last word", "contact"),
        ("peer_loss", "Loss of the last evaluation, in nats", "loss"),
        ("peer_accuracy_ratio", "Accuracy of the last evaluation, 0 to 1", "accuracy"),
        ("peer_accuracy_unseen_ratio", "Accuracy on classes it holds no image of", "accuracy_unseen"),
    ):
        yield of_peers(GaugeMetricFamily(f"p2pft_{name}", text, labels=labels), attribute)
    sent = CounterMetricFamily("p2pft_peer_sent_bytes", "Payload bytes by the last evaluation", labels=labels)
    yield of_peers(sent, "bytes_sent")
    states = StateSetMetricFamily("p2pft_peer_state", "The peer's state", labels=labels)
    for p in status.peers:
        states.add_metric(_labels(status, p), {state: p.state == state for state in STATES})
    yield states


def _labels(status: RunStatus, peer: PeerStatus) -> tuple[str, str, str]:
    return status.run, str(peer.peer), peer.name
