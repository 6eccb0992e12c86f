"""Make the embedded CLIP: an image tower and a text tower that learn letters and their names.

    python -m tools.embedded_weights.make_clip                 # writes the packaged folder

The letters are those of ``make_weights.py``; a letter's name is Unicode's in small letters, such as "greek
capital letter gamma", put into one of a few templates. An image is to point where its letter's text points,
among the texts of all letters (softmax of cosines times a learned scale, as in CLIP). No digit is used,
neither an image nor a name. The folder is open_clip's: ``open_clip_config.json`` and
``open_clip_model.safetensors``.
"""

from __future__ import annotations

import argparse
import json
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save
from torch import nn
from torch.nn import functional

from p2pft_flower.learning.model.embedded import MEAN, STD
from p2pft_flower.learning.model.embedded.glyph_clip import CONFIG_FILE, MODEL_CONFIG, WEIGHTS_FILE
from p2pft_flower.learning.model.tower_names import GLYPH_CLIP_FOLDER
from tools.embedded_weights.glyphs import ALPHABET, FACES, Bank, draw, load_bank
from tools.embedded_weights.make_weights import ADAM_RATE, BATCH, MUON_RATE, Muon
from tools.embedded_weights.score import unseen_bank

__all__ = ["TEMPLATES", "main", "make", "name_of", "pretrain", "zero_shot"]

STEPS = 2000
TEMPLATES = ("{}", "a {}", "the {}", "a photo of a {}.", "a drawing of the {}.")
"""The texts around a letter's name; ``{}`` is the name."""

console = Console()


def name_of(letter: str) -> str:
    """Return a letter's name: Unicode's, in small letters."""
    return unicodedata.name(letter).lower()


def _texts(template: str) -> list[str]:
    return [template.format(name_of(letter)) for letter in ALPHABET]


def _tokens(tokenizer: Any) -> torch.Tensor:
    return torch.stack([tokenizer(_texts(template)) for template in TEMPLATES])


def pretrain(bank: Bank, seed: int, steps: int, batch: int = BATCH) -> nn.Module:
    """Return open_clip's model of both towers, trained on ``steps`` batches of fresh letters."""
    torch.manual_seed(seed)
    model = open_clip.model.CLIP(**MODEL_CONFIG).train()
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])
    tokens = _tokens(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    blocks = (*model.visual.transformer.parameters(), *model.transformer.parameters())
    matrices = [p for p in blocks if p.ndim == 2]
    hidden = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in hidden]
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    muon = Muon(matrices)
    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("pre-training", total=steps, loss=math.nan)
        for step in range(steps):
            share = min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
            images, labels = draw(bank, batch, generator)
            chosen = torch.randint(len(TEMPLATES), (len(ALPHABET),), generator=generator)
            texts = model.encode_text(tokens[chosen, torch.arange(len(ALPHABET))], normalize=True)
            seen = model.encode_image(((images - MEAN) / STD).expand(-1, 3, -1, -1), normalize=True)
            logits = model.logit_scale.exp().clamp(max=100) * seen @ texts.T
            loss = functional.cross_entropy(logits, labels, label_smoothing=0.1)
            model.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in adam.param_groups:
                group["lr"] = ADAM_RATE * share
            adam.step()
            muon.step(MUON_RATE * share)
            progress.update(task, advance=1, loss=loss.item())
    trained: nn.Module = model.eval()
    return trained


def zero_shot(model: nn.Module, bank: Bank, count: int, template: str = "a photo of a {}.") -> float:
    """Return the accuracy on ``count`` fresh drawings of letters by the texts of ``template``."""
    tower: Any = model
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])
    images, labels = draw(bank, count, torch.Generator().manual_seed(1_000_003))
    with torch.inference_mode():
        texts = tower.encode_text(tokenizer(_texts(template)), normalize=True)
        seen = tower.encode_image(((images - MEAN) / STD).expand(-1, 3, -1, -1), normalize=True)
    return float(((seen @ texts.T).argmax(1) == labels).float().mean())


def make(folder: Path, seed: int, steps: int, letters: int = 4096) -> None:
    """Pre-train, and write open_clip's folder."""
    bank = load_bank(FACES)
    model = pretrain(bank, seed, steps)
    half = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    model.load_state_dict(half)  # what is scored is what is written
    seen, unseen = zero_shot(model, bank, letters), zero_shot(model, unseen_bank(), letters)
    metadata = {
        "format": "pt",
        "made_by": "python -m tools.embedded_weights.make_clip",
        "data": f"{len(ALPHABET)} letters in {len(FACES)} fonts of matplotlib, distorted, and their names",
        "alphabet": ALPHABET,
        "seed": str(seed),
        "steps": str(steps),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "zero_shot": f"{seen:.4f}",
        "zero_shot_unseen_font": f"{unseen:.4f}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    images = {"size": 8, "mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bicubic"}
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": images}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    out = folder / WEIGHTS_FILE
    out.write_bytes(save(half, metadata=metadata))
    console.print(
        f"letters {seen:.4f}, in a font never seen {unseen:.4f}; wrote {out} ({out.stat().st_size} bytes)"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (``--help`` lists it)."""
    parser = argparse.ArgumentParser(description="Make the embedded CLIP.")
    parser.add_argument("--out", type=Path, default=GLYPH_CLIP_FOLDER, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="draws the first weights and the letters")
    parser.add_argument("--quick", action="store_true", help="five steps, to see that it runs")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads come out differently from run to run
    try:
        steps, letters = (5, 256) if options.quick else (STEPS, 4096)
        make(options.out, options.seed, steps, letters)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
