"""Layers point one way, libraries stay in theirs, nothing pickles: read from the source with ``ast``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import pytest

import p2pft_flower

ROOT = Path(p2pft_flower.__file__).resolve().parent
PACKAGE = "p2pft_flower"

# topology ← agreement, algorithms; algorithms ← learning, transport; agreement, transport, keeping ← host;
# host ← report ← flower ← cli; host, learning ← lab ← cli; config ← keeping, learning and all above them. A
# room (learning.data) has its own rules.
# What may be imported of the others; "" stands for the modules beside the layers (errors, plan, …).
_BELOW_HOST = {
    "topology",
    "algorithms",
    "agreement",
    "transport",
    "transport.wire",
    "transport.trust",
    "keeping",
    "config",
}
_LEARNING = {"learning", "learning.data", "learning.model", "learning.store"}
_FLOWER = {*_BELOW_HOST, *_LEARNING, "host", "report"}
MAY_IMPORT = {
    "": {"topology", "algorithms", "config"},
    "config": {"topology", "algorithms"},
    "topology": set(),
    "algorithms": {"topology"},
    "agreement": {"topology"},
    "learning.data": {"learning", "topology", "algorithms", "config"},
    "learning.store": {"learning", "learning.data"},
    "learning.model": {"learning", "learning.data", "learning.store", "config"},
    "learning": {*_LEARNING, "topology", "algorithms", "config"},
    "transport.wire": set(),
    "transport.trust": {"transport.wire"},
    "transport": {"transport.wire", "transport.trust", "topology", "algorithms"},
    "keeping": {"topology", "algorithms", "config"},
    "host": _BELOW_HOST,
    "report": {*_BELOW_HOST, "host"},
    "report.page": {*_BELOW_HOST, "report"},
    "flower": _FLOWER,
    "lab": {*_BELOW_HOST, *_LEARNING, "host"},
    "cli": {*_FLOWER, "report.page", "flower", "lab"},
}
# A library that only some layers may import.
HOME = {
    "cryptography": {"transport"},
    "grpc": {"transport"},
    "google.protobuf": {"transport"},
    "flwr": {"flower"},
    "timm": {"learning"},
    "torch": {"learning", "flower", "cli"},
    "torchvision": {"learning"},
    "safetensors": {"learning", "cli"},
    "opacus": {"learning"},
    "tensorboard": {"keeping"},
    "starlette": {"cli"},
    "uvicorn": {"cli"},
    "pydicom": {"learning"},
    "datasets": {"learning"},
    "huggingface_hub": {"learning"},
    "ray": set(),
}
# … and what may be imported inside a function only, so that loading the layer stays light.
LAZY = {
    *((layer, "safetensors") for layer in ("keeping", "report", "cli")),
    *(("learning", library) for library in ("pydicom", "datasets", "huggingface_hub")),
    *(
        ("flower", "ray"),
        ("cli", "torch"),
        ("cli", "uvicorn"),
        ("learning", "opacus"),
        ("keeping", "tensorboard"),
    ),
}
FLOWER_PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp")
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 500, 70  # a docstring not counted
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


class Import(NamedTuple):
    name: str  # absolute, dotted
    line: int
    lazy: bool


def imports(tree: ast.AST, module: str, *, is_package: bool = False) -> Iterator[Import]:
    """Yield every import of ``tree``; a name imported from a module counts as a module of its own."""
    lazy_nodes = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, node in lazy_nodes) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, *([base] if base else [])])
            yield from (
                Import(f"{base}.{alias.name}", node.lineno, node in lazy_nodes) for alias in node.names
            )


def layer_of(module: str) -> str | None:
    """Return a module's room or layer, "" for modules beside the layers, None for other packages."""
    top, _, rest = module.partition(".")
    if top != PACKAGE:
        return None
    room, layer = ".".join(rest.split(".")[:2]), rest.partition(".")[0]
    return next((name for name in (room, layer) if name in MAY_IMPORT), "")


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return what ``source``, as ``module`` of this package, imports against the rules."""
    found, here = [], layer_of(module)
    assert here is not None
    for name, line, lazy in imports(ast.parse(source), module, is_package=is_package):
        there = layer_of(name)
        if there and there != here and there not in MAY_IMPORT[here]:
            found.append(f"{module}:{line}: {here or 'a module beside the layers'} imports {name}")
        layer = here.partition(".")[0]
        for library, homes in HOME.items():
            allowed = layer in homes or (lazy and (layer, library) in LAZY)
            if within(name, library) and (not allowed or ((layer, library) in LAZY and not lazy)):
                found.append(f"{module}:{line}: {name} is imported outside {', '.join(sorted(homes))}")
        if within(name, "flwr") and not any(within(name, public) for public in FLOWER_PUBLIC):
            found.append(f"{module}:{line}: {name} is none of Flower's public modules")
    return found


def pickles(source: str) -> list[str]:
    """Return where ``source`` could pickle or unpickle."""
    tree = ast.parse(source)
    found = [
        f"line {i.line}: {i.name}"
        for i in imports(tree, PACKAGE)
        if i.name.partition(".")[0] in PICKLES or i.name in ("torch.load", "torch.save")
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            called = ast.unparse(node)
            if called in ("torch.load", "torch.save") or node.attr in ("read_pickle", "to_pickle"):
                found.append(f"line {node.lineno}: {called}")
        if (
            # The one way to files of weights as others publish them: tensors and plain containers only.
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "torch.serialization.load"
            and not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
        ):
            found.append(f"line {node.lineno}: torch.serialization.load")
        if (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and ast.unparse(node.value) != "False"
        ):
            found.append(f"line {node.value.lineno}: allow_pickle")
    return found


def modules() -> list[tuple[str, str, bool]]:
    """Return name, source and whether it is a package, of every module."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        parts = (PACKAGE, *file.relative_to(ROOT).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append((name, file.read_text(encoding="utf-8"), is_package))
    return found


