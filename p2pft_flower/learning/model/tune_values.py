"""The run-config's ``tune``, parsed; `tuning.py` applies it to a model."""

from __future__ import annotations

import re
from typing import NamedTuple

from p2pft_flower.errors import ConfigError, did_you_mean

__all__ = ["OF_FEATURES", "TUNE", "Tune", "read_tune"]

TUNE = (
    "last-block",
    "last-blocks:K",
    "head",
    "full",
    "bias",
    "bias+norm",
    "lora:R",
    "lora-fa:R",
    "adapter:R",
    "prompt:N",
    "prompt-deep:N",
    "text-prompt:N",
    "text-prompt-class:N",
)
"""The forms of ``tune`` of a model."""

OF_FEATURES = ("head", "mlp:WIDTH", "text-prompt:N", "text-prompt-class:N")
"""The forms of ``tune`` of a head on features that were made elsewhere."""

WITHIN = ("bias", "bias+norm", "lora:R", "lora-fa:R", "adapter:R")
"""The forms behind which ``:last-block`` or ``:last-blocks:K`` may follow."""

_DIGITS = 18
"""Most digits of a number in ``tune``."""

_BEHIND = re.compile(r":last-block(?:s:(?P<number>\w*))?$")


class Tune(NamedTuple):
    """A value of ``tune``, parsed.

    Attributes
    ----------
    kind : str
        The form without its number, as ``"lora"``.
    number : int
        The number behind the colon; 0 for a kind without one.
    blocks : int
        The number of last blocks in which alone the model is tuned, beside what follows them; 0: everywhere.
    """

    kind: str
    number: int
    blocks: int = 0


def read_tune(tune: str) -> Tune:
    """Return ``tune``, parsed.

    Raises
    ------
    ConfigError
        When ``tune`` has none of the forms in :data:`TUNE` or :data:`OF_FEATURES`, or a number that is 0 or
        far too large.
    """
    behind = _BEHIND.search(tune)
    if behind is not None and behind.start() > 0:
        kind, number, blocks = read_tune(tune[: behind.start()])
        if not blocks and kind in {form.partition(":")[0] for form in WITHIN}:
            given = behind["number"]
            return Tune(kind, number, 1 if given is None else _number("last-blocks:K", given, tune))
        raise _unknown(tune)
    kind, _, argument = tune.partition(":")
    form = next((value for value in (*TUNE, *OF_FEATURES) if value.startswith(f"{kind}:")), None)
    if form is not None:
        return Tune(kind, _number(form, argument, tune))
    if tune in TUNE:
        return Tune(tune, 0)
    raise _unknown(tune)


def _number(form: str, argument: str, tune: str) -> int:
    """Return the number in ``argument``, of a part of ``tune`` with this ``form``."""
    if not argument.isdecimal():
        raise _unknown(tune)
    if len(argument) > _DIGITS:
        raise ConfigError(f"tune = {form}: a number of {len(argument)} digits is too large for any model")
    if int(argument) == 0:
        raise ConfigError(f"tune = {form}: 0 is not a whole number >= 1")
    return int(argument)


def _unknown(tune: str) -> ConfigError:
    within = ", ".join(WITHIN[:-1]) + f" or {WITHIN[-1]}"
    return ConfigError(
        f"tune = {tune!r} is unknown; choose one of {', '.join(TUNE)}; :last-block or :last-blocks:K may "
        f"follow {within}{did_you_mean(tune, TUNE)}"
    )
