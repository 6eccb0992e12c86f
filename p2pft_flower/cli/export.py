"""``p2pft export``: fine-tuned tails as whole models that timm alone can load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pft_flower.cli.evaluate import (
    ClassNames,
    Prompts,
    TextEmbeddings,
    TextTower,
    tail_files,
    texts_elsewhere,
)
from p2pft_flower.cli.run_names import folder_named
from p2pft_flower.config import NO_MODEL
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.keeping.progress import human_bytes

__all__ = ["export"]


def export(
    paths: Annotated[
        list[Path], typer.Argument(help="Runs, by folder, id or name, or tails (peer-<i>.safetensors).")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="A file .safetensors for one tail, else a folder for all of them."),
    ] = Path("export"),
    text_embeddings: TextEmbeddings = None,
    text_tower: TextTower = None,
    class_names: ClassNames = None,
    prompts: Prompts = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Write whole models: the frozen weights with a peer's tail in them, under timm's names.

    They load with timm alone: timm.create_model(NAME, num_classes=K, checkpoint_path=FILE). Low-rank updates
    are merged into the weights. Adapters and prompts are modules that timm's model lacks, and it lacks the
    embedded models; such files load with p2pft_flower.learning.exports.load_export, which returns model and
    classes, and so do heads on features, which are exported alone. The file's metadata has the classes'
    names, and loss = bce if each output's sigmoid is a label's probability.

    Exit codes: 0 written; 2 a file cannot be used.
    """
    from p2pft_flower.learning.exports import write_export
    from p2pft_flower.learning.tails import load_tails

    try:
        files = [file for path in paths for file in tail_files(folder_named(path))]
        single = out.suffix == ".safetensors"
        if single and len(files) > 1:
            raise ConfigError(f"-o {out}: that is one file, but there are {len(files)} tails; give a folder")
        require_writable(f"--out {out}", out.parent if single else out, "choose another place")
        names = [out] if single else [out / file.name for file in files]
        if len(set(names)) < len(names):
            raise ConfigError("two of the tails have the same file name; export them to folders of their own")
        written: list[dict[str, Any]] = []
        texts = texts_elsewhere(text_embeddings, text_tower, class_names, prompts)
        for tail, target in zip(load_tails(files, **texts), names, strict=True):
            written.append({"tail": str(tail.file), **write_export(tail, target)})
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(written, indent=2))
        return
    for w in written:
        what = "a head on features" if w["model"] == NO_MODEL else w["model"]
        typer.echo(f"{w['file']}: {what}, {w['num_classes']} classes, {human_bytes(w['bytes'])}")
        if w["added"]:
            typer.echo(
                f"  {w['tune']} added {w['added']} tensors that timm's model lacks: load it with "
                "p2pft_flower.learning.exports.load_export"
            )
