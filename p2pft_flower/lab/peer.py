"""One peer in a process of its own, which runs as in a site's ClientApp, but without a SuperNode."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from p2pft_flower.errors import P2PFTError
from p2pft_flower.host import training
from p2pft_flower.host.agreement import LostContactError
from p2pft_flower.host.host import Host, PeerFailedError
from p2pft_flower.learning.workload import Workload
from p2pft_flower.plan import Plan
from p2pft_flower.transport import ExchangeStoppedError

__all__ = ["EXIT_ALONE", "EXIT_FAILED", "main"]

EXIT_FAILED = 3
"""Exit code of a peer that gave up; its log says why."""

EXIT_ALONE = 4
"""Exit code of a peer whose parent process is gone."""


def main(pipe: Connection, plan_json: str, joining: bool) -> None:
    """Train until a reason to stop the run comes through ``pipe``.

    Parameters
    ----------
    pipe : Connection
        This end of a pipe to the parent; the operating system closes the other end if the parent dies.
    plan_json : str
        The plan of this peer, as JSON.
    joining : bool
        Whether the peer joins others that train already.

    Raises
    ------
    SystemExit
        With EXIT_FAILED, when the peer gave up.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C; the parent ends this process
    os.environ[training.TRACE] = "1"
    # To look through all that torch has imported keeps the interpreter for a quarter of a second of the
    # processor's time, which many peers on a busy core stretch to a peer-timeout.
    gc.freeze()
    plan = Plan.from_json(plan_json)
    (peer,) = (p.peer for p in plan.peers)
    logging.basicConfig(
        filename=Path(plan.output_dir) / f"peer-{peer}.log",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    host = Host(plan, Workload(plan.config.learning, plan.n), joining=joining)

    def listen() -> None:
        try:
            host.stop(pipe.recv())
        except EOFError:
            os._exit(EXIT_ALONE)

    threading.Thread(target=listen, name="p2pft-chaos", daemon=True).start()
    try:
        host.run()
    except ExchangeStoppedError as error:
        logging.getLogger("p2pft_flower").info("%s", error)
    except (P2PFTError, PeerFailedError, LostContactError) as error:
        logging.getLogger("p2pft_flower").error("%s: %s", type(error).__name__, error)  # noqa: TRY400
        raise SystemExit(EXIT_FAILED) from None
