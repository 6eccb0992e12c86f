"""A function called before a process obeys SIGINT or SIGTERM: Flower's own handlers end it within 5 s."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["before_obeying"]


@contextlib.contextmanager
def before_obeying(act: Callable[[signal.Signals], bool]) -> Iterator[None]:
    """Call ``act`` once when SIGINT or SIGTERM comes during a ``with`` block, then the handlers of before.

    If ``act`` returns False, the signal is not obeyed: the block ends by itself now. A second signal is
    obeyed.

    Outside the main thread, where Python takes no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
        for other in before:  # a second signal must not cut this short; all that is done here has deadlines
            signal.signal(other, signal.SIG_IGN)
        obey = True
        try:
            obey = act(signal.Signals(number))
        finally:
            restore()
            if obey:
                signal.raise_signal(number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
