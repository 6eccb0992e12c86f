"""torch and timm, imported in a thread while a process that will train has nothing else to do."""

from __future__ import annotations

import contextlib
import importlib
import threading

__all__ = ["import_meanwhile"]


def import_meanwhile() -> None:
    """Begin to import what builds a model, and return at once; whoever needs it sooner waits for the rest."""
    threading.Thread(target=_import, name="p2pft-import", daemon=True).start()


def _import() -> None:
    with contextlib.suppress(ImportError):  # raised again where the host imports it
        importlib.import_module("p2pft_flower.learning.workload")
