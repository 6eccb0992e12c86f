#!/usr/bin/env bash
# flwr 1.42.0, ray 2.55.1: a simulation runs at most (cores of the machine that starts it + 4) ClientApps at once, and
# never more than 32, however many CPUs Ray has and however little a ClientApp asks for. The engine starts a thread for
# each actor in a thread pool of the default size, and those threads never come free. Further actors are started, hold
# their memory, and are idle: on a Ray cluster of many nodes, or with client-resources of 0.1 CPU, without a word. Whoever
# lets ClientApps wait for each other (peers) waits for ever; FedAvg is only slower.
#
# Expected: as many ClientApps at once as there are actors, here cores + 8. Seen: cores + 4 (32 from 28 cores on).
# Exit 0 while it does so, 1 when that has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "flwr[simulation]==1.42.0" ray==2.55.1
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_HOME="$work/flwr" RAY_DEDUP_LOGS=0 FOLDER="$work/calls"
mkdir -p "$FOLDER"
"$work/venv/bin/python" - 2>"$work/log" <<'PY' || { cat "$work/log"; exit 1; }
import os
import sys
import time
from pathlib import Path

import flwr
import ray
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation

folder = Path(os.environ["FOLDER"])
at_once = folder.parent / "at-once"
cores = os.cpu_count()
actors, bound = min(32, cores + 4) + 4, min(32, cores + 4)
client_app, server_app = ClientApp(), ServerApp()


@client_app.query()
def query(message, context):
    """Stay until the ServerApp has counted who is here."""
    (folder / str(context.node_id)).touch()
    while not at_once.exists():
        time.sleep(0.2)
    return Message(RecordDict(), reply_to=message)


@server_app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < actors:
        time.sleep(0.2)
    grid.push_messages([Message(RecordDict(), dst_node_id=n, message_type="query") for n in nodes])
    until = time.monotonic() + 300
    while len(list(folder.iterdir())) < bound and time.monotonic() < until:
        time.sleep(0.2)
    time.sleep(20)  # for those that ought to come as well
    at_once.write_text(str(len(list(folder.iterdir()))))


run_simulation(
    server_app,
    client_app,
    num_supernodes=actors,
    backend_config={
        "init_args": {"num_cpus": actors, "include_dashboard": False},
        "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0},
    },
)
seen = int(at_once.read_text())
print(f"flwr {flwr.__version__}, ray {ray.__version__}; {cores} cores, {actors} actors")
print(f"ClientApps at once: {seen}")
if seen != bound:
    sys.exit("this has changed")
PY
