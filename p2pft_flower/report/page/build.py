"""A report of runs, put together: the questions answered first, then the sections."""

from __future__ import annotations

from collections.abc import Sequence

from p2pft_flower.report.grids import Grid
from p2pft_flower.report.page import happenings, verdicts
from p2pft_flower.report.page.agreement import agreement
from p2pft_flower.report.page.beside import AttentionFigure, attention, paper
from p2pft_flower.report.page.classes import single_classes
from p2pft_flower.report.page.costs import cost
from p2pft_flower.report.page.course import course
from p2pft_flower.report.page.document import Answer, Report, Section
from p2pft_flower.report.page.learning import learning
from p2pft_flower.report.page.material import Material
from p2pft_flower.report.page.peers import overview, peers_and_graph
from p2pft_flower.report.page.runs import PEERS, POOLED, Run
from p2pft_flower.report.tables import titled

__all__ = ["build"]

SETTINGS = (
    *("model", "weights", "head", "tune", "dataset", "partition", "shots", "validation", "problem"),
    "evaluate-on",
    *("topology", "schedule-graph", "codec", "algorithm-options", "local-epochs", "objective", "seed"),
    *(
        "learning-rate",
        "schedule",
        "momentum",
        "weight-decay",
        "batch-size",
        "epochs",
        "iterations",
        "evaluate-every",
    ),
    *("dp-clip", "dp-noise", "on-failure", "min-peers"),
)
"""Run-config keys that the page shows; results.json has all."""


def build(material: Material, figures: Sequence[AttentionFigure]) -> Report:
    """Return the report of some runs.

    Parameters
    ----------
    material : Material
        The runs, and the answers of their tails.
    figures : sequence of AttentionFigure
        Figures of attention that lie beside the runs.
    """
    main = material.main
    graph = main.results.graph
    title = f"{verdicts.listed([run.label for run in material.runs], 8)}" + (
        f" on {graph.name}" if graph else ""
    )
    config = main.results.config
    model, data, parts = config.get("model", "–"), config.get("dataset", "–"), main.results.partition or "–"
    about = f"Trained: model {model} on {data}, partition {parts}."
    if problem := config.get("problem"):
        about = f"Trained: the problem {problem}."
    sections = [
        overview(material),
        peers_and_graph(material),
        learning(material),
        single_classes(material),
        agreement(material),
        cost(material),
        course(material),
        attention(figures),
        paper(material),
        _made_with(material.runs),
    ]
    return Report(
        titled(title, [{"config": run.results.config} for run in material.runs]),
        about,
        _answers(material),
        sections,
    )


def _answers(material: Material) -> list[Answer]:
    main, runs = material.main, material.runs
    others = [run for run in material.scored if run is not main and run.kind == PEERS]
    learned, agreed = material.learned(main), material.agreed(main)
    of = f" ({main.label})"
    fedavg, pooled = verdicts.against_fedavg(main, runs), verdicts.against_pooled(main, runs)
    words = {
        "all": "Yes, every peer" + (" at the end" if main.results.status != "completed" else ""),
        "some": f"{len(learned.who)} of {len(main.finals('accuracy_unseen'))} peers did",
        "none": "No",
        "nothing unseen": "There was nothing unseen",
        "not known": "Not known",
    }
    agree = {"yes": "Yes", "no": "No", "one model": "There is one model", "not known": "Not known"}
    rest = [happenings.happened(run) for run in runs if run is not main]
    quiet = "nothing went wrong"
    trouble = [sentence for sentence in rest if quiet not in sentence]
    calm = len(rest) - len(trouble)
    if calm:
        trouble.append(
            f"Nothing went wrong in {'the other run' if calm == len(rest) == 1 else f'{calm} other runs'}."
        )
    return [
        Answer(
            "Did every peer learn the classes it never saw?",
            words[learned.verdict] + of,
            [learned.sentence, *(material.learned(run).sentence for run in others)],
            "learning",
        ),
        Answer(
            "Do the peers agree?",
            agree[agreed.verdict] + of,
            [agreed.sentence, *(material.agreed(run).sentence for run in others)],
            "agreement",
        ),
        Answer(
            "What did it cost?",
            _cost_word(fedavg) + of,
            [fedavg.sentence, *([] if main.kind == POOLED else [pooled.sentence])],
            "cost",
        ),
        Answer(
            "What happened on the way?",
            _course_word(main) + of,
            [happenings.happened(main), *trouble],
            "course",
        ),
    ]


def _cost_word(cost: verdicts.Cost) -> str:
    if cost.verdict == "not reached":
        return "It does not come to FedAvg's accuracy"
    if cost.ratio is None:
        return "There is no FedAvg to compare with"
    time = "" if cost.time is None else f" and {cost.time:.2g} × its seconds"
    whole = "" if cost.whole is None else f", {cost.whole:.2g} × the bytes to the end"
    word = {"cheaper": "Cheaper", "dearer": "Dearer"}.get(cost.verdict, "Much the same")
    return f"{word}: {cost.ratio:.2g} × FedAvg's bytes{time} to {verdicts.TARGET:.0%} of its accuracy{whole}"


def _course_word(run: Run) -> str:
    results = run.results
    lost = {p for view in results.views or () for p in view.lost}
    gone = f"{len(lost)} peer{'s' if len(lost) > 1 else ''} lost on the way" if lost else ""
    if results.status in ("failed", "stopped"):
        how = f"It {'was stopped' if results.status == 'stopped' else 'failed'}"
        return f"{how}, {gone}" if gone else how
    if gone:
        return gone
    return (
        "Nothing went wrong"
        if results.status == "completed" and not results.views
        else "All came to the end, with incidents"
    )


def _made_with(runs: Sequence[Run]) -> Section:
    """Return the section on settings and versions: those that all runs have, and those that differ."""
    told = [run for run in runs if run.results.config]

    def shown(run: Run, key: str) -> str:
        value = (
            run.results.partition
            if key == "partition" and run.results.partition
            else run.results.config.get(key)
        )
        return "–" if value is None or value == "" else str(value)

    if not told:
        return Section("settings", "Made with", ["The settings of these runs are not known."])
    same = [
        key for key in SETTINGS if len({shown(run, key) for run in told}) == 1 and shown(told[0], key) != "–"
    ]
    other = [key for key in SETTINGS if len({shown(run, key) for run in told}) > 1]
    tables = [
        Grid("Settings of all runs", ["setting", "value"], [[key, shown(told[0], key)] for key in same])
    ]
    if other:
        rows = [[key, *(shown(run, key) for run in told)] for key in other]
        tables.append(Grid("Settings that differ", ["setting", *(run.label for run in told)], rows))
    versions = {f"{name} {version}" for run in told for name, version in run.results.versions.items()}
    said = [
        f"Made with {verdicts.listed(sorted(versions), 12)}." if versions else "The versions are not known."
    ]
    private = [run.label for run in told if run.private]
    if private:
        said.append(f"With differential privacy: {verdicts.listed(private)}.")
    return Section("settings", "Made with", said, tables=tables)
