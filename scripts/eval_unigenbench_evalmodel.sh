#!/usr/bin/env bash
# DeepGen-RL's name for serving UniGenBench's judge: the same vLLM, on loopback. Our trainer asks services.eval, which
# goes before it: the command is printed.
#   bash scripts/eval_unigenbench_evalmodel.sh [flags of vllm serve]
# Environment: UNIGENBENCH_PORT (8000), UNIGENBENCH_MODEL, UNIGENBENCH_MODEL_NAME, DP_SIZE (all GPUs here),
# GPU_MEMORY_UTILIZATION (0.8), VLLM_EXECUTABLE (vllm).
set -euo pipefail
# shellcheck source=scripts/deepgen_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/deepgen_common.sh"

port="${UNIGENBENCH_PORT:-8000}"
served="${UNIGENBENCH_MODEL_NAME:-UniGenBench-EvalModel-qwen3vl-32b-v1}"
gpus="$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)"
vllm="${VLLM_EXECUTABLE:-vllm}"
if [[ "${DRY_RUN:-0}" != 1 ]]; then
    command -v "$vllm" >/dev/null 2>&1 ||
        die "no vLLM here: $vllm is not a program. Install vLLM in an environment of its own (docs/vllm.md) and set VLLM_EXECUTABLE."
fi
say "then, for our trainer: python -m services.eval --judge-url http://127.0.0.1:$port --judge-model $served"
replace_by "$vllm" serve "${UNIGENBENCH_MODEL:-CodeGoat24/UniGenBench-EvalModel-qwen3vl-32b-v1}" \
    --host 127.0.0.1 --port "$port" --served-model-name "$served" \
    --data-parallel-size "${DP_SIZE:-$((gpus > 0 ? gpus : 1))}" \
    --gpu-memory-utilization "${GPU_MEMORY_UTILIZATION:-0.8}" "$@"
