"""A check that trunk and tail answer as the model's own ``forward`` does.

Trunk and tail call a model's ``forward_features``, blocks, ``norm`` and ``forward_head`` one by one. A model
whose ``forward`` does more, or something else, would silently be trained and scored as another model.
"""

from __future__ import annotations

import torch
from torch import nn

from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.data.image_settings import image_settings
from p2pft_flower.learning.model.split import split_tuned
from p2pft_flower.learning.model.tuning import tune_model

__all__ = ["check_own_forward"]

TOLERANCE = 1e-4
"""Largest difference between two answers' numbers, as a share of the largest number.

In float32 the paths of timm's architectures differ by a few 1e-6 in this measure: they sum in another order.
"""

MOVED = 0.02
"""Standard deviation of the noise that is added to θ^0, so that parts that start at zero take part."""


def check_own_forward(name: str, model: nn.Module, tune: str, seed: int, device: str = "cpu") -> None:
    """Refuse a model whose answer to a probe differs from that of trunk and tail, at a θ near θ^0.

    The probe is one image of noise; two images for a class that is not timm's, which may mix the images of a
    batch. On path ``full`` the tail is the whole model, and nothing is compared.

    Parameters
    ----------
    name : str
        The model's name, for the message.
    model : nn.Module
        The model that :func:`~p2pft_flower.learning.model.models.create_model` built; it is not changed.
    tune : str
        The trained part: see :func:`~p2pft_flower.learning.model.tuning.tune_model`.
    seed : int
        Number that decides the draw of the parameters that ``tune`` adds.
    device : str
        The device on which model, trunk and tail run, in float32.

    Raises
    ------
    ConfigError
        When the answers differ; the message gives the difference, and how a model must be built.
    """
    tuned = tune_model(model, tune, seed)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=MOVED)
        parts = split_tuned(tuned.to(device))
        if parts.path == "full":
            return  # the tail is the whole model
        number = 1 if type(model).__module__.startswith("timm.") else 2
        images = torch.randn(number, *image_settings(model).input_size, generator=generator).to(device)
        own = tuned(images)
        ours = parts.tail(*parts.trunk(images))
    if own.shape != ours.shape:
        found = f"numbers of shape {tuple(own.shape)}, and its parts with {tuple(ours.shape)}"
    else:
        apart, largest = float((own - ours).abs().max()), float(own.abs().max())
        if apart <= TOLERANCE * max(largest, 1e-6):
            return
        found = f"numbers up to {largest:.3g}, and its parts with ones that differ by up to {apart:.3g}"
    raise ConfigError(
        f"model = {name!r}: its own forward answers a probe with {found} (tune = {tune!r}, path "
        f"{parts.path}). The parts are used, so forward must be forward_head(forward_features(images)) and "
        "nothing else: each block takes the tokens of the one before, forward_features ends with self.norm "
        "of the last one's, forward_head pools and classifies. Anything else in forward belongs into one of "
        "them; or set tune = full"
    )
