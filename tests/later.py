"""Modules that take long to import, for those tests that use them: each worker collects all, and runs few."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Later:
    """A module that is imported when a name of it is first asked for."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("_", "pytest")):  # pytest looks for marks and fixtures in whatever a module has
            raise AttributeError(name)
        return getattr(import_module(self._module), name)
