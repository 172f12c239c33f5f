#!/usr/bin/env bash
# Trains: sets up the environment if needed, then runs one process, or one per GPU and node when there are several.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
DEFAULT_CONFIG=configs/quickstart.yaml

usage() {
    cat <<'TEXT'
Usage: bash train.sh [CONFIG] [key=value ...]

Trains with a configuration file; without one, configs/quickstart.yaml. Each key=value overrides a field:
    bash train.sh
    bash train.sh configs/quickstart.yaml max_steps=20 seed=2

The first run makes a virtual environment in .venv; later runs use it again until the pinned packages change.

Environment:
    NGPUS         processes on this node, one per GPU (default 1)
    NNODES        nodes (default 1); run the same command on each of them
    NODE_RANK     this node's number, 0 to NNODES-1 (needed when NNODES > 1)
    MASTER_ADDR   address of node 0 (needed when NNODES > 1)
    MASTER_PORT   a free port on node 0 (default 29500)
    NODE_IP_LIST  addresses of all nodes, with commas: their number is NNODES, the first one's is MASTER_ADDR. With it
                  INDEX and CHIEF_IP are read where NODE_RANK and MASTER_ADDR are not set
    MAX_RESTARTS  how often a run whose process was killed, or whose node was lost, starts again from its newest
                  checkpoint by itself (default 3 with several processes; one process is not started again). Errors
                  that were said are never tried again. On a node that lost GPUs, as many processes start as fit
    PYTHON        the Python (>= 3.11) the environment is made with
    VENV          where the environment lives (default .venv in the repository)
    DRY_RUN=1     print the command and stop, setting nothing up
TEXT
}

# shellcheck source=scripts/setup_venv.sh
source "$ROOT/scripts/setup_venv.sh"

