#!/usr/bin/env bash
# safetensors 0.8.0 (NumPy 2.4): safetensors.numpy.save_file writes the memory of an array as it lies, with the array's
# shape beside it. A transposed array, or one in Fortran order, lies column after column: what is read back has the right
# shape, dtype and sum, and its numbers at other places. safetensors.torch refuses such a tensor by name. CLIP's zero-shot
# weights are often kept as (D, C), so writing `weights.T` is natural, and zero-shot accuracy is then plausibly bad.
#
# Expected: the numbers, or an error as for torch. Seen: no error; numbers scrambled. What helps: np.ascontiguousarray.
# Exit 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 "numpy>=2,<3"
cd "$work" && "$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

weights = np.arange(6, dtype=np.float32).reshape(2, 3)
arrays = {
    "transposed": np.ascontiguousarray(weights.T).T,
    "fortran": np.asfortranarray(weights),
    "contiguous": np.ascontiguousarray(np.asfortranarray(weights)),
}
save_file(arrays, "a.safetensors")
same = {name: bool(np.array_equal(array, weights)) for name, array in load_file("a.safetensors").items()}
print("safetensors", safetensors.__version__, "numpy", np.__version__)
print("read back as written:", dict(sorted(same.items())))
if same != {"transposed": False, "fortran": False, "contiguous": True}:
    sys.exit("this has changed")
PY
