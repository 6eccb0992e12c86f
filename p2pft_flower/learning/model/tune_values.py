"""The run-config's ``tune``, parsed; `tuning.py` applies it to a model."""

from __future__ import annotations

from p2pft_flower.errors import ConfigError, did_you_mean

__all__ = ["OF_FEATURES", "TUNE", "read_tune"]

TUNE = (
    "last-block",
    "last-blocks:K",
    "head",
    "full",
    "bias",
    "bias+norm",
    "lora:R",
    "adapter:R",
    "prompt:N",
    "prompt-deep:N",
)
"""The forms of ``tune`` of a model."""

OF_FEATURES = ("head", "mlp:WIDTH")
"""The forms of ``tune`` of a head on features that were made elsewhere."""

_DIGITS = 18
"""Most digits of a number in ``tune``."""


def read_tune(tune: str) -> tuple[str, int]:
    """Return the kind of tuning and the number behind the colon; 0 for a kind without a number.

    Raises
    ------
    ConfigError
        When ``tune`` has none of the forms in :data:`TUNE` or :data:`OF_FEATURES`, or a number that is 0 or
        far too large.
    """
    kind, _, argument = tune.partition(":")
    form = next((value for value in (*TUNE, *OF_FEATURES) if value.startswith(f"{kind}:")), None)
    if form is not None and argument.isdecimal():
        if len(argument) > _DIGITS:
            raise ConfigError(f"tune = {form}: a number of {len(argument)} digits is too large for any model")
        number = int(argument)
        if number == 0:
            raise ConfigError(f"tune = {form}: 0 is not a whole number >= 1")
        return kind, number
    if tune in TUNE and form is None:
        return tune, 0
    raise ConfigError(
        f"tune = {tune!r} is unknown; choose one of {', '.join(TUNE)}{did_you_mean(tune, TUNE)}"
    )
