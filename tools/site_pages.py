"""Pages of the site that are made of something else than a document: every key, public names, notebooks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomlkit

from p2pft_flower.flower.site import Site
from tools.keys import CONCERNS, Key, keys_of, markdown, summary

__all__ = ["API", "api", "notebook", "settings"]

_RUN_KEYS = """A run-config has the keys of the first three parts: `p2pft run KEY=VALUE …`, or
`flwr run --run-config`. This page is made of the dataclasses that check the keys, as is the
[app's file of defaults](apps/p2pft/pyproject.toml)."""

_NODE_KEYS = """A SuperNode's `--node-config` describes one site. No coordinator can override these keys
([the deployment's guide](deploy/README.md) uses them)."""

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}

API = {
    "Graphs and methods": (
        "p2pft_flower.Graph",
        "p2pft_flower.simulate",
        "p2pft_flower.Simulation",
        "p2pft_flower.algorithms.make_algorithm",
        "p2pft_flower.algorithms.check_graph",
        "p2pft_flower.algorithms.check_exchange",
        "p2pft_flower.algorithms.gradients_per_step",
        "p2pft_flower.algorithms.ALGORITHMS",
    ),
    "A method of your own": (
        "p2pft_flower.algorithms.Algorithm",
        "p2pft_flower.algorithms.seam.State",
        "p2pft_flower.algorithms.Rows",
        "p2pft_flower.algorithms.Columns",
        "p2pft_flower.algorithms.Draw",
        "p2pft_flower.algorithms.Both",
        "p2pft_flower.algorithms.seam.Send",
        "p2pft_flower.algorithms.seam.Take",
        "p2pft_flower.algorithms.Vector",
        "p2pft_flower.algorithms.Gradient",
        "p2pft_flower.algorithms.Schedule",
    ),
    "A codec of your own": ("p2pft_flower.algorithms.codecs.Codec",),
    "A problem of your own": (
        "p2pft_flower.host.problem.OwnProblem",
        "p2pft_flower.host.problem.Problem",
        "p2pft_flower.host.problem.Objective",
        "p2pft_flower.host.problem.Score",
    ),
    "A model, a dataset or a partition of your own": (
        "p2pft_flower.learning.data.datasets.Dataset",
        "p2pft_flower.learning.data.datasets.Split",
        "p2pft_flower.learning.data.holdings.Holdings",
        "p2pft_flower.learning.workload.Workload",
    ),
    "A callback of your own": (
        "p2pft_flower.host.callbacks.WatchedRun",
        "p2pft_flower.keeping.lines.Evaluation",
        "p2pft_flower.keeping.lines.ViewChange",
        "p2pft_flower.keeping.lines.Outcome",
        "p2pft_flower.keeping.lines.Failed",
    ),
    "Settings and exports": ("p2pft_flower.config.RunConfig", "p2pft_flower.learning.exports.load_export"),
}
"""The public names, by what they are for."""


def settings() -> str:
    """Return the page of every key, of the dataclasses' docstrings, defaults and bounds."""
    parts = ["# Settings", _RUN_KEYS]
    for concern in CONCERNS:
        parts += [f"## {summary(concern)}", *map(_entry, keys_of(concern))]
    parts += ["## A site's node-config", _NODE_KEYS, *map(_entry, keys_of(Site))]
    return "\n\n".join(parts) + "\n"


def _entry(key: Key) -> str:
    kind = " \\| ".join(f"`{choice}`" for choice in key.choices) or _KINDS[key.type]
    if key.bounds:
        least, most = (f"{bound:.15g}" for bound in key.bounds)
        kind += f" from {least} to {most}"
    default = "none, it must be given"
    if key.default is not None:
        default = f"`{tomlkit.item(key.default).as_string()}`"
    return f"### `{key.name}`\n\n{kind} · default {default}\n\n{markdown(key.text)}"


def api() -> str:
    """Return the page of the public names; mkdocstrings writes their docstrings."""
    parts = ["# API", "[Own parts](docs/extending.md) has a complete example of each."]
    for title, names in API.items():
        parts += [f"## {title}", *(f"::: {name}" for name in names)]
    return "\n\n".join(parts) + "\n"


def notebook(file: Path) -> str:
    """Return a notebook as a page: its texts, its code, and what that has printed and drawn."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _parts(cell))


def _parts(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        if "text" in output:
            yield f"```text\n{''.join(output['text']).rstrip()}\n```"
        elif drawn := output.get("data", {}).get("image/png"):
            yield f"![What the cell above draws](data:image/png;base64,{''.join(drawn.split())})"
