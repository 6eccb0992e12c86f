"""The gRPC server of a host: it lets callers in or refuses them, and answers their calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt

from p2pft_flower.errors import Cause
from p2pft_flower.transport.admission import Caller, Shares, Throttle, recognise
from p2pft_flower.transport.answers import Answers
from p2pft_flower.transport.closing import Closing
from p2pft_flower.transport.endpoint import EXCHANGE, Incoming, Listener, NoMessageError, gossip_limit
from p2pft_flower.transport.mailbox import Edge, Mailbox
from p2pft_flower.transport.network import Tasks
from p2pft_flower.transport.segments import Segments
from p2pft_flower.transport.trust.expiry import watch
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.views import Offer, View, Views
from p2pft_flower.transport.wire import p2pft_pb2 as pb
from p2pft_flower.transport.wire.errors import ExchangeStoppedError, Refused

__all__ = ["PeerServer"]

_Answer = pb.Reply | pb.HandedOver | pb.Gossip | pb.Fetched
_Answerer = Callable[[Incoming, Caller], Awaitable[_Answer]]


class PeerServer(Closing):
    """Serves the peers of one host, from construction to `close`; a context manager.

    All methods may be called from any thread. Calls are answered in the network's thread, and the callbacks
    run in threads of a pool, which only a whole message of an admitted caller gets.

    Parameters
    ----------
    mailbox : Mailbox
        The mailbox for payloads; neighbours are held to its terms and in-edges, until `install`.
    addresses : mapping of int to str
        Local peer to the address it listens on; port 0 lets the system choose one.
    also : str
        A further address that all of them listen on; default empty: there is none.
    out_edges : iterable of (int, int)
        (local sender, remote receiver): these receivers are neighbours too and may say hello and stop.
    on_hello : callable, optional
        Gets a Hello that passed every check here; returns None to agree, else the answer. After PREPARING the
        neighbour asks again at once, so the callback should keep such an answer for a moment.
    on_stop : callable, optional
        Gets a neighbour's Stop, or one that shows the run's key; must return soon.
    on_gossip : callable, optional
        Gets a Gossip that passed every check here, and returns the answer's pulse and records; must return
        soon. Default None: gossip is refused.
    on_failure : callable, optional
        Gets the error that a callback or an answer raised, in the network's thread; must return at once.
        Default: the mailbox fails with the error.
    members : frozenset of int
        The peers of the run, local ones too: any of them may gossip, and may be a neighbour in a later view.
        Default empty: the neighbours only.
    on_look : callable, optional
        Gets the coordinator's look, a Gossip with what it knows; returns what is new to it; must return soon.
        Default None: looks are refused.
    look_digest : str
        SHA-256, hexadecimal, of the key by which the coordinator may look (`Looker`); default empty: nobody
        may.
    stop_digest : str
        SHA-256, hexadecimal, of the key by which the coordinator may stop the run (`stop_run`); default
        empty: nobody may. Without certificates, a caller that shows the key counts as the coordinator.
    timeout : float
        Longest wait of a payload for room in the mailbox, in seconds, if the sender's deadline is later.
    longest : float, optional
        Longest time that a payload's body may take, in seconds; default, and at least: ``timeout``.
    credentials : Credentials, optional
        For TLS over TCP: every caller must then have a certificate of the federation, speak TLS 1.3, be a
        neighbour, and be the sender that its messages name; or be the coordinator, for a Stop with the key.
    insecure : bool
        Whether to listen in plain text beyond this machine; default False.

    Attributes
    ----------
    bound_addresses : dict of int to str
        Local peer to address, with the real port.

    Raises
    ------
    BindError
        When an address cannot be served on; the message names peer, address and remedy.
    ConfigError
        When an address cannot be parsed, or plain text would leave this machine.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        addresses: Mapping[int, str],
        *,
        also: str = "",
        out_edges: Iterable[Edge] = (),
        on_hello: Callable[[pb.Hello], pb.Reply | None] | None = None,
        on_stop: Callable[[pb.Stop], None] | None = None,
        on_gossip: Callable[[pb.Gossip], pb.Gossip] | None = None,
        on_failure: Callable[[Exception], None] | None = None,
        members: frozenset[int] = frozenset(),
        on_look: Callable[[pb.Gossip], pb.Gossip] | None = None,
        stop_digest: str = "",
        look_digest: str = "",
        timeout: float = 600.0,
        longest: float | None = None,
        credentials: Credentials | None = None,
        insecure: bool = False,
    ) -> None:
        view = View.of(mailbox, out_edges)
        self._on_failure = on_failure
        self._credentials = credentials
        self._throttle = Throttle()
        # Room for the view with the most edges into this host: each member's to each local peer.
        callers = max(len(view.neighbours), len(members))
        gossip = gossip_limit(max(len({remote for remote, _ in view.neighbours}), len(members)))
        edges = max(len(mailbox.edges), len(members) * len(addresses))
        # A call on a connection that broke may linger beside the one that takes its place. With certificates
        # a caller is one peer, without them a host with any number of them.
        own = 2 * (len(addresses) if credentials is not None else edges + callers)
        self._shares = Shares(lambda method: own if method == "Deliver" or credentials is None else 2)
        self._pool = ThreadPoolExecutor(min(callers, 8) + 2, thread_name_prefix="p2pft-server")
        self._tasks = Tasks(self._fail)
        self._views = Views(self._tasks, view)
        self._answers = Answers(
            self._views,
            frozenset(addresses),
            members,
            on_hello,
            on_stop,
            on_gossip,
            on_look,
            stop_digest,
            look_digest,
            timeout,
            max(timeout, longest or 0.0),
            gossip,
            self._pool,
            Segments(edges),
        )
        self._listener = Listener(
            self._tasks,
            EXCHANGE,
            self._methods(),
            addresses,
            also=also,
            max_message=max(mailbox.terms.largest, gossip),
            max_calls=2 * edges + 2 * callers + 8,
            # Two from each caller (payloads, gossip), two that take their place when they broke, and some
            # room for preflights.
            max_connections=4 * callers + 8,
            credentials=credentials,
            insecure=insecure,
        )
        self.bound_addresses = self._listener.bound_addresses
        if credentials is not None:
            self._tasks.start(watch, credentials.expiries)

    def _methods(self) -> dict[str, Callable[[Incoming], Awaitable[bytes]]]:
        answers: dict[str, _Answerer] = {
            "Deliver": self._answers.deliver,
            "HandOver": self._answers.hand_over,
            "Hello": self._answers.hello,
            "Stop": self._answers.stop,
            "Gossip": self._answers.gossip,
            "Look": self._answers.look,
            "Fetch": self._answers.fetch,
        }
        return {name: partial(self._answer, name, answer) for name, answer in answers.items()}

    def install(self, mailbox: Mailbox, out_edges: Iterable[Edge]) -> None:
        """Go on to another view, at once and as a whole: payloads that were kept for it are taken in.

        Fail the old mailbox with a `ViewChangeError` before: its senders, which may not have heard of the new
        view, are then told WRONG_VIEW, and not that this host has stopped.

        Parameters
        ----------
        mailbox : Mailbox
            The new view's mailbox; run and most bytes of a payload must be those of the old one.
        out_edges : iterable of (int, int)
            (local sender, remote receiver) of the new view.

        Raises
        ------
        ValueError
            When run and most bytes are not those of the old mailbox: the server was not made for them.
        """
        terms = self._views.now.mailbox.terms
        if (mailbox.terms.run, mailbox.terms.largest) != (terms.run, terms.largest):
            raise ValueError(
                f"a server of run {terms.run!r} with payloads of {terms.largest} bytes cannot go on "
                f"with run {mailbox.terms.run!r} and {mailbox.terms.largest} bytes"
            )
        new = View.of(mailbox, out_edges)
        self._views.replace(lambda _: new)
        self._answers.segments.clear()  # hosts of the new view have new ones

    def offer(
        self, iteration: int, thetas: Mapping[int, npt.NDArray[np.floating]], to: Iterable[int]
    ) -> None:
        """Let other peers of the present view fetch θ of this host's peers, until `install` or `withdraw`.

        Parameters
        ----------
        iteration : int
            The iteration that the view begins with.
        thetas : mapping of int to numpy.ndarray
            Local peer to its θ when the view began, (q,), of the terms' dtype; must not be changed.
        to : iterable of int
            The peers of the view.
        """
        offer = Offer(iteration, dict(thetas), frozenset(to))
        self._views.replace(lambda view: view._replace(offer=offer))

    def withdraw(self) -> None:
        """End the offer: let nobody fetch θ any more."""
        self._views.replace(lambda view: view._replace(offer=None))

    def close(self, grace: float = 5.0) -> None:
        """Stop serving: fail the mailbox, let running answers leave, remove sockets and threads.

        Parameters
        ----------
        grace : float
            Seconds that answers may take to leave.
        """
        # Payloads that still wait for room would use up the grace; nobody will make room any more.
        self._views.now.mailbox.fail(
            ExchangeStoppedError.by(Cause.OWN, "this host has finished and takes no more payloads")
        )
        self._views.close()
        self._listener.close(grace)
        self._pool.shutdown(wait=True)
        self._answers.segments.clear()

    async def _answer(self, method: str, answer: _Answerer, call: Incoming) -> bytes:
        """Recognise the caller, let it in or refuse it, answer, and note refusals."""
        caller = Caller(call.peer, None, call.local)
        reply: _Answer
        try:
            caller = recognise(call, self._credentials)
            self._admit(method, call, caller)
            work = partial(answer, call, caller)
            reply = await (work() if caller.local else self._shares.hold(caller, method, work))
            if reply.status not in _NO_FAULT:
                self._throttle.refused(caller.name)
        except Refused as refused:
            reply = pb.Reply(status=refused.status, reason=refused.reason)
            self._note(caller, refused)
        except NoMessageError:
            reply = pb.Reply(status=pb.BAD_HEADER, reason="a call without a message")
            self._throttle.refused(caller.name)
        except Exception as error:
            self._fail(error)
            reply = pb.Reply(
                status=pb.STOPPED, reason=f"this host failed on a {method}: {type(error).__name__}"
            )
        if isinstance(reply, pb.Reply) and method in _ANSWERED_BY:
            reply = _ANSWERED_BY[method](status=reply.status, reason=reply.reason)
        return reply.SerializeToString()

    def _admit(self, method: str, call: Incoming, caller: Caller) -> None:
        """Raise `Refused` if a caller must not be let in, by its headers."""
        who = caller.who
        if not caller.local and self._throttle.is_closed(caller.name):
            # A call that is not looked at costs nothing, so it does not count: a peer that sends a right
            # message again and again would else be kept out for ever.
            raise Refused(
                pb.THROTTLED, f"too much from {caller.name} was refused: nothing is looked at", counts=False
            )
        if who is None:
            return
        if who.peer is None:
            # The coordinator trains nothing, so it may only look at the run that it has started, and end it.
            if method not in ("Stop", "Look") or not self._answers.shows_key(call, method):
                raise Refused(
                    pb.NOT_NEIGHBOUR,
                    f"{who.name} is heard for a stop or a look with the run's key for it, and for no more",
                )
        elif not self._answers.knows(who.peer):
            raise Refused(pb.NOT_NEIGHBOUR, f"{who.name} shares no edge with this host")

    def _note(self, caller: Caller, refused: Refused) -> None:
        self._views.now.mailbox.refuse(refused.status, None, refused.reason, f"from {caller.place}")
        if refused.counts:
            self._throttle.refused(caller.name)

    def _fail(self, error: Exception) -> None:
        if self._on_failure is not None:
            self._on_failure(error)
        else:
            self._views.now.mailbox.fail(error)


_ANSWERED_BY: dict[str, type[pb.HandedOver | pb.Gossip | pb.Fetched]] = {
    "HandOver": pb.HandedOver,
    "Gossip": pb.Gossip,
    "Look": pb.Gossip,
    "Fetch": pb.Fetched,
}
"""Methods whose answer is no Reply."""

_NO_FAULT = frozenset(
    {
        pb.ACCEPTED,
        pb.DUPLICATE,
        pb.SUPERSEDED,
        pb.BUSY,
        pb.STOPPED,
        pb.PREPARING,
        pb.LATER,
        pb.WRONG_VIEW,  # news of a view takes its time
    }
)
"""Answers to callers that did nothing wrong."""
