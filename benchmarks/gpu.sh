#!/usr/bin/env bash
# Everything that needs a GPU, in calls of less than ten minutes: `benchmarks/gpu.sh [PART ...]`.
# Parts: tests (every Triton kernel test on the GPU), kernels, backward, hydra, phi, models, tiles.
# JSON and plots go to $OUT. Needs torch, triton, pytest, optuna, sqlite-utils; no installation.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-benchmarks/results}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TRITON_INTERPRET=0 ATTNPASS_DB="$out/gpu.db"
for part in "${@:-tests}"; do
    if [ "$part" = tests ]; then
        python3 -m pytest -q -p no:cacheprovider tests/test_triton.py tests/test_triton_compile.py
    else
        python3 benchmarks/gpu_kernels.py "$out/gpu_$part.json" "$part"
    fi
done
