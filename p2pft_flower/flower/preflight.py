"""Preflight of a deployment: every peer and every link is looked at before the first gradient."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from p2pft_flower.config import RunConfig
from p2pft_flower.flower import messages, nodes
from p2pft_flower.flower.nodes import HostAssignment, RunFailedError
from p2pft_flower.report.preflight import preflight_tables
from p2pft_flower.report.results import write_json
from p2pft_flower.topology import Graph

__all__ = ["FILE", "preflight"]

log = logging.getLogger("p2pft_flower")

FILE = "preflight.json"

MIN_FREE = 256 * 2**20
"""Bytes below which a folder that is to be written to counts as full."""

MAX_SKEW = 60.0
"""Seconds by which clocks may differ: more, and certificates are expired for one peer and not for another."""

NOTED_SKEW = 2.0
"""Seconds from which the logs of two peers are hard to read side by side: a warning."""


def preflight(
    grid: Grid,
    run_id: str,
    config: RunConfig,
    graph: Graph,
    hosts: list[HostAssignment],
    addresses: dict[int, str],
    answers: dict[int, dict[str, Any]],
    folder: Path,
) -> None:
    """Let all peers probe their neighbours at the same time; print what they found, and refuse what fails.

    Parameters
    ----------
    hosts : list of HostAssignment
        One peer each.
    addresses : dict of int to str
        Where each peer is reached by its neighbours.
    answers : dict of int to dict
        The nodes' hellos.
    folder : Path
        Gets ``preflight.json``.

    Raises
    ------
    RunFailedError
        With every failure: peer or link, what was found, and the remedy.
    """
    sent = []
    for host in hosts:
        peer = host.peers[0]
        around = {*graph.in_neighbours(peer), *graph.out_neighbours(peer)}
        body = {
            "run": run_id,
            "peer": peer,
            "addresses": {p: addresses[p] for p in sorted(around | {peer})},
            "timeout": config.runtime.meet_timeout,
            "output-dir": str(folder),
        }
        sent.append(Message(messages.pack(body), dst_node_id=host.node, message_type=messages.PREFLIGHT))
    replies = nodes.collect(grid, sent, timeout=2 * config.runtime.meet_timeout + 60, grace=30)
    rows, failures = [], []
    for host in hosts:
        peer = host.peers[0]
        hello = answers[host.node]
        row: dict[str, Any] = {
            "peer": peer,
            "name": graph.peer_names[peer],
            "node": host.node,
            "address": addresses[peer],
            "images": hello["data"][str(peer)]["images"],
            "classes": hello["data"][str(peer)]["classes"],
            "certificate": hello["certificate"],
            "links": [],
            "folders": [],
        }
        try:
            if host.node not in replies:
                failures.append(f"peer {peer} did not answer the preflight; is its SuperNode still running?")
            else:
                found = nodes.body_of(replies[host.node], f"peer {peer}")
                row |= {"links": found["links"], "folders": found["folders"]}
                failures += _failures(peer, found)
                _warn(peer, found)
        except RunFailedError as error:
            failures.append(str(error))
        rows.append(row)
    report = {
        "run": run_id,
        "graph": graph.name,
        "graph-digest": graph.digest,
        "versions": answers[hosts[0].node]["versions"],
        "frozen": answers[hosts[0].node]["frozen"],
        "peers": rows,
        "failures": failures,
    }
    path = write_json(folder / FILE, report)
    log.info("%s", preflight_tables(report))
    if failures:
        raise RunFailedError(
            f"preflight found {len(failures)} failure{'s' if len(failures) > 1 else ''} (all in {path}):\n  "
            + "\n  ".join(failures),
            "Preflight",
        )


def _failures(peer: int, found: dict[str, Any]) -> list[str]:
    failures = []
    for link in found["links"]:
        where = f"link {peer} -> {link['neighbour']} ({link['address']})"
        if link["error"]:
            failures.append(
                f"{where}: {link['error']}; is the address right and reachable from there, does a firewall "
                "let it through, and do the certificates fit?"
            )
        elif abs(link["skew"]) > MAX_SKEW:
            failures.append(
                f"{where}: the clocks differ by {abs(link['skew']):.0f} s (at most {MAX_SKEW:g}): "
                "set both by NTP"
            )
    for f in found["folders"]:
        where = f"peer {peer}: {f['purpose']} {f['path']}"
        if f["error"]:
            failures.append(f"{where}: {f['error']}; give a folder that it may write to")
        elif f["free"] < MIN_FREE:
            failures.append(f"{where}: {f['free'] // 2**20} MiB free (at least {MIN_FREE // 2**20})")
    return failures


def _warn(peer: int, found: dict[str, Any]) -> None:
    for link in found["links"]:
        if not link["error"] and NOTED_SKEW < abs(link["skew"]) <= MAX_SKEW:
            log.warning(
                "the clocks of peers %d and %d differ by %.1f s", peer, link["neighbour"], abs(link["skew"])
            )
