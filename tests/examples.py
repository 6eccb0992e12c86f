"""The complete files of docs/extending.md, which tests run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

_DOCS = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


def write_example(name: str, folder: Path) -> Path:
    """Write the file that is called ``name``.py in the docs into a folder, and return its path."""
    (code,) = re.findall(rf"```python\n(# {name}\.py.*?)```", _DOCS.read_text(encoding="utf-8"), re.DOTALL)
    file = folder / f"{name}.py"
    file.write_text(code)
    return file
