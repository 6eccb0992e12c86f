"""``"my_module:my_name"``: how a user's own method, model, dataset or partition is found."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from p2pft_flower.errors import ConfigError

__all__ = ["is_reference", "load_reference"]


def is_reference(value: str) -> bool:
    """Tell whether ``value`` has the form ``module:name`` or ``/path/file.py:name`` of a plug-in."""
    module, _, name = value.rpartition(":")
    return (
        bool(module)
        and name.isidentifier()
        and (module.endswith(".py") or all(part.isidentifier() for part in module.split(".")))
    )


def load_reference(value: str, *, key: str) -> Callable[..., Any]:
    """Import what ``value`` names.

    Parameters
    ----------
    value : str
        ``"my_module:my_name"`` (importable where the run executes: installed, or beside the Flower app)
        or ``"/path/my_file.py:my_name"``.
    key : str
        The run-config key, for the error message.

    Raises
    ------
    ConfigError
        When the module cannot be imported, has no such name, or it cannot be called.
    """
    location, _, name = value.rpartition(":")
    try:
        module = (
            _load_file(Path(location).expanduser())
            if location.endswith(".py")
            else importlib.import_module(location)
        )
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"{key} = {value!r}: cannot import {location!r} ({error}); install the module where the peers "
            "run, put it into the app's folder, or give the file's absolute path as /path/my_file.py:my_name"
        ) from error
    target = getattr(module, name, None)
    if target is None:
        public = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing"
        raise ConfigError(f"{key} = {value!r}: {location!r} has no {name!r}; it has {public}")
    if not callable(target):
        raise ConfigError(f"{key} = {value!r}: {name!r} is a {type(target).__name__}, not something to call")
    return target  # type: ignore[no-any-return]  # callable() was just asked


def _load_file(path: Path) -> ModuleType:
    name = f"p2pft_plugin_{sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is being executed
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
