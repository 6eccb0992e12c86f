"""A check of the run-config's ``augment`` by timm's own reader, without importing the rest of timm."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

from p2pft_flower.errors import ConfigError

__all__ = ["check_augment", "refusal"]


def check_augment(augment: str) -> None:
    """Refuse an augmentation that timm lacks.

    Parameters
    ----------
    augment : str
        The run-config's value.

    Raises
    ------
    ConfigError
        When timm lacks the augmentation; the message gives examples.
    """
    if augment in ("none", "basic"):
        return
    try:
        _check_sections(augment)
        _read_as_timm_does(augment)
    except (AssertionError, KeyError, ValueError) as error:  # timm's errors for unknown strings
        raise refusal(augment, error) from error


def refusal(augment: str, error: Exception) -> ConfigError:
    """Return the error that refuses ``augment`` because of timm's ``error``; it names valid values."""
    return ConfigError(
        f"augment = {augment!r}: choose none, basic, or an auto-augmentation of timm, such as "
        f"rand-m9-mstd0.5-inc1 or augmix-m3 ({error})"
    )


def _check_sections(policy: str) -> None:
    """Raise a ValueError for values that timm ignores: an empty policy, sections without a number."""
    name, *sections = policy.split("-")
    odd = [
        s
        for s in sections
        if not re.fullmatch(r"[a-z]+[0-9.]+", s) and not (name == "rand" and re.fullmatch(r"t[a-z0-9]+", s))
    ]
    if not name or odd:
        raise ValueError(f"{odd[0]!r} is no setting of it" if odd else "it is empty")


def _read_as_timm_does(policy: str) -> None:
    timms = _timms_module()
    if timms is None:
        return  # the augmentation itself will raise the error
    if policy.startswith("rand"):
        timms.rand_augment_transform(policy, {})
    elif policy.startswith("augmix"):
        timms.augment_and_mix_transform(policy, {})
    else:
        timms.auto_augment_transform(policy, {})


@cache
def _timms_module() -> ModuleType | None:
    """Return ``timm.data.auto_augment``, loaded by itself; None if it needs the rest of timm."""
    timm = importlib.util.find_spec("timm")
    if timm is None or timm.origin is None:
        return None
    file = Path(timm.origin).parent / "data" / "auto_augment.py"
    spec = importlib.util.spec_from_file_location("p2pft_flower_timm_auto_augment", file)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError):
        return None
    return module
