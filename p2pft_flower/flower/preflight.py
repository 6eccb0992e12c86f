"""Preflight of a deployment: a check of every peer and every link before the first gradient."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from p2pft_flower.flower import messages, nodes
from p2pft_flower.flower.nodes import HostAssignment, RunFailedError
from p2pft_flower.flower.run import Run
from p2pft_flower.flower.trust import Distrust
from p2pft_flower.flower.unlike import unlike
from p2pft_flower.plan import config_digest
from p2pft_flower.report.preflight import PREFLIGHT_FILE, preflight_tables
from p2pft_flower.report.results import write_json

__all__ = ["preflight"]

log = logging.getLogger("p2pft_flower")

MIN_FREE = 256 * 2**20
"""Bytes below which a folder that is to be written to counts as full."""

MAX_SKEW = 60.0
"""Seconds by which clocks may differ: more, and certificates are expired for one peer and not for another."""

NOTED_SKEW = 2.0
"""Seconds of difference between two peers' clocks above which a warning is logged."""

_ELSEWHERE = {
    "output-dir": "output-dir in --node-config",
    "home": "P2PFT_HOME in the SuperNode's environment",
}
"""The key or variable with which a site sets a folder, by the folder's use."""


def preflight(grid: Grid, run: Run, answers: dict[int, dict[str, Any]], distrust: Distrust) -> None:
    """Let all peers probe their neighbours at the same time; log and write the findings, and refuse faults.

    All faults are told at once, those of certificates among them.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    run : Run
        A run in a deployment, with one peer a host. Its folder gets ``preflight.json``.
    answers : dict of int to dict
        The nodes' answers to hello, by node id.
    distrust : Distrust
        Faults that the answers have shown already, and the peers whose links are not looked at therefore.

    Raises
    ------
    RunFailedError
        When there are failures; the message lists each with its peer or link, the finding, and the remedy.
    """
    log.info("the peers look at their links to each other and at their folders, before anything trains")
    replies = _ask(grid, run, distrust.peers)
    digest = config_digest(run.config)
    rows, failures = [], list(distrust.faults)
    for host in run.hosts:
        peer, reply = host.peers[0], replies.get(host.node)
        row = _row(run, host, answers[host.node])
        if reply is None:
            failures.append(f"peer {peer} did not answer the preflight; is its SuperNode still running?")
        else:
            try:
                found = nodes.body_of(reply, f"peer {peer}")
                row |= {"links": found["links"], "folders": found["folders"]}
                failures += _failures(peer, found, digest)
                _warn(peer, found)
            except RunFailedError as error:
                failures.append(str(error))
        rows.append(row)
    warning = unlike({row["peer"]: row["pixels"] for row in rows if row["pixels"] is not None})
    first = answers[run.hosts[0].node]
    report = {
        "run": run.id,
        "graph": run.view.graph.name,
        "missing": list(run.missing),
        "digests": {"config": digest, "model": first["model"], **first["frozen"]},
        "versions": run.versions,
        "peers": rows,
        "warnings": [warning] if warning else [],
        "failures": failures,
    }
    path = write_json(run.folder / PREFLIGHT_FILE, report)
    log.info("%s", preflight_tables(report))
    log.info("preflight: %s", path)
    if warning:  # once more, at the end of the log, which people read
        log.warning("%s", warning)
    if failures:
        raise RunFailedError(
            f"preflight found {len(failures)} failure{'s' if len(failures) > 1 else ''} (all in {path}):\n  "
            + "\n  ".join(failures)
        )


def _ask(grid: Grid, run: Run, distrusted: Collection[int]) -> Mapping[int, Message]:
    """Return the nodes' replies, after each has probed its neighbours and its folders.

    Links of ``distrusted`` peers are not probed: they would fail only when the time is over.
    """
    timeout = run.config.runtime.meet_timeout
    sent = []
    for host in run.hosts:
        peer = host.peers[0]
        near = run.view.row(peer).keys() | run.view.column(peer).keys()
        around = {peer} if peer in distrusted else {peer} | (near - set(distrusted))
        body = {
            "run": run.id,
            "addresses": {p: run.address(p) for p in sorted(around)},
            "timeout": timeout,
            "config": run.config.to_mapping(),
        }
        sent.append(Message(messages.pack(body), dst_node_id=host.node, message_type=messages.PREFLIGHT))
    reminder = nodes.Reminder()

    def tell(replies: int, left: float) -> None:
        if reminder.due(time.monotonic()):
            log.info("preflight: %d of %d peers have answered; %.0f s left", replies, len(sent), left)

    return nodes.collect(grid, sent, timeout=2 * timeout + 60, grace=timeout + 30, tell=tell)


def _row(run: Run, host: HostAssignment, hello: dict[str, Any]) -> dict[str, Any]:
    """Return a peer's entry in ``preflight.json``, as yet without links and folders."""
    peer = host.peers[0]
    return {
        "peer": peer,
        "name": run.names.get(peer, str(peer)),
        "node": host.node,
        "address": run.address(peer),
        "images": hello["data"][str(peer)]["images"],
        "classes": hello["data"][str(peer)]["classes"],
        "certificate": hello["certificate"],
        "fault": hello["fault"],
        "pixels": hello["pixels"].get(str(peer)),
        "links": [],
        "folders": [],
    }


def _failures(peer: int, found: dict[str, Any], digest: str) -> list[str]:
    failures = []
    if found["config"] != digest:
        failures.append(
            f"peer {peer} reads the run-config otherwise (digest {found['config']}, the coordinator's is "
            f"{digest}): install the same build of p2pft-flower on both"
        )
    for link in found["links"]:
        where = f"link {peer} -> {link['neighbour']} ({link['address']})"
        if link["error"]:
            failures.append(
                f"{where}: {link['error']}; is the address right and reachable from there, does a firewall "
                "let it through, and do the certificates fit?"
            )
        elif not abs(link["skew"]) <= MAX_SKEW:  # NaN is no clock either
            failures.append(
                f"{where}: the clocks differ by {abs(link['skew']):.0f} s (at most {MAX_SKEW:g}): "
                "set both by NTP"
            )
    for f in found["folders"]:
        where = f"peer {peer}: {f['purpose']} {f['path']}"
        if f["error"]:
            failures.append(f"{where}: {f['error']}; give a folder that it may write to")
        elif f["free"] < MIN_FREE:
            failures.append(
                f"{where}: {f['free'] // 2**20} MiB free (at least {MIN_FREE // 2**20}): make room, or "
                f"choose a folder on another disk ({_ELSEWHERE[f['purpose']]})"
            )
    return failures


def _warn(peer: int, found: dict[str, Any]) -> None:
    for link in found["links"]:
        if not link["error"] and NOTED_SKEW < abs(link["skew"]) <= MAX_SKEW:
            log.warning(
                "the clocks of peers %d and %d differ by %.1f s", peer, link["neighbour"], abs(link["skew"])
            )
