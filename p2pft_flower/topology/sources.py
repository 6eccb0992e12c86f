"""Graphs by name, path or spec; an error lists the choices."""

from __future__ import annotations

import difflib
from pathlib import Path

from p2pft_flower.errors import TopologyError
from p2pft_flower.resources import resource_dir
from p2pft_flower.topology.exports import SUFFIXES
from p2pft_flower.topology.files import Source, read

__all__ = ["find", "shipped"]

_SUFFIXES = (".yaml", ".yml")
"""The endings of graphs of this package's own kind."""


def shipped() -> dict[str, Path]:
    """Return the file of each graph in the folder topologies/, by name, ascending."""
    files = (path for path in resource_dir("topologies").iterdir() if path.suffix in _SUFFIXES)
    return {path.stem: path for path in sorted(files)}


def find(x: str | Path) -> Source:
    """Return the unchecked parts of the graph that ``x`` names.

    Parameters
    ----------
    x : str or Path
        See :meth:`p2pft_flower.topology.Graph.load`.

    Raises
    ------
    TopologyError
        When nothing goes by that name, or the file or spec is malformed.
    """
    if isinstance(x, Path):
        return _from_file(x)
    if not isinstance(x, str):
        raise TopologyError(f"a graph is a name, a path or a spec such as ring:8, not {x!r}")
    text = x.strip()
    names = shipped()
    if text in names:
        return read(names[text])
    if text and ("/" in text or text.lower().endswith((*_SUFFIXES, *SUFFIXES)) or _is_file(Path(text))):
        return _from_file(Path(text))
    from p2pft_flower.topology.generators import GENERATORS, is_spec, weights_from_spec

    if is_spec(text):
        return Source(origin=repr(text), name=text, W=weights_from_spec(text))
    close = difflib.get_close_matches(text, [*names, *GENERATORS], n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    forms = ", ".join(generator.form for generator in GENERATORS.values())
    raise TopologyError(
        f"there is no graph {text!r}.{hint} Shipped graphs: {', '.join(names)}. Generators: {forms}. "
        "Or give the path of a YAML file, or of GraphML, JSON of networkx or a CSV of edges"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # a name that no file system can have, or ~nobody
        return False


def _from_file(path: Path) -> Source:
    if _is_file(path):
        return read(path.expanduser())
    if path.is_dir():
        raise TopologyError(f"{path} is a folder: give the path of a YAML file in it")
    hint = f"; the shipped graph is called {path.stem}" if path.stem in shipped() else ""
    raise TopologyError(f"there is no file {path}{hint}")
