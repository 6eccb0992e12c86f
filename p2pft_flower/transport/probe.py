"""Probes before a run: do neighbours reach each other; round trip, bandwidth and clocks of their links."""

from __future__ import annotations

import asyncio
import logging
import math
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from p2pft_flower.transport.admission import recognise
from p2pft_flower.transport.calls import Call, Channels
from p2pft_flower.transport.closing import Closing
from p2pft_flower.transport.endpoint import (
    PROBE,
    Incoming,
    Listener,
    NoMessageError,
)
from p2pft_flower.transport.network import Tasks
from p2pft_flower.transport.trust.certificates import Identity
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import (
    ExchangeError,
    ExchangeRefusedError,
    PeerUnreachableError,
    Refused,
)

__all__ = ["LinkReport", "Prober"]

log = logging.getLogger(__name__)

BALLAST = 2**20
"""Bytes sent to measure the bandwidth."""

ECHOES = 5
"""Round trips made; the shortest counts, and the median of the clocks' differences."""

GRACE = 3.0
"""Seconds that a peer stays for the probe of a neighbour that refused it, to answer with the reason."""

_RETRY_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class LinkReport:
    """One peer's findings about the link to one neighbour.

    Attributes
    ----------
    peer, neighbour : int
        The peer that probed, and the neighbour.
    address : str
        The address at which the neighbour was looked for.
    error : str
        The reason why the probing failed; empty if it did not: then the fields below are not None.
    round_trip : float or None
        Seconds, the shortest of several.
    bandwidth : float or None
        Bytes a second towards the neighbour, while all neighbours are sent to at once, as in training.
    skew : float or None
        Seconds by which the neighbour's clock is ahead of the peer's, to within half a round trip.
    """

    peer: int
    neighbour: int
    address: str
    error: str = ""
    round_trip: float | None = None
    bandwidth: float | None = None
    skew: float | None = None


