"""Settings of the images that a model sees: size, crop, interpolation, mean, deviation; the origin of each.

The settings are in the model's ``pretrained_cfg``, from which timm reads them, so that training, evaluation,
augmentation, attention figures and exports all use the same settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timm.data import resolve_data_config
from torch import nn

from p2pft_flower.config import LearningConfig, channel_fault, read_channels
from p2pft_flower.errors import ConfigError

__all__ = ["ImageKeys", "ImageSettings", "image_settings", "set_image_settings"]

KEYS = {
    "input_size": "image-size",
    "crop_pct": "crop-pct",
    "interpolation": "interpolation",
    "mean": "mean",
    "std": "std",
}
"""timm's names of the settings that the run-config can override, and the run-config's keys."""

_ORIGINS = "image_origins"
"""Name of the model's attribute that holds the origins of the settings."""


@dataclass(frozen=True)
class ImageKeys:
    """The run-config's settings of the images that a model sees; if one is empty or 0, the model decides."""

    image_size: int = 0
    crop_pct: float = 0.0
    interpolation: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def of(cls, config: LearningConfig) -> ImageKeys:
        """Return the five settings of a run-config."""
        return cls(
            config.image_size,
            config.crop_pct,
            config.interpolation,
            read_channels("mean", config.mean),
            read_channels("std", config.std),
        )


@dataclass(frozen=True)
class ImageSettings:
    """The settings of the images that a model sees, in timm's terms.

    Attributes
    ----------
    input_size : tuple of int
        Channels, height and width of the tensor, in pixels.
    crop_pct : float
        The crop's share of the shorter side.
    crop_mode : str
        ``center``, ``squash`` or ``border``.
    interpolation : str
        Filter with which images are resized.
    mean, std : tuple of float
        The numbers that are subtracted from pixels of 0..1, and the numbers by which these are then divided;
        one a channel.
    origins : mapping of str to str
        The origin of each setting, in words, by the setting's name.
    """

    input_size: tuple[int, int, int]
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origins: Mapping[str, str]

    @property
    def data_config(self) -> dict[str, Any]:
        """The settings as arguments of ``timm.data.create_transform``."""
        return {
            "input_size": self.input_size,
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
        }

    @property
    def facts(self) -> dict[str, str]:
        """The settings in words, by names in words, such as ``"image size"``."""
        channels, height, width = self.input_size
        colours = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
        return {
            "image size": f"{height} × {width} pixels, {colours}",
            "crop": f"{self.crop_pct:g} ({self.crop_mode})",
            "interpolation": self.interpolation,
            "mean": _numbers(self.mean),
            "deviation": _numbers(self.std),
        }

    def describe(self) -> str:
        """Return one line with every setting and its origin."""
        sources: dict[str, list[str]] = {}
        named = {"image size": "input_size", "crop": "crop_pct", "deviation": "std"}
        for what, words in self.facts.items():
            origin = self.origins[named.get(what, what)]
            sources.setdefault(origin, []).append(f"{what} {words}")
        return "; ".join(f"{', '.join(settings)}, from {origin}" for origin, settings in sources.items())

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able data; the inverse is :meth:`from_dict`."""
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in self.data_config.items()}
        return {**lists, "from": dict(self.origins)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ImageSettings:
        """Return the settings that :meth:`to_dict` made into ``raw``.

        Raises
        ------
        ValueError, KeyError, TypeError
            When ``raw`` is something else.
        """
        return cls(
            input_size=tuple(raw["input_size"]),
            crop_pct=float(raw["crop_pct"]),
            crop_mode=str(raw["crop_mode"]),
            interpolation=str(raw["interpolation"]),
            mean=tuple(raw["mean"]),
            std=tuple(raw["std"]),
            origins=raw["from"],
        )

    def put_on(self, model: nn.Module) -> None:
        """Make these the image settings of ``model``, which must be built for their size."""
        given = dict(getattr(model, "pretrained_cfg", None) or {})
        model.pretrained_cfg = model.default_cfg = given | self.data_config  # type: ignore[assignment]
        setattr(model, _ORIGINS, dict(self.origins))


def image_settings(model: nn.Module) -> ImageSettings:
    """Return the settings of the images that a model sees, and the origin of each setting."""
    config = resolve_data_config({}, model=model)
    origins = getattr(model, _ORIGINS, None) or dict.fromkeys(config, "the model's pretrained_cfg")
    return ImageSettings(
        input_size=tuple(config["input_size"]),
        crop_pct=float(config["crop_pct"]),
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        origins=origins,
    )


def set_image_settings(name: str, model: nn.Module, keys: ImageKeys, origin: str) -> None:
    """Set a model's image settings: those of the run-config, else those of the model's ``pretrained_cfg``.

    Parameters
    ----------
    name : str
        The model's name, for messages.
    model : nn.Module
        The model, built for the image size in ``keys``; its ``pretrained_cfg`` is replaced.
    keys : ImageKeys
        The run-config's settings.
    origin : str
        The origin of the other settings, in words.

    Raises
    ------
    ConfigError
        When mean or deviation does not fit the channels, or pixels of 0..1; the message names key or
        ``pretrained_cfg``.
    """
    given = getattr(model, "pretrained_cfg", None)
    cfg: dict[str, Any] = dict(given or {})
    for key in ("mean", "std"):
        if cfg.get(key) is not None:
            cfg[key] = _own_numbers(name, key, cfg[key])
    resolved = resolve_data_config({}, pretrained_cfg=cfg, model=model)
    channels = resolved["input_size"][0]
    wanted: dict[str, Any] = {
        "crop_pct": keys.crop_pct,
        "interpolation": keys.interpolation,
        "mean": _each(name, "mean", keys.mean, channels),
        "std": _each(name, "std", keys.std, channels),
    }
    if keys.image_size:
        wanted["input_size"] = (channels, keys.image_size, keys.image_size)
    chosen = {key: value for key, value in wanted.items() if value}
    if not given:
        origin = f"timm's defaults, as {name} has no pretrained_cfg"
    origins = dict.fromkeys(("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std"), origin)
    origins |= {key: f"the run-config's {KEYS[key]}" for key in chosen}
    cfg |= chosen
    for key in ("mean", "std"):
        values = tuple(cfg.get(key) or resolved[key])
        fault = channel_fault(key, values)
        if len(values) != channels or fault:
            raise ConfigError(
                f"model = {name!r}: its {key} {values} does not fit images of {channels} "
                f"channel{'s' if channels > 1 else ''}{': they ' + fault if fault else ''}; correct {key} in "
                f"its pretrained_cfg, or set the key {key}"
            )
        cfg[key] = values
    model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]
    setattr(model, _ORIGINS, origins)


def _own_numbers(name: str, key: str, given: Any) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in given)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"model = {name!r}: the {key} {given!r} in its pretrained_cfg must be numbers, one a channel"
        ) from error


def _numbers(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{v:.6g}' for v in values)})"


def _each(name: str, key: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) not in (0, 1, channels):
        raise ConfigError(
            f"{key} = {','.join(f'{v:g}' for v in values)!r}: that is {len(values)} numbers, but model "
            f"{name!r} sees images of {channels} channel{'s' if channels > 1 else ''}; give one number for "
            "all, or one a channel"
        )
    return values * channels if len(values) == 1 else values
