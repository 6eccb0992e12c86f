"""Check that whole runs of the embedded model end at the same θ as before, bit for bit.

A model's numbers depend on processor and torch, so digests hold on the machine that made them, which their
file names. Write the file before the inside is rebuilt, and compare after each change.
``tests/host/test_golden.py`` does the same for quadratics, on every machine. Usage, from the repository's
root::

    python -m benchmarks.golden FILE [--write]

The runs: the default one; on lopsided-4; 16 peers, folded onto the processors; one that is stopped and
resumed; Flower's FedAvg; and the default one deployed, over TLS. Exit code 1 if a digest differs, 2 if the
file is of another machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.numpy import load_file

SHORT = ("iterations=60", "evaluate-every=30")
RUNS: dict[str, tuple[str, ...]] = {
    "default": SHORT,
    "lopsided-4": ("topology=lopsided-4", *SHORT),
    "exponential:16": ("topology=exponential:16", "partition=dirichlet:1.0", *SHORT),
    "fedavg": ("algorithm=fedavg", *SHORT),
}


def machine() -> dict[str, Any]:
    """Return the facts of this machine on which the bits of a model's numbers depend."""
    return {
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def p2pft(*words: str) -> None:
    """Run ``p2pft`` with ``words``; if it fails, show its output and exit."""
    done = subprocess.run(["p2pft", *words], capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        sys.exit(f"p2pft {' '.join(words)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def digest(folder: Path) -> str:
    """Return the SHA-256, hexadecimal, of a run's tails, peer by peer, tensor by tensor."""
    found = hashlib.sha256()
    tails = sorted(p for p in folder.rglob("peers/peer-*.safetensors") if ".stopped" not in p.name)
    if not tails:
        sys.exit(f"{folder} holds no tail")
    for path in tails:
        for name, tensor in sorted(load_file(path).items()):
            found.update(f"{path.name} {name} {tensor.shape} ".encode())
            found.update(tensor.tobytes())
    return found.hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Do all runs below ``folder``, and return each one's digest, by name."""
    made: dict[str, str] = {}
    for name, words in RUNS.items():
        typer.echo(f"{name} …")
        out = folder / str(len(made))
        p2pft("run", *words, "--out", str(out))
        made[name] = digest(out)
    typer.echo("resumed …")
    first, rest = folder / "first", folder / "rest"
    p2pft("run", "iterations=30", "evaluate-every=30", "--out", str(first))
    p2pft("run", "--resume", str(first), "--extend", "iterations=60", "--out", str(rest))
    made["resumed"] = digest(rest)
    typer.echo("deployed over TLS …")
    p2pft("up", "--peers", "4")
    try:
        p2pft("run", "--connection", "rehearsal", *SHORT, "--out", str(folder / "deployed"))
        made["deployed"] = digest(folder / "deployed")
    finally:
        p2pft("down")
    return made


def main(
    file: Annotated[Path, typer.Argument(help="The digests.")],
    write: Annotated[bool, typer.Option("--write", help="Write them.")] = False,
) -> None:
    """Compare the runs' digests with a file's, or write it."""
    if not write:
        known = json.loads(file.read_text())
        if known["machine"] != machine():
            typer.echo(f"{file} is of another machine: {known['machine']}; this is {machine()}")
            raise typer.Exit(2)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["P2PFT_HOME"] = f"{folder}/home"  # its cache and rehearsal are not the user's
        found = digests(Path(folder))
    if write:
        file.write_text(json.dumps({"machine": machine(), "digests": found}, indent=2) + "\n")
        return
    apart = [name for name, value in found.items() if known["digests"].get(name) != value]
    for name in found:
        typer.echo(f"{'DIFFERS' if name in apart else 'same   '} {name}")
    if apart:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
