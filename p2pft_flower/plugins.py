"""References such as ``"my_module:my_name"``, which name a user's own method, model, dataset or partition."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from p2pft_flower.errors import ConfigError, P2PFTError

__all__ = [
    "CARRIES",
    "app_bundle",
    "call_reference",
    "check_reference",
    "is_reference",
    "load_reference",
    "source_file",
    "telling_of_the_bundle",
    "telling_whose",
]


def is_reference(value: str) -> bool:
    """Tell whether ``value`` has the form ``module:name`` or ``/path/file.py:name`` of a plug-in."""
    module, _, name = value.rpartition(":")
    return (
        bool(module)
        and name.isidentifier()
        and (module.endswith(".py") or all(part.isidentifier() for part in module.split(".")))
    )


def load_reference(value: str, *, key: str) -> Callable[..., Any]:
    """Return the function or class that ``value`` names, from its module, which is imported.

    Parameters
    ----------
    value : str
        ``"my_module:my_name"`` (importable in the run's processes: installed, or beside the Flower app)
        or ``"/path/my_file.py:my_name"``.
    key : str
        The run-config key, for the error message.

    Raises
    ------
    ConfigError
        If the module cannot be imported or has no such name, or if the named object cannot be called.
    """
    location, _, name = value.rpartition(":")
    try:
        module = (
            _load_file(Path(location).expanduser())
            if location.endswith(".py")
            else importlib.import_module(location)
        )
    except (ImportError, OSError, SyntaxError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        raise _cannot_import(key, value, error, missing or location) from error
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        raise _raised(key, value, "importing it", error) from error
    target = getattr(module, name, None)
    if target is None:
        public = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing"
        raise ConfigError(f"{key} = {value!r}: {location!r} has no {name!r}; it has {public}")
    if not callable(target):
        raise ConfigError(f"{key} = {value!r}: {name!r} is a {type(target).__name__}, not something to call")
    return target  # type: ignore[no-any-return]  # callable() was just asked


def call_reference(value: str, *arguments: Any, key: str, **named: Any) -> Any:
    """Import the function or class that ``value`` names, call it, and return the result.

    Parameters
    ----------
    value, key : str
        The reference and its run-config key, as for :func:`load_reference`.
    *arguments, **named
        The arguments of the call.

    Raises
    ------
    ConfigError
        If :func:`load_reference` fails; if the call looks for a file or module that is not in the app's
        bundle; if the call raises anything else than an error of this package.
    """
    target = load_reference(value, key=key)
    with telling_whose(value, key=key, doing="calling it"), telling_of_the_bundle(value, key=key):
        return target(*arguments, **named)


@contextmanager
def telling_whose(value: str, *, key: str, doing: str) -> Iterator[None]:
    """Raise an error that names key and value, if code of ``value`` raises in the ``with`` block.

    Parameters
    ----------
    value, key : str
        The reference and its run-config key, as for :func:`load_reference`.
    doing : str
        A name of the action in the block, for the message: ``"calling it"``.

    Raises
    ------
    ConfigError
        In place of any error that is not one of this package's.
    """
    try:
        yield
    except P2PFTError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        raise _raised(key, value, doing, error) from error


def _raised(key: str, value: str, doing: str, error: BaseException) -> ConfigError:
    """Return the ConfigError for an error of a plug-in's own code, with the line in the plug-in's file."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    message = str(error).strip()
    said = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return ConfigError(f"{key} = {value!r}: {doing} raised {said}{place}")


def _is_ours(file: str) -> bool:
    return file.startswith(("<frozen ", str(Path(__file__).parent)))


@contextmanager
def telling_of_the_bundle(value: str, *, key: str) -> Iterator[None]:
    """Raise an error on the app's bundle, if code of ``value`` misses a file or module in the ``with`` block.

    Raises
    ------
    ConfigError
        In a process that runs an app's bundle: in place of the error of a file that is missing in the bundle,
        or of a module that cannot be found.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if app_bundle() is None:
            raise
        raise _cannot_import(key, value, error, error.name or "") from error
    except FileNotFoundError as error:
        bundle = app_bundle()
        told = f"{error.filename or error}"
        if bundle is None or not any(str(folder) in told for folder in (bundle, bundle.resolve())):
            raise
        raise ConfigError(
            f"{key} = {value!r}: there is no {told}; {CARRIES}. Install the module with its data on every "
            "machine that runs peers, or have it look at an absolute path"
        ) from error


CARRIES = (
    "Flower's bundle of an app carries .py, .toml, .md, .yaml, .json and .jsonl files only, and leaves out "
    "test_*.py, *_test.py, links, what .gitignore names, and folders such as lib/ and build/ beside "
    "pyproject.toml"
)
"""A text on the files of the app's folder that Flower ships to the processes of a run."""

_NO_TOP_FOLDERS = ("build", "eggs", "lib", "lib64", "parts", "env", "venv", "ENV")


def _left_out(module: str) -> str:
    """Return the reason why a module of this name is in no app's bundle; empty if it may be in one."""
    first, *_ = parts = module.split(".")
    if any(part.startswith("test_") or part.endswith("_test") for part in parts):
        return "Flower's bundle of an app leaves out test_*.py and *_test.py: rename it"
    if first in _NO_TOP_FOLDERS:
        return f"Flower's bundle of an app leaves out the folder {first}/: rename it"
    return ""


def app_bundle() -> Path | None:
    """Return the folder of the app's bundle, in a process in which Flower runs one; else None."""
    try:
        apps = (Path(os.environ.get("FLWR_HOME") or "~/.flwr").expanduser() / "apps").resolve()
    except RuntimeError:  # no home folder
        return None
    folders = (Path(entry) for entry in sys.path if entry)
    return next((folder for folder in folders if folder.resolve().parent == apps), None)


def _cannot_import(key: str, value: str, error: Exception, missing: str) -> ConfigError:
    location = value.rpartition(":")[0]
    told = _left_out(missing) or (f"of the app's folder, {CARRIES}" if app_bundle() is not None else "")
    return ConfigError(
        f"{key} = {value!r}: cannot import {location!r} ({error}); install the module where the peers run, "
        "put it into the app's folder, or give the file's absolute path as /path/my_file.py:my_name"
        + (f" ({told})" if told else "")
    )


def check_reference(value: str, *, key: str, beside: Sequence[Path] = ()) -> None:
    """Raise an error if :func:`load_reference` would not find ``value``, as far as reading files shows it.

    No code of the module is run.

    Parameters
    ----------
    value, key : str
        The reference and its run-config key, as for :func:`load_reference`.
    beside : sequence of Path
        Folders in which the processes of the run look for modules, beside those of ``sys.path``; default
        none.

    Raises
    ------
    ConfigError
        If there is no such module, if its file is no Python, or if it has no such name.
    """
    location, _, name = value.rpartition(":")
    file = source_file(value, key=key, beside=beside)
    if file is None:
        return  # compiled, or found by means that only an import would try
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (OSError, SyntaxError, ValueError) as error:
        raise _cannot_import(key, value, error, location) from error
    if not _may_define(tree, name):
        raise ConfigError(f"{key} = {value!r}: {location!r} has no {name!r}")


def source_file(value: str, *, key: str, beside: Sequence[Path] = ()) -> Path | None:
    """Return the file of a plug-in's module, without running any code; None if only an import can find it.

    The file of ``"/path/my_file.py:my_name"`` need not be there.

    Parameters
    ----------
    value, key : str
        The reference and its run-config key, as for :func:`load_reference`.
    beside : sequence of Path
        Folders in which the processes of the run look for modules, beside those of ``sys.path``; default
        none.

    Raises
    ------
    ConfigError
        If there is no such module.
    """
    location = value.rpartition(":")[0]
    if location.endswith(".py"):
        return Path(location).expanduser()
    return _source(location, beside, key, value)


def _source(module: str, beside: Sequence[Path], key: str, value: str) -> Path | None:
    """Return a module's source file, found without importing its packages; None if the file is not known."""
    first, *inner = module.split(".")
    if first in sys.modules:
        spec = getattr(sys.modules[first], "__spec__", None)
        if spec is None:
            return None
    else:
        spec = importlib.util.find_spec(first)
        if spec is None and not _left_out(module):
            spec = PathFinder.find_spec(first, [str(folder) for folder in beside])
    if spec is None:
        raise _cannot_import(key, value, ModuleNotFoundError(f"No module named {first!r}"), module)
    file = None if spec.origin is None else Path(spec.origin)
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    name = first
    for part in inner:
        name = f"{name}.{part}"
        package = file
        file, folders = _inside(folders, part)
        if file is None and not folders:
            if package is not None and package.name == "__init__.py":
                return None  # it may look elsewhere once it is imported
            raise _cannot_import(key, value, ModuleNotFoundError(f"No module named {name!r}"), module)
    return file if file is not None and file.suffix == ".py" else None


def _inside(folders: Sequence[Path], part: str) -> tuple[Path | None, list[Path]]:
    """Return the file of the module or package ``part`` in one of ``folders``, and its own folders.

    The file is None if there is none, as for a namespace package.
    """
    for folder in folders:
        if (package := folder / part / "__init__.py").is_file():
            return package, [package.parent]
        for file in (folder / f"{part}.py", *folder.glob(f"{part}.*")):
            if file.is_file() and file.suffix in (".py", ".so", ".pyd"):
                return file, []
    return None, [folder / part for folder in folders if (folder / part).is_dir()]


_DYNAMIC = frozenset({"exec", "eval", "globals", "vars", "setattr", "__getattr__"})
"""Names by which a module's code may define other names."""


def _may_define(tree: ast.Module, name: str) -> bool:
    """Tell whether a module may have the name: some code of the module binds it, or may do so unseen."""
    bound: set[str] = set()
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.Name):
            (bound if isinstance(node.ctx, ast.Store) else used).add(node.id)
    return name in bound or "*" in bound or not _DYNAMIC.isdisjoint(bound | used)


_LOADING = threading.RLock()
"""Held while a file is run, so that no other thread finds its module half done in ``sys.modules``."""


def _load_file(path: Path) -> ModuleType:
    with _LOADING:
        return _run_file(path)


def _run_file(path: Path) -> ModuleType:
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
