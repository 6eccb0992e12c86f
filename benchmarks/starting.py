"""Seconds that ``p2pft run`` takes beside its training, and the whole of a Flower app that does nothing.

The app that does nothing sends one message to as many ClientApps as p2pft has hosts, gets their answers and
ends. Both have a SuperLink of their own, started cold. They take turns, so that noise falls on both; the
median of the rounds counts. The stages of ``p2pft run`` are those that its log shows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from p2pft_flower.cli.flwr_run import local_superlink, program

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "nothing"
version = "1.0.0"
description = "One message to each ClientApp."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "nobody"

[tool.flwr.app.components]
serverapp = "nothing:server"
clientapp = "nothing:client"
"""

APP = """
import time
from flwr.app import Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()


@client.query()
def answer(message, context):
    return Message(RecordDict(), reply_to=message)


@server.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.1)
    asked = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
    assert not any(reply.has_error() for reply in grid.send_and_receive(asked))
"""

STAGES = {
    "SuperLink answers": "asking Flower for a run",
    "Flower has the run": " has started; it looks for its peers",
    "the peers have said hello": " on graph ",
    "they have their models": "| loss ",
    "they have trained": " ended: completed",
    "the command has ended": None,
}
"""Stage to the text of the first line of the log that ends it; None: the end of the process."""


def nothing(hosts: int, folder: Path) -> float:
    """Return the seconds of an app that does nothing, with ``hosts`` actors, its SuperLink's included."""
    app = folder / "nothing"
    app.mkdir(exist_ok=True)
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "nothing.py").write_text(APP)
    resources = f"num-supernodes={hosts} client-resources-num-cpus=1 init-args-num-cpus={hosts}"
    begin = time.monotonic()
    with local_superlink() as environment:
        own = {key: value for key, value in environment.items() if key != "RAY_prestart_worker_first_driver"}
        command = [program("flwr"), "run", str(app), "--stream", "--federation-config", resources]
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    if done.returncode or "ERROR" in done.stdout + done.stderr:
        raise SystemExit(f"the app that does nothing failed:\n{done.stdout}{done.stderr}")
    return time.monotonic() - begin


def p2pft(settings: list[str], out: Path, tree: Path | None) -> tuple[dict[str, float], float, int]:
    """Return the seconds at which each stage of one ``p2pft run`` ended, of its training, and its hosts."""
    environment = {**os.environ, "PYTHONPATH": str(tree or Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-P", "-c", "from p2pft_flower.cli import main; main()", "run", *settings]
    begin, ended, said = time.monotonic(), dict[str, float](), list[str]()
    left = dict(STAGES)
    with subprocess.Popen(
        [*command, "--out", str(out)],
        env=environment,
        cwd=out.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout or ():
            said.append(line)
            stage = next(iter(left))
            if (mark := left[stage]) is not None and mark in line:
                ended[stage] = time.monotonic() - begin
                del left[stage]
    if process.returncode or list(left) != ["the command has ended"]:
        raise SystemExit(f"p2pft run failed, or its log lacks the stages {list(left)}:\n{''.join(said)}")
    ended["the command has ended"] = time.monotonic() - begin
    results = json.loads((out / "results.json").read_text())
    return ended, results["seconds"], len(results["hosts"])


def main() -> None:
    """Print the stages of ``p2pft run`` and the ratio of its start and end to the app that does nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", help="Run-config keys of the run; default: the default run.")
    parser.add_argument("--rounds", type=int, default=3, help="Runs of each kind; the median counts.")
    parser.add_argument("--before", type=Path, help="A working tree of an earlier commit, as a third kind.")
    chosen = parser.parse_args()
    kinds = {"p2pft run": None, **({"before": chosen.before.resolve()} if chosen.before else {})}
    stages: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    around: dict[str, list[float]] = {kind: [] for kind in kinds}
    empty = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(chosen.rounds):
            for kind, tree in kinds.items():
                out = Path(scratch) / f"{number}-{kind.replace(' ', '-')}"
                ended, trained, hosts = p2pft(chosen.settings, out, tree)
                stages[kind].append(ended)
                around[kind].append(ended["the command has ended"] - trained)
            empty.append(nothing(hosts, Path(scratch)))
            sys.stderr.write(f"round {number + 1}: measured\n")
    table = Table("stage, seconds from the command's begin", *kinds)
    for stage in STAGES:
        table.add_row(stage, *(f"{statistics.median(e[stage] for e in stages[k]):.1f}" for k in kinds))
    table.add_row("all but training", *(f"{statistics.median(around[k]):.1f}" for k in kinds))
    least = statistics.median(empty)
    table.add_row("an app that does nothing", *[f"{least:.1f}"] * len(kinds))
    table.add_row("ratio", *(f"{statistics.median(around[k]) / least:.2f}" for k in kinds))
    Console().print(table)


if __name__ == "__main__":
    main()
