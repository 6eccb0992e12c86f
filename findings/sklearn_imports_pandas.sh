#!/usr/bin/env bash
# scikit-learn 1.9.1, pandas 3.1.1: `import sklearn` alone, or of any of its parts, imports pandas where it is installed,
# and scipy.stats in any case, though neither is used: to load the digits that come with it, or one metric. pandas is no
# dependency of scikit-learn, so whoever installs pandas for something else makes every process that imports scikit-learn
# start later; together they take nearly as long as `import torch`. A process for each client or worker pays it each
# time, also one that is forked, unless the import was before the fork.
#
# Expected: pandas and scipy.stats are imported when they are needed. Seen: both are there after `import sklearn`.
# Exit 0 while it does so, 1 when that has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check scikit-learn==1.9.1
look() {
    "$work/venv/bin/python" - <<'PY'
import sys
import time

begin = time.process_time()
import sklearn  # noqa: E402, F401

seconds = time.process_time() - begin
found = [name for name in ("pandas", "scipy.stats") if name in sys.modules]
print(f"{', '.join(found)} ({len(sys.modules)} modules, {seconds:.2f} s of the processor's time)")
PY
}
look >/dev/null # compiles
without=$(look)
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pandas==3.1.1
look >/dev/null
with=$(look)
echo "import sklearn, without pandas: $without"
echo "import sklearn, with pandas:    $with"
[[ $without == scipy.stats* && $with == "pandas, scipy.stats"* ]]
