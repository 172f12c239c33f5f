#!/usr/bin/env bash
# DeepGen-RL's name for starting UnifiedReward: vLLM with the model on a port of its own, and our gateway before it.
#   bash scripts/reward_unifiedreward.sh [flags of python -m services.unifiedreward serve]
# Environment: UNIFIEDREWARD_PORT (18087), UNIFIEDREWARD_MODEL, VLLM_PARALLEL_MODE, VLLM_DATA_PARALLEL_SIZE,
# VLLM_TENSOR_PARALLEL_SIZE (these three also as UNIFIEDREWARD_VLLM_...), VLLM_GPU_MEMORY_UTILIZATION; VLLM_EXECUTABLE
# is vLLM's program, of any environment.
set -euo pipefail
# shellcheck source=scripts/deepgen_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/deepgen_common.sh"

leave_out UNIFIEDREWARD_WORKERS "the number of processes"
for name in VLLM_PARALLEL_MODE VLLM_DATA_PARALLEL_SIZE VLLM_TENSOR_PARALLEL_SIZE; do
    special="UNIFIEDREWARD_$name"
    if [[ -n "${!special:-}" ]]; then export "$name=${!special}"; fi
done
export UNIFIEDREWARD_MODEL="${UNIFIEDREWARD_MODEL:-CodeGoat24/UnifiedReward-Think-qwen3vl-8b}"
replace_by python -m services.unifiedreward serve "$@"
