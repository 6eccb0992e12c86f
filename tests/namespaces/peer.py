"""One peer on a host of its own: says that it could run, waits for a word, runs, and says how it ended."""

from __future__ import annotations

import hashlib
import io
import logging
from multiprocessing.connection import Connection
from pathlib import Path

from p2pft_flower.errors import P2PFTError
from p2pft_flower.host.host import Host
from p2pft_flower.host.wires import Access
from p2pft_flower.plan import Plan
from p2pft_flower.transport.trust.tls import Credentials
from tests.host.quadratic import Quadratics
from tests.namespaces.kernel import enter_network


def main(pipe: Connection, namespace: str, plan_json: str, certificates: Path | None) -> None:
    """Run on the host ``namespace``; in the end say how it ended, and its warnings."""
    enter_network(namespace)
    warnings = io.StringIO()
    logging.basicConfig(stream=warnings, level=logging.WARNING, format="%(message)s")
    plan, problem = Plan.from_json(plan_json), Quadratics()
    (peer,) = (p.peer for p in plan.peers)
    pipe.send("ready")
    pipe.recv()
    try:
        credentials = None if certificates is None else Credentials.load(certificates, peer)
        Host(plan, problem, Access(credentials)).run()
        ended = {"theta": hashlib.sha256(problem.built[peer].kept.tobytes()).hexdigest()}
    except P2PFTError as error:
        ended = {"error": str(error), "kind": type(error).__name__}
    pipe.send((ended, warnings.getvalue()))
