#!/bin/sh
# On a machine with one CUDA device: the GPU tests, then the same training in fp32, bf16, fp16 (with loss scaling) and
# compiled, each in a folder of OUT with its result.json. Fashion-MNIST may be brought along: HEPTANE_CACHE=FOLDER, which
# holds fashion-mnist/*.gz.   Usage: benchmarks/gpu.sh OUT
set -eu
OUT=${1:?usage: benchmarks/gpu.sh OUT}
PYTHON=${PYTHON:-python}
cd "$(dirname "$0")/.."
mkdir -p "$OUT"
"$PYTHON" -m pytest -m gpu -rs | tee "$OUT/tests.txt"
train() {
    name=$1
    shift
    "$PYTHON" -m heptane.cli train --data fashion-mnist --model resnet-wide --epochs 8 --seed 0 --out "$OUT/$name" --force "$@"
}
for seed in 0 1 2; do
    train "plain-$seed" --seed "$seed" --tricks none
    for dtype in bf16 fp16; do
        train "$dtype-$seed" --seed "$seed" --mixed-precision.dtype "$dtype"
    done
    train "compiled-$seed" --seed "$seed" --mixed-precision.dtype bf16 --compile
done
train workers --data-parallel.workers 1 --mixed-precision.dtype bf16
