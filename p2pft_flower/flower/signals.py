"""A function called before a process obeys SIGINT or SIGTERM: Flower's own handlers end it within 5 s."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["before_obeying"]

Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def before_obeying(act: Callable[[signal.Signals], bool], reply_within: float = 0.0) -> Iterator[None]:
    """Call ``act`` when SIGINT or SIGTERM first comes during a ``with`` block, before the signal is obeyed.

    If ``act`` returns False, the signal is not obeyed: the block is about to end by itself. A second signal
    is obeyed, without a call of ``act``. To obey a signal is to call the handler that it had before.

    With ``reply_within`` > 0, a signal after the block, or a second signal within it, is obeyed only so many
    seconds after it came: a ClientApp that ends while it hands its reply over leaves a SuperNode of Flower
    1.42 waiting for the rest for ever. Flower itself raises SIGINT then, when it finds a stopped run over.

    Outside the main thread, where Python takes no signals, nothing changes.

    Parameters
    ----------
    act : callable
        Given the signal, returns whether the signal is to be obeyed.
    reply_within : float
        Seconds between a signal that comes late and its obedience; 0: it is obeyed at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def let_go() -> None:
        if not reply_within:
            restore()
            return
        later = _obeyed_after(reply_within, restore)
        for number in before:
            signal.signal(number, later)

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
        for other in before:  # a second signal must not cut this short; all that is done here has deadlines
            signal.signal(other, signal.SIG_IGN)
        obey = True
        try:
            obey = act(signal.Signals(number))
        finally:
            if obey:
                restore()
                signal.raise_signal(number)
            else:
                let_go()

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is handle:  # no signal has come
            let_go()


def _obeyed_after(seconds: float, restore: Callable[[], None]) -> Handler:
    """Return a handler that obeys a signal ``seconds`` after the first one.

    ``restore`` sets the earlier handlers, which the signal then reaches.
    """
    due: list[float] = []

    def later(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
        if not due:
            due.append(time.monotonic() + seconds)
            timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
            timer.daemon = True
            timer.start()
        elif time.monotonic() >= due[0]:
            restore()
            signal.raise_signal(number)

    return later
