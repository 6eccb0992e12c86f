"""The exit codes that commands share; a command that has one of its own defines it in its file."""

from __future__ import annotations

__all__ = ["EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_PARTIAL", "EXIT_STOPPED", "EXIT_USAGE"]

EXIT_FAILED = 1
"""It failed."""

EXIT_USAGE = 2
"""A word, a setting or a file is wrong; it is also Typer's code for wrong words."""

EXIT_PARTIAL = 3
"""A run ended, and some of its peers did not."""

EXIT_STOPPED = 4
"""A run was ended by ``p2pft stop``."""

EXIT_INTERRUPTED = 130
"""It was interrupted: 128 + SIGINT, as in a shell."""
