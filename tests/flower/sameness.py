"""Whether two runs are the same: θ of every peer, bit for bit, and all that results say of their scores."""

from __future__ import annotations

from safetensors.numpy import load_file

from p2pft_flower.report.results import read_results


def tails(folder, peers=range(4)):
    """Return the bytes of each one's last θ."""
    return [
        b"".join(t.tobytes() for t in load_file(folder / "peers" / f"peer-{p}.safetensors").values())
        for p in peers
    ]


def scores(results):
    """Return what of results must not depend on whether the run was interrupted."""
    kept = {"iterations", "consensus_error", "history", "summary", "graph", "partition"}
    peers = [{k: v for k, v in p.items() if k != "seconds"} for p in results["peers"]]
    return {k: results[k] for k in kept} | {"peers": peers}


def same_run(one, other, n=4):
    assert tails(one, range(n)) == tails(other, range(n))
    assert scores(read_results(one)) == scores(read_results(other))
