#!/usr/bin/env bash
# The first run on a GPU: what this project does on the card, as a table.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

usage() {
    cat <<'TEXT'
Usage: bash scripts/first_gpu.sh [--out FOLDER] [--minutes N] [--parts PART,PART] [--again PART,PART] [--tiny]

Measures one part after the other, each in a process of its own with a time limit, and prints a table: what was found, the
goals reached and missed, and for what failed or was not run the reason. It writes table.md, rows.jsonl and log.txt into the
folder. Started once more it goes on: finished parts are skipped. No network, no model's files: weights are random.

    --out FOLDER     where the table goes (outputs/first_gpu)
    --minutes N      begin no part and stop the one that runs after so many minutes (10)
    --parts A,B      only these parts
    --again A,B      measure these once more
    --tiny           every part at the size of a test, which a CPU can do; the numbers say nothing of speed

Environment:
    PYTHON           the interpreter (the one of .venv where there is one, else python3); torch 2.11 and transformers 5.17 or newer
    PYTHONPATH       further folders of packages
    HPS_CHECKPOINT   weights of HPSv2.1; without it they are random, and the row says so
TEXT
}

die() {
    printf '[first_gpu] error: %s\n' "$*" >&2
    exit 2
}

out="outputs/first_gpu" minutes=10 parts="" again="" tiny=()
while (($#)); do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --tiny) tiny=(--tiny) && shift && continue ;;
        --out | --minutes | --parts | --again) (($# > 1)) || die "$1 needs a value: see --help" ;;
        *) die "$1 is no flag: see --help" ;;
    esac
    case "$1" in
        --out) out="$2" ;;
        --minutes) minutes="$2" ;;
        --parts) parts="$2" ;;
        --again) again="$2" ;;
    esac
    shift 2
done
[[ "$minutes" =~ ^[0-9]+$ ]] || die "--minutes $minutes is no whole number"
[[ "$out" == /* ]] || out="$PWD/$out"

python="${PYTHON:-}"
[[ -n "$python" ]] || { [[ -x "$ROOT/.venv/bin/python" ]] && python="$ROOT/.venv/bin/python" || python=python3; }
[[ "$python" != */* || "$python" == /* ]] || python="$PWD/$python"
command -v "$python" >/dev/null || die "$python is not a program: name a Python in PYTHON"
cd "$ROOT"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

measure() { "$python" -m benchmarks.first_gpu "$@" --out "$out" "${tiny[@]}"; }

IFS=, read -r -a wanted <<<"$parts"
IFS=, read -r -a anew <<<"$again"
((${#wanted[@]} == 0)) || wanted+=("${anew[@]}")
"$python" -c '' || die "$python does not run"
names="$(measure list "${wanted[@]}")" || exit 2
mapfile -t names <<<"$names"
measure check "${names[@]}" || exit 2
for name in "${names[@]}"; do
    if [[ ",$again," == *",$name,"* ]]; then flag=(--again); else flag=(); fi
    measure run "$name" --left $((minutes * 60 - SECONDS)) "${flag[@]}"
done
printf '\n'
measure table
