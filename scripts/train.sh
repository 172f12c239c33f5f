#!/usr/bin/env bash
# DeepGen-RL's name for training: makes a recipe of its variables, with the flags its script passes on, and trains with it.
#   bash scripts/train.sh [key=value ...]
# Environment: DATASET_CONFIG, EVAL_DATASET_CONFIG, SFTAUX_DATASET_CONFIG, MODEL_CONFIG, CHECKPOINT, OUTPUT_DIR (there with
# a time stamp, here the same each time, so that a second start goes on), NGPUS (all), NNODES, NODE_RANK, MASTER_ADDR,
# MASTER_PORT, NODE_IP_LIST, INDEX, CHIEF_IP, and what docs/migration_deepgen.md lists.
set -euo pipefail
# shellcheck source=scripts/deepgen_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/deepgen_common.sh"

export OUTPUT_DIR="${OUTPUT_DIR:-$PWD/outputs/deepgen_rl}"
recipe="$OUTPUT_DIR/recipe.yaml"
gpus="$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)"
export NGPUS="${NGPUS:-$((gpus > 0 ? gpus : 1))}"
flags=(
    --output_dir "$OUTPUT_DIR"
    --dataset_config "${DATASET_CONFIG:-assets/rl_datasets/deepgen/deepgen_train.yaml}"
    --eval_dataset_config "${EVAL_DATASET_CONFIG:-assets/rl_datasets/deepgen/eval/eval.yaml}"
    --num_train_epochs 10 --lr_scheduler_type constant_with_warmup --report_to "wandb,swanlab"
    --run_name "${WANDB_RUN_NAME:-train}" --deepspeed zero2.json
)
for pair in "model_config=${MODEL_CONFIG:-}" "checkpoint=${CHECKPOINT:-}" "sftaux_dataset_config=${SFTAUX_DATASET_CONFIG:-}"; do
    if [[ -n "${pair#*=}" ]]; then flags+=("--${pair%%=*}" "${pair#*=}"); fi
done
if [[ "${DRY_RUN:-0}" == 1 ]]; then
    replace_by python -m trainer from-deepgen "${flags[@]}"
    replace_by bash "$ROOT/train.sh" "$recipe" "$@"
    exit 0
fi
if [[ -f "$recipe" ]]; then
    say "using $recipe, made by an earlier start; remove it to have it made again"
else
    ensure_venv base
    mkdir -p "$OUTPUT_DIR"
    PYTHONPATH="$ROOT" "$VENV_PYTHON" -m trainer from-deepgen "${flags[@]}" >"$recipe.part" || exit $?
    mv "$recipe.part" "$recipe"
    say "wrote $recipe"
fi
replace_by bash "$ROOT/train.sh" "$recipe" "$@"
