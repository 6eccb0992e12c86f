"""Folders of runs as the commands leave them, with scores, bytes and losses that a test chooses."""

from __future__ import annotations

import numpy as np

from p2pft_flower.config import RunConfig
from p2pft_flower.facts import GraphName, KnownImages, PeerFacts, RunFacts
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.journal import Journal
from p2pft_flower.keeping.lines import Evaluation, Outcome, Round, Run, ViewChange
from p2pft_flower.report.collected import rows_of
from p2pft_flower.report.results import SCHEMA, summary, write_results
from p2pft_flower.topology import Graph

ITERATIONS = (0, 100, 200, 300)
STRATEGIES = ("fedavg", "fedprox")

LOST = {
    "number": 1,
    "iteration": 100,
    "peers": [0, 1, 3],
    "edges": [[0, 1], [1, 3], [3, 0]],
    "lost": [2],
    "joined": [],
    "why": {"2": "not heard from for 5 s (crashed)"},
    "seconds": 6.28,
}
BACK = LOST | {
    "number": 2,
    "iteration": 200,
    "peers": [0, 1, 2, 3],
    "edges": [[0, 1], [1, 2], [2, 3], [3, 0]],
    "lost": [],
    "joined": [2],
    "why": {},
    "seconds": 0.5,
}


def made_up(
    method="p2pft",
    *,
    accuracy=(0.95, 0.95, 0.95, 0.95),
    unseen=(0.94, 0.94, 0.94, 0.94),
    consensus=0.001,
    sent=4_000_000,
    views=(),
    ended=None,
    classes=None,
    names=None,
    seed=0,
    error=None,
    **settings,
):
    """Return the content of results.json.

    ``accuracy`` and ``unseen`` have a number for each peer of the run, reached in equal steps of
    :data:`ITERATIONS`; ``sent`` is in bytes and by all peers; ``ended`` are the peers that came to the end.
    """
    pooled = method == "centralized"
    n = 4 if pooled else len(accuracy)
    graph = Graph.load(f"directed-ring:{n}")
    names = names or list(graph.peer_names)
    classes = classes or [f"class {c}" for c in range(2 * n)]
    held = [classes] if pooled else [classes[2 * p : 2 * p + 2] for p in range(n)]
    ended = range(len(accuracy)) if ended is None else ended
    peers = [
        {
            "peer": p,
            "name": "all" if pooled else names[p],
            "classes": held[p],
            "images": 100 + p,
            "accuracy": accuracy[p],
            "accuracy_unseen": unseen[p],
            "loss": 1 - accuracy[p],
            "bytes_sent": sent // len(accuracy),
            "epsilon": None,
            "delta": None,
            "seconds": {"gradient": 3.0, "exchange": 1.5, "evaluation": 0.5},
            "log": f"peers/peer-{p}.jsonl",
            "tail": f"peers/peer-{p}.safetensors",
        }
        for p in ended
    ]
    total, last = len(accuracy), ITERATIONS[-1]
    history = [
        {
            "iteration": k,
            "accuracy": [a * k / last if p in ended else None for p, a in enumerate(accuracy)],
            "accuracy_unseen": [
                None if u is None or p not in ended else u * k / last for p, u in enumerate(unseen)
            ],
            "loss": [1 - a * k / last if p in ended else None for p, a in enumerate(accuracy)],
            "bytes_sent": sent * k // last,
            "consensus_error": consensus * k / last if len(ended) == len(accuracy) else None,
        }
        for k in ITERATIONS
    ]
    config = RunConfig.from_mapping({"algorithm": method, "seed": seed, **settings}).to_mapping()
    return {
        "schema": SCHEMA,
        "status": "completed" if len(peers) == total else f"completed-with-{len(peers)}-of-{total}",
        "run": "17",
        "algorithm": method,
        "seed": seed,
        "iterations": last,
        "trainable_parameters": 1000,
        "model_parameters": 9000,
        "preprocessing": None,
        "peers": peers,
        "summary": {k: summary([p[k] for p in peers]) for k in ("accuracy", "accuracy_unseen", "loss")},
        "consensus_error": consensus,
        "history": history,
        "views": [dict(view) for view in views],
        "graph": {
            "name": graph.name,
            "weights": graph.W.tolist(),
            "peer_names": names,
            "addresses": [None] * n,
            "digest": graph.digest,
            "added_edges": [],
        },
        "partition": "classes:made-up",
        "hosts": [[p] for p in range(total)],
        "config": config,
        "versions": {"p2pft-flower": "0.1.0", "torch": "2.4"},
        "resumed_from": None,
        "error": error,
        "seconds": 12.0,
    }


