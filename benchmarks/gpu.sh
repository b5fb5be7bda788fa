#!/usr/bin/env bash
# Everything that needs a GPU: kernel tests on the device, then the benchmarks; JSON into $OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-benchmarks/results}
python3 benchmarks/gpu_kernels.py "$out/kernels_gpu.json"