class Prober(Closing):
    """Listens as ``peer`` and probes its neighbours; a context manager.

    Parameters
    ----------
    run : str
        The run's identifier; probes of other runs are refused.
    peer : int
        The local peer.
    listen : str
        The address to listen on.
    neighbours : mapping of int to str
        Neighbour, in either direction of an edge, to its address as seen from here.
    credentials : Credentials, optional
        The peer's certificate, and the authorities that it trusts; for TLS over TCP.
    insecure : bool
        Whether plain text may leave this machine; default False.

    Attributes
    ----------
    address : str
        The address listened on, with the real port.

    Raises
    ------
    BindError
        When the address cannot be served on.
    ConfigError
        When an address cannot be parsed, or plain text would leave this machine.
    """

    def __init__(
        self,
        run: str,
        peer: int,
        listen: str,
        neighbours: Mapping[int, str],
        *,
        credentials: Credentials | None = None,
        insecure: bool = False,
    ) -> None:
        self._run, self._peer, self._neighbours = run, peer, dict(neighbours)
        self._credentials, self._insecure = credentials, insecure
        self._through: set[int] = set()
        self._refused: dict[int, str] = {}  # neighbours whose probes were refused here, and why
        self._logged: set[tuple[int, int | None]] = set()
        self._changed = threading.Condition()
        self._tasks = Tasks()
        self._listener = Listener(
            self._tasks,
            PROBE,
            {"Echo": self._echo},
            {peer: listen},
            max_message=BALLAST + 2**10,
            max_calls=2 * len(self._neighbours) + 4,
            max_connections=2 * len(self._neighbours) + 8,
            credentials=credentials,
            insecure=insecure,
        )
        self.address = self._listener.bound_addresses[peer]

    def probe(self, timeout: float) -> list[LinkReport]:
        """Probe every neighbour, wait until each has probed this peer, and return the findings.

        A neighbour that was refused here is not waited for. One that refused this peer is waited for a
        moment, so that its own probe gets an answer with the reason.

        Parameters
        ----------
        timeout : float
            The deadline in seconds, for all probes together.

        Returns
        -------
        list of LinkReport
            One report for each neighbour, by ascending number. A report also has an error if the neighbour
            was reached but had not reached this peer by the deadline, and if this peer refused its probe.
        """
        end = time.monotonic() + timeout
        if not self._neighbours:
            return []
        reports = self._tasks.run(self._ask_all, end)
        waited_for = {r.neighbour for r in reports if not r.error}
        with self._changed:

            def done(peers: Collection[int]) -> bool:
                return self._through | self._refused.keys() >= set(peers)

            self._changed.wait_for(lambda: done(waited_for), max(0.0, end - time.monotonic()))
            grace = min(GRACE, max(0.0, end - time.monotonic()))
            self._changed.wait_for(lambda: done(self._neighbours), grace)
            deaf, refused = waited_for - self._through, dict(self._refused)
        return [self._unheard(r, timeout, refused) if r.neighbour in deaf else r for r in reports]

    def close(self) -> None:
        """Stop listening and probing."""
        self._listener.close(1.0)

    def _unheard(self, report: LinkReport, timeout: float, refused: Mapping[int, str]) -> LinkReport:
        if report.neighbour in refused:
            problem = f"it answers, but its own probes are refused here: {refused[report.neighbour]}"
        else:
            problem = (
                f"peer {report.neighbour} answers, but has not reached peer {self._peer} at the address it "
                f"was told within {timeout:g} s; does peer {self._peer}'s peer-address lead here from there?"
            )
        return LinkReport(report.peer, report.neighbour, report.address, problem)

    async def _ask_all(self, end: float) -> list[LinkReport]:
        async with Channels(self._neighbours, self._credentials, self._insecure, service=PROBE) as channels:
            return await asyncio.gather(*(self._ask(channels, j, end) for j in sorted(self._neighbours)))

    async def _ask(self, channels: Channels, neighbour: int, end: float) -> LinkReport:
        address = self._neighbours[neighbour]
        probe = partial(self._probe, channels, neighbour, end)
        try:
            await self._reach(probe, neighbour, end)
            trips, skews = zip(*[await probe() for _ in range(ECHOES)], strict=True)
            sending, _ = await probe(bytes(BALLAST))
            await probe(last=True)
        except ExchangeError as error:
            return LinkReport(self._peer, neighbour, address, error.problem)
        trip = min(trips)
        bandwidth = BALLAST / max(sending - trip, 1e-6)
        skew = float(statistics.median(skews))
        return LinkReport(self._peer, neighbour, address, "", trip, bandwidth, skew)

    async def _probe(
        self, channels: Channels, neighbour: int, end: float, ballast: bytes = b"", *, last: bool = False
    ) -> tuple[float, float]:
        """Return the seconds that one probe took, and the seconds that the neighbour's clock is ahead."""
        left = max(0.001, end - time.monotonic())
        call = Call((self._peer, neighbour), neighbour, channels.addresses[neighbour], left)
        probe = pb.Probe(run=self._run, sender=self._peer, receiver=neighbour, ballast=ballast, last=last)
        body = probe.SerializeToString()
        sent, begin = time.time(), time.perf_counter()
        answer = await channels.ask("Echo", body, call, wait_for_ready=False)
        passed = time.perf_counter() - begin
        reply = call.read(answer, pb.ProbeReply)
        if not math.isfinite(reply.time):
            raise call.error(ExchangeRefusedError, f"it gave {reply.time} as the time of its clock")
        return passed, reply.time - (sent + passed / 2)

    async def _reach(self, probe: Callable[[], Awaitable[object]], neighbour: int, end: float) -> None:
        """Probe until the neighbour answers; raise at the deadline, or if TLS with it fails."""
        while True:
            try:
                await probe()
            except PeerUnreachableError as error:
                if time.monotonic() + _RETRY_EVERY >= end:
                    raise
                await asyncio.sleep(_RETRY_EVERY)
                if self._credentials is None:
                    continue
                diagnose, address = self._credentials.diagnose, self._neighbours[neighbour]
                if (why := await asyncio.to_thread(diagnose, address, neighbour)) is not None:
                    raise ExchangeRefusedError(why) from error
            else:
                return

    async def _echo(self, call: Incoming) -> bytes:
        sender: int | None = None
        try:
            caller = recognise(call, self._credentials).who
            sender = None if caller is None else caller.peer
            probe = await call.message(pb.Probe, "a probe")
            now = time.time()
            sender = probe.sender if caller is None else caller.peer
            self._check(probe, caller)
        except NoMessageError:  # the caller is gone
            return pb.ProbeReply(status=pb.BAD_HEADER).SerializeToString()
        except Refused as refused:
            return self._refuse(refused.status, refused.reason, sender)
        if probe.last:
            with self._changed:
                self._through.add(probe.sender)
                self._changed.notify_all()
        return pb.ProbeReply(status=pb.ACCEPTED, time=now).SerializeToString()

    def _check(self, probe: pb.Probe, caller: Identity | None) -> None:
        """Raise `Refused` if a probe must not be answered."""
        if probe.run != self._run:
            raise Refused(pb.WRONG_RUN, f"run {probe.run[:64]!r} is not this one")
        if probe.receiver != self._peer or probe.sender not in self._neighbours:
            raise Refused(
                pb.NOT_NEIGHBOUR,
                f"peers {probe.sender} and {probe.receiver} share no edge here; this is peer {self._peer}",
            )
        if caller is not None and caller.peer != probe.sender:
            raise Refused(pb.NOT_AUTHENTIC, f"a probe from peer {probe.sender} by {caller.name}")

    def _refuse(self, status: pb.Status, reason: str, sender: int | None) -> bytes:
        """Answer with a refusal; remember it of a neighbour, and log it once per cause and neighbour."""
        known = sender if sender in self._neighbours else None  # strangers' numbers could be any
        with self._changed:
            if (status, known) not in self._logged:
                self._logged.add((status, known))
                log.warning("peer %d refused a probe: %s", self._peer, reason)
            if known is not None:
                self._refused.setdefault(known, reason)
                self._changed.notify_all()
        return pb.ProbeReply(status=status, reason=reason).SerializeToString()
