"""The sections on the runs, and on their peers, graph and data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p2pft_flower.keeping.progress import human_bytes
from p2pft_flower.report.grids import Grid
from p2pft_flower.report.page import verdicts
from p2pft_flower.report.page.charts import Chart, graph_chart, heat
from p2pft_flower.report.page.document import Section
from p2pft_flower.report.page.material import MOST_ROWS, Material, ends, graph_of, seconds
from p2pft_flower.report.page.runs import POOLED, Run, mean, samples_of
from p2pft_flower.report.tables import bound, number, spans

__all__ = ["overview", "peers_and_graph"]

WEIGHTS = 12
"""The weights of a graph of up to this many peers are a table, too."""


def overview(material: Material) -> Section:
    """Return the section with a row for each run."""
    private = any(run.private for run in material.runs)
    header = [
        "run",
        "status",
        "peers",
        "iterations",
        "accuracy",
        "worst to best",
        "on unseen classes",
        "loss",
    ]
    header += ["consensus error", "sent", "training", "in all", *(["ε"] if private else [])]
    rows = []
    for run in material.runs:
        results = run.results
        if not run.scored:
            rows.append([run.label, results.status, *["–"] * (len(header) - 2)])
            continue
        spent = [bound(p.epsilon) for p in results.peers if p.delta is not None]
        rows.append(
            [
                run.label,
                results.status,
                str(len(results.peers)),
                _iterations(run),
                number(run.accuracy),
                ends(run.finals("accuracy")),
                number(mean(run.finals("accuracy_unseen"))),
                number(mean(run.finals("loss"))),
                number(results.consensus_error, ".1e"),
                human_bytes(run.bytes_sent),
                seconds(run.training_seconds),
                seconds(results.seconds),
                *([max(spent, key=len, default="–")] if private else []),
            ]
        )
    scored = [(run.accuracy, run.label) for run in material.scored if run.accuracy is not None]
    failed = [run.label for run in material.runs if not run.scored]
    said = [f"{len(material.runs)} run{'s' if len(material.runs) > 1 else ''}: "]
    if scored:
        best, worst = max(a for a, _ in scored), min(a for a, _ in scored)
        first, last = (verdicts.listed([of for a, of in scored if a == end]) for end in (best, worst))
        ends_with = "end with" if sum(a == best for a, _ in scored) > 1 else "ends with"
        lowest = f"the highest mean accuracy, {best:.3f}, and {last} with the lowest, {worst:.3f}."
        alone = f"a mean accuracy of {best:.3f}."
        said[0] += f"{first} {ends_with} {lowest if best > worst else alone}"
    else:
        said[0] += "no accuracy is known." if material.scored else "none has numbers."
    if failed:
        said.append(f"Without numbers: {verdicts.listed(failed)}.")
    tests = f"test {samples_of(material.runs)}"
    answers = f"answers to the {tests}"
    if any(run.several_labels for run in material.scored):
        answers = f"decisions on each label of the {tests} (high if labels are rare, whatever was learned)"
    notes = [
        f"Accuracy: the share of right {answers}"
        + (
            ", each peer's own"
            if any(run.results.partition == "own" for run in material.runs)
            else " of all classes"
        )
        + ", mean over the peers. Sent: payload bytes of all peers together; of a server's strategy, what "
        "its clients were sent and sent. Training: seconds from the first evaluation to the last, "
        "evaluations "
        "included; in all: with data, model and meeting, without the start of Flower.",
        *_unlike(material.scored),
        *(note.replace(str(run.folder), run.folder.name) for run in material.runs for note in run.notes),
    ]
    return Section("runs", "The runs", said, tables=[Grid("The runs", header, rows)], notes=notes)


def _unlike(runs: Sequence[Run]) -> list[str]:
    """Return a warning if runs are of other problems: their numbers do not compare."""
    others = [run.label for run in runs[1:] if not verdicts.comparable(runs[0], run)]
    if not others:
        return []
    return [
        f"{verdicts.listed(others)} and {runs[0].label} are of different data or partitions: their numbers "
        "stand beside each other, but are not compared."
    ]


def _iterations(run: Run) -> str:
    """Return how many iterations a run has done, and of how many if it ended before its last one."""
    results = run.results
    done = max((p.iterations for p in results.peers if p.iterations is not None), default=results.iterations)
    early = results.status in ("stopped", "failed") and done < results.iterations
    return f"{done} of {results.iterations}" if early else str(results.iterations)


def peers_and_graph(material: Material) -> Section:
    """Return the section on the graph with its weights, and on each peer's share of images and classes."""
    run = material.main
    graph, shares = graph_of(run), run.shares
    said, charts, tables, notes = list[str](), list[Chart](), list[Grid](), list[str]()
    if run.kind == POOLED:
        graph = None
        said.append(f"{run.label} trains one model on the {run.samples} of all peers; nothing is exchanged.")
    elif graph is None:
        said.append(f"The graph of {run.label} is not known.")
    else:
        kind = "undirected" if graph.undirected else "directed"
        balance = "are doubly stochastic" if graph.doubly_stochastic else "are not doubly stochastic"
        drawn = ", so plain averaging is drawn towards the peers that others listen to most"
        said.append(
            f"{graph.n} peers exchange along {len(graph.edges)} edges of the {kind} graph {graph.name}; its "
            f"weights {balance}{'' if graph.doubly_stochastic else drawn}."
        )
        words = f"Graph {graph.name} of {graph.n} peers, {len(graph.edges)} edges from senders to receivers."
        charts.append(graph_chart("graph", f"Graph {graph.name} and its weights", words, graph))
        if graph.n <= WEIGHTS:
            rows = [[graph.peer_names[i], *(f"{w:.3g}" for w in graph.W[i])] for i in range(graph.n)]
            title = "Weights W, which a receiver gives to each sender"
            tables.append(Grid(title, ["receiver", *graph.peer_names], rows))
    other = sorted(
        {r.results.graph.name for r in material.scored if r.results.graph}
        - {run.results.graph and run.results.graph.name}
    )
    if other:
        notes.append(f"Other runs were on other graphs: {verdicts.listed(other)}.")
    if shares and run.classes:
        if run.kind != POOLED:
            said.append(_shares(run))
        held = np.array([[name in one.classes for name in run.classes] for one in shares], dtype=np.float64)
        words = (
            f"Rows are peers, columns classes; a filled cell: it holds {run.samples} of the class. {said[-1]}"
        )
        charts.append(
            heat("held", f"Classes of which each peer holds {run.samples}", words,
                 np.where(held > 0, 0.8, np.nan),
                 ([one.name for one in shares], run.classes), ("peer", "class"), form="")
        )  # fmt: skip
    if shares:
        whole = max(1, sum(one.images for one in shares))
        rows = [
            [one.name, str(one.images), f"{one.images / whole:.1%}", spans(one.classes) or "–"]
            for one in shares[:MOST_ROWS]
        ]
        rest = f" (the first {MOST_ROWS} of {len(shares)}; --csv has all)" if len(shares) > MOST_ROWS else ""
        title = f"Each peer's share of the training data{rest}"
        tables.append(Grid(title, ["peer", run.samples, "share", "classes"], rows))
    if shares and run.unknown:
        notes.append(
            f"The {run.samples} and classes of peers {run.unknown} are not known: their journals are not "
            "here."
        )
    return Section(
        "peers",
        "Peers, graph and data",
        said or ["Nothing is known of the peers."],
        charts,
        (),
        tables,
        notes,
    )


def _shares(run: Run) -> str:
    shares, classes = run.shares, run.classes
    held = [len(one.classes) for one in shares]
    alone = sum(sum(name in one.classes for one in shares) == 1 for name in classes)
    each = f"{held[0]}" if len(set(held)) == 1 else f"{min(held)} to {max(held)}"
    images = sorted({one.images for one in shares})
    number_of = (
        f"{images[0]} {run.samples} each" if len(images) == 1 else f"{ends(images, 'd')} {run.samples}"
    )
    one_peer = {0: "no class is", 1: "1 class is"}.get(alone, f"{alone} classes are")
    return (
        f"Each peer holds {run.samples} of {each} of the {len(classes)} classes, {number_of}; {one_peer} "
        "held by one peer alone."
    )
