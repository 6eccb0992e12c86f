#!/usr/bin/env bash
# Runs the tests of faults again and again, and stops at the first round that fails, with what it printed.
#
#   tests/faults/repeat.sh [ROUNDS=20]
#
# Prints a line a round. Ends with 0 where all rounds passed, else with the exit code of the one that failed.
# Network namespaces and small disks need root; without, those tests are skipped.
set -uo pipefail

rounds=${1:-20}
if ! [[ $rounds =~ ^[1-9][0-9]*$ ]]; then
    echo "repeat.sh: ROUNDS = $rounds is no whole number from 1 on" >&2
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
work=$(mktemp -d) || exit
log=$work/log
export OMP_NUM_THREADS=1

for ((round = 1; round <= rounds; round++)); do
    SECONDS=0
    python -m pytest tests/faults -vv --durations=25 --basetemp="$work/t" >"$log" 2>&1
    code=$?
    if ((code)); then
        cat "$log"
        echo "round $round of $rounds: failed after $SECONDS s; what its peers left is in $work"
        exit "$code"
    fi
    echo "round $round of $rounds: $(tail -n 1 "$log" | tr -d '=')"
done
rm -rf "$work"
