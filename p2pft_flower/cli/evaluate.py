"""``p2pft evaluate``: load fine-tuned tails back and score them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pft_flower.cli.bars import counted
from p2pft_flower.cli.run_names import folder_named
from p2pft_flower.errors import ConfigError, DataError, P2PFTError, printable
from p2pft_flower.keeping.predictions import predictions_name, write_predictions
from p2pft_flower.keeping.progress import EACH_PEER, scored
from p2pft_flower.learning.data.scored_data import require_scored_data
from p2pft_flower.report.class_tables import (
    class_table,
    confusion_table,
    overall_line,
    peer_of,
    print_classes,
)
from p2pft_flower.report.own_tails import is_own_tail, score_own_tail
from p2pft_flower.report.tables import RANDOM_WEIGHTS, number, samples_word
from p2pft_flower.typed import plain

if TYPE_CHECKING:
    from p2pft_flower.learning.tails import Tail

__all__ = [
    "ClassNames",
    "Prompts",
    "TextEmbeddings",
    "TextTower",
    "evaluate",
    "tail_files",
    "texts_elsewhere",
]

TextEmbeddings: TypeAlias = Annotated[
    Path | None, typer.Option(help="The run's file of text embeddings, at another place.")
]
TextTower: TypeAlias = Annotated[
    str | None, typer.Option(help="The run's text tower, by another name or at another place.")
]
ClassNames: TypeAlias = Annotated[
    Path | None, typer.Option(help="The run's file of class names, at another place.")
]
Prompts: TypeAlias = Annotated[
    Path | None, typer.Option(help="The run's file of templates, at another place.")
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
    prompts: Prompts = None,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Score θ^0, before any training; with head=text: zero-shot.")
    ] = False,
    per_class: Annotated[
        bool | None,
        typer.Option(
            "--per-class/--no-per-class",
            help="Show the table of classes of each tail; default: of up to 8 tails.",
        ),
    ] = None,
    ci: Annotated[
        bool, typer.Option("--ci", help="Add bootstrap confidence intervals over the test images.")
    ] = False,
    ci_level: Annotated[float, typer.Option(help="The level of the intervals of --ci.")] = 0.95,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Write each tail's answers, with the probability of each class, into this folder as "
            "peer-<i>.predictions.csv."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Score fine-tuned tails on the test images of all classes, and by class.

    Without --dataset they must be the images of the run, in any folder; with a folder for each peer, those of
    the tail's own peer. Tails of a problem of your own are scored by it, as in their run.

    Exit codes: 0 all were scored; 2 a file cannot be used or written.
    """
    try:
        wanted = Wanted(_level(ci_level) if ci else None, predictions)
        files = [file for path in paths for file in tail_files(folder_named(path))]
        own = [file for file in files if is_own_tail(file)]
        texts = texts_elsewhere(text_embeddings, text_tower, class_names, prompts)
        if own and (zero_shot or texts):
            given = "--zero-shot" if zero_shot else f"--{min(texts).replace('_', '-')}"
            raise ConfigError(f"{own[0]}: {given} does not apply to a tail of a problem of your own")
        if own:
            wanted.refuse_own(own[0])
            scores = _own_scores(files, own, dataset, data_dir, pixel_range)
        else:
            require_scored_data(files[0], dataset, data_dir)
            scores = _scores(files, dataset, data_dir, pixel_range, texts, wanted, untrained=zero_shot)
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(scores, indent=2))
        return
    shown = not own and (len(scores) <= EACH_PEER if per_class is None else per_class)
    _show(scores, by_class=shown)
    if not shown and not own:
        typer.echo(f"each class of the {len(scores)} tails: --per-class shows it, --json has it")


def _show(scores: list[dict[str, Any]], *, by_class: bool) -> None:
    """Print the scores as tables, with those of each class if ``by_class``."""
    title = RANDOM_WEIGHTS if any(s["weights"] == "none" for s in scores) else None
    console = Console()
    # Long facts that many share stand above their table, in a line that no column cuts.
    for (folder, data, same), rows in itertools.groupby(scores, _place):
        what = samples_word({"dataset": data})
        note = f"; these are other {what} than those of its run" if same is False else ""
        console.print(Text(printable(f"{folder} on {data}{note}")), soft_wrap=True)
        table = Table("peer", "accuracy", "balanced", "loss", what, "tail", title=title)
        tails = list(rows)
        for s in tails:
            file = Text(Path(s["tail"]).name, overflow="fold")
            table.add_row(
                Text(peer_of(s), overflow="fold"),
                number(s["accuracy"], ".4f"),
                number(s["class_scores"] and s["class_scores"]["balanced_accuracy"], ".4f"),
                number(s["loss"], ".4f"),
                number(s["images"], "d"),
                file,
            )
        console.print(table)
        for s in tails:
            if s["weights"] is not None:
                console.print(Text(printable(overall_line(s, what))))
            if s["class_scores"] and by_class:
                print_classes(console, class_table(s, what))
                console.print(confusion_table(s))


