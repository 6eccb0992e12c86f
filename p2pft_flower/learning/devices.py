"""Where tensors live and in which precision the trunk computes."""

from __future__ import annotations

import torch

from p2pft_flower.errors import ConfigError

__all__ = ["choose_device", "choose_trunk_dtype"]


def choose_device(setting: str) -> str:
    """Return ``"cpu"``, ``"cuda"`` or ``"mps"`` for the run-config's ``device``.

    Raises
    ------
    ConfigError
        When this machine has no such device.
    """
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
    """Return the dtype that the trunk computes in; ``auto``: bfloat16 where the hardware multiplies in it."""
    if setting != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[setting]
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Older versions of torch do not say what the CPU can do.
        ask = getattr(torch.cpu, "get_capabilities", None) if device == "cpu" else None
        told = {} if ask is None else ask()
        native = any(told.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32
