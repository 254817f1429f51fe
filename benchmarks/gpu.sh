#!/bin/sh
# On a machine with one CUDA device, in some four minutes: the GPU tests; what a step costs and what trainings reach, in
# every precision, compiled and in CUDA graphs (gpu.json); a training over NCCL; and a race of plain training against the
# tricks (race.json). Fashion-MNIST may be brought along: HEPTANE_CACHE=FOLDER, which holds fashion-mnist/*.gz.
# Usage: benchmarks/gpu.sh OUT
set -eu
OUT=${1:?usage: benchmarks/gpu.sh OUT}
PYTHON=${PYTHON:-python}
cd "$(dirname "$0")/.."
mkdir -p "$OUT"
"$PYTHON" -m pytest -m gpu -rs | tee "$OUT/tests.txt"
"$PYTHON" benchmarks/gpu.py "$OUT"
"$PYTHON" -m heptane.cli train --data fashion-mnist --model resnet --epochs 2 --workers 1 --out "$OUT/nccl" --force
"$PYTHON" -m heptane.cli race --config benchmarks/gpu-race.toml --out "$OUT/race" --force
