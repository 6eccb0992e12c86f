"""Results as a run leaves them, with numbers that are easy to follow."""

from __future__ import annotations

from p2pft_flower.report.results import SCHEMA, summary


def results(method="p2pft", seed=0, config=None, accuracies=None):
    """Return completed results; local peers score 0.1 to 0.4, others 0.9, and a seed adds 0.02."""
    base = accuracies or {"local": [0.1, 0.2, 0.3, 0.4], "centralized": [0.95]}.get(method, [0.9] * 4)
    peers = [
        {
            "peer": i,
            "name": str(i),
            "classes": [str(i)],
            "images": 100,
            "accuracy": accuracy + 0.02 * seed,
            "accuracy_unseen": None,
            "loss": 1.0,
            "bytes_sent": 1000,
            "epsilon": None,
            "delta": None,
            "seconds": {"gradient": 1.0, "exchange": 1.0, "evaluation": 1.0},
        }
        for i, accuracy in enumerate(base)
    ]
    return {
        "schema": SCHEMA,
        "status": "completed",
        "partition": "iid",
        "algorithm": method,
        "seed": seed,
        "iterations": 10,
        "trainable_parameters": 7,
        "model_parameters": 70,
        "peers": peers,
        "summary": {key: summary([p[key] for p in peers]) for key in ("accuracy", "accuracy_unseen", "loss")},
        "consensus_error": 0.5,
        "history": [
            {"iteration": k, "accuracy": [p["accuracy"] for p in peers], "loss": [1.0] * len(peers)}
            for k in (0, 10)
        ],
        "graph": {"name": "directed-ring-4"},
        "config": config or {"weights": "pretrained"},
        "error": None,
        "seconds": 2.0 + seed,
    }
