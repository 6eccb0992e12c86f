#!/usr/bin/env bash
# torchvision 0.29.1 with torch 2.14.1: torch itself leaves its compiler, torch._dynamo, until something is compiled.
# But torchvision's detection operators look at import time whether they could be compiled, and so `import torchvision`,
# also of its transforms alone, loads torch._dynamo with all that it needs. timm imports torchvision, so each short
# process that only builds or scores a model pays for a compiler that it never calls.
#
# Expected: `import torchvision.transforms` loads no torch._dynamo, as `import torch` does not. Seen: it does: 893
# modules, 42 % of the processor's time of the whole import (on two cores of an Intel Xeon; the share is printed).
# Exit 0 while torchvision loads it and torch does not, 1 when that has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
"$work/venv/bin/python" -c 'import torchvision, torch._dynamo'  # bytecode is written once
"$work/venv/bin/python" - <<'PY'
import sys
import time

begin = time.process_time()
import torch

alone = time.process_time() - begin
early, before = "torch._dynamo" in sys.modules, len(sys.modules)
begin = time.process_time()
import torch._dynamo

compiler, loaded = time.process_time() - begin, len(sys.modules) - before
begin = time.process_time()
import torchvision.transforms

rest = time.process_time() - begin
whole = alone + compiler + rest
print("torch", torch.__version__, "torchvision", torchvision.__version__)
print("import torch loads torch._dynamo:", early)
print(f"torch._dynamo: {loaded} modules, {100 * compiler / whole:.0f} % of the time of all three imports")
PY
"$work/venv/bin/python" - <<'PY'
import sys

import torch

early = "torch._dynamo" in sys.modules
import torchvision.transforms

late = "torch._dynamo" in sys.modules
print("import torchvision.transforms loads it:", late)
if early or not late:
    sys.exit("this has changed")
PY
