"""Tab completion of settings, graphs and connections, with bash's way of breaking words.

The script that ``p2pft --install-completion`` installs is typer's, which ignores two habits of bash: bash
breaks words at ``=`` and ``:`` and replaces only the text after the last of them, and it puts a space behind
a single offer. :class:`BashComplete` allows for the first habit, :func:`complete_settings` for the second.
"""

from __future__ import annotations

import os
import re

from click.shell_completion import BashComplete as ClicksBashComplete
from click.shell_completion import CompletionItem, add_completion_class, split_arg_string

from p2pft_flower.algorithms import ALGORITHMS
from p2pft_flower.algorithms.objective import OBJECTIVES
from p2pft_flower.cli.connections import connection_names
from p2pft_flower.config import CHOICES, DATA_CHANGED, TRANSPORTS, config_keys
from p2pft_flower.errors import ConfigError
from p2pft_flower.flower.strategies import strategy_names
from p2pft_flower.topology.sources import shipped

__all__ = ["BashComplete", "complete_connections", "complete_graphs", "complete_settings"]

EXAMPLES = {
    "codec": ("none", "float16", "bfloat16", "int8", "q4", "q3", "topk:0.01"),
    "schedule-graph": ("static", "one-peer-exponential", "base:1"),
    "schedule": ("constant", "cosine", "step:500:0.5"),
    "model": (
        "glyph_vit_8",
        "glyph_clip_8",
        "vit_base_patch16_224",
        "deit_base_patch16_224",
        "swin_base_patch4_window7_224",
    ),
    "weights": ("pretrained", "none"),
    "tune": (
        *("last-block", "last-blocks:2", "head", "full", "bias", "bias+norm"),
        *("lora:8", "adapter:16", "prompt:10", "prompt-deep:10", "text-prompt:4"),
    ),
    "dataset": (
        *("digits", "cifar10", "cifar100", "oxford-iiit-pet", "oxford-flowers102"),
        *("folder:/", "table:/", "features:/", "medmnist:pathmnist", "hf:"),
    ),
    "text-tower": ("glyph_clip_8", "local-dir:/", "hf-hub:", "ViT-B-32:openai"),
    "prompts": ("a photo of a {}.", "imagenet80"),
    "partition": ("auto", "classes:0-1,2-3,4-6,7-9", "iid", "dirichlet:0.5", "shards:2", "by:site", "own"),
    "dicom-window": ("auto", "40:400"),
    "augment": ("none", "basic", "rand-m9-mstd0.5-inc1"),
}
"""Values that are offered, for keys that take other values too; a test checks that the keys accept them.

These values are repeated here because the modules that define them import torch, which takes seconds.
"""

BREAKS = re.compile(r"[=:]+")
"""Characters of bash's COMP_WORDBREAKS in our words; bash makes each sequence of them a word of its own."""


class BashComplete(ClicksBashComplete):
    """Completion for words with ``=`` and ``:``, which bash takes apart."""

    name = "bash"

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the cursor and the word at the cursor, each joined again."""
        parts, at = split_arg_string(os.environ["COMP_WORDS"]), int(os.environ["COMP_CWORD"])
        words = [""] if at >= len(parts) else []  # a new, empty word is not joined to anything
        words = [*_glued(parts[1 : at + 1]), *words]
        current = words.pop() if words else ""
        # The text before bash's own last word. An option's value is offered without the option.
        own = "" if at >= len(parts) or BREAKS.fullmatch(parts[at]) else parts[at]
        kept = current.removesuffix(own)
        self._kept = kept.partition("=")[2] if current.startswith("-") else kept
        return words, current

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Return the part of an offer that bash appends to the text before its last word."""
        return item.value.removeprefix(self._kept)

    def complete(self) -> str:
        """Return the offers, one on each line, as typer's script reads them."""
        return "\n".join(self.format_completion(i) for i in self.get_completions(*self.get_completion_args()))

    @classmethod
    def register(cls) -> None:
        """Replace typer's own class for bash, which typer registers when it builds a command."""
        add_completion_class(cls)


def _glued(parts: list[str]) -> list[str]:
    words: list[str] = []
    glue = False
    for part in parts:
        breaks = BREAKS.fullmatch(part) is not None
        if words and (glue or breaks):
            words[-1] += part
        else:
            words.append(part)
        glue = breaks
    return words


def complete_settings(incomplete: str) -> list[str]:
    """Return offers for a word: run-config keys, or, after ``key=``, the key's values or its default.

    If only one key fits, it is offered with its values, as two words at least: a shell then inserts their
    common beginning, up to ``=``, and no space behind it.
    """
    name, equals, _ = incomplete.partition("=")
    keys = [key for key in config_keys() if (key == name if equals else key.startswith(name))]
    if len(keys) != 1:
        return [f"{key}=" for key in keys]
    (key,) = keys
    offers = [f"{key}={value}" for value in _values(key)]
    if not equals and len(offers) < 2:
        offers = [f"{key}=", *(offers or [f"{key}=…"])]
    return [offer for offer in offers if offer.startswith(incomplete)]


def complete_graphs(incomplete: str) -> list[str]:
    """Return offers for a graph: the shipped graphs, and an example of each generator."""
    from p2pft_flower.topology.generators import GENERATORS

    names = [*shipped(), *(generator.example for generator in GENERATORS.values())]
    return [name for name in names if name.startswith(incomplete)]


def complete_connections(incomplete: str) -> list[str]:
    """Return offers for a connection: those of Flower's config.toml; none if the file cannot be read."""
    try:
        names = connection_names()
    except ConfigError:  # running the command reports the error; a message here would break the typed line
        return []
    return [name for name in names if name.startswith(incomplete)]


def _values(key: str) -> list[str]:
    default = config_keys()[key]
    if key == "algorithm":
        return [*ALGORITHMS, *strategy_names()]
    if key == "topology":
        return complete_graphs("")
    choices = {**EXAMPLES, **{k.replace("_", "-"): v for k, v in CHOICES.items()}}
    choices |= {"data-changed": DATA_CHANGED, "transport": TRANSPORTS, "objective": OBJECTIVES}
    if isinstance(default, bool):
        return ["true", "false"]
    return list(choices.get(key, [str(default)] if default != "" else []))
