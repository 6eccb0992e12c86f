"""The package's log inside Flower's processes: lines that begin with the time of day, on standard output."""

from __future__ import annotations

import logging
import re
import sys

__all__ = ["LINE", "log_to_stream"]

LINE = re.compile(r"^(?:\(\w+ pid=\d+\)\s)?\d\d:\d\d:\d\d ")
"""What a line of this package looks like in the stream; Ray puts a worker's name before it."""


class _EachLine(logging.Formatter):
    """Puts the time before every line of a message, so that tables can be told from other lines too."""

    def format(self, record: logging.LogRecord) -> str:
        when = self.formatTime(record, "%H:%M:%S")
        return "\n".join(f"{when} {line}" for line in record.getMessage().splitlines())


def log_to_stream() -> None:
    """Write this package's log to standard output, which ``flwr run --stream`` shows."""
    logger = logging.getLogger("p2pft_flower")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_EachLine())
    logger.handlers = [handler]  # one, however often an app is loaded into a process
    logger.setLevel(logging.INFO)
    logger.propagate = False
