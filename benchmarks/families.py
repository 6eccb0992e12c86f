"""Check that timm's models, cut into trunk and tail, have the gradients of the whole model, name by name.

Each model is built in its own size with random weights. Noise is added to them, so that what starts at zero
takes part. For each way of tuning the gradient of the tail's loss behind the trunk's outputs, in float32, is
compared with that of the whole model, parameter by parameter.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import timm
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.draws import torch_seeded
from p2pft_flower.learning.model.model_names import TIMM_MODULES
from p2pft_flower.learning.model.models import create_model, data_config
from p2pft_flower.learning.model.split import split_model
from p2pft_flower.learning.model.timm_names import timm_names
from p2pft_flower.learning.model.tuning import tune_model

NEAR = 1e-4
"""Largest relative error of a parameter's gradient with which a model passes."""

FLOOR = 1e-4
"""Gradients below this share of the largest are compared with that share: a key's bias has none but noise."""

CLASSES = 10
NOISE = 0.02

ONE_A_FAMILY = (
    *("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224"),
    *("vit_small_patch16_18x2_224", "vitamin_small_224", "vit_relpos_base_patch16_cls_224"),
    *("beit_base_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"),
    *("vit_small_patch16_rope_224", "naflexvit_base_patch16_gap", "swin_tiny_patch4_window7_224"),
    *("swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224", "hiera_tiny_224", "cait_xxs24_224"),
    *("xcit_nano_12_p16_224", "pit_ti_224", "pit_ti_distilled_224", "tiny_vit_5m_224"),
    *("maxvit_pico_rw_256", "maxxvit_rmlp_nano_rw_256", "coatnet_nano_rw_224"),
)
"""A small model of each family."""


class Found(NamedTuple):
    """What was found of one model and way of tuning; ``error`` is the largest of any parameter's gradient."""

    name: str
    tune: str
    path: str
    error: float
    seconds: float


def noisy(name: str) -> nn.Module:
    """Return the model of that name with random weights, none of which is zero."""
    model = create_model(name, "none", CLASSES, seed=0)
    with torch_seeded(1), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=NOISE)
    return model


def compare(model: nn.Module, name: str, tune: str, images: torch.Tensor) -> Found:
    """Return what is found of a model that is tuned in one way."""
    begun, labels = time.monotonic(), torch.arange(len(images)) % CLASSES
    parts, whole = split_model(model, tune), tune_model(model, tune)
    trained = {n: p for n, p in parts.tail.named_parameters() if p.requires_grad}
    with torch.no_grad():
        inputs = parts.trunk(images)
    loss = nn.functional.cross_entropy(parts.tail(*inputs), labels)
    ours = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
    torch.autograd.backward(nn.functional.cross_entropy(whole(images), labels))
    theirs = {n: g for n, p in whole.named_parameters() if (g := p.grad) is not None}
    if {n.removeprefix("model.") for n in ours} != theirs.keys():
        return Found(name, tune, parts.path, float("inf"), time.monotonic() - begun)
    least = FLOOR * max(float(g.norm()) for g in theirs.values())
    errors = [float((ours[f"model.{n}"] - g).norm()) / max(float(g.norm()), least) for n, g in theirs.items()]
    return Found(name, tune, parts.path, max(errors), time.monotonic() - begun)


def chosen_names(names: Sequence[str] | None, *, every: bool, most: float) -> Iterator[str]:
    """Yield the names to look at; of ``every`` name those whose model has at most ``most`` parameters."""
    if not every:
        yield from names or ONE_A_FAMILY
        return
    modules = timm_names().modules
    for name in timm.list_models():
        if modules.get(name) in TIMM_MODULES:
            with torch.device("meta"):
                size = sum(p.numel() for p in timm.create_model(name).parameters())
            if size <= most:
                yield name


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Names of timm; a small one a family.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every name of timm that can be cut.")] = False,
    most: Annotated[float, typer.Option(help="With --all: parameters of the largest model.")] = 5e7,
    tunes: Annotated[str, typer.Option(help="Ways of tuning.")] = "head,last-block,last-blocks:2",
    images: Annotated[int, typer.Option(min=1, help="Images of a gradient.")] = 2,
) -> None:
    """Print path and error of each name and way of tuning; exit with 1 if an error is above 1e-4."""
    logging.getLogger("p2pft_flower").setLevel(logging.ERROR)  # random weights are meant
    console = Console(width=140)
    found: list[Found] = []
    refused: list[str] = []
    for name in chosen_names(names, every=every, most=most):
        model = noisy(name)
        batch = torch.randn(
            images, *data_config(model)["input_size"], generator=torch.Generator().manual_seed(0)
        )
        for tune in tunes.split(","):
            try:
                found.append(compare(model, name, tune, batch))
            except ConfigError as error:
                refused.append(f"{name}, {tune}: {error}")
                continue
            console.print(f"{name}, {tune}: {found[-1].path}, {found[-1].error:.1e}", highlight=False)
    console.print(table_of(found))
    for line in refused:
        console.print(f"refused: {line}")
    wrong = [one for one in found if not one.error <= NEAR]
    console.print(f"{len(found)} compared, {len(refused)} refused, {len(wrong)} with an error above {NEAR:g}")
    if wrong:
        for one in wrong:
            console.print(f"wrong: {one}")
        raise typer.Exit(1)


def table_of(found: Sequence[Found]) -> Table:
    """Return a row a model: path and error of each way of tuning."""
    tunes = list(dict.fromkeys(one.tune for one in found))
    table = Table("model", *tunes, "seconds", box=box.MARKDOWN)
    for name in dict.fromkeys(one.name for one in found):
        cells = {one.tune: one for one in found if one.name == name}
        row = [f"`{cells[t].path}` {cells[t].error:.0e}" if t in cells else "refused" for t in tunes]
        table.add_row(name, *row, f"{sum(one.seconds for one in cells.values()):.1f}")
    return table


if __name__ == "__main__":
    typer.run(main)
