"""``p2pft reproduce fedtune``: FedTune's comparison of models and ways of tuning, without a server."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from p2pft_flower.cli.completion import complete_settings
from p2pft_flower.cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from p2pft_flower.cli.fedtune_runs import DISJOINT, TEXT, VALIDATION, Arm, Study, reads_texts
from p2pft_flower.cli.places import require_cache
from p2pft_flower.cli.reproducing import SEEDS, alone_in, seeds_of, warnings_once
from p2pft_flower.cli.settings import check, parse_settings
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.report.fedtune import Source, fedtune
from p2pft_flower.report.fedtune_design import METHODS, SOURCES, Design, read_shots, shots_name
from p2pft_flower.report.fedtune_figure import draw_few_images
from p2pft_flower.report.fedtune_text import fedtune_markdown, fedtune_table
from p2pft_flower.topology import Graph

if TYPE_CHECKING:
    from p2pft_flower.learning.workload import Workload

__all__ = ["reproduce_fedtune"]

VISION, LANGUAGE = SOURCES

DEFAULTS: Mapping[str, Any] = {
    "topology": "directed-ring-4",
    "iterations": 300,
    "batch-size": 32,
    "schedule": "cosine",
    "momentum": 0.9,
}
"""Settings of every run that KEY=VALUE may replace."""

QUICK: Mapping[str, Any] = {"iterations": 60, "evaluate-every": 6}

SHIPPED: Mapping[str, Any] = {"model": "glyph_vit_8", "dataset": "digits"}
"""The vision model and images that are on every machine."""

LAST = ":last-block"
VISION_TUNES = (
    *(f"{tune}{LAST}" for tune in ("bias", "bias+norm", "lora:8", "lora-fa:8", "adapter:16")),
    "head",
    "last-block",
)
QUICK_TUNES = (f"bias{LAST}", f"lora:4{LAST}", "prompt:4", "head", "last-block")
FEATURE_TUNES = ("head", "mlp:256")
SPLITS = (DISJOINT, "iid", "dirichlet:0.5", "dirichlet:0.1")
SHOTS = (0, 16, 8, 4, 2, 1)
QUICK_SPLITS, QUICK_SHOTS = SPLITS[:2], (0, 4, 1)

TEXT_KEYS = ("text-embeddings", "text-tower", "class-names", "prompts")
"""Run-config keys on texts, which only ways with a head of texts are given."""

TAKEN = frozenset(
    {
        *("model", "weights", "image-size", "crop-pct", "interpolation", "mean", "std", "device", "cache"),
        *("cache-dtype", "trunk-dtype", "dataset", "data-dir", "download", "verify", "bad-images"),
        *("pixel-range", "augment", *TEXT_KEYS, "batch-size", "topology", "iterations"),
        *("evaluate-every", "schedule", "momentum", "weight-decay", "local-epochs", "threads"),
    }
)
"""Run-config keys that may be set; the command sets the factors, and the others mean nothing here."""

OF_A_SOURCE = ("model", "weights", "dataset", *TEXT_KEYS)
"""Keys that belong to one source."""

EVALUATIONS = 20
"""Points of a run's curve, unless ``evaluate-every`` is set."""


def _complete_words(incomplete: str) -> list[str]:
    source, dot, rest = incomplete.partition(".")
    if dot and source in SOURCES:
        words = [f"{source}.{word}" for word in complete_settings(rest)]
    else:
        words = [*complete_settings(incomplete), *(f"{s}." for s in SOURCES if s.startswith(incomplete))]
    return [word for word in words if word.partition("=")[0].rpartition(".")[2] in {*TAKEN, ""}]


