#!/usr/bin/env bash
# Runs demos on a GPU machine without network, several at once: bench/gpu_demo.sh SETUP OUT [options of bench.gpu_demo]
# SETUP is sourced to put vLLM on the path. With RLTOP_MODEL_SCRIPT set, `$RLTOP_MODEL_SCRIPT DIR` first creates a model,
# which the runs find in RLTOP_TEST_MODEL. Needs no pytest and installs nothing. Without --runs it is a smoke test: one
# demo with two engines and four steps.
set -uo pipefail
setup=$(realpath "$1") out=$(realpath "$2")
shift 2
cd "$(dirname "$0")/.."
work=$(mktemp -d)
own=$(python3 -c 'import numba, os; assert numba.njit(lambda x: x + 1)(1) == 2; print(os.path.dirname(numba.__file__))' 2> "$work/numba")
# shellcheck source=bench/gpu_path.sh
source bench/gpu_path.sh "$setup" "$work"
# SETUP may provide a stub of numba, which is enough for vLLM; the hub uses the machine's own numba.
if [ -n "$own" ]; then rm -rf "$work/site/numba"; else echo "no numba here, so the hub's loops are interpreted: $(tail -1 "$work/numba")"; fi
if [ -n "${RLTOP_MODEL_SCRIPT:-}" ]; then
    python3 "$RLTOP_MODEL_SCRIPT" "$work/model" || exit 1
    export RLTOP_TEST_MODEL=$work/model RLTOP_TEST_DEVICE=cuda
fi
python3 -c 'import torch, vllm, numba; print("vllm", vllm.__version__, "torch", torch.__version__, "numba", numba.__version__)'
python3 -m bench.gpu_demo "$out" "$@"
code=$?
rm -rf "$work"
exit $code
