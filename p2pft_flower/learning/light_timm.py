"""timm without torch's compiler, which takes as long to import as the rest of timm and torch.

torchvision and timm import ``torch._dynamo`` for two functions: ``is_compile_supported``, which torchvision's
RoI align asks, and ``disable``, with which timm decorates methods of NaFlex models. While timm is imported,
stand-ins have the names of these modules. Whoever calls one of the functions later gets what the compiler's
own does.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["import_timm_light"]

COMPILER = "torch._dynamo"
UTILS = f"{COMPILER}.utils"


def import_timm_light() -> None:
    """Let the first import of timm in this process do without torch's compiler."""
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds timm alone, and gives it a loader that puts the stand-ins in place for so long."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,  # noqa: ARG002 - the signature of a finder
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_light(module: ModuleType) -> None:
            with _without_compiler():
                load(module)

        spec.loader.exec_module = load_light  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """Let stand-ins have the names of the compiler's modules, unless it has been imported."""
    if COMPILER in sys.modules:
        yield
        return
    compiler, utils = _StandIn(COMPILER), _StandIn(UTILS)
    compiler.__dict__.update(utils=utils, disable=_disable)
    utils.__dict__["is_compile_supported"] = _is_compile_supported
    sys.modules.update({COMPILER: compiler, UTILS: utils})
    try:
        yield
    finally:
        _put_away()


def _put_away() -> None:
    for name in (COMPILER, UTILS):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


class _StandIn(ModuleType):
    """A module of the compiler; any other name, and any submodule, comes of the compiler itself."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and (self.__name__, name) != (COMPILER, "__path__"):
            raise AttributeError(name)  # `inspect` and `import` ask modules whether they have such names
        _put_away()
        return getattr(importlib.import_module(self.__name__), name)


def _is_compile_supported(device_type: str) -> bool:
    return bool(importlib.import_module(UTILS).is_compile_supported(device_type))


def _disable(function: Callable[..., Any], *args: Any, **options: Any) -> Callable[..., Any]:
    """Return ``function``, as the compiler's ``disable`` would, once the compiler is there to be disabled."""

    @functools.wraps(function)
    def disabled(*given: Any, **named: Any) -> Any:
        compiler = sys.modules.get(COMPILER)
        called = function if compiler is None else compiler.disable(function, *args, **options)
        return called(*given, **named)

    return disabled
