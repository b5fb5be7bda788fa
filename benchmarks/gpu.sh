#!/usr/bin/env bash
# Everything that needs a GPU, in 12 minutes: `benchmarks/gpu.sh [PART ...]`, by default all of
# tests (every Triton kernel test on the GPU), kernels, decode, backward, hydra and models. Each part
# ends after its share of the time, what says most first. Where one call has less than ten minutes:
# `gpu.sh tests kernels decode`, then `gpu.sh backward hydra models`. By name alone: phi and tiles,
# whose second call goes on where the first ended. JSON and plots go to $OUT, row by row.
# Needs torch, triton and pytest (tiles: also optuna and sqlite-utils); nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-benchmarks/results}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TRITON_INTERPRET=0 ATTNPASS_DB="$out/gpu.db"
export PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
declare -A seconds=([tests]=200 [kernels]=130 [decode]=60 [backward]=130 [hydra]=40 [models]=120)
[ $# -gt 0 ] || set -- tests kernels decode backward hydra models
for part; do
    if [ "$part" = tests ]; then
        workers=$(python3 -c 'import xdist' 2>/dev/null && echo "-n 8" || true)
        # shellcheck disable=SC2086
        timeout "${seconds[tests]}" python3 -m pytest -q -p no:cacheprovider $workers \
            tests/kernels/gpu tests/benchmarks/test_gpu_compile.py || [ $? = 124 ]
    else
        ATTNPASS_SECONDS=${seconds[$part]:-600} python3 benchmarks/gpu_kernels.py \
            "$out/gpu_$part.json" "$part"
    fi
done
