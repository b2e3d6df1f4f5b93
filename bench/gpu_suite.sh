#!/usr/bin/env bash
# The engine suite on a GPU machine without network: bench/gpu_suite.sh SETUP MODEL_SCRIPT [--size tp2|pp2|dp2] [--skip PART...]
# SETUP is sourced to put vLLM on the path; MODEL_SCRIPT DIR creates a model without a tokenizer. Runs compiled on the
# default model runner, then eager on V1, and prints a table for each. Needs no pytest and installs nothing.
set -uo pipefail
setup=$(realpath "$1") model_script=$(realpath "$2") bench=${RLTOP_BENCH:-bench.gpu_suite}  # or bench.gpu_life
shift 2
cd "$(dirname "$0")/.."
work=$(mktemp -d)
# shellcheck source=bench/gpu_path.sh
source bench/gpu_path.sh "$setup" "$work"

python3 "$model_script" "$work/model" || exit 1
export RLTOP_TEST_DEVICE=cuda RLTOP_TEST_MODEL=$work/model
code=0
RLTOP_TEST_EAGER=0 timeout 270 python3 -m "$bench" "$@" || code=1
VLLM_USE_V2_MODEL_RUNNER=0 RLTOP_TEST_EAGER=1 timeout 270 python3 -m "$bench" "$@" || code=1
rm -rf "$work"
exit $code
