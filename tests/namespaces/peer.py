"""One peer on a host of its own: says that it could run, waits for a line, runs, and prints how it ended.

Usage: python -m tests.namespaces.peer PLAN.json [CERTIFICATES]
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from pathlib import Path

from p2pft_flower.errors import P2PFTError
from p2pft_flower.host.host import Host
from p2pft_flower.host.wires import Access
from p2pft_flower.plan import Plan
from p2pft_flower.transport.trust.tls import Credentials
from tests.host.quadratic import Quadratics


def main(plan_file: str, certificates: str = "") -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    plan, problem = Plan.from_json(Path(plan_file).read_text()), Quadratics()
    (peer,) = (p.peer for p in plan.peers)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        credentials = Credentials.load(Path(certificates), peer) if certificates else None
        Host(plan, problem, Access(credentials)).run()
        ended = {"theta": hashlib.sha256(problem.built[peer].kept.tobytes()).hexdigest()}
    except P2PFTError as error:
        ended = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(ended))


if __name__ == "__main__":
    main(*sys.argv[1:])
