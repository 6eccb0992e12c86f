#!/usr/bin/env bash
# torch 2.14.1 (x86-64, with MKL): the square root is one of the five operations that IEEE 754 rounds correctly, and
# every processor has an instruction for it. So numpy.sqrt and torch.sqrt should have the same bits, as their sums,
# products and quotients do. But torch takes its square roots on the CPU from MKL's vector library, in steps that are
# allowed to be one unit in the last place off: a fifth of all float32 numbers between 0 and 1 are. CUDA's are rounded
# correctly, so a method with Adam's step has other bits on CPU and GPU, and other ones than in NumPy, though it does
# nothing that sums in another order.
#
# Expected: the correctly rounded root, which float64 gives, as NumPy has it. Seen: 0 of 100,000 wrong in NumPy,
# 19,865 in torch, each by one unit in the last place (AMD EPYC; on Intel's processors other numbers of them).
# What helps: compute it in float64 and round, or in NumPy; or compare such methods within an ulp, not bit by bit.
# Exit 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import torch

x = np.random.default_rng(0).random(100_000, dtype=np.float32)
right = np.sqrt(x.astype(np.float64)).astype(np.float32)
found = torch.sqrt(torch.from_numpy(x)).numpy()
ulps = np.abs(found.view(np.int32) - right.view(np.int32))
print("torch", torch.__version__, "NumPy", np.__version__)
print("wrong in NumPy:", int((np.sqrt(x) != right).sum()))
print("wrong in torch:", int((ulps > 0).sum()), "by at most", int(ulps.max()), "ulp")
print("quotients alike:", bool((x / right == (torch.from_numpy(x) / torch.from_numpy(right)).numpy()).all()))
if (np.sqrt(x) != right).any() or ulps.max() != 1:
    sys.exit("this has changed")
PY
