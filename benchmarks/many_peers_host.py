# mypy: ignore-errors
"""One host of benchmarks/many_peers.py: trains its peers of the embedded default, and tells what it took.

The file runs with this package or with an earlier one, as PYTHONPATH says, and reads its task from standard
input. Nothing of it is to be imported.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from p2pft_flower.config import RunConfig
from p2pft_flower.learning.objective import PeerObjective
from p2pft_flower.learning.workload import Workload
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View
from p2pft_flower.transport import unix_address

try:
    from p2pft_flower.host.host import Host
    from p2pft_flower.plan import Neighbourhood, Plan, greetings, terms_digest

    EARLIER = False
except ModuleNotFoundError:  # before the package had rooms by lifetime
    from p2pft_flower.runtime.host import Host
    from p2pft_flower.runtime.plan import (
        Neighbourhood,
        Plan,
        terms_digest,
    )

    EARLIER = True

task: dict[str, Any] = json.loads(sys.stdin.read())
n, own, iterations = task["n"], task["peers"], task["iterations"]
torch.set_num_threads(1)
begin = time.perf_counter()
graph, folder = Graph.load(task["graph"]), Path(task["folder"])
if (turns := task["settings"].get("schedule-graph", "static")) != "static":
    from p2pft_flower.topology.schedule import scheduled

    graph = scheduled(graph, turns)
view = View.whole(graph)
endless = 10**6  # it is ended from outside
config = RunConfig.from_mapping(
    {"partition": "iid", "iterations": endless, "peer-timeout": 600.0, "meet-timeout": 600.0}
    | task["settings"]
)
groups = task["hosts"]
common: dict[str, Any] = {
    "run": "many",
    "n": n,
    "terms": terms_digest(config, view, endless),
    "peers": tuple(Neighbourhood.of(view, p) for p in own),
    "loss_weights": dict.fromkeys(range(n), 1.0),
    "iterations": endless,
    "evaluate_every": endless,
    "output_dir": str(folder / "out"),
    "addresses": {p: unix_address("many", p, folder) for p in range(n)} if len(groups) > 1 else {},
}
if EARLIER:
    plan = Plan(config=config.to_mapping(), hosts=len(groups), **common)
else:
    members = {min(peers): tuple(peers) for peers in groups}
    plan = Plan(config=config, greetings=greetings(view, groups), hosts=members, **common)

# Computed together or one by one, the first peer's draw begins an iteration's gradients.
marks: list[tuple[float, float]] = []
draws = "gradient" if EARLIER else "read"
plain = getattr(PeerObjective, draws)


def marked(self: PeerObjective, *given: Any) -> Any:
    """Note the time if it is the host's first peer; after so many iterations tell all."""
    if self._key[1] == own[0]:
        marks.append((time.perf_counter(), time.process_time()))
        if len(marks) == iterations + 2:  # the first one is of the start
            report()
    return plain(self, *given)


def report() -> None:
    """Write θ of the peers, tell the times of the iterations, and wait to be killed."""
    thetas = {str(p): np.asarray(state.theta) for p, state in host._training.states.items()}
    np.savez(folder / f"theta-{own[0]}.npz", **thetas)
    told = {
        "prepared": marks[0][0] - begin,
        "passed": np.diff([passed for passed, _ in marks[1:]]).tolist(),
        "computed": np.diff([computed for _, computed in marks[1:]]).tolist(),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(told), flush=True)
    time.sleep(3600)


if task.get("vectors") == "memory":  # as before there were vectors on a device
    Workload.vector_device = None
elif task.get("vectors") == "cpu":  # torch's CPU in place of an accelerator, to try the way itself
    from p2pft_flower.learning.device_vectors import VectorDevice

    Workload.vector_device = VectorDevice("cpu")
setattr(PeerObjective, draws, marked)
host = Host(plan, Workload(config.learning, n))
host.run()
