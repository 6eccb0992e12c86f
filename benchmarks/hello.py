"""CPU seconds of a process that answers hello: this tree beside an earlier one, and beside what is least.

Each row is a process of its own that loads the ClientApp and answers one hello of a deployed site, in turns
in both trees; ``client alone`` loads the ClientApp and answers nothing. A busy machine makes all rows longer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

PROGRAM = """
import json, sys
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from p2pft_flower.config import config_keys
from p2pft_flower.flower import messages
from p2pft_flower.flower.client import make_client_app
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
app, settings = make_client_app(), json.loads(sys.argv[1])
if settings is not None:
    config = {**config_keys(), **settings}
    body = {"config": config, "n": 4, "pooled": "", "hold": 0.0}
    message = Message(messages.pack(body), dst_node_id=1, message_type=messages.HELLO)
    node = {"peer-id": 0, "peer-address": "127.0.0.1:9000"}
    answer = messages.unpack(app(message, Context(1, 1, node, RecordDict(), {})))
    assert "ok" in answer, answer
print(json.dumps(sorted({"torch", "timm", "torchvision", "matplotlib"} & sys.modules.keys())))
"""

CASES: dict[str, dict[str, object] | None] = {
    "client alone": None,
    "digits": {},
    "digits, partition iid": {"partition": "iid"},
    "vit_tiny_patch16_224, random weights": {"model": "vit_tiny_patch16_224", "weights": "none"},
}
"""Run-config keys and values of each hello, by the row's name; None: no hello is sent."""

OWN: dict[str, object] = {
    "problem": str(Path(__file__).resolve().parents[1] / "tests" / "quadratics.py") + ":quadratics"
}
"""Run-config keys and values that the earlier tree does not know."""


def measure(tree: Path, settings: dict[str, object] | None) -> tuple[float, list[str]]:
    """Return the CPU seconds, user and system, of one process, and the heavy libraries that it imported."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, json.dumps(settings)],
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return spent, json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a table: CPU seconds before and now, their ratio, and what was imported."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="A working tree of the earlier commit (git worktree add).")
    parser.add_argument("--rounds", type=int, default=5, help="Processes of each kind; the median counts.")
    chosen = parser.parse_args()
    trees = {"before": chosen.before.resolve(), "now": Path(__file__).resolve().parents[1]}
    table = Table(
        "a process that answers hello", "before, CPU s", "now, CPU s", "ratio", "heavy imports before", "now"
    )
    for name, settings in {**CASES, "a problem of one's own, in NumPy": OWN}.items():
        spent: dict[str, list[float]] = {tree: [] for tree in trees}
        heavy: dict[str, list[str]] = {tree: [] for tree in trees}
        for _ in range(chosen.rounds):
            for tree, folder in trees.items():
                if settings is OWN and tree == "before":
                    continue
                seconds, heavy[tree] = measure(folder, settings)
                spent[tree].append(seconds)
        sys.stderr.write(f"{name}: measured\n")
        now = statistics.median(spent["now"])
        before = statistics.median(spent["before"]) if spent["before"] else None
        table.add_row(
            name,
            "–" if before is None else f"{before:.2f}",
            f"{now:.2f}",
            "–" if before is None else f"{before / now:.1f}",
            ", ".join(heavy["before"]) or "none",
            ", ".join(heavy["now"]) or "none",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
