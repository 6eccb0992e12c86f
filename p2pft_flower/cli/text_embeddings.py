"""``p2pft text-embeddings``: write the classes' text embeddings into a file, for sites without a tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from p2pft_flower.cli.completion import complete_settings
from p2pft_flower.cli.settings import parse_settings
from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.learning.data.dataset_names import check_dataset_name, require_data
from p2pft_flower.learning.model.class_texts import check_prompts
from p2pft_flower.learning.model.tower_names import check_tower_name, require_tower_here

__all__ = ["text_embeddings"]

KEYS = ("text-tower", "prompts", "class-names", "dataset", "data-dir", "download", "verify")
"""Run-config keys that decide the file, or where the classes' names are."""


def text_embeddings(
    out: Annotated[Path, typer.Argument(metavar="FILE.safetensors", help="The file to write.")],
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...",
            help=f"Run-config keys, as for the run: {', '.join(KEYS)}.",
            autocompletion=complete_settings,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Embed the classes' names by a text tower, once, and write them into a file.

    A site that sets text-embeddings=FILE in its --node-config needs no text tower and no open_clip. The file
    tells by which tower and of which texts it was made, so such a site takes part beside sites that have the
    tower.

    p2pft text-embeddings pets.safetensors text-tower=ViT-B-32:openai dataset=oxford-iiit-pet
    'prompts=a photo of a {}, a type of pet.'

    Exit codes: 0 written; 2 a setting is wrong, or tower or data cannot be used.
    """
    try:
        config = _config(parse_settings(settings))
        if out.suffix != ".safetensors":
            raise ConfigError(f"{out}: the file's name must end in .safetensors")
        require_writable(f"{out}", out.parent, "choose another place")
        require_tower_here(config.text_tower)
        told = _write(out.expanduser().absolute(), config)
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(
        f"{told['file']}: {told['classes']} classes, {told['numbers']} numbers each, by {told['templates']} "
        f"template{'s' if told['templates'] != 1 else ''}; the first text is {told['first']!r}"
    )


def _config(values: dict[str, object]) -> LearningConfig:
    """Return the settings, checked without reading data or tower.

    Raises
    ------
    ConfigError
        When a key is not for this command, or a value is wrong.
    """
    if other := [key for key in values if key not in KEYS]:
        raise ConfigError(f"{', '.join(other)}: text embeddings depend on {', '.join(KEYS)} alone")
    if not values.get("text-tower"):
        raise ConfigError("give text-tower, the name of a model of open_clip, such as ViT-B-32:openai")
    named = {key.replace("-", "_"): value for key, value in values.items()}
    config = LearningConfig(head="text", **named)  # type: ignore[arg-type]  # types as in the run-config
    check_tower_name(config.text_tower)
    check_prompts(config.prompts)
    check_dataset_name(config.dataset)
    require_data(config.dataset, config.data_dir, download=config.download, peers=(0,))
    return config


def _write(out: Path, config: LearningConfig) -> dict[str, object]:
    from p2pft_flower.learning.data.datasets import load_dataset
    from p2pft_flower.learning.data.sites import load_sites
    from p2pft_flower.learning.model.class_texts import class_texts
    from p2pft_flower.learning.model.text_embeddings import write_text_embeddings
    from p2pft_flower.learning.model.text_tower import load_tower

    if config.sited:
        classes = load_sites(config.dataset, (0,)).dataset.classes
    else:
        classes = load_dataset(
            config.dataset, config.data_dir, download=config.download, verify=config.verify
        ).classes
    texts = class_texts(config.class_names, config.prompts, classes)
    tower = load_tower(config.text_tower)
    rows = tower.rows(texts).numpy()
    write_text_embeddings(out, classes, rows, tower.scale, tower.digest, texts)
    return {
        "file": str(out),
        "classes": len(classes),
        "numbers": rows.shape[1],
        "templates": len(texts.templates),
        "first": texts.of(texts.templates[0])[0],
        "scale": tower.scale,
    }