def write(folder, results, *, pace=0.01, apart=0.001, gone=(), validation=None):
    """Write results and journals of a run; an iteration takes ``pace`` seconds.

    At the end the peers' models are about ``apart`` times as far from each other as they have come. Peers in
    ``gone`` left a journal that ends after the first 100 iterations; they hold images of class ``lost``.
    ``validation``, if given, is (peer, iteration) ↦ a score on validation images.
    """
    write_results(folder, results)
    n = len(results["graph"]["weights"])
    graph = Graph.load(f"directed-ring:{n}")
    facts = RunFacts(
        GraphName(graph.name, graph.digest), tuple(range(n)), "iid", {"python": "3"}, pooled=False
    )
    for peer in results["peers"]:
        p = peer["peer"]
        journal = Journal(folder, p)
        if results["algorithm"] not in STRATEGIES:
            rows = rows_of(graph, [p])
            about = PeerFacts(peer["name"], tuple(peer["classes"]), KnownImages(100), rows)
            journal.write(
                Run(
                    peer=p, time=990.0, run=results["run"], n=n, iterations=results["iterations"],
                    evaluate_every=100, host=(p,), config={"algorithm": results["algorithm"]}, facts=facts,
                    about=about,
                )
            )  # fmt: skip
        for line in _lines(results, peer, pace, apart, validation):
            journal.write(line)
        journal.close()
    for p in gone:
        journal = Journal(folder, p)
        journal.write(
            Run(
                peer=p, time=990.0, run=results["run"], n=n, iterations=results["iterations"],
                evaluate_every=100, host=(p,), config={"algorithm": results["algorithm"]}, facts=facts,
                about=PeerFacts(str(p), ("lost",), KnownImages(50), rows_of(graph, [p])),
            )
        )  # fmt: skip
        for k in (0, 100):
            vector = sketch.encode(np.full(128, float(k)))
            scores = {"loss": 1.0, "accuracy": 0.3, "accuracy_unseen": 0.2, "bytes_sent": 0, "seconds": 1.0}
            journal.write(Evaluation(peer=p, time=1000 + pace * k, iteration=k, sketch=vector, **scores))
        journal.close()
    return folder


def _lines(results, peer, pace, apart, validation):
    p, lines = peer["peer"], []
    for moment in results["history"]:
        k = moment["iteration"]
        theta = np.zeros(128)
        theta[0], theta[1 + p % 100] = k, apart * k
        scores = {
            "peer": p,
            "iteration": k,
            "time": 1000 + pace * k,
            "loss": moment["loss"][p],
            "accuracy": moment["accuracy"][p],
            "accuracy_unseen": moment["accuracy_unseen"][p],
            "sketch": sketch.encode(theta),
        }
        if results["algorithm"] in STRATEGIES:
            lines.append(Round(evaluation=0.1, **scores))
        else:
            sent = moment["bytes_sent"] // len(moment["loss"])
            held = None if validation is None else validation(p, k)
            lines.append(Evaluation(bytes_sent=sent, seconds=10 + pace * k, validation=held, **scores))
    views = [view for view in results["views"] if p in view["peers"]]
    lines += [_change(p, view, 1000 + pace * view["iteration"]) for view in views]
    lines.sort(key=lambda line: line.time)
    if results["algorithm"] not in STRATEGIES:
        scores = {key: peer[key] for key in ("loss", "accuracy", "accuracy_unseen", "bytes_sent", "seconds")}
        lines.append(
            Outcome(peer=p, time=lines[-1].time, iterations=results["iterations"], parameters=1000,
                    model_parameters=9000, sketch=lines[-1].sketch, **scores)
        )  # fmt: skip
    return lines


def _change(peer, view, time):
    told = {
        "edges": tuple((j, i) for j, i in view["edges"]),
        "why": {int(p): why for p, why in view["why"].items()},
        **{key: tuple(view[key]) for key in ("peers", "lost", "joined")},
    }
    told["missed"] = {int(p): missed for p, missed in view.get("missed", {}).items()}
    return ViewChange(**{**view, **told, "peer": peer, "time": time, "presumed": {}})


CHEAP_FEDAVG, DEAR_FEDAVG = 400_000, 40_000_000
"""Bytes of FedAvg beside the 4 MB of :func:`made_up`."""


def comparison(folder, *, fedavg=DEAR_FEDAVG, **p2pft):
    """Write a folder as ``p2pft compare`` leaves it: P2P-FT, FedAvg, centralised and local."""
    write(folder / "p2pft", made_up(**p2pft))
    write(folder / "fedavg", made_up("fedavg", sent=fedavg), pace=0.02)
    write(folder / "centralized", made_up("centralized", accuracy=(0.96,), unseen=(None,), sent=0))
    write(
        folder / "local",
        made_up("local", accuracy=(0.25,) * 4, unseen=(0.0,) * 4, consensus=3.0, sent=0),
        apart=1,
    )
    return folder