class Wanted(NamedTuple):
    """What is asked of scores beyond the scores.

    Attributes
    ----------
    level : float or None
        The level of confidence intervals; None: there are none.
    predictions : Path or None
        The folder of tables of answers; None: there are none.
    """

    level: float | None
    predictions: Path | None

    def refuse_own(self, file: Path) -> None:
        """Refuse to ask these things of a tail of a problem of the user's own.

        Raises
        ------
        ConfigError
            When one is asked for; names it and ``file``.
        """
        if self.level is not None or self.predictions is not None:
            given = "--ci" if self.level is not None else "--predictions"
            raise ConfigError(
                f"{file}: it is a tail of a problem of your own, which has no classes: {given} does not apply"
            )


def _level(value: float) -> float:
    if not 0 < value < 1:
        raise ConfigError(f"--ci-level {value:g}: must be between 0 and 1, as 0.95")
    return value


def _place(score: dict[str, Any]) -> tuple[Path, str, bool | None]:
    return Path(score["tail"]).parent, score["dataset"], score["same_images"]


def texts_elsewhere(
    embeddings: Path | None, tower: str | None, names: Path | None, prompts: Path | None
) -> dict[str, str]:
    """Return the settings on texts that replace those of a tail's run, as :func:`load_tails` takes them."""
    file = None if embeddings is None else str(embeddings.expanduser().absolute())
    given = {
        "text_embeddings": "" if file is None and tower is not None else file,  # a file would count first
        "text_tower": tower,
        "class_names": None if names is None else str(names.expanduser().absolute()),
        "prompts": None if prompts is None else str(prompts.expanduser().absolute()),
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
        stopped = sorted(file.name for file in path.glob("**/peer-*.stopped.safetensors"))
        if stopped:
            raise DataError(
                f"{path}: its peers stopped before their end; give one of their tails by its name: "
                f"{', '.join(stopped)}"
            )
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
                    "name": metadata.get("peer-name"),
                    "tail": str(file),
                    "dataset": metadata["problem"],
                    "weights": None,
                    "same_images": None,
                    "pixel_range": None,
                    "images": None,
                    "accuracy": scored(score.accuracy),
                    "loss": scored(score.loss),
                    "class_scores": None,
                    "intervals": None,
                    "predictions": None,
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
    wanted: Wanted,
    *,
    untrained: bool,
) -> list[dict[str, Any]]:
    from p2pft_flower.learning.tails import load_tails

    scores = []
    tails = load_tails(files, dataset, data_dir, pixel_range, **texts)
    places = _places(tails, wanted.predictions)
    with counted("scoring tails", len(files)) as advance:
        for tail, place in zip(tails, places, strict=True):
            same = tail.same_images
            if dataset is None:
                tail.require_same_images(
                    ": name the place of the same ones with --data-dir or --dataset, or give --dataset, also "
                    "with the same value, to score it on these"
                )
            found = tail.in_full(untrained=untrained, level=wanted.level)
            if place is not None:
                _write(place, found.predictions)
            scores.append(
                {
                    "peer": tail.metadata["peer"],
                    "name": tail.metadata.get("peer-name"),
                    "tail": str(tail.file),
                    "dataset": tail.workload.config.dataset,
                    "weights": tail.workload.config.weights,
                    "same_images": same,
                    "pixel_range": tail.workload.config.pixel_range,
                    "images": len(tail.workload.holdings.test_positions),
                    "accuracy": scored(found.score.accuracy),
                    "loss": scored(found.score.loss),
                    "class_scores": plain(found.class_scores),
                    "intervals": plain(found.intervals),
                    "predictions": None if place is None else str(place),
                }
            )
            advance(1)
    return scores


def _places(tails: Sequence[Tail], folder: Path | None) -> Sequence[Path | None]:
    """Return the place of each tail's table of answers; Nones if there is no ``folder``.

    Raises
    ------
    ConfigError
        When two tails of one peer would have the same place.
    """
    if folder is None:
        return [None] * len(tails)
    places: dict[Path, Tail] = {}
    for tail in tails:
        path = folder / predictions_name(tail.peer)
        if (other := places.setdefault(path, tail)) is not tail:
            raise ConfigError(
                f"--predictions {folder}: {other.file} and {tail.file} are both of peer {tail.peer}, and "
                f"would write {path.name}: score them in two calls, with two folders"
            )
    return list(places)


def _write(path: Path, rows: Iterable[Sequence[str]]) -> None:
    try:
        write_predictions(path, rows)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
