"""The choice of the device of tensors, and of the trunk's precision."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

from p2pft_flower.errors import ConfigError

if TYPE_CHECKING:
    import torch  # takes seconds

__all__ = ["GPUS", "check_device", "choose_device", "choose_trunk_dtype"]

GPUS = ("nvidia*", "nvhost*", "nvmap", "nvgpu*", "kfd", "dxg")
"""Patterns of the files in /dev of NVIDIA's and AMD's GPUs on Linux; torch needs one of them for ``cuda``."""


def check_device(setting: str) -> None:
    """Refuse a device that this machine lacks, as far as that is known without torch.

    Parameters
    ----------
    setting : str
        The run-config's ``device``.

    Raises
    ------
    ConfigError
        When the device is missing; the message gives the reason.
    """
    system, why = platform.system(), ""
    if setting == "mps" and system != "Darwin":
        why = "only Apple's machines have it"
    elif setting == "cuda":
        if _built_without_gpus():
            why = "torch is installed without support of GPUs"
        elif system == "Darwin":
            why = "Apple's machines have none; there is mps"
        elif system == "Linux" and not any(next(Path("/dev").glob(name), None) for name in GPUS):
            why = "there is no GPU in /dev"
        elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            why = f"CUDA_VISIBLE_DEVICES = {os.environ['CUDA_VISIBLE_DEVICES']!r} hides all GPUs"
    if why:
        raise ConfigError(f"device = {setting!r}: torch finds none on this machine ({why}); give auto or cpu")


def _built_without_gpus() -> bool:
    """Return whether torch's file version.py says that it was built for neither CUDA nor ROCm."""
    spec = importlib.util.find_spec("torch")
    file = None if spec is None or spec.origin is None else Path(spec.origin).with_name("version.py")
    if file is None or not file.is_file():
        return False
    built_for = dict(
        re.findall(r"^(cuda|hip)\b[^=\n]*=\s*(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    )
    return set(built_for.values()) == {"None"}


def choose_device(setting: str) -> str:
    """Return ``"cpu"``, ``"cuda"`` or ``"mps"`` for the run-config's ``device``.

    Raises
    ------
    ConfigError
        When this machine has no such device.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if setting == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[setting]:
        raise ConfigError(
            f"device = {setting!r}: torch finds none on this machine; there is "
            f"{', '.join(name for name, is_there in there.items() if is_there)}"
        )
    return setting


def choose_trunk_dtype(setting: str, device: str) -> torch.dtype:
    """Return the dtype in which the trunk computes; ``auto``: bfloat16 if the hardware multiplies in it."""
    import torch

    if setting != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[setting]
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Older versions of torch do not report the CPU's abilities.
        ask = getattr(torch.cpu, "get_capabilities", None) if device == "cpu" else None
        abilities = {} if ask is None else ask()
        native = any(abilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32
