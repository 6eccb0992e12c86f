"""A function called before a process obeys SIGINT or SIGTERM: Flower's own handlers end it within 5 s."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

__all__ = ["before_obeying"]

_LONGEST = 15.0
"""Seconds for which a signal is held at most; less than those after which systemd, or p2pft down, kills."""

_EVERY = 0.5
"""Seconds between two looks at whether a signal is still to be held."""

Handlers = Mapping[int, Any]
"""Number of a signal to its handler, as ``signal.getsignal`` returns it."""


@contextlib.contextmanager
def before_obeying(
    act: Callable[[signal.Signals], bool], held: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Call ``act`` when SIGINT or SIGTERM first comes during a ``with`` block, before the signal is obeyed.

    If ``act`` returns False, the signal is not obeyed: the block is about to end by itself. A second signal
    is obeyed, without a call of ``act``. To obey a signal is to call the handler that it had before.

    Outside the main thread, where Python takes no signals, nothing changes.

    Parameters
    ----------
    act : callable
        Given the signal, returns whether the signal is to be obeyed.
    held : callable, optional
        Whether somebody waits for the process's reply. As long as it returns True, 15 s at most, a second
        signal is not obeyed yet, nor is one that comes after the block: a ClientApp that ends while it hands
        its reply over leaves a SuperNode of Flower 1.42 waiting for the rest for ever. Flower itself raises
        SIGINT then, when it finds a stopped run over. Called in another thread, too. Default: nobody waits.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Handlers = {number: _handler(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def let_go() -> None:
        if held is None or not held():
            _restore(before)
            return
        late = _Late(before, held)
        for number in before:
            signal.signal(number, late)

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
        for other in before:  # a second signal must not cut this short; all that is done here has deadlines
            signal.signal(other, signal.SIG_IGN)
        obey = True
        try:
            obey = act(signal.Signals(number))
        finally:
            if obey:
                _restore(before)
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


class _Late:
    """A handler that leaves a signal to the handlers ``before`` it, but only when it is held no longer."""

    def __init__(self, before: Handlers, held: Callable[[], bool]) -> None:
        self.before = before
        self._held = held
        self._waits = False
        self._over = threading.Event()

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a handler's signature
        if self.before[number] is signal.SIG_IGN:
            return
        if self._over.is_set():
            _restore(self.before)
            signal.raise_signal(number)
        elif not self._waits:
            self._waits = True
            threading.Thread(target=self._wait, args=(number,), name="p2pft-signal", daemon=True).start()

    def _wait(self, number: int) -> None:
        end = time.monotonic() + _LONGEST
        while time.monotonic() < end and self._held():
            time.sleep(_EVERY)
        self._over.set()
        os.kill(os.getpid(), number)


def _handler(number: int) -> Any:
    """Return a signal's handler, not that of an earlier block."""
    handler = signal.getsignal(number)
    return handler.before[number] if isinstance(handler, _Late) else handler


def _restore(before: Handlers) -> None:
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
