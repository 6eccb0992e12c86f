"""What tests of weights share: random states of small models, written to files."""

from __future__ import annotations

import numpy as np
import timm
import torch

from tests.learning.published import (
    random_state,
)


def state_of(architecture, seed=0):
    return random_state(timm.create_model(architecture, num_classes=5), seed)


def write(file, content):
    """Write a checkpoint of torch, or of arrays an archive."""
    if isinstance(next(iter(content.values())), np.ndarray):
        with file.open("wb") as opened:
            np.savez(opened, **content)
    else:
        torch.save(content, file)
    return str(file)


def has(model, state):
    """Tell whether all but the last layer of the head is exactly the state's."""
    last = ("head.weight", "head.bias", "head.fc.", "head_dist.")
    return all(torch.equal(t, state[n]) for n, t in model.state_dict().items() if not n.startswith(last))


def training(state, **more):
    """What a training script saves: model, optimiser, epoch."""
    moments = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {"state_dict": state, "optimizer": moments, "epoch": 3, **more}


def deep(levels):
    content = {"a": torch.ones(2)}
    for _ in range(levels):
        content = {"a": content}
    return content


def changed(state, name, value):
    return state | {name: value}


def small(name):
    return lambda _: state_of(name)


ONES = torch.ones(16)
