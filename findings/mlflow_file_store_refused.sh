#!/usr/bin/env bash
# mlflow-skinny 3.17.2: for years, MLflow without a server wrote into a folder: with file:… as tracking URI, or with
# nothing set, into ./mlruns. Code that logs a training's scores offline, and its documentation, count on that. In this
# version set_tracking_uri("file:…") still succeeds, as does `import mlflow`; the first call that needs the store raises,
# in the middle of the run that was to be logged, unless MLFLOW_ALLOW_FILE_STORE=true stands in the environment.
#
# Expected: start_run writes into the folder that was named.
# Seen: MlflowException that names MLFLOW_ALLOW_FILE_STORE; with that variable it writes as before.
# What helps: set the variable before the first call, or name a database (sqlite:///…). Exit 0 while that is so, 1 when it
# has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mlflow-skinny==3.17.2
cat >"$work/log.py" <<'PY'
import sys
from pathlib import Path

import mlflow

folder = Path(sys.argv[1])
mlflow.set_tracking_uri(folder.as_uri())
print("set_tracking_uri has succeeded")
try:
    with mlflow.start_run():
        mlflow.log_metric("accuracy", 0.5, step=1)
except mlflow.exceptions.MlflowException as error:
    print("start_run raised:", str(error).splitlines()[0][:200])
    sys.exit(0 if "MLFLOW_ALLOW_FILE_STORE" in str(error) else 3)
print("metric files:", [path.name for path in folder.rglob("metrics/*")])
sys.exit(2)
PY
cd "$work"
echo "without MLFLOW_ALLOW_FILE_STORE:"
without=0 && env -u MLFLOW_ALLOW_FILE_STORE venv/bin/python log.py "$work/without" || without=$?
echo "with MLFLOW_ALLOW_FILE_STORE=true:"
with=0 && MLFLOW_ALLOW_FILE_STORE=true venv/bin/python log.py "$work/with" || with=$?
[[ $without == 0 && $with == 2 ]] || {
    echo "this has changed ($without, $with)"
    exit 1
}
