"""Tables of a preflight's findings."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from p2pft_flower.keeping.progress import human_bytes
from p2pft_flower.report.tables import number, render, spans

__all__ = ["PREFLIGHT_FILE", "preflight_tables"]

PREFLIGHT_FILE = "preflight.json"
"""Name of the file of a preflight's findings, in the folder of the run's results."""


def preflight_tables(report: dict[str, Any]) -> str:
    """Return, as text, the facts that all peers share, a table of the peers, and a table of their links.

    Parameters
    ----------
    report : dict
        The content of ``preflight.json``.
    """
    peers = Table(title=f"preflight of {report['graph']}: peers")
    for name in ("peer", "address", "images", "classes", "certificate until", "writes to", "free"):
        peers.add_column(name, overflow="fold")
    links = Table(title="links")
    for name in ("link", "result", "round trip", "bandwidth", "clock ahead"):
        links.add_column(name, overflow="fold", justify="left" if name in ("link", "result") else "right")
    for row in report["peers"]:
        peers.add_row(
            row["name"],
            row["address"],
            str(row["images"]),
            spans(row["classes"]),
            row["certificate"] or ("cannot be used" if row.get("fault") else "none: plain text"),
            "\n".join(f"{f['path']} ({f['purpose']})" for f in row["folders"]),
            "\n".join(f["error"] or human_bytes(f["free"]) for f in row["folders"]),
        )
        for link in row["links"]:
            ok = not link["error"]
            links.add_row(
                f"{row['peer']} to {link['neighbour']}",
                "ok" if ok else link["error"],
                f"{number(1000 * link['round_trip'], '.1f')} ms" if ok else "–",
                f"{human_bytes(link['bandwidth'])}/s" if ok else "–",
                f"{number(1000 * link['skew'], '+z.0f')} ms" if ok else "–",
            )
    alike = [
        "all peers have: " + ", ".join(f"{k} {v}" for k, v in report["versions"].items()),
        *(f"{what}: {value}" for what, value in report["digests"].items()),
    ]
    ends = "each link is probed from both ends: peer 0 measured the row 0 to 1"
    return render(*alike, peers, links, ends)
