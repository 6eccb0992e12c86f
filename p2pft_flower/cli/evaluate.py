"""``p2pft evaluate``: load fine-tuned tails back and score them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pft_flower.cli.bars import counted
from p2pft_flower.errors import ConfigError, DataError, P2PFTError, printable
from p2pft_flower.keeping.progress import scored
from p2pft_flower.learning.data.scored_data import require_scored_data
from p2pft_flower.report.own_tails import is_own_tail, score_own_tail
from p2pft_flower.report.run_list import folder_named
from p2pft_flower.report.tables import RANDOM_WEIGHTS, number, samples_word

__all__ = ["ClassNames", "TextEmbeddings", "TextTower", "evaluate", "tail_files", "texts_elsewhere"]

TextEmbeddings: TypeAlias = Annotated[
    Path | None, typer.Option(help="The run's file of text embeddings, at another place.")
]
TextTower: TypeAlias = Annotated[
    str | None, typer.Option(help="The run's text tower, by another name or at another place.")
]
ClassNames: TypeAlias = Annotated[
    Path | None, typer.Option(help="The run's file of class names, at another place.")
]


def evaluate(
    paths: Annotated[
        list[Path], typer.Argument(help="Runs, by folder, id or name, or tails (peer-<i>.safetensors).")
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Score on another dataset with the same classes, or on the same one at another path."
        ),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="The dataset's folder on this machine.")] = None,
    pixel_range: Annotated[
        str | None,
        typer.Option(
            help="Black and white of deep samples, LOW:HIGH or auto (with a folder for each peer also one a "
            "peer, separated by commas); default: each peer's own in its run."
        ),
    ] = None,
    text_embeddings: TextEmbeddings = None,
    text_tower: TextTower = None,
    class_names: ClassNames = None,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Score θ^0, before any training; with head=text: zero-shot.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Score fine-tuned tails on the test images of all classes.

    Without --dataset they must be the images of the run, in any folder. Tails of a problem of your own are
    scored by it, as in their run.

    Exit codes: 0 all were scored; 2 a file cannot be used.
    """
    try:
        files = [file for path in paths for file in tail_files(folder_named(path))]
        own = [file for file in files if is_own_tail(file)]
        texts = texts_elsewhere(text_embeddings, text_tower, class_names)
        if own and (zero_shot or texts):
            given = "--zero-shot" if zero_shot else f"--{min(texts).replace('_', '-')}"
            raise ConfigError(f"{own[0]}: {given} does not apply to a tail of a problem of your own")
        if own:
            scores = _own_scores(files, own, dataset, data_dir, pixel_range)
        else:
            require_scored_data(files[0], dataset, data_dir)
            scores = _scores(files, dataset, data_dir, pixel_range, texts, untrained=zero_shot)
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(scores, indent=2))
        return
    title = RANDOM_WEIGHTS if any(s["weights"] == "none" for s in scores) else None
    console = Console()
    # Long facts that many share stand above their table, in a line that no column cuts.
    for (folder, data, same), rows in itertools.groupby(scores, _place):
        what = samples_word({"dataset": data})
        note = f"; these are other {what} than those of its run" if same is False else ""
        console.print(Text(printable(f"{folder} on {data}{note}")), soft_wrap=True)
        table = Table("peer", "accuracy", "loss", what, "tail", title=title)
        for s in rows:
            file = Text(Path(s["tail"]).name, overflow="fold")
            table.add_row(
                s["peer"],
                number(s["accuracy"], ".4f"),
                number(s["loss"], ".4f"),
                number(s["images"], "d"),
                file,
            )
        console.print(table)


def _place(score: dict[str, Any]) -> tuple[Path, str, bool | None]:
    return Path(score["tail"]).parent, score["dataset"], score["same_images"]


def texts_elsewhere(embeddings: Path | None, tower: str | None, names: Path | None) -> dict[str, str]:
    """Return the settings on texts that replace those of a tail's run, as :func:`load_tails` takes them."""
    file = None if embeddings is None else str(embeddings.expanduser().absolute())
    given = {
        "text_embeddings": "" if file is None and tower is not None else file,  # a file would count first
        "text_tower": tower,
        "class_names": None if names is None else str(names.expanduser().absolute()),
    }
    return {key: value for key, value in given.items() if value is not None}


def tail_files(path: Path) -> list[Path]:
    """Return the tails in a run's folder, in the peers' order; if ``path`` is a file, that file alone.

    Tails of stopped peers are left out.

    Raises
    ------
    DataError
        When the folder has no tail.
    """
    if path.is_file():
        return [path]
    found = sorted(
        (
            file
            for file in [*path.glob("peer-*.safetensors"), *path.glob("peers/peer-*.safetensors")]
            if not file.name.endswith(
                ".stopped.safetensors"
            )  # a stopped peer's tail is no result: only by its own name
        ),
        key=lambda f: (len(f.name), f.name),
    )
    if not found:
        raise DataError(f"{path}: no peer-<i>.safetensors there; give a run's folder or a tail")
    return found


def _own_scores(
    files: list[Path], own: list[Path], dataset: str | None, data_dir: str | None, pixel_range: str | None
) -> list[dict[str, Any]]:
    if other := [file for file in files if file not in own]:
        raise ConfigError(
            f"{own[0]} is a tail of a problem of your own, {other[0]} is none: score them in two calls"
        )
    if dataset is not None or pixel_range is not None:
        given = "--dataset" if dataset is not None else "--pixel-range"
        raise ConfigError(
            f"{own[0]}: it is a tail of a problem of your own, which brings its data: {given} does not "
            "apply; --data-dir is handed to it"
        )
    scores = []
    with counted("scoring tails", len(files)) as advance:
        for file in files:
            metadata, score = score_own_tail(file, data_dir)
            scores.append(
                {
                    "peer": metadata["peer"],
                    "tail": str(file),
                    "dataset": metadata["problem"],
                    "weights": None,
                    "same_images": None,
                    "pixel_range": None,
                    "images": None,
                    "accuracy": scored(score.accuracy),
                    "loss": scored(score.loss),
                }
            )
            advance(1)
    return scores


def _scores(
    files: list[Path],
    dataset: str | None,
    data_dir: str | None,
    pixel_range: str | None,
    texts: dict[str, str],
    *,
    untrained: bool,
) -> list[dict[str, Any]]:
    from p2pft_flower.learning.tails import load_tails

    scores = []
    tails = load_tails(files, dataset, data_dir, pixel_range, **texts)
    with counted("scoring tails", len(files)) as advance:
        for tail in tails:
            same = tail.same_images
            if dataset is None:
                tail.require_same_images(
                    ": name the place of the same ones with --data-dir or --dataset, or give --dataset, also "
                    "with the same value, to score it on these"
                )
            score = tail.score(untrained=untrained)
            scores.append(
                {
                    "peer": tail.metadata["peer"],
                    "tail": str(tail.file),
                    "dataset": tail.workload.config.dataset,
                    "weights": tail.workload.config.weights,
                    "same_images": same,
                    "pixel_range": tail.workload.config.pixel_range,
                    "images": len(tail.workload.holdings.test_positions),
                    "accuracy": scored(score.accuracy),
                    "loss": scored(score.loss),
                }
            )
            advance(1)
    return scores
