"""``p2pft evaluate``: load fine-tuned tails back and score them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from p2pft_flower.cli.settings import read_value
from p2pft_flower.config import LearningConfig, RunConfig
from p2pft_flower.errors import DataError, P2PFTError
from p2pft_flower.report.tables import RANDOM_WEIGHTS

__all__ = ["evaluate"]


def evaluate(
    paths: Annotated[list[Path], typer.Argument(help="A run's folder, or tails (peer-<i>.safetensors).")],
    dataset: Annotated[
        str | None, typer.Option(help="Score on another dataset with the same classes.")
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Where the dataset lies on this machine.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Score fine-tuned tails on the test images of all classes.

    Exit codes: 0 all were scored; 2 a file cannot be used.
    """
    try:
        files = [file for path in paths for file in _tails(path)]
        scores = [_score(file, dataset, data_dir) for file in files]
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(scores, indent=2))
        return
    title = RANDOM_WEIGHTS if any(s["weights"] == "none" for s in scores) else None
    table = Table("peer", "accuracy", "loss", "images", "dataset", "tail", title=title)
    for s in scores:
        row = (
            s["peer"],
            f"{s['accuracy']:.4f}",
            f"{s['loss']:.4f}",
            str(s["images"]),
            s["dataset"],
            s["tail"],
        )
        table.add_row(*row)
    Console().print(table)


def _tails(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(
        [*path.glob("peer-*.safetensors"), *path.glob("peers/peer-*.safetensors")],
        key=lambda f: (len(f.name), f.name),
    )
    if not found:
        raise DataError(f"{path}: no peer-<i>.safetensors there; give a run's folder or a tail")
    return found


def _score(file: Path, dataset: str | None, data_dir: str | None) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    from p2pft_flower.learning.workload import TAIL_SCHEMA, Workload

    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: not a readable safetensors file ({error})") from error
    if metadata.get("schema") != TAIL_SCHEMA:
        raise DataError(f"{file}: schema {metadata.get('schema')!r}, this version reads {TAIL_SCHEMA!r}")
    typed: dict[str, Any] = {k: read_value(k, v) for k, v in metadata.items() if k in _LEARNING_KEYS}
    typed |= {k: v for k, v in (("dataset", dataset), ("data-dir", data_dir)) if v is not None}
    config = RunConfig.from_mapping(typed).learning
    workload = Workload(config, n=1)
    if workload.model_digest != metadata["model-digest"]:
        raise DataError(
            f"{file}: it was trained from weights with digest {metadata['model-digest'][:12]}…, here model "
            f"{config.model!r} has {workload.model_digest[:12]}…: "
            "the frozen part differs, its scores would mean nothing"
        )
    score = workload.score(workload.theta_from(tensors, str(file)))
    return {
        "peer": metadata["peer"],
        "tail": str(file),
        "dataset": config.dataset,
        "weights": config.weights,
        "images": len(workload.dataset.test),
        "accuracy": score.accuracy,
        "loss": score.loss,
    }


_LEARNING_KEYS = {name.replace("_", "-") for name in LearningConfig.__dataclass_fields__}
