"""All keys of a run-config together: from kebab-case to dataclasses and back, with the values' types."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

from p2pft_flower.config.learning import LearningConfig
from p2pft_flower.config.learning_keys import CHOICES
from p2pft_flower.config.method import MethodConfig
from p2pft_flower.config.runtime import RuntimeConfig
from p2pft_flower.errors import ConfigError

__all__ = ["RunConfig", "config_keys"]


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run, a dataclass for each concern."""

    method: MethodConfig = field(default_factory=MethodConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RunConfig:
        """Return the settings that kebab-case keys give, as in Flower's run-config; others have defaults.

        Raises
        ------
        ConfigError
            If a key is unknown, or its value has another type or cannot be used.
        """
        known = config_keys()
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ConfigError(f"unknown run-config key {key!r}: {hint}The keys are {', '.join(known)}")
        return cls(
            method=_build(MethodConfig, values),
            learning=_build(LearningConfig, values),
            runtime=_build(RuntimeConfig, values),
        )

    def to_mapping(self) -> dict[str, Any]:
        """Return all kebab-case keys and their values; the inverse of :meth:`from_mapping`."""
        concerns = (self.method, self.learning, self.runtime)
        return {
            f.name.replace("_", "-"): getattr(concern, f.name)
            for concern in concerns
            for f in dataclasses.fields(concern)
        }


def config_keys() -> dict[str, Any]:
    """Return every run-config key with its default."""
    return RunConfig().to_mapping()


Concern = TypeVar("Concern", MethodConfig, LearningConfig, RuntimeConfig)


def _build(concern: type[Concern], values: Mapping[str, Any]) -> Concern:
    types = get_type_hints(concern)
    chosen: dict[str, Any] = {}
    for f in dataclasses.fields(concern):
        key = f.name.replace("_", "-")
        if key in values:
            value = values[key]
            if isinstance(value, bool) and str(value).lower() in CHOICES.get(f.name, ()):
                value = str(value).lower()  # a key whose values are true, false and others
            chosen[f.name] = _typed(key, value, types[f.name])
    return concern(**chosen)


def _typed(key: str, value: Any, wanted: type) -> Any:
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf  # as "1e999" is read
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        raise ConfigError(f"{key} = {value!r}: must be {names[wanted]}, not {type(value).__name__}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{key} = {value}: must be a whole number of at most 64 bits")
    return value
