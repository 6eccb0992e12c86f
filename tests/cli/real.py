"""Commands run for real: processes of their own, and proof that none is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from p2pft_flower.lab import supervisor


def environment(home: Path) -> dict[str, str]:
    """Return an environment whose processes can be told by a mark, and whose state lies in ``home``."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "P2PFT_", "RAY_"))}
    own = keep | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "P2PFT_HOME": str(home / "p2pft"),
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "COLUMNS": "160",
    }
    return supervisor.Programs(own).environment


def marked(env: dict[str, str]) -> list[psutil.Process]:
    """Return the living processes that were started, however indirectly, with ``env``."""
    return supervisor.marked(supervisor.marks(env)[-1])


def p2pft(
    env: dict[str, str], *words: str, cwd: Path, timeout: float = 240, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run ``p2pft`` with ``words``; ``before`` are words that run it in their turn."""
    command = [*before, str(Path(sys.executable).parent / "p2pft"), *words]
    return subprocess.run(
        command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
    )
