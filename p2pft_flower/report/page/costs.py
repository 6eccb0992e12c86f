"""The section on bytes and seconds, beside FedAvg and centralised training."""

from __future__ import annotations

from p2pft_flower.keeping.progress import human_bytes
from p2pft_flower.report.grids import Grid
from p2pft_flower.report.page import verdicts
from p2pft_flower.report.page.charts import Axis, Band, Chart, bars, curves
from p2pft_flower.report.page.document import Section
from p2pft_flower.report.page.material import (
    MOST_ROWS,
    Material,
    band_of,
    by_peer,
    ends,
    graph_of,
    histories,
    seconds,
)
from p2pft_flower.report.page.runs import PEERS, Run, mean
from p2pft_flower.report.tables import number

__all__ = ["cost", "edge_bytes"]


def cost(material: Material) -> Section:
    """Return the section on bytes and seconds, beside FedAvg and centralised training."""
    own = [run for run in material.scored if run.kind == PEERS]
    said = [
        one.sentence
        for run in own
        for one in (verdicts.against_fedavg(run, material.runs), verdicts.against_pooled(run, material.runs))
    ] or ["No run's peers exchange with each other: there is nothing to compare."]
    axes, clock = [], []
    for run in material.scored:
        place = material.colour(run)
        moments = [m for m in run.results.history if mean(m.accuracy) is not None]
        sent = [(m.bytes_sent or 0) / 1e6 for m in moments]
        if (
            len(moments) == len(histories(run, "accuracy")[0])
            and any(sent)
            and (band := band_of(run, "accuracy", place, sent))
        ):
            axes.append(band)
        timed = [
            (run.seconds_at[m.iteration], mean(m.accuracy) or 0.0)
            for m in moments
            if m.iteration in run.seconds_at
        ]
        if timed:
            clock.append(
                Band(run.label, [t for t, _ in timed], [a for _, a in timed], colour=place, dash=place)
            )
    panels = (
        [Axis("MB sent by all peers (logarithmic)", "accuracy, all classes", axes, log_x=True, share=True)]
        if axes
        else []
    )
    if clock:
        panels.append(Axis("seconds of training", "accuracy, all classes", clock, share=True))
    charts = []
    if panels:
        words = "Higher and further left is better. " + " ".join(said)
        charts.append(curves("cost", "Accuracy against bytes and against seconds", words, panels))
    timed_runs = [run for run in material.scored if run.results.peers]
    if timed_runs:
        parts = [
            (part, [mean([p.seconds.get(part, 0.0) for p in run.results.peers]) or 0.0 for run in timed_runs])
            for part in ("gradient", "exchange", "evaluation")
        ]
        words = "; ".join(
            f"{run.label}: " + ", ".join(f"{part} {values[k]:.1f} s" for part, values in parts)
            for k, run in enumerate(timed_runs)
        )
        charts.append(
            bars(
                "seconds",
                "Seconds by activity, mean over the peers",
                words,
                [r.label for r in timed_runs],
                parts,
                "seconds",
            )
        )
    main = material.main
    if main.scored and len(main.results.peers) > 1 and main.bytes_sent:
        charts.append(_sent_by_peer(main))
    tables, notes = _cost_tables(material)
    return Section(
        "cost", "What did it cost, beside FedAvg and centralised training?", said, charts, (), tables, notes
    )


def _sent_by_peer(run: Run) -> Chart:
    peers = run.all_peers[:MOST_ROWS]
    megabytes = [p.bytes_sent / 1e6 for p in peers]
    words = f"{run.label}: {human_bytes(run.bytes_sent)} in all, " + ends(megabytes, ".2f") + " MB a peer."
    return bars(
        "sent",
        f"{run.label}: bytes sent by each peer",
        words,
        [p.name for p in peers],
        [("sent", megabytes)],
        "MB sent",
    )


def _cost_tables(material: Material) -> tuple[list[Grid], list[str]]:
    tables, notes = list[Grid](), list[str]()
    for run in material.scored:
        peers = run.all_peers
        if len(peers) > 1:
            tables.append(
                by_peer(
                    run,
                    f"{run.label}: bytes and seconds by peer",
                    ["sent", "gradient", "exchange", "evaluation"],
                    lambda k, peers=peers: [  # type: ignore[misc]
                        human_bytes(peers[k].bytes_sent),
                        *(
                            seconds(peers[k].seconds.get(part))
                            for part in ("gradient", "exchange", "evaluation")
                        ),
                    ],
                )
            )
    main = material.main
    if main.kind == PEERS and main.scored:
        edges, why = edge_bytes(main)
        if edges:
            rows = [
                [f"{main.name(j)} → {main.name(i)}", human_bytes(sent), number(w, ".3g")]
                for j, i, sent, w in edges[:MOST_ROWS]
            ]
            rest = f" (the first {MOST_ROWS} of {len(edges)})" if len(edges) > MOST_ROWS else ""
            tables.append(
                Grid(f"{main.label}: bytes along each edge{rest}", ["edge", "sent", "weight"], rows)
            )
        else:
            notes.append(f"{main.label}: the bytes along each edge are not known: {why}.")
    notes.append(
        f"Bytes and seconds are read off at the evaluation at which the mean accuracy first was "
        f"{verdicts.TARGET:.0%} "
        f"of the other run's final one; costs that differ by {verdicts.ALIKE:.0%} at most are called the "
        f"same. "
        "Seconds depend on the machine and on what else it did. Those of exchange include waiting, and "
        "are those of a peer's host; "
        "of a server's strategy, they are all time that is no client's gradient or evaluation, starts "
        "included."
    )
    return tables, notes


def edge_bytes(run: Run) -> tuple[list[tuple[int, int, int, float]], str]:
    """Return sender, receiver, bytes and weight of each edge; else an empty list and the reason.

    A peer sends the same payloads along all its edges, unless these change during the run.
    """
    graph, results = graph_of(run), run.results
    if graph is None:
        return [], "the graph is not known"
    if results.views or results.views is None:
        return [], "the view changed, and with it the edges"
    if results.graph is not None and results.graph.turns:
        return (
            [],
            "the weights change with the iteration, and a payload goes only along the edges of its iteration",
        )
    if len(results.peers) < graph.n or (results.graph is not None and results.graph.added_edges):
        return [], "peers were missing"
    sent = {p.peer: p.bytes_sent for p in results.peers}
    count = {j: sum(1 for s, _ in graph.edges if s == j) for j in sent}
    return [(j, i, sent[j] // count[j], float(graph.W[i, j])) for j, i in graph.edges], ""
