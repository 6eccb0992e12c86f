"""The code blocks of documents: found, and read by bash itself without running what they name."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OPENING = re.compile(r"\s*(import |from \S+ import |$)")


@dataclass(frozen=True)
class Block:
    """One block: its document, bash or python, and its text."""

    document: str
    language: str
    text: str

    @property
    def name(self) -> str:
        """The first line that is no import, without its comment; at most 80 characters of it."""
        line = next(line for line in self.text.splitlines() if not _OPENING.match(line))
        return (line if line.startswith("#") else re.sub(r"\s+#.*", "", line))[:80].rstrip()


def blocks_of(document: Path) -> list[Block]:
    """Return the bash and python blocks of a document, in their order."""
    name = document.relative_to(ROOT).as_posix()
    return [Block(name, m[1], m[2]) for m in _BLOCK.finditer(document.read_text(encoding="utf-8"))]


_HANDLER = """
command_not_found_handle() { printf '%s\\0' "$@" >&"$told"; printf '\\036\\0' >&"$told"; }
p2pft() { command_not_found_handle p2pft "$@"; }
exec {told}>&1 >/dev/null
PATH=/nowhere
"""
"""Makes bash tell the words of each command that is no part of bash, instead of running it."""


def commands_of(blocks: Sequence[Block], folder: Path) -> list[list[str]]:
    """Return the words of the commands of bash blocks, which share one shell, as bash expands them.

    Nothing is run but bash's own commands, in ``folder``.
    """
    script = _HANDLER + "\n".join(block.text for block in blocks)
    said = subprocess.run(
        ["/bin/bash", "-c", script],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    wrong = [line for line in said.stderr.splitlines() if "syntax error" in line or "unexpected" in line]
    assert not wrong, wrong
    return [words.split("\0")[:-1] for words in said.stdout.split("\x1e\0") if words]


def shown(words: Sequence[str]) -> str:
    return shlex.join(words)


_EXPECTED = re.compile(r"^print\(.*\)  # (.*)$", re.MULTILINE)
_ROUNDING = 1e-9
_NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


def unlike(block: str, printed: str) -> Iterator[str]:
    """Yield what a block's comments beside ``print`` say and what it printed, where they differ.

    A number counts with the digits that the comment has; one below :data:`_ROUNDING` is the rounding of sums,
    which differs between processors: it may be ten times as large. Words after it are for the reader.
    """
    lines = printed.splitlines()
    for wanted, line in zip(_EXPECTED.findall(block), lines, strict=True):
        number = _NUMBER.match(wanted)
        if number is not None and _NUMBER.fullmatch(line):
            digits = len(number[0].partition("e")[0].lstrip("-0.").replace(".", ""))
            right, found = float(number[0]), float(line)
            rounding = 0 < right < _ROUNDING
            same = 0 <= found <= 10 * right if rounding else float(f"{found:.{digits - 1}e}") == right
        else:
            same = wanted.startswith(line)
        if not same:
            yield f"{line}, not {wanted}"
