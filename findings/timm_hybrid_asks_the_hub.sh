#!/usr/bin/env bash
# timm 1.0.31 (torch 2.14.1): create_model(name, pretrained=True) with the weights given as
# pretrained_cfg_overlay={"state_dict": …} reads nothing from the hub for a plain ViT, as one expects: it has all that it
# needs. For a hybrid with a ResNet stem (vit_small_resnet26d_224 and its kin) it asks the hub all the same, for the stem:
# the model's builder hands pretrained=True on to create_model of the backbone, which knows nothing of the overlay. Where
# there is no network that ends in an error after many tries, though the given weights are whole, and hold the stem.
#
# What helps: create_model(name, pretrained=False), then timm.models.load_pretrained with the same overlay.
# Seen by counting attempts to resolve or connect, all of which are refused here: ViT 0, hybrid > 0, hybrid filled by
# load_pretrained 0. Exit 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    timm==1.0.31 torch==2.14.1 torchvision==0.29.1 huggingface_hub==1.33.0
HF_HOME="$work/hub" "$work/venv/bin/python" - <<'PY'
import logging
import socket
import sys
import time

import timm
import torch
from timm.models import load_pretrained

logging.disable(logging.CRITICAL)
attempts = []


def refuse(*where, **more):
    attempts.append(where)
    raise OSError("no network")


socket.getaddrinfo = refuse
socket.socket.connect = refuse
time.sleep = lambda seconds: None  # the hub's library waits between its tries


def tries(build):
    attempts.clear()
    try:
        build()
    except Exception as error:
        print("   ", type(error).__name__)
    return len(attempts)


def overlay(name):
    return {"state_dict": timm.create_model(name).state_dict()}


def asked(name):
    given = overlay(name)
    return tries(lambda: timm.create_model(name, pretrained=True, pretrained_cfg_overlay=given))


def filled(name):
    model = timm.create_model(name)
    cfg = {**model.pretrained_cfg, **overlay(name)}
    return tries(lambda: load_pretrained(model, pretrained_cfg=cfg, num_classes=1000))


plain, hybrid = asked("vit_tiny_patch16_224"), asked("vit_small_resnet26d_224")
by_hand = filled("vit_small_resnet26d_224")
print("timm", timm.__version__, "torch", torch.__version__)
print("attempts to reach the network: ViT", plain, "hybrid", hybrid, "hybrid by load_pretrained", by_hand)
if plain or not hybrid or by_hand:
    sys.exit("this has changed")
PY
echo "as described"
