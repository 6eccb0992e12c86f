"""Refused messages: counted, and logged with one line for each sender and cause."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from p2pft_flower.transport.wire import p2pft_pb2 as pb

__all__ = ["Refusals"]

log = logging.getLogger(__name__)

_SENDERS = 256
"""Pairs of sender and cause with lines of their own; all further pairs share the lines of one."""


class Refusals:
    """Counts and logs refusals, from any thread.

    ``_lock`` guards all fields.

    Attributes
    ----------
    by_cause : Counter
        Number of refused messages, by the name of the status.
    """

    def __init__(self) -> None:
        self.by_cause: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._seen: Counter[tuple[str, str]] = Counter()

    def note(self, sender: str, status: pb.Status, reason: str) -> None:
        """Count a refusal; log the first of this sender and cause, the tenth, the hundredth and so on."""
        cause = pb.Status.Name(status)
        with self._lock:
            self.by_cause[cause] += 1
            key = (sender, cause)
            if key not in self._seen and len(self._seen) >= _SENDERS:
                key = ("from others", "refused")
            self._seen[key] += 1
            count = self._seen[key]
        if str(count).strip("0") != "1":
            return
        # An unknown or an old view is no cause for concern.
        level = logging.INFO if status == pb.WRONG_VIEW else logging.WARNING
        if count == 1:
            log.log(level, "refused a message %s: %s: %s (logged once)", sender, cause, reason)
        else:
            log.log(level, "refused %d messages %s so far, the last one: %s", count, key[0], cause)
