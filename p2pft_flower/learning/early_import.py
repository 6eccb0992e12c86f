"""torch and timm, imported in a thread while a process that will train has nothing else to do."""

from __future__ import annotations

import contextlib
import gc
import importlib
import threading
from collections.abc import Iterator

__all__ = ["import_meanwhile", "without_collecting"]


def import_meanwhile() -> None:
    """Begin to import what builds a model, and return at once; whoever needs it sooner waits for the rest."""
    threading.Thread(target=_import, name="p2pft-import", daemon=True).start()


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Import in a ``with`` block without Python's garbage collector, which takes a fifth of torch's import.

    What is imported stays, but a collector looks through all of it again and again while it grows.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _import() -> None:
    with contextlib.suppress(ImportError), without_collecting():  # raised again where the host imports it
        importlib.import_module("p2pft_flower.learning.workload")
