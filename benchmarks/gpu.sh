#!/usr/bin/env bash
# Everything that needs a GPU, in calls of less than ten minutes: `benchmarks/gpu.sh [PART ...]`.
# Parts: tests (every Triton kernel test on the GPU), kernels, backward, hydra, phi, models, tiles.
# JSON and plots go to $OUT, row by row. Needs torch, triton and pytest (tiles: also optuna and
# sqlite-utils); nothing is installed. A second call of `tiles` goes on where the first ended.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-benchmarks/results}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TRITON_INTERPRET=0 ATTNPASS_DB="$out/gpu.db"
export PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
for part in "${@:-tests}"; do
    if [ "$part" = tests ]; then
        workers=$(python3 -c 'import xdist' 2>/dev/null && echo "-n 8" || true)
        # shellcheck disable=SC2086
        python3 -m pytest -q -p no:cacheprovider $workers tests/kernels/gpu tests/benchmarks/test_gpu_compile.py
    else
        python3 benchmarks/gpu_kernels.py "$out/gpu_$part.json" "$part"
    fi
done