def circles(sources: dict[str, tuple[str, bool]]) -> list[list[str]]:
    """Return the sets of modules that import each other, at module level or inside functions.

    Parameters
    ----------
    sources : dict
        By a module's name, its source and whether it is a package.
    """
    graph = nx.DiGraph()
    for module, (source, is_package) in sources.items():
        for name, _, _ in imports(ast.parse(source), module, is_package=is_package):
            imported = name if name in sources else name.rpartition(".")[0]
            if imported in sources and imported != module:
                graph.add_edge(module, imported)
    return sorted(sorted(found) for found in nx.strongly_connected_components(graph) if len(found) > 1)


def unexplained(source: str) -> list[str]:
    """Return what is long in ``source`` without a sentence that begins with "Longer than" and says why."""
    lines = source.splitlines()
    found = ["the module"] if len(lines) > MOST_LINES and "Longer than 500" not in source else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            code = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                code -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            above = lines[node.lineno - 2] if node.lineno > 1 else ""
            if code > MOST_LINES_OF_A_FUNCTION and "Longer than 70" not in above:
                found.append(node.name)
    return found


def test_every_folder_of_the_package_is_a_layer_with_rules() -> None:
    folders = {file.relative_to(ROOT).parts[0] for file in ROOT.rglob("*.py") if file.parent != ROOT}
    assert folders == {name for name in MAY_IMPORT if name and "." not in name}
    rooms = {".".join(file.relative_to(ROOT).parent.parts) for file in ROOT.rglob("__init__.py")}
    assert rooms - {"", "learning.model.embedded"} == MAY_IMPORT.keys() - {""}


def test_imports_point_one_way_and_libraries_stay_in_their_layers() -> None:
    found = [line for name, source, pack in modules() for line in violations(source, name, is_package=pack)]
    assert not found, "\n".join(found)


def test_no_two_modules_import_each_other_directly_or_through_others_lazily_or_not() -> None:
    assert not circles({name: (source, is_package) for name, source, is_package in modules()})


def test_a_circle_of_imports_is_found() -> None:
    here = f"{PACKAGE}.fake"
    sources = {
        f"{here}": ("", True),
        f"{here}.a": (f"from {here}.b import thing", False),
        f"{here}.b": ("def f():\n    from . import c", False),
        f"{here}.c": (f"import {here}.a", False),
        f"{here}.d": (f"from {here} import a", False),
    }
    assert circles(sources) == [[f"{here}.a", f"{here}.b", f"{here}.c"]]


