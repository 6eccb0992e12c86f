"""Write the Flower app's section of keys, of the dataclasses that define them.

``python -m tools.app_config`` writes ``[tool.flwr.app.config]`` of apps/p2pft/pyproject.toml, from that
line to the file's end: each key with its default, and its meaning as a comment. With ``--check`` it writes
nothing, and exits with 1 if the file is another.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import tomlkit

from tools.keys import CONCERNS, Key, keys_of, plain, summary

__all__ = ["FILE", "with_keys"]

FILE = Path(__file__).resolve().parents[1] / "apps" / "p2pft" / "pyproject.toml"
_SECTION = "[tool.flwr.app.config]\n"
_HEAD = "# Made by `python -m tools.app_config` of the dataclasses in p2pft_flower/config: change those.\n"
_WIDTH = 120


def with_keys(text: str) -> str:
    """Return the text of the app's pyproject.toml with its section of keys as the dataclasses have them."""
    before, found, _ = text.partition(_SECTION)
    if not found:
        raise ValueError(f"there is no {_SECTION.strip()}")
    parts = (
        f"# --- {summary(concern)} ".ljust(_WIDTH - 1, "-") + "\n" + "".join(map(_lines, keys_of(concern)))
        for concern in CONCERNS
    )
    return before + found + _HEAD + "\n".join(parts)


def _lines(key: Key) -> str:
    choices = f"# {' | '.join(key.choices)}\n" if key.choices else ""
    comment = textwrap.fill(
        plain(key.text),
        _WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{choices}{comment}\n{key.name} = {tomlkit.item(key.default).as_string()}\n"


def main() -> int:
    """Write or check the file, as the command line says; return the exit code."""
    old = FILE.read_text(encoding="utf-8")
    new = with_keys(old)
    if sys.argv[1:] == ["--check"]:
        if new != old:
            print(f"{FILE} differs from the dataclasses: run `python -m tools.app_config`", file=sys.stderr)
        return int(new != old)
    FILE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
