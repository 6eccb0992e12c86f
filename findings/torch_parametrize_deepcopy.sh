#!/usr/bin/env bash
# torch 2.14.1: a parametrized module (LoRA written with torch.nn.utils.parametrize, weight_norm, …) can be deep-copied,
# and so it seems natural to merge the copy for an export and to go on training the original. But the class that
# parametrize makes for one module is shared by its copies, and remove_parametrizations on a copy deletes the property
# `weight` from that class: the original, which nobody touched, has no weight any more, though its factors are all there.
#
# Expected: the original answers as before. Seen: AttributeError: 'ParametrizedLinear' object has no attribute 'weight'.
# What helps: build the module anew, load the state dict into it, and merge that one. Exit 0 while that is so, 1 when it
# has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy
"$work/venv/bin/python" - <<'PY'
import copy
import sys

import torch
from torch import nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    def __init__(self, rows, columns):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.zeros(rows, 2)), nn.Parameter(torch.randn(2, columns))

    def forward(self, weight):
        return weight + self.up @ self.down


original = nn.Linear(4, 3)
parametrize.register_parametrization(original, "weight", LowRank(3, 4))
inputs = torch.randn(5, 4)
before = original(inputs)
merged = copy.deepcopy(original)
parametrize.remove_parametrizations(merged, "weight", leave_parametrized=True)
try:
    told = "answers as before" if torch.equal(original(inputs), before) else "answers otherwise"
except AttributeError as error:
    told = f"AttributeError: {error}"
print("torch", torch.__version__)
print("the merged copy answers as before:", torch.equal(merged(inputs), before))
print("the original:", told)
if told != "AttributeError: 'ParametrizedLinear' object has no attribute 'weight'":
    sys.exit("this has changed")
PY