require_integer() { # name, value, least
    if ! [[ "$2" =~ ^[0-9]{1,9}$ ]] || ((10#$2 < $3)); then
        die "$1=$2 is not a whole number of at least $3. Set $1, or unset it for the default."
    fi
}

# Sets CONFIG to an absolute path: as given, seen from where the command was typed, else from the repository; or by its name.
resolve_config() { # path
    if [[ -f "$1" ]]; then
        CONFIG="$(cd "$(dirname "$1")" && pwd -P)/$(basename "$1")"
    elif [[ "$1" != /* && -f "$ROOT/$1" ]]; then
        CONFIG="$ROOT/$1"
    elif [[ "$1" != */* && -f "$ROOT/configs/$1.yaml" ]]; then
        CONFIG="$ROOT/configs/$1.yaml"
    else
        die "no config file $1. There are: $(cd "$ROOT" && printf '%s ' configs/*.yaml)"
    fi
}

# Variables with paths, of recipes and services; config fields with paths (trainer/config, FilePath). Tests compare.
PATH_VARIABLES=(SD3_5_MODEL_NAME_OR_PATH QWEN2_5_VL_MODEL_NAME_OR_PATH CHECKPOINT DATASET_CONFIG EVAL_DATASET_CONFIG
    DATA_ROOT OUTPUT_DIR HPS_CHECKPOINT HPS_VOCABULARY OCR_DET_MODEL_DIR OCR_REC_MODEL_DIR RULES_FUNCTIONS
    EVAL_TEMPLATE_EN EVAL_TEMPLATE_ZH EVAL_DEFINITIONS SSL_CERT_FILE)
PATH_FIELDS=(path checkpoint lmm_checkpoint pretrained converted sd3_path qwen_path dataset_config deepspeed token_file
    image_folder image_dir image_cache preprocessing executable weights_dir embedding_cache ca_file resume output output_dir functions
    det_model_dir rec_model_dir vocabulary language tokenizer weights grouping registry after export think_instruction refine_instruction)

# This script goes to the repository before it starts, where relative paths of recipes count from. What is typed, in
# variables and in overrides, counts from where it is typed; what is only in the repository is taken from there.
from_here() { # path
    if [[ "$1" != /* && ( -e "$PWD/$1" || ! -e "$ROOT/$1" ) ]]; then
        printf '%s' "$PWD/$1"
    else
        printf '%s' "$1"
    fi
}

resolve_variables() {
    local name
    for name in "${PATH_VARIABLES[@]}"; do
        if [[ -n "${!name:-}" ]]; then export "$name=$(from_here "${!name}")"; fi
    done
}

# Sets OVERRIDES: key=value with the paths that are here, and a new output_dir, as seen from here.
resolve_overrides() { # key=value ...
    local override value field
    OVERRIDES=()
    for override in "$@"; do
        value="${override#*=}" field="${override%%=*}"
        field="${field##*.}"
        if [[ " ${PATH_FIELDS[*]} " == *" $field "* && -n "$value" && ( -e "$PWD/$value" || "$field" == output_dir ) ]]; then
            override="${override%%=*}=$(from_here "$value")"
        fi
        OVERRIDES+=("$override")
    done
}

# NODE_IP_LIST, as DeepGen-RL's script reads it; an entry may end in :GPUS.
read_node_list() {
    local nodes=()
    IFS=', ' read -ra nodes <<<"$NODE_IP_LIST"
    if [[ -n "${NNODES:-}" && "$NNODES" != "${#nodes[@]}" ]]; then
        die "NNODES=$NNODES, but NODE_IP_LIST names ${#nodes[@]} nodes. Correct one of them, or unset it."
    fi
    NNODES="${#nodes[@]}"
    if ((NNODES > 1)); then
        MASTER_ADDR="${MASTER_ADDR:-${CHIEF_IP:-${nodes[0]%%:*}}}"
        NODE_RANK="${NODE_RANK:-${INDEX:-}}"
    fi
}

# Says where NODE_IP_LIST gives this node another number of GPUs than NGPUS, which counts.
compare_node_list() {
    local nodes=() node gpus
    IFS=', ' read -ra nodes <<<"$NODE_IP_LIST"
    node="${nodes[$NODE_RANK]}"
    gpus="${node##*:}"
    if [[ "$node" == *:* && "$gpus" =~ ^[0-9]{1,4}$ ]] && ((10#$gpus != NGPUS)); then
        say "NODE_IP_LIST gives node $NODE_RANK $gpus GPUs ($node), but NGPUS is $NGPUS and counts. Set NGPUS=$gpus to use those."
    fi
}

# Sets COMMAND to what this node runs.
build_command() { # python, trainer arguments ...
    local python="$1"
    shift
    if ((NNODES * NGPUS == 1)); then
        COMMAND=("$python" -m trainer train "$@")
        return
    fi
    COMMAND=("$python" -m trainer.processes.launch --nproc "$NGPUS" --max-restarts "$MAX_RESTARTS")
    if ((NNODES > 1)); then
        COMMAND+=(--nnodes "$NNODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR")
    fi
    # Without a port, a single node takes a free one, so two runs on one machine do not meet.
    if ((NNODES > 1)) || [[ -n "${MASTER_PORT:-}" ]]; then COMMAND+=(--master-port "${MASTER_PORT:-29500}"); fi
    COMMAND+=(train "$@")
}

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    usage
    exit 0
fi

if [[ "${1:-}" == -* ]]; then
    die "$1 is not an option: options are written key=value. See: bash train.sh --help"
fi
if [[ $# -gt 0 && ("$1" != *=* || -f "$1") ]]; then
    resolve_config "$1"
    shift
else
    resolve_config "$DEFAULT_CONFIG"
fi
for override in "$@"; do
    [[ "$override" == ?*=* ]] || die "$override is not of the form key=value. See: bash train.sh --help"
done

if [[ -n "${NODE_IP_LIST:-}" ]]; then read_node_list; fi
NNODES="${NNODES:-1}" NGPUS="${NGPUS:-1}" NODE_RANK="${NODE_RANK:-}" MAX_RESTARTS="${MAX_RESTARTS:-3}"
require_integer MAX_RESTARTS "$MAX_RESTARTS" 0
require_integer NNODES "$NNODES" 1
require_integer NGPUS "$NGPUS" 1
if ((NNODES > 1)); then
    [[ -n "${MASTER_ADDR:-}" ]] || die "NNODES=$NNODES needs MASTER_ADDR, the address of node 0."
    [[ -n "$NODE_RANK" ]] || die "NNODES=$NNODES needs NODE_RANK, this node's number from 0 to $((NNODES - 1))."
fi
NODE_RANK="${NODE_RANK:-0}"
require_integer NODE_RANK "$NODE_RANK" 0
((NODE_RANK < NNODES)) || die "NODE_RANK=$NODE_RANK, but with NNODES=$NNODES it is at most $((NNODES - 1))."
[[ -z "${MASTER_PORT:-}" ]] || require_integer MASTER_PORT "$MASTER_PORT" 1
if [[ -n "${NODE_IP_LIST:-}" ]]; then compare_node_list; fi

if [[ "$PWD" != "$ROOT" ]]; then
    resolve_variables
    resolve_overrides "$@"
    set -- "${OVERRIDES[@]}"
fi
if [[ "${DRY_RUN:-0}" == 1 ]]; then
    build_command python "$CONFIG" "$@"
    printf '%q ' "${COMMAND[@]}"
    printf '\n'
    exit 0
fi

ensure_venv base
if [[ "$NGPUS" == 1 && -z "${CUDA_VISIBLE_DEVICES+set}" ]] && command -v nvidia-smi >/dev/null 2>&1; then
    GPUS="$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true)"
    if ((GPUS > 1)); then say "$GPUS GPUs are here and one process will use one of them; NGPUS=$GPUS uses all"; fi
fi
build_command "$VENV_PYTHON" "$CONFIG" "$@"
cd "$ROOT"
printf '[train] %s\n' "${COMMAND[*]}"
exec "${COMMAND[@]}"