def test_long_modules_and_functions_say_why() -> None:
    found = [f"{name}: {what}" for name, source, _ in modules() for what in unexplained(source)]
    assert not found, "\n".join(found)


def test_a_long_module_and_a_long_function_are_found() -> None:
    body = "\n".join(f"    x{i} = {i}" for i in range(MOST_LINES_OF_A_FUNCTION))
    assert unexplained(f"def f():\n{body}") == ["f"]
    assert unexplained(f"# Longer than 70 lines, since it counts.\ndef f():\n{body}") == []
    assert unexplained("\n" * (MOST_LINES + 1)) == ["the module"]


READS_CIFAR = f"{PACKAGE}.learning.data.cifar_files"
"""CIFAR's official files are pickles; its reader admits arrays only (tests/learning/data)."""


def test_nothing_in_the_package_pickles() -> None:
    read = [(name, source) for name, source, _ in modules() if name != READS_CIFAR]
    assert len(read) == len(modules()) - 1
    found = [f"{name}: {what}" for name, source in read for what in pickles(source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("topology.fake", "import torch"),
        ("topology.fake", "from p2pft_flower.algorithms import simulate"),
        ("topology.fake", "from .. import learning"),
        ("algorithms.fake", "def f():\n    from torch.nn import Linear"),
        ("algorithms.fake", "import grpc"),
        ("algorithms.fake", "from flwr.app import Message"),
        ("algorithms.fake", "from p2pft_flower import host"),
        ("algorithms.fake", "from ..cli import app"),
        ("learning.fake", "import p2pft_flower.transport.links"),
        ("learning.fake", "import grpc"),
        ("transport.fake", "import torch"),
        ("transport.fake", "from p2pft_flower.host.training import Training"),
        ("host.fake", "import torch"),
        ("host.fake", "def f():\n    import torch"),
        ("host.fake", "from safetensors.torch import save_file"),
        ("host.fake", "from p2pft_flower.learning.workload import Workload"),
        ("host.fake", "import grpc"),
        ("host.fake", "import flwr"),
        ("report.fake", "from p2pft_flower.flower import server"),
        ("flower.fake", "import flwr"),
        ("flower.fake", "from flwr.server import ServerApp"),
        ("flower.fake", "from flwr.common.typing import NDArrays"),
        ("flower.fake", "import grpc.aio"),
        ("flower.fake", "from p2pft_flower.cli import main"),
        ("cli.fake", "from flwr.app import Message"),
        ("cli.fake", "import torch"),
        ("config", "from p2pft_flower.flower.server import make_server_app"),
    ],
)
def test_a_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, f"{PACKAGE}.{module}")) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "algorithms.fake",
            "from p2pft_flower.topology import Graph\nfrom ..errors import ConfigError\nimport numpy",
        ),
        ("keeping.fake", "def f():\n    from safetensors.torch import save_file"),
        ("transport.fake", "import grpc\nfrom google.protobuf.message import Message"),
        ("flower.fake", "import flwr.serverapp.strategy\nfrom flwr.app import Message\nimport torch"),
        ("learning.fake", "import flwr_datasets, torch.nn, timm"),
        ("cli.fake", "def f():\n    from p2pft_flower.learning.workload import Workload"),
    ],
)
def test_what_is_allowed_is_not_reported(module: str, source: str) -> None:
    assert violations(source, f"{PACKAGE}.{module}") == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "def f():\n    import dill as d",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import torch\ntorch.serialization.load('x')",
        "import torch\ntorch.serialization.load('x', weights_only=flag)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', allow_pickle=flag)",
        "import pandas as pd\npd.read_pickle('x')",
    ],
)
def test_a_pickle_is_found(source: str) -> None:
    assert pickles(source)


def test_loading_arrays_without_pickle_is_fine() -> None:
    assert not pickles("import numpy as np\nnp.load('x')\nnp.load('x', allow_pickle=False)")
