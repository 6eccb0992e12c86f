"""``p2pft attention``: attention maps of fine-tuned models, drawn and measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from p2pft_flower.cli.bars import counted
from p2pft_flower.cli.method_runs import POOLED, MethodRun, load_run_tails, read_runs
from p2pft_flower.cli.run_names import folder_named
from p2pft_flower.config import read_range
from p2pft_flower.errors import ConfigError, P2PFTError, printable
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.report.attention_figure import (
    Panel,
    Row,
    attention_markdown,
    attention_table,
    draw_attention,
    method_name,
)
from p2pft_flower.report.results import finite

if TYPE_CHECKING:
    from p2pft_flower.learning.tails import Tail
    from p2pft_flower.learning.workload import Workload

__all__ = ["attention"]

SCHEMA = "p2pft.attention/1"

SHOWN = 3
"""Most images of seen, and of unseen, classes that are drawn if the command line gives no number or image."""


@dataclass(frozen=True)
class _Picture:
    """An image to draw.

    ``read`` returns the picture, ``name`` is the image's label in the figure, ``label`` the position of its
    class (None if it is not known), ``group`` the name of its group of rows.
    """

    read: Callable[[], Any]
    name: str
    label: int | None
    group: str


def attention(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Runs, by folder, id or name, or a folder that p2pft compare wrote."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE.png", help="The figure; its numbers go into files beside it."
        ),
    ],
    seen: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"Test images of classes that the peer holds; default: up to {SHOWN}, none with --images.",
        ),
    ] = None,
    unseen: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"Test images of classes that it holds no image of; default: up to {SHOWN}, none with "
            "--images.",
        ),
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="An image of your own; may be repeated.")
    ] = None,
    pixel_range: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="Black and white of deep samples of --images, or auto; default: that of --peer in the run.",
        ),
    ] = None,
    peer: Annotated[int, typer.Option(min=0, help="Whose models are drawn.")] = 0,
    kind: Annotated[
        str,
        typer.Option("--map", metavar="MAP", help="mean (of the heads), rollout, head:H, or text (CLIP)."),
    ] = "mean",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Draw the attention maps of several methods over images, and measure their likeness.

    The runs must have the same model, weights, data, partition and seed. If one of them is centralized, every
    peer's maps are compared with its maps on the whole test set (with a folder for each peer, on that of all
    folders). Without it, a peer with a folder of its own is drawn on its own test images.
    FILE.md and FILE.json with the numbers go beside FILE.png.

    Exit codes: 0 the figure was drawn; 2 a run, an image or a setting cannot be used.
    """
    try:
        if pixel_range is not None:
            read_range(pixel_range)
            if not images:
                raise ConfigError("--pixel-range is about --images, and there are none: leave it out")
        _check_output(output)
        found = read_runs([*map(folder_named, runs)])
        numbers, rows = _study(found, peer, (seen, unseen), images or [], pixel_range, kind)
        methods = [method_name(run.algorithm) for run in found]
        draw_attention(rows, methods, numbers["title"], numbers["subtitle"], output)
        body = json.dumps(finite(numbers), indent=2, allow_nan=False)
        output.with_suffix(".md").write_text(attention_markdown(numbers, output.name), encoding="utf-8")
        output.with_suffix(".json").write_text(body + "\n", encoding="utf-8")
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        typer.echo(f"error: {output}: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(body if as_json else attention_table(numbers))
    typer.echo(f"figure: {output}", err=as_json)


def _check_output(output: Path) -> None:
    """Refuse a file that cannot be written, before the work begins.

    Raises
    ------
    ConfigError
        When matplotlib does not know the file's ending, or the folder is missing or cannot be written to.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if output.suffix.removeprefix(".").lower() not in kinds:
        raise ConfigError(f"-o {output}: matplotlib cannot write such a file; end it in .png")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"-o {output}: there is no folder {output.absolute().parent}")
    require_writable(f"-o {output}", output.parent, "choose another place")


def _study(
    runs: list[MethodRun],
    peer: int,
    counts: tuple[int | None, int | None],
    files: Sequence[Path],
    pixel_range: str | None,
    kind: str,
) -> tuple[dict[str, Any], list[Row]]:
    """Return the content of the JSON file, and the rows of the figure.

    Raises
    ------
    ConfigError, DataError
        When there is no such peer or map, a tail or an image cannot be used, or there is nothing to draw.
    """
    from p2pft_flower.learning.attention import check_map, describe_map
    from p2pft_flower.learning.data.lone_picture import picture_of
    from p2pft_flower.learning.data.sizes import allow

    peers = next(run for run in runs if run.algorithm != POOLED).peers
    if peer >= len(peers):
        raise ConfigError(f"--peer {peer}: the runs have the peers 0 to {len(peers) - 1}")
    measured = runs[-1].algorithm == POOLED
    tails = load_run_tails(runs, None if measured else peer)
    workload = _shared_workload(tails)
    if workload.config.of_features:
        raise ConfigError(f"dataset = {workload.config.dataset!r}: features have no image and no attention")
    holdings = workload.holdings
    if holdings.several_labels:
        raise ConfigError(
            f"dataset = {workload.config.dataset!r}: an image has several labels there, and attention is "
            "shown on images of one class"
        )
    check_map(workload.model, kind)
    labels, classes = holdings.scored_test.labels, holdings.classes
    held = [np.isin(labels, [classes.index(name) for name in p["classes"]]) for p in peers]
    window = read_range(pixel_range or workload.config.pixel_range_of(peer))
    dicom = None if pixel_range else workload.config.dicom_range
    most = allow(workload.config.max_megapixels)
    own = [
        _Picture(partial(picture_of, file, window, most, dicom), file.name, None, "own images")
        for file in files
    ]
    pictures = _pictures(workload, held[peer], counts, own, peers[peer]["name"])
    drawn = [group[peer] if len(group) > 1 else group[0] for group in tails]
    rows = _rows(workload, drawn, pictures, kind, measured)
    config = workload.config
    what = describe_map(workload.model, kind)
    random = ", RANDOM weights (no pre-training)" if config.weights == "none" else ""
    drawn_peer = f"models of peer {peers[peer]['name']} of {len(peers)}"
    legend = "; r: correlation with the centralised map" if measured else ""
    numbers: dict[str, Any] = {
        "schema": SCHEMA,
        "title": printable(f"Attention maps: {config.model}{random} on {config.dataset}"),
        "subtitle": printable(
            f"{what[0].upper()}{what[1:]}; {drawn_peer}, partition {runs[0].results['partition']}, "
            f"seed {config.seed}{legend}"
        ),
        "map": kind,
        "model": config.model,
        "weights": config.weights,
        "model_digest": workload.model_digest,
        "dataset": config.dataset,
        "partition": runs[0].results["partition"],
        "seed": config.seed,
        "runs": [_about(run) for run in runs],
        "drawn": {
            "peer": peer,
            "rows": [_drawn(p, row, runs) for p, row in zip(pictures, rows, strict=True)],
        },
        "patches": list(rows[0].panels[0].attention.shape),
    }
    if not measured:
        reason = f"none of the runs is {POOLED}, whose maps the others would be compared with"
        return {**numbers, "reason": reason, "methods": []}, rows
    return {**numbers, "reason": None, **_numbers(runs, tails, peers, held, kind)}, rows


def _shared_workload(tails: Sequence[Sequence[Tail]]) -> Workload:
    """Return the last run's workload, whose test images all tails see; a pooled run is the last."""
    return tails[-1][0].workload


def _start(workload: Workload) -> Any:
    """Return the model before any training; a text head's rows stand in it, whoever made them."""
    return workload.whole_model(workload.theta0) if workload.config.head == "text" else workload.model


def _about(run: MethodRun) -> dict[str, Any]:
    results = run.results
    return {
        "folder": str(run.folder),
        "algorithm": run.algorithm,
        "graph": results["graph"]["name"],
        "tune": results["config"]["tune"],
        "iterations": results["iterations"],
    }


def _pictures(
    workload: Workload,
    held: npt.NDArray[np.bool_],
    counts: tuple[int | None, int | None],
    own: Sequence[_Picture],
    peer: str,
) -> list[_Picture]:
    """Return the images to draw: of classes that a peer holds, of other classes, and the user's own.

    ``counts`` are the numbers of test images of the first two kinds; None stands for :data:`SHOWN` or as many
    as there are, and for 0 if there are images of the user's own. ``held`` marks the test images of classes
    that the peer holds; ``peer`` is the peer's name.

    Raises
    ------
    ConfigError
        When there are fewer test images of a kind than wanted, or there is nothing to draw.
    """
    from p2pft_flower.learning.likeness import choose_images

    test, classes = workload.holdings.scored_test, workload.holdings.classes
    pictures = []
    for option, candidates, wanted, group in (
        ("--seen", held, counts[0], f"class held by peer {peer}"),
        ("--unseen", ~held, counts[1], f"class of which peer {peer} holds no image"),
    ):
        few = 0 if own else min(SHOWN, int(candidates.sum()))
        count = few if wanted is None else wanted
        if count > candidates.sum():
            raise ConfigError(
                f"{option} {count}: the test set has {candidates.sum()} images of a {group}; ask for no more"
            )
        for position in choose_images(test.labels, candidates, count, workload.config.seed).tolist():
            label = int(test.labels[position])
            pictures.append(_Picture(partial(test.picture, position), classes[label], label, group))
    pictures += own
    if not pictures:
        why = "there are no test images" if not len(test) else "--seen and --unseen are 0"
        raise ConfigError(f"nothing to draw: {why} and there is no --images")
    return pictures


def _rows(
    workload: Workload, tails: Sequence[Tail], pictures: Sequence[_Picture], kind: str, measured: bool
) -> list[Row]:
    """Return the figure's rows; if ``measured``, maps are compared with those of the last tail."""
    from p2pft_flower.learning.attention import changed_tensors, read_maps, shown_image
    from p2pft_flower.learning.likeness import correlation

    start = _start(workload)
    changes = [changed_tensors(start, t.workload.whole_model(t.theta)) for t in tails]
    classes = workload.holdings.dataset.classes
    labels = [picture.label for picture in pictures]
    reading = read_maps(start, changes, [picture.read for picture in pictures], kind, labels=labels)
    rows = []
    for number, picture in enumerate(pictures):
        panels = []
        for m in range(len(tails)):
            answer, seen = reading.probabilities[m, number], reading.maps[m, number]
            best = int(answer.argmax())
            compared = measured and m < len(tails) - 1
            alike = float(correlation(seen[None], reading.maps[-1, number][None])[0]) if compared else None
            right = None if picture.label is None else best == picture.label
            panels.append(Panel(seen, classes[best], float(answer[best]), right, alike))
        rows.append(Row(shown_image(workload.model, picture.read()), picture.name, picture.group, panels))
    return rows


def _drawn(picture: _Picture, row: Row, runs: Sequence[MethodRun]) -> dict[str, Any]:
    answers = [
        {
            "algorithm": run.algorithm,
            "label": panel.label,
            "confidence": panel.confidence,
            "right": panel.right,
            "correlation": panel.correlation,
        }
        for run, panel in zip(runs, row.panels, strict=True)
    ]
    return {"image": picture.name, "group": picture.group, "answers": answers}


def _numbers(
    runs: Sequence[MethodRun],
    tails: Sequence[Sequence[Tail]],
    peers: Sequence[dict[str, Any]],
    held: Sequence[npt.NDArray[np.bool_]],
    kind: str,
) -> dict[str, Any]:
    """Return the likeness of every peer's maps to the centralised ones, the last, on all test images."""
    from p2pft_flower.learning.attention import changed_tensors, read_maps
    from p2pft_flower.learning.likeness import correlation, top_overlap, top_size

    workload = _shared_workload(tails)
    test = workload.holdings.scored_test
    # Before training all peers have the same maps.
    start = _start(workload)
    changes = [{}, *(changed_tensors(start, t.workload.whole_model(t.theta)) for g in tails for t in g)]
    with counted("attention on the test set", len(test)) as advance:
        reading = read_maps(
            start,
            changes,
            [partial(test.picture, position) for position in range(len(test))],
            kind,
            advance,
            test.labels.tolist(),
        )
    reference = reading.maps[-1]
    per_image = [
        (correlation(maps, reference), top_overlap(maps, reference), answer.argmax(axis=1) == test.labels)
        for maps, answer in zip(reading.maps, reading.probabilities, strict=True)
    ]
    methods, first = [], 0
    for algorithm, models in [
        ("start", 1),
        *((r.algorithm, len(g)) for r, g in zip(runs, tails, strict=True)),
    ]:
        # The maps of one model for all count for every peer, with the peer's own unseen classes.
        found = [per_image[first + (p if models > 1 else 0)] for p in range(len(peers))]
        each = [
            {"peer": peer["peer"], "name": peer["name"], **_summary([numbers], [mask])}
            for peer, numbers, mask in zip(peers, found, held, strict=True)
        ]
        methods.append({"algorithm": algorithm, "peers": each, "all": _summary(found, held)})
        first += models
    return {"test_images": len(test), "top_patches": top_size(reference[0].size), "methods": methods}


def _summary(
    found: Sequence[tuple[npt.NDArray[Any], ...]], held: Sequence[npt.NDArray[np.bool_]]
) -> dict[str, Any]:
    """Return a summary over all images, for one peer or several, seen and unseen classes apart."""
    from p2pft_flower.learning.likeness import likeness

    alike, overlap, right = (np.concatenate(parts) for parts in zip(*found, strict=True))
    mask = np.concatenate(held)
    return {name: likeness(alike, overlap, right, m) for name, m in (("seen", mask), ("unseen", ~mask))}