# Longer than 70 lines, since its parameters are the options that typer reads.
def reproduce_fedtune(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE.KEY=VALUE]... [KEY=VALUE]...",
            help="Run-config keys of a source, vision or vision-language, or of both.",
            autocompletion=_complete_words,
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"A first look: one seed, iterations={QUICK['iterations']}, fewer ways, splits and shots.",
        ),
    ] = False,
    vision_tunes: Annotated[
        str | None,
        typer.Option(
            help=f"Ways of tuning the vision model, the base way first; default {','.join(VISION_TUNES)}."
        ),
    ] = None,
    vision_language_tunes: Annotated[
        str | None,
        typer.Option(
            help="Ways of tuning the vision-language model, or on its features; text: a head that begins "
            "with texts, text+TUNE: another way with such a head, text-prompt:N: a learned prompt. Default "
            f"text (if there are any),{','.join(FEATURE_TUNES)}; of images text, {TEXT}+ the vision ways."
        ),
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option(
            help=f"Values of partition, the base split first; disjoint: each class belongs to one peer. "
            f"Default {','.join(SPLITS)}."
        ),
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option(help=f"Training images a class; default {','.join(map(shots_name, SHOTS))}."),
    ] = None,
    methods: Annotated[str, typer.Option(help="Methods, the base method first.")] = ",".join(METHODS),
    seeds: Annotated[
        str | None, typer.Option(help=f"Seeds of each cell; default {SEEDS}, with --quick 0.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for tables, figure and runs; default reproduction/fedtune, or …-quick."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare pre-trained models, ways of tuning and methods as FedTune does, and test its three findings.

    A source is a model with its images, or a file of the features that a model made (docs/features.md):
    vision.model=vit_tiny_patch16_224 vision.dataset=cifar10 vision.data-dir=/data
    vision-language.dataset=features:/data/clip.npz vision-language.text-embeddings=/data/names.npz. One
    source is enough; if none is given, it is the embedded model on scikit-learn's digits.

    A cell is one choice of a way of tuning, a method, a split (partition) and a number of training images a
    class (shots). The first value in each list makes the base cell. Each comparison varies two of the four
    and keeps the base value of the others: ways × splits and ways × shots with the base method, methods ×
    splits and methods × shots with the base way. Each way, method and split has its own learning rate, chosen
    on a fifth of the training images, which are held out; never on test images. All runs are made in this
    process; they give the same results as runs through Flower.

    Completed runs are not repeated: the same command continues an interrupted comparison.

    Exit codes: 0 every run completed; 1 a run did not complete, and its reason is printed; 2 a setting is
    wrong and nothing was started; 130 it was interrupted.
    """
    folder = (out or Path("reproduction") / f"fedtune{'-quick' if quick else ''}").expanduser().absolute()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings_once())
        try:
            given = _by_source(settings or [], quick)
            tunes = {VISION: vision_tunes, LANGUAGE: vision_language_tunes}
            design = Design(
                {name: _tunes(name, values, tunes[name], quick) for name, values in given.items()},
                _names("--splits", splits or ",".join(QUICK_SPLITS if quick else SPLITS)),
                read_shots(
                    _names("--shots", shots or ",".join(map(shots_name, QUICK_SHOTS if quick else SHOTS)))
                ),
                _methods(methods),
                tuple(seeds_of(seeds or ("0" if quick else SEEDS))),
            )
            if unused := [f"--{name}-tunes" for name, text in tunes.items() if text and name not in given]:
                raise ConfigError(f"{unused[0]}: no such source is given, as {unused[0][2:-6]}.dataset=…")
            require_writable(f"--out {folder}", folder, "choose another folder")
            arms = {name: _arm(name, values, design) for name, values in given.items()}
            stack.enter_context(alone_in(folder))
            study = Study(design, arms, folder, lambda line: typer.echo(line, err=True))
        except P2PFTError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_USAGE) from None
        try:
            for _ in study.go():
                _write(study, quick)
        except P2PFTError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_FAILED) from None
        except KeyboardInterrupt:
            typer.echo("stopped: the same command continues with the runs that are missing", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        body = _write(study, quick)
    typer.echo(json.dumps(body, indent=2) if as_json else fedtune_table(body))
    typer.echo(f"table: {folder / 'fedtune.md'}", err=as_json)
    if draw_few_images(body, folder / "fedtune.png"):
        typer.echo(f"figure: {folder / 'fedtune.png'}", err=as_json)
    if any(run.status != "completed" for run in study.runs.values()):
        raise typer.Exit(EXIT_FAILED)


def _write(study: Study, quick: bool) -> dict[str, Any]:
    """Write the comparison as far as it is there, and return it."""
    sources = [arm.source for arm in study.arms.values()]
    body = fedtune(
        study.design,
        sources,
        [*study.rates.values()],
        [*study.runs.values()],
        validation=VALIDATION,
        quick=quick,
    )
    (study.folder / "fedtune.md").write_text(fedtune_markdown(body), encoding="utf-8")
    (study.folder / "fedtune.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    return body


def _names(option: str, text: str) -> tuple[str, ...]:
    """Return the words of an option, separated by commas; a comma within ``classes:…`` separates nothing.

    Raises
    ------
    ConfigError
        When there is no word, or one is given twice.
    """
    words: list[str] = []
    for word in text.split(","):
        if words and words[-1].startswith("classes:") and word[:1].isdigit():
            words[-1] += f",{word}"
        else:
            words.append(word.strip())
    if not all(words) or len(set(words)) < len(words):
        raise ConfigError(f"{option} {text!r}: give different values, separated by commas")
    return tuple(words)


def _methods(text: str) -> tuple[str, ...]:
    names = _names("--methods", text)
    if unknown := [name for name in names if name not in METHODS]:
        raise ConfigError(f"--methods {text!r}: {unknown[0]!r} is none of {', '.join(METHODS)}")
    return names


def _by_source(words: Sequence[str], quick: bool) -> dict[str, dict[str, Any]]:
    """Return the settings of each source that is given.

    In ascending order of precedence: :data:`DEFAULTS`, ``--quick``, settings for both, settings for one.

    Raises
    ------
    ConfigError
        When a word names no source, or a key that is not to be set here.
    """
    general: list[str] = []
    special: dict[str, list[str]] = {name: [] for name in SOURCES}
    for word in words:
        key, equals, value = word.partition("=")
        source, dot, inner = key.partition(".")
        if not dot:
            general.append(word)
        elif source in special:
            special[source].append(f"{inner}{equals}{value}")
        else:
            raise ConfigError(
                f"{word!r}: there is no source {source!r}; the sources are {', '.join(SOURCES)}"
            )
    common = parse_settings(general)
    own = {name: parse_settings(some) for name, some in special.items() if some}
    if not own:
        own = {VISION: dict(SHIPPED)}
    if both := [key for key in OF_A_SOURCE if key in common]:
        raise ConfigError(f"{both[0]} = is for one source, as {VISION}.{both[0]}=… or {LANGUAGE}.{both[0]}=…")
    for key in [*common, *(key for values in own.values() for key in values)]:
        if key not in TAKEN:
            raise ConfigError(
                f"{key} is not for fedtune: it chooses learning rates itself and varies the way of tuning "
                "(--vision-tunes, --vision-language-tunes), --splits, --shots, --methods and --seeds; --out "
                f"names the folder, and of the other keys it takes {', '.join(sorted(TAKEN))}"
            )
    return {
        name: {**DEFAULTS, **(QUICK if quick else {}), **common, **own[name]}
        for name in SOURCES
        if name in own
    }


def _tunes(name: str, values: Mapping[str, Any], text: str | None, quick: bool) -> tuple[str, ...]:
    """Return a source's ways of tuning."""
    has_text = bool(values.get("text-embeddings") or values.get("text-tower"))
    if not has_text and (unread := [key for key in TEXT_KEYS if values.get(key)]):
        raise ConfigError(
            f"{name}.{unread[0]} = {values[unread[0]]!r}: it is read with {name}.text-tower=NAME alone"
        )
    if text:
        tunes = _names(f"--{name}-tunes", text)
    elif str(values.get("dataset", "")).startswith("features:"):
        tunes = (*([TEXT] if has_text else []), *FEATURE_TUNES)
    else:
        tunes = QUICK_TUNES if quick else VISION_TUNES
        if has_text:
            tunes = (TEXT, *(f"{TEXT}+{tune}" for tune in tunes if tune != "head"))
    if any(map(reads_texts, tunes)) != has_text:
        raise ConfigError(
            f"--{name}-tunes {','.join(tunes)}: the ways text, text+TUNE and text-prompt:N need "
            f"{name}.text-embeddings=/path or {name}.text-tower=NAME, which nothing else reads"
        )
    return tunes


def _arm(name: str, values: dict[str, Any], design: Design) -> Arm:
    """Return a source's arm, after a check of all that its runs need: data, model, weights, ways, splits.

    Raises
    ------
    P2PFTError
        When something cannot be used; nothing has been trained.
    """
    from p2pft_flower.learning.data.partitions import resolve_partition
    from p2pft_flower.learning.workload import Workload

    typer.echo(f"{name}: looking at the data, the model and its weights", err=True)
    if values["iterations"] < 1:
        raise ConfigError("iterations = 0: all cells have the same number of iterations; give one >= 1")
    text = {key: values.pop(key) for key in TEXT_KEYS if key in values}
    if str(values.get("dataset", "")).startswith("features:"):
        values.setdefault("model", "none")
    values.setdefault("evaluate-every", max(1, values["iterations"] // EVALUATIONS))
    graph = Graph.load(values["topology"])
    arm = Arm(Source(name, {}, "", {}, 0, 0, 0, ""), values, text)
    base = design.base(name)
    for cell in design.cells(name):
        if cell.shots == base.shots:
            for held_out in (False, True):
                config, _ = check(arm.values(cell, 1.0, design.seeds[0], held_out=held_out), here=True)
            require_cache(config.learning)
    for tune in design.tunes[name]:
        config = RunConfig.from_mapping(arm.values(base._replace(tune=tune), 1.0, design.seeds[0]))
        workload = Workload(config.learning, graph.n)
        _ = workload.tail  # loads the model: its weights fit, and it can be tuned in this way
    holdings = workload.holdings
    source = Source(
        name,
        {key: value for key, value in {**config.to_mapping(), **text}.items() if key in TAKEN},
        _weights(workload),
        _digests(workload, text),
        len(holdings.classes),
        len(holdings.dataset.train),
        len(holdings.test_positions),
        resolve_partition("auto", config.learning.dataset, graph.n, holdings.classes),
    )
    return Arm(source, values, text)


def _weights(workload: Workload) -> str:
    """Return a name for people of the weights of a workload's model."""
    chosen = workload.config.weights
    if workload.config.of_features:
        return "of the features' own model"
    if chosen == "none":
        return "RANDOM"
    if chosen == "pretrained":
        tag = (getattr(workload.model, "pretrained_cfg", None) or {}).get("tag")
        return f"pretrained ({tag})" if tag else "pretrained"
    return Path(chosen).name


def _digests(workload: Workload, text: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each file that the settings of a source name, and a digest of its samples."""
    from p2pft_flower.learning.data.data_digest import images_digest
    from p2pft_flower.learning.model.model_facts import light_digest, text_facts

    learning, data = workload.config, workload.holdings.dataset
    parts = {"train": data.train, "test": data.test}
    samples = {name: images_digest(part, np.arange(len(part)), data.classes) for name, part in parts.items()}
    found = {"dataset": light_digest(samples)}
    files = {
        "weights": learning.weights,
        **{key: text.get(key, "") for key in ("text-embeddings", "class-names")},
    }
    if text:  # also the tower and the templates, which runs with texts depend on
        settings = {key.replace("-", "_"): value for key, value in text.items()}
        found["texts"] = light_digest(text_facts(replace(learning, head="text", **settings)))
    for key, path in files.items():
        if path and path not in ("none", "pretrained"):
            with Path(path).open("rb") as file:
                found[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
