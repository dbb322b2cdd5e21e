#!/bin/bash
# All that is to be measured on a GPU, in eight minutes at most: benchmarks/gpu.sh FOLDER (or $OUT)
# Each section writes its own JSON there while it runs, has a limit of its own, and none stops the others.
# What failed, or came to no end within its seconds, is named in FOLDER/failed, and the exit status is 1.
set -u
out=${1:-${OUT:?give a folder}}
mkdir -p "$out"
rm -f "$out/failed"
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"

measure() { # SECTION SECONDS: nothing new is begun after these, and half a minute later it is ended
    timeout $(($2 + 30)) python -m benchmarks.gpu "$1" --out "$out/$1.json" --seconds "$2" ${GPU_OPTIONS:-} \
        >"$out/$1.log" 2>&1 || { echo "$1 ended with $?" >>"$out/failed"; return; }
    grep -q '"complete": true' "$out/$1.json" || echo "$1 is not complete: its seconds were too few" >>"$out/failed"
}

nvidia-smi >"$out/nvidia-smi" 2>&1
measure forward 120
measure training 40
measure growth 20
measure reading 15
measure loader 15
timeout 120 python -m pytest -q tests/cuda -k "not compiled" --junit-xml "$out/tests.xml" >"$out/tests.log" 2>&1 ||
    echo "tests ended with $?" >>"$out/failed"
[ ! -e "$out/failed" ] || { cat "$out/failed"; exit 1; }
echo "all sections ran"
