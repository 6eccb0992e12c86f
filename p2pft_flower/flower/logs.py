"""The package's log inside Flower's processes: lines that begin with the time of day, on standard output."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from p2pft_flower.errors import printable

__all__ = ["LINE", "PREFLIGHT_PASSED", "kept_warnings", "log_to_stream", "status_in", "status_line"]

LINE = re.compile(r"^(?:\(\w+ pid=\d+\)\s)?\d\d:\d\d:\d\d ")
"""The beginning of this package's lines in the stream, perhaps after the name of a worker of Ray."""

PREFLIGHT_PASSED = "preflight-passed"
"""The status of a run that ended after its preflight (``preflight-only``)."""

_STATUS = re.compile(r"\d\d:\d\d:\d\d run (\d+) ended: (\S+)(?: \((.*)\))?$")


def status_line(run: str, status: str, missing: str | None = None) -> str:
    """Return the line from which ``p2pft run`` reads the status of a run whose results are elsewhere.

    ``missing`` is a text on the missing peers, or the reason of a stop; None or empty: there is none.
    """
    return f"run {run} ended: {status}" + (f" ({missing})" if missing else "")


def status_in(output: str, run: str) -> tuple[str, str] | None:
    """Return the two texts, status and ``missing``, of a run's :func:`status_line`.

    ``output`` is the run's stream; None if it has no such line. ``missing`` is empty if the line has none.
    """
    found = (_STATUS.match(line) for line in reversed(output.splitlines()))
    return next(((m[2], m[3] or "") for m in found if m is not None and m[1] == run), None)


class _EachLine(logging.Formatter):
    """Puts the time before every line of a message, so that lines of tables are recognised too.

    Messages contain names of users' files and classes. Characters that Flower's stream or a terminal cannot
    carry are escaped, or the whole message would be lost.
    """

    def format(self, record: logging.LogRecord) -> str:
        when = self.formatTime(record, "%H:%M:%S")
        return "\n".join(f"{when} {printable(line)}" for line in record.getMessage().splitlines())


def log_to_stream() -> None:
    """Write this package's log to standard output, which ``flwr run --stream`` shows."""
    logger = logging.getLogger("p2pft_flower")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_EachLine())
    logger.handlers = [handler]  # one, even if an app is loaded into a process twice
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextmanager
def kept_warnings() -> Iterator[list[str]]:
    """Gather the package's warnings in this thread; they are logged as well.

    A host's warnings are in its own machine's log. The user sees them only if the coordinator has them too.
    """
    logger, thread = logging.getLogger("p2pft_flower"), threading.get_ident()
    kept: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: kept.append(record.getMessage())  # type: ignore[method-assign]
    handler.addFilter(lambda record: record.thread == thread)
    logger.addHandler(handler)
    try:
        yield kept
    finally:
        logger.removeHandler(handler)
