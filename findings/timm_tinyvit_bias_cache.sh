#!/usr/bin/env bash
# timm 1.0.31: TinyViT's attention keeps, in eval mode, the position biases that it made of a table of parameters, until
# train() is called. So weights that are loaded into a model that has answered once are used but for these tables:
# load_state_dict(…) takes them, the parameters are the new ones, and the answers are those of the old tables. Whoever
# changes parameters in place between evaluations (averaging of models, swaps, exponential means) is hit alike.
#
# Expected: a model into which another's state dict was loaded answers as the other one.
# Seen: it does not, until train(); eval() have been called.
# What helps: call train(), then eval(), after parameters have changed. Exit 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check timm==1.0.31 torch==2.14.1
"$work/venv/bin/python" - <<'PY'
import sys

import timm
import torch

torch.manual_seed(0)
first, second = (timm.create_model("tiny_vit_5m_224", pretrained=False).eval() for _ in range(2))
with torch.no_grad():
    for name, parameter in second.named_parameters():
        if "attention_bias" in name:
            parameter.normal_()
    image = torch.randn(1, 3, 224, 224)
    wanted = second(image)
    first(image)  # an answer before the weights are loaded
    first.load_state_dict(second.state_dict(), strict=True)
    stale = (first(image) - wanted).abs().max().item()
    same = all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    first.train()
    first.eval()
    fresh = (first(image) - wanted).abs().max().item()
print("timm", timm.__version__)
print("all parameters equal:", same)
print(f"largest difference of the answers: {stale:.3g}; after train(); eval(): {fresh:.3g}")
if not (same and stale > 1e-3 and fresh < 1e-5):
    sys.exit("this has changed")
PY
